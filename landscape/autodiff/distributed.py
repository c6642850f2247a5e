"""The ranks of a run under torchrun or srun: numbers, barriers, division of work. With one process they do nothing.

Only this module and dealing.py use torch.distributed. Ranks divide work in two ways. Pieces are dealt (dealing.py). Or
all ranks work on one piece together as a team: each computes a sum over some of the samples, the sums are added up, and
all ranks execute the same steps.

If a rank fails, the others end too: at once if its process has ended, after `TIMEOUT` if it does not come to the start,
a comparison or a sum, and after `dealing.SILENCE` if it reports no progress on a piece that was dealt to it.

Before each sum of a team its ranks tell each other, on the host, what comes next. If one has no memory, the others
leave the piece at their next sum, and all compute it again with fewer samples at a time (`memory.halving`). Ranks that
would not take the same step end in one line; the sum itself would abort them, or mix up numbers.
"""

import os
import re
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from landscape.autodiff import slurm
from landscape.errors import InputError, RankError, arg, one_line

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""How long ranks wait where another may take hours for a piece of its own."""
TIMEOUT = timedelta(minutes=30)
"""How long ranks wait for one that computes its share of the same sum meanwhile, or has not joined them yet."""

EFFICIENCY = 0.8
"""Parallel efficiency of processes that compute one piece together: they wait for each other at every sum."""

abandoned: list[Any] = []
"""Barriers at which another rank was given up. To leave the group would wait for it, as would the interpreter's end."""

_together: ContextVar[bool] = ContextVar("together", default=False)
_apart: ContextVar[bool] = ContextVar("apart", default=False)


def start() -> None:
    """Join the other ranks if torchrun or srun started this process; otherwise, or if it has joined, do nothing.

    With GPUs each rank is given its own as the current device, and tensors on them travel by nccl; what lies on the
    host travels by gloo, and so does all where ranks share a GPU, which nccl does not allow.

    The commands do this themselves. A program of your own calls it before it makes an objective, and `stop` at its end;
    the ranks then divide the work of each analysis that has the argument `out`.
    """
    os.environ.update(slurm.rendezvous(os.environ))  # where torch.distributed looks for it
    if not is_of_several() or _joined():
        return
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    backend, gpu = _transport(os.environ, gpus, nccl=dist.is_nccl_available())
    if gpu is not None:
        torch.cuda.set_device(gpu)
    with others_may_be_lost():
        dist.init_process_group(backend, timeout=TIMEOUT)
        group(PATIENCE)  # now, when nobody is still working


def is_of_several() -> bool:
    """Say whether torchrun or srun started this process as one of several."""
    return {"RANK", "WORLD_SIZE"} <= (os.environ | slurm.rendezvous(os.environ)).keys()


def _transport(environ: Mapping[str, str], gpus: int, *, nccl: bool) -> tuple[str, int | None]:
    """Return torch's name of the backend, and the number of this process's GPU; None without GPUs."""
    if not gpus:
        return "gloo", None
    is_shared = int(environ.get("LOCAL_WORLD_SIZE", environ["WORLD_SIZE"])) > gpus
    return "cpu:gloo,cuda:nccl" if nccl and not is_shared else "gloo", int(environ.get("LOCAL_RANK", "0")) % gpus


def stop() -> None:
    """Leave the other ranks; alone, do nothing."""
    if _joined() and not abandoned:
        _groups.clear()
        dist.destroy_process_group()


def rank() -> int:
    """Return the number of this process, 0 if it is alone."""
    return dist.get_rank() if _joined() and not _apart.get() else 0


def world() -> int:
    """Return the number of processes, 1 if this one is alone."""
    return dist.get_world_size() if _joined() and not _apart.get() else 1


def speedup() -> float:
    """Return how many times sooner all processes are expected to do what they divide; 1 if this one is alone."""
    return max(1.0, EFFICIENCY * world())


@contextmanager
def apart() -> Generator[None, None, None]:
    """Return a context in which this process computes as if it were alone; the others need not enter it."""
    token = _apart.set(True)
    try:
        yield
    finally:
        _apart.reset(token)


