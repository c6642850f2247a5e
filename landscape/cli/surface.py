"""`landscape surface1d` and `landscape surface2d`: loss and accuracy of every part around a checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import cloup
import numpy as np

from landscape.analyses import directions
from landscape.analyses import surface as surfaces
from landscape.analyses.directions import Directions, Ignored, Normalisation
from landscape.autodiff import distributed
from landscape.cli import along as alongs
from landscape.cli.analysis import checkpoint, numbers, output, parts, samples
from landscape.cli.around import AROUND, around, line
from landscape.cli.begin import begin, result_path
from landscape.cli.console import Console
from landscape.cli.options import FRACTION, POSITIVE, SEED, Choice, Decorator, command, listed, option
from landscape.cli.planes import stored_plane
from landscape.data import datasets
from landscape.errors import InputError, nearest
from landscape.networks.matching import matching
from landscape.objective import points, snapshots
from landscape.objective.batch_norm import DEFAULT, POLICIES, BatchNorm, policies
from landscape.objective.objective import Objective
from landscape.objective.points import Point
from landscape.objective.runs import Stage, path_of_training
from landscape.results import Surface, columns, disk, hdf5, store
from landscape.results.foreign import surface_files
from landscape.results.predicted import FIELDS

DIRECTIONS = ("random", "ckpt", "pca", "eigen", "gradient")
"""The names that --directions accepts; a file with a stored plane is the other choice."""

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


def _axes(n_axes: int) -> Decorator[Any]:
    """Return the options of the line or plane."""
    second = option(
        "--y", metavar="MIN:MAX:N", help="Place N points from MIN to MAX on the second axis.", show_default="as --x"
    )
    match = option(
        "--match",
        is_flag=True,
        help="First reorder the channels of the --ckpt-to network so that they match those of this network.",
    )
    return cloup.option_group(
        "Line" if n_axes == 1 else "Plane",
        option(
            "--x",
            metavar="MIN:MAX:N",
            help="Place N points from MIN to MAX on the first axis. Coordinates are multiples of the direction.",
            show_default="-1:1:51",
        ),
        *([second] if n_axes > 1 else []),
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
            help="Make the second direction orthogonal to the first, or keep the angle between them.",
        ),
        *([match] if n_axes == 1 else []),
        option(
            "--plane-origin",
            is_flag=True,
            help="Centre a stored plane at its own origin instead of at this checkpoint.",
        ),
        option("--save-plane", metavar="FILE.h5", help="Store the directions, to use them for another network."),
        option("--mark", multiple=True, metavar="FILE", help="Also show this checkpoint on the surface."),
        option(
            "--seed",
            type=SEED,
            default=0,
            show_default=True,
            metavar="N",
            help="Seed random directions and --bn-samples.",
        ),
    )


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
_ELSEWHERE = ("ckpt_to", "trajectory", "plane_origin", "save_plane", "mark", "match")
"""Options that lead to other checkpoints than the one that a surface is around."""


@command(
    "landscape surface1d --ckpt run/last.pt --x=-1:1:51",
    "landscape surface1d --ckpt a/last.pt --ckpt-to b/last.pt",
)
@checkpoint(series=True)
@samples()
@parts(default="class")
@_axes(1)
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
        _run("surface1d", 1, **given | {"ckpt": first})


@command(
    "landscape surface2d --ckpt run/last.pt --x=-1:1:21",
    "landscape surface2d --ckpt run/last.pt --directions eigen --of head,tail",
)
@checkpoint()
@samples()
@parts(default="class")
@_axes(2)
@numbers(*_NUMBERS)
@output()
def surface2d(**given: Any) -> None:
    """Compute the loss and the accuracy of each part on a plane through a checkpoint.

    landscape plot can join the classes into groups and weight them later: landscape plot FILE.h5 --groups head-tail.
    """
    _run("surface2d", 2, match=False, **given)


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


def _run(
    command: str,
    n_axes: int,
    *,
    ckpt: str,
    per_class: bool,
    partition: str | None,
    x: str | None,
    y: str | None = None,
    kind: str | None,
    ckpt_to: tuple[str, ...],
    trajectory: str | None,
    of: str | None,
    norm: Normalisation,
    ignore: Ignored,
    orthogonal: bool,
    seed: int,
    plane_origin: bool,
    save_plane: str | None,
    mark: tuple[str, ...],
    match: bool,
    bn: BatchNorm,
    bn_samples: int,
    refine: float | None,
    bf16: bool,
    radius: float | None,
    out: str | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    **loading: Any,
) -> None:
    kind = kind or ("ckpt" if ckpt_to else "pca" if trajectory else "random")
    x = x or _EXTENT.get(kind, "-1:1:51")
    axes = [parse_range(x, "--x"), parse_range(y or x, "--y")][:n_axes]
    _refuse(kind, n_axes, ckpt_to=ckpt_to, trajectory=trajectory, of=of, match=match, plane_origin=plane_origin)
    reading = {"key": loading.get("ckpt_key"), "trust_pickle": loading["trust_pickle"]}
    path = result_path(out, ckpt, command)
    if save_plane:
        disk.refuse_taken(Path(save_plane), overwrite=overwrite, signature=hdf5.SIGNATURE)
    with begin(
        ckpt=ckpt,
        per_class=per_class,
        partition=partition,
        default="class",
        quiet=quiet,
        as_json=as_json,
        **loading,
    ) as (objective, console):
        others = _others(objective, ckpt_to, match=match, console=console, **reading)
        marks = dict(others) if kind == "ckpt" else {}
        marks |= _read(objective, mark, **reading)
        if kind in AROUND:
            along = around(objective, n_axes, kind=kind, of=of, seed=seed, norm=norm, ignore=ignore)
        elif kind == "ckpt":
            along = directions.towards(objective, list(others.values()), list(others))
            if n_axes == 2 and len(others) == 1:
                along = _with_random(objective, along, seed, norm, ignore)
        elif kind == "pca":
            listed = path_of_training(
                trajectory or "", ckpt_key=reading["key"], trust_pickle=bool(reading["trust_pickle"])
            )
            found = snapshots.find(objective, list(listed), **reading)
            path_points = {s.name: points.of(objective, s, **reading) for s in found}
            along = directions.principal(objective, list(path_points.values()), n_axes)
            marks |= path_points
        else:
            along = stored_plane(objective, kind, n_axes, own_origin=not plane_origin)
        if orthogonal and kind not in ("random", "pca"):
            along = along.orthogonalised()
        with console.progress() as progress:
            result = surfaces.surface(
                objective,
                along,
                *axes,
                marks=marks,
                batch_norm=bn,
                training=training_samples(objective, bn),
                training_samples=bn_samples,
                seed=seed,
                bf16=bf16,
                refine=refine,
                radius=radius,
                between=n_axes == 1 and kind == "ckpt",
                out=path,
                overwrite=overwrite,
                progress=progress,
            )
        if save_plane and distributed.is_main():
            about = {"made from": ckpt, "directions": kind, "seed": seed}
            store.save(save_plane, directions.to_plane(objective, along, about), overwrite=overwrite)
        if distributed.is_main():
            conclude(console, result, path)
            if as_json:
                console.json(document(result, path))


def _run_series(first: str, stages: Sequence[Stage], given: dict[str, Any], *, extend: bool) -> None:
    """Compute the line around each checkpoint of a series."""
    elsewhere = {name: given.pop(name) for name in _ELSEWHERE}
    options = {name: given.pop(name) for name in ("of", "norm", "ignore", "seed", "refine", "bf16", "radius")}
    ckpt, as_json, bn = given.pop("ckpt"), given.pop("as_json"), given.pop("bn")
    options["kind"] = kind = given.pop("kind") or "random"
    if any(elsewhere.values()) or not given.pop("orthogonal") or kind not in AROUND:
        raise InputError(
            f"a line around each of {len(stages)} checkpoints goes along --directions {listed(AROUND)} of its own: "
            "leave out what leads to other checkpoints, or give one --ckpt"
        )
    _refuse(kind, 1, of=options["of"], **elsewhere)
    path = alongs.path_of(given.pop("out"), ckpt, stages, "surface1d")
    options["x"] = parse_range(given.pop("x") or "-1:1:51", "--x").tolist()
    options |= {"batch_norm": bn, "training_samples": given.pop("bn_samples")}
    where = {"out": path, "overwrite": given.pop("overwrite"), "extend": extend, "given": given}
    with begin(ckpt=first, default="class", as_json=as_json, **given) as (objective, console):
        options["training"] = training_samples(objective, bn)
        found = alongs.run(console, line, objective, stages, **where, **options)
        alongs.conclude(console, found, path, document, as_json=as_json)


def _refuse(kind: str, n_axes: int, **given: Any) -> None:
    """Refuse options that would be ignored, and name those that are missing, before anything is loaded."""
    stored = kind not in DIRECTIONS
    if stored and Path(kind).suffix != ".h5":
        near = nearest(kind, DIRECTIONS)
        raise InputError(
            f"--directions {kind!r} is unknown: {near}choose {', '.join(DIRECTIONS)} or the .h5 of a stored plane"
        )
    needs = {"ckpt": "ckpt_to", "pca": "trajectory"}
    if kind in needs and not given[needs[kind]]:
        raise InputError(f"--directions {kind} needs --{needs[kind].replace('_', '-')}")
    belongs = {"ckpt_to": ("ckpt",), "trajectory": ("pca",), "of": ("eigen", "gradient"), "match": ("ckpt",)}
    for name, kinds in belongs.items():
        if given[name] and kind not in kinds:
            raise InputError(f"--{name.replace('_', '-')} goes with --directions {' or '.join(kinds)}, not with {kind}")
    if given["plane_origin"] and not stored:
        raise InputError("--plane-origin goes with --directions FILE.h5, the plane of another run")
    if len(given["ckpt_to"]) > n_axes:
        raise InputError(
            f"--ckpt-to is given {len(given['ckpt_to'])} times, a surface{n_axes}d has {n_axes} direction(s)"
        )


def _read(objective: Objective, files: Sequence[str], **reading: Any) -> dict[str, Point]:
    """Read checkpoints, by names that differ."""
    if not files:
        return {}
    found = snapshots.find(objective, list(files), **reading)
    return {s.name: points.of(objective, s, **reading) for s in found}


def _others(
    objective: Objective, files: Sequence[str], *, match: bool, console: Console, **reading: Any
) -> dict[str, Point]:
    if not match:
        return _read(objective, files, **reading)
    (snapshot,) = snapshots.find(objective, list(files), **reading)
    network = snapshots.network(objective, snapshot, **reading)
    n_parts = len(objective.partition)
    inputs = (objective.batch(p, b)[0] for p in range(n_parts) for b in range(objective.n_batches(p)))
    found = matching.match(objective.model, network, inputs)
    console.note(
        f"matching: {found.moved:,} of {found.n_channels:,} channels change places; mean correlation "
        f"{found.correlation_before:.3f} before, {found.correlation:.3f} after"
    )
    network.load_state_dict(found.state)
    matched = points.of_network(objective, network)
    if matched.theta.equal(points.origin(objective).theta):
        raise InputError(
            f"{files[0]} is this very network with its channels in another order: after --match nothing lies between "
            "them, and every barrier is 0"
        )
    return {f"{snapshot.name} (matched)": matched}


def _with_random(
    objective: Objective, along: Directions, seed: int, norm: Normalisation, ignore: Ignored
) -> Directions:
    """Complete one direction to a plane by a random one of its length."""
    other = directions.random(objective, 1, seed=seed, normalisation=norm, ignored=ignore)
    return along.joined(other, length=float(along.unit_length[0]))


def training_samples(objective: Objective, bn: BatchNorm) -> datasets.Samples | None:
    """Load the training data for a re-estimation of running statistics, where the surface is of other data.

    Args:
        objective: of the surface.
        bn: policy for batch norm.

    Returns:
        The training data; None where it is not needed or is the objective's own.

    Raises:
        InputError: it cannot be loaded by name.
    """
    if not POLICIES[bn].trains or objective.samples.split == "train":
        return None
    options = dict(objective.samples.options)
    if not options:
        raise InputError(f"--bn {bn} needs training data: pass --split train")
    return datasets.load(**{**options, "split": "train"})


def conclude(console: Console, result: Surface, path: Path) -> None:
    """Print what the surface says of each part, and its verdict.

    Args:
        console: where to.
        result: the surface.
        path: of its file.
    """
    heads, rows = columns.table(result)
    console.table(heads, rows, title=result.title)
    console.say(f"verdict: {result.verdict}")
    console.say(f"result: {path}\nfigure: landscape plot {path}")


def document(result: Surface, path: Path) -> dict[str, Any]:
    """Return the same as one JSON document."""
    names = ["n_samples", "centre_loss", "centre_accuracy"]
    names += [name for name in FIELDS if getattr(result, name) is not None]
    names += ["lowest_loss", "lowest_position", "doubling_radius"]
    names += ["worst_rise"] + (["barrier"] if result.barrier is not None else [])
    parts = [{"part": part} | {n: getattr(result, n)[p] for n in names} for p, part in enumerate(result.parts)]
    return {"result": str(path), "verdict": result.verdict, "axes": result.axes, "parts": parts}
