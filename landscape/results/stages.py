"""What an unfinished run of spectra keeps beside its parts: overlaps, inner products of rows, and chosen samples."""

from dataclasses import dataclass
from typing import ClassVar

from landscape.results.axes import Counts, Floats, array
from landscape.results.base import Result


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Overlap(Result):
    """Several parts' matrices on the Ritz vectors and gradients of all parts, from which overlaps are computed."""

    kind: ClassVar[str] = "overlap"
    version: ClassVar[int] = 1
    along: ClassVar[str] = "matrix"

    parts: tuple[str, ...] = array("part", doc="names of the parts that the vectors are of")
    matrices: tuple[str, ...] = array("matrix", doc="names of the parts that the matrices are of")
    trace: Floats = array("matrix", "part", unit="loss", doc="trace of the matrix on the part's Ritz vectors")
    along_gradient: Floats = array("matrix", "part", unit="loss", doc="the matrix along the part's gradient")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RowProducts(Result):
    """Inner products of the rows of all parts of a spectrum, as its fields of the same names; empty if too many."""

    kind: ClassVar[str] = "row-products"
    version: ClassVar[int] = 1
    along: ClassVar[str] = "part"

    parts: tuple[str, ...] = array("part", doc="names of the parts")
    gram: Floats = array("gram_row", "gram_row", unit="loss", doc="inner products of the rows")
    gram_part: Counts = array("gram_row", doc="position of each row's part", places="part")
    gram_sample: Counts = array("gram_row", doc="position of its sample among those of the part")
    gram_sign: Floats = array("gram_row", doc="sign of the row")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Pilots(Result):
    """The samples of each part that pilots chose for a requested accuracy; all samples if a draw would need most."""

    kind: ClassVar[str] = "pilots"
    version: ClassVar[int] = 1
    along: ClassVar[str] = "part"

    parts: tuple[str, ...] = array("part", doc="names of the parts")
    sample_index: Floats = array("part", "sample", doc="position of each draw's sample in the data; nan for none")
    factor: Floats = array("part", "sample", doc="what its loss is multiplied by; nan for none")
    uncertainty: Floats = array("part", doc="mean tr M of all samples of a part of weighted draws; else nan")
