"""`landscape distances`: where parts converge, and how far apart that is."""

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import cloup
import numpy as np

from landscape.analyses import convergence
from landscape.analyses import distances as analysis
from landscape.analyses.between import Run
from landscape.analyses.convergence import Tuning, from_bank
from landscape.analyses.distances import OVER, Over
from landscape.autodiff import distributed
from landscape.cli.analysis import checkpoint, numbers, output, parts, samples
from landscape.cli.begin import begin, result_path
from landscape.cli.console import Console
from landscape.cli.options import COUNT, POSITIVE, Choice, command, option, refuse_typed, seeding
from landscape.cli.surface import BN_SAMPLES, batch_norm, training_samples
from landscape.errors import InputError, StoreError
from landscape.networks import checkpoints
from landscape.objective import points, snapshots
from landscape.objective.batch_norm import DEFAULT, BatchNorm
from landscape.objective.objective import Objective
from landscape.objective.points import Point
from landscape.objective.runs import checkpoint_list
from landscape.results import Distances, column_values, disk, hdf5, written

DISTANCES = cloup.option_group(
    "Convergence points",
    option(
        "--finetune",
        type=COUNT,
        metavar="EPOCHS",
        help="Compute the points: train on each part alone for this many epochs, starting from --ckpt.",
        show_default="read the points from the run's memory bank",
    ),
    option(
        "--finetune-lr",
        type=POSITIVE,
        default=0.01,
        show_default=True,
        metavar="LR",
        help="Start the training of --finetune with this learning rate.",
    ),
    option("--only", metavar="PARTS", help="With --finetune, train on these parts only: tail, or head,tail."),
    option(
        "--also-run",
        multiple=True,
        metavar="DIR",
        help="Also measure a run with another seed. With --finetune, give its starting checkpoint.",
    ),
    option("--also", multiple=True, metavar="FILE", help="Also measure the distances to this checkpoint."),
    seeding("the order of samples in --finetune, and --bn-samples"),
)
MEASURES = cloup.option_group(
    "Distances and barriers",
    option(
        "--over",
        type=Choice(OVER),
        default="encoder",
        show_default=True,
        help="Measure distances over these parameters.",
    ),
    option(
        "--barriers",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        metavar="N",
        help="Also compute loss barriers, with N points between each pair of convergence points.",
    ),
    option(
        "--curvature",
        is_flag=True,
        help="Also compute the rise of the loss that the Hessian at each point predicts towards the other points.",
    ),
    option("--along", is_flag=True, help="Also measure the distance of each snapshot of the run to each point."),
)
POINTS = option(
    "--points", "points_folder", metavar="DIR", help="Write the convergence points as checkpoints into this folder."
)

_START, _FINAL = "start", "final"
"""Names of the point at which fine-tuning begins, and of the last model of a run."""
_RESULT = "of_result"
"""Entry of a point's checkpoint that tells by a digest of its path the result with which the point was written."""


@command(
    "landscape distances --ckpt runs/gsa-gkp --partition head-tail",
    "landscape distances --ckpt runs/ce/snapshots/epoch-0010.pt --finetune 5 --only head,tail --partition head-tail",
)
@checkpoint()
@samples()
@parts(default="class")
@DISTANCES
@MEASURES
@numbers(batch_norm("distances"), BN_SAMPLES)
@output(POINTS)
def distances(
    *,
    ckpt: str,
    per_class: bool,
    partition: str | None,
    finetune: int | None,
    finetune_lr: float,
    only: str | None,
    also_run: tuple[str, ...],
    also: tuple[str, ...],
    over: Over,
    barriers: int,
    bn: BatchNorm,
    bn_samples: int,
    curvature: bool,
    along: bool,
    points_folder: str | None,
    seed: int,
    out: str | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    **loading: Any,
) -> None:
    """Measure the distances and loss barriers between the weights that parts of the data converge to.

    The convergence point of a part is the set of weights that is best for this part. The memory bank of a run of
    landscape train has the weights with the best features of each part (--ckpt is the folder of the run, or a
    checkpoint in it); --finetune computes the end of a training on this part alone. --partition run uses the groups of
    classes that the run made.

    Raises:
        InputError: options that contradict each other, or convergence points that are not available.
    """
    tuning = None if finetune is None else Finetuning(epochs=finetune, lr=finetune_lr, only=only, seed=seed)
    if tuning is None:
        refuse_typed(("only", "finetune_lr"), "needs --finetune: a memory bank has the points of all parts")
    if tuning is not None and along:
        raise InputError("--along needs a run's memory bank: leave --finetune out, which starts from one checkpoint")
    if bn != DEFAULT and not barriers:
        raise InputError(f"--bn {bn} changes nothing without --barriers: pass --barriers 9 too, or leave it out")
    if partition == "run" and tuning is not None:
        raise InputError("--partition run uses the groups of a run's memory bank: leave --finetune out")
    reading = {"key": loading.get("ckpt_key"), "trust_pickle": loading["trust_pickle"]}
    file, folder = (ckpt, Path(ckpt).parent) if tuning is not None or not Path(ckpt).is_dir() else _of_run(ckpt)
    chosen: Any = convergence.groups_of(folder) if partition == "run" else partition
    path = result_path(out, file, "distances")
    replaced = overwrite or loading["dry_run"]
    disk.refuse_taken(path, overwrite=replaced, signature=hdf5.SIGNATURE)  # before the points are computed and written
    if points_folder is not None:
        _refuse_taken(Path(points_folder), path, overwrite=replaced)
    with begin(
        ckpt=file,
        per_class=per_class,
        partition=chosen,
        default="class",
        quiet=quiet,
        as_json=as_json,
        **loading,
    ) as (objective, console):
        others = _others(objective, also, reading, _FINAL if tuning is None else _START)
        runs = []
        for word in (ckpt, *also_run):
            if tuning is None:
                runs.append(_banked(objective, word, others, along, reading))
            else:
                start = objective if word == ckpt else _at(objective, word, reading)
                runs.append(tuning.run(_name(word), start, others))

        def write(settled: Sequence[Run]) -> None:
            """Write the points before the result, with which the command is done."""
            if points_folder is not None and distributed.is_main():
                _write(Path(points_folder), path, objective, file, settled[0], reading)

        with console.progress() as progress:
            result = analysis.distances(
                objective,
                runs,
                source="memory bank" if tuning is None else tuning.source,
                over=over,
                barrier_points=barriers,
                batch_norm=bn,
                training=training_samples(objective, bn, loading),
                training_samples=bn_samples,
                seed=seed,
                curvature=curvature,
                out=path,
                overwrite=overwrite,
                progress=progress,
                settled=write,
            )
        if not distributed.is_main():
            return
        _conclude(console, result, path)
        if as_json:
            console.json(_document(result, path))


