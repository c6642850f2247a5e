"""`landscape features`: how far the classes stand apart in the space of features, at one checkpoint or along a run."""

from pathlib import Path
from typing import Any

import cloup
import numpy as np

from landscape.analyses import features as analysis
from landscape.autodiff import distributed
from landscape.cli.analysis import checkpoint, numbers, output, samples
from landscape.cli.begin import begin, result_path
from landscape.cli.console import Console
from landscape.cli.options import SIZE, command, option
from landscape.errors import StoreError
from landscape.objective.runs import checkpoint_list
from landscape.results import Features, History, columns, store, written
from landscape.results.features import WITH_ERRORS

FEATURES = cloup.option_group(
    "Features",
    option(
        "--beta",
        type=SIZE,
        metavar="X",
        default=0.5,
        show_default=True,
        help="Set beta, the weight of the variance, in Q = Dis - beta log Var.",
    ),
    # Here the parts are always the classes; the option may be given all the same, as with the other commands.
    option("--per-class", is_flag=True, hidden=True, expose_value=False),
)

COLLAPSE = {
    "within_between": "NC1",
    "norm_variation": "NC2 norms",
    "angle_deviation": "NC2 angles",
    "duality": "NC3",
    "mean_disagreement": "NC4",
}
"""Fields of `Features` that go to 0 in neural collapse, and their names in a table."""

PER_CLASS = (
    "n_samples", "train_counts", "loss", "accuracy", "quality", "quality_inverse", "distance", "nearest", "variance",
    "mean_norm", "alignment", "disagreement",
)  # fmt: skip


@command(
    "landscape features --ckpt run/last.pt",
    "landscape features --ckpt run --split test",
)
@checkpoint(several=True, parameters=False)
@samples()
@FEATURES
@numbers(cache="features; if they need more, the data are read twice")
@output()
def features(
    *,
    ckpt: str,
    beta: float,
    cache: float,
    out: str | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Measure how well the features separate each class, and how far the network is from neural collapse.

    Features are the inputs of the last linear layer. If --ckpt is the folder of a run, the command measures each
    snapshot.

    Raises:
        InputError: options that are unknown or contradict each other.
    """
    read = {name: given[name] for name in ("ckpt_key", "trust_pickle")}
    found = checkpoint_list(ckpt, **read)
    last = str(found[-1][0])
    chosen = "all" if given["samples"] is None else "class"  # draws are made for each class separately
    with begin(ckpt=last, default=chosen, quiet=quiet, as_json=as_json, **given) as (objective, console):
        path = result_path(out, ckpt, "features")
        with console.progress() as progress:
            result = analysis.features(
                objective,
                checkpoints=found,
                beta=beta,
                cache_bytes=int(min(cache, 2**30) * 2**30),
                out=path,
                overwrite=overwrite,
                progress=progress,
                **read,
            )
        if not distributed.is_main():
            return
        _conclude(console, result, path)
        _mention_history(console, Path(ckpt))
        if as_json:
            console.json(_document(result, path))


def _conclude(console: Console, found: Features, path: Path) -> None:
    """Print the classes at the last checkpoint, and the collapse at each."""
    heads, rows = columns.table(found)
    console.table(heads, rows, title=found.title)
    _show_collapse(console, found)
    console.say(f"result: {path}\nfigure: landscape plot {path}")


def _show_collapse(console: Console, found: Features) -> None:
    """Print the measures of neural collapse, with the quality of the most frequent and the rarest class."""
    if len(found.points) == 1:
        numbers = ", ".join(f"{label} {_with_error(found, name)}" for name, label in COLLAPSE.items())
        console.say(f"neural collapse, where all of these are 0: {numbers}")
        return
    order = np.argsort(-found.train_counts, kind="stable")
    ends = (order[0], order[-1])
    rows = [
        [name, _epoch(found.epoch[k])]
        + [f"{found.quality[k, c]:.3f}" for c in ends]
        + [f"{getattr(found, field)[k]:.4g}" for field in COLLAPSE]
        for k, name in enumerate(found.points)
    ]
    heads = ["checkpoint", "epoch", *(f"Q of {found.parts[c]}" for c in ends), *COLLAPSE.values()]
    console.table(heads, rows, title="along the run; in neural collapse all NC are 0")


def _with_error(found: Features, name: str) -> str:
    errors = getattr(found, f"{name}_stderr")
    value = float(getattr(found, name)[0])
    return f"{value:.4g}" if errors is None else written.with_error(value, float(errors[0]))


def _epoch(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:g}"


def _mention_history(console: Console, run: Path) -> None:
    """Say that a run has measured the quality of its own features, where it has."""
    file = run / "history.h5"
    if not file.is_file():
        return
    try:
        history = store.load(file)
    except StoreError:
        return  # the user did not ask for this file: an unreadable one is no error here
    if isinstance(history, History) and (n := int(np.isfinite(history.quality).any(axis=1).sum())):
        console.note(f"the run measured it itself after {n} epochs: landscape plot {file} --kind quality")


def _document(found: Features, path: Path) -> dict[str, Any]:
    points = []
    with_errors = [f"{name}_stderr" for name in WITH_ERRORS if getattr(found, f"{name}_stderr") is not None]
    per_class = [*PER_CLASS, *(name for name in with_errors if getattr(found, name).ndim > 1)]
    per_point = [*COLLAPSE, *(name for name in with_errors if getattr(found, name).ndim == 1)]
    for k, name in enumerate(found.points):
        classes = [
            {"class": part} | {n: _at(getattr(found, n), k, c) for n in per_class} for c, part in enumerate(found.parts)
        ]
        numbers = {n: getattr(found, n)[k] for n in per_point}
        points.append({"checkpoint": name, "epoch": found.epoch[k], **numbers, "classes": classes})
    return {"result": str(path), "beta": found.beta, "features": found.n_features, "checkpoints": points}


def _at(values: np.ndarray, point: int, part: int) -> Any:
    return values[part] if values.ndim == 1 else values[point, part]
