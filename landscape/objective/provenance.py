"""The provenance of a result (how, when and from what it was computed), and the fingerprint of an unfinished run."""

import json
import platform
import sys
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from landscape.errors import StoreError, arg
from landscape.objective.objective import Objective
from landscape.results import store
from landscape.results.journal import cut, same, spaced


def fingerprint(objective: Objective, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that changes the numbers of an analysis, by the names of arguments.

    Args:
        objective: model, loss and data.
        options: of the analysis, without those that change no number.

    Returns:
        The values that `jobs.open_journal` compares before it continues a run.
    """
    dtype = str(objective.dtype).removeprefix("torch.")
    return {**dict(objective.source), "dtype": dtype, **options}  # `method` is an option, and also that of a training


def provenance(objective: Objective, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that is needed to compute a result again.

    Args:
        objective: model, loss and data.
        options: of the analysis.

    Returns:
        Strings, numbers, lists and mappings, as in JSON.

    Raises:
        InputError: the caller's model has changed since the objective was made.
    """
    objective.refuse_stale()
    return {
        **about_run(options, objective.device, objective.dtype),
        "batch_size": objective.batch_size,
        **dict(objective.source),
    }


def about_run(options: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Return the part of the provenance that does not depend on the objective.

    Args:
        options: of the analysis.
        device: of the computation.
        dtype: of the computation.

    Returns:
        The same as `provenance`, without the entries about model and data.
    """
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": dict(_versions()),
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "options": dict(options),
    }


_OF_ONE_RUN = {"created", "command", "versions", "device"}


def refuse_others(path: Path, was: Mapping[str, Any], now: Mapping[str, Any], *, free: Collection[str]) -> None:
    """Refuse to add to a result file what was computed in another way.

    Args:
        path: the file, for the message.
        was: its provenance.
        now: the provenance of what is to be added.
        free: names of entries and options that may differ, beside time, command, versions and device.

    Raises:
        StoreError: another entry or option differs.
    """
    now = json.loads(store.to_json(now, "the provenance"))
    for key in sorted((was.keys() | now.keys()) - _OF_ONE_RUN - set(free)):
        before, wanted = was.get(key), now.get(key)
        if key == "options" and isinstance(before, dict) and isinstance(wanted, dict):
            names = sorted((before.keys() | wanted.keys()) - set(free))
            key = next((n for n in names if not same(n, before.get(n), wanted.get(n))), "")
            before, wanted = before.get(key), wanted.get(key)
        if not same(key, before, wanted):
            before, wanted = (spaced(value) or cut(json.dumps(value), 60) for value in (before, wanted))
            raise StoreError(
                f"{path} was made with {key} {before}, now it is {wanted}: repeat the former, pass "
                f"{arg('overwrite', True)}, or choose another file"
            )


@cache
def _versions() -> Mapping[str, str]:
    """Return the versions of the packages that affect the numbers; to look one up takes milliseconds."""
    found = {name: metadata.version(name) for name in ("torch", "numpy", "scipy", "h5py")}
    return found | {"python": platform.python_version(), "landscape": metadata.version("loss-landscape-per-class")}