@dataclass(frozen=True, kw_only=True)
class Finetuning:
    """How convergence points are computed from a checkpoint: by training on each part alone."""

    epochs: int
    lr: float
    only: str | None  # the parts; None for all
    seed: int

    @property
    def source(self) -> str:
        """The origin of the points in words."""
        return f"{self.epochs} epochs on the part alone, lr {self.lr:g}"

    def run(self, name: str, start: Objective, others: Mapping[str, tuple[Point, float]]) -> Run:
        """Return a run, whose points are yet to be computed.

        Args:
            name: of the run.
            start: the objective at the checkpoint from which the training starts.
            others: further points with their epochs, by their names.

        Returns:
            The run.
        """
        tuned = {
            part: Tuning(start=start, part=part, epochs=self.epochs, lr=self.lr, seed=self.seed)
            for part in self._parts(start)
        }
        begun = points.origin(start)
        return Run(name=name, points={_free(start, _START): (begun, math.nan), **others}, start=begun, tuned=tuned)

    def _parts(self, objective: Objective) -> list[str]:
        names = objective.partition.names
        if self.only is None:
            return list(names)
        words = [word.strip() for word in self.only.split(",")]
        return [
            names[int(w)] if w not in names and w.isdecimal() and int(w) < len(names) else names[objective.part(w)]
            for w in words
        ]


def _of_run(folder: str) -> tuple[str, Path]:
    last = Path(folder) / "last.pt"
    if not last.is_file():
        raise InputError(f"{folder} has no last.pt: --ckpt takes a checkpoint or the folder of a run")
    return str(last), Path(folder)


def _others(
    objective: Objective, files: tuple[str, ...], reading: dict[str, Any], taken: str
) -> dict[str, tuple[Point, float]]:
    """Read further points, by names that neither a part nor the point `taken` has."""
    found: dict[str, tuple[Point, float]] = {}
    for s in snapshots.find(objective, list(files), **reading) if files else ():
        name = _free(objective, s.name, taken, *found)
        found[name] = points.of(objective, s, **reading), s.epoch
    return found


def _free(objective: Objective, name: str, *taken: str) -> str:
    """Return the name or, if a part or another point has it, "name (2)" or a higher number."""
    return next(n for n in points.numbered(name) if n not in (*objective.partition.names, *taken))


def _banked(
    objective: Objective,
    word: str,
    others: dict[str, tuple[Point, float]],
    along: bool,
    reading: dict[str, Any],
) -> Run:
    """Gather a run: points of its memory bank, its final model, its start and its snapshots."""
    file, folder = (word, Path(word).parent) if not Path(word).is_dir() else _of_run(word)
    (last,) = snapshots.find(objective, [file], **reading)
    listed = checkpoint_list(str(folder)) if (folder / "snapshots").is_dir() else []
    if along and len(listed) < 2:
        raise InputError(f"{folder} has no snapshots for --along: train with --snapshot-every 1")
    found = snapshots.find(objective, list(listed), **reading) if listed else []
    end = points.of(objective, last, **reading)
    first = points.of(objective, found[0], **reading) if found else end
    return Run(
        name=_name(str(folder)),
        points={**from_bank(objective, folder), _free(objective, _FINAL): (end, last.epoch), **others},
        start=first,
        snapshots=[(points.of(objective, s, **reading), s.epoch) for s in found] if along else [],
    )


