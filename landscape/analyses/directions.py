"""Directions from a checkpoint, and the planes that they span.

Random directions are Gaussian and filter-normalised, as in Li et al. 2018, "Visualizing the loss landscape of neural
nets": each filter of the direction gets the norm of the network's own filter, so that curves of two networks can be
compared in spite of the scale invariance of ReLU and batch norm. Biases and the parameters of batch norm do not move.
networks/filters.py defines filters; in a parameter with one axis each number is a filter.

All vectors are float64, so that a full step towards another checkpoint ends exactly at its weights. Steps of running
statistics are stored twice: linear, and with variances by their logarithm (points.py). Both can be added as vectors.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from landscape.analyses import eigenvectors
from landscape.autodiff import costs
from landscape.autodiff.wide import place, wide, zeros
from landscape.callables import checked
from landscape.curvature.lanczos import probe
from landscape.errors import InputError, arg, check_choice
from landscape.networks import filters
from landscape.objective import points
from landscape.objective.objective import Objective
from landscape.objective.points import Point
from landscape.objective.provenance import fingerprint
from landscape.results import Plane, store

Normalisation: TypeAlias = Literal["filter", "layer", "weight", "none"]
NORMALISATIONS: tuple[str, ...] = get_args(Normalisation)
Ignored: TypeAlias = Literal["biasbn", "none"]
IGNORED: tuple[str, ...] = get_args(Ignored)
# The part of the second direction that is orthogonal to the first must exceed this fraction of its length.
_DISTINCT = 1e-6
_FIXED = "fixed_sha256"  # entry of a plane's provenance


@dataclass(frozen=True, kw_only=True, eq=False)
class Directions:
    """One or two directions from an origin."""

    axes: tuple[str, ...]  # (A,) description of each
    origin: Point
    theta: Tensor  # (A, D) float64
    buffers: Tensor  # (A, B) float64
    log_buffers: Tensor  # (A, B) float64, the same as `points.log_step` returns them
    eps: Tensor  # (B,) float64 of `points.variance_eps`
    explained: tuple[float, ...] = ()  # (A,) fraction of a trajectory's variance; empty for other directions
    normalisation: str = "none"
    ignored: str = "none"
    made: Mapping[str, Any] = field(default_factory=dict)  # from what the vectors follow, up to rounding; {} if given
    rough: bool = False  # rounding may change them by more than itself, as with an iteration that ends at a tolerance

    def at(self, *coordinates: float, moves: points.Moves = points.by_log) -> Point:
        """Return the point at given coordinates, in the origin's dtype.

        Args:
            coordinates: of the point, one for each direction.
            moves: how buffers move away from the origin.

        Returns:
            The point.
        """
        theta = wide(self.origin.theta)
        for c, d in zip(coordinates, self.theta, strict=True):
            theta = theta + c * d
        return Point(theta.to(self.origin.theta), self.buffers_at(*coordinates, moves=moves))

    def buffers_at(self, *coordinates: float, moves: points.Moves = points.by_log) -> Tensor:
        """Return the buffers at given coordinates, (B,), as `at` does."""
        steps = points.Steps(eps=self.eps, start=self.origin.buffers, straight=self.buffers, log=self.log_buffers)
        return moves(steps, coordinates)

    @property
    def unit_length(self) -> np.ndarray:
        """Euclidean length of each direction, (A,)."""
        return np.asarray(self.theta.norm(dim=1).cpu().numpy())

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the two directions; nan for one."""
        if len(self.axes) == 1:
            return float("nan")
        return float(self.theta[0] @ self.theta[1] / (self.theta[0].norm() * self.theta[1].norm()))

    def project(self, point: Point) -> tuple[np.ndarray, float]:
        """Return the coordinates (A,) of the nearest point of the plane, and the Euclidean distance from it."""
        away = wide(point.theta) - wide(self.origin.theta)
        gram = self.theta @ self.theta.T
        coordinates = torch.linalg.solve(gram, self.theta @ away)
        distance = (away - coordinates @ self.theta).norm().item()
        return np.asarray(coordinates.cpu().numpy()), distance

    def first(self, n: int) -> "Directions":
        """Return the first n directions."""
        return replace(
            self,
            axes=self.axes[:n],
            theta=self.theta[:n],
            buffers=self.buffers[:n],
            log_buffers=self.log_buffers[:n],
            explained=self.explained[:n],
        )

    def joined(self, other: "Directions", *, length: float) -> "Directions":
        """Add another direction, scaled to a Euclidean length.

        Args:
            other: one direction from the same origin.
            length: its new Euclidean length.

        Returns:
            The plane of both.
        """
        scale = length / float(other.unit_length[0])
        return replace(
            self,
            axes=(*self.axes, *other.axes),
            theta=torch.cat([self.theta, scale * other.theta]),
            buffers=torch.cat([self.buffers, scale * other.buffers]),
            log_buffers=torch.cat([self.log_buffers, scale * other.log_buffers]),
            normalisation=other.normalisation,
            ignored=other.ignored,
            made={**self.made, "second direction": dict(other.made)} if self.made and other.made else {},
            rough=self.rough or other.rough,
        )

    def orthogonalised(self) -> "Directions":
        """Make the second direction orthogonal to the first, without changing the second coordinate of a point.

        Returns:
            Directions that span the same plane.

        Raises:
            InputError: the directions are parallel.
        """
        if len(self.axes) == 1:
            return self
        first, second = self.theta
        share = (first @ second) / (first @ first)
        rest = second - share * first
        if rest.norm() <= _DISTINCT * second.norm():
            raise InputError(f"{self.axes[0]} and {self.axes[1]} are parallel: they span a line, not a plane")
        straight, by_log = (torch.stack([b[0], b[1] - share * b[0]]) for b in (self.buffers, self.log_buffers))
        made = self.made and {**self.made, "orthogonal": True}
        return replace(self, theta=torch.stack([first, rest]), buffers=straight, log_buffers=by_log, made=made)


