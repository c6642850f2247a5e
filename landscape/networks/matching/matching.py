"""Permutation matching: the channels of one network in the order in which another has them.

Hidden channels can be reordered without changing a network's function, and two trainings end with different orders.
On the straight line between the two, channels of different meaning are mixed, and the loss rises for this reason alone
(Entezari et al. 2022, "The role of permutation invariance in linear mode connectivity of neural networks"). Here
channels are matched by what they do (Li et al. 2015, "Convergent learning"; as activation matching in Ainsworth, Hayase
and Srinivasa 2023, "Git Re-Basin", section 3.1): of the orders pi of a group of interchangeable channels, the one with
the largest

    sum_i r(i, pi(i)),    r(i, j) = correlation of channel i of the reference and channel j of the other network

over samples and positions, where r is the mean over the places at which the network reads these channels. No group
depends on another, so each is a linear assignment problem, and its solution is exact.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from landscape.autodiff.wide import place, wide
from landscape.errors import DataError, InputError, NumericalError, arg, one_line
from landscape.networks.copies import copied
from landscape.networks.matching import channels
from landscape.networks.matching.channels import Channels, Group, Slot

_STAY = 1e-9  # bonus on the correlation for not moving: of equally good orders, the one that moves fewest
_ROUNDING = 1e-12  # of the mean square: a channel with less variance than this is constant
_COLUMNS = 1 << 16  # samples times positions that are converted to float64 at a time
_CHECKED = 16  # samples on which the permuted network is compared with the one that was given
_TOLERANCE = 1e-8  # of the largest output in float64; a wrong permutation changes the first digits

Logits = Callable[[Any], Any]
"""Takes the logits from what a network returns."""


@dataclass(frozen=True, eq=False)
class Matching:
    """A network with its channels in the order of another network's."""

    state: dict[str, Tensor]  # all parameters and buffers of the network, permuted; its function is the same
    groups: tuple[Group, ...]  # the channels that were free to move
    orders: tuple[np.ndarray, ...]  # for each group, (size,) the channel that took each place
    moved: int  # channels that changed place
    n_channels: int  # channels that were free to
    correlation: float  # mean over these, of each with its partner in the reference; nan if there are none
    correlation_before: float  # the same in the original order
    held: tuple[str, ...]  # operations that fix the positions of channels, such as a grouped convolution


def groups(model: nn.Module, inputs: Tensor, *, logits: Logits | None = None) -> tuple[Group, ...]:
    """Find the channels that may change places without changing the network's function.

    Args:
        model: any network; it is not changed.
        inputs: (B, ...) an example batch; one sample is enough.
        logits: returns those of the network's outputs that have a fixed order, such as logits; None for all outputs.

    Returns:
        The groups, of at least two channels each.

    Raises:
        InputError: the network cannot be copied or traced, or it is not known what one of its operations does to
            channels.
    """
    model = copied(model).eval()
    return channels.channels_of(model, _fitting(inputs, model.state_dict()), logits).groups


