"""Features class by class: the distances between class means, and the scatter of the samples about them.

With mu_c the mean feature of class c and mu the mean of the mu_c over the C classes that have samples (of equal weight,
however long the tail), two passes over the features give

    Dis(c) = min over c' of |mu_c - mu_c'|       Var(c) = mean over the class of |a - mu_c|^2            (S17, S18)
    S_W    = mean over classes of the covariance of the class's features
    S_B    = mean over classes of (mu_c - mu)(mu_c - mu)^T

and the four signs of neural collapse: NC1 = trace(S_W pinv(S_B)) / C goes to 0, where S_W, S_B, their mu and C are of
the same classes, those of at least two samples: one sample has no scatter, and 0 would wrongly look like collapse;
NC2, the mu_c - mu have equal norms
and cosines of -1 / (C - 1); NC3, the classifier's rows lie along them; NC4, it takes the nearest class mean.
Second moments are sums of squares about the means, never E[a^2] - E[a]^2, whose digits cancel.

Source: Papyan, Han and Donoho 2020, "Prevalence of neural collapse during the terminal phase of deep learning
training"; quality: equations S17 to S19 of "Reframing Long-Tailed Learning via Loss Landscape Geometry" (CVPR 2026).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from landscape.autodiff.distributed import Team
from landscape.autodiff.wide import place, wide, zeros
from landscape.errors import InputError, NumericalError, check_choice
from landscape.networks.overflow import LARGEST
from landscape.results.features import QUALITY

_PIECE = 2**20  # entries of features that become float64 at a time


# Quality --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Quality:
    """How well the features of each class are separated; (C,) float64, nan where it is not defined."""

    quality: np.ndarray  # Q
    distance: np.ndarray  # Dis, in units of the features
    variance: np.ndarray  # Var, in squared units of the features


def feature_quality(
    features: Tensor, labels: Tensor, n_classes: int, beta: float = 0.5, form: str = "paper"
) -> Quality:
    """Measure the quality of each class's features.

        "paper":   Q(c) = Dis(c) - beta log Var(c)         "inverse": Q(c) = -1 / Dis(c) - log Var(c)

    A class of one sample has no variance, and a class of equal features has log 0: for both the quality is nan, as for
    a class without samples. Classes without samples are not counted as neighbours.

    Args:
        features: a, (N, F), in eval mode without augmentation.
        labels: (N,) integers.
        n_classes: C.
        beta: weight of the variance in the paper's form.
        form: "paper" (S19) or "inverse", the formula of the authors' code.

    Returns:
        Quality, distance and variance; nan where one is not a finite number.

    Raises:
        InputError: another form, or shapes or labels that do not fit.
        NumericalError: a feature is not finite.

    Source: the paper's equations S17 to S19.
    """
    check_choice("quality_form", form, QUALITY)
    for wrong in labels[(labels < 0) | (labels >= n_classes)][:1].tolist():
        raise InputError(f"labels are 0 to {n_classes - 1}, got {wrong}")
    sums = Sums(n_classes)
    sums.add(features, labels)
    found = sums.means()
    scatter = Scatter(found)
    scatter.add(features, labels)
    distance, _ = found.nearest()
    return Quality(
        quality=quality(distance, scatter.variance, beta=beta, form=form), distance=distance, variance=scatter.variance
    )


def quality(distance: np.ndarray, variance: np.ndarray, *, beta: float = 0.5, form: str = "paper") -> np.ndarray:
    """Combine the two components of feature quality.

    Args:
        distance: Dis, (C,).
        variance: Var, (C,).
        beta: weight of the variance in the paper's form.
        form: one of `results.features.QUALITY`.

    Returns:
        Q, (C,); nan where it is not a finite number.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        value = distance - beta * np.log(variance) if form == "paper" else -1 / distance - np.log(variance)
    return np.where(np.isfinite(value), value, np.nan)


