"""`landscape surface1d` and `landscape surface2d`: loss and accuracy of every part around a checkpoint."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import cloup
import numpy as np

from landscape.analyses import directions
from landscape.analyses import surface as surfaces
from landscape.autodiff import distributed
from landscape.cli import along as alongs
from landscape.cli.analysis import checkpoint, numbers, output, parts, samples
from landscape.cli.around import AROUND, line
from landscape.cli.begin import begin, result_path
from landscape.cli.compared import OF_DRAW
from landscape.cli.console import Console
from landscape.cli.directed import DIRECTIONS, Chosen, directed
from landscape.cli.options import (
    EIGENVECTORS_WITHIN,
    FRACTION,
    POSITIVE,
    Choice,
    Decorator,
    command,
    listed,
    option,
    seeding,
)
from landscape.data import datasets
from landscape.data.records import Records
from landscape.data.samples import split_validation
from landscape.errors import InputError
from landscape.networks.arguments import arguments
from landscape.objective.batch_norm import DEFAULT, POLICIES, BatchNorm, policies
from landscape.objective.loading import HELD_OUT, taken
from landscape.objective.objective import Objective
from landscape.objective.runs import Stage
from landscape.results import Surface, column_values, columns, disk, hdf5, store
from landscape.results.foreign import surface_files
from landscape.results.predicted import FIELDS

BN_SAMPLES = option(
    "--bn-samples",
    type=click.IntRange(min=2),
    default=2048,
    show_default=True,
    metavar="N",
    help="Re-estimate batch-norm statistics from N training samples, if --bn requires it.",
)
REFINE = option(
    "--refine",
    type=FRACTION,
    metavar="FRACTION",
    help="Skip points that interpolation predicts to within this fraction of the loss, such as 0.01.",
)
BF16 = option("--bf16", is_flag=True, help="Run the network in bfloat16. Losses change by about 0.1 %.")


def batch_norm(command: str, default: str | None = DEFAULT, shown: str | bool = True) -> Decorator[Any]:
    """Return the option that says which running statistics batch norm uses away from the checkpoint.

    Args:
        command: whose option it is.
        default: the policy where none is given.
        shown: how the help describes the default.
    """
    known = policies(command)
    listing = "; ".join(f"{name}: {policy.does}" for name, policy in known.items())
    return option(
        "--bn",
        type=Choice(tuple(known)),
        default=default,
        show_default=shown,
        help=f"Choose the running statistics of batch norm at each point. {listing}.",
    )


_X = option(
    "--x",
    metavar="MIN:MAX:N",
    help="Place N points from MIN to MAX on the first axis. Coordinates are multiples of the direction.",
    show_default="-1:1:51",
)
_Y = option(
    "--y", metavar="MIN:MAX:N", help="Place N points from MIN to MAX on the second axis.", show_default="as --x"
)
_DIRECTIONS = (
    option(
        "--directions",
        "kind",
        metavar="KIND",
        help=f"Choose the directions: {', '.join(DIRECTIONS)}, or an .h5 file from --save-plane or "
        f"{surface_files.GOLDSTEIN}.",
        show_default="random; ckpt with --ckpt-to, pca with --trajectory",
    ),
    option("--ckpt-to", multiple=True, metavar="FILE", help="Use the direction to this checkpoint (ckpt)."),
    option(
        "--trajectory",
        metavar="FILES",
        help="Use the principal components of these checkpoints (pca): 'run/snapshots/*.pt', or a run's folder.",
    ),
    option(
        "--of",
        metavar="PARTS",
        help="Use the top eigenvectors (eigen) or the gradients (gradient) of these parts: tail, or head,tail.",
    ),
    EIGENVECTORS_WITHIN,
    option(
        "--norm",
        type=Choice(directions.NORMALISATIONS),
        default="filter",
        show_default=True,
        help="Scale random directions to the norms of the weights: per filter, per layer, per weight, or not.",
    ),
    option(
        "--ignore",
        type=Choice(directions.IGNORED),
        default="biasbn",
        show_default=True,
        help="Keep these parameters fixed along random directions: biases and those of batch norm, or none.",
    ),
    option(
        "--orthogonal/--skewed",
        default=True,
        show_default=True,
        help="Make the second direction orthogonal to the first, or keep the angle between them; random ones, those of "
        "pca and those of a file always keep it.",
    ),
)
_MATCH = option(
    "--match",
    is_flag=True,
    help="First reorder the channels of the --ckpt-to network so that they match those of this network.",
)
_PLANES_AND_MARKS = (
    option(
        "--plane-origin",
        is_flag=True,
        help="Centre a stored plane at its own origin instead of at this checkpoint.",
    ),
    option("--save-plane", metavar="FILE.h5", help="Store the directions, to use them for another network."),
    option("--mark", multiple=True, metavar="FILE", help="Also show this checkpoint on the surface."),
    seeding("random directions and --bn-samples"),
)
_LINE = cloup.option_group("Line", _X, *_DIRECTIONS, _MATCH, *_PLANES_AND_MARKS)
_PLANE = cloup.option_group("Plane", _X, _Y, *_DIRECTIONS, *_PLANES_AND_MARKS)

_NUMBERS = (
    batch_norm("surface2d"),
    BN_SAMPLES,
    REFINE,
    BF16,
    option(
        "--radius",
        type=POSITIVE,
        metavar="RADIUS",
        help="Report the largest rise of the loss within this Euclidean distance.",
        show_default="the distance of the nearest points",
    ),
)

_EXTENT = {"ckpt": "-0.5:1.5:61"}


@command(
    "landscape surface1d --ckpt run/last.pt --x=-1:1:51",
    "landscape surface1d --ckpt a/last.pt --ckpt-to b/last.pt",
)
@checkpoint(series=True)
@samples()
@parts(default="class")
@_LINE
@numbers(*_NUMBERS)
@output(alongs.EXTEND)
def surface1d(**given: Any) -> None:
    """Compute the loss and the accuracy of each part on a line through a checkpoint.

    On a line to another checkpoint (--ckpt-to), the command reports the loss barrier between the two. For several
    checkpoints, the result is a series along training with a line around each checkpoint.
    """
    first, stages = alongs.listed(given["ckpt"], given)
    extend = given.pop("extend")
    alongs.refuse_single(stages, extend=extend)
    if stages:
        _run_series(first, stages, given, extend=extend)
    else:
        _run("surface1d", 1, given | {"ckpt": first})


@command(
    "landscape surface2d --ckpt run/last.pt --x=-1:1:21",
    "landscape surface2d --ckpt run/last.pt --directions eigen --of head,tail",
)
@checkpoint()
@samples()
@parts(default="class")
@_PLANE
@numbers(*_NUMBERS)
@output()
def surface2d(**given: Any) -> None:
    """Compute the loss and the accuracy of each part on a plane through a checkpoint.

    landscape plot can join the classes into groups and weight them later: landscape plot FILE.h5 --groups head-tail.
    """
    _run("surface2d", 2, given | {"match": False})


def parse_range(text: str, name: str) -> np.ndarray:
    """Return the coordinates that "min:max:n" stands for.

    Args:
        text: as given.
        name: of the option.

    Returns:
        (n,) evenly spaced, ascending.

    Raises:
        InputError: it has another form, or no points.
    """
    words = text.split(":")
    try:
        first, last, number = words
        low, high, n = float(first), float(last), int(number)
    except ValueError:
        raise InputError(f"{name}={text} is not of the form MIN:MAX:N, as in {name}=-1:1:51") from None
    if not (np.isfinite([low, high]).all() and n >= 1):
        raise InputError(f"{name}={text} needs finite ends and at least one point")
    if n > surfaces.MOST_POINTS:
        raise InputError(f"{name}={text} asks for {n:,} points: at most {surfaces.MOST_POINTS:,}")
    if low > high:
        raise InputError(f"{name}={text} runs backwards: write {name}={words[1]}:{words[0]}:{n}")
    if (low == high) != (n == 1):
        raise InputError(f"{name}={text}: the ends must be equal for one point, and must differ for several")
    return np.linspace(low, high, n)


def _run(command: str, n_axes: int, given: dict[str, Any]) -> None:
    """Compute the line or plane around one checkpoint."""
    chosen = Chosen.taken(given)
    x, y = given.pop("x") or _EXTENT.get(chosen.kind, "-1:1:51"), given.pop("y", None)
    axes = [parse_range(x, "--x"), parse_range(y or x, "--y")][:n_axes]
    chosen.refuse(n_axes)
    ckpt, as_json, overwrite = given["ckpt"], given["as_json"], given.pop("overwrite")
    path, save_plane = result_path(given.pop("out"), ckpt, command), given.pop("save_plane")
    if save_plane:
        disk.refuse_taken(Path(save_plane), overwrite=overwrite or given["dry_run"], signature=hdf5.SIGNATURE)
    options = {name: given.pop(name) for name in ("refine", "bf16", "radius")}
    bn, bn_samples = given.pop("bn"), given.pop("bn_samples")
    with begin(default="class", **given) as (objective, console):
        reading = {"key": given["ckpt_key"], "trust_pickle": given["trust_pickle"]}
        along, marks = directed(objective, n_axes, chosen, console, reading)
        with console.progress() as progress:
            result = surfaces.surface(
                objective,
                along,
                *axes,
                marks=marks,
                batch_norm=bn,
                training=training_samples(objective, bn, given),
                training_samples=bn_samples,
                seed=chosen.seed,
                **options,
                between=n_axes == 1 and chosen.kind == "ckpt",
                out=path,
                overwrite=overwrite,
                progress=progress,
            )
        if not distributed.is_main():
            return
        if save_plane:
            about = {"made from": ckpt, "directions": chosen.kind, "seed": chosen.seed}
            store.save(save_plane, directions.to_plane(objective, along, about), overwrite=overwrite)
        conclude(console, result, path)
        if as_json:
            console.json(document(result, path))


def _run_series(first: str, stages: Sequence[Stage], given: dict[str, Any], *, extend: bool) -> None:
    """Compute the line around each checkpoint of a series."""
    chosen = Chosen.taken(given)
    elsewhere = (chosen.ckpt_to, chosen.trajectory, chosen.plane_origin, chosen.mark, chosen.match)
    if any((*elsewhere, given.pop("save_plane"))) or not chosen.orthogonal or chosen.kind not in AROUND:
        raise InputError(
            f"a line around each of {len(stages)} checkpoints goes along --directions {listed(AROUND)} of its own: "
            "leave out what leads to other checkpoints, or give one --ckpt"
        )
    chosen.refuse(1)
    options = {name: getattr(chosen, name) for name in ("kind", "of", "norm", "ignore", "seed")}
    options |= {} if chosen.memory is None else {"memory": chosen.memory}
    options |= {name: given.pop(name) for name in ("refine", "bf16", "radius")}
    ckpt, as_json, bn = given.pop("ckpt"), given.pop("as_json"), given.pop("bn")
    path = alongs.path_of(given.pop("out"), ckpt, stages, "surface1d")
    options["x"] = parse_range(given.pop("x") or "-1:1:51", "--x").tolist()
    options |= {"batch_norm": bn, "training_samples": given.pop("bn_samples")}
    where = {"out": path, "overwrite": given.pop("overwrite"), "extend": extend, "given": given}
    first = alongs.drawn_at(first, stages, path, extend=extend, given=given)
    with begin(ckpt=first, default="class", as_json=as_json, **given) as (objective, console):
        options["training"] = training_samples(objective, bn, given)
        found = alongs.run(console, line, objective, stages, **where, **options)
        alongs.conclude(console, found, path, document, as_json=as_json)


def training_samples(objective: Objective, bn: BatchNorm, given: Mapping[str, Any]) -> datasets.Samples | None:
    """Load all training data for a re-estimation of running statistics, where the surface is of other data.

    A number of samples of each class, of which the surface may be, would give the statistics of other classes.

    Args:
        objective: of the surface.
        bn: policy for batch norm.
        given: options of the command, of which loss, task and target say how a user's data are read.
            With `samples_per_class` the objective's own data are not all.

    Returns:
        The training data; None where it is not needed or is the objective's own.

    Raises:
        InputError: it cannot be loaded by name.
    """
    whole = objective.samples.split == "train" and given["samples_per_class"] is None
    if not POLICIES[bn].trains or whole:
        return None
    options = dict(objective.samples.options)
    if not options:
        raise InputError(f"--bn {bn} needs training data: pass --split train, without --samples-per-class")
    take = partial(taken, **{name: given[name] for name in ("loss", "task", "target")})
    found = datasets.load(**{**options, "split": "train"}, take=take)
    if held := objective.source.get(HELD_OUT):
        found, _ = split_validation(found, **held)
    return found.taken_by(partial(arguments, objective.model)) if isinstance(found, Records) else found


def conclude(console: Console, result: Surface, path: Path) -> None:
    """Print what the surface says of each part, and its verdict.

    Args:
        console: where to.
        result: the surface.
        path: of its file.
    """
    heads, rows = columns.table(result)
    console.table(heads, rows, title=result.title)
    if column_values.drawn(result).any():
        console.note(OF_DRAW)
    console.say(f"verdict: {result.verdict}")
    console.say(f"result: {path}\nfigure: landscape plot {path}")


def document(result: Surface, path: Path) -> dict[str, Any]:
    """Return the same as one JSON document."""
    named = ("centre_loss_stderr", "centre_accuracy_stderr", "barrier_stderr")
    errors = [name for name in named if getattr(result, name) is not None]
    names = ["n_samples", "centre_loss", "centre_accuracy", *errors]
    names += [name for name in FIELDS if getattr(result, name) is not None]
    names += ["lowest_loss", "lowest_position", "doubling_radius"]
    names += ["worst_rise"] + (["barrier"] if result.barrier is not None else [])
    parts = [{"part": part} | {n: getattr(result, n)[p] for n in names} for p, part in enumerate(result.parts)]
    return {"result": str(path), "verdict": result.verdict, "axes": result.axes, "parts": parts}
