"""Gradients of single samples and of groups of samples from one backward pass.

While the network runs, each module that owns parameters is watched: its input x and, on the way back, the gradient d of
its output. Of these follows the gradient of its parameters for any choice of samples; for a convolution and one sample
it is d^T x over unfolded patches. Only the gradients of activations go through autograd, so nothing is done twice. It
holds where samples do not meet: batch norm in eval mode, or with its statistics taken as constants.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight
from torch.nn.modules.batchnorm import _BatchNorm

from landscape.errors import InputError

MOST_NUMBERS = 2**25
"""Entries of the largest temporary of a squared gradient; more samples are taken in pieces."""

Losses = Callable[[], Tensor]
"""Runs the model on a batch; returns one number for each sample, (B,)."""


@dataclass(frozen=True)
class _Layer:
    """What one module saw."""

    module: nn.Module
    name: str
    parameters: dict[str, Tensor]  # its own trainable ones
    x: Tensor  # (B, ...)
    version: int  # of x, which an operation in place would raise
    statistics: tuple[Tensor, Tensor] | None  # mean and variance by which batch norm divided


def group_gradients(model: nn.Module, losses: Losses, groups: Tensor, n_groups: int) -> tuple[Tensor, Tensor]:
    """Return the gradient of each group's mean loss.

    Args:
        model: whose trainable parameters count, D in all; it is left as it was.
        losses: runs it on a batch of B samples that do not influence each other.
        groups: of each sample, (B,) integers from 0 to n_groups - 1.
        n_groups: G.

    Returns:
        The losses (B,) without their graph, and the gradients (G, D) in the order of `model.named_parameters()`; zero
        for a group that the batch has not.

    Raises:
        InputError: the model is built so that its gradients cannot be told apart.
    """
    counts = torch.bincount(groups, minlength=n_groups)
    weights = (1 / counts.clamp(min=1).double())[groups]
    rows: dict[str, Tensor] = {}

    def add(layer: _Layer, d: Tensor) -> None:
        for name, p in layer.parameters.items():
            rows[name] = torch.zeros(n_groups, *p.shape, dtype=p.dtype, device=p.device)
        for g in counts.nonzero().flatten().tolist():
            here = (groups == g).nonzero().flatten()
            for name, gradient in _gradients(layer, here, d[here]).items():
                rows[name][g] = gradient

    values = _backward(model, losses, weights, add)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    return values, torch.cat([rows[name].reshape(n_groups, -1) for name in names], dim=1)


def squared_gradients(model: nn.Module, losses: Losses) -> dict[str, Tensor]:
    """Return the sum over samples of the squared gradient of each sample's loss.

    Args:
        model: whose trainable parameters count; it is left as it was.
        losses: runs it on a batch of B samples that do not influence each other.

    Returns:
        For each trainable parameter a tensor of its shape.

    Raises:
        InputError: the model is built so that its gradients cannot be told apart.
    """
    sums: dict[str, Tensor] = {}

    def add(layer: _Layer, d: Tensor) -> None:
        sums.update(_squares(layer, d))

    _backward(model, losses, None, add)
    return sums


def check(model: nn.Module, losses: Losses) -> None:
    """Compare the batch's gradient, as it is put together here, with autograd's.

    A parameter that is used past its module, as `F.linear(x, other.weight)` does, is seen by nothing else.

    Args:
        model: whose trainable parameters count; it is left as it was.
        losses: runs it on a batch.

    Raises:
        InputError: the two differ.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    values = losses()
    expected = torch.autograd.grad(values.mean(), parameters, materialize_grads=True)
    _, (found,) = group_gradients(model, losses, torch.zeros(len(values), dtype=torch.int64, device=values.device), 1)
    whole = torch.cat([g.reshape(-1) for g in expected])
    if (found - whole).norm() > torch.finfo(whole.dtype).eps ** 0.5 * whole.norm():
        raise InputError("a parameter of the model is used outside of its module: its gradients cannot be told apart")


