"""The report: results of any kinds as one HTML page, which needs no network and can be sent to others.

All numbers are from the files, with one exception: the page itself broadens the stored quadratures, so that the reader
can choose the width. It does this like `landscape/results/quadrature.py`. `sources` opens the files, `rows`
makes the table, `curves` and `figures` the drawings, `page` joins them. It imports `plots` and `results`, and never
torch. Begin with `page`.
"""

from landscape.report.page import page
from landscape.report.sources import Source, open_sources

__all__ = ["Source", "open_sources", "page"]
