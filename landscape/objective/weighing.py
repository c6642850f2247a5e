"""The weights of draws: the only place where a sample's contribution to a sum is weighted.

From a part of N samples, n are drawn without replacement, sample i with probability pi_i. Its value has the factor
n / (N pi_i), so that the mean over the draws is unbiased for the mean over the samples (Horvitz and Thompson 1952).
This factor is stored with the target of each draw, where `weighed` reads it. It weights losses, measures and correct
predictions, and through the losses all their derivatives.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from landscape.autodiff.trees import Tree
from landscape.autodiff.wide import wide
from landscape.data.samples import Samples, positions
from landscape.results import inference

if TYPE_CHECKING:
    from landscape.objective.objective import Objective


@dataclass(frozen=True, kw_only=True, eq=False)
class Draws:
    """The origin of an objective's samples that are draws from the samples of another objective."""

    of: "Objective"  # whose samples were drawn
    index: np.ndarray  # (M,) the sample of its data that each draw is
    factors: np.ndarray  # (M,) n / (N pi) of each draw, 1 where all samples of a part count alike
    chances: np.ndarray  # (M,) pi; nan where a part has all its samples, which then stand for all others of their kind
    whole: np.ndarray  # (P,) whether a part has all its samples
    population: np.ndarray  # (P,) samples that the draws of a part stand for
    uncertainty: np.ndarray  # (P,) mean tr M of all of these, if the draws are in proportion to it; else nan


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnSamples(Samples):
    """Labelled samples; the target of each is a pair of label and factor."""

    factors: np.ndarray  # (M,)

    def batch(
        self,
        indices: np.ndarray | Tensor,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tree]:
        """Return some samples; see `Samples.batch`.

        Returns:
            Inputs, and labels with factors (B,) in `dtype`.
        """
        inputs, labels = super().batch(indices, device, dtype)
        factors = torch.from_numpy(self.factors[positions(indices)])
        return inputs, (labels, factors.to(inputs.device, dtype))


@dataclass(frozen=True, eq=False)
class Weighed:
    """A function of (output, target) with one value or row for each sample, times the sample's factor."""

    of: Callable[[Any, Tree], Tensor]
    power: float = 1.0

    def __call__(self, outputs: Any, targets: tuple[Tree, Tensor]) -> Tensor:
        """Return the weighted values."""
        values = self.of(outputs, targets[0])
        factors = targets[1] if self.power == 1 else targets[1] ** self.power
        dtype = values.dtype if values.is_floating_point() else factors.dtype  # weighted counts are not integers
        factors = factors.to(values.device).to(dtype)  # moved first: otherwise the device would have to convert
        return values * factors.reshape(-1, *[1] * (values.ndim - 1))


def left(draws: Draws | None, own: np.ndarray) -> np.ndarray:
    """Return the fraction of the variance of some samples that other draws would show; see `inference.left`.

    Args:
        draws: the draws that the samples are; None if they are not drawn.
        own: positions of all samples of a part, (n,).

    Returns:
        (n,).
    """
    return inference.left(None if draws is None else draws.chances[own], len(own))


def factors(draws: Draws | None, own: np.ndarray) -> np.ndarray:
    """Return the factors of some samples, (n,); the arguments are those of `left`."""
    found: np.ndarray = np.ones(len(own)) if draws is None else draws.factors[own]
    return found


def scatter(draws: Draws | None, members: Sequence[np.ndarray]) -> tuple[inference.Scatter, np.ndarray]:
    """Return what the errors of means over the samples of each part need beside the sums of `terms`.

    Args:
        draws: as for `left`.
        members: positions of all samples of each part.

    Returns:
        What does not depend on the values, and `left` of all samples, (N,), part by part.
    """
    of_left, of_factors = ([of(draws, own) for own in members] for of in (left, factors))
    return inference.Scatter.of(of_left, of_factors), np.concatenate(of_left)


def terms(values: Tensor, left: Tensor) -> Tensor:
    """Return what is added up of values of samples for their mean and its error; see `inference.Scatter`.

    Args:
        values: (K, B), such as losses and wrong predictions.
        left: of these samples, (B,).

    Returns:
        (K, 4, B): the values themselves, and the three terms of a scatter.
    """
    remaining = left * values
    return torch.stack([values, remaining * values, remaining, left.sqrt() * values], dim=1)


def weighed(of: Callable[[Any, Tree], Tensor], draws: Draws | None, *, power: float = 1.0) -> Callable[..., Tensor]:
    """Return a function of (output, target), weighted for sums over the samples of an objective.

    Args:
        of: returns one value or row for each sample.
        draws: the draws that the samples are; None if all samples have weight 1.
        power: of the factor; 1/2 for values that are squared before they are summed.

    Returns:
        The function itself, or one of targets with factors.
    """
    return of if draws is None else Weighed(of, power)


def weighed_right(of: Callable[[Any, Tree], Tensor], draws: Draws | None) -> Callable[..., Tensor]:
    """Return whether each sample is classified correctly, (B,), weighted for sums.

    The weights are applied to the wrong samples. Draws in proportion to uncertainty contain mainly these, and the sum
    of the factors of all draws is random; weighted correct samples would not give accuracy 1 without a wrong one.

    Args:
        of: (output, target) -> (B,) booleans.
        draws: as for `weighed`.

    Returns:
        The function itself, or one of targets with factors.
    """
    if draws is None:
        return of

    def wrong(outputs: Any, targets: Tree) -> Tensor:
        return 1 - wide(of(outputs, targets))

    weighed_wrong = Weighed(wrong)
    return lambda outputs, targets: 1 - weighed_wrong(outputs, targets)
