"""Points of parameter space: a network's weights as vectors, and back.

A point consists of the parameters that vary, as one flat vector, and of the network's floating-point buffers (the
running statistics of batch norm), as another. Between two networks all of them are interpolated linearly, or all except
the running variances v: for these, log(v + eps) is interpolated, with eps the number that batch norm adds. So variances
stay positive however far a line is extended, whereas linear interpolation gives negative ones, which have no root.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from os import PathLike, fspath
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from landscape.autodiff import memory
from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.trees import Tree
from landscape.autodiff.wide import place, wide, zeros
from landscape.callables import checked
from landscape.errors import InputError, arg
from landscape.networks.copies import copied
from landscape.networks.params import Layout
from landscape.objective import runs, snapshots
from landscape.objective.objective import Objective
from landscape.objective.snapshots import File, Snapshot

_LEAST_EPS = 1e-12
"""Used as eps for a layer with eps = 0, because the logarithm of a zero variance is needed too."""


@dataclass(frozen=True, eq=False)
class Point:
    """A network's weights as vectors."""

    theta: Tensor  # (D,) the parameters of the objective's layout
    buffers: Tensor  # (B,) all floating-point buffers


@checked
def point(
    objective: Objective,
    network: str | PathLike[str] | nn.Module,
    *,
    ckpt_key: str | None = None,
    trust_pickle: bool = False,
) -> Point:
    """Return the point of another network with the objective's parameters: for directions, marks and distances.

        ls.directions.towards(objective, [ls.point(objective, "sam.pt")], ["SAM"])

    Args:
        objective: of the network.
        network: a checkpoint, or a model with the same architecture, which is copied.
        ckpt_key: key of the weights in the file; None finds them automatically.
        trust_pickle: let the file run code when it is read. Use it only for files that you made.

    Returns:
        Its parameters and running statistics.

    Raises:
        InputError: the file cannot be read, the network does not fit the objective's, or it differs in parameters or
            buffers that do not vary.
        NumericalError: a weight or the loss is not finite.
    """
    if isinstance(network, nn.Module):
        other = objective.at(network)
        refuse_other_fixed(objective, other.model, "network")
        return origin(other)
    ((found, _),) = read(objective, [fspath(network)], key=ckpt_key, trust_pickle=trust_pickle).values()
    return found


@checked
def path(
    objective: Objective, files: str | PathLike[str], *, ckpt_key: str | None = None, trust_pickle: bool = False
) -> dict[str, tuple[Point, float]]:
    """Return the points of a run's checkpoints: for `trajectory` and `directions.principal`.

        ls.trajectory(objective, {run: ls.path(objective, f"runs/{run}") for run in ("ce", "sam")})

    Args:
        objective: of the network.
        files: the folder of a run, or a pattern.
        ckpt_key: as for `point`.
        trust_pickle: as for `point`.

    Returns:
        Name -> the point and its epoch, in the order of the epochs; nan if no file has an epoch.

    Raises:
        InputError: nothing is found, only some files have an epoch, or a file cannot be read or does not fit.
        NumericalError: a weight is not finite.
    """
    listed = runs.path_of_training(fspath(files), ckpt_key=ckpt_key, trust_pickle=trust_pickle)
    return read(objective, listed, key=ckpt_key, trust_pickle=trust_pickle)


def read(objective: Objective, files: Sequence[File], **reading: Any) -> dict[str, tuple[Point, float]]:
    """Read checkpoints: name -> the point and its epoch; for `reading` see `snapshots.find`."""
    found = snapshots.find(objective, files, **reading) if files else []
    return {s.name: (of(objective, s, **reading), s.epoch) for s in found}


def buffer_layout(model: nn.Module) -> Layout:
    """Return names and shapes of a network's real floating-point buffers, in its own order."""
    found = {name: b for name, b in model.named_buffers() if b.is_floating_point()}
    return Layout(names=tuple(found), shapes=tuple(b.shape for b in found.values()))


def variance_eps(model: nn.Module) -> Tensor:
    """Return eps of each running variance, which is added before the root, (B,) float64; nan for other buffers."""
    found = []
    for name in buffer_layout(model).names:
        owner, _, entry = name.rpartition(".")
        eps = getattr(model.get_submodule(owner), "eps", 0.0) if entry == "running_var" else torch.nan
        found.append(torch.full((model.get_buffer(name).numel(),), max(float(eps), _LEAST_EPS), dtype=torch.float64))
    return torch.cat([torch.empty(0, dtype=torch.float64), *found])


