"""Curvature matrices of an objective as maps on vectors: Hessian, generalised Gauss-Newton, Fisher.

With l_i the loss of sample i, z_i(theta) its logits, J_i their Jacobian and n the samples of the part:

    hessian            H = 1/n sum  d^2 l_i / d theta^2
    ggn                G = 1/n sum  J_i^T (d^2 l_i / d z^2) J_i
    fisher             F = 1/n sum  J_i^T (diag(p_i) - p_i p_i^T) J_i,  p_i = softmax(z_i): labels drawn from it
    empirical-fisher   E = 1/n sum  g_i g_i^T,   g_i = d l_i / d theta:  labels as they are

For the cross-entropy G = F. Weight decay adds its multiple of the identity to H, G and F. Sources: Martens 2020, "New
insights and perspectives on the natural gradient method"; Kunstner et al. 2019 on the empirical Fisher's limits.

Two ways to one product: plain reverse mode (any model; the reference), and a traced, linearised graph whose parts that
do not depend on the vector are kept (linearize.py). The second is compared with the first on one batch before use.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp

from landscape.autodiff import devices
from landscape.autodiff.linearize import Linearized, linearize, n_bytes
from landscape.autodiff.tracing import TRACE_SIZES, NotTraceableError
from landscape.errors import InputError, NumericalError, arg, check_choice
from landscape.objective.objective import Objective, differentiable_attention

log = logging.getLogger(__name__)

KINDS = ("hessian", "ggn", "fisher", "empirical-fisher")
BACKENDS = ("auto", "reverse", "linearized")
CACHE_BYTES = 2 * 2**30
"""Default memory for what is kept between products."""

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Operator:
    """A symmetric matrix for each of P parts, known by its products with blocks of vectors."""

    matvec: Callable[[Tensor], Tensor]  # (P, K, D) -> (P, K, D)
    parts: tuple[str, ...]
    size: int  # D
    dtype: torch.dtype
    device: torch.device
    restrict: Callable[[Sequence[int]], "Operator"]  # the same matrices for some of the parts
    cached: bool = True  # a product costs the same alone as in a block, since all that can be kept is kept


def matrix(matrices: Tensor) -> Operator:
    """Wrap explicit matrices, for tests and for spectra of something else.

    Args:
        matrices: (P, D, D) symmetric.

    Returns:
        The operator V -> A V for each part.

    Raises:
        InputError: the shape is not (P, D, D).
    """
    if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2]:
        raise InputError(f"matrices must have shape (P, D, D), got {tuple(matrices.shape)}")
    return Operator(
        matvec=lambda V: V @ matrices.mT,
        parts=tuple(str(p) for p in range(len(matrices))),
        size=matrices.shape[1],
        dtype=matrices.dtype,
        device=matrices.device,
        restrict=lambda parts: matrix(matrices[list(parts)]),
    )


def curvature_operator(
    objective: Objective, kind: str = "hessian", *, backend: str = "auto", cache_bytes: int = CACHE_BYTES
) -> Operator:
    """Return one of the matrices above for every part of an objective.

    Args:
        objective: model, loss and data in parts.
        kind: "hessian", "ggn", "fisher" or "empirical-fisher".
        backend: "reverse" for plain reverse mode, "linearized" for the traced graph, "auto" for the latter where it
            can be had and agrees with the former.
        cache_bytes: memory for what is kept between products; beyond it, it is computed anew at every product.

    Returns:
        The operator; its products are exact up to rounding.

    Raises:
        InputError: an unknown kind or backend, or "linearized" for a model that cannot be traced.
        NumericalError: the loss has no second derivative, or a product is not finite.
    """
    check_choice("operator", kind, KINDS)
    check_choice("backend", backend, BACKENDS)
    traced = None if backend == "reverse" else _traced(objective, kind, required=backend == "linearized")
    return _operator(objective, kind, tuple(range(len(objective.partition))), traced, cache_bytes)


def hessian(objective: Objective) -> Operator:
    """Return the Hessian of each part's mean loss, as `curvature_operator(objective, "hessian")`."""
    return curvature_operator(objective, "hessian")


def ggn(objective: Objective) -> Operator:
    """Return the generalised Gauss-Newton matrix of each part, as `curvature_operator(objective, "ggn")`."""
    return curvature_operator(objective, "ggn")


def fisher(objective: Objective, *, empirical: bool = False) -> Operator:
    """Return the Fisher matrix of each part, with labels drawn from the model or as they are (`empirical`)."""
    return curvature_operator(objective, "empirical-fisher" if empirical else "fisher")


@dataclass(frozen=True)
class _Traced:
    linearized: Linearized
    bytes_per_sample: float


