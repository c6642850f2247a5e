"""A model as a function of its tensors, which leaves the model as it was."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, func, nn

from landscape.autodiff.trees import Tree


def call(model: Callable[..., Any], inputs: Tree) -> Any:
    """Call a model with the inputs of a batch: a dict by keyword, a tuple one after the other, or a tensor."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def functional_call(model: nn.Module, tensors: Mapping[str, Tensor], inputs: Tree) -> Any:
    """Call a model with other parameters and buffers, as `torch.func.functional_call` does.

    That leaves the new tensors in a module that stands in several places of the model (torch 2.13): it is put right.

    Args:
        model: the model.
        tensors: parameters and buffers by name; what is shared has any one of its names.
        inputs: what the model is called with, see `call`.

    Returns:
        What the model returns.
    """
    places = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    kept = [(m, dict(m._parameters), dict(m._buffers)) for m, count in places.items() if count > 1]
    try:
        if isinstance(inputs, dict):
            return func.functional_call(model, dict(tensors), (), inputs)
        return func.functional_call(model, dict(tensors), inputs if isinstance(inputs, tuple) else (inputs,))
    finally:
        for module, parameters, buffers in kept:
            module._parameters.update(parameters)
            module._buffers.update(buffers)