@contextmanager
def batch_statistics_constant(model: nn.Module) -> Generator[None, None, None]:
    """Let batch norm in training mode normalise by the batch, but take its mean and variance as constants.

    The running statistics are updated as ever. Samples are then independent, and gradients those of another function:
    how the statistics change with the parameters is left out.

    Args:
        model: whose batch norm it is.

    Yields:
        Nothing.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    try:
        for m in norms:
            m.forward = _constant_forward(m)  # type: ignore[method-assign, assignment]  # of this one, for a while
        yield
    finally:
        for m in norms:
            del m.forward


def _constant_forward(m: _BatchNorm) -> Callable[[Tensor], Tensor]:
    usual = type(m).forward

    def forward(x: Tensor) -> Tensor:
        if not m.training:
            return usual(m, x)
        with torch.no_grad():
            usual(m, x)  # for the running statistics
            mean, var = _moments(x)
        return F.batch_norm(x, mean, var, m.weight, m.bias, training=False, eps=m.eps)

    return forward


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    axes = [0, *range(2, x.ndim)]
    var, mean = torch.var_mean(x, axes, correction=0)
    return mean, var


def _backward(
    model: nn.Module, losses: Losses, weights: Tensor | None, add: Callable[[_Layer, Tensor], None]
) -> Tensor:
    """Run forwards and backwards; hand each layer over with the gradient of its output as soon as that is known."""
    layers: dict[nn.Module, _Layer] = {}
    done: set[nn.Module] = set()
    owners = _owners(model)
    watching = True

    def back(module: nn.Module, d: Tensor) -> None:
        layer = layers[module]
        if layer.x._version != layer.version:
            raise InputError(f"the input of {layer.name} is changed in place: its gradients cannot be told apart")
        nonlocal watching
        watching = False  # a layer may be run once more to find its gradients
        with torch.enable_grad():
            add(layer, d)
        watching = True
        done.add(module)

    def seen(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if not watching:
            return None
        name, parameters = owners[module]
        if module in layers:
            raise InputError(f"{name} is used twice in a forward pass: its gradients cannot be told apart")
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or not isinstance(output, Tensor):
            raise InputError(f"{name} does not map one tensor to one: its gradients cannot be told apart")
        x = inputs[0].detach()
        statistics = None
        if isinstance(module, _BatchNorm):
            own = (module.running_mean, module.running_var)
            statistics = _moments(x) if module.training or own[0] is None else own
        layers[module] = _Layer(module, name, parameters, x, x._version, statistics)  # type: ignore[arg-type]
        if not output.requires_grad:
            output = output.detach().requires_grad_().clone()  # the graph of activations begins here
        output.register_hook(lambda d: back(module, d.detach()))
        return output

    trainable = [p for _, parameters in owners.values() for p in parameters.values()]
    with ExitStack() as stack:
        for module in owners:
            stack.callback(module.register_forward_hook(seen).remove)
        stack.callback(lambda: [p.requires_grad_(True) for p in trainable])
        for p in trainable:
            p.requires_grad_(False)
        with torch.enable_grad():
            values = losses()
        ones = torch.ones_like(values) if weights is None else weights.to(values)
        if not values.requires_grad:
            raise InputError("the loss does not depend on the model's parameters through its modules")
        torch.autograd.backward(values, ones)
    for module, (name, _) in owners.items():
        if module not in done:
            raise InputError(f"no gradient reaches {name}: is it called in the forward pass?")
    return values.detach()


def _owners(model: nn.Module) -> dict[nn.Module, tuple[str, dict[str, Tensor]]]:
    """Return the modules that own trainable parameters, with their names and these parameters by their full names."""
    names = {id(p): name for name, p in model.named_parameters()}
    owners: dict[nn.Module, tuple[str, dict[str, Tensor]]] = {}
    taken: set[int] = set()
    for prefix, module in model.named_modules():
        own = {names[id(p)]: p for p in module._parameters.values() if p is not None and p.requires_grad}
        for name, p in own.items():
            if id(p) in taken:
                raise InputError(f"{name} is shared by two modules: its gradients cannot be told apart")
            taken.add(id(p))
        if own:
            owners[module] = prefix or type(module).__name__, own
    return owners


def _gradients(layer: _Layer, here: Tensor, d: Tensor) -> dict[str, Tensor]:
    """Return the gradient of a layer's parameters for some samples together."""
    module, x = layer.module, layer.x[here]
    local = {name.rpartition(".")[2]: name for name in layer.parameters}
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        if isinstance(module, nn.Conv2d) and _plain_convolution(module):
            found["weight"] = conv2d_weight(  # type: ignore[no-untyped-call]
                x, module.weight.shape, d, module.stride, module.padding, module.dilation, module.groups
            )
            found["bias"] = d.sum((0, 2, 3))
        elif isinstance(module, nn.Linear):
            found["weight"] = d.flatten(0, -2).T @ x.flatten(0, -2)
            found["bias"] = d.flatten(0, -2).sum(0)
        elif isinstance(module, _BatchNorm):
            axes = [0, *range(2, d.ndim)]
            found["weight"], found["bias"] = (d * _normalised(layer, x)).sum(axes), d.sum(axes)
    if not found:
        return dict(zip(layer.parameters, _pulled(layer, x, d), strict=True))
    return {full: found[name] for name, full in local.items()}


