"""What an analysis leaves: frozen dataclasses of NumPy arrays with named axes and units.

Everything that computes ends here, everything that shows begins here; nothing in this file knows torch. It is the
dictionary of the toolkit: each quantity that a file or a figure holds is named, dimensioned and explained below.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias, TypeVar

import numpy as np

from landscape.axes import array, check_axes, scalar
from landscape.errors import InputError

R = TypeVar("R", bound="Result")


@dataclass(frozen=True, kw_only=True, eq=False)
class Spectrum:
    """Lanczos coefficients of each part's curvature matrix, and the numbers that follow from them.

    Row k of part p is one Lanczos run of `steps[p, k]` products from probe k; coefficients beyond that many
    steps do not exist and are nan. Eigenvalues are in units of the loss (parameters have none).
    """

    kind: ClassVar[str] = "spectrum"
    version: ClassVar[int] = 1
    along: ClassVar[str] = "part"

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
    overlap: np.ndarray | None = array(
        "part",
        "part",
        doc="[a, b]: trace of part b's matrix on part a's Ritz vectors, as a share of that on b's own",
        optional=True,
    )
    subspace_overlap: np.ndarray | None = array(
        "part",
        "part",
        doc="mean squared cosine of the principal angles between the spaces of two parts' Ritz vectors",
        optional=True,
    )
    principal_angles: np.ndarray | None = array(
        "part",
        "part",
        "angle",
        unit="degrees",
        doc="angles between these spaces, ascending; nan beyond the vectors that both parts have",
        optional=True,
    )
    gradient_curvature: np.ndarray | None = array(
        "part",
        "part",
        unit="loss",
        doc="[a, b]: part b's matrix along the normalised gradient of part a's loss; nan where that is zero",
        optional=True,
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

    @property
    def vectors_converged(self) -> np.ndarray:
        """Whether the residual of each of a part's Ritz vectors is at most `tol` times |lambda_max|, (P,)."""
        n_vectors = 0 if self.ritz_vectors is None else self.ritz_vectors.shape[1]
        residuals = np.nan_to_num(self.ritz_residuals[:, :n_vectors])  # of vectors that do not exist
        sure: np.ndarray = (residuals <= self.tol * np.abs(self.lambda_max)[:, None]).all(axis=1)
        return sure


