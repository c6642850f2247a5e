"""Finds the layers in which each sample has its own row of the first axis, from a forward pass that is made anyway.

The gradient at a layer's output is linear in the factors of the losses. If row i belongs to sample i alone, factors s_i
multiply row i by s_i. Where another axis is as long as the batch by chance, where samples have changed their order, or
where they influence each other after the layer, it is not so. Two backward passes to the outputs tell; they draw no
random numbers and change no statistics.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from landscape.autodiff.recording import Call, at_outputs

_APART = 0.01
"""Largest |found - expected| / |expected|, summed over a layer's rows. Rounding is no reason for a difference, in
bfloat16 either, because the factors are powers of two; sums in an accidental order are."""


class SampleRows:
    """Remembers the layers for each batch size, so that each is tested once for a size."""

    def __init__(self) -> None:
        """Begin without layers."""
        self._own: dict[int, set[nn.Module]] = {}  # batch size -> layers with a row for each sample
        self._other: set[nn.Module] = set()  # layers that had none at some size: at another it may be chance

    def among(self, values: Tensor, calls: Sequence[Call]) -> list[Call]:
        """Return the calls of layers with a row for each sample.

        Args:
            values: of the samples, (B,) or (B, C), with their graph, which stays.
            calls: uses of layers with a first axis of length B.

        Returns:
            Those calls. A layer that the values do not depend on in this batch is included, since any division of zero
            is right, and is tested again in the next batch.
        """
        n = len(values)
        own = self._own.setdefault(n, set())
        new = [c for c in calls if c.module not in own and c.module not in self._other]
        if n > 1 and new:  # a single sample has all rows
            factors = torch.exp2(torch.arange(n) % 4)
            plain, scaled = (_row_sizes(values, new, s) for s in (torch.ones(n), factors))
            for call in plain:
                expected = plain[call] * factors.to(plain[call])
                apart = float((scaled[call] - expected).abs().sum() / expected.sum())
                if apart <= _APART:
                    own.add(call.module)
                elif apart > _APART:  # it is nan if there is no gradient, or none that is finite
                    self._other.add(call.module)
        return [c for c in calls if c.module not in self._other]


def _row_sizes(values: Tensor, calls: Sequence[Call], factors: Tensor) -> dict[Call, Tensor]:
    """Return the sum of absolute values of each row of the gradient at each call's output, (B,)."""
    seeds = factors.to(values.device, values.dtype, non_blocking=True)
    seeds = seeds.reshape(-1, *[1] * (values.ndim - 1)).expand_as(values)
    return {
        call: d.abs().flatten(1).sum(1, dtype=torch.promote_types(d.dtype, torch.float32))
        for call, d in at_outputs(values, calls, seeds, keep=True)
    }