def match(
    reference: nn.Module, other: nn.Module, batches: Iterable[Tensor], *, logits: Logits | None = None
) -> Matching:
    """Reorder the channels of a network so that they match those of another.

    Both run in eval mode. Channels that are constant over all samples have no correlation, and stay where they are
    unless a channel that varies takes their place.

    Args:
        reference: the network that determines the order of channels. It is not changed.
        other: a network of the same architecture. It is not changed.
        batches: inputs (B, ...) without labels, of any number; a thousand samples are plenty. Their division into
            batches changes nothing, but each new size is traced anew (seconds), and a batch's activations at one
            place must fit the memory for both networks.
        logits: returns those of the networks' outputs that have a fixed order, such as the logits of a tuple
            (features, logits), so that features may be permuted; None for all outputs.

    Returns:
        The matched state, and how well it fits.

    Raises:
        InputError: the networks differ, one cannot be traced, it is not known what one of its operations does to
            channels, or the permuted network would not compute the same function.
        DataError: there are no samples.
        NumericalError: a network does not give finite numbers.

    Source: Ainsworth, Hayase and Srinivasa 2023, section 3.1.
    """
    reference, other = copied(reference).eval(), copied(other).eval()
    _refuse_different(reference, other)
    # A run may overwrite buffers, but the result must have the original ones.
    mine = {name: t.clone() for name, t in _tensors(reference).items()}
    yours = {name: t.to(mine[name], copy=True) for name, t in _tensors(other).items()}
    inputs = (_fitting(b, mine) for b in batches)
    full = (b for b in inputs if len(b))
    first = next(full, None)
    if first is None:
        raise DataError("there are no samples to match channels on: the batches are empty")
    graph = channels.channels_of(reference, first, logits)
    graphs = {first.shape: graph}
    sums = [[_Sums() for _ in group.reads] for group in graph.groups]
    for batch in chain([first], full):
        if batch.shape not in graphs:
            graphs[batch.shape] = channels.channels_of(reference, batch, logits)
            if _places(graphs[batch.shape]) != _places(graph):
                raise InputError(
                    f"the network treats inputs {tuple(batch.shape)} otherwise than {tuple(first.shape)}, so its "
                    f"channels cannot be matched on both; leave out {arg('match')}"
                )
        _add(sums, graphs[batch.shape], (mine, yours), batch)
    correlations = [_correlation(group, found) for group, found in zip(graph.groups, sums, strict=True)]
    orders = tuple(linear_sum_assignment(r + _STAY * np.eye(len(r)), maximize=True)[1] for r in correlations)
    state = _permuted(_tensors(other), graph.groups, orders)
    _verify(other, state, first[:_CHECKED], logits)
    return Matching(
        state=state,
        groups=graph.groups,
        orders=orders,
        moved=sum(int((order != np.arange(len(order))).sum()) for order in orders),
        n_channels=sum(map(len, orders)),
        correlation=_mean([r[np.arange(len(r)), order] for r, order in zip(correlations, orders, strict=True)]),
        correlation_before=_mean([np.diag(r) for r in correlations]),
        held=graph.held,
    )


class _Sums:
    """Sums over samples and positions, for the correlation of each channel of one network with each of another."""

    def __init__(self) -> None:
        self._n = 0
        self._sums: list[Tensor] = []

    def add(self, mine: Tensor, yours: Tensor) -> None:
        """Add values (C, N) of both networks."""
        self._n += mine.shape[1]
        for a, b in zip(torch.split(mine, _COLUMNS, dim=1), torch.split(yours, _COLUMNS, dim=1), strict=True):
            a, b = wide(a), wide(b)
            squares = (torch.linalg.vecdot(values, values) for values in (a, b))
            found = [a.sum(1), b.sum(1), *squares, a @ b.T]
            self._sums = [old + new for old, new in zip(self._sums, found, strict=True)] if self._sums else found

    def correlation(self) -> np.ndarray:
        """Return (C, C) correlations, 0 where a channel is constant."""
        a, b, aa, bb, ab = (total.cpu().numpy() / self._n for total in self._sums)
        with np.errstate(invalid="ignore", over="ignore"):  # the caller tests whether these are finite
            variances = [np.where(s - m**2 > _ROUNDING * s, s - m**2, np.inf) for m, s in ((a, aa), (b, bb))]
            return (ab - np.outer(a, b)) / np.sqrt(np.outer(*variances))


def _places(graph: Channels) -> list[list[tuple[str, int, tuple[int, ...]]]]:
    return [[(s.name, s.axis, s.positions.shape) for s in (*g.slots, *g.reads)] for g in graph.groups]


def _add(sums: Sequence[Sequence[_Sums]], graph: Channels, states: Any, inputs: Tensor) -> None:
    """Run both networks on the same inputs, and add up the activations."""
    readers: dict[str, list[tuple[Slot, _Sums]]] = {}
    for group, found in zip(graph.groups, sums, strict=True):
        for slot, total in zip(group.reads, found, strict=True):
            readers.setdefault(slot.name, []).append((slot, total))
    with torch.no_grad():
        runs = [graph.values(state, inputs.clone()) for state in states]
        for (name, mine), (_, yours) in zip(*runs, strict=True):
            for slot, total in readers.get(name, ()):
                total.add(_channels(mine, slot), _channels(yours, slot))


