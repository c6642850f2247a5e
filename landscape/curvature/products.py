"""Products of a sum over samples with vectors: batch after batch, by the fastest correct method.

There are two methods for the product of one batch: backward passes alone (any model; the reference), and a traced,
linearised graph, of which the values that do not depend on the vector are kept (linearize.py). The second is compared
with the first on one whole batch, then on a few samples of each batch; the first is compared with differences of the
gradient on a few samples of each part (checks.py).
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from landscape.autodiff import devices, memory, trees
from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.distributed import Team
from landscape.autodiff.known import Known
from landscape.autodiff.linearize import Linearized, Stages, linearize, n_bytes
from landscape.autodiff.tracing import TRACE_SIZES, NotTraceableError
from landscape.autodiff.trees import Tree
from landscape.curvature import ranges
from landscape.curvature.checks import fault_of_second_derivative, refuse_fault, some_of
from landscape.curvature.kinds import Batch, Functions, Kind, Tensors
from landscape.errors import InputError, NumericalError, arg, is_of_memory, one_line
from landscape.networks.params import Layout

log = logging.getLogger(__name__)

_WIDE = 2**25
"""Parameters beyond which second derivatives are checked in the model's precision: some ten float64 copies of the
weights would take more than the spectrum itself."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """The samples in the sum that gives a part's matrix."""

    name: str
    batch: Callable[[int], Batch]  # the batch with a number, always the same
    n_batches: int
    n_summed: int  # samples in all batches; of a team of processes, the most that one of them has
    divisor: int  # samples of the part, whether or not all are summed over
    example: Callable[[], Batch]  # some samples, the same in all processes


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The values that determine a curvature matrix."""

    functions: Functions
    theta: Tensors
    fixed: Tensors  # the other parameters and buffers
    functions_with: Callable[[Tensors], Functions]  # the same with other values of these
    known: Known  # of the network, at any point
    layout: Layout
    parts: tuple[Part, ...]
    weight_decay: float
    dtype: torch.dtype
    device: torch.device
    team: Team  # the processes that add up their products; batches are this one's share
    wide: Callable[[], "Problem"]  # the same in float64

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parts."""
        return tuple(part.name for part in self.parts)


@dataclass(frozen=True)
class Traced:
    """A traced product at the problem's point."""

    linearized: Linearized
    bytes_per_sample: float  # of what it keeps
    required: bool  # a wrong product is an error, not a reason for reverse mode


@dataclass(frozen=True)
class _Seen:
    """The checks that have been made, shared by the products of all parts."""

    parts: set[str] = field(default_factory=set)
    zeros: set[str] = field(default_factory=set)  # parts whose products were zero
    batches: dict[tuple[str, Team, int], bool] = field(default_factory=dict)  # whether the trace is right for the batch