@checked
def random(
    objective: Objective, n: int, *, seed: int = 0, normalisation: Normalisation = "filter", ignored: Ignored = "biasbn"
) -> Directions:
    """Draw Gaussian directions.

    The draw depends only on the seed and the shapes of the parameters, not on the weights, the device or earlier draws.
    Then the directions are scaled to the network.

    Args:
        objective: of the network.
        n: number of directions, 1 or 2.
        seed: of the draw.
        normalisation: "filter", "layer", "weight" or "none"; see `normalised`.
        ignored: "biasbn" keeps parameters with one axis fixed; "none" keeps nothing fixed.

    Returns:
        The directions from the objective's own weights.

    Raises:
        InputError: an unknown normalisation, or no parameter varies.
    """
    drawn = [
        probe(objective.layout.size, seed=seed, number=k, distribution="gaussian", stream="direction") for k in range(n)
    ]
    raw = of_vectors(objective, torch.stack(drawn), [f"random {k + 1} (seed {seed})" for k in range(n)])
    made = {"directions": "random", "seed of directions": seed}
    return normalised(objective, replace(raw, made=made), normalisation, ignored)


@checked
def towards(objective: Objective, others: Sequence[Point], names: Sequence[str]) -> Directions:
    """Return the directions to one or two other checkpoints; the coordinate 1 is the other checkpoint.

    Running statistics of batch norm move too, so that at 1 the network is exactly the other one.

    Args:
        objective: of the network.
        others: the other checkpoints.
        names: of these checkpoints.

    Returns:
        The directions from the objective's own weights.

    Raises:
        InputError: a checkpoint is the origin itself.
    """
    start, eps = points.origin(objective), points.variance_eps(objective.model).to(place(objective.device))
    theta = torch.stack([wide(p.theta) - wide(start.theta) for p in others])
    for name, direction in zip(names, theta, strict=True):
        if not direction.any():
            raise InputError(f"{name} has the same parameters as the checkpoint: there is no direction towards it")
    return Directions(
        axes=tuple(f"towards {name}" for name in names),
        origin=start,
        theta=theta,
        buffers=torch.stack([wide(p.buffers) - wide(start.buffers) for p in others]),
        log_buffers=torch.stack([points.log_step(eps, start.buffers, p.buffers) for p in others]),
        eps=eps,
        made={"directions": "ckpt", "ckpt_to": list(names), "their SHA-256": points.digest(others)},
    )


