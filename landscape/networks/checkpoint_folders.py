"""Folders that are given where a checkpoint is expected: what each is, and which command or file helps."""

from pathlib import Path

from landscape.errors import arg

SUFFIXES = (".ckpt", ".pt", ".pth", ".tar", ".th", ".bin", ".safetensors")
"""How the names of checkpoints end."""


def described(path: str) -> str:
    """Say what a folder is and what to do.

    Args:
        path: the folder.

    Returns:
        One line.
    """
    folder = Path(path)
    names = sorted(p.name for p in folder.iterdir())
    index = next((name for name in names if name.endswith((".safetensors.index.json", ".bin.index.json"))), None)
    if index:
        kind = "safetensors" if "safetensors" in index else "torch"
        return (
            f"{path} is a folder of weights in several {kind} files ({index}): join them in Python, as by "
            "model.save_pretrained(folder, max_shard_size='100GB'), and give the one file"
        )
    if ".metadata" in names or any(name.endswith(".distcp") for name in names):
        return (
            f"{path} is a folder of torch.distributed.checkpoint: make one file of it by "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} one.pt"
        )
    if any(name.startswith(("mp_rank_", "zero_pp_rank_", "global_step")) for name in names):
        return f"{path} is a folder of DeepSpeed: make one file of it by its own zero_to_fp32.py"
    for place in (folder, folder / "checkpoints"):  # Lightning's runs keep theirs there
        held = sorted(p for p in place.glob("*") if p.suffix in SUFFIXES and p.is_file())
        if held:
            return f"{path} is a folder: {arg('ckpt')} takes a file in it, such as {held[-1]}"
    return f"{path} is a folder: {arg('ckpt')} takes a file in it"
