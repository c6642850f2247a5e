"""The ranks of a run under torchrun: who am I, wait for the others, who does what. Alone, nothing happens here.

This is the only room that says torch.distributed. Work is dealt, not split beforehand: a rank that is done draws
the next piece, so that fast and slow ranks end together.
"""

import os
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from landscape.errors import InputError, one_line

_PATIENCE = timedelta(days=7)  # one rank may wait at a barrier for hours while another finishes a long piece


def start() -> None:
    """Join the other ranks if torchrun started this process; otherwise, or if already joined, do nothing.

    With GPUs each rank is given its own as the current device, and tensors on them travel by nccl; what lies on the
    host travels by gloo, and so does all where ranks share a GPU, which nccl does not allow.
    """
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys() or _joined():
        return
    backend = "gloo"
    if torch.cuda.is_available():
        gpus = torch.cuda.device_count()
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % gpus)
        if int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])) <= gpus and dist.is_nccl_available():
            backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=_PATIENCE)


def stop() -> None:
    """Leave the other ranks; alone, do nothing."""
    if _joined():
        dist.destroy_process_group()


def rank() -> int:
    """Return the number of this process, 0 if it is alone."""
    return dist.get_rank() if _joined() else 0


def world() -> int:
    """Return the number of processes, 1 if this one is alone."""
    return dist.get_world_size() if _joined() else 1


def is_main() -> bool:
    """Say whether this is the one process that writes results and speaks."""
    return rank() == 0


def barrier() -> None:
    """Wait until every rank is here."""
    if world() > 1:
        dist.barrier()


def all_reduce_sum(tensor: torch.Tensor) -> None:
    """Add a tensor up over all ranks, in place; every rank must call this with the same shape."""
    if world() > 1:
        dist.all_reduce(tensor)


def broadcast(tensors: Iterable[torch.Tensor]) -> None:
    """Overwrite tensors by those of rank 0, in place; every rank must call this with the same shapes."""
    for tensor in tensors if world() > 1 else ():
        dist.broadcast(tensor, 0)


def deal(n: int, folder: Path) -> Iterator[int]:
    """Draw indices from 0 to n - 1 so that each is drawn by one rank, whichever is free.

    Every rank must call this with the same n, and draw to the end unless it fails. An index counts as worked off
    when its rank asks for the next; the iterator ends when all ranks have worked off all of theirs.

    Args:
        n: number of indices.
        folder: where the ranks keep their counter, in a file `.landscape-next`; all ranks must see it.

    Yields:
        The next index that no rank has drawn.
    """
    if world() == 1:
        yield from range(n)
        return
    counter = folder / ".landscape-next"
    if is_main():
        counter.unlink(missing_ok=True)  # of a run that was killed: its count would leave indices out
    barrier()
    store = dist.FileStore(str(counter), world())  # type: ignore[attr-defined]  # public, but not in torch's __all__
    while (index := store.add("next", 1) - 1) < n:
        yield index
    barrier()


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def read_shards(folder: str) -> dict[str, Any]:
    """Read a folder of torch.distributed.checkpoint into one process. Its index is a pickle, and runs what it holds.

    Args:
        folder: which the caller trusts.

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
        raise InputError(f"{folder} is no folder of torch.distributed.checkpoint: {one_line(error)}") from error
    return found