class Products:
    """Products with a kind of matrix, for each part of a problem; values independent of the vector may be kept."""

    def __init__(
        self, problem: Problem, kind: Kind, traced: Traced | None, cache_bytes: int, seen: _Seen | None = None
    ) -> None:
        self.problem, self.kind = problem, kind
        self._seen = _Seen() if seen is None else seen
        self._traced, self._cache_bytes = traced, cache_bytes
        self._cache: dict[tuple[int, int], tuple[object, ...]] = {}
        self._used = 0
        self._piece: int | None = None  # samples at a time, since memory has run out

    def restrict(self, parts: Sequence[int]) -> "Products":
        """Return the products of some of the parts, with separate memory."""
        return self.of(replace(self.problem, parts=tuple(self.problem.parts[p] for p in parts)))

    def of(self, problem: Problem) -> "Products":
        """Return the products of the same model and loss over other samples, with separate memory."""
        return Products(problem, self.kind, self._traced, self._cache_bytes, self._seen)

    @property
    def cached(self) -> bool:
        """Whether all values that can be kept are kept: then a single product costs as much as one in a block."""
        return self._traced is not None and self._keepable <= self._cache_bytes

    @property
    def keeps(self) -> int:
        """The most bytes that are kept."""
        return min(self._keepable, self._cache_bytes)

    @property
    def _keepable(self) -> int:
        n_samples = sum(part.n_summed for part in self.problem.parts)
        return 0 if self._traced is None else int(self._traced.bytes_per_sample * n_samples)

    @devices.full_precision()
    def __call__(self, V: Tensor) -> Tensor:
        """Multiply each part's matrix by its vectors.

        Args:
            V: (P, K, D).

        Returns:
            The products, (P, K, D).

        Raises:
            InputError: the vectors have another shape.
            NumericalError: a product is not finite, or PyTorch's second derivative of model and loss is wrong.
        """
        problem, layout = self.problem, self.problem.layout
        if not isinstance(V, Tensor) or V.dtype != problem.dtype or V.device.type != problem.device.type:
            what = f"a tensor of {problem.dtype} on {problem.device}"
            raise InputError(f"vectors must be {what}: `operator @ v` converts others")
        if V.ndim != 3 or V.shape[0] != len(problem.parts) or V.shape[2] != layout.size:
            raise InputError(
                f"vectors must have shape (parts, block, parameters) = ({len(problem.parts)}, K, {layout.size}), "
                f"got {tuple(V.shape)}"
            )
        out = torch.zeros(V.shape, dtype=V.dtype, device=V.device)
        for row, part in enumerate(problem.parts):
            self._check(part)
            tangents = [_own(layout.tensors(v.contiguous())) for v in V[row]]
            for number in range(part.n_batches):
                for k, product in enumerate(self._of_batch(row, number, tangents)):
                    for total, piece in zip(layout.tensors(out[row, k]), product, strict=True):
                        total += piece
            out[row] /= part.divisor
        out = problem.team.total(out)
        finite, any_left = torch.stack([torch.isfinite(out).all(), out.any()]).tolist()  # the device is waited for once
        if not finite:
            names = ", ".join(problem.names)
            raise NumericalError(
                f"a product with the {self.kind.name} of {names} is not finite: try {arg('dtype', 'float64')}"
            )
        if problem.dtype != torch.float64 and not any_left:
            self._refuse_vanished(V)
        if problem.weight_decay and self.kind.decays:
            out += problem.weight_decay * V
        return out

    def _refuse_vanished(self, V: Tensor) -> None:
        """Refuse products that are zero in the model's precision only, as those of losses of 1e-50 are in float32."""
        for part, vectors in zip(self.problem.parts, V, strict=True):
            if part.name in self._seen.zeros or not vectors.any():
                continue
            self._seen.zeros.add(part.name)
            try:
                wide = self.problem.wide()
                (example,) = (p.example() for p in wide.parts if p.name == part.name)
                v = vectors[0].to(wide.device, wide.dtype)
                products = by_reverse(wide, self.kind, some_of(example, 4), [wide.layout.tensors(v)])[0]
            except Exception as error:  # as in `_check`
                log.info("products that are zero are not compared with those in float64: %s", one_line(error))
                continue
            size = max(float(t.abs().max()) for t in products if t.numel())
            if 0 < size < ranges.limits(self.problem.dtype)[0]:  # what is larger is rounding
                raise NumericalError(
                    f"products of size {size:.1g} with the {self.kind.name} of {part.name} are zero in "
                    f"{str(self.problem.dtype).removeprefix('torch.')}: use {arg('dtype', 'float64')}, or multiply the "
                    "loss by a number"
                )

    def _check(self, part: Part) -> None:
        """Refuse a part if the second derivative is wrong for its first samples; each part is checked once."""
        if part.name in self._seen.parts:
            return
        try:
            small = self.problem.layout.size <= _WIDE
            fault = self._fault(self.problem.wide() if small else self.problem, part.name)
        except Exception as error:  # a model may be written for float32 only, and then raise any error
            log.info("second derivatives are checked in the model's precision, because %s", one_line(error))
            fault = self._fault(self.problem, part.name)
        refuse_fault(self.kind, fault, part.name)
        self._seen.parts.add(part.name)

    def _fault(self, problem: Problem, name: str) -> str | None:
        (part,) = (p for p in problem.parts if p.name == name)
        return fault_of_second_derivative(self.kind, problem.functions, problem.theta, some_of(part.example(), 2))

    def _of_batch(self, row: int, number: int, tangents: list[Tensors]) -> list[Tensors]:
        """Multiply the matrix of a batch by vectors; after memory has run out, in pieces of the batch that fit."""
        while self._piece is None:
            try:
                return self._at_once(row, number, tangents)
            except Exception as error:  # each allocator has its own
                size = trees.size(self.problem.parts[row].batch(number))
                if not is_of_memory(error) or size == 1:
                    raise
            self._shrink(size)
        while True:  # not within the handler of an error, which keeps the tensors of the failed attempt
            piece = self._piece
            try:
                return self._in_pieces(self.problem.parts[row].batch(number), piece, tangents)
            except Exception as error:
                if not is_of_memory(error) or piece == 1:
                    raise
            self._shrink(piece)

    def _shrink(self, size: int) -> None:
        self._cache.clear()
        self._piece = -(-size // 2)
        memory.note_fewer(self._piece)
        log.warning("memory has run out: products take %d samples at a time from now on, and keep nothing", self._piece)

    def _in_pieces(self, batch: Batch, piece: int, tangents: list[Tensors]) -> list[Tensors]:
        totals = [tuple(torch.zeros_like(t) for t in v) for v in tangents]
        for start in range(0, trees.size(batch), piece):
            found = by_reverse(self.problem, self.kind, trees.take(batch, slice(start, start + piece)), tangents)
            for total, product in zip(totals, found, strict=True):
                for t, p in zip(total, product, strict=True):
                    t += p
        return totals

    def _at_once(self, row: int, number: int, tangents: list[Tensors]) -> list[Tensors]:
        if self._traced is None or not self._is_right(self._traced, row, number):
            return by_reverse(self.problem, self.kind, self.problem.parts[row].batch(number), tangents)
        kept = self._residuals(row, number, self._traced.linearized)
        return [self._traced.linearized.product(kept, t) for t in tangents]

    def _is_right(self, traced: Traced, row: int, number: int) -> bool:
        """Say whether the traced product is right on a few samples of a batch; each batch is checked once."""
        part = self.problem.parts[row]
        key = part.name, self.problem.team, number
        if key not in self._seen.batches:
            batch = part.batch(number)
            reason = _disagreement(self.problem, self.kind, traced.linearized, some_of(batch, 4))
            if reason is not None:  # in a few samples the rounding of one has more weight than in a batch
                reason = _disagreement(self.problem, self.kind, traced.linearized, batch)
            if reason is not None:
                _refuse(f"{reason} for a batch of {part.name}", traced.required)
            self._seen.batches[key] = reason is None
        return self._seen.batches[key]

    def _residuals(self, row: int, number: int, graph: Linearized) -> tuple[object, ...]:
        if (row, number) in self._cache:
            return self._cache[row, number]
        found = graph.residuals(*self.problem.parts[row].batch(number))
        size = n_bytes(found)
        if self._used + size <= self._cache_bytes:
            self._used += size
            self._cache[row, number] = found
        return found


def _own(tensors: Tensors) -> Tensors:
    """Copy tensors that begin at an odd place of their memory, where a view as complex numbers fails."""
    return tuple(t.clone() if t.storage_offset() % 2 else t for t in tensors)


def by_reverse(problem: Problem, kind: Kind, batch: Batch, vs: list[Tensors]) -> list[Tensors]:
    """Multiply the matrix of one batch, a sum over its samples, by vectors, using backward passes only.

    Args:
        problem: functions and point.
        kind: of matrix.
        batch: inputs and labels.
        vs: vectors in tensors of the parameters' shapes.

    Returns:
        A product for each vector.
    """
    theta = tuple(t.detach().requires_grad_() for t in problem.theta)
    with differentiable_attention():
        return kind.reverse(problem.functions, theta, batch, vs)


def by_trace(problem: Problem, kind: Kind, batch: Batch) -> Stages:
    """Trace the product of a batch and divide its graph by what each node depends on, see `linearize`."""
    n = len(problem.theta)

    def product(state: Tensors, inputs: Tree, targets: Tree, v: Tensors) -> Tensors:
        return kind.forward(problem.functions_with(state[n:]), state[:n], (inputs, targets), v)

    return linearize(product, problem.theta, *batch, problem.fixed)


@devices.full_precision()
def checked_trace(problem: Problem, kind: Kind, *, required: bool) -> Traced | None:
    """Trace the product and compare it with reverse mode on one batch; if it cannot be used, log the reason.

    A graph of the same network at another point is taken where it agrees here too.

    Args:
        problem: functions, point and data.
        kind: of matrix.
        required: if it cannot be used, raise an error instead of using reverse mode.

    Returns:
        The trace, or None for reverse mode.

    Raises:
        InputError: it cannot be used and is required.
        RuntimeError: memory has run out for a single sample.
    """
    batch = problem.parts[0].example()
    while True:
        if trees.size(batch) in TRACE_SIZES:  # a value that the trace treats as a constant shows only at another size
            batch = trees.take(batch, slice(-1))
        try:
            return _checked_on(problem, kind, batch, required)
        except RuntimeError as error:
            if not is_of_memory(error) or trees.size(batch) == 1:
                raise
        batch = trees.take(batch, slice(trees.size(batch) // 2))
        log.warning("memory has run out: the traced product is compared on %d samples", trees.size(batch))


def _checked_on(problem: Problem, kind: Kind, batch: Batch, required: bool) -> Traced | None:
    """Do what `checked_trace` says with one batch."""
    of = (kind, problem.functions.loss, problem.functions.likelihood)
    key = "product", problem.layout.names, problem.dtype, problem.device, trees.shape(batch)
    known = problem.known.get(key, of)
    # A graph that was right for a batch at other weights is compared here on a few samples first, and later, as any
    # graph, on a few of each batch.
    for some in (some_of(batch, 4), batch) if isinstance(known, Stages) else ():
        if isinstance(found := _at_point(problem, kind, known, some, required), Traced):
            return found
    try:
        if isinstance(known, NotTraceableError):
            raise known
        with differentiable_attention():
            graph = by_trace(problem, kind, batch)
    except NotTraceableError as error:
        if not is_of_memory(error):  # which says nothing about the model
            problem.known.put(key, error.with_traceback(None), of)
        _refuse(f"the model cannot be traced ({error})", required)
        return None
    except Exception as error:  # tracing runs a user's model, which may fail in any way
        if is_of_memory(error):
            raise
        _refuse(f"the traced product fails ({one_line(error)})", required)
        return None
    found = _at_point(problem, kind, graph, batch, required)
    if not isinstance(found, Traced):
        _refuse(found, required)
        return None
    problem.known.put(key, graph, of)
    return found


def _at_point(problem: Problem, kind: Kind, graph: Stages, batch: Batch, required: bool) -> Traced | str:
    """Return a traced product if it agrees with backward passes on a batch, or the reason why it does not."""
    try:
        with differentiable_attention():
            linearized = graph.at((*problem.theta, *problem.fixed))
            bytes_per_sample = n_bytes(linearized.residuals(*batch)) / trees.size(batch)
    except Exception as error:  # a trace that fits no other batch size may fail in any way
        if is_of_memory(error):
            raise
        return f"the traced product fails ({one_line(error)})"
    return _disagreement(problem, kind, linearized, batch) or Traced(linearized, bytes_per_sample, required)


def _disagreement(problem: Problem, kind: Kind, linearized: Linearized, batch: Batch) -> str | None:
    """Say by how much the traced product of a batch differs from the product by backward passes; None if they agree."""
    layout = problem.layout
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(layout.size, generator=generator).to(problem.device, problem.dtype)
    v = _own(layout.tensors(flat / flat.norm()))
    try:
        ours = layout.flat(linearized.product(linearized.residuals(*batch), v))
    except Exception as error:  # as in _at_point
        if is_of_memory(error):
            raise
        return f"the traced product fails ({one_line(error)})"
    reference = layout.flat(by_reverse(problem, kind, batch, [v])[0])
    error_norm, norm = (ours - reference).norm().item(), reference.norm().item()
    # Rounding in float32 occasionally changes the sign of an activation, which changes a product by 1e-4.
    if not error_norm <= (1e-3 if problem.dtype == torch.float32 else 1e-9) * norm:
        return f"the traced product is off by {error_norm:.3g} of {norm:.3g}"
    return None


def _refuse(reason: str, required: bool) -> None:
    if required:
        raise InputError(
            f"{arg('backend', 'linearized')} cannot be used: {reason}; leave it out for plain reverse mode"
        )
    log.info("plain reverse mode is used, because %s", reason)
