"""`landscape evaluate`: loss, accuracy and other measures of each part, with their standard errors over samples."""

from collections.abc import Mapping
from typing import Any

import cloup
import numpy as np

from landscape.autodiff import costs, distributed
from landscape.cli.analysis import checkpoint, numbers, parts, samples
from landscape.cli.begin import begin
from landscape.cli.options import DRY_RUN, JSON, command
from landscape.objective import pilot
from landscape.objective.evaluation import Evaluation
from landscape.results import inference, written


@command(
    "landscape evaluate --ckpt run/last.pt --split test --per-class",
    "landscape evaluate --ckpt run/last.pt --split test --partition many-medium-few --json",
)
@checkpoint(parameters=False)
@samples(drawn=False)
@parts()
@numbers()
@cloup.option_group("Output", DRY_RUN, JSON)
def evaluate(*, ckpt: str, as_json: bool, **given: Any) -> None:
    """Print loss and accuracy of each part, with their standard errors over samples.

    Tasks without an accuracy have their own measures instead. No file is written.
    """
    with begin(ckpt=ckpt, as_json=as_json, **given) as (objective, console):
        costs.declare(lambda: costs.Known(works=[pilot.evaluation(objective)]))
        if not distributed.is_main():
            return
        *each, whole = _rows(objective.evaluation)
        heads = [name for name in whole if not name.endswith("_stderr")]
        shown = each if len(each) == 1 else [*each, whole]
        about = f"± standard error over samples of the {objective.samples.split} split"
        console.table(heads, [[_cell(row, name) for name in heads] for row in shown], title=about)
        console.document({"split": objective.samples.split, "parts": each, "all_parts": whole})


def _rows(found: Evaluation) -> list[dict[str, Any]]:
    """Return the numbers of each part and, at last, of the samples of all parts together."""
    counts, shares = np.append(found.counts, found.counts.sum()), found.counts / found.counts.sum()
    loss = np.append(found.loss, shares @ found.loss)
    errors = np.append(found.loss_stderr, inference.joined_stderr(found.loss, found.loss_stderr, found.counts, shares))
    rows: list[dict[str, Any]] = []
    for p, (part, n) in enumerate(zip((*found.parts, "all parts"), counts.tolist(), strict=True)):
        row: dict[str, Any] = {"part": part, "samples": n, "loss": loss[p], "loss_stderr": errors[p]}
        if found.accuracy is not None:
            row["accuracy"] = np.append(found.accuracy, shares @ found.accuracy)[p]
            row["accuracy_stderr"] = inference.share_stderr(row["accuracy"], n)
        for name, each in found.measures.items():
            row |= {name: np.append(each, found.whole[name])[p], f"{name}_stderr": found.measure_errors[name][p]}
        rows.append(row)
    return rows


def _cell(row: Mapping[str, Any], name: str) -> str:
    value, error = row[name], row.get(f"{name}_stderr")
    if isinstance(value, str | int):
        return value if isinstance(value, str) else f"{value:,}"
    if name == "accuracy":
        return f"{written.with_error(100 * value, 100 * row['accuracy_stderr'])} %"
    return written.number(value) if error is None else written.with_error(value, error)
