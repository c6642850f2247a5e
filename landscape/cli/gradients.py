"""`landscape gradients`: how the gradients of parts agree, at one checkpoint or along a run."""

import math
from pathlib import Path
from typing import Any

import cloup
import numpy as np

from landscape.analyses import gradients as analysis
from landscape.autodiff import distributed
from landscape.cli.analysis import checkpoint, numbers, output, parts, samples
from landscape.cli.begin import begin, result_path
from landscape.cli.console import Console
from landscape.cli.options import COUNT, command, option, refuse_typed, seeding
from landscape.objective.objective import Objective
from landscape.objective.runs import checkpoint_list
from landscape.results import Gradients, columns
from landscape.results.gradients import CLEAR
from landscape.results.written import few, share_with_error, with_error

GRADIENTS = cloup.option_group(
    "Gradients",
    option(
        "--batches",
        type=COUNT,
        metavar="K",
        help="Average over K random batches, as in training.",
        show_default="exact gradients over all samples",
    ),
    option(
        "--samples-per-batch",
        type=COUNT,
        default=128,
        show_default=True,
        metavar="N",
        help="Draw N samples for each of the --batches; best is the batch size of the training.",
    ),
    seeding("the draw of the --batches"),
    option(
        "--sampling-errors",
        is_flag=True,
        help="Also compute how much another sample of the data would change the numbers. This needs one more pass over "
        "the data.",
    ),
)

PER_PART = (
    "loss", "norm", "norm_stderr", "cosine", "cosine_stderr", "projected", "projected_stderr", "specific",
    "specific_stderr", "radius", "radius_stderr", "contribution", "contribution_stderr", "norm_rounding", "batches",
)  # fmt: skip
PER_POINT = ("epoch", "whole_norm", "whole_norm_stderr", "whole_norm_rounding", "theta_norm")
OVER_SAMPLES = tuple(
    f"{name}_sampling_stderr" for name in ("loss", "norm", "cosine", "projected", "specific", "radius", "contribution")
)
PER_LAYER = (
    *(f"layer_{name}{error}" for name in ("whole_norm", "norm", "cosine", "contribution") for error in ("", "_stderr")),
    *(f"layer_{name}_rounding" for name in ("whole_norm", "norm")),
)
LAYERS_OVER_SAMPLES = tuple(
    f"layer_{name}_sampling_stderr" for name in ("whole_norm", "norm", "cosine", "contribution")
)

MOST_LAYERS = 24
"""Layers that are printed as a table."""
RESOLVED = 0.25
"""If |g| has a larger relative error over samples, its direction is not known well (docs/uncertainty.md)."""


