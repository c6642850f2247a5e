"""The number of multiplications of a computation, from the shapes of its tensors: no clock decides what is computed."""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode


def multiplications(compute: Callable[[], object]) -> int:
    """Count the multiplications of matrix products and convolutions; fused attention is not counted on all devices.

    Args:
        compute: is called once, without gradients.

    Returns:
        Their number; 0 if PyTorch cannot count them for the shapes of this computation.
    """
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            compute()
    except Exception:  # its formulas assert what they assume; the computation itself has succeeded before
        return 0
    return int(counter.get_total_flops()) // 2  # a multiplication and an addition are two operations