def log_step(eps: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Return the step between two sets of buffers: differences or, for variances, differences of log(v + eps).

    Args:
        eps: the return value of `variance_eps`.
        start: (B,).
        end: (B,).

    Returns:
        (B,) float64, for `at_log_step`.
    """
    start, end = wide(start), wide(end)
    return torch.where(eps.isnan(), end - start, ((end + eps) / (start + eps)).log())


def at_log_step(eps: Tensor, start: Tensor, step: Tensor) -> Tensor:
    """Return the buffers after a step.

    Args:
        eps: as for `log_step`.
        start: (B,).
        step: (B,) float64, a step of `log_step`, or a sum of multiples of such.

    Returns:
        (B,) in the dtype of `start`; a variance is negative only if that of the start is.
    """
    v = wide(start)
    variance = torch.maximum(v + (v + eps) * step.expm1(), v.clamp(max=0))
    return torch.where(eps.isnan(), v + step, variance).to(start)


@dataclass(frozen=True, kw_only=True, eq=False)
class Steps:
    """Steps of buffers away from an origin, in every form that a way of moving them may need."""

    eps: Tensor  # (B,) float64 of `variance_eps`
    start: Tensor  # (B,) the buffers at the origin
    straight: Tensor  # (A, B) float64, differences
    log: Tensor  # (A, B) float64, of `log_step`


Moves: TypeAlias = Callable[[Steps, Sequence[float]], Tensor]
"""Return the buffers (B,), in the dtype of the start, at coordinates: one number for each of the A steps."""


def straight(steps: Steps, coordinates: Sequence[float]) -> Tensor:
    """Move all buffers in straight lines; a variance may become negative."""
    return (wide(steps.start) + _summed(steps.straight, coordinates)).to(steps.start)


def by_log(steps: Steps, coordinates: Sequence[float]) -> Tensor:
    """Move variances in straight lines of log(v + eps), all other buffers in straight lines."""
    return at_log_step(steps.eps, steps.start, _summed(steps.log, coordinates))


def _summed(steps: Tensor, coordinates: Sequence[float]) -> Tensor:
    return sum((c * step for c, step in zip(coordinates, steps, strict=True)), torch.zeros_like(steps[0]))


def between(objective: Objective, a: Point, b: Point, t: float, *, moves: Moves = by_log) -> Point:
    """Return the point at a fraction of the way from one point to another.

    Args:
        objective: of the network.
        a: the point at 0.
        b: the point at 1.
        t: the fraction.
        moves: how buffers move on the way.

    Returns:
        The point, in the dtype of `a`.
    """
    eps = variance_eps(objective.model).to(place(a.buffers.device))
    theta = torch.lerp(wide(a.theta), wide(b.theta), t)
    steps = Steps(
        eps=eps,
        start=a.buffers,
        straight=(wide(b.buffers) - wide(a.buffers))[None],
        log=log_step(eps, a.buffers, b.buffers)[None],
    )
    return Point(theta.to(a.theta), moves(steps, (t,)))


def variances_valid(eps: Tensor, buffers: Tensor) -> bool:
    """Say whether all running variances are finite and not negative."""
    variances = buffers[~eps.isnan()]
    return bool((variances >= 0).all() and variances.isfinite().all())


def origin(objective: Objective) -> Point:
    """Return the point of an objective's own weights."""
    return of_network(objective, objective.model)


def of(objective: Objective, snapshot: Snapshot, *, key: str | None = None, trust_pickle: bool = False) -> Point:
    """Return the point of another checkpoint of an objective's network.

    Args:
        objective: of the network.
        snapshot: from `snapshots.find`.
        key: key of the weights in the file.
        trust_pickle: let the file run code when it is read.

    Returns:
        The point, of the parameters of the objective's layout.

    Raises:
        InputError: the file has changed since it was found, or it differs in parameters that do not vary.
    """
    model = snapshots.network(objective, snapshot, key=key, trust_pickle=trust_pickle)
    refuse_other_fixed(objective, model, snapshot.path or snapshot.name)
    return of_network(objective, model)


def refuse_other_fixed(objective: Objective, model: nn.Module, name: str) -> None:
    """Refuse a network that no point can stand for, because what does not vary has other values in it.

    That is parameters that were not chosen, and buffers that are not made of real numbers, such as masks. Counters may
    differ if no output depends on them: for every sample, the network and its point must have the same outputs, which
    takes two passes over the data. Between two networks, the counters are those of the objective's.

    Args:
        objective: of a network with the same parameters.
        model: the network.
        name: of the network, for the message.

    Raises:
        InputError: such a parameter or buffer differs.
    """
    own, now = (_fixed(one, objective.layout) for one in (objective.model, model))
    others = [key for key, t in now.items() if not torch.equal(t, own[key])]
    for key in sorted(others, key=lambda key: _counts(now[key])):
        t = now[key]
        if isinstance(t, nn.Parameter):
            raise InputError(
                f"{name} also differs in {key}, which is not among the parameters that vary "
                f"({objective.source['params']}): leave {arg('params')} out, or choose {key} too"
            )
        if _counts(t) and _same_outputs(objective, model):
            return  # only counters are left
        kind = str(t.dtype).removeprefix("torch.")
        raise InputError(
            f"{name} also differs in the buffer {key}, whose numbers ({kind}) cannot lie between those of two "
            f"networks: give it the same values in both"
        )


def fixed_digest(objective: Objective) -> str:
    """Return a SHA-256 of the parameters that do not vary, and of buffers that cannot."""
    found = hashlib.sha256()
    for t in _fixed(objective.model, objective.layout).values():
        found.update((t if t.is_complex() else wide(t)).detach().cpu().numpy().tobytes())
    return found.hexdigest()


def _fixed(model: nn.Module, layout: Layout) -> dict[str, Tensor]:
    """Return the parameters and buffers that are the same at all points, without batch norm's numbers of batches."""
    varying = {*layout.names, *buffer_layout(model).names}
    every = [*model.named_parameters(), *model.named_buffers()]
    return {n: t for n, t in every if n not in varying and n.rpartition(".")[2] != "num_batches_tracked"}


def _counts(t: Tensor) -> bool:
    return t.ndim == 0 and not (t.is_floating_point() or t.is_complex() or t.dtype == torch.bool)


def _same_outputs(objective: Objective, model: nn.Module) -> bool:
    """Say whether a network and its point have the same outputs: a counter may change those of a few samples only."""
    ends = objective.of_network(model), objective_at(objective, of_network(objective, model))

    def same(inputs: Tree) -> bool:
        return torch.equal(*(end.logits(end.theta, inputs) for end in ends))

    def compared() -> bool:
        with differentiable_attention(), torch.no_grad():
            return all(same(inputs) for part in range(len(objective.members)) for inputs, _ in objective.batches(part))

    return memory.halving(compared)


def of_network(objective: Objective, model: nn.Module) -> Point:
    """Return the point of another network with the same parameters, and the same values of those that do not vary."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    buffers = buffer_layout(model)
    empty = torch.empty(0, device=objective.device, dtype=objective.dtype)
    return Point(
        theta=objective.layout.flat([tensors[n].detach() for n in objective.layout.names]),
        buffers=buffers.flat([tensors[n].detach().to(objective.dtype) for n in buffers.names] or [empty]),
    )


def network_at(objective: Objective, point: Point) -> nn.Module:
    """Return a copy of an objective's network with the weights and running statistics of a point."""
    model = copied(objective.model)
    set_point(model, objective.layout, point)
    return model


def set_point(model: nn.Module, layout: Layout, point: Point) -> None:
    """Copy the weights and running statistics of a point into a network of its kind."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for vectors, values in ((layout, point.theta), (buffer_layout(model), point.buffers)):
            for name, t in zip(vectors.names, vectors.tensors(values), strict=True):
                tensors[name].copy_(t)


def objective_at(objective: Objective, point: Point) -> Objective:
    """Return an objective of the same data, parts and loss at a point."""
    return objective.of_network(network_at(objective, point))


def joined(some: Mapping[str, Point], others: Mapping[str, Point]) -> dict[str, Point]:
    """Return two sets of named points as one; of equal points with the same name, only one is kept.

    Args:
        some: these keep their names.
        others: a point of these with the name of another point is called "name (2)", or by a higher number.

    Returns:
        The points by their names.
    """
    found = dict(some)
    for name, point in others.items():
        free = next(n for n in numbered(name) if n not in found or _equal(found[n], point))
        found[free] = point
    return found


def numbered(name: str) -> Iterator[str]:
    """Yield a name, then "name (2)", "name (3)" and so on, of which the first free one is taken."""
    yield name
    yield from (f"{name} ({n})" for n in count(2))


def _equal(first: Point, second: Point) -> bool:
    return torch.equal(first.theta, second.theta) and torch.equal(first.buffers, second.buffers)


def digest(some: Iterable[Point]) -> str:
    """Return a SHA-256 of the vectors of points, for fingerprints."""
    found = hashlib.sha256()
    for point in some:
        for t in (point.theta, point.buffers):
            found.update(t.detach().cpu().numpy().tobytes())
    return found.hexdigest()


def gradient(objective: Objective, theta: Tensor, part: int) -> tuple[float, Tensor]:
    """Return a part's mean loss and its gradient at given parameters, with the objective's own running statistics.

    Args:
        objective: model, loss and data in parts.
        theta: (D,).
        part: position of the part.

    Returns:
        The loss and the gradient, (D,), in the objective's dtype; sums over samples that are divided once.
    """
    leaf = theta.detach().to(objective.dtype).requires_grad_()
    total, loss = zeros(leaf.shape, leaf.device), zeros((), leaf.device)
    with differentiable_attention():
        for inputs, labels in objective.batches(part):
            value = wide(objective.losses(objective.layout.tensors(leaf), inputs, labels)).sum()
            total += torch.autograd.grad(value, leaf)[0].to(total.device)
            loss += value.detach()
    count = len(objective.members[part])
    total = objective.team.total(total)
    return float(objective.team.total(loss)) / count, (total / count).to(leaf)


def mean_loss(objective: Objective, theta: Sequence[Tensor], part: int) -> float:
    """Return a part's mean loss at given parameters, with the objective's own running statistics.

    Args:
        objective: model, loss and data in parts.
        theta: tensors of `layout`'s shapes.
        part: position of the part.

    Returns:
        The loss, read from the device once.
    """
    total = zeros((), objective.device)
    with differentiable_attention(), torch.no_grad():
        for inputs, targets in objective.batches(part):
            total += wide(objective.losses(theta, inputs, targets)).sum()
    return float(objective.team.total(total)) / len(objective.members[part])
