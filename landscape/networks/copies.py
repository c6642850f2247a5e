"""Copies of the caller's network, without wrappers, on an analysis' device and in its dtype."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from landscape.errors import InputError, one_line


def copied(model: nn.Module) -> nn.Module:
    """Copy a model without the wrappers of DataParallel or torch.compile.

    Args:
        model: the caller's model; it is not changed.

    Returns:
        A copy of the network inside.

    Raises:
        InputError: it cannot be copied, or its weights have no values or complex values.
    """
    model = unwrapped(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("the parameters of a TorchScript module cannot vary: pass the original nn.Module")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise InputError(f"{name} of the model has no shape yet: pass a batch through it once")
        if tensor.is_meta:
            raise InputError(f"{name} of the model is on the meta device and has no values: load its weights first")
    for name, parameter in model.named_parameters():
        if parameter.is_complex():
            raise InputError(f"{name} of the model is complex: use real parameters for its real and imaginary parts")
    # A tensor that a forward pass has stored is not a leaf, and deepcopy accepts only leaves; old weight_norm stores
    # weights so.
    left = [t for m in model.modules() for t in vars(m).values() if isinstance(t, Tensor) and not t.is_leaf]
    try:
        return copy.deepcopy(model, {id(t): t.detach().clone() for t in left})
    except Exception as error:  # what a user's model holds may refuse in any way
        raise InputError(
            f"the model cannot be copied: {one_line(error)}; remove attributes that are not part of the network"
        ) from error


def alike(first: nn.Module, second: nn.Module) -> bool:
    """Say whether two networks are known to differ only in the values of their parameters and buffers.

    Args:
        first: a network.
        second: another network.

    Returns:
        Whether their modules are of the same classes with equal attributes; also False if this cannot be determined.
    """
    modules, others = dict(first.named_modules()), dict(second.named_modules())
    return modules.keys() == others.keys() and all(_same_but_tensors(m, others[name]) for name, m in modules.items())


_REGISTERED = {"_parameters", "_buffers", "_modules"}


def _same_but_tensors(first: nn.Module, second: nn.Module) -> bool:
    mine, theirs = ({k: v for k, v in vars(m).items() if k not in _REGISTERED} for m in (first, second))
    return (
        type(first) is type(second)
        and mine.keys() == theirs.keys()
        and all(_equal(v, theirs[k]) for k, v in mine.items())
    )


def _equal(first: Any, second: Any) -> bool:
    if type(first) is not type(second):
        return False
    try:
        if isinstance(first, Tensor):  # for torch.equal, 1.0 in float32 and in float64 are the same
            return first.dtype == second.dtype and first.device == second.device and torch.equal(first, second)
        return bool(first == second)
    except Exception:  # what a user's model holds may compare in any way
        return False


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside the wrappers of DataParallel or torch.compile."""
    while isinstance(inner := _inside(model), nn.Module):
        model = inner
    return model


def _inside(model: nn.Module) -> Any:
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return model.module
    return getattr(model, "_orig_mod", None)


def converted(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Move a model to a device, and convert its numbers to a real dtype or the complex dtype of the same precision."""

    def convert(t: Tensor) -> Tensor:
        wanted = dtype.to_complex() if t.is_complex() else dtype if t.is_floating_point() else t.dtype
        moved = t.to(device) if dtype == torch.float64 else t  # first: the device that it leaves may have no float64
        return moved.to(device, wanted)

    model._apply(convert)  # type: ignore[no-untyped-call]  # as Module.to does, which drops imaginary parts
    return model
