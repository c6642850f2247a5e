"""A model as a function of its tensors; the model itself is not changed."""

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

    If a module occurs several times in the model, that function leaves the new tensors in it (torch 2.13); this one
    does not.

    Args:
        model: the model.
        tensors: parameters and buffers by name; what is shared has any one of its names.
        inputs: inputs of the model, see `call`.

    Returns:
        The model's output.
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
