"""Numbers beyond the range of a dtype: which layer of a network is the first whose outputs are not finite, and why."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from landscape.autodiff import trees
from landscape.autodiff.trees import Tree
from landscape.errors import NumericalError, arg

LARGEST = 1e150
"""The largest number whose square can be added up in float64, as is done for norms, variances and errors."""


def refuse_huge(name: str, tensor: Tensor) -> None:
    """Refuse parameters whose squares overflow float64.

    Args:
        name: of the parameters.
        tensor: their values.

    Raises:
        NumericalError: a value is beyond `LARGEST`.
    """
    if tensor.dtype != torch.float64 or not tensor.numel():
        return  # the squares of all other numbers are finite in float64
    if (largest := float(tensor.abs().max())) > LARGEST:
        raise NumericalError(
            f"{name} has values up to {largest:.3g}: norms cannot be computed, since squares beyond {LARGEST:g} "
            "overflow float64; did the training diverge?"
        )


def remedy(dtype: torch.dtype) -> str:
    """Say what to do about numbers beyond the range of a dtype, for the end of a message."""
    return f"try {arg('dtype', 'float64')}" if dtype == torch.float32 else "did the training diverge?"


def explained(model: nn.Module, inputs: Tree, run: Callable[[], object], dtype: torch.dtype) -> str:
    """Say where the outputs of a network stop being finite, for a message about its loss.

    Args:
        model: the network.
        inputs: of some samples.
        run: evaluates the network on them.
        dtype: in which the network is evaluated.

    Returns:
        The first layer whose outputs are not finite, the largest numbers that enter it, and the remedy.
    """
    if not all(_finite(t) for t in trees.leaves(inputs)):
        return "the data have values that are not finite"
    seen = _Seen()
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                hook = module.register_forward_hook(partial(seen.see, name))
                stack.callback(hook.remove)
        with torch.no_grad():
            run()
    if seen.first is None:
        return f"all layers have finite outputs, up to {seen.largest:.3g}: look at the loss, or {remedy(dtype)}"
    return f"{seen.first}: {seen.remedy or remedy(dtype)}"


@dataclass(eq=False)
class _Seen:
    """What hooks have seen in one forward pass."""

    first: str | None = None  # a description of the first layer whose outputs are not finite
    remedy: str | None = None  # another one than that of an overflow
    largest: float = field(default=0.0)  # of all finite outputs

    def see(self, name: str, module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        """Look at the outputs of a layer; the layers within it have been seen before."""
        values = [t for t in trees.leaves(output) if t.is_floating_point()]
        if self.first is not None:
            return
        if all(_finite(t) for t in values):
            self.largest = max([self.largest, *(_size(t) for t in values)])
            return
        layer = f"{name or 'the network'} ({type(module).__name__})"
        entering = [t for t in trees.leaves(given) if t.is_floating_point()]
        if not all(_finite(t) for t in entering):
            self.first = f"the inputs of layer {layer} are not finite"
            return
        known = [f"inputs up to {max(map(_size, entering)):.3g}"] if entering else []
        own = [t for t in (*module.parameters(recurse=False), *module.buffers(recurse=False)) if t.is_floating_point()]
        known += [f"weights up to {max(map(_size, own)):.3g}"] if own else []
        self.first = f"the outputs of layer {layer} are the first that are not finite"
        self.first += f" ({' and '.join(known)})" if known else ""
        variance = getattr(module, "running_var", None)
        if isinstance(variance, Tensor) and bool((variance < 0).any()):
            self.remedy = f"it has a negative running variance, {float(variance.min()):.3g}; is the checkpoint damaged?"


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.detach().isfinite().all())


def _size(tensor: Tensor) -> float:
    return float(tensor.detach().abs().max()) if tensor.numel() else 0.0
