"""Several processes of one run, as torchrun starts them, without the process that torchrun is."""

import os
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess

import fresh


def variables(world: int = 2) -> list[dict[str, str]]:
    """What each rank finds in its environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


def started(target: Callable[..., None], world: int, *words: object, only: int | None = None) -> list[BaseProcess]:
    """Processes of one run, or the first ones `only`: each calls a function of a module with some words."""
    given = [(target, own, words) for own in variables(world)[:only]]
    found = [fresh.context().Process(target=_call, args=args, daemon=True) for args in given]
    for process in found:
        process.start()
    return found


def _call(target: Callable[..., None], own: dict[str, str], words: tuple[object, ...]) -> None:
    os.environ.update(own)
    target(*words)
