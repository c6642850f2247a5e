"""The memory that a computation may use; if it runs out, fewer samples are processed at a time."""

import logging
import os
import resource
import sys
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from landscape.autodiff import distributed
from landscape.errors import RankError, is_of_memory

T = TypeVar("T")
log = logging.getLogger(__name__)

_SHARE = 0.8  # of the free memory: other processes need some, and so do sums
_GROUP = Path("/sys/fs/cgroup")


def room(device: torch.device, limit: int | None) -> int:
    """Return the number of bytes that may be used in addition to those already in use.

    The peak memory is subtracted, because a product will need its temporary memory again: on a GPU that since `begin`,
    on the host that of this process, and only from a limit.

    Args:
        device: the device.
        limit: bytes that this process may use in total; None for four fifths of the free memory, divided by the number
            of processes that share it.

    Returns:
        Bytes, at least 0.
    """
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        own = torch.cuda.max_memory_allocated(device)
        own_each = "SLURM_GPUS_PER_TASK" in os.environ  # each process sees another GPU, as the only one
        sharing = 1 if own_each else -(-ranks // torch.cuda.device_count())
        found = _SHARE * (free / sharing + torch.cuda.memory_reserved(device) - own) if limit is None else limit - own
    elif limit is None:
        found = _SHARE * _free_on_host() / ranks
    else:
        found = limit - most_so_far()
    return max(0, int(found))


def is_apart(device: torch.device) -> bool:
    """Return whether a device has memory of its own, beside the host's."""
    return device.type not in {"cpu", "mps"}


_most: ContextVar[int] = ContextVar("most", default=sys.maxsize)  # samples that fit, as far as is known
_fewest: ContextVar[int] = ContextVar("fewest", default=sys.maxsize)  # samples at a time of the present run
_taken: ContextVar[int] = ContextVar("taken", default=0)  # samples at a time of the present attempt
_within: ContextVar[bool] = ContextVar("within", default=False)  # an attempt


class AtATime:
    """A batch size: the given number of samples, or fewer after memory has run out."""

    def __set_name__(self, owner: type, name: str) -> None:
        """Remember the attribute that stores the number."""
        self._name = f"_{name}"

    def __get__(self, instance: Any, owner: type | None = None) -> int:
        """Return the number that fits into memory."""
        if instance is None:
            raise AttributeError("it has no default")
        found: int = min(instance.__dict__[self._name], _most.get())
        _taken.set(max(found, _taken.get()))
        return found

    def __set__(self, instance: Any, value: int) -> None:
        """Store the given number."""
        instance.__dict__[self._name] = value


def halving(compute: Callable[[], T]) -> T:
    """Compute; if memory runs out, halve the batch size, log this, and begin again.

    Processes that work together all do this, if memory runs out in one of them; so they always take the same number of
    samples at a time.

    Within an attempt it only computes: the outer one begins again, which may hold the memory that is missing, and knows
    how many samples it has taken. If both began again, processes would give up at different places.

    Args:
        compute: a function; its result must depend on the batch size only by rounding.

    Returns:
        The function's result.

    Raises:
        RankError: another process of the team has no memory for the fewest samples that can be taken at a time; these
            are several where checks compare samples with each other.
    """
    if _within.get():
        return compute()
    team = distributed.team()
    agree()
    before = _most.get(), _fewest.get()
    while True:
        _taken.set(0)
        token = _within.set(True)
        try:
            found = compute()
            team.finished()
            return found
        except distributed.ScarceElsewhereError as error:
            left = _least(team, sys.maxsize)
            if not left:
                raise RankError(
                    "another process of this run has no memory for the fewest samples that can be taken at a time; its "
                    "own message says more"
                ) from error
        except Exception as error:  # each allocator has its own
            if not is_of_memory(error):
                raise
            team.scarce()
            left = _least(team, -(-_taken.get() // 2) if _taken.get() > 1 else 0)
            if not left:
                _most.set(before[0])  # fewer samples do not help: another computation may take as many as before
                _fewest.set(before[1])
                raise
        finally:
            _within.reset(token)
        # Not within the handler, because the error keeps the tensors of the failed attempt.
        _most.set(left)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        note_fewer(_most.get())
        log.warning("memory has run out: %d samples are taken at a time from now on", _most.get())


def _least(team: distributed.Team, samples: int) -> int:
    """Return the smallest number of a team's processes."""
    return int(team.least(np.array([samples]))[0])


def agree() -> None:
    """Let no process of the team take more samples at a time than have fitted into the memory of each."""
    _most.set(_least(distributed.team(), _most.get()))


def begin() -> None:
    """Begin a run, in which no more samples are processed at a time than have fitted; the peaks of GPUs start anew."""
    _fewest.set(_most.get())
    for number in range(torch.cuda.device_count()) if used_cuda() else ():
        torch.cuda.reset_peak_memory_stats(number)


def note_fewer(samples: int) -> None:
    """Note that memory has run out, and how many samples are now processed at a time."""
    _fewest.set(min(samples, _fewest.get()))


def fewest(batch_size: int) -> int:
    """Return the smallest number of samples at a time of this run in the team, given the number that was requested."""
    return _least(distributed.team(), min(batch_size, _fewest.get()))


def most_so_far() -> int:
    """Return the peak host memory of this process in bytes."""
    units = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * units


def peak() -> int:
    """Return the peak memory of this process in bytes: on a GPU since `begin` if it uses one, else on the host."""
    cuda: Any = torch.cuda  # whose types are not all stated
    return int(cuda.max_memory_allocated()) if used_cuda() and cuda.max_memory_allocated() else most_so_far()


def used_cuda() -> bool:
    """Return whether this process has computed on a CUDA GPU; this does not initialise CUDA."""
    cuda: Any = torch.cuda
    return bool(cuda.is_available() and cuda.is_initialized())


def _free_on_host() -> int:
    """Return the bytes that are free: of the machine, and of the container if there is one."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # no Linux
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    try:
        most, now, uses = (
            (_GROUP / f"memory.{name}").read_text(encoding="ascii").strip() for name in ("max", "current", "stat")
        )
        # What was read of files and is not in use counts as current, although the system gives it back on demand.
        spare = int(dict(line.split() for line in uses.splitlines())["inactive_file"])
        return min(free, int(most) - int(now) + spare) if most != "max" else free
    except (OSError, KeyError, ValueError):  # no container, or none of this kind
        return free