def is_main() -> bool:
    """Say whether this is the process that writes results and messages."""
    return rank() == 0


def barrier(*, patient: bool = False) -> None:
    """Wait until every rank is here; if `patient`, for as long as one of them works on a piece of its own."""
    if world() > 1:
        with others_may_be_lost():
            dist.barrier(group=group(PATIENCE) if patient else None)


def all_reduce_sum(tensor: torch.Tensor) -> None:
    """Add a tensor up over all ranks, in place; every rank must call this with the same shape."""
    if world() > 1:
        with others_may_be_lost():
            dist.all_reduce(tensor)


def broadcast(tensors: Iterable[torch.Tensor]) -> None:
    """Overwrite tensors with those of rank 0, in place; every rank must call this with the same shapes."""
    for tensor in tensors if world() > 1 else ():
        with others_may_be_lost():
            dist.broadcast(tensor, 0)


def of_main(value: T) -> T:
    """Return the value of rank 0, which may take long; every rank must call this, with a value that can be pickled."""
    found: list[T] = [value]
    if world() > 1:
        with others_may_be_lost():
            dist.broadcast_object_list(found, 0, group=group(PATIENCE))
    return found[0]


def refuse_disagreement(facts: Mapping[str, Any]) -> None:
    """Check that all ranks have the same inputs; every rank must call this.

    Args:
        facts: values that the results depend on, by the argument's name or a description.

    Raises:
        InputError: a rank has another value than the main one. It is raised on every rank, and names both.
    """
    if world() == 1:
        return
    own = {name: str(value) for name, value in facts.items()}
    of_ranks: list[Any] = [None] * world()
    with others_may_be_lost():
        dist.all_gather_object(of_ranks, own)
    first = of_ranks[0]
    for number, other in enumerate(of_ranks):
        for name in first | other:
            ours, theirs = first.get(name, "nothing"), other.get(name, "nothing")
            if ours != theirs:
                shown = arg(name) if name.isidentifier() else name
                raise InputError(
                    f"the processes do not compute the same: {shown} is {_short(ours)} in process 0 and "
                    f"{_short(theirs)} in process {number}; start all with the same command on the same files"
                )


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


