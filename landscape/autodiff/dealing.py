"""Pieces of work that are dealt to ranks: one that has finished a piece draws the next.

So fast and slow ranks finish at the same time. Each tells the others by heartbeats that it is working; ranks that are
done wait for those that are not, and end if one has been silent for too long.
"""

import atexit
import math
import os
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from landscape.autodiff.distributed import (
    PATIENCE,
    abandoned,
    barrier,
    group,
    is_main,
    others_may_be_lost,
    rank,
    world,
)

SILENCE = timedelta(hours=2)
"""How long ranks that are done wait for one that reports no progress on a piece that was dealt to it."""
_POLL = 0.05  # seconds between two checks of which ranks are done


def deal(n: int, folder: Path, only: Mapping[int, Collection[int]] | None = None) -> Iterator[int]:
    """Draw indices from 0 to n - 1 so that each is drawn by exactly one rank, the next free one.

    Every rank must call this with the same arguments, and draw to the end unless it fails. An index is finished when
    its rank asks for the next one; the iterator ends when all ranks have finished all of theirs.

    Args:
        n: number of indices.
        folder: folder of the ranks' counter, a file `.landscape-next`; all ranks must have access to it.
        only: indices that only some ranks draw, which draw these first, each with the numbers of its ranks.

    Yields:
        The next index that no rank has drawn.

    Raises:
        RankError: another rank has ended, or has not called `alive` for `SILENCE` while this one waited for it.
    """
    if world() == 1:
        yield from range(n)
        return
    counter = folder / ".landscape-next"
    if is_main():
        counter.unlink(missing_ok=True)  # of a run that was killed: its count would leave indices out
    group(PATIENCE)  # now, when nobody is still working
    barrier()
    store = dist.FileStore(str(counter), world())  # type: ignore[attr-defined]  # public, but not in torch's __all__
    beat = _Beat(store)
    token = _beat.set(beat)
    only = only or {}
    anyones = [index for index in range(n) if index not in only]
    try:
        for index, ranks in only.items():
            if rank() in ranks and store.add(f"taken-{index}", 1) == 1:
                beat()
                yield index
        while (drawn := store.add("next", 1) - 1) < len(anyones):
            beat()
            yield anyones[drawn]
    finally:
        _beat.reset(token)
    beat.wait_for_all()


def alive() -> None:
    """Tell the other ranks that this one is working on the piece that was dealt to it."""
    beat = _beat.get()
    if beat is not None:
        beat()


class _Beat:
    """Counts the heartbeats of each rank, where all ranks can read them."""

    def __init__(self, store: Any) -> None:
        self._store, self._last = store, -math.inf

    def __call__(self) -> None:
        """Send a heartbeat, unless there was one a moment ago, because each makes the store's file a little longer."""
        if time.monotonic() - self._last > SILENCE.total_seconds() / 100:
            self._store.add(f"alive-{rank()}", 1)
            self._last = time.monotonic()

    def wait_for_all(self) -> None:
        """Wait until all ranks are here, or one of them is gone or silent for too long."""
        seen: dict[int, tuple[int, float]] = {}  # heartbeats of each other rank, and the time of the last one
        others, due = set(range(world())) - {rank()}, -math.inf
        with others_may_be_lost():
            work = dist.barrier(group=group(PATIENCE), async_op=True)
            while not work.is_completed():
                time.sleep(_POLL)
                now = time.monotonic()
                if now < due:  # a store in a file takes a lock for each number, and writes a record
                    continue
                due = now + SILENCE.total_seconds() / 100
                for other in others:
                    signs = self._store.add(f"alive-{other}", 0)
                    if other not in seen or seen[other][0] != signs:
                        seen[other] = signs, now
                if all(now - since > SILENCE.total_seconds() for _, since in seen.values()):
                    abandoned.append(work)
                    atexit.register(_leave)
                    raise TimeoutError(f"for {SILENCE} no other process has reported progress")
            work.wait()


def _leave() -> None:
    """End the process at once, with the exit code of an error that the user can correct."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2)


_beat: ContextVar[_Beat | None] = ContextVar("beat", default=None)
