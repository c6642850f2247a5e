"""The classifier at the end of a network, and its input, the features.

A network is divided into the encoder, which computes features, and the classifier, the last linear layer, which
computes logits from them. This works for any network: its calls are observed by hooks, and it is not changed.
"""

from types import TracebackType
from typing import Self

from torch import Tensor, nn

from landscape.errors import InputError
from landscape.networks.models import NormedLinear


def find(model: nn.Module, n_classes: int) -> str:
    """Return the name of a network's classifier: the last of its linear layers with C outputs.

    Args:
        model: any network.
        n_classes: C.

    Returns:
        The module's name in `model.named_modules()`.

    Raises:
        InputError: no linear layer has C outputs.
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
    return fitting[-1]


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
    weight: Tensor = module.get_parameter("weight")
    return weight.T if isinstance(module, NormedLinear) else weight


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
        self._handle = self._module.register_forward_pre_hook(self._keep)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.remove()
        self._features = None

    def _keep(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._features = inputs[0] if inputs else None
