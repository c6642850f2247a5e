"""Traces of groups of parts, joined from the spectra of the parts."""

from dataclasses import dataclass
from typing import ClassVar

from landscape.results.axes import Counts, Floats, array, scalar
from landscape.results.predicted import Predicted


def of_rows(operator: str) -> str:
    """Return the name of the matrix whose rows a file of a matrix has: of a Hessian, its Gauss-Newton part."""
    return "ggn" if operator == "hessian" else operator


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Traces(Predicted):
    """Traces of groups of parts. They follow from the traces of the parts, because the trace is linear in the loss.

    lambda_max is of the matrix whose rows the parts have, which is another one than that of the traces for a Hessian.
    Both contain the weight decay, where the matrix does.
    """

    kind: ClassVar[str] = "traces"
    version: ClassVar[int] = 2  # since 2: lambda_max by rows, and errors over samples
    along: ClassVar[str] = "part"

    parts: tuple[str, ...] = array("part", doc="names of the groups")
    n_samples: Counts = array("part", unit="samples", doc="samples in the group")
    train_counts: Counts = array("part", unit="samples", doc="training samples of the group's classes")
    loss: Floats = array("part", unit="loss", doc="weighted mean loss")
    loss_stderr: Floats | None = array("part", unit="loss", doc="its standard error over samples", optional=True)
    accuracy: Floats | None = array("part", doc="weighted mean accuracy; absent without classes", optional=True)
    accuracy_stderr: Floats | None = array("part", doc="its standard error over samples", optional=True)
    trace: Floats = array("part", unit="loss", doc="trace of the matrix of this loss")
    trace_stderr: Floats = array("part", unit="loss", doc="its standard error at most")
    trace_sampling_stderr: Floats | None = array(
        "part", unit="loss", doc="its standard error over samples", optional=True
    )
    lambda_max: Floats | None = array(
        "part", unit="loss", doc="largest eigenvalue of `lambda_max_matrix`, from rows of the parts", optional=True
    )
    lambda_max_above: Floats | None = array(
        "part", unit="loss", doc="it is at most this much larger: the trace that the rows leave out", optional=True
    )
    lambda_max_sampling_stderr: Floats | None = array(
        "part", unit="loss", doc="its standard error over samples", optional=True
    )
    size: int = scalar(unit="parameters", doc="number of parameters, the order of the matrix")
    operator: str = scalar(doc="matrix of the traces, as in the spectrum")
    lambda_max_matrix: str = scalar(
        doc="matrix of lambda_max: of a Hessian its Gauss-Newton part ggn, as rows are; else that of the traces",
        default="",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lambda_max_matrix:  # as in files of earlier versions
            object.__setattr__(self, "lambda_max_matrix", of_rows(self.operator))
