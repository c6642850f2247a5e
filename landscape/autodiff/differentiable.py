"""A context in which models can be differentiated twice.

Some operations of PyTorch (2.13) have a wrong or missing derivative. Here they are replaced by other operations with
the same values and correct derivatives.

    attention           its fast kernels have no second derivative
    weight norm         its second derivative is off by its own size
    embedding           forward mode knows no padding, whose vector backward passes take for constant; gradients that
                        are scaled by a word's frequency are not those of the loss; sparse ones have no second
    bag of embeddings   no second derivative
    squared error       its gradient crashes in forward mode inside torch.func.functionalize
    recurrent networks  cuDNN's have no second derivative: they run without it
    log softmax, log sigmoid, cross-entropies
                        in float64, in which losses are computed, their derivatives are lost where a probability rounds
                        to 1 (softmax.py)

Layer norm, and instance and batch norm by their own statistics, have right second derivatives except by two forward
tangents; `twice_forward` replaces them there.

Checkpointing (`torch.utils.checkpoint`) runs parts of the model again in the backward pass. By then the model may have
other parameters, so checkpointing is switched off.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint
from torch.utils._pytree import tree_map_only

from landscape.autodiff import devices, softmax
from landscape.errors import InputError


@contextmanager
def differentiable_attention() -> Generator[None, None, None]:
    """Return a context for second derivatives: gradients are on; attention and others use plain operations.

    And in full precision, see `devices.full_precision`.

    Raises:
        InputError: inference mode is on, in which every derivative would be zero.
    """
    if torch.is_inference_mode_enabled():
        raise InputError("torch.inference_mode() records no gradients: leave it before the call")
    with (
        devices.full_precision(),
        torch.enable_grad(),
        sdpa_kernel(SDPBackend.MATH),
        _WrittenOut(_INSTEAD),
        patch.object(checkpoint, "_checkpoint_without_reentrant_generator", _twice, create=True),
        patch.object(checkpoint, "CheckpointFunction", _Called, create=True),
    ):
        yield


@contextmanager
def twice_forward() -> Generator[None, None, None]:
    """Return a context for second derivatives by two forward tangents, within `differentiable_attention`."""
    with _WrittenOut(_TWICE_FORWARD):
        yield


class _WrittenOut(TorchFunctionMode):
    def __init__(self, instead: Mapping[Callable[..., Any], Callable[..., Any]]) -> None:
        super().__init__()
        self._instead = instead

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self._instead.get(func, func)(*args, **(kwargs or {}))


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _embedding(input: Tensor, weight: Tensor, padding_idx: int | None = None, *args: Any, **options: Any) -> Tensor:
    if (args or (options.get("max_norm"),))[0] is not None:  # it changes the weight
        return F.embedding(input, weight, padding_idx, *args, **options)
    found = torch.embedding(weight, input)
    if padding_idx is None:
        return found
    return torch.where((input == padding_idx % len(weight))[..., None], found.detach(), found)


def _embedding_bag(input: Tensor, weight: Tensor, *args: Any, **options: Any) -> Any:
    rare = ("offsets", "max_norm", "per_sample_weights", "padding_idx")
    given = {
        **dict(zip(("offsets", "max_norm", "norm_type", "scale_grad_by_freq", "mode"), args, strict=False)),
        **options,
    }
    if input.ndim != 2 or len(args) > 5 or any(given.get(name) is not None for name in rare):
        return F.embedding_bag(input, weight, *args, **options)
    found, mode = torch.embedding(weight, input), given.get("mode", "mean")
    return found.max(1).values if mode == "max" else found.mean(1) if mode == "mean" else found.sum(1)


def _squared_error(input: Tensor, target: Tensor, *args: Any, **options: Any) -> Tensor:
    rare = [option for name, option in options.items() if name != "reduction"]
    if args or input.shape != target.shape or any(option is not None for option in rare):
        return F.mse_loss(input, target, *args, **options)
    return _reduced((input - target).square(), options)


def _log_softmax(input: Tensor, dim: int | None = None, *args: Any, **options: Any) -> Tensor:
    if dim is None or args or options.get("dtype") is not None:
        return F.log_softmax(input, dim, *args, **options)
    return softmax.log_softmax(input, dim)


def _cross_entropy(input: Tensor, target: Tensor, weight: Tensor | None = None, *args: Any, **options: Any) -> Tensor:
    rare = bool(args) or any(options.get(name) is not None for name in ("size_average", "reduce"))
    rare |= bool(options.get("label_smoothing"))  # no sample's smallest loss has a probability that rounds to 1
    soft = target.is_floating_point()
    if rare or input.dtype != torch.float64 or (soft and weight is not None):
        return F.cross_entropy(input, target, weight, *args, **options)
    if soft:
        return _reduced(softmax.cross_entropy(input, target), options)
    given = {name: options[name] for name in ("ignore_index", "reduction") if name in options}
    return F.nll_loss(softmax.log_softmax(input, 1 if input.ndim > 1 else 0), target, weight, **given)


def _binary_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, *args: Any, **options: Any
) -> Tensor:
    rare = bool(args) or any(options.get(name) is not None for name in ("size_average", "reduce"))
    if rare or input.dtype != torch.float64:
        return F.binary_cross_entropy_with_logits(input, target, weight, *args, **options)
    yes, no = target * softmax.log_sigmoid(input), (1 - target) * softmax.log_sigmoid(-input)
    positive = options.get("pos_weight")
    found = -(yes if positive is None else positive * yes) - no
    return _reduced(found if weight is None else found * weight, options)


def _reduced(values: Tensor, options: Mapping[str, Any]) -> Tensor:
    reduction = options.get("reduction", "mean")
    return values.mean() if reduction == "mean" else values.sum() if reduction == "sum" else values


def _without_cudnn(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with cuDNN switched off in its forward pass, which determines the backward pass."""

    def instead(*args: Any, **options: Any) -> Any:
        cudnn: Any = torch.backends.cudnn
        before = cudnn.enabled
        cudnn.enabled = False
        try:
            return function(*args, **options)
        finally:
            cudnn.enabled = before

    return instead


