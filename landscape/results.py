"""What an analysis leaves: frozen dataclasses of NumPy arrays with named axes and units.

Everything that computes ends here, everything that shows begins here; nothing in this file knows torch. A field
says its axes and its unit once, in its declaration: validation, the HDF5 labels and `landscape info` read them there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeAlias, TypeVar

import numpy as np

from landscape.errors import InputError

R = TypeVar("R", bound="Result")


def array(*axes: str, unit: str = "", doc: str = "", optional: bool = False) -> Any:
    """Declare a field that is an array with named axes.

    Args:
        axes: one name per axis; fields that share a name share that axis' length.
        unit: the unit of the values, empty for pure numbers.
        doc: one line for the reader of a file.
        optional: the field may be None.

    Returns:
        A dataclass field with this metadata.
    """
    metadata = {"axes": axes, "unit": unit, "doc": doc, "optional": optional}
    return field(default=None, metadata=metadata) if optional else field(metadata=metadata)


def scalar(unit: str = "", doc: str = "", **default: Any) -> Any:
    """Declare a field that is one number or string.

    Args:
        unit: the unit of the value, empty for pure numbers.
        doc: one line for the reader of a file.
        default: `default=` or `default_factory=`, as in `dataclasses.field`.

    Returns:
        A dataclass field with this metadata.
    """
    return field(metadata={"axes": None, "unit": unit, "doc": doc, "optional": False}, **default)


def check_axes(result: Any) -> None:
    """Check that every array has its named axes, and that axes of one name have one length.

    Args:
        result: an instance of a dataclass whose fields are declared with `array` and `scalar`.

    Raises:
        InputError: an array has the wrong number of axes, or two arrays disagree on the length of an axis.
    """
    lengths: dict[str, tuple[int, str]] = {}
    for item in fields(result):
        value = getattr(result, item.name)
        axes = item.metadata.get("axes")
        if axes is None or (value is None and item.metadata["optional"]):
            continue
        shape = np.shape(value)
        if len(shape) != len(axes):
            raise InputError(f"{item.name} must have axes {axes}, got shape {shape}")
        for axis, length in zip(axes, shape, strict=True):
            known, owner = lengths.setdefault(axis, (length, item.name))
            if known != length:
                raise InputError(f"{item.name} has {length} along {axis!r}, but {owner} has {known}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Spectrum:
    """Lanczos coefficients of each part's curvature matrix, and the numbers that follow from them.

    Row k of part p is one Lanczos run of `steps[p, k]` products from probe k; coefficients beyond that many
    steps do not exist and are nan. Eigenvalues are in units of the loss (parameters have none).
    """

    kind: ClassVar[str] = "spectrum"
    version: ClassVar[int] = 1

    parts: tuple[str, ...] = array("part", doc="names of the parts of the data")
    n_samples: np.ndarray = array("part", unit="samples", doc="samples in the part")
    train_counts: np.ndarray = array("part", unit="samples", doc="training samples of the part's classes")
    n_used: np.ndarray = array("part", unit="samples", doc="samples summed over; fewer with --residual-mass")
    loss: np.ndarray = array("part", unit="loss", doc="mean loss over the part's samples")
    accuracy: np.ndarray = array("part", doc="share of the part's samples that are classified correctly")

    lambda_max: np.ndarray = array("part", unit="loss", doc="largest Ritz value over the probes")
    lambda_max_residual: np.ndarray = array(
        "part", unit="loss", doc="an eigenvalue lies within this distance of lambda_max"
    )
    lambda_min: np.ndarray = array("part", unit="loss", doc="smallest Ritz value over the probes")
    lambda_min_residual: np.ndarray = array(
        "part", unit="loss", doc="an eigenvalue lies within this distance of lambda_min"
    )
    converged: np.ndarray = array("part", doc="lambda_max_residual is at most tol times |lambda_max|")
    trace: np.ndarray = array("part", unit="loss", doc="trace")
    trace_stderr: np.ndarray = array("part", unit="loss", doc="its standard error over probes; nan for one, 0 if exact")
    negative_mass: np.ndarray = array(
        "part", doc="share of the eigenvalues below -negative_tol * max |eigenvalue|, mean over probes"
    )
    negative_mass_stderr: np.ndarray = array("part", doc="its standard error over probes; nan for one probe")
    negative_curvature: np.ndarray = array(
        "part", doc="sum of |eigenvalue| over the negative ones, as a share of the sum over all, mean over probes"
    )
    negative_curvature_stderr: np.ndarray = array("part", doc="its standard error over probes; nan for one probe")
    saddle_ratio: np.ndarray = array("part", doc="|lambda_min / lambda_max|, mean over probes")
    saddle_ratio_stderr: np.ndarray = array("part", doc="its standard error over probes; nan for one probe")

    truncation_error: np.ndarray = array(
        "part", unit="loss", doc="largest change of a checked Ritz value when all samples are used; 0 if all were"
    )
    ritz_values: np.ndarray = array("part", "rank", unit="loss", doc="largest Ritz values, descending")
    ritz_residuals: np.ndarray = array("part", "rank", unit="loss", doc="their residual bounds")
    ritz_vectors: np.ndarray | None = array(
        "part", "vector", "parameter", doc="unit vectors of the largest Ritz values", optional=True
    )

    alpha: np.ndarray = array("part", "probe", "step", unit="loss", doc="diagonal of the tridiagonal matrix")
    beta: np.ndarray = array(
        "part",
        "probe",
        "step",
        unit="loss",
        doc="off-diagonal; entry j couples steps j and j + 1, the last is left over",
    )
    steps: np.ndarray = array("part", "probe", unit="products", doc="Lanczos steps of the run")
    probe_norm2: np.ndarray = array("part", "probe", doc="squared length of the probe before it was normalised")
    trace_samples: np.ndarray = array(
        "part", "trace_probe", unit="loss", doc="one deflated estimate of the trace a probe; nan where not drawn"
    )

    size: int = scalar(unit="parameters", doc="number of parameters, the order of the matrix")
    operator: str = scalar(doc="hessian, ggn, fisher or empirical-fisher")
    tol: float = scalar(doc="relative residual at which lambda_max counts as converged")
    negative_tol: float = scalar(doc="eigenvalues above -negative_tol * max |eigenvalue| do not count as negative")
    residual_mass: float = scalar(doc="share of the residual mass that was kept; 1 if nothing was left out")
    provenance: Mapping[str, Any] = scalar(doc="how, when and from what this was computed", default_factory=dict)

    def __post_init__(self) -> None:
        check_axes(self)

    def index(self, part: str) -> int:
        """Return the position of a part by its name.

        Args:
            part: one of `parts`.

        Returns:
            Its index along the axis "part".

        Raises:
            InputError: there is no such part.
        """
        if part not in self.parts:
            raise InputError(f"no part {part!r}; there are {', '.join(self.parts)}")
        return self.parts.index(part)


@dataclass(frozen=True, kw_only=True, eq=False)
class History:
    """How a training went, a row for each finished epoch; nan where an epoch did not measure something.

    `train_loss` and `train_accuracy` are summed over the epoch's steps: each sample was seen by the weights of its own
    step, augmented and in training mode. All else belongs to the weights at the end of the epoch, in eval mode and
    without augmentation.
    """

    kind: ClassVar[str] = "history"
    version: ClassVar[int] = 1

    parts: tuple[str, ...] = array("part", doc="names of the classes")
    train_counts: np.ndarray = array("part", unit="samples", doc="samples of the class that were trained on")
    test_counts: np.ndarray = array("part", unit="samples", doc="test samples of the class")

    epoch: np.ndarray = array("epoch", unit="epochs", doc="epochs done, from 1")
    seconds: np.ndarray = array("epoch", unit="s", doc="wall time of the epoch with its evaluation")
    learning_rate: np.ndarray = array("epoch", doc="of the epoch's last step")
    train_loss: np.ndarray = array("epoch", unit="loss", doc="mean of the method's loss over the training samples")
    train_accuracy: np.ndarray = array("epoch", doc="share of the training samples classified correctly")
    test_loss: np.ndarray = array("epoch", unit="loss", doc="mean cross-entropy over the test samples")
    test_accuracy: np.ndarray = array("epoch", doc="share of the test samples classified correctly")
    validation_accuracy: np.ndarray = array(
        "epoch", doc="mean over classes of the accuracy on held-out training samples"
    )

    test_loss_per_class: np.ndarray = array("epoch", "part", unit="loss", doc="mean cross-entropy on test samples")
    test_accuracy_per_class: np.ndarray = array("epoch", "part", doc="accuracy on the class's test samples")
    eval_loss_per_class: np.ndarray = array("epoch", "part", unit="loss", doc="mean cross-entropy on training samples")
    eval_accuracy_per_class: np.ndarray = array("epoch", "part", doc="accuracy on the class's training samples")
    quality: np.ndarray = array("epoch", "part", doc="feature quality Q on the training samples")
    distance: np.ndarray = array("epoch", "part", doc="distance of the class mean to the nearest other, Dis")
    variance: np.ndarray = array("epoch", "part", doc="mean squared distance of features to their class mean, Var")
    gradient_cosine: np.ndarray = array("epoch", "part", doc="cosine of class and batch gradient, mean over batches")
    bank_epoch: np.ndarray = array(
        "epoch", "part", unit="epochs", doc="epoch of the class's snapshot in the memory bank"
    )
    group: np.ndarray = array("epoch", "part", doc="number of the class's group")

    method: str = scalar(doc="name of the recipe")
    provenance: Mapping[str, Any] = scalar(doc="how, when and from what this was computed", default_factory=dict)

    def __post_init__(self) -> None:
        check_axes(self)


Result: TypeAlias = Spectrum | History

KINDS: dict[str, type[Result]] = {"spectrum": Spectrum, "history": History}


def concatenate(results: Sequence[R]) -> R:
    """Join results of one kind along the axis "part".

    Axes that differ in length (steps, trace probes) are filled up with nan at their end; for integers, where nan
    does not exist, a difference in length is an error. Scalars must agree; the provenance is the first one's.

    Args:
        results: at least one result, all of one kind.

    Returns:
        One result with all the parts, in order.

    Raises:
        InputError: no results, different kinds, or scalars that disagree.
    """
    if not results:
        raise InputError("nothing to join: there are no results")
    first = results[0]
    for other in results:
        if type(other) is not type(first):
            raise InputError(f"a {first.kind} and a {other.kind} do not join: give results of one kind")
    joined: dict[str, Any] = {}
    for item in fields(first):
        values = [getattr(r, item.name) for r in results]
        axes = item.metadata.get("axes")
        if axes is None:
            if item.name != "provenance" and not all(_same(v, values[0]) for v in values):
                raise InputError(f"results differ in {item.name}: {values[0]!r} and others")
            joined[item.name] = values[0]
        elif all(v is None for v in values):
            joined[item.name] = None
        elif any(v is None for v in values):
            raise InputError(f"some results have {item.name}, others have not")
        elif item.name == "parts":
            joined[item.name] = tuple(name for v in values for name in v)
        else:
            joined[item.name] = np.concatenate(_padded(values, item.name))
    return type(first)(**joined)


def _same(a: Any, b: Any) -> bool:
    return bool(a == b or (a != a and b != b))  # nan, the one value that differs from itself


def _padded(values: list[np.ndarray], name: str) -> list[np.ndarray]:
    shape = np.max([v.shape[1:] for v in values], axis=0) if values[0].ndim > 1 else ()
    padded = []
    for value in values:
        missing = [(0, 0)] + [(0, int(n - m)) for n, m in zip(shape, value.shape[1:], strict=True)]
        if any(after for _, after in missing):
            if not np.issubdtype(value.dtype, np.floating):
                raise InputError(f"{name} has different lengths in different parts")
            value = np.pad(value, missing, constant_values=np.nan)
        padded.append(value)
    return padded