@checked
def principal(objective: Objective, path: Sequence[Point], n: int = 2) -> Directions:
    """Return the principal components of the differences between checkpoints and the objective's own weights.

    The differences are centred first. Components have unit length and are sorted by variance; their signs are such that
    no coordinate of the first checkpoint is negative.

    Args:
        objective: at a point of the plane, usually the end of the training.
        path: the checkpoints of one or several runs.
        n: number of components.

    Returns:
        The directions, with the fraction of the variance that each explains.

    Raises:
        InputError: too few checkpoints, or too few distinct ones, for n components.

    Source: Li et al. 2018, section 7.
    """
    start = points.origin(objective)
    if len(path) <= n:
        raise InputError(f"{n} principal components need at least {n + 1} checkpoints, got {len(path)}")
    rows = torch.stack([wide(p.theta) - wide(start.theta) for p in path])  # (T, D)
    centred = rows - rows.mean(0)
    values, vectors = torch.linalg.eigh(centred @ centred.T)  # (T, T): D is far larger than T
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    if not values[n - 1] > _DISTINCT**2 * values.sum():
        raise InputError(f"the checkpoints span fewer than {n} dimensions: fewer than {n + 1} of them differ")
    components = (vectors[:, :n] / values[:n].sqrt()).T @ centred
    components /= components.norm(dim=1, keepdim=True)
    components *= torch.where(components @ rows[0] < 0, -1.0, 1.0)[:, None]
    shares = (values[:n] / values.sum()).tolist()
    found = of_vectors(objective, components, [f"PC {k + 1} ({100 * share:.1f} %)" for k, share in enumerate(shares)])
    made = {"directions": "pca", "checkpoints of SHA-256": points.digest(path)}
    return replace(found, explained=tuple(shares), made=made)


@checked
def eigen(
    objective: Objective,
    parts: Sequence[str],
    n: int,
    *,
    seed: int = 0,
    steps: int = eigenvectors.STEPS,
    memory_bytes: int | None = None,
) -> Directions:
    """Return unit eigenvectors of the Hessian's largest eigenvalues.

    With several processes, every one must call this: they share the work.

    Args:
        objective: of the network.
        parts: names of parts, or of groups that `Objective.alone` knows. One name gives the first n eigenvectors of its
            Hessian; n names give the first eigenvector of each.
        n: number of directions.
        seed: of the Lanczos starting vector, which also determines the signs.
        steps: Lanczos steps before the first convergence test.
        memory_bytes: as for `eigenvectors.eigenpairs`.

    Returns:
        The directions; eigenvectors of two different parts are in general not orthogonal.

    Raises:
        InputError: no such part, a number of parts other than 1 and n, or too few vectors fit into memory.
        NumericalError: a product is not finite, or the loss has no second derivative.
    """
    if len(parts) not in (1, n):
        raise InputError(f"{arg('of')} must name 1 or {n} parts for {n} eigenvectors, got {len(parts)}")
    each, rows, names = n if len(parts) == 1 else 1, [], []
    given: dict[str, Any] = {"steps": steps, "memory_bytes": memory_bytes}
    if costs.noted(lambda: eigenvectors.work(objective, parts, each, **given, halve=arg("directions", "random"))):
        return replace(random(objective, n, seed=seed), rough=True)
    for part in parts:
        vectors, values, _ = eigenvectors.eigenpairs(objective, part, each, seed=seed, **given)
        rows += list(vectors)
        names += [f"eigenvector {k + 1} of {part} ({value:.4g})" for k, value in enumerate(values)]
    made = {"directions": "eigen", "seed of directions": seed, "steps": steps, **_of(objective, parts)}
    return replace(of_vectors(objective, torch.stack(rows), names), made=made, rough=True)