# Work that is shared --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Team:
    """Processes that compute one sum over samples together: only this one, or all ranks in the same steps."""

    rank: int = 0
    size: int = 1

    def share(self, n: int) -> slice:
        """Return the slice of n items for this process; the processes' numbers of items differ by at most one."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def largest(self, n: int) -> int:
        """Return the largest number of items that a process gets of n."""
        return -(-n // self.size)

    def total(self, part: Tensor) -> Tensor:
        """Add a tensor up over the team, in float64.

        Args:
            part: this process' term, of the same shape in all processes.

        Returns:
            The sum, bitwise the same in all processes, in the dtype and on the device of `part`.
        """
        if self.size == 1:
            return part
        if part.numel() <= _FEW:
            return self._meet("total", part.detach().cpu().double().flatten()).reshape(part.shape).to(part)
        whole = part.detach().to(_carrier(part), copy=True).double()
        self._meet("total", whole)
        with others_may_be_lost():
            dist.all_reduce(whole, group=group())
        return whole.to(part)

    def total_of(self, number: float) -> float:
        """Add a number up over the team."""
        return float(self.total(torch.tensor(number, dtype=torch.float64)))

    def all(self, found: bool) -> bool:
        """Say whether something is so on all processes of the team, for decisions that all must make alike."""
        return self.total_of(float(found)) == self.size

    def gathered(self, rows: Tensor) -> Tensor:
        """Join the rows of all processes, in the order of the ranks.

        Args:
            rows: (n, ...); only n may differ between processes.

        Returns:
            The rows of all processes, on every process.
        """
        if self.size == 1:
            return rows
        numbers = self._lengths(rows)
        found = rows.new_empty((sum(numbers), *rows.shape[1:]), device=_carrier(rows))
        pieces = torch.split(found, numbers)
        pieces[self.rank].copy_(rows)
        self._meet("gathered", found)
        # Each sends its piece to where it belongs: gloo's all_gather allocates and copies all rows once more.
        with others_may_be_lost():
            for rank, piece in enumerate(pieces):
                if len(piece):  # as bytes: backends do not know all types of numbers
                    dist.broadcast(piece.view(torch.uint8), rank, group=group())
        return found.to(rows.device)

    def by_columns(self, rows: Tensor) -> Tensor:
        """Divide the columns of all processes' rows, instead of the rows.

        Args:
            rows: (n, D); only n may differ between processes.

        Returns:
            The own share of the columns, `share(D)`, of the rows of all processes, in the order of the ranks.
        """
        if self.size == 1:
            return rows
        numbers, size = self._lengths(rows), rows.shape[1]
        columns = [replace(self, rank=rank).share(size) for rank in range(self.size)]
        width = columns[self.rank].stop - columns[self.rank].start
        found = rows.new_empty((sum(numbers), width), device=_carrier(rows))
        # Some rows at a time: what is sent of all rows would be new memory, which takes longer than to send it.
        most = min(max(1, _AT_ONCE // size), max(numbers))
        sent, received = found.new_empty(most * size), found.new_empty(most * width * self.size)
        self._meet("by_columns", torch.empty(()).expand(sum(numbers) * size))
        of_ranks = torch.split(found, numbers)
        of_ranks[self.rank].copy_(rows[:, columns[self.rank]])
        for begin in range(0, max(numbers), max(1, most)):
            own = rows[begin : begin + most]
            away = [own[: len(own) * (rank != self.rank), some] for rank, some in enumerate(columns)]
            here = [theirs[begin : begin + most * (rank != self.rank)] for rank, theirs in enumerate(of_ranks)]
            given, taken = ([piece.numel() for piece in pieces] for pieces in (away, here))
            for piece, buffer in zip(away, torch.split(sent[: sum(given)], given), strict=True):
                buffer.view(piece.shape).copy_(piece)
            with others_may_be_lost():
                dist.all_to_all_single(received[: sum(taken)], sent[: sum(given)], taken, given, group=group())
            for piece, buffer in zip(here, torch.split(received[: sum(taken)], taken), strict=True):
                piece.copy_(buffer.view(piece.shape))
        return found.to(rows.device)

    def _lengths(self, rows: Tensor) -> list[int]:
        """Return the number of rows of each process."""
        counts = torch.zeros(self.size, dtype=torch.float64)
        counts[self.rank] = len(rows)
        return [int(n) for n in self.total(counts)]

    def agreed(self, numbers: np.ndarray) -> np.ndarray:
        """Return the numbers of the team's first process, so that all make the same decision.

        Args:
            numbers: of the same shape in all.

        Returns:
            float64 numbers.
        """
        if self.size == 1:
            return numbers
        found = torch.from_numpy(np.array(numbers, dtype=np.float64))
        if found.numel() <= _FEW:
            own = found.flatten() if self.rank == 0 else torch.zeros(found.numel())
            return self._meet("agreed", own).reshape(found.shape).numpy()
        self._meet("agreed", found)
        with others_may_be_lost():
            dist.broadcast(found, 0, group=group())
        return found.numpy()

    def least(self, numbers: np.ndarray) -> np.ndarray:
        """Return the smallest of each number over the team, for decisions about what fits into the memory of all.

        Args:
            numbers: of the same shape in all.

        Returns:
            float64 numbers.
        """
        if self.size == 1:
            return numbers
        found = torch.from_numpy(np.array(numbers, dtype=np.float64))
        self._meet("least", found)
        with others_may_be_lost():
            dist.all_reduce(found, dist.ReduceOp.MIN, group=group())
        return found.numpy()

    def finished(self) -> None:
        """Wait until all processes have finished a piece; `ScarceElsewhereError` if one of them cannot."""
        if self.size > 1:
            self._meet("finished", torch.empty(0))

    def scarce(self) -> None:
        """Tell the others, where they are at their next sum, that this process has no memory for its own."""
        if self.size > 1:
            self._meet("scarce", torch.empty(0))

    def _meet(self, step: str, brought: Tensor) -> Tensor:
        """Tell each other what comes next; return the sums of what the processes bring, on the CPU, if it is little."""
        n, is_scarce = brought.numel(), step == "scarce"
        number = (len(_STEPS) * n + _STEPS.index(step)) % 999_983  # whose squares float64 has exactly
        found = torch.zeros(3 + _FEW, dtype=torch.float64)
        found[:3] = torch.tensor([is_scarce, number, number**2])
        if n <= _FEW:
            found[3 : 3 + n] = brought.flatten()
        with others_may_be_lost():
            dist.all_reduce(found, group=group())
        any_scarce, total, squares = found[:3].tolist()
        if any_scarce and not is_scarce:
            raise ScarceElsewhereError("memory has run out in another process")
        if not any_scarce and total**2 != self.size * squares:  # equal numbers have no spread
            raise RankError(
                f"the processes do not take the same step: this one is at {step!r} with {n} numbers. Start all with "
                "the same command on the same files; what is finished is kept"
            )
        return found[3 : 3 + n]


class ScarceElsewhereError(MemoryError):
    """Memory has run out in another process of the team, so that this one must begin the piece again too."""


ALONE = Team()
_STEPS = ("total", "gathered", "by_columns", "agreed", "least", "finished", "scarce")
_AT_ONCE = 2**22  # numbers that are exchanged at a time
_FEW = 61  # numbers that are summed at once, with what comes next
_groups: dict[timedelta, Any] = {}  # of all ranks, by how long they wait for each other


@contextmanager
def together() -> Generator[None, None, None]:
    """Return a context in which all ranks are one team; every rank must enter it and execute the same steps."""
    token = _together.set(True)
    try:
        yield
    finally:
        _together.reset(token)


def team() -> Team:
    """Return the current team of this process: all ranks within `together`, else this process only."""
    return Team(rank(), world()) if _together.get() and world() > 1 else ALONE


def group(timeout: timedelta | None = None) -> Any:
    """Return all ranks as a group in which they wait for each other this long; None for as long as a team does."""
    timeout = timeout or TIMEOUT
    if timeout not in _groups:
        _groups[timeout] = dist.new_group(timeout=timeout)
    return _groups[timeout]


def _carrier(tensor: Tensor) -> torch.device:
    """Return the device on which a tensor can be summed over ranks: gloo supports the host, nccl CUDA."""
    return tensor.device if tensor.device.type == "cuda" else torch.device("cpu")


@contextmanager
def others_may_be_lost() -> Generator[None, None, None]:
    """Turn the failure to reach another process into an error of one line that says what it means."""
    try:
        yield
    except (RuntimeError, TimeoutError) as error:  # the backends raise the same for faults of this process
        if not _LOST.search(str(error)):
            raise
        raise lost(error) from error


def lost(error: Exception) -> RankError:
    """Return the error of a process that has lost another one, given what it has seen of that."""
    return RankError(
        "another process of this run has ended, or does not answer; its own message says why. What is finished is "
        f"kept: repeat the command to go on from there ({one_line(error):.160})"
    )


_LOST = re.compile(
    r"time[d -]*out|connect|broken pipe|closed|socket|failed to recv|remote|communicator was aborted|reported progress",
    re.IGNORECASE,
)
"""What backends and stores say where another process has ended, or does not answer."""


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def read_shards(folder: str) -> dict[str, Any]:
    """Read a folder of torch.distributed.checkpoint into one process. Its index is a pickle, which can run any code.

    Args:
        folder: a folder that the caller trusts.

    Returns:
        What was saved, by its names.

    Raises:
        InputError: it cannot be read.
    """
    from torch.distributed.checkpoint import default_planner
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    found: dict[str, Any] = {}
    planner: Any = default_planner._EmptyStateDictLoadPlanner  # it has no types
    try:
        _load_state_dict(found, storage_reader=FileSystemReader(folder), planner=planner(), no_dist=True)
    except Exception as error:  # a folder may hold anything; the traceback stays attached
        raise InputError(f"{folder} is not a folder of torch.distributed.checkpoint: {one_line(error)}") from error
    return found