_INSTEAD: dict[Callable[..., Any], Callable[..., Any]] = {
    torch._weight_norm: _weight_norm,
    F.embedding: _embedding,
    F.embedding_bag: _embedding_bag,
    F.mse_loss: _squared_error,
    **dict.fromkeys((F.log_softmax, torch.log_softmax, Tensor.log_softmax, torch.special.log_softmax), _log_softmax),
    F.logsigmoid: softmax.log_sigmoid,
    F.cross_entropy: _cross_entropy,
    F.binary_cross_entropy_with_logits: _binary_cross_entropy,
    torch.lstm: _without_cudnn(torch.lstm),
    torch.gru: _without_cudnn(torch.gru),
    torch.rnn_tanh: _without_cudnn(torch.rnn_tanh),
    torch.rnn_relu: _without_cudnn(torch.rnn_relu),
}


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
    **__: Any,
) -> Tensor:
    found = _normalised(input, tuple(range(-len(normalized_shape), 0)), eps)
    found = found if weight is None else found * weight
    return found if bias is None else found + bias


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats or running_mean is not None:  # it changes the statistics
        return F.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    found, shape = _normalised(input, tuple(range(2, input.ndim)), eps), (-1, *[1] * (input.ndim - 2))
    found = found if weight is None else found * weight.view(shape)
    return found if bias is None else found + bias.view(shape)


def _normalised(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + eps)


def _instance_norm_of_torch(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    *_: Any,
    **__: Any,
) -> Tensor:
    return _instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


def _batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, *args: Any, **options: Any
) -> Any:
    names = ("weight", "bias", "training", "momentum", "eps")
    given: dict[str, Any] = {"weight": None, "bias": None, "training": False, "eps": 1e-5}
    given |= dict(zip(names, args, strict=False)) | options
    if not given["training"] or running_mean is not None:  # it changes the statistics
        return F.batch_norm(input, running_mean, running_var, *args, **options)
    found = _normalised(input, (0, *range(2, input.ndim)), given["eps"])
    weight, bias, shape = given["weight"], given["bias"], (-1, *[1] * (input.ndim - 2))
    found = found if weight is None else found * weight.view(shape)
    return found if bias is None else found + bias.view(shape)


_TWICE_FORWARD: dict[Callable[..., Any], Callable[..., Any]] = {
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.instance_norm: _instance_norm,
    torch.instance_norm: _instance_norm_of_torch,
    F.batch_norm: _batch_norm,
}


def _twice(*_: Any, **__: Any) -> Generator[None, None, None]:
    """Replace the actions of checkpointing before and after it calls a part of the model; do nothing."""
    yield


class _Called:
    """Replaces the autograd.Function of reentrant checkpointing."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return function(*args)


def allow_gradients(model: nn.Module) -> None:
    """Let a model compute gradients in its forward pass even if gradients are off; its outputs then have no graph.

    Args:
        model: the model, which is changed: it gets two hooks, which its copies have too.
    """
    before: list[bool] = []

    def enter(*_: Any) -> None:
        before.append(torch.is_grad_enabled())
        torch.set_grad_enabled(True)

    def leave(module: nn.Module, args: Any, output: Any) -> Any:
        enabled = before.pop()
        torch.set_grad_enabled(enabled)
        return output if enabled else tree_map_only(Tensor, Tensor.detach, output)

    model.register_forward_pre_hook(enter)
    model.register_forward_hook(leave, always_call=True)
