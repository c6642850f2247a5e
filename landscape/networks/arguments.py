"""Which inputs a model takes, by its signature."""

import inspect

from torch import nn

from landscape.autodiff.trees import Tree


def arguments(model: nn.Module, inputs: Tree) -> tuple[tuple[str, ...] | None, bool]:
    """Find out how a model is called with the inputs of a batch.

    A dict is given by keyword where the model has such arguments, or takes any; a tuple one after the other where the
    model has so many. What fits in neither way is given as one argument.

    Args:
        model: any.
        inputs: of a batch: a tensor, or a tuple or a dict of them.

    Returns:
        The names of a dict that the model takes, None for all; and whether all is one argument.
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
