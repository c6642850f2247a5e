"""A model as a function of its tensors, or in eval mode; the model itself is not changed."""

from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, func, nn

from landscape.autodiff.trees import Tree


def call(model: Callable[..., Any], inputs: Tree) -> Any:
    """Call a model with the inputs of a batch: a dict by keyword, a tuple one after the other, or a tensor."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def first_of(args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """Return the first argument of a call, by position or by name; None without arguments."""
    return next(iter((*args, *named.values())), None)


@contextmanager
def evaluating(model: nn.Module) -> Generator[None, None, None]:
    """Put a model into eval mode inside the block; afterwards each of its modules has its own mode again.

    Args:
        model: modules of it may have other modes than the model, such as batch norm that is frozen.

    Yields:
        Nothing.
    """
    modes = {m: m.training for m in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for m, mode in modes.items():
            m.training = mode


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