@checked
def gradients(objective: Objective, parts: Sequence[str]) -> Directions:
    """Return the unit directions of steepest descent of the losses of parts.

    Args:
        objective: of the network.
        parts: a name for each direction; see `eigen`.

    Returns:
        The directions.

    Raises:
        InputError: no such part, or its gradient is zero.
    """
    rows = []
    theta = points.origin(objective).theta
    for part in parts:
        _, g = points.gradient(objective.alone(part), theta, 0)
        if not g.any():
            raise InputError(f"the gradient of {part} is zero: it has no direction")
        rows.append(-wide(g) / wide(g).norm())
    found = of_vectors(objective, torch.stack(rows), [f"descent of {part}" for part in parts])
    return replace(found, made={"directions": "gradient", **_of(objective, parts)}, rough=True)


def _of(objective: Objective, parts: Sequence[str]) -> dict[str, Any]:
    """Return what determines the losses of parts or groups, as entries of a fingerprint."""
    source = store.to_json(fingerprint(objective, {}), "the fingerprint of the directions")
    sha256 = hashlib.sha256(source.encode()).hexdigest()
    return {"of": list(parts), **objective.thresholds, "directions of the loss of SHA-256": sha256}


@checked
def normalised(objective: Objective, found: Directions, normalisation: Normalisation, ignored: Ignored) -> Directions:
    """Scale directions to the network's own filters, layers or weights.

    Args:
        objective: of the network.
        found: any directions.
        normalisation: "filter" gives each filter the norm of the network's filter; "layer" does so for each tensor;
            "weight" gives each entry the absolute value of the network's weight; "none" does not scale.
        ignored: "biasbn" sets parameters with one axis to zero; "none" does not.

    Returns:
        Scaled directions; they do not move running statistics.

    Raises:
        InputError: an unknown name, or no parameter varies.
    """
    check_choice("normalisation", normalisation, NORMALISATIONS)
    check_choice("ignored", ignored, IGNORED)
    layout, groups = objective.layout, filters.groups(objective.model)
    weights = layout.tensors(wide(found.origin.theta))
    rows = []
    for direction in found.theta:
        scaled = []
        for name, d, w in zip(layout.names, layout.tensors(direction), weights, strict=True):
            if ignored == "biasbn" and w.ndim <= 1:
                scaled.append(torch.zeros_like(d))
            else:
                scaled.append(_scaled(d, w, normalisation, name, groups))
        rows.append(layout.flat(scaled))
    theta = torch.stack(rows)
    for axis, row in zip(found.axes, theta, strict=True):
        if not row.any():
            what = (
                f"{arg('ignored', 'biasbn')} leaves nothing to vary" if ignored == "biasbn" else "all weights are zero"
            )
            raise InputError(f"{axis} has length zero: {what} among the chosen parameters")
    still = torch.zeros_like(found.buffers)
    return replace(found, theta=theta, buffers=still, log_buffers=still, normalisation=normalisation, ignored=ignored)


def _scaled(d: Tensor, w: Tensor, normalisation: str, name: str, groups: Mapping[str, int]) -> Tensor:
    if normalisation == "none":
        return d
    if normalisation == "layer":
        ours, theirs = d.norm(), w.norm()
    elif normalisation == "weight":
        ours, theirs = d.abs(), w.abs()
    else:
        each = filters.rows(d, name, groups)
        lengths, wanted = (x.norm(dim=1, keepdim=True) for x in (each, filters.rows(w, name, groups)))
        return filters.from_rows(_times(each, lengths, wanted), d.shape, name, groups)
    return _times(d, ours, theirs)


def _times(d: Tensor, ours: Tensor, theirs: Tensor) -> Tensor:
    """Scale d by |theirs| / |ours|; zero where |ours| is zero."""
    return torch.where(ours > 0, d * (theirs / torch.where(ours > 0, ours, 1.0)), 0.0)


