"""`landscape trajectory`: paths of training on a plane, with the surface of every part under them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import click
import cloup

from landscape.analyses import directions
from landscape.analyses import trajectory as trajectories
from landscape.autodiff import distributed
from landscape.cli.analysis import checkpoint, numbers, output, parts, samples
from landscape.cli.begin import begin, result_path
from landscape.cli.console import Console
from landscape.cli.directed import read
from landscape.cli.options import COUNT, SIZE, command, option, seeding
from landscape.cli.planes import stored_plane
from landscape.cli.surface import BF16, BN_SAMPLES, REFINE, batch_norm, training_samples
from landscape.errors import InputError
from landscape.objective import points
from landscape.objective.batch_norm import DEFAULT, BatchNorm
from landscape.objective.runs import path_of_training
from landscape.results import Trajectory, disk, hdf5, store
from landscape.results.regroup import regroup
from landscape.results.written import with_error

TRAJECTORY = cloup.option_group(
    "Paths and plane",
    option(
        "--also", multiple=True, metavar="FILES", help="Also draw this run on the same plane: its folder, or files."
    ),
    option(
        "--through",
        multiple=True,
        metavar="FILE",
        help="Make the plane contain this checkpoint. Give the option twice; the third point is the end of the run.",
    ),
    option("--plane", metavar="FILE.h5", help="Use the plane, with its origin, that --save-plane stored."),
    option("--save-plane", metavar="FILE.h5", help="Store the plane, to draw other runs on it."),
    option(
        "--every",
        type=COUNT,
        default=1,
        show_default=True,
        metavar="N",
        help="Use every N-th checkpoint; the first and the last are always used.",
    ),
    option(
        "--grid",
        "n",
        type=click.IntRange(min=2),
        default=21,
        show_default=True,
        metavar="N",
        help="Compute the surface at N points along each axis.",
    ),
    option(
        "--margin",
        type=SIZE,
        default=trajectories.MARGIN,
        show_default=True,
        metavar="FRACTION",
        help="Extend the surface beyond the paths by this fraction of their extent.",
    ),
    seeding("the draw of --bn-samples"),
)


@command(
    "landscape trajectory --ckpt runs/ce",
    "landscape trajectory --ckpt runs/ce --also runs/sam --partition head-tail",
)
@checkpoint(several=True)
@samples()
@parts(default="class")
@TRAJECTORY
@numbers(
    batch_norm("trajectory", None, f"{DEFAULT} on a plane through checkpoints, else reestimate"),
    BN_SAMPLES,
    REFINE,
    BF16,
)
@output()
def trajectory(
    *,
    ckpt: str,
    per_class: bool,
    partition: str | None,
    also: tuple[str, ...],
    through: tuple[str, ...],
    plane: str | None,
    save_plane: str | None,
    every: int,
    n: int,
    margin: float,
    bn: BatchNorm | None,
    bn_samples: int,
    seed: int,
    refine: float | None,
    bf16: bool,
    out: str | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    **loading: Any,
) -> None:
    """Draw paths of training on a plane, over the loss surface of each part, with the true loss of each checkpoint.

    The plane contains the last checkpoint of --ckpt. It follows the two main principal components of the paths, or
    contains two more checkpoints (--through).

    Raises:
        InputError: options that contradict each other, or fewer checkpoints than a plane needs.
    """
    _refuse((ckpt, *also), plane=plane, through=through)
    reading = {"key": loading.get("ckpt_key"), "trust_pickle": loading["trust_pickle"]}
    listed = _listed((ckpt, *also), every, reading, shortest=0 if through else 3)
    last = listed[ckpt][-1][0]
    path = result_path(out, str(last) if not Path(ckpt).is_dir() else f"{ckpt}/run", "trajectory")
    if save_plane:
        disk.refuse_taken(Path(save_plane), overwrite=overwrite or loading["dry_run"], signature=hdf5.SIGNATURE)
    with begin(
        ckpt=str(last),
        per_class=per_class,
        partition=partition,
        default="class",
        quiet=quiet,
        as_json=as_json,
        **loading,
    ) as (objective, console):
        runs = trajectories.of_runs([
            (_run_name(word), points.read(objective, files, **reading)) for word, files in listed.items()
        ])
        anchors = read(objective, through, reading)
        along = stored_plane(objective, plane, 2, own_origin=False) if plane else None
        policy = bn or trajectories.policy_on(objective, along, through=bool(anchors))
        with console.progress() as progress:
            result = trajectories.trajectory(
                objective,
                runs,
                anchors=anchors,
                plane=along,
                n=n,
                margin=margin,
                batch_norm=policy,
                training=training_samples(objective, policy, loading),
                training_samples=bn_samples,
                seed=seed,
                refine=refine,
                bf16=bf16,
                out=path,
                overwrite=overwrite,
                progress=progress,
            )
        if not distributed.is_main():
            return
        if save_plane:
            everything = [point for run in runs.values() for point, _ in run.values()]
            kept = along or trajectories.plane_of(objective, everything, anchors)
            store.save(save_plane, directions.to_plane(objective, kept, {"made from": ckpt}), overwrite=overwrite)
        _conclude(console, result, path)
        if as_json:
            console.json(_document(result, path))


def _refuse(words: Sequence[str], *, plane: str | None, through: Sequence[str]) -> None:
    """Refuse options that contradict each other; `words` are --ckpt and each --also."""
    if plane and through:
        raise InputError("--plane and --through each make the plane: leave one out")
    if len(through) not in (0, 2):
        raise InputError(
            f"--through is given {len(through)} times: two checkpoints and the end of the run make a plane"
        )
    resolved = [Path(word).resolve() for word in words]
    for i, word in enumerate(words):
        if resolved[i] in resolved[:i]:
            raise InputError(f"--also {word} is a run that is given already: name each once")


Files: TypeAlias = list[tuple[Path, float]]
"""The checkpoints of a run, in order, each with its epoch."""


def _listed(words: Sequence[str], every: int, reading: Mapping[str, Any], *, shortest: int) -> dict[str, Files]:
    """Return the checkpoints of each run that are used; all runs together must have `shortest` of them."""
    found = {
        word: path_of_training(word, ckpt_key=reading["key"], trust_pickle=reading["trust_pickle"]) for word in words
    }
    used = {word: _thinned(files, every) for word, files in found.items()}
    n_used = sum(map(len, used.values()))
    if n_used < shortest <= sum(map(len, found.values())):
        raise InputError(f"--every {every} leaves {n_used} checkpoints: a path needs three")
    if n_used < shortest:
        raise InputError(
            f"{words[0]} is {len(used[words[0]])} checkpoint(s): a path needs at least three, as 'RUN/snapshots/*.pt'; "
            "landscape train writes them with --snapshot-every 1"
        )
    return used


def _thinned(files: Files, every: int) -> Files:
    kept = files[::every]
    return kept if kept[-1] == files[-1] else [*kept, files[-1]]


def _run_name(word: str) -> str:
    """Return the name of a run's folder, given the folder, its snapshots or a pattern of them."""
    path = Path(word)
    parts = [p for p in (path if path.is_dir() else path.parent).parts if p not in ("snapshots", "bank")]
    return parts[-1] if parts and parts[-1] not in (".", "..", "/") else word


