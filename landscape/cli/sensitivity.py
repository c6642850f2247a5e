"""The change along the sharpest directions, which `landscape sharpness --along eigen` measures."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cloup
import numpy as np

from landscape.analyses.sensitivity import sensitivity
from landscape.autodiff import distributed
from landscape.cli.console import Console
from landscape.cli.options import COUNT, EIGENVECTORS_WITHIN, Choice, option, refuse_typed
from landscape.errors import InputError
from landscape.objective.objective import Objective
from landscape.results import Sensitivity, columns
from landscape.results.foreign import interop
from landscape.results.written import number

ALONG = cloup.option_group(
    "Along the sharpest directions",
    option(
        "--along",
        type=Choice(["eigen"]),
        help="Instead of the above, measure how the loss and accuracy of each part change after a step of length "
        "--rho along eigenvectors of the Hessian, with both signs, and along --draws random directions.",
    ),
    option(
        "--of",
        metavar="NAME",
        help="Use the eigenvectors of the Hessian of this part, or of head, tail, many, medium or few.",
        show_default="all",
    ),
    option(
        "--vectors",
        type=COUNT,
        metavar="K",
        help="Use the eigenvectors of the K largest eigenvalues.",
        show_default="5",
    ),
    EIGENVECTORS_WITHIN,
)
_OPTIONS = ("along", "of", "vectors", "memory")
_SHARED = ("rho", "draws", "seed")
"""Options of the three measures that steps along eigenvectors have too."""


def take(given: dict[str, Any], ours: Mapping[str, Any]) -> dict[str, Any] | None:
    """Take the options of `ALONG` out of a command's.

    Args:
        given: the command's options; those of `ALONG` are removed from it.
        ours: the options of the three measures.

    Returns:
        The options of `sensitivity`, None where --along was not given.

    Raises:
        InputError: an option of the three measures together with --along, or an option of `ALONG` without it.
    """
    along, of, vectors, memory = (given.pop(name) for name in _OPTIONS)
    if along is None:
        for name, value in (("--of", of), ("--vectors", vectors), ("--memory", memory)):
            if value is not None:
                raise InputError(f"{name} is for --along eigen: give that too, or leave it out")
        return None
    refuse_typed((name for name in ours if name not in _SHARED), f"is not for --along {along}: leave one of them out")
    return {name: ours[name] for name in _SHARED} | {"of": of or "all", "n": vectors or 5, "memory_bytes": memory}


def run(
    console: Console, objective: Objective, options: Mapping[str, Any], path: Path, *, overwrite: bool, as_json: bool
) -> None:
    """Measure, and print which directions each part depends on."""
    with console.progress() as progress:
        found = sensitivity(objective, **options, out=path, overwrite=overwrite, progress=progress)
    if not distributed.is_main():
        return
    heads, rows = columns.table(found)
    console.table(heads, rows, title=found.title)
    _show_changes(console, found)
    console.say(f"result: {path}\nfigure: landscape plot {path}")
    if as_json:
        console.json({"result": str(path), **json.loads(interop.to_json(found))})


def _show_changes(console: Console, found: Sensitivity) -> None:
    eigen = np.flatnonzero(~found.control)
    heads = ["part", *(f"{k + 1} ({found.eigenvalue[k]:.4g})" for k in eigen), "random"]
    means = np.vstack([found.mean_loss_change[eigen], found.of_control(found.mean_loss_change)[0]])
    rows = [[part, *(number(value) for value in means[:, p])] for p, part in enumerate(found.parts)]
    console.table(heads, rows, title="change of the loss, mean of both signs, along each eigenvector (eigenvalue)")
