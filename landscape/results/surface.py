"""Losses at points of parameter space: a list of points, a line, a plane, or paths of training on a plane."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from landscape.results.axes import Bools, Counts, Floats, array, scalar
from landscape.results.base import Result
from landscape.results.predicted import Predicted


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Points(Result):
    """Loss and accuracy of every part at some points of parameter space, from which surfaces and paths are made."""

    kind: ClassVar[str] = "points"
    version: ClassVar[int] = 2  # since 2: errors over samples
    along: ClassVar[str] = "point"

    parts: tuple[str, ...] = array("part", doc="names of the parts of the data")
    n_samples: Counts = array("part", unit="samples", doc="samples in the part")
    point: Counts = array("point", doc="number of the point in the requested list")
    loss: Floats = array("point", "part", unit="loss", doc="mean loss over the part's samples")
    accuracy: Floats | None = array(
        "point",
        "part",
        doc="share of the part's samples that are predicted correctly; absent without classes",
        optional=True,
    )
    loss_stderr: Floats | None = array(
        "point", "part", unit="loss", doc="standard error of the loss over samples; nan for one", optional=True
    )
    accuracy_stderr: Floats | None = array(
        "point", "part", doc="standard error of the accuracy over samples; nan for one", optional=True
    )


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Plane(Result):
    """A line or plane through parameter space: theta = origin + sum over axes of coordinate times direction.

    With a stored plane, two networks can be compared in the same plane and the same units. Running statistics of batch
    norm are buffers; they move with the point if their directions are not zero.
    """

    kind: ClassVar[str] = "plane"
    version: ClassVar[int] = 1
    along: ClassVar[str] = "axis"

    axes: tuple[str, ...] = array("axis", doc="what each direction is")
    directions: Floats = array("axis", "parameter", doc="step of the parameters for one unit of the coordinate")
    buffer_directions: Floats = array("axis", "buffer", doc="step of the floating-point buffers")
    buffer_log_directions: Floats | None = array(
        "axis",
        "buffer",
        doc="the same, where log(v + eps) moves in place of a running variance v of batch norm",
        optional=True,
    )
    origin: Floats = array("parameter", doc="the parameters at coordinates zero")
    buffer_origin: Floats = array("buffer", doc="the floating-point buffers at coordinates zero")
    unit_length: Floats = array("axis", doc="Euclidean length of one unit of the coordinate")
    explained: Floats = array("axis", doc="fraction of a trajectory's variance along the axis; nan for other axes")
    tensors: tuple[str, ...] = array("tensor", doc="names of the parameters, in order")
    sizes: Counts = array("tensor", doc="numbers in each of them")
    cosine: float = scalar(doc="cosine of the angle between the two directions; nan for a line")
    normalisation: str = scalar(doc="none, or what the directions were scaled by: filter, layer or weight")
    ignored: str = scalar(doc="parameters that directions leave alone: none or biasbn")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Surface(Predicted):
    """Loss and accuracy of every part on a line or a grid of points, and at marked checkpoints.

    A line has a single y, which is 0. A point that was left out of an adaptive grid has `computed` false and the value
    nan; if `computed` is true, a nan is the actual output of the network.
    """

    kind: ClassVar[str] = "surface"
    version: ClassVar[int] = 2  # since 2: errors over samples
    along: ClassVar[str] = "part"

    n_samples: Counts = array("part", unit="samples", doc="samples in the part")
    train_counts: Counts = array("part", unit="samples", doc="training samples of the part's classes")

    xcoordinates: Floats = array("x", doc="coordinates along the first axis, in its units")
    ycoordinates: Floats = array("y", doc="coordinates along the second axis, in its units; 0 for a line")
    loss: Floats = array("part", "y", "x", unit="loss", doc="mean loss over the part's samples")
    accuracy: Floats | None = array(
        "part",
        "y",
        "x",
        doc="share of the part's samples that are predicted correctly; absent without classes",
        optional=True,
    )
    loss_stderr: Floats | None = array(
        "part", "y", "x", unit="loss", doc="standard error of the loss over samples; nan for one", optional=True
    )
    accuracy_stderr: Floats | None = array(
        "part", "y", "x", doc="standard error of the accuracy over samples; nan for one", optional=True
    )
    computed: Bools = array("y", "x", doc="true where the point was evaluated")
    variance_invalid: Floats | None = array(
        "y", "x", doc="true where a running variance is below zero or not a finite number", optional=True
    )

    centre_loss: Floats = array("part", unit="loss", doc="mean loss at the checkpoint itself")
    centre_loss_stderr: Floats | None = array("part", unit="loss", doc="its standard error over samples", optional=True)
    centre_policy_loss: Floats | None = array(
        "part",
        unit="loss",
        doc="mean loss at the checkpoint with running statistics as on the surface, where these are not its own",
        optional=True,
    )
    centre_accuracy: Floats | None = array("part", doc="accuracy at the checkpoint itself", optional=True)
    centre_accuracy_stderr: Floats | None = array("part", doc="its standard error over samples", optional=True)
    lowest_loss: Floats = array("part", unit="loss", doc="lowest loss of the grid")
    lowest_position: Floats = array("part", "axis", doc="where it is")
    doubling_radius: Floats = array(
        "part",
        doc="Euclidean distance in the plane at which the loss is twice the centre's; inf if it is not on the grid, "
        "nan if that is unknown, as where one step exceeds it",
    )
    worst_rise: Floats = array(
        "part", unit="loss", doc="largest rise of the loss within `radius` of the centre, in the plane"
    )
    barrier: Floats | None = array(
        "part",
        unit="loss",
        doc="largest rise above the straight line between the losses at 0 and 1, on a line between two checkpoints",
        optional=True,
    )
    barrier_stderr: Floats | None = array(
        "part",
        unit="loss",
        doc="its standard error over samples at most: the losses at three points may go together",
        optional=True,
    )

    axes: tuple[str, ...] = array("axis", doc="what each direction is")
    unit_length: Floats = array("axis", doc="Euclidean length of one unit of the coordinate")
    explained: Floats = array("axis", doc="fraction of a trajectory's variance along the axis; nan for other axes")

    marks: tuple[str, ...] = array("mark", doc="names of points of interest, such as other checkpoints")
    mark_position: Floats = array("mark", "axis", doc="their projections on the plane, in coordinates")
    mark_distance: Floats = array("mark", doc="their Euclidean distance from the plane")
    mark_loss: Floats = array("mark", "part", unit="loss", doc="loss at the point itself, not at its projection")
    mark_loss_stderr: Floats | None = array(
        "mark", "part", unit="loss", doc="its standard error over samples", optional=True
    )
    mark_accuracy: Floats | None = array("mark", "part", doc="accuracy at the point itself", optional=True)
    mark_accuracy_stderr: Floats | None = array("mark", "part", doc="its standard error over samples", optional=True)
    mark_policy_loss: Floats | None = array(
        "mark",
        "part",
        unit="loss",
        doc="loss at the point itself with running statistics as on the surface, where these are not its own",
        optional=True,
    )

    radius: float = scalar(doc="Euclidean radius of worst_rise")
    cosine: float = scalar(doc="cosine of the angle between the two directions; nan for a line")
    batch_norm: str = scalar(doc="running statistics at each point, as --bn names it; none if the network has none")
    verdict: str = scalar(doc="warnings about what the figure may hide or distort")

    @property
    def title(self) -> str:
        """The number of points and the axes."""
        return self.titled([self])

    def titled(self, checkpoints: Sequence["Surface"]) -> str:
        """Return the number of points and the axes, which may have another length at each of several checkpoints."""
        shape = " x ".join(f"{len(c)}" for c in (self.xcoordinates, self.ycoordinates)[: len(self.axes)])
        done, total = int(self.computed.sum()), self.computed.size
        some = "" if done == total else f", {done:,} of {total:,} points computed"
        every = zip(*(surface.unit_length for surface in checkpoints), strict=True)
        ends = [[f"{end(lengths):.3g}" for end in (min, max)] for lengths in every]
        spans = [low if low == high else f"{low} to {high}" for low, high in ends]
        axes = "; ".join(f"{name}, unit length {span}" for name, span in zip(self.axes, spans, strict=True))
        return f"{shape} points{some}; axes: {axes}"

    @property
    def is_line(self) -> bool:
        """Say whether there is one direction only."""
        return len(self.axes) == 1


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Trajectory(Surface):
    """A surface under the paths of one or several runs: the marks are their checkpoints, in order."""

    kind: ClassVar[str] = "trajectory"
    version: ClassVar[int] = 2  # since 2: errors over samples

    runs: tuple[str, ...] = array("run", doc="names of the runs")
    mark_run: Counts = array("mark", doc="number of the run that it is of; -1 for none", places="run", least=-1)
    mark_epoch: Floats = array("mark", unit="epochs", doc="its epoch; nan where the checkpoint does not say")
