"""The results in a report: their files, which of them describe the same checkpoint, and the names of the models.

Results describe the same checkpoint if the weights, the parameters that vary, the data, the split, the loss and the
weights of its classes agree; their numbers are then in one row. Two results of one kind are never in one row, nor are
a plane and the plane of a path, nor a result and a series of such results.
"""

import hashlib
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from landscape.errors import InputError, StoreError, arg
from landscape.results import History, Result
from landscape.results.columns import drawn_as, last

SECTIONS = {
    "spectrum": "Spectra",
    "surface": "Surfaces",
    "trajectory": "Paths of training",
    "sharpness": "Rise around the checkpoint",
    "sensitivity": "Directions that parts depend on",
    "distances": "Convergence points",
    "gradients": "Gradients",
    "features": "Features",
    "spectrum-series": "Spectra along training",
    "sharpness-series": "Rise around the checkpoint along training",
    "surface-series": "Lines along training",
    "history": "Training",
}
"""Kinds of results that a report shows, and the heading of each."""

EVERYTHING = "all trainable"
"""What a result's `params` says where no block of parameters was chosen."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A result, its file, and the name of its model."""

    file: str
    sha256: str  # of the file
    result: Result
    model: str  # a name that results of the same checkpoint share, and no others


def open_sources(results: Mapping[Path, Result], called: Sequence[str] | None = None) -> list[Source]:
    """Determine which results are of the same checkpoint, and name the models.

    Args:
        results: the results by their files.
        called: names of the models, in the order of their first files; None to use those in the results.

    Returns:
        One source for each result, in the same order.

    Raises:
        InputError: a result of a kind that is not shown, or names that are not one for each model.
        StoreError: a file cannot be read.
    """
    seen: Counter[Hashable] = Counter()
    models: list[tuple[Hashable, int]] = []
    for file, result in results.items():
        if result.kind not in SECTIONS:
            known = ", ".join(SECTIONS)
            raise InputError(f"{file} is a {result.kind}, which a report does not show: give files of {known}")
        checkpoint = _checkpoint(file, result)
        shown = last(result)
        kind = "surface" if shown.kind == "trajectory" else drawn_as(shown)
        models.append((checkpoint, seen[checkpoint, kind]))
        seen[checkpoint, kind] += 1
    firsts: dict[tuple[Hashable, int], tuple[Path, Result]] = {}
    for model, entry in zip(models, results.items(), strict=True):
        firsts.setdefault(model, entry)
    found = _names(list(firsts.values()))
    if called is not None:
        if len(called) != len(firsts) or len(set(called)) < len(called) or not all(called):
            known = ", ".join(found)
            raise InputError(f"{arg('names')}: give {len(firsts)} names that differ, for {known}")
        found = list(called)
    names = dict(zip(firsts, found, strict=True))
    return [
        Source(
            file=str(file),
            sha256=_sha256(file),
            result=result,
            model=names[model],
        )
        for model, (file, result) in zip(models, results.items(), strict=True)
    ]


def _checkpoint(file: Path, result: Result) -> Hashable:
    """Return what identifies the checkpoint and what was evaluated; the file where that is unknown."""
    about = result.provenance
    sha256 = about.get("checkpoint_sha256")
    several = about.get("checkpoints")
    if isinstance(several, Mapping) and several:
        sha256 = list(several.values())[-1]  # of gradients and features at several checkpoints the last is shown
    if not isinstance(sha256, str):
        return str(file)
    regrouped = about.get("regrouped")
    weights = regrouped.get("weights") if isinstance(regrouped, Mapping) else None
    block = about.get("params") or EVERYTHING
    return (
        sha256,
        str(block),
        str(weights),
        *(str(about.get(key)) for key in ("data_sha256", "split", "loss", "loss_values")),
    )


def _names(firsts: Sequence[tuple[Path, Result]]) -> list[str]:
    """Return the shortest names that differ: methods, checkpoints, or files; a file's where the other is not known."""
    files = [file.stem for file, _ in firsts]
    if len(set(files)) < len(files):
        files = [_tail(file) for file, _ in firsts]
    for of in (_method, _checkpoint_name):
        names = [of(result) or file for (_, result), file in zip(firsts, files, strict=True)]
        if len(set(names)) == len(names):
            return names
    return files if len(set(files)) == len(files) else [str(file) for file, _ in firsts]


def _method(result: Result) -> str:
    return result.method if isinstance(result, History) else str(result.provenance.get("method") or "")


def _checkpoint_name(result: Result) -> str:
    return _tail(Path(str(result.provenance.get("checkpoint") or "")))


def _tail(path: Path) -> str:
    """Return the folder and the stem, as in "ce/last"."""
    return "/".join(word for word in (path.parent.name, path.stem) if word)


def _sha256(file: Path) -> str:
    try:
        with open(file, "rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise StoreError(f"{file} cannot be read: {error.strerror}") from None