def _channels(values: Tensor, slot: Slot) -> Tensor:
    """Return (C, N): channels by samples, positions of other axes, and places on a flattened one."""
    index = slot.positions.ravel()
    if not np.array_equal(index, np.arange(values.shape[slot.axis])):
        values = values.index_select(slot.axis, torch.from_numpy(index).to(values.device))
    return values.movedim(slot.axis, 0).reshape(len(slot.positions), -1)


def _correlation(group: Group, sums: Sequence[_Sums]) -> np.ndarray:
    r: np.ndarray = np.mean([total.correlation() for total in sums], axis=0)
    if not np.isfinite(r).all():
        raise NumericalError(
            f"the activations behind {group.slots[0].name} are not finite, so its channels cannot be matched: did a "
            "training diverge?"
        )
    return r


def _mean(values: Sequence[np.ndarray]) -> float:
    return float(np.concatenate(values).mean()) if values else float("nan")


def _permuted(state: Mapping[str, Tensor], found: Sequence[Group], orders: Sequence[np.ndarray]) -> dict[str, Tensor]:
    permuted = {name: t.clone() for name, t in state.items()}
    for group, order in zip(found, orders, strict=True):
        for slot in group.slots:
            tensor = permuted[slot.name]
            index = np.arange(tensor.shape[slot.axis])
            index[slot.positions] = slot.positions[order]
            permuted[slot.name] = tensor.index_select(slot.axis, torch.from_numpy(index).to(tensor.device))
    return permuted


def _verify(network: nn.Module, state: Mapping[str, Tensor], inputs: Tensor, logits: Logits | None) -> None:
    """Refuse a state that computes another function; the copy in float64 distinguishes errors from rounding."""

    def compute() -> list[Tensor]:
        output = network(_fitting(inputs, network.state_dict()).clone())
        return channels.outputs(output if logits is None else logits(output))

    with torch.no_grad():
        try:
            network.to(place(next(network.parameters()).device)).double()
            before = compute()
            network.load_state_dict(state, strict=False)  # the extra state of a module is not a tensor
            after = compute()
        except (RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"the network does not run in float64, so a matching cannot be checked ({one_line(error)}); "
                f"leave out {arg('match')}"
            ) from error
    for old, new in zip(before, after, strict=True):
        if not old.isfinite().all():
            raise NumericalError("the network to be matched returns values that are not finite")
        change, scale = (float(t.abs().max()) for t in (wide(old) - wide(new), wide(old)))
        if change > _TOLERANCE * scale:
            raise InputError(
                f"the network with permuted channels returns other values (by {change:.1e} of {scale:.1e}): it "
                f"uses its channels in a way that its operations do not show; leave out {arg('match')}"
            )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)}


def _fitting(inputs: Any, state: Mapping[str, Any]) -> Tensor:
    """Bring inputs to the device and, if they are real numbers, to the type of the weights."""
    if not isinstance(inputs, Tensor) or inputs.ndim == 0:
        raise InputError(f"channels are matched on batches of inputs, one tensor each, not on {type(inputs).__name__}")
    weights = [t for t in state.values() if isinstance(t, Tensor) and t.is_floating_point()]
    if not weights:
        raise InputError(f"the network has no weights, so there are no channels to match; leave out {arg('match')}")
    return inputs.to(weights[0].device, weights[0].dtype if inputs.is_floating_point() else inputs.dtype)


def _refuse_different(reference: nn.Module, other: nn.Module) -> None:
    mine, yours = _tensors(reference), _tensors(other)
    for name in [*mine, *yours]:
        shapes = [tuple(state[name].shape) if name in state else "not there" for state in (mine, yours)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"the networks are not of one architecture: {name} is {shapes[0]} in the first and {shapes[1]} in the "
                f"second; leave out {arg('match')}"
            )
    if _shared(reference) != _shared(other):
        raise InputError(
            f"the networks are not of one architecture: they share parameters differently; leave out {arg('match')}"
        )


def _shared(model: nn.Module) -> dict[str, str]:
    """Return for each tensor the first name of it."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(t), name) for name, t in model.state_dict(keep_vars=True).items()}
