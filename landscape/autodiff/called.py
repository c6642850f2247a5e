"""A model as a function of its tensors, which leaves the model as it was."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor, func, nn


def functional_call(model: nn.Module, tensors: Mapping[str, Tensor], args: tuple[Any, ...]) -> Any:
    """Call a model with other parameters and buffers, as `torch.func.functional_call` does.

    That leaves the new tensors in a module that stands in several places of the model (torch 2.13): it is put right.

    Args:
        model: the model.
        tensors: parameters and buffers by name; what is shared has any one of its names.
        args: what the model is called with.

    Returns:
        What the model returns.
    """
    places = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    kept = [(m, dict(m._parameters), dict(m._buffers)) for m, count in places.items() if count > 1]
    try:
        return func.functional_call(model, dict(tensors), args)
    finally:
        for module, parameters, buffers in kept:
            module._parameters.update(parameters)
            module._buffers.update(buffers)
