"""How many threads a computation is run by: few samples of a tiny network are slower on many cores than on one.

Threads share each tensor operation and wait for each other at its end. Where an operation lasts microseconds, they wait
more than they work, by a factor of tens on a machine that others use too. So the number is measured.
"""

import logging
import os
import time
from collections.abc import Callable

import torch

log = logging.getLogger(__name__)

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables of the environment that say how many threads there are; where one is set, nothing is measured."""
_GAIN = 0.9  # more threads are taken where they need at most this fraction of the time
_PASSES = 3  # of which the fastest counts


def settle(work: Callable[[], object], asked: int | None, *, measure: bool = True) -> int:
    """Set the number of threads of this process: as asked, as the environment says, or the fastest for some work.

    Args:
        work: a short piece of what will be computed.
        asked: the number; None to leave it to the environment or to a measurement.
        measure: False for work that is not done on the host's cores.

    Returns:
        The number of threads that is in force.
    """
    if asked is not None:
        torch.set_num_threads(asked)
    elif measure and not any(name in os.environ for name in VARIABLES):
        torch.set_num_threads(fastest(work, torch.get_num_threads()))
    return torch.get_num_threads()


def fastest(work: Callable[[], object], most: int, clock: Callable[[], float] = time.perf_counter) -> int:
    """Measure which number of threads is fastest: 1, 2, 4 and so on, up to the most.

    The numbers are tried from the smallest, until one gains less than a tenth: what two threads do not gain, four do
    not either. The number of threads is left as the last one that was tried.

    Args:
        work: what is timed.
        most: threads at most.
        clock: tells the time in seconds.

    Returns:
        The number.
    """
    best, seconds = 1, _seconds(work, 1, clock)
    told = [f"1: {1e3 * seconds:.3g} ms"]
    while best < most:
        number = min(2 * best, most)
        found = _seconds(work, number, clock)
        told.append(f"{number}: {1e3 * found:.3g} ms")
        if found > _GAIN * seconds:
            break
        best, seconds = number, found
    log.info("threads: %d, since the first batch takes with %s", best, ", ".join(told))
    return best


def _seconds(work: Callable[[], object], threads: int, clock: Callable[[], float]) -> float:
    torch.set_num_threads(threads)
    work()  # what a first pass prepares is not counted
    times = []
    for _ in range(_PASSES):
        begun = clock()
        work()
        times.append(clock() - begun)
    return min(times)