def _squares(layer: _Layer, d: Tensor) -> dict[str, Tensor]:
    """Return the sum over samples of the squared gradients of a layer's parameters."""
    module, x = layer.module, layer.x
    local = {name.rpartition(".")[2]: name for name in layer.parameters}
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        if isinstance(module, nn.Conv2d) and _plain_convolution(module) and module.groups == 1:
            found["weight"] = _squared_convolution(module, x, d).view_as(module.weight)
            found["bias"] = d.sum((2, 3)).square().sum(0)
        elif isinstance(module, nn.Linear) and d.ndim == 2:
            found["weight"] = d.square().T @ x.square()
            found["bias"] = d.square().sum(0)
        elif isinstance(module, _BatchNorm):
            space = list(range(2, d.ndim))
            scaled = d * _normalised(layer, x)
            found["weight"] = (scaled.sum(space) if space else scaled).square().sum(0)
            found["bias"] = (d.sum(space) if space else d).square().sum(0)
    if found:
        return {full: found[name] for name, full in local.items()}

    def one(x: Tensor, d: Tensor) -> tuple[Tensor, ...]:
        return _pulled(layer, x[None], d[None])

    return {name: g.square().sum(0) for name, g in zip(layer.parameters, vmap(one, chunk_size=32)(x, d), strict=True)}


def _squared_convolution(module: nn.Conv2d, x: Tensor, d: Tensor) -> Tensor:
    """Return the sum over samples of (d_i^T x_i)^2, with x_i unfolded to (patch entries, positions)."""
    per_sample = x.shape[1] * module.weight[0, 0].numel() * d[0, 0].numel()
    total = torch.zeros(module.out_channels, module.weight[0].numel(), dtype=x.dtype, device=x.device)
    for xs, ds in zip(*(torch.split(t, max(1, MOST_NUMBERS // per_sample)) for t in (x, d)), strict=True):
        patches = F.unfold(xs, module.kernel_size, module.dilation, module.padding, module.stride)  # type: ignore[arg-type]
        total += torch.bmm(ds.flatten(2), patches.mT).square().sum(0)
    return total


def _pulled(layer: _Layer, x: Tensor, d: Tensor) -> tuple[Tensor, ...]:
    """Return the gradient of a layer's own parameters by running it again."""
    names = [name.rpartition(".")[2] for name in layer.parameters]

    def run(values: Sequence[Tensor]) -> Tensor:
        output: Tensor = functional_call(layer.module, dict(zip(names, values, strict=True)), (x,))
        return output

    found: tuple[Tensor, ...] = vjp(run, tuple(p.detach() for p in layer.parameters.values()))[1](d)[0]
    return found


def _plain_convolution(module: nn.Conv2d) -> bool:
    return module.padding_mode == "zeros" and not isinstance(module.padding, str)


def _normalised(layer: _Layer, x: Tensor) -> Tensor:
    mean, var = (t.view(1, -1, *[1] * (x.ndim - 2)) for t in layer.statistics or ())
    eps: Any = layer.module.eps
    return (x - mean) * torch.rsqrt(var + eps)