def _conclude(console: Console, result: Trajectory, path: Path) -> None:
    whole = regroup(result, "all")
    order = result.train_counts.argsort()
    head, tail = int(order[-1]), int(order[0])
    known = result.mark_loss_stderr is not None

    def loss(of: Trajectory, m: int, p: int) -> str:
        return with_error(of.mark_loss[m, p], 0.0 if of.mark_loss_stderr is None else of.mark_loss_stderr[m, p])

    rows = [
        [
            name,
            f"{result.mark_epoch[m]:g}",
            ", ".join(f"{c:.3g}" for c in result.mark_position[m]),
            f"{result.mark_distance[m]:.3g}",
            loss(whole, m, 0),
            *(loss(result, m, p) for p in (head, tail)),
        ]
        for m, name in enumerate(result.marks)
    ]
    heads = ["checkpoint", "epoch", "on the plane", "off it", "loss", *(f"of {result.parts[p]}" for p in (head, tail))]
    title = "; ".join(result.axes)
    console.table(heads, rows, title=f"axes: {title}" + "; losses ± samples" * known)
    console.say(f"verdict: {result.verdict}\nresult: {path}\nfigure: landscape plot {path}")


def _document(result: Trajectory, path: Path) -> dict[str, Any]:
    errors = result.mark_loss_stderr
    marks = [
        {
            "name": name,
            "epoch": result.mark_epoch[m],
            "position": result.mark_position[m],
            "distance": result.mark_distance[m],
            "loss": dict(zip(result.parts, result.mark_loss[m], strict=True)),
            "loss_stderr": None if errors is None else dict(zip(result.parts, errors[m], strict=True)),
        }
        for m, name in enumerate(result.marks)
    ]
    return {
        "result": str(path),
        "axes": result.axes,
        "explained": result.explained,
        "verdict": result.verdict,
        "checkpoints": marks,
    }