def _operator(
    objective: Objective, kind: str, parts: tuple[int, ...], traced: _Traced | None, cache_bytes: int
) -> Operator:
    layout = objective.layout
    cache: dict[tuple[int, int], tuple[object, ...]] = {}
    used = 0

    def residuals(part: int, number: int, graph: Linearized) -> Sequence[object]:
        nonlocal used
        if (part, number) in cache:
            return cache[part, number]
        found = graph.residuals(*objective.batch(part, number))
        size = n_bytes(found)
        if used + size <= cache_bytes:
            used += size
            cache[part, number] = found
        return found

    @devices.full_precision()
    def matvec(V: Tensor) -> Tensor:
        if V.ndim != 3 or V.shape[0] != len(parts) or V.shape[2] != layout.size:
            raise InputError(
                f"vectors must have shape (parts, block, parameters) = ({len(parts)}, K, {layout.size}), "
                f"got {tuple(V.shape)}"
            )
        out = torch.zeros_like(V)
        for row, part in enumerate(parts):
            tangents = [layout.tensors(v) for v in V[row]]
            for number in range(objective.n_batches(part)):
                if traced is None:
                    products = _reverse(objective, kind, objective.batch(part, number), tangents)
                else:
                    kept = residuals(part, number, traced.linearized)
                    products = [traced.linearized.product(kept, t) for t in tangents]
                for k, product in enumerate(products):
                    for total, piece in zip(layout.tensors(out[row, k]), product, strict=True):
                        total += piece
            out[row] /= int(objective.counts[part])
        if not torch.isfinite(out).all():
            names = ", ".join(objective.partition.names[p] for p in parts)
            raise NumericalError(f"a product with the {kind} of {names} is not finite: try {arg('dtype', 'float64')}")
        if objective.weight_decay and kind != "empirical-fisher":
            out += objective.weight_decay * V
        return out

    n_samples = sum(len(objective.members[p]) for p in parts)
    return Operator(
        matvec=matvec,
        parts=tuple(objective.partition.names[p] for p in parts),
        size=layout.size,
        dtype=objective.dtype,
        device=objective.device,
        restrict=lambda some: _operator(objective, kind, tuple(parts[p] for p in some), traced, cache_bytes),
        cached=traced is not None and traced.bytes_per_sample * n_samples <= cache_bytes,
    )


def _product(objective: Objective, kind: str) -> Callable[[Tensors, Tensor, Tensor, Tensors], Tensors]:
    """Return the product of one batch in forward-over-reverse form, for tracing."""

    def total(theta: Tensors, inputs: Tensor, labels: Tensor) -> Tensor:
        return objective.losses(theta, inputs, labels).sum()

    def hessian_product(theta: Tensors, inputs: Tensor, labels: Tensor, v: Tensors) -> Tensors:
        found: Tensors = jvp(lambda t: grad(total)(t, inputs, labels), (theta,), (v,))[1]
        return found

    def factored_product(theta: Tensors, inputs: Tensor, labels: Tensor, v: Tensors) -> Tensors:
        def outputs(t: Tensors) -> Tensor:
            return _outputs(objective, kind, t, inputs, labels)

        def summed(z: Tensor) -> Tensor:
            return objective.loss(z, labels).sum()

        value: Tensor
        tangent: Tensor
        value, tangent = jvp(outputs, (theta,), (v,))[:2]
        middle = jvp(grad(summed), (value,), (tangent,))[1] if kind == "ggn" else _middle(kind, value, tangent)
        pulled: Tensors = vjp(outputs, theta)[1](middle)[0]
        return pulled

    return hessian_product if kind == "hessian" else factored_product


def _outputs(objective: Objective, kind: str, theta: Tensors, inputs: Tensor, labels: Tensor) -> Tensor:
    if kind == "empirical-fisher":
        return objective.losses(theta, inputs, labels)
    return objective.logits(theta, inputs)


def _middle(kind: str, value: Tensor, tangent: Tensor) -> Tensor:
    """Multiply by the matrix between J^T and J of the two Fisher matrices."""
    if kind == "empirical-fisher":
        return tangent
    p = value.softmax(dim=1)
    return p * (tangent - (p * tangent).sum(dim=1, keepdim=True))


def _reverse(objective: Objective, kind: str, batch: tuple[Tensor, Tensor], tangents: list[Tensors]) -> list[Tensors]:
    """Return the products of one batch by reverse mode alone; J v is the derivative of u -> J^T u along v."""
    inputs, labels = batch
    theta = tuple(t.detach().requires_grad_() for t in objective.theta)
    with differentiable_attention():
        if kind == "hessian":
            return _second(objective.losses(theta, inputs, labels), theta, tangents)
        value = _outputs(objective, kind, theta, inputs, labels)
        probe = torch.zeros_like(value, requires_grad=True)
        pulled = _pull(value, theta, probe, create_graph=True)
        products = []
        for v in tangents:
            (tangent,) = _pull(pulled, (probe,), v)
            if kind == "ggn":
                z = value.detach().requires_grad_()
                tangent = _second(objective.loss(z, labels), (z,), [(tangent,)])[0][0]
            else:
                tangent = _middle(kind, value.detach(), tangent)
            products.append(_pull(value, theta, tangent))
        return products


