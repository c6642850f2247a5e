"""The number of threads of a computation: few samples of a tiny network are slower on many cores than on one.

Threads divide each tensor operation and wait for each other at its end. If an operation takes microseconds, they wait
longer than they work, tens of times longer on a machine with other load. So the best number is measured.
"""

import logging
import os
import time
from collections.abc import Callable

import torch

from landscape.errors import arg

log = logging.getLogger(__name__)

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables of the environment that say how many threads there are; where one is set, nothing is measured."""
_GAIN = 0.9  # more threads are used if they need at most this fraction of the time
_PASSES = 3  # repetitions; the fastest one counts


def settle(work: Callable[[], object], asked: int | None, *, measure: bool = True) -> int:
    """Set the number of threads of this process: as requested, as set in the environment, or the fastest for some work.

    Args:
        work: a short example of the computation.
        asked: the number; None to use the environment or a measurement.
        measure: False for work that does not run on the host's cores.

    Returns:
        The number of threads that is set.
    """
    named = [name for name in VARIABLES if name in os.environ]
    if asked is not None:
        torch.set_num_threads(asked)
        log.info("threads: %d, as requested", asked)
    elif named:
        log.info("threads: %d, by %s", torch.get_num_threads(), named[0])
    elif measure:
        torch.set_num_threads(fastest(work, torch.get_num_threads()))
    else:
        ways = f"{arg('threads')} or {VARIABLES[0]}"
        log.info("threads: %d, as PyTorch chooses, so that no measurement changes results: %s sets another number",
                 torch.get_num_threads(), ways)  # fmt: skip
    return torch.get_num_threads()


def tell_idle(n_parts: int) -> None:
    """Say how to use cores that this process leaves idle, if work can be divided among processes.

    Args:
        n_parts: number of the parts that processes would divide.
    """
    all_cores, used = cores(), torch.get_num_threads()
    if n_parts > 1 and all_cores >= 2 * used:
        advice = arg("processes", min(all_cores // used, n_parts))
        log.info("%d of %d cores are idle: %s would use them", all_cores - used, all_cores, advice)


def cores() -> int:
    """Return the number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def places() -> int:
    """Return the largest number of processes that each have a core or a GPU of this machine."""
    return max(cores(), torch.cuda.device_count())


def fastest(work: Callable[[], object], most: int, clock: Callable[[], float] = time.perf_counter) -> int:
    """Measure which number of threads is fastest: 1, 2, 4 and so on, up to `most`.

    Starting with the smallest, numbers are tried until one saves less than a tenth of the time: if two threads are not
    faster, four are not either. Afterwards the last number that was tried is set.

    Args:
        work: the function to time.
        most: the largest number of threads.
        clock: returns the time in seconds.

    Returns:
        The number.
    """
    best, seconds = 1, _seconds(work, 1, clock)
    times = [f"1: {1e3 * seconds:.3g} ms"]
    while best < most:
        number = min(2 * best, most)
        found = _seconds(work, number, clock)
        times.append(f"{number}: {1e3 * found:.3g} ms")
        if found > _GAIN * seconds:
            break
        best, seconds = number, found
    log.info("threads: %d, since the first batch takes with %s", best, ", ".join(times))
    return best


def _seconds(work: Callable[[], object], threads: int, clock: Callable[[], float]) -> float:
    torch.set_num_threads(threads)
    work()  # the preparations of the first pass are not measured
    times = []
    for _ in range(_PASSES):
        begun = clock()
        work()
        times.append(clock() - begun)
    return min(times)