# The two passes -------------------------------------------------------------------------------------------------------


class Sums:
    """The first pass: counts and sums of each class's features, batch by batch, in float64."""

    def __init__(self, n_classes: int) -> None:
        """Begin with nothing.

        Args:
            n_classes: C.
        """
        self._n_classes = n_classes
        self._counts, self._weights = torch.zeros(2, n_classes, dtype=torch.float64)
        self._sums: Tensor | None = None
        self._eps = 0.0

    def add(self, features: Tensor, labels: Tensor, weights: Tensor | None = None) -> None:
        """Add some samples.

        Args:
            features: (B, F).
            labels: (B,) integers from 0 to C - 1, which are not checked: the host would wait for that.
            weights: (B,), how often each sample counts, not negative; None for once. Samples of weight 0 are left out.

        Raises:
            InputError: shapes do not fit.
        """
        if features.ndim != 2 or labels.shape != features.shape[:1]:
            raise InputError(
                f"features {tuple(features.shape)} and labels {tuple(labels.shape)} must be (N, F) and (N,)"
            )
        labels = labels.to(place(features.device), torch.int64)
        if self._sums is None:
            self._sums = zeros((self._n_classes, features.shape[1]), features.device)
            self._counts, self._weights = (t.to(self._sums.device) for t in (self._counts, self._weights))
            self._eps = torch.finfo(features.dtype).eps
        each = _each_weight(labels, weights)
        self._counts.index_add_(0, labels, (each > 0).to(each))
        self._weights.index_add_(0, labels, each)
        for some, of, often in _pieces(features, labels, each):
            self._sums.index_add_(0, of, some * often[:, None])

    def add_up(self, team: Team) -> None:
        """Add up the sums of all processes of a team; each must have added at least one sample."""
        self._counts, self._weights = team.total(self._counts), team.total(self._weights)
        self._sums = None if self._sums is None else team.total(self._sums)

    def means(self) -> "Means":
        """Divide the sums by the counts.

        Returns:
            The class means.

        Raises:
            InputError: there were no samples.
            NumericalError: a feature, or its square, is not finite.
        """
        if self._sums is None:
            raise InputError("there are no features to take means of")
        if not bool(torch.isfinite(self._sums).all()):
            raise NumericalError("features are not finite: did the training diverge?")
        if (largest := float(self._sums.abs().max())) > LARGEST:
            raise NumericalError(
                f"the features of a class add up to {largest:.3g}, and squares beyond {LARGEST:g} overflow "
                "float64: did the training diverge?"
            )
        values = self._sums / self._weights[:, None]
        return Means(counts=self._counts.long(), weights=self._weights, values=values, eps=self._eps)


