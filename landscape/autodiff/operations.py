"""The number of multiplications of a computation, from the shapes of its tensors: no clock decides what is computed."""

import logging
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from landscape.errors import is_of_memory, one_line

log = logging.getLogger(__name__)


def multiplications(compute: Callable[[], object]) -> int:
    """Count the multiplications of matrix products and convolutions; fused attention is not counted on all devices.

    Args:
        compute: has succeeded before; it is called once, without gradients.

    Returns:
        Their number; 0, which is logged, if PyTorch has no formula for the shapes of this computation.

    Raises:
        RuntimeError: memory has run out.
        MemoryError: the same.
    """
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            compute()
    except Exception as error:  # the formulas assert what they assume, and may raise anything where it does not hold
        if is_of_memory(error):  # which does not concern them
            raise
        log.info("multiplications are not counted: %s", one_line(error))
        return 0
    return int(counter.get_total_flops()) // 2  # a multiplication and an addition are two operations
