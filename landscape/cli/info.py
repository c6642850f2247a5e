"""`landscape info`: the contents of a file. For a result, torch is not imported; a checkpoint needs it."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup
import numpy as np

from landscape.cli.console import Console
from landscape.cli.options import JSON, READING, command
from landscape.results import Result, hdf5, store
from landscape.results.tables import ACCURACY, LOSS, MEASURED

if TYPE_CHECKING:
    from torch import Tensor

HDF5_SUFFIXES = (".h5", ".hdf5")


@command("landscape info run/last.hessian.h5", "landscape info downloaded.pth --json")
@cloup.argument("file", type=click.Path(path_type=Path), help="A result file or a checkpoint.")
@cloup.option_group("Checkpoint", *READING)
@cloup.option_group("Output", JSON)
def info(file: Path, as_json: bool, ckpt_key: str | None, trust_pickle: bool) -> None:
    """Print what a file holds: the parts, options, origin and fields of a result, or the weights of a checkpoint."""
    console = Console(json=as_json)
    # The code that reads results explains best what is wrong with a missing file or an HDF5 file of another program.
    of_results = file.suffix.lower() in HDF5_SUFFIXES or hdf5.is_unfinished(file)
    if store.is_result(file) or of_results or not file.exists():
        result = store.load(file)
        if as_json:
            console.json(_result(result))
        else:
            _show_result(console, file, result)
        return
    found = _checkpoint(file, ckpt_key, trust_pickle)
    if as_json:
        console.json(found)
    else:
        console.say(f"{file}: a checkpoint")
        _show_mapping(console, found)


_COUNTS = {
    "n_samples": "samples", "n_used": "summed over", "train_counts": "in training", "test_counts": "tested on",
    "n_tokens": "tokens", "n_labels": "labels",
}  # fmt: skip
"""Fields that count samples of each part, and what a table calls them."""


def _counts(result: Result) -> list[str]:
    """Return the counts that a result has for each part."""
    return [name for name in _COUNTS if _has_one_a_part(result, name)]


def _has_one_a_part(result: Result, name: str) -> bool:
    axes = {item.name: item.metadata["axes"] for item in fields(result)}
    return axes.get(name) == ("part",) and getattr(result, name) is not None


def _result(result: Result) -> dict[str, Any]:
    described = [item for item in fields(result) if item.name not in ("parts", "provenance")]
    return {
        "kind": result.kind,
        "version": result.version,
        "parts": [
            {"name": name} | {column: getattr(result, column)[p] for column in _counts(result)}
            for p, name in enumerate(getattr(result, "parts", ()))
        ],
        "options": {i.name: getattr(result, i.name) for i in described if i.metadata["axes"] is None},
        "fields": {
            i.name: {
                "axes": i.metadata["axes"],
                "shape": np.shape(getattr(result, i.name)),
                "unit": i.metadata["unit"],
                "doc": i.metadata["doc"],
            }
            for i in described
            if i.metadata["axes"] is not None and getattr(result, i.name) is not None
        },
        "provenance": result.provenance,
    }


def _show_result(console: Console, file: Path, result: Result) -> None:
    found = _result(result)
    console.say(f"{file}: {found['kind']}, version {found['version']}, {len(found['parts'])} parts")
    counts = _counts(result)
    columns = {key: _COUNTS[key] for key in counts if not all(np.isnan(p[key]) for p in found["parts"])}
    known = [c for c in (LOSS, ACCURACY, *MEASURED) if _has_one_a_part(result, c.field)]
    rows = [
        [p["name"], *(f"{p[key]:,}" for key in columns), *(c.text(result, i) for c in known)]
        for i, p in enumerate(found["parts"])
    ]
    console.table(["part", *columns.values(), *(c.heading(result) for c in known)], rows)
    console.say("options")
    _show_mapping(console, found["options"])
    console.say("provenance")
    _show_mapping(console, found["provenance"])
    for sentence in getattr(result, "idle", ()):
        console.say(f"attention: {sentence}")
    rows = [
        [name, " x ".join(f"{a} {n:,}" for a, n in zip(f["axes"], f["shape"], strict=True)), f["unit"], f["doc"]]
        for name, f in found["fields"].items()
    ]
    console.table(["field", "axes", "unit", "what it is"], rows, align="llll")


def _show_mapping(console: Console, values: Mapping[str, Any], indent: str = "  ") -> None:
    width = max((len(key) for key in values), default=0)
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            console.say(f"{indent}{key}")
            _show_mapping(console, value, indent + "  ")
        else:
            text = f"{value:,}" if type(value) is int else str(value) if value not in (None, "", [], {}) else "none"
            console.say(f"{indent}{key:<{width}}  {' '.join(text.split())}")


def _checkpoint(file: Path, key: str | None, trust_pickle: bool) -> dict[str, Any]:
    from landscape.networks import checkpoints  # imports torch, which takes seconds and which a result does not need

    found = checkpoints.read(str(file), key=key, trust_pickle=trust_pickle)
    running = [t.numel() for name, t in found.state.items() if name.endswith(_BUFFERS)]
    return {
        "sha256": found.sha256,
        "weights_at": found.key,
        "tensors": len(found.state),
        "numbers": sum(t.numel() for t in found.state.values()),
        "of_which_batch_norm_statistics": sum(running),
        "dtypes": sorted({str(t.dtype).removeprefix("torch.") for t in found.state.values()}),
        "prefix": _common_prefix(list(found.state)),
        "beside_the_weights": dict(found.found),
        **_extremes(list(found.state.values())),
        "meta": dict(found.meta),
        "notes": list(found.notes),
    }


def _extremes(tensors: "list[Tensor]") -> dict[str, Any]:
    """Return how many numbers of a checkpoint are not finite, and the largest of the others."""
    n_bad, largest = 0, 0.0
    for t in (t.double().flatten() for t in tensors if t.is_floating_point()):
        finite = t[t.isfinite()]
        n_bad += len(t) - len(finite)
        largest = max(largest, float(finite.abs().max())) if len(finite) else largest
    return {"not_finite": n_bad, "largest_number": largest}


_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def _common_prefix(names: list[str]) -> str:
    """Return the common prefix of all names, such as "module." of a wrapped model."""
    heads = [name.split(".")[:-1] for name in names]
    common = []
    for level in zip(*heads, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return "".join(f"{word}." for word in common)