@dataclass(frozen=True, kw_only=True, eq=False)
class Means:
    """The class means, and quantities that follow from them alone."""

    counts: Tensor  # (C,) samples
    weights: Tensor  # (C,) float64, the sum of theirs
    values: Tensor  # mu_c, (C, F) float64, nan for a class without samples
    eps: float  # relative rounding error of the features

    @cached_property
    def present(self) -> Tensor:
        """Classes that have samples, their positions in ascending order."""
        return self.counts.nonzero().flatten()

    @cached_property
    def centre(self) -> Tensor:
        """The mean of the class means, mu, (F,)."""
        return self.values[self.present].mean(0)

    @cached_property
    def centred(self) -> Tensor:
        """Means of the classes that have samples, mu_c - mu, a row each."""
        return self.values[self.present] - self.centre

    @cached_property
    def rounding(self) -> float:
        """The length below which a difference of means is only rounding error."""
        return float(10 * self.eps * self.values[self.present].norm(dim=1).max())

    def nearest(self) -> tuple[np.ndarray, np.ndarray]:
        """Find the nearest other mean of each class.

        Returns:
            The distance to it, (C,), nan if there is none, and its class, (C,), -1 if there is none.
        """
        distance = torch.full_like(self.values[:, 0], torch.nan)
        neighbour = torch.full_like(self.counts, -1)
        index, points = self.present, self.centred  # near the origin, distances by products lose less
        for start in range(0, len(points) if len(points) > 1 else 0, 1024):
            found = torch.cdist(points[start : start + 1024], points)
            rows = torch.arange(len(found), device=found.device)
            found[rows, start + rows] = torch.inf
            least = found.min(1)
            distance[index[start + rows]] = least.values
            neighbour[index[start + rows]] = index[least.indices]
        return _numpy(distance), _numpy(neighbour)

    def classify(self, features: Tensor) -> Tensor:
        """Assign samples to the class with the nearest mean.

        Args:
            features: (B, F).

        Returns:
            (B,) classes.
        """
        # |a - mu_c|^2 without |a|^2, which is the same for all classes; relative to the centre, to limit cancellation.
        apart = self.centred.square().sum(1) - 2 * (wide(features) - self.centre) @ self.centred.T
        return self.present[apart.argmin(1)].to(features.device)

    def between(self) -> tuple[Tensor, Tensor]:
        """Return the directions in which the means of classes of at least two samples differ, and how much they do.

        Returns:
            Orthonormal v_k, (F, K), and positive s_k, (K,), such that the S_B of these classes is
            sum of s_k^2 v_k v_k^T / C.
        """
        centred = self.values[self.counts > 1]
        if len(centred) < 2:
            return self.values.new_zeros(self.values.shape[1], 0), self.values.new_zeros(0)
        centred = centred - centred.mean(0)
        _, sizes, directions = torch.linalg.svd(centred, full_matrices=False)
        # C means minus their own mean span at most C - 1 directions; rounding in the last one must not become a
        # divisor.
        least = max(self.rounding, torch.finfo(torch.float64).eps * max(centred.shape) * float(sizes.max()))
        kept = sizes > least
        return directions[kept].T, sizes[kept]


class Scatter:
    """The second pass: squares of deviations from the class means, batch by batch, in float64."""

    def __init__(self, means: Means, directions: Tensor | None = None) -> None:
        """Begin with nothing.

        Args:
            means: class means of all samples that will be added.
            directions: orthonormal v_k, (F, K), along which S_W is also computed.
        """
        self._means = means
        self._directions = means.values.new_zeros((means.values.shape[1], 0)) if directions is None else directions
        self._squares = torch.zeros_like(means.values[:, 0])
        self._along = self._directions.new_zeros(self._directions.shape[1])

    def add(self, features: Tensor, labels: Tensor, weights: Tensor | None = None) -> None:
        """Add some samples.

        Args:
            features: (B, F).
            labels: (B,) integers.
            weights: (B,), the same as in the first pass.
        """
        labels = labels.to(place(features.device), torch.int64)
        for some, of, often in _pieces(features, labels, _each_weight(labels, weights)):
            counted = often > 0  # a class may have no samples
            share = torch.where(counted, often / self._means.weights[of], 0)
            deviations = torch.where(counted[:, None], some - self._means.values[of], 0)
            self._squares.index_add_(0, of, share * deviations.square().sum(1))
            self._along += share @ (deviations @ self._directions).square()

    def add_up(self, team: Team) -> None:
        """Add up the sums of all processes of a team."""
        self._squares, self._along = team.total(self._squares), team.total(self._along)

    @property
    def variance(self) -> np.ndarray:
        """Var, (C,); nan for a class of fewer than two samples."""
        counts = self._means.counts
        return _numpy(torch.where(counts > 1, self._squares, torch.nan))

    @property
    def along(self) -> Tensor:
        """v_k^T S_W v_k, (K,); the mean is over the classes of at least two samples, nan if there are none."""
        return self._along / (self._means.counts > 1).sum()


