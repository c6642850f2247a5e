"""The report: results of any kinds as one HTML page, which needs no network and can be passed on.

Numbers are those of the files. The page computes one thing itself, the broadening of the stored quadratures, so that
its reader can choose the width; it does so as `landscape/results/quadrature.py`. `sources` opens the files, `rows`
makes the table, `curves` and `figures` the drawings, `page` joins them. It imports `plots` and `results`, and never
torch. Begin with `page`.
"""

from landscape.report.page import page
from landscape.report.sources import Source, open_sources

__all__ = ["Source", "open_sources", "page"]