@command(
    "landscape gradients --ckpt run/last.pt",
    "landscape gradients --ckpt run --partition head-tail --batches 50",
)
@checkpoint(several=True)
@samples()
@parts(default="class")
@GRADIENTS
@numbers(cache="gradients; a smaller cache needs more passes over the data")
@output()
def gradients(
    *,
    ckpt: str,
    batches: int | None,
    samples_per_batch: int,
    seed: int,
    sampling_errors: bool,
    cache: float,
    out: str | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Compare the gradient of each part with the gradient over all parts and with those of the other parts.

    The command prints norms, cosines and conflicts, and also stores them for each layer. If --ckpt is the folder of a
    run, it measures each snapshot.

    Raises:
        InputError: --samples-per-batch without --batches.
    """
    if batches is None:
        refuse_typed(["samples_per_batch"], "needs --batches: without them gradients are exact, over all samples")
    read = {name: given[name] for name in ("ckpt_key", "trust_pickle")}
    found = checkpoint_list(ckpt, **read)
    last = str(found[-1][0])
    with begin(ckpt=last, default="class", quiet=quiet, as_json=as_json, **given) as (objective, console):
        path = result_path(out, ckpt, "gradients")
        with console.progress() as progress:
            result = analysis.gradients(
                objective,
                checkpoints=found,
                batches=batches,
                samples_per_batch=samples_per_batch,
                seed=seed,
                sampling_errors=sampling_errors,
                cache_bytes=int(min(cache, 2**30) * 2**30),
                out=path,
                overwrite=overwrite,
                progress=progress,
                **read,
            )
        if not distributed.is_main():
            return
        _conclude(console, objective, result, path)
        if as_json:
            console.json(_document(result, path))


def _conclude(console: Console, objective: Objective, found: Gradients, path: Path) -> None:
    """Print the parts at the last checkpoint, and the ends' cosines along the run."""
    last = len(found.points) - 1
    heads, rows = columns.table(found)
    console.table(heads, rows, title=found.title)
    left = len(objective.undrawn.samples) - int(found.n_samples.sum())
    if left:
        console.note(f"{left:,} samples are in no part: g, the whole, is that of the {found.n_samples.sum():,} others")
    rounded = found.only_rounding("norm")[last]
    if (np.isnan(found.cosine[last]) & ~rounded & ~found.only_rounding("whole_norm")[last]).any():
        console.note("nan: a part that is fitted exactly, or that no batch has, has no gradient to compare")
    _rounding(console, objective, found)
    scatter = None if found.whole_norm_sampling_stderr is None else found.whole_norm_sampling_stderr[last]
    single = [part for part, n in zip(found.parts, found.n_samples, strict=True) if n == 1]
    if scatter is not None and np.isnan(scatter) and single:
        console.note(
            f"errors of numbers that involve the whole are unknown, as a part of one sample has no spread "
            f"({', '.join(single[:5])}): leave it out with --classes"
        )
    elif (
        scatter is not None
        and not found.only_rounding("whole_norm")[last]
        and not scatter <= RESOLVED * found.whole_norm[last]
    ):
        console.note(
            f"the parts' gradients nearly cancel, or there are few samples: |g| = {found.whole_norm[last]:.3g} ± "
            f"{scatter:.2g} over samples. Shares of g, and components and cosines along it, are then further off than "
            "their errors say"
        )
    _by_layer(console, found, path)
    if last:
        _along(console, found)
    kind = " --kind epochs" if last else ""
    console.say(f"result: {path}\nfigure: landscape plot {path}{kind}")


def _rounding(console: Console, objective: Objective, found: Gradients) -> None:
    """Name the gradients that may be nothing but rounding, at the last checkpoint."""
    whole, parts = found.only_rounding("whole_norm")[-1], found.only_rounding("norm")[-1]
    names = ["the whole"] if whole else []
    names += [few([part for part, is_so in zip(found.parts, parts, strict=True) if is_so])] if parts.any() else []
    if found.layers is not None and (layers := found.only_rounding("layer_whole_norm")[-1]).any():
        within = [layer for layer, is_so in zip(found.layers, layers, strict=True) if is_so]
        names.append(f"the whole within {few(within)}")
    if names:
        finer = "" if objective.dtype.itemsize == 8 else "; --dtype float64 has more digits"
        console.note(
            f"(rounding): at most {CLEAR} times its measured rounding, so it may be zero and has no direction: the "
            f"gradient of {'; '.join(names)}{finer}"
        )


def _by_layer(console: Console, found: Gradients, path: Path) -> None:
    """Print how the most frequent and the rarest parts share the gradient of each layer, at the last checkpoint."""
    layers, whole, contribution = found.layers, found.layer_whole_norm, found.layer_contribution
    if layers is None or whole is None or contribution is None or len(layers) == 1:
        return
    if len(layers) > MOST_LAYERS:
        console.say(f"{len(layers)} layers: landscape plot {path} --kind layers")
        return
    ends, of_whole, of_share = (
        _ends(found),
        *(_last_errors(found, f"layer_{name}") for name in ("whole_norm", "contribution")),
    )
    rounded = found.only_rounding("layer_whole_norm")[-1]
    rows = [
        [
            name,
            with_error(whole[-1, k], of_whole[k]) + " (rounding)" * bool(rounded[k]),
            *(_percent(contribution[-1, k, p], of_share[k, p]) for p in ends),
        ]
        for k, name in enumerate(layers)
    ]
    heads = ["layer", "|g|", *(f"% from {found.parts[p]}" for p in ends)]
    console.table(heads, rows, title="g by layers: the most frequent and the rarest parts")


def _last_errors(found: Gradients, name: str) -> np.ndarray:
    """Return the standard errors of a number at the last checkpoint, over samples or batches; 0 where it has none."""
    over_samples = getattr(found, f"{name}_sampling_stderr")
    errors: np.ndarray = (getattr(found, f"{name}_stderr") if over_samples is None else over_samples)[-1]
    return errors


def _percent(share: float, error: float) -> str:
    """Return the text of a share, in percent, with its error; a dash if it is not defined."""
    return "-" if math.isnan(share) else share_with_error(share, error)


def _ends(found: Gradients) -> list[int]:
    """Return the two most frequent and the two rarest parts."""
    order = np.argsort(-found.train_counts, kind="stable")
    return list(dict.fromkeys([*order[:2].tolist(), *order[-2:].tolist()]))


def _along(console: Console, found: Gradients) -> None:
    """Print how the most frequent and the rarest parts agree with the whole, checkpoint by checkpoint."""
    ends = _ends(found)
    rows = [
        [
            name,
            "-" if np.isnan(found.epoch[k]) else f"{found.epoch[k]:g}",
            f"{found.whole_norm[k]:.4g}" + " (rounding)" * bool(found.only_rounding("whole_norm")[k]),
            *(f"{found.cosine[k, p]:.3f}" for p in ends),
        ]
        for k, name in enumerate(found.points)
    ]
    console.table(
        ["checkpoint", "epoch", "|g|", *(f"cos of {found.parts[p]}" for p in ends)],
        rows,
        title="along the run: the most frequent and the rarest parts",
    )


def _document(found: Gradients, path: Path) -> dict[str, Any]:
    points = []
    for k, name in enumerate(found.points):
        parts = [
            {"part": part, "n_samples": found.n_samples[p], "train_counts": found.train_counts[p]}
            | {field: getattr(found, field)[k, p] for field in PER_PART}
            | {name: values[k, p] for name in OVER_SAMPLES if (values := getattr(found, name)) is not None}
            for p, part in enumerate(found.parts)
        ]
        matrices = {
            "between": found.between[k],
            "between_stderr": found.between_stderr[k],
            "conflict": found.conflict[k],
        } | {field: getattr(found, field)[k] for field in PER_LAYER}
        about = {field: getattr(found, field)[k] for field in PER_POINT}
        if found.whole_norm_sampling_stderr is not None:
            about["whole_norm_sampling_stderr"] = found.whole_norm_sampling_stderr[k]
        matrices |= {
            name: values[k]
            for name in ("between_sampling_stderr", *LAYERS_OVER_SAMPLES)
            if (values := getattr(found, name)) is not None
        }
        points.append({"checkpoint": name, **about, "parts": parts, **matrices})
    return {
        "result": str(path),
        "parameters": found.size,
        "samples_per_batch": found.batch_size or None,
        "layers": found.layers,
        "checkpoints": points,
    }