def _each_weight(labels: Tensor, weights: Tensor | None) -> Tensor:
    """Return the weight of each sample, (B,) float64."""
    if weights is None:
        return torch.ones(len(labels), dtype=torch.float64, device=labels.device)
    return wide(weights).to(labels.device)


def _pieces(features: Tensor, labels: Tensor, weights: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield some samples at a time, in float64."""
    size = max(1, _PIECE // max(1, features.shape[1]))
    for some, of, often in zip(*(torch.split(t, size) for t in (features, labels, weights)), strict=True):
        some = wide(some)
        yield some, of.to(some.device), often.to(some.device)


# The geometry of the means --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Geometry:
    """Measures of neural collapse for C classes; nan for classes without samples, and if fewer than two have any."""

    mean_norm: np.ndarray  # |mu_c - mu|, (C,)
    mean_cosine: np.ndarray  # of mu_c - mu and mu_c' - mu, (C, C)
    alignment: np.ndarray  # cosine of mu_c - mu and row c of the centred classifier, (C,)
    within_between: float  # NC1, of the classes of at least two samples
    norm_variation: float  # NC2, equal norms
    angle_deviation: float  # NC2, equal angles of the largest possible size
    duality: float  # NC3


def geometry(means: Means, scatter: Scatter, sizes: Tensor, classifier: Tensor) -> Geometry:
    """Measure how close the class means are to neural collapse; in exact collapse all these numbers are 0.

    Only classes with samples count. The classifier's rows are centred like the means, because a vector added to all
    rows changes no probability.

    Args:
        means: the class means.
        scatter: result of the second pass, along the directions of `means.between()`.
        sizes: the sizes that `means.between()` returned with the directions.
        classifier: (C, F), a row for each class.

    Returns:
        The geometry.

    Raises:
        InputError: the classifier has another shape than the means.
    """
    if classifier.shape != means.values.shape:
        raise InputError(
            f"the classifier's weight is {tuple(classifier.shape)}, the class means are {tuple(means.values.shape)}"
        )
    n_classes, present = len(means.counts), means.present
    mean_norm, alignment = np.full((2, n_classes), np.nan)
    mean_cosine = np.full((n_classes, n_classes), np.nan)
    variation = deviation = duality = torch.nan
    if len(present) > 1:
        centred, norms = means.centred, means.centred.norm(dim=1)
        rows = wide(classifier.detach()).to(centred.device)[present]
        rows = rows - rows.mean(0)
        units = _units(centred, means.rounding)
        cosine = (units @ units.T).clamp(-1, 1)
        where = _numpy(present)
        mean_norm[where] = _numpy(norms)
        mean_cosine[np.ix_(where, where)] = _numpy(cosine)
        alignment[where] = _numpy((units * _units(rows, 0.0)).sum(1).clamp(-1, 1))
        apart = (cosine + 1 / (len(present) - 1)).abs()
        deviation = float((apart.sum() - apart.diagonal().sum()) / (len(present) * (len(present) - 1)))
        if float(norms.max()) > means.rounding:
            variation = float(norms.std(correction=0) / norms.mean())
            duality = float((rows / rows.norm() - centred / centred.norm()).norm())
    return Geometry(
        mean_norm=mean_norm,
        mean_cosine=mean_cosine,
        alignment=alignment,
        # trace(S_W pinv(S_B)) / C, where pinv(S_B) = sum of C / s_k^2 v_k v_k^T: the C cancels.
        within_between=float((scatter.along / sizes.square()).sum()) if len(sizes) else torch.nan,
        norm_variation=variation,
        angle_deviation=deviation,
        duality=duality,
    )


def _units(vectors: Tensor, least: float) -> Tensor:
    """Divide rows by their lengths; nan where one is not longer than `least`."""
    norms = vectors.norm(dim=1, keepdim=True)
    return vectors / torch.where(norms > least, norms, torch.nan)


def _numpy(values: Tensor) -> np.ndarray:
    return np.asarray(values.cpu().numpy())