@dataclass(frozen=True, kw_only=True, eq=False)
class Traces:
    """Traces of groups of a spectrum's parts, from those of the parts: what is linear in the loss."""

    kind: ClassVar[str] = "traces"
    version: ClassVar[int] = 1
    along: ClassVar[str] = "part"

    parts: tuple[str, ...] = array("part", doc="names of the groups")
    n_samples: np.ndarray = array("part", unit="samples", doc="samples in the group")
    train_counts: np.ndarray = array("part", unit="samples", doc="training samples of the group's classes")
    loss: np.ndarray = array("part", unit="loss", doc="weighted mean loss")
    accuracy: np.ndarray = array("part", doc="weighted mean accuracy")
    trace: np.ndarray = array("part", unit="loss", doc="trace of the matrix of this loss")
    trace_stderr: np.ndarray = array("part", unit="loss", doc="its standard error at most")
    size: int = scalar(unit="parameters", doc="number of parameters, the order of the matrix")
    operator: str = scalar(doc="hessian, ggn, fisher or empirical-fisher")
    provenance: Mapping[str, Any] = scalar(doc="how, when and from what this was computed", default_factory=dict)

    def __post_init__(self) -> None:
        check_axes(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class Overlap:
    """Several parts' matrices on the Ritz vectors and gradients of all parts: what a spectrum's overlap is made of."""

    kind: ClassVar[str] = "overlap"
    version: ClassVar[int] = 1
    along: ClassVar[str] = "matrix"

    parts: tuple[str, ...] = array("part", doc="names of the parts that the vectors are of")
    matrices: tuple[str, ...] = array("matrix", doc="names of the parts that the matrices are of")
    trace: np.ndarray = array("matrix", "part", unit="loss", doc="trace of the matrix on the part's Ritz vectors")
    along_gradient: np.ndarray = array("matrix", "part", unit="loss", doc="the matrix along the part's gradient")
    provenance: Mapping[str, Any] = scalar(doc="how, when and from what this was computed", default_factory=dict)

    def __post_init__(self) -> None:
        check_axes(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class History:
    """How a training went, a row for each finished epoch; nan where an epoch did not measure something.

    `train_loss` and `train_accuracy` are summed over the epoch's steps: each sample was seen by the weights of its own
    step, augmented and in training mode. All else belongs to the weights at the end of the epoch, in eval mode and
    without augmentation.
    """

    kind: ClassVar[str] = "history"
    version: ClassVar[int] = 1
    along: ClassVar[str] = "epoch"

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


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """Loss and accuracy of every part at some points of parameter space: the raw material of surfaces and paths."""

    kind: ClassVar[str] = "points"
    version: ClassVar[int] = 1
    along: ClassVar[str] = "point"

    parts: tuple[str, ...] = array("part", doc="names of the parts of the data")
    n_samples: np.ndarray = array("part", unit="samples", doc="samples in the part")
    point: np.ndarray = array("point", doc="number of the point in the list that was asked for")
    loss: np.ndarray = array("point", "part", unit="loss", doc="mean loss over the part's samples")
    accuracy: np.ndarray = array("point", "part", doc="share of the part's samples that are classified correctly")
    provenance: Mapping[str, Any] = scalar(doc="how, when and from what this was computed", default_factory=dict)

    def __post_init__(self) -> None:
        check_axes(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class Plane:
    """A line or plane through parameter space: theta = origin + sum over axes of coordinate times direction.

    Kept in a file, it lets two networks be compared in the same plane and the same units. Running statistics of batch
    norm are buffers; they move with the point where their directions are not zero.
    """

    kind: ClassVar[str] = "plane"
    version: ClassVar[int] = 1
    along: ClassVar[str] = "axis"

    axes: tuple[str, ...] = array("axis", doc="what each direction is")
    directions: np.ndarray = array("axis", "parameter", doc="step of the parameters for one unit of the coordinate")
    buffer_directions: np.ndarray = array("axis", "buffer", doc="step of the floating-point buffers")
    origin: np.ndarray = array("parameter", doc="the parameters at coordinates zero")
    buffer_origin: np.ndarray = array("buffer", doc="the floating-point buffers at coordinates zero")
    unit_length: np.ndarray = array("axis", doc="Euclidean length of one unit of the coordinate")
    explained: np.ndarray = array("axis", doc="share of a trajectory's variance along the axis; nan for other axes")
    tensors: tuple[str, ...] = array("tensor", doc="names of the parameters, in order")
    sizes: np.ndarray = array("tensor", doc="numbers in each of them")
    cosine: float = scalar(doc="cosine of the angle between the two directions; nan for a line")
    normalisation: str = scalar(doc="none, or what the directions were scaled by: filter, layer or weight")
    ignored: str = scalar(doc="parameters that directions leave alone: none or biasbn")
    provenance: Mapping[str, Any] = scalar(doc="how, when and from what this was computed", default_factory=dict)

    def __post_init__(self) -> None:
        check_axes(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class Surface:
    """Loss and accuracy of every part on a line or a grid of points, and at marked points of the same plane.

    On a line there is one y, 0. A point that was left out of an adaptive grid has `computed` false and no value (nan);
    a nan where `computed` is true is what the network gave.
    """

    kind: ClassVar[str] = "surface"
    version: ClassVar[int] = 1
    along: ClassVar[str] = "part"

    parts: tuple[str, ...] = array("part", doc="names of the parts of the data")
    n_samples: np.ndarray = array("part", unit="samples", doc="samples in the part")
    train_counts: np.ndarray = array("part", unit="samples", doc="training samples of the part's classes")

    xcoordinates: np.ndarray = array("x", doc="coordinates along the first axis, in its units")
    ycoordinates: np.ndarray = array("y", doc="coordinates along the second axis, in its units; 0 for a line")
    loss: np.ndarray = array("part", "y", "x", unit="loss", doc="mean loss over the part's samples")
    accuracy: np.ndarray = array("part", "y", "x", doc="share of the part's samples that are classified correctly")
    computed: np.ndarray = array("y", "x", doc="true where the point was evaluated")

    centre_loss: np.ndarray = array("part", unit="loss", doc="mean loss at the checkpoint itself")
    centre_accuracy: np.ndarray = array("part", doc="accuracy at the checkpoint itself")
    lowest_loss: np.ndarray = array("part", unit="loss", doc="lowest loss of the grid")
    lowest_position: np.ndarray = array("part", "axis", doc="where it is")
    doubling_radius: np.ndarray = array(
        "part", doc="Euclidean distance in the plane at which the loss is twice the centre's; nan if it never is"
    )
    worst_rise: np.ndarray = array(
        "part", unit="loss", doc="largest rise of the loss within `radius` of the centre, in the plane"
    )
    barrier: np.ndarray | None = array(
        "part",
        unit="loss",
        doc="largest rise above the straight line between the losses at 0 and 1, on a line between two checkpoints",
        optional=True,
    )

    axes: tuple[str, ...] = array("axis", doc="what each direction is")
    unit_length: np.ndarray = array("axis", doc="Euclidean length of one unit of the coordinate")
    explained: np.ndarray = array("axis", doc="share of a trajectory's variance along the axis; nan for other axes")

    marks: tuple[str, ...] = array("mark", doc="names of points of interest, such as other checkpoints")
    mark_position: np.ndarray = array("mark", "axis", doc="their projections on the plane, in coordinates")
    mark_distance: np.ndarray = array("mark", doc="their Euclidean distance from the plane")
    mark_loss: np.ndarray = array("mark", "part", unit="loss", doc="loss at the point itself, not at its projection")
    mark_accuracy: np.ndarray = array("mark", "part", doc="accuracy at the point itself")
    mark_policy_loss: np.ndarray | None = array(
        "mark",
        "part",
        unit="loss",
        doc="loss at the point itself with running statistics as on the surface, where these are not its own",
        optional=True,
    )

    radius: float = scalar(doc="Euclidean radius of worst_rise")
    cosine: float = scalar(doc="cosine of the angle between the two directions; nan for a line")
    batch_norm: str = scalar(doc="running statistics at each point: keep, interpolate or reestimate")
    verdict: str = scalar(doc="what a reader must know before the picture is believed")
    provenance: Mapping[str, Any] = scalar(doc="how, when and from what this was computed", default_factory=dict)

    def __post_init__(self) -> None:
        check_axes(self)

    @property
    def is_line(self) -> bool:
        """Say whether there is one direction only."""
        return len(self.axes) == 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory(Surface):
    """A surface under the paths of one or several runs: the marks are their checkpoints, in order."""

    kind: ClassVar[str] = "trajectory"
    version: ClassVar[int] = 1

    runs: tuple[str, ...] = array("run", doc="names of the runs")
    mark_run: np.ndarray = array("mark", doc="number of the run that the checkpoint is of")
    mark_epoch: np.ndarray = array("mark", unit="epochs", doc="its epoch; nan where the checkpoint does not say")


@dataclass(frozen=True, kw_only=True, eq=False)
class Sharpness:
    """How much the loss of each part rises around a checkpoint, in all of parameter space."""

    kind: ClassVar[str] = "sharpness"
    version: ClassVar[int] = 1
    along: ClassVar[str] = "part"

    parts: tuple[str, ...] = array("part", doc="names of the parts of the data")
    n_samples: np.ndarray = array("part", unit="samples", doc="samples in the part")
    train_counts: np.ndarray = array("part", unit="samples", doc="training samples of the part's classes")
    loss: np.ndarray = array("part", unit="loss", doc="mean loss at the checkpoint")
    accuracy: np.ndarray = array("part", doc="accuracy at the checkpoint")
    first_order_rise: np.ndarray = array(
        "part", unit="loss", doc="rise after one step of length rho along the gradient of the part's loss, as in SAM"
    )
    worst_rise: np.ndarray = array(
        "part", unit="loss", doc="largest rise found within rho by projected gradient ascent: a lower bound"
    )
    noise_rise: np.ndarray = array(
        "part", unit="loss", doc="mean rise under Gaussian noise of both signs, in each filter sigma times its length"
    )
    noise_rise_stderr: np.ndarray = array("part", unit="loss", doc="its standard error over draws; nan for one")
    doubling_radius: np.ndarray = array(
        "part",
        doc="relative size of filter-normalised noise at which the loss has doubled, median over directions; nan "
        "beyond `limit`, where a loss on the way is nan, and where the loss at the checkpoint is not positive",
    )
    doubling_radius_spread: np.ndarray = array(
        "part", doc="half the interquartile range over the directions; nan for one, and where it ends beyond `limit`"
    )
    rho: float = scalar(doc="radius of the ball: Euclidean, or relative to each weight where adaptive")
    adaptive: bool = scalar(doc="the ball is scaled by |theta| per entry, as in adaptive SAM")
    sigma: float = scalar(doc="size of the noise relative to each filter")
    draws: int = scalar(doc="number of random directions")
    limit: float = scalar(doc="largest relative size of noise that was tried for doubling_radius")
    provenance: Mapping[str, Any] = scalar(doc="how, when and from what this was computed", default_factory=dict)

    def __post_init__(self) -> None:
        check_axes(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class Distances:
    """How far apart the convergence points of parts are, in each of several runs, and what a point costs the others.

    Points are the convergence points of the parts (the parameters at which a part is served best), then other models
    such as the final one. Distances are over the parameters named in `parameters`.
    """

    kind: ClassVar[str] = "distances"
    version: ClassVar[int] = 1
    along: ClassVar[str] = "run"

    runs: tuple[str, ...] = array("run", doc="names of the runs, alike but for their seed")
    points: tuple[str, ...] = array("point", doc="names of the points")
    parts: tuple[str, ...] = array("part", doc="names of the parts that losses are of")
    n_samples: np.ndarray = array("part", unit="samples", doc="samples in the part")
    train_counts: np.ndarray = array("part", unit="samples", doc="training samples of the part's classes")

    euclidean: np.ndarray = array("run", "point", "point", doc="Euclidean distance")
    cosine: np.ndarray = array("run", "point", "point", doc="cosine of the displacements from the start")
    filter_normalised: np.ndarray = array(
        "run", "point", "point", doc="root mean square over filters of |a - b| / mean(|a|, |b|) of the filter"
    )
    fisher: np.ndarray = array(
        "run", "point", "point", doc="[a, b]: root of (a - b)^T F_a (a - b), F_a the diagonal Fisher at a of a's part"
    )
    barrier: np.ndarray = array(
        "run",
        "point",
        "point",
        "part",
        unit="loss",
        doc="largest rise of the loss above the line between its ends, on the segment of two points; nan if not asked",
    )
    hessian_rise: np.ndarray | None = array(
        "run",
        "point",
        "point",
        unit="loss",
        doc="[a, b]: (b - a)^T H_a (b - a) / 2, H_a the Hessian at a of a's part: the rise that it predicts towards b",
        optional=True,
    )
    norm: np.ndarray = array("run", "point", doc="Euclidean length of the point's displacement from the start")
    point_epoch: np.ndarray = array("run", "point", unit="epochs", doc="mean epoch that the point is of; nan unknown")
    loss: np.ndarray = array("run", "point", "part", unit="loss", doc="loss of the part at the point")
    accuracy: np.ndarray = array("run", "point", "part", doc="accuracy of the part at the point")

    epoch: np.ndarray = array("epoch", unit="epochs", doc="epochs of the snapshots along training")
    along_training: np.ndarray = array("run", "epoch", "point", doc="Euclidean distance of the snapshot to the point")

    source: str = scalar(doc="memory bank or fine-tuning")
    parameters: str = scalar(doc="which parameters distances are over")
    size: int = scalar(unit="parameters", doc="how many they are")
    provenance: Mapping[str, Any] = scalar(doc="how, when and from what this was computed", default_factory=dict)

    def __post_init__(self) -> None:
        check_axes(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class Gradients:
    """Gradients of every part's loss at one or several checkpoints, against the whole and each other.

    With g_p the gradient of part p's mean loss and g that of all samples in parts: h_p = g_p - (<g_p, g> / |g|^2) g.
    Exact over the data, or means over batches as training saw them, of those that have the part; then every number has
    its standard error over batches.
    """

    kind: ClassVar[str] = "gradients"
    version: ClassVar[int] = 1
    along: ClassVar[str] = "point"

    points: tuple[str, ...] = array("point", doc="names of the checkpoints")
    epoch: np.ndarray = array("point", unit="epochs", doc="their epochs; nan where a checkpoint does not say")
    parts: tuple[str, ...] = array("part", doc="names of the parts of the data")
    n_samples: np.ndarray = array("part", unit="samples", doc="samples in the part")
    train_counts: np.ndarray = array("part", unit="samples", doc="training samples of the part's classes")
    loss: np.ndarray = array(
        "point", "part", unit="loss", doc="mean loss over the part's samples, or over those in the batches"
    )

    norm: np.ndarray = array("point", "part", unit="loss", doc="|g_p|")
    norm_stderr: np.ndarray = array("point", "part", unit="loss", doc="standard error over batches; 0 where exact")
    whole_norm: np.ndarray = array("point", unit="loss", doc="|g|")
    whole_norm_stderr: np.ndarray = array("point", unit="loss", doc="its standard error over batches")
    cosine: np.ndarray = array("point", "part", doc="cosine of g_p and g; nan where one of them is zero")
    cosine_stderr: np.ndarray = array("point", "part", doc="standard error over batches; 0 where exact")
    projected: np.ndarray = array("point", "part", unit="loss", doc="<g_p, g> / |g|, the part along g, with its sign")
    projected_stderr: np.ndarray = array("point", "part", unit="loss", doc="its standard error over batches")
    specific: np.ndarray = array(
        "point", "part", unit="loss", doc="|h_p|, the group-specific part (equation 12); 0 below rounding"
    )
    specific_stderr: np.ndarray = array("point", "part", unit="loss", doc="its standard error over batches")
    radius: np.ndarray = array(
        "point", "part", doc="rho_p of equation 13; nan for a part of one sample, or where h_p is zero"
    )
    radius_stderr: np.ndarray = array("point", "part", doc="its standard error over batches")
    contribution: np.ndarray = array(
        "point", "part", doc="share_p <g_p, g> / |g|^2: the part's share of g, which all add up to; 0 in other batches"
    )
    contribution_stderr: np.ndarray = array("point", "part", doc="its standard error over batches")
    between: np.ndarray = array("point", "part", "part", doc="cosine of g_p and g_q")
    between_stderr: np.ndarray = array("point", "part", "part", doc="standard error over batches; 0 where exact")
    conflict: np.ndarray = array(
        "point", "part", "part", doc="share of batches with a negative cosine of g_p and g_q; 0 or 1 where exact"
    )
    layers: tuple[str, ...] | None = array(
        "layer", doc="modules that hold the parameters, in the network's order", optional=True
    )
    layer_whole_norm: np.ndarray | None = array(
        "point", "layer", unit="loss", doc="|g| within the layer", optional=True
    )
    layer_whole_norm_stderr: np.ndarray | None = array(
        "point", "layer", unit="loss", doc="its standard error over batches", optional=True
    )
    layer_norm: np.ndarray | None = array(
        "point", "layer", "part", unit="loss", doc="|g_p| within the layer", optional=True
    )
    layer_norm_stderr: np.ndarray | None = array(
        "point", "layer", "part", unit="loss", doc="its standard error over batches", optional=True
    )
    layer_cosine: np.ndarray | None = array(
        "point",
        "layer",
        "part",
        doc="cosine of g_p and g within the layer; nan where one of them is zero",
        optional=True,
    )
    layer_cosine_stderr: np.ndarray | None = array(
        "point", "layer", "part", doc="its standard error over batches", optional=True
    )
    layer_contribution: np.ndarray | None = array(
        "point",
        "layer",
        "part",
        doc="share_p <g_p, g> / |g|^2 within the layer, which adds up to 1 there",
        optional=True,
    )
    layer_contribution_stderr: np.ndarray | None = array(
        "point", "layer", "part", doc="its standard error over batches", optional=True
    )
    theta_norm: np.ndarray = array("point", doc="Euclidean length of the parameters")
    batches: np.ndarray = array("point", "part", doc="batches that hold the part; 0 where exact")

    size: int = scalar(unit="parameters", doc="number of parameters")
    batch_size: int = scalar(unit="samples", doc="samples of a batch at most; 0 where exact")
    provenance: Mapping[str, Any] = scalar(doc="how, when and from what this was computed", default_factory=dict)

    def __post_init__(self) -> None:
        check_axes(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """How well the features of each class stand apart, at one or several checkpoints; geometry of the class means.

    mu_c is the mean feature of class c, mu the mean of these over the classes, of equal weight however many samples
    they have. nan where a class has no samples, and as the variance and quality of a class that has one.
    """

    kind: ClassVar[str] = "features"
    version: ClassVar[int] = 1
    along: ClassVar[str] = "point"

    points: tuple[str, ...] = array("point", doc="names of the checkpoints")
    epoch: np.ndarray = array("point", unit="epochs", doc="their epochs; nan where a checkpoint does not say")
    parts: tuple[str, ...] = array("part", doc="names of the classes")
    n_samples: np.ndarray = array("part", unit="samples", doc="samples of the class")
    train_counts: np.ndarray = array("part", unit="samples", doc="training samples of the class")
    loss: np.ndarray = array("point", "part", unit="loss", doc="mean loss over the class's samples")
    accuracy: np.ndarray = array("point", "part", doc="share of the class's samples that are classified correctly")

    quality: np.ndarray = array("point", "part", doc="Q = Dis - beta log Var (S19); features have no unit")
    quality_inverse: np.ndarray = array("point", "part", doc="-1 / Dis - log Var, the form of the authors' code")
    distance: np.ndarray = array("point", "part", doc="Dis: distance of mu_c to the nearest other class mean")
    nearest: np.ndarray = array("point", "part", doc="number of that class; -1 where there is none")
    variance: np.ndarray = array("point", "part", doc="Var: mean of |a - mu_c|^2 over the class")
    mean_norm: np.ndarray = array("point", "part", doc="|mu_c - mu|")
    mean_cosine: np.ndarray | None = array(
        "point",
        "part",
        "part",
        doc="cosine of mu_c - mu and mu_c' - mu; left out beyond 1,000 classes",
        optional=True,
    )
    alignment: np.ndarray = array("point", "part", doc="cosine of mu_c - mu and the classifier's row c (its mean off)")
    disagreement: np.ndarray = array(
        "point", "part", doc="share of samples that the nearest class mean and the classifier put in different classes"
    )

    within_between: np.ndarray = array(
        "point", doc="NC1: trace(S_W pinv(S_B)) / C, both scatters averaged over classes"
    )
    norm_variation: np.ndarray = array("point", doc="NC2: standard deviation of |mu_c - mu| over its mean")
    angle_deviation: np.ndarray = array("point", doc="NC2: mean over pairs of |cos + 1 / (C - 1)|")
    duality: np.ndarray = array("point", doc="NC3: |W / |W| - M / |M||, of the centred classifier and class means")
    mean_disagreement: np.ndarray = array("point", doc="NC4: mean over classes of the disagreement")

    beta: float = scalar(doc="weight of the variance in S19")
    n_features: int = scalar(doc="F, numbers in a feature")
    provenance: Mapping[str, Any] = scalar(doc="how, when and from what this was computed", default_factory=dict)

    def __post_init__(self) -> None:
        check_axes(self)


Result: TypeAlias = (
    Spectrum
    | Traces
    | Overlap
    | History
    | Points
    | Plane
    | Surface
    | Trajectory
    | Sharpness
    | Distances
    | Gradients
    | Features
)

KINDS: dict[str, type[Result]] = {
    kind.kind: kind
    for kind in (
        Spectrum,
        Traces,
        Overlap,
        History,
        Points,
        Plane,
        Surface,
        Trajectory,
        Sharpness,
        Distances,
        Gradients,
        Features,
    )
}