def _at(objective: Objective, file: str, reading: dict[str, Any]) -> Objective:
    """Return the objective with the weights of another start."""
    (snapshot,) = snapshots.find(objective, [file], **reading)
    points.of(objective, snapshot, **reading)  # which refuses other values of parameters that do not vary
    return snapshots.objective_at(objective, snapshot, **reading)


def _name(word: str) -> str:
    path = Path(word)
    return path.name if path.is_dir() else f"{path.parent.name}/{path.stem}".removeprefix("/")


def _refuse_taken(folder: Path, out: Path, *, overwrite: bool) -> None:
    """Refuse a folder in which points could take the place of other checkpoints than those of an unfinished run."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--points {folder} is a file: name a folder, which is made if there is none")
    for file in folder.glob("*.pt") if folder.is_dir() and not overwrite else ():
        if out.exists() or checkpoints.read(file).meta.get(_RESULT) != _digest(out):
            raise StoreError(f"--points {folder} holds checkpoints: choose another folder, or pass --overwrite")


def _digest(out: Path) -> str:
    return hashlib.sha256(str(out.resolve()).encode()).hexdigest()


def _write(folder: Path, out: Path, objective: Objective, ckpt: str, run: Run, reading: dict[str, Any]) -> None:
    """Write points as checkpoints that every analysis reads, by the names of their parts."""
    meta = dict(checkpoints.read(ckpt, key=reading["key"], trust_pickle=reading["trust_pickle"]).meta)
    folder.mkdir(parents=True, exist_ok=True)
    files: set[str] = set()
    for name, (point, epoch) in run.points.items():
        about = {**meta, "epoch": None if np.isnan(epoch) else epoch, "convergence_point": name, _RESULT: _digest(out)}
        safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
        file = next(n for n in (safe, *(f"{safe}-{k}" for k in range(2, len(files) + 2))) if n not in files)
        files.add(file)
        checkpoints.write(folder / f"{file}.pt", convergence.state_of(objective, point), about)


def _conclude(console: Console, result: Distances, path: Path) -> None:
    """Print the mean over runs of the Euclidean distances, with their spread, and the losses at the points."""
    several = len(result.runs) > 1
    mean, spread = result.euclidean.mean(0), result.euclidean.std(0, ddof=1) if several else None
    rows = [
        [
            name,
            *(f"{mean[i, j]:.3g}" + (f" ± {spread[i, j]:.1g}" if spread is not None else "") for j in range(len(mean))),
        ]
        for i, name in enumerate(result.points)
    ]
    over = f"{result.parameters} ({result.size:,} parameters)"
    title = f"Euclidean distance over {over}" + (f", mean ± s.d. of {len(result.runs)} runs" if several else "")
    if len(result.points) <= 16:
        console.table(["", *result.points], rows, title=title)
    if len(result.parts) <= 16:
        heads = [f"{part}{column_values.of_draw(result, p)}" for p, part in enumerate(result.parts)]
        console.table(["point", *heads], _losses(result), title="loss of each part at each point ± samples")
    if np.isfinite(result.barrier).any():
        console.table(["part", "highest barrier ± samples", "between"], _highest(result), title="barriers")
    console.say(f"points: {result.source}\nresult: {path}\nfigure: landscape plot {path}")


def _losses(result: Distances) -> list[list[str]]:
    """Return the loss of each part at each point, mean over runs, with its error over samples."""
    loss, errors = result.loss.mean(0), result.loss_stderr
    error = np.full_like(loss, np.nan) if errors is None else errors.mean(0)  # runs have the same samples
    return [
        [name, *map(written.with_error, *of_point)] for name, *of_point in zip(result.points, loss, error, strict=True)
    ]


def _highest(result: Distances) -> list[list[str]]:
    """Return the highest barrier of each part, mean over runs, with its error over samples and between which points."""
    rows, mean = [], result.barrier.mean(0)
    errors = np.full_like(mean, np.nan) if result.barrier_stderr is None else result.barrier_stderr.mean(0)
    order = np.nan_to_num(np.stack([mean, errors], axis=-1))  # of equal barriers, such as 0, the largest error
    pairs = list(itertools.combinations(range(len(result.points)), 2))
    for p, part in enumerate(result.parts):
        i, j = max(pairs, key=lambda pair: order[*pair, p].tolist(), default=(0, 0))
        between = f"{result.points[i]} and {result.points[j]}" if mean[i, j, p] > 0 else "-"
        rows.append([part, written.with_error(mean[i, j, p], errors[i, j, p]), between])
    return rows


def _document(result: Distances, path: Path) -> dict[str, Any]:
    names = [
        "euclidean",
        "cosine",
        "filter_normalised",
        "fisher",
        "fisher_stderr",
        "loss",
        "loss_stderr",
        "accuracy",
        "accuracy_stderr",
        "barrier",
        "barrier_stderr",
        "point_epoch",
        "hessian_rise",
        "hessian_rise_stderr",
    ]
    return {"result": str(path), "runs": result.runs, "points": result.points, "parts": result.parts} | {
        name: getattr(result, name) for name in names
    }
