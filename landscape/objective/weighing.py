"""How draws stand for samples: the one place where what a sample adds to a sum is weighted.

Of a part of N samples, m draws with replacement are made, sample i with chance pi_i. A draw's value counts
1 / (N pi_i) times, so that the mean over the draws is unbiased for the mean over the samples (Hansen and Hurwitz 1943).
The factor stands beside the target of each draw; `weighed` reads it there. Losses, measures and whether a sample is
right come through it, and with the losses all their derivatives.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from landscape.autodiff.trees import Tree
from landscape.autodiff.wide import wide
from landscape.data.samples import Samples, positions

if TYPE_CHECKING:
    from landscape.objective.objective import Objective


@dataclass(frozen=True, kw_only=True, eq=False)
class Draws:
    """What the samples of an objective are, where they are draws from those of another."""

    of: "Objective"  # whose samples were drawn
    index: np.ndarray  # (M,) the sample of its data that each draw is
    factors: np.ndarray  # (M,) 1 / (N pi) of each draw, 1 where all samples of a part count alike
    whole: np.ndarray  # (P,) whether a part has all its samples
    population: np.ndarray  # (P,) samples that the draws of a part stand for


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnSamples(Samples):
    """Labelled samples with the factor of each beside its label."""

    factors: np.ndarray  # (M,)

    def batch(
        self,
        indices: np.ndarray | Tensor,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tree]:
        """Hand out some samples; see `Samples.batch`.

        Returns:
            Inputs, and labels with factors (B,) in `dtype`.
        """
        inputs, labels = super().batch(indices, device, dtype)
        factors = torch.from_numpy(self.factors[positions(indices)])
        return inputs, (labels, factors.to(inputs.device, dtype))


@dataclass(frozen=True, eq=False)
class Weighed:
    """A function of (output, target) with one value or row for each sample, times the factor beside the target."""

    of: Callable[[Any, Tree], Tensor]
    power: float = 1.0

    def __call__(self, outputs: Any, targets: tuple[Tree, Tensor]) -> Tensor:
        """Return the weighted values."""
        values = self.of(outputs, targets[0])
        factors = targets[1] if self.power == 1 else targets[1] ** self.power
        # Counts become numbers with a fraction.
        factors = factors.to(values.device, values.dtype if values.is_floating_point() else factors.dtype)
        return values * factors.reshape(-1, *[1] * (values.ndim - 1))


def weighed(of: Callable[[Any, Tree], Tensor], draws: Draws | None, *, power: float = 1.0) -> Callable[..., Tensor]:
    """Return a function of (output, target) as it enters sums over the samples of an objective.

    Args:
        of: has one value or row for each sample.
        draws: what the samples are; None for samples that all count once.
        power: of the factor; 1/2 for what is squared before it is summed.

    Returns:
        The function itself, or one of targets with factors.
    """
    return of if draws is None else Weighed(of, power)


def weighed_right(of: Callable[[Any, Tree], Tensor], draws: Draws | None) -> Callable[..., Tensor]:
    """Return whether each sample is right, (B,), as it enters sums.

    The wrong ones are weighted: draws in proportion to uncertainty are of these, and the sum of the factors of all
    draws scatters, so that a part without a wrong sample would have an accuracy other than 1.

    Args:
        of: (output, target) -> (B,) of truth values.
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