def _second(losses: Tensor, at: Tensors, tangents: list[Tensors]) -> list[Tensors]:
    """Return the second derivative of the summed losses times each vector."""
    # Weights that require a gradient hand one to every backward function. For a constant cotangent an
    # autograd.Function that is marked once_differentiable leaves no trace at all, see _refuse_lost_derivatives.
    weights = torch.ones_like(losses, requires_grad=True)
    slopes = _pull(losses @ weights, at, None, create_graph=True)
    _refuse_lost_derivatives(slopes)
    return [_pull(slopes, at, v) for v in tangents]


def _refuse_lost_derivatives(slopes: Tensors) -> None:
    """Look for derivatives that PyTorch would take for constants in the second pass: a wrong product and no error."""
    nodes = [slope.grad_fn for slope in slopes if slope.grad_fn is not None]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if node.name().endswith("Error"):  # DelayedError, as PyTorch names it in a graph
            raise NumericalError(
                "the model or the loss uses an autograd.Function marked once_differentiable: it has no second "
                f"derivative; {arg('operator', 'empirical-fisher')} needs only the first"
            )
        new = {n for n, _ in node.next_functions if n is not None} - seen
        seen |= new
        nodes.extend(new)


def _pull(
    outputs: Tensor | Tensors, inputs: Tensors, cotangents: Tensor | Tensors | None, *, create_graph: bool = False
) -> Tensors:
    """Return J^T u, zero where an output does not depend on an input; the graph is kept for the next vector."""
    values = (outputs,) if isinstance(outputs, Tensor) else outputs
    given = (cotangents,) if cotangents is None or isinstance(cotangents, Tensor) else cotangents
    pairs = [(o, c) for o, c in zip(values, given, strict=True) if o.requires_grad]
    if not pairs:
        return tuple(torch.zeros_like(t) for t in inputs)
    try:
        found = torch.autograd.grad(
            [o for o, _ in pairs],
            inputs,
            grad_outputs=[c for _, c in pairs],
            retain_graph=True,
            create_graph=create_graph,
            materialize_grads=True,
        )
    except RuntimeError as error:
        raise NumericalError(
            "the model or the loss has no second derivative that PyTorch knows: "
            f"{str(error).splitlines()[0]}; {arg('operator', 'empirical-fisher')} needs only the first"
        ) from error
    return found


def _traced(objective: Objective, kind: str, *, required: bool) -> _Traced | None:
    """Trace the product and compare it with reverse mode on one batch; say why where it cannot be used."""
    batch = objective.batch(0, 0)
    if len(batch[1]) in TRACE_SIZES:  # what a trace takes for constant shows at another size only
        batch = (batch[0][:-1], batch[1][:-1])
    try:
        with differentiable_attention():
            linearized = linearize(_product(objective, kind), objective.theta, *batch)
            residuals = linearized.residuals(*batch)
            generator = torch.Generator().manual_seed(0)
            flat = torch.randn(objective.layout.size, generator=generator).to(objective.device, objective.dtype)
            v = objective.layout.tensors(flat / flat.norm())
            ours = objective.layout.flat(linearized.product(residuals, v))
            bytes_per_sample = n_bytes(residuals) / len(batch[1])
            del residuals  # before the graph of the reference takes its own memory
    except NotTraceableError as error:
        _refuse(f"the model cannot be traced ({error})", required)
        return None
    except Exception as error:  # a trace that fits no other batch size may fail in any way
        _refuse(f"the traced product fails ({(str(error).splitlines() or [''])[0]})", required)
        return None
    reference = objective.layout.flat(_reverse(objective, kind, batch, [v])[0])
    error_norm, norm = (ours - reference).norm().item(), reference.norm().item()
    # Rounding of float32 flips the sign of an activation now and then, which is worth 1e-4 of a product.
    if error_norm > (1e-3 if objective.dtype == torch.float32 else 1e-9) * norm:
        _refuse(f"the traced product is off by {error_norm:.3g} of {norm:.3g}", required)
        return None
    return _Traced(linearized, bytes_per_sample)


def _refuse(reason: str, required: bool) -> None:
    if required:
        raise InputError(
            f"{arg('backend', 'linearized')} cannot be used: {reason}; leave it out for plain reverse mode"
        )
    log.info("plain reverse mode is used, because %s", reason)
