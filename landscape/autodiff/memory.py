"""How much memory a computation may take: what is free, or what a user allows, less what is taken already."""

import os
import resource
import sys
from pathlib import Path

import torch

_SHARE = 0.8  # of what is free, since others want some and sums need room
_GROUP = Path("/sys/fs/cgroup")


def room(device: torch.device, limit: int | None) -> int:
    """Return how many bytes may be taken beside what has been taken so far.

    Of a limit on the host the most that this process has had at a time is taken off: what a product needs for a moment
    it will need again.

    Args:
        device: where.
        limit: bytes that this process may take in all; None for four fifths of what is free, which the processes of one
            machine share.

    Returns:
        Bytes, 0 at least.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        own = torch.cuda.max_memory_allocated(device)
        found = _SHARE * (free + torch.cuda.memory_reserved(device) - own) if limit is None else limit - own
    elif limit is None:
        found = _SHARE * _free_on_host() / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    else:
        found = limit - most_so_far()
    return max(0, int(found))


def exhausted(error: BaseException) -> bool:
    """Say whether an error of any allocator means that memory has run out."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def most_so_far() -> int:
    """Return the most bytes of the host's memory that this process has had at a time."""
    units = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * units


def peak() -> int:
    """Return the most bytes that this process has had at a time where it computes: on a GPU if it has used one."""
    on_gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() and torch.cuda.is_initialized() else 0
    return on_gpu or most_so_far()


def _free_on_host() -> int:
    """Return the bytes that are free: of the machine, and of the container if there is one."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # no Linux
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    try:
        most, now = ((_GROUP / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
        return min(free, int(most) - int(now)) if most != "max" else free
    except (OSError, ValueError):  # no container, or none of this kind
        return free
