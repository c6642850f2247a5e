"""A context in which models can be differentiated twice."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from landscape.autodiff import devices


@contextmanager
def differentiable_attention() -> Generator[None, None, None]:
    """Return a context for second derivatives: gradients are on, attention and weight norm use plain operations.

    And in full precision, see `devices.full_precision`.
    """
    with devices.full_precision(), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), _PlainWeightNorm():
        yield


class _PlainWeightNorm(TorchFunctionMode):
    """Write weight norm out: PyTorch's own operation has a wrong second derivative (torch 2.13: off by its size)."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch._weight_norm:
            return _weight_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))
