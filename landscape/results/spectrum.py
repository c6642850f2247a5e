"""Spectra of curvature matrices."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from landscape.errors import InputError, arg
from landscape.results.axes import Bools, Counts, Floats, array, scalar
from landscape.results.converged import converged
from landscape.results.predicted import Predicted


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Spectrum(Predicted):
    """The largest and the smallest eigenvalue and the trace of each part's curvature matrix; its density if requested.

    For the density, row k of part p is one Lanczos run of `steps[p, k]` products from probe k; coefficients of further
    steps do not exist and are nan. Eigenvalues have the unit of the loss (parameters have no unit).
    """

    kind: ClassVar[str] = "spectrum"
    version: ClassVar[int] = 4
    """Since 2: numbers of single samples, eigenvalues by rows. Since 3: products of rows. Since 4: draws are made
    without replacement and their probabilities kept; before, draws could repeat a sample."""
    along: ClassVar[str] = "part"

    n_samples: Counts = array("part", unit="samples", doc="samples in the part; nan for a matrix without data")
    train_counts: Counts = array("part", unit="samples", doc="training samples of its classes; nan without data")
    n_used: Counts = array("part", unit="samples", doc="samples summed over; nan without data")
    loss: Floats = array("part", unit="loss", doc="mean loss over all of the part's samples; nan without data")
    loss_stderr: Floats | None = array(
        "part", unit="loss", doc="its standard error over these; nan for one", optional=True
    )
    accuracy: Floats | None = array(
        "part",
        doc="fraction of the samples that are predicted correctly; nan without data, absent without classes",
        optional=True,
    )
    accuracy_stderr: Floats | None = array("part", doc="its standard error over samples; nan for one", optional=True)

    lambda_max: Floats = array("part", unit="loss", doc="largest Ritz value")
    lambda_max_residual: Floats = array(
        "part", unit="loss", doc="an eigenvalue lies within this distance of lambda_max"
    )
    lambda_min: Floats = array("part", unit="loss", doc="smallest Ritz value")
    lambda_min_residual: Floats = array(
        "part", unit="loss", doc="an eigenvalue lies within this distance of lambda_min"
    )
    converged: Bools = array("part", doc="lambda_max_residual is at most tol times |lambda_max|")
    trace: Floats = array("part", unit="loss", doc="trace")
    trace_stderr: Floats = array(
        "part", unit="loss", doc="its standard error, a bound on that for fewer than 30 probes; 0 if exact"
    )
    largest_at_most: Floats | None = array(
        "part",
        unit="loss",
        doc="no eigenvalue is above this, in 99 of 100 draws of the start of Lanczos; always, where rows gave them; "
        "nan if that is not known",
        optional=True,
    )
    smallest_at_least: Floats | None = array("part", unit="loss", doc="and none is below this", optional=True)
    lambda_max_error: Floats | None = array(
        "part",
        unit="loss",
        doc="error of lambda_max over draws, steps and rows together; where an accuracy was asked for",
        optional=True,
    )
    trace_error: Floats | None = array(
        "part", unit="loss", doc="error of the trace over draws and probes together; likewise", optional=True
    )
    beyond_max: Floats | None = array(
        "part", unit="loss", doc="largest Ritz value of H - G that the run on H found", optional=True
    )
    beyond_max_error: Floats | None = array(
        "part", unit="loss", doc="an eigenvalue of H - G lies within this distance of it", optional=True
    )
    beyond_min: Floats | None = array(
        "part", unit="loss", doc="smallest Ritz value of H - G that the run on H found", optional=True
    )
    beyond_min_error: Floats | None = array(
        "part", unit="loss", doc="an eigenvalue of H - G lies within this distance of it", optional=True
    )
    # These need all eigenvalues, by probes or by rows; otherwise they are nan, or absent if that is so for all parts.
    negative_mass: Floats | None = array(
        "part",
        doc="fraction of the eigenvalues below -negative_tol * max |eigenvalue|, mean over probes",
        optional=True,
    )
    negative_mass_stderr: Floats | None = array(
        "part", doc="its standard error over probes; nan for one probe", optional=True
    )
    negative_curvature: Floats | None = array(
        "part",
        doc="sum of |eigenvalue| over the negative ones, as a fraction of the sum over all, of the means over probes",
        optional=True,
    )
    negative_curvature_stderr: Floats | None = array(
        "part", doc="its standard error over probes; nan for one probe", optional=True
    )
    saddle_ratio: Floats | None = array("part", doc="|lambda_min / lambda_max|, mean over probes", optional=True)
    saddle_ratio_stderr: Floats | None = array(
        "part", doc="its standard error over probes; nan for one probe", optional=True
    )

    ritz_values: Floats = array("part", "rank", unit="loss", doc="largest Ritz values, descending")
    ritz_residuals: Floats = array("part", "rank", unit="loss", doc="their residual bounds")
    ritz_sampling_stderr: Floats | None = array(
        "part",
        "rank",
        unit="loss",
        doc="their standard errors over samples, to first order; nan for products without the eigenvector",
        optional=True,
    )
    ritz_vectors: Floats | None = array(
        "part", "vector", "parameter", doc="unit vectors of the largest Ritz values", optional=True
    )
    overlap: Floats | None = array(
        "part",
        "part",
        doc="[a, b]: trace of part b's matrix on part a's Ritz vectors, as a fraction of that on b's own",
        optional=True,
    )
    subspace_overlap: Floats | None = array(
        "part",
        "part",
        doc="mean squared cosine of the principal angles between the spaces of two parts' Ritz vectors",
        optional=True,
    )
    principal_angles: Floats | None = array(
        "part",
        "part",
        "angle",
        unit="degrees",
        doc="angles between these spaces, ascending; nan beyond the vectors that both parts have",
        optional=True,
    )
    gradient_curvature: Floats | None = array(
        "part",
        "part",
        unit="loss",
        doc="[a, b]: part b's matrix along the normalised gradient of part a's loss; nan where that is zero",
        optional=True,
    )

    # The quadrature of the density; absent if it was not requested, or if all parts were computed by rows. Beside other
    # parts, one computed by rows has runs without steps.
    alpha: Floats | None = array(
        "part", "probe", "step", unit="loss", doc="diagonal of the tridiagonal matrix", optional=True
    )
    beta: Floats | None = array(
        "part",
        "probe",
        "step",
        unit="loss",
        doc="off-diagonal; entry j couples steps j and j + 1, the last is left over",
        optional=True,
    )
    steps: Counts | None = array("part", "probe", unit="products", doc="Lanczos steps of the run", optional=True)
    probe_norm2: Floats | None = array(
        "part", "probe", doc="squared length of the probe before it was normalised", optional=True
    )
    trace_samples: Floats | None = array(
        "part",
        "trace_probe",
        unit="loss",
        doc="one deflated estimate of the trace a probe; nan where not drawn",
        optional=True,
    )

    # Errors over samples. All are absent in files of version 1, and nan if they could not be computed.
    trace_sampling_stderr: Floats | None = array(
        "part",
        unit="loss",
        doc="standard error over samples of the trace; of that of G for a Hessian of another trace without "
        "`sample_beyond`",
        optional=True,
    )
    lambda_max_sampling_stderr: Floats | None = array(
        "part", unit="loss", doc="standard error over samples of the curvature along the top Ritz vector", optional=True
    )
    lambda_max_crossfit: Floats | None = array(
        "part",
        unit="loss",
        doc="curvature along the other folds' sharpest directions; in expectation at most the class's lambda_max; nan "
        "for weighted draws",
        optional=True,
    )
    lambda_max_crossfit_stderr: Floats | None = array(
        "part", unit="loss", doc="its standard error over samples", optional=True
    )
    uncertainty: Floats | None = array(
        "part",
        unit="loss",
        doc="mean trace of the loss's Hessian in the logits, tr M; 1 - sum p^2 for cross-entropy. For weighted draws, "
        "that of all samples of the part",
        optional=True,
    )
    sample_index: Floats | None = array(
        "part", "sample", doc="position of each sample in the data; nan beyond a part's samples", optional=True
    )
    sample_weight: Floats | None = array(
        "part", "sample", doc="weight of each sample in the part's sums, 1/n where all count alike", optional=True
    )
    sample_chance: Floats | None = array(
        "part",
        "sample",
        doc="probability with which it was drawn without replacement; nan where a part has all its samples",
        optional=True,
    )
    sample_label: Floats | None = array("part", "sample", doc="class of each sample", optional=True)
    sample_prediction: Floats | None = array("part", "sample", doc="class of its largest logit", optional=True)
    sample_loss: Floats | None = array("part", "sample", unit="loss", doc="loss of each sample", optional=True)
    sample_uncertainty: Floats | None = array("part", "sample", unit="loss", doc="tr M of each sample", optional=True)
    sample_trace: Floats | None = array(
        "part", "sample", unit="loss", doc="trace of each sample's Gauss-Newton or Fisher matrix", optional=True
    )
    sample_beyond: Floats | None = array(
        "part",
        "sample",
        unit="loss",
        doc="estimate without bias of the trace of each sample's H - G, 0 for those with hardly any slope of the loss; "
        "absent if H and G have the same trace, and in files of earlier versions",
        optional=True,
    )
    sample_curvature: Floats | None = array(
        "part",
        "sample",
        unit="loss",
        doc="curvature of each sample's own matrix along the part's top Ritz vector",
        optional=True,
    )
    image_sample: Floats | None = array(
        "part",
        "image",
        doc="positions among the part's samples of the images that hold most of lambda_max, descending",
        optional=True,
    )
    images: Counts | None = array(
        "part", "image", "height", "width", "channel", doc="small copies of these images, 0 to 255", optional=True
    )
    eigenvalues: Floats | None = array(
        "part", "row", unit="loss", doc="all eigenvalues by rows, descending; nan beyond a part's rows", optional=True
    )
    eigenvalue_rest: Floats | None = array(
        "part", unit="loss", doc="value of all other eigenvalues: 0, or the weight decay", optional=True
    )
    eigenvalue_above: Floats | None = array(
        "part",
        unit="loss",
        doc="no eigenvalue is more than this above its value by rows: what rows leave out, and `eigenvalue_rounding`",
        optional=True,
    )
    eigenvalue_below: Floats | None = array(
        "part", unit="loss", doc="no eigenvalue is more than this below its value by rows; likewise", optional=True
    )
    eigenvalue_rounding: Floats | None = array(
        "part",
        unit="loss",
        doc="the part of both that is for rounding: measured, where the rest is proved",
        optional=True,
    )

    gram: Floats | None = array(
        "gram_row",
        "gram_row",
        unit="loss",
        doc="inner products of the longest rows of all parts' Gauss-Newton or Fisher matrices, without weights",
        optional=True,
        joins=False,
    )
    gram_part: Counts | None = array(
        "gram_row", doc="position of each row's part", optional=True, joins=False, places="part"
    )
    gram_sample: Counts | None = array(
        "gram_row", doc="position of its sample among those of the part", optional=True, joins=False, places="sample"
    )
    gram_sign: Floats | None = array(
        "gram_row", doc="1, or -1 where a loss is not convex in the logits", optional=True, joins=False
    )

    size: int = scalar(unit="parameters", doc="number of parameters, the order of the matrix")
    operator: str = scalar(doc="which matrix: its name in `landscape.curvature.kinds.KINDS`, or one of its own")
    symbol: str = scalar(doc="of the matrix in figures, as mathtext", default="A")
    tol: float = scalar(doc="relative residual at which lambda_max counts as converged")
    negative_tol: float = scalar(doc="eigenvalues above -negative_tol * max |eigenvalue| do not count as negative")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_runs()
        self._check_rows()

    def _check_runs(self) -> None:
        """Raise InputError if a Lanczos run has no step, more steps than coefficients, or one that is not finite."""
        if self.alpha is None or self.beta is None or self.steps is None or not self.steps.size:
            return
        if self.steps.dtype.kind not in "iu":
            raise InputError("steps must be whole numbers")
        most = self.alpha.shape[2]
        taken = np.arange(most) < self.steps[..., None]
        known = (np.isfinite(self.alpha) & np.isfinite(self.beta)) | ~taken
        sound = known.all(axis=(1, 2)) & ((self.steps >= 1) & (self.steps <= most)).all(axis=1)
        for p in np.flatnonzero(self.steps.any(axis=1) & ~sound)[:1]:
            raise InputError(
                f"alpha, beta and steps of part {self.parts[p]!r} are no Lanczos runs of 1 to {most} steps"
            )

    def _check_rows(self) -> None:
        """Raise InputError if products of rows are not finite, or of samples that do not exist or have no weight."""
        if self.gram is None or self.gram_part is None or self.gram_sample is None or self.gram_sign is None:
            return
        if not (np.isfinite(self.gram).all() and np.isfinite(self.gram_sign).all()):
            raise InputError("gram and gram_sign must be finite")
        if self.sample_trace is None or self.sample_weight is None:
            return
        own = np.isfinite(self.sample_trace)
        if (self.gram_sample >= own.sum(axis=1)[self.gram_part]).any():
            raise InputError("gram_sample names a sample that its part does not have")
        if not ((self.sample_weight >= 0) & np.isfinite(self.sample_weight))[own].all():
            raise InputError("sample_weight must be finite and not negative")

    @property
    def title(self) -> str:
        """The matrix and the number of parameters."""
        return f"{self.operator}, {self.size:,} parameters"

    def ran(self, p: int) -> bool:
        """Say whether the density of the part at a position was computed by Lanczos runs."""
        return self.steps is not None and bool(self.steps[p].any())

    def runs(self, p: int) -> tuple[Floats, Floats, Counts]:
        """Return the Lanczos runs for a part's density.

        Args:
            p: position of the part.

        Returns:
            alpha (K, m), beta (K, m) and steps (K,).

        Raises:
            InputError: there are no runs.
        """
        if self.alpha is None or self.beta is None or self.steps is None or not self.ran(p):
            command = self.stated("command", of=str) or ""
            again = f"{command} --density --overwrite" if command.startswith("landscape hessian ") else ""
            again = again or arg("density", True)
            raise InputError(f"part {self.parts[p]!r} has lambda_max and trace, but no density: compute it by {again}")
        return self.alpha[p], self.beta[p], self.steps[p]

    @property
    def drawn(self) -> Bools:
        """Whether the numbers of each part are sums over draws from its samples, (P,).

        Errors over samples are then those of the draw: how far the numbers are from those of all samples of the part.
        Otherwise they say how much other samples of the same class would change them.
        """
        of_draws: Bools = self.n_used < self.n_samples
        return of_draws

    @property
    def has_density(self) -> bool:
        """Whether every part has a density: from runs, or from all eigenvalues."""
        return all(self.has_density_of(p) for p in range(len(self.parts)))

    def has_density_of(self, p: int) -> bool:
        """Say whether the part at a position has a density: from runs, or from all eigenvalues."""
        return self.ran(p) or (self.eigenvalue_rest is not None and bool(np.isfinite(self.eigenvalue_rest[p])))

    @property
    def ritz_converged(self) -> Bools:
        """Whether the residual of each Ritz value is at most `tol` times |lambda_max|, (P, rank); not of nan."""
        return converged(self.ritz_values, self.ritz_residuals, tol=self.tol, scale=self.lambda_max[:, None])

    @property
    def vectors_converged(self) -> Bools:
        """Whether the residual of each of a part's Ritz vectors is at most `tol` times |lambda_max|, (P,)."""
        n_vectors = 0 if self.ritz_vectors is None else self.ritz_vectors.shape[1]
        missing = np.isnan(self.ritz_values)  # vectors that do not exist
        sure: Bools = np.all((self.ritz_converged | missing)[:, :n_vectors], axis=1)
        return sure

    def _chosen(self, chosen: Sequence[int], changes: dict[str, Any]) -> dict[str, Any]:
        if self.gram is None or self.gram_part is None or self.gram_sample is None or self.gram_sign is None:
            return changes
        place = np.full(len(self.parts), -1)
        place[list(chosen)] = np.arange(len(chosen))
        rows = np.flatnonzero(place[self.gram_part] >= 0)
        return changes | {
            "gram": self.gram[np.ix_(rows, rows)],
            "gram_part": place[self.gram_part[rows]],
            "gram_sample": self.gram_sample[rows],
            "gram_sign": self.gram_sign[rows],
        }
