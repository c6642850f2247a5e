"""The report: results of any kinds as one page that needs no network, for reading, turning and passing on.

Numbers are those of the files. The page computes one thing itself, the broadening of the stored quadratures, so that
the width can be chosen while looking; it does so as `landscape/results/quadrature.py`. Nothing here needs torch.
"""

from landscape.report.page import page
from landscape.report.sources import Source, open_sources

__all__ = ["Source", "open_sources", "page"]
