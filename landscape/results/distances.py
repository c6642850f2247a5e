"""The points to which parts of the data converge, and their distances."""

from dataclasses import dataclass
from typing import ClassVar

from landscape.results.axes import Counts, Floats, array, scalar
from landscape.results.base import Result


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Distances(Result):
    """Distances of the parts' convergence points in each of several runs, and the losses of all parts at each point.

    Points are the convergence points of the parts (the parameters that are best for a part), then other models such as
    the final one. Distances are over the parameters that `parameters` describes.
    """

    kind: ClassVar[str] = "distances"
    version: ClassVar[int] = 3  # since 2: errors of barriers over samples; since 3: of weighted distances and of rises
    along: ClassVar[str] = "run"

    runs: tuple[str, ...] = array("run", doc="names of the runs, which differ only in their seed")
    points: tuple[str, ...] = array("point", doc="names of the points")
    parts: tuple[str, ...] = array("part", doc="names of the parts of the data")
    n_samples: Counts = array("part", unit="samples", doc="samples in the part")
    train_counts: Counts = array("part", unit="samples", doc="training samples of the part's classes")

    euclidean: Floats = array("run", "point", "point", doc="Euclidean distance")
    cosine: Floats = array("run", "point", "point", doc="cosine of the displacements from the start")
    filter_normalised: Floats = array(
        "run", "point", "point", doc="root mean square over filters of |a - b| / mean(|a|, |b|) of the filter"
    )
    fisher: Floats = array(
        "run", "point", "point", doc="[a, b]: root of (a - b)^T F_a (a - b), F_a the diagonal Fisher at a of a's part"
    )
    fisher_stderr: Floats | None = array(
        "run", "point", "point", doc="standard error of the Fisher-weighted distance over samples", optional=True
    )
    barrier: Floats = array(
        "run",
        "point",
        "point",
        "part",
        unit="loss",
        doc="largest rise of the loss above the line between its values at the two points; nan without barriers",
    )
    barrier_stderr: Floats | None = array(
        "run", "point", "point", "part", unit="loss", doc="standard error of the barrier over samples", optional=True
    )
    hessian_rise: Floats | None = array(
        "run",
        "point",
        "point",
        unit="loss",
        doc="[a, b]: (b - a)^T H_a (b - a) / 2, H_a the Hessian at a of a's part: the rise that it predicts towards b",
        optional=True,
    )
    hessian_rise_stderr: Floats | None = array(
        "run", "point", "point", unit="loss", doc="standard error of the predicted rise over samples", optional=True
    )
    norm: Floats = array("run", "point", doc="Euclidean length of the point's displacement from the start")
    point_epoch: Floats = array("run", "point", unit="epochs", doc="mean epoch of the point; nan if unknown")
    loss: Floats = array("run", "point", "part", unit="loss", doc="loss of the part at the point")
    loss_stderr: Floats | None = array(
        "run", "point", "part", unit="loss", doc="standard error of the loss over samples; nan for one", optional=True
    )
    accuracy: Floats | None = array(
        "run", "point", "part", doc="accuracy of the part at the point; absent without classes", optional=True
    )
    accuracy_stderr: Floats | None = array(
        "run",
        "point",
        "part",
        doc="its standard error over samples; nan for one, and for weighted draws",
        optional=True,
    )

    epoch: Floats = array("epoch", unit="epochs", doc="epochs of the snapshots along training")
    along_training: Floats = array("run", "epoch", "point", doc="Euclidean distance of the snapshot to the point")

    source: str = scalar(doc="memory bank or fine-tuning")
    parameters: str = scalar(doc="which parameters distances are over")
    size: int = scalar(unit="parameters", doc="number of these parameters")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Tuned(Result):
    """The convergence points that a run has computed, or that it has been given and goes on with."""

    kind: ClassVar[str] = "tuned"
    version: ClassVar[int] = 1
    along: ClassVar[str] = "point"

    points: tuple[str, ...] = array("point", doc="names of the points, and of their runs if there are several")
    theta: Floats = array("point", "parameter", doc="the parameters")
    buffers: Floats = array("point", "buffer", doc="the floating-point buffers, such as running statistics")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Displacements(Result):
    """Sizes of some displacements between points, from which `Distances` are made."""

    kind: ClassVar[str] = "displacements"
    version: ClassVar[int] = 1
    along: ClassVar[str] = "displacement"

    measures: tuple[str, ...] = array("displacement", doc="what each size is: fisher, hessian_rise or barrier")
    begin: Counts = array("displacement", doc="number of the point from which the displacement leads, over all runs")
    end: Counts = array("displacement", doc="number of the point to which it leads")
    size: Floats = array("displacement", "entry", doc="the size; for a barrier, that of each part")
    size_stderr: Floats = array("displacement", "entry", doc="its standard error over samples")
