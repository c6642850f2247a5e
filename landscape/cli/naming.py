"""Writes arguments of the library as options of the running command."""

import shlex
from collections.abc import Sequence
from os import PathLike, fspath

import click

OTHERWISE = {
    "anchors": "through",
    "barrier_points": "barriers",
    "batch_norm": "bn",
    "cache_bytes": "cache",
    "checkpoints": "ckpt",
    "epochs": "finetune",
    "ignored": "ignore",
    "lr": "finetune_lr",
    "memory_bytes": "memory",
    "normalisation": "norm",
    "scale": "radius_scale",
}
"""Arguments of the library whose option has another name."""


def as_option(name: str, *value: object) -> str:
    """Write an argument as an option.

    Args:
        name: the argument's name in the library.
        value: its value, if the text should include it.

    Returns:
        `--steps`, or `--steps 0`. A switch has no value: `--cosine`, `--linear` for a false `--log`, `no --curvature`.
    """
    context = click.get_current_context(silent=True)
    found = {p.name: p for p in context.command.params if isinstance(p, click.Option)} if context else {}
    name = name if name in found else OTHERWISE.get(name, name)
    option = found.get(name)
    written = _long(option.opts) if option else f"--{name.replace('_', '-')}"
    if not value or value[0] is True:
        return written
    if value[0] is False and option and option.secondary_opts:
        return _long(option.secondary_opts)
    if value[0] is False and option and option.is_flag:
        return f"no {written}"
    return f"{written} {_word(value[0])}"


def _long(names: Sequence[str]) -> str:
    return next((name for name in names if name.startswith("--")), names[0])


def _word(value: object) -> str:
    if isinstance(value, PathLike):
        value = fspath(value)
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return shlex.quote(str(getattr(value, "__name__", value)).removesuffix(".0"))
