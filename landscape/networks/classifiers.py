"""The classifier at the end of a network, and its input, the features.

A network is divided into the encoder, which computes features, and the classifier, the last linear layer, which
computes logits from them. This works for any network: its calls are observed by hooks, and it is not changed.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from landscape.autodiff.called import first_of
from landscape.errors import InputError
from landscape.networks.models import NormedLinear

log = logging.getLogger(__name__)


def find(model: nn.Module, n_classes: int, run: Callable[[], Tensor] | None = None) -> str:
    """Return the name of a network's classifier: the linear layer with C outputs that gives the logits.

    Args:
        model: any network.
        n_classes: C.
        run: runs the network on a few samples and returns the logits, (B, C). It is called if several layers have C
            outputs: the classifier is the one whose output the logits are, or the one called last, which a warning then
            names. Without it, it is the one that was registered last.

    Returns:
        The module's name in `model.named_modules()`.

    Raises:
        InputError: no linear layer has C outputs, or none of them is called.
    """
    outputs: dict[str, int] = {
        name: module.weight.shape[1] if isinstance(module, NormedLinear) else module.out_features
        for name, module in model.named_modules()
        if isinstance(module, NormedLinear | nn.Linear)
    }
    fitting = [name for name, n in outputs.items() if n == n_classes]
    if not fitting:
        found = ", ".join(f"{name} with {n}" for name, n in outputs.items()) or "none"
        raise InputError(
            f"the model has no classifier, a linear layer with {n_classes} outputs, one for each class "
            f"(linear layers: {found}): end it with nn.Linear(features, {n_classes})"
        )
    return fitting[-1] if run is None or len(fitting) == 1 else _observed(model, fitting, run)


def _observed(model: nn.Module, fitting: Sequence[str], run: Callable[[], Tensor]) -> str:
    """Return the layer whose output the logits are, or the one that was called last."""
    outputs: dict[str, Tensor] = {}  # in the order of their last calls

    def keep(_: nn.Module, __: Any, output: Tensor, *, name: str) -> None:
        outputs.pop(name, None)
        outputs[name] = output.detach()

    handles = [model.get_submodule(name).register_forward_hook(partial(keep, name=name)) for name in fitting]
    try:
        with torch.no_grad():
            logits = run()
    finally:
        for handle in handles:
            handle.remove()
    if not outputs:
        raise InputError(f"no linear layer with as many outputs as classes is called ({', '.join(fitting)})")
    equal = [name for name, z in outputs.items() if z.shape == logits.shape and torch.equal(z.to(logits), logits)]
    if equal:
        return equal[-1]
    last = list(outputs)[-1]
    log.warning(
        "of %s none gives the logits as they are: %s, which is called last, is taken as the classifier",
        ", ".join(fitting), last,
    )  # fmt: skip
    return last


def described(model: nn.Module, n_classes: int) -> str | None:
    """Describe the classifier of a network, for comparison with another one.

    Args:
        model: any network.
        n_classes: C.

    Returns:
        "linear", or "cosine, scale 30"; None if none is found.
    """
    try:
        module = model.get_submodule(find(model, n_classes))
    except InputError:
        return None
    return f"cosine, scale {module.scale:g}" if isinstance(module, NormedLinear) else "linear"


def encoder(model: nn.Module, classifier: str) -> list[str]:
    """Name the trainable parameters before the classifier.

    Args:
        model: any network.
        classifier: what `find` returned.

    Returns:
        Names, in the order of `model.named_parameters()`.
    """
    inside = {id(p) for p in model.get_submodule(classifier).parameters()}
    return [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in inside]


def class_weights(model: nn.Module, classifier: str) -> Tensor:
    """Return the classifier's weight vectors, a row for each class.

    Args:
        model: any network.
        classifier: what `find` returned.

    Returns:
        (C, F); gradients flow through it.
    """
    module = model.get_submodule(classifier)
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm | SpectralNorm):  # of the older kind, which sets the weight before each call
            hook(module, None)
    weight: Any = module.weight  # which parametrizations compute
    rows: Tensor = weight.T if isinstance(module, NormedLinear) else weight
    return rows


class Tap:
    """Keeps the input of the classifier when the network runs inside a `with` block.

        with Tap(model, classifiers.find(model, n_classes)) as tap:
            logits = model(inputs)
            features = tap.features

    Gradients flow through the features.
    """

    def __init__(self, model: nn.Module, classifier: str) -> None:
        """Set up without observing calls yet.

        Args:
            model: any network.
            classifier: what `find` returned.
        """
        self._module = model.get_submodule(classifier)
        self._features: Tensor | None = None

    @property
    def features(self) -> Tensor:
        """Input of the classifier in the latest call, (B, F).

        Raises:
            InputError: the classifier has not been called, or not with one matrix.
        """
        if self._features is None or self._features.ndim != 2:
            found = "was not called" if self._features is None else f"was given {tuple(self._features.shape)}"
            raise InputError(f"the classifier {found}: it needs features (batch, F), once in a forward pass")
        return self._features

    def __enter__(self) -> Self:
        self._handle = self._module.register_forward_pre_hook(self._keep, with_kwargs=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.remove()
        self._features = None

    def _keep(self, _: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._features = first_of(args, named)