@checked
def of_vectors(objective: Objective, rows: Tensor, axes: Sequence[str]) -> Directions:
    """Return any vectors as directions from an objective's own weights; running statistics do not move.

    Args:
        objective: of the network.
        rows: (A, D) vectors.
        axes: (A,) description of each vector.

    Returns:
        The directions.
    """
    start = points.origin(objective)
    theta = rows.to(place(objective.device)).double()
    still = zeros((len(rows), len(start.buffers)), objective.device)
    return Directions(
        axes=tuple(axes),
        origin=start,
        theta=theta,
        buffers=still,
        log_buffers=still,
        eps=points.variance_eps(objective.model).to(theta.device),
    )


@checked
def to_plane(objective: Objective, found: Directions, provenance: Mapping[str, Any]) -> Plane:
    """Return directions as a result, which can be stored in a file and used for another network.

    Args:
        objective: of the network.
        found: the directions.
        provenance: how they were made.

    Returns:
        The plane, in float64.
    """
    return Plane(
        axes=found.axes,
        directions=found.theta.cpu().numpy(),
        buffer_directions=found.buffers.cpu().numpy(),
        buffer_log_directions=found.log_buffers.cpu().numpy(),
        origin=wide(found.origin.theta).cpu().numpy(),
        buffer_origin=wide(found.origin.buffers).cpu().numpy(),
        unit_length=found.unit_length,
        explained=np.array(found.explained or [np.nan] * len(found.axes)),
        tensors=objective.layout.names,
        sizes=np.array(objective.layout.sizes),
        cosine=found.cosine,
        normalisation=found.normalisation,
        ignored=found.ignored,
        provenance={**provenance, _FIXED: points.fixed_digest(objective)},
    )


@checked
def from_plane(objective: Objective, plane: Plane, *, own_origin: bool = True) -> Directions:
    """Return the directions of a stored plane.

    Args:
        objective: of a network with the same parameter shapes.
        plane: a result of `to_plane`, for this network or another.
        own_origin: use the objective's own weights as the origin; otherwise the plane's origin, so that exactly the
            same points are evaluated.

    Returns:
        The directions, in the plane's units.

    Raises:
        InputError: the plane is of a network with other parameters, or with others that do not vary, at its origin.
    """
    if plane.tensors != objective.layout.names or plane.sizes.tolist() != objective.layout.sizes:
        raise InputError(
            f"the plane is of {int(plane.sizes.sum()):,} parameters in {len(plane.tensors)} tensors, from "
            f"{plane.tensors[0]}; the network varies {objective.layout.size:,} in {len(objective.layout.names)}, from "
            f"{objective.layout.names[0]}: the same {arg('model')} and {arg('params')} are needed"
        )
    start = points.origin(objective)
    if plane.buffer_origin.shape != tuple(start.buffers.shape):
        raise InputError(f"the plane is of a network with other running statistics: the same {arg('model')} is needed")

    def to(values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float64, device=place(objective.device))

    if not own_origin:
        if plane.stated(_FIXED, of=str) not in {None, points.fixed_digest(objective)}:
            raise InputError(
                "the plane's origin is a network with other values of the parameters that do not vary here: make the "
                f"plane without {arg('params')}, or use the directions alone"
            )
        start = Point(to(plane.origin).to(start.theta), to(plane.buffer_origin).to(start.buffers))
    eps = points.variance_eps(objective.model).to(place(objective.device))
    straight = to(plane.buffer_directions)
    # A plane of another program: its network is at coordinate 1 on each axis.
    by_log = torch.stack([points.log_step(eps, start.buffers, wide(start.buffers) + step) for step in straight])
    return Directions(
        axes=plane.axes,
        origin=start,
        theta=to(plane.directions),
        buffers=straight,
        log_buffers=to(plane.buffer_log_directions) if plane.buffer_log_directions is not None else by_log,
        eps=eps,
        explained=tuple(plane.explained.tolist()) if np.isfinite(plane.explained).all() else (),
        normalisation=plane.normalisation,
        ignored=plane.ignored,
        made={"directions": "stored plane", "its SHA-256": points.digest([Point(to(plane.directions), straight)])},
    )
