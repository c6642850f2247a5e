"""Folders passed as a checkpoint: the files of their weights, or advice on which file or command to use."""

import json
import re
from pathlib import Path

from landscape.errors import InputError, arg, one_line

SUFFIXES = (".ckpt", ".pt", ".pth", ".tar", ".th", ".t7", ".pkl", ".bin", ".safetensors")
"""How the names of checkpoints end."""

_OF_OPTIMIZER = re.compile(r"opt(im(i[sz]er)?)?(?![a-z])", re.IGNORECASE)  # optimizer.pt; not optimal.pt


def named(folder: Path) -> list[Path]:
    """Return what has the name of a checkpoint in a folder, but for optimizers' states and pickles beside others."""
    found = [p for p in folder.glob("*") if p.name[0] != "." and p.suffix.lower() in SUFFIXES and not p.is_dir()]
    for unlikely in (lambda p: _OF_OPTIMIZER.match(p.name), lambda p: p.suffix.lower() == ".pkl"):
        found = [p for p in found if not unlikely(p)] or found
    return found


def described(path: str) -> str:
    """Describe a folder that cannot be read as a checkpoint, and say what to do.

    Args:
        path: the folder.

    Returns:
        One line.
    """
    folder = Path(path)
    names = sorted(p.name for p in folder.iterdir())
    if is_sharded(path):
        return (
            f"{path} is a folder of torch.distributed.checkpoint, whose index is a pickle: if you trust its author, "
            f"add {arg('trust_pickle', True)}; or convert it to one file by "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} one.pt"
        )
    if any(name.startswith(("mp_rank_", "zero_pp_rank_", "global_step")) for name in names):
        return f"{path} is a folder of DeepSpeed: convert it to one file by its own script zero_to_fp32.py"
    for place in (folder, folder / "checkpoints"):  # Lightning's runs have their checkpoints there
        held = [p for p in named(place) if p.is_file() and p.name != "state.pt"]  # what a run needs to go on
        if held:
            example = max(held, key=lambda p: (p.name == "last.pt", p))
            return f"{path} is a folder: set {arg('ckpt')} to a file in it, such as {example}"
    return f"{path} is a folder: set {arg('ckpt')} to a file in it"


def is_sharded(path: str) -> bool:
    """Say whether a folder is one of torch.distributed.checkpoint."""
    return (Path(path) / ".metadata").is_file()


def weight_files(path: str) -> list[str]:
    """Return the files with the weights in a Hugging Face folder.

    Args:
        path: the folder.

    Returns:
        The files that its index names, or the only file of weights; none for other folders.

    Raises:
        InputError: the index cannot be read, or names a file that is not in the folder.
    """
    folder = Path(path)
    for kind in ("safetensors", "bin"):
        index = next(iter(sorted(folder.glob(f"*.{kind}.index.json"))), None)
        if index is not None:
            return _of_index(index)
    if not (folder / "config.json").is_file():
        return []
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [str(folder / name)]
    return []


def _of_index(index: Path) -> list[str]:
    try:
        found = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{index} cannot be read: {one_line(error)}") from error
    places = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()) or not places:
        raise InputError(f"{index} has no weight_map with the names of files")
    names = sorted(set(places.values()))
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise InputError(f"{index} names {name!r}, which is not a file in its folder")
    return [str(index.parent / name) for name in names]
