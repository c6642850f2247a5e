"""The page that a figure is made for: as wide as one or two columns of a paper, or as the figure likes best."""

from contextvars import ContextVar
from dataclasses import dataclass

ONE_COLUMN, TWO_COLUMNS = 3.25, 6.875
"""Inches: width of a column and of the text in CVPR's style, so that LaTeX includes a figure at scale 1."""

HIGHEST, LONGEST_MAP = 8.8, 6.4
"""Inches: height of a figure, which fits that style's pages, and of a map of many rows."""

WIDTHS = {None: None, 1: ONE_COLUMN, 2: TWO_COLUMNS}
"""Inches, by the number of columns."""

chosen: ContextVar[int | None] = ContextVar("columns", default=None)
"""The number of columns within a `theme.styled` block."""


title: ContextVar[str | None] = ContextVar("title", default=None)
"""What stands above the figure in place of its own heading, within a `theme.styled` block; None leaves that."""

captions: ContextVar[bool] = ContextVar("captions", default=True)
"""Whether figures say in words what they are of, likewise; a paper says it in the caption below."""

CAPTION = "caption"
"""The gid of titles of axes that say what the figure is of, not what the panel is."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """How high the panels of a figure shall be, in inches, where its width is that of a page."""

    rows: int = 1  # of panels
    ratio: float = 0.75  # of height and width
    least: float = 1.0
    most: float = 2.3


def page() -> float | None:
    """Return the width in inches that figures must have, None where it is theirs to choose."""
    return WIDTHS[chosen.get()]


def is_narrow() -> bool:
    """Say whether figures are one column wide, so that legends and colour bars go below the panels."""
    return page() == ONE_COLUMN
