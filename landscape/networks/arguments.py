"""The inputs that a model accepts, by its signature."""

import inspect

from torch import nn

from landscape.autodiff.trees import Tree


def arguments(model: nn.Module, inputs: Tree) -> tuple[tuple[str, ...] | None, bool]:
    """Find out how a model is called with the inputs of a batch.

    The entries of a dict are passed by keyword if the model has such arguments, or accepts any; the elements of a tuple
    are passed as positional arguments if the model has that many. All other inputs are passed as one argument.

    Args:
        model: any model.
        inputs: inputs of a batch: a tensor, or a tuple or a dict of tensors.

    Returns:
        The names of the entries that the model accepts, None for all; and whether the inputs are passed as one
        argument.
    """
    if not isinstance(inputs, dict | tuple):
        return None, False
    parameters = list(inspect.signature(model.forward).parameters.values())
    named = [p.name for p in parameters if p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}]
    if isinstance(inputs, tuple):
        places = [p for p in parameters if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}]
        fits = len(places) >= len(inputs) or any(p.kind is p.VAR_POSITIONAL for p in parameters)
        return None, not fits
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None, False
    taken = tuple(name for name in inputs if name in named)
    return (taken, False) if taken else (None, True)
