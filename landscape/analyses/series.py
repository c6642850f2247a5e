"""An analysis at every checkpoint of a run, as one result with an axis of checkpoints.

The data are read once. The parts, the probes and the random directions are the same at every checkpoint, because they
depend only on the seed: curves along training show only the effect of the weights. The parts are those of the objective
and, if requested, groups that may overlap with them, such as all samples beside the classes. Each checkpoint has the
same numbers as an analysis of it alone.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

from landscape.autodiff import costs
from landscape.callables import checked
from landscape.errors import InputError, StoreError, arg
from landscape.objective import jobs, runs, snapshots
from landscape.objective.objective import Objective
from landscape.objective.provenance import about_run, refuse_others
from landscape.objective.runs import Stage, Word
from landscape.objective.snapshots import Snapshot
from landscape.results import Result, Series, Surface, store
from landscape.results.axes import concatenate
from landscape.results.journal import Journal
from landscape.results.series import SERIES, joined, of_one


@checked
def series(
    analysis: Callable[..., Any],
    objective: Objective,
    checkpoints: Word | Sequence[Word],
    *,
    with_parts: Sequence[str] = (),
    ckpt_key: str | None = None,
    trust_pickle: bool = False,
    out: jobs.Destination | None = None,
    overwrite: bool = False,
    extend: bool = False,
    progress: jobs.Progress | None = None,
    finished: Callable[[Series], object] | None = None,
    **options: Any,
) -> Series:
    """Run an analysis at every checkpoint of a run.

        ls.series(ls.spectrum, objective, "runs/ce", with_parts=["all"], density=True, out="ce.h5")

    Args:
        analysis: `spectrum`, `sharpness`, `surface1d`, or a function (objective, **options) that returns the same kind
            of result as one of these.
        objective: model, data, parts and loss; the weights of its model are not used.
        checkpoints: the folder of a run, a pattern, or several files; or pairs of a file and its epoch, for files that
            do not store their epoch.
        with_parts: further groups, which may overlap with the parts of the objective: "all", "head", "tail", "many",
            "medium" or "few". They come first.
        ckpt_key: key of the weights in the files; None finds them automatically.
        trust_pickle: let the files run code when they are read. Use it only for files that you made.
        out: result file to write; finished parts of checkpoints are kept beside it until it is complete, and a repeated
            call with the same options continues from them.
        overwrite: replace an existing result file.
        extend: take from an existing result file the checkpoints that it holds, and compute those that have come since.
            The file is then what a run on all of them would have written. If the objective is of drawn samples, draw
            them at the same checkpoint as before.
        progress: called with (done, total, text).
        finished: called with the series of each checkpoint as soon as it is computed.
        options: of the analysis, the same at every checkpoint.

    Returns:
        The results at all checkpoints, in the order of their epochs or steps, with the learning rate at each checkpoint
        if the run's history or the checkpoint's optimizer contains it.

    Raises:
        Interrupted: Ctrl-C; the message says at which checkpoint. Finished parts are kept beside `out`.
        InputError: an analysis without series, an option out of its range, a checkpoint that does not fit, or
            checkpoints without an order.
        NumericalError: as for the analysis.
        StoreError: the result file cannot be written, or it, or an unfinished run beside it, had other options.
    """
    _refuse(analysis, objective, with_parts, options)
    read: dict[str, Any] = {"key": ckpt_key, "trust_pickle": trust_pickle}
    stages = runs.stages(checkpoints, ckpt_key=ckpt_key, trust_pickle=trust_pickle)
    plan = partial(_costs, analysis, objective, with_parts, options, len(stages))
    jobs.declare(plan, out)
    found = snapshots.find(objective, [(str(stage.path), stage.epoch) for stage in stages], **read)
    known = {"analysis": _name(analysis), "with_parts": list(with_parts), **{k: _plain(v) for k, v in options.items()}}
    source = {n: v for n, v in objective.source.items() if not n.startswith("checkpoint") and n != "weights_sha256"}
    read_from = {str(snapshot.path): snapshot.sha256 for snapshot in found}
    about = about_run(known, objective.device, objective.dtype) | {"batch_size": objective.batch_size, **source}
    about |= {"checkpoints": read_from, "method": objective.source.get("method")}
    whole = _Whole(analysis, objective, tuple(with_parts), options, read, about)
    before = _before(out, about) if extend and isinstance(out, str | Path) and not overwrite else {}

    def computed(journal: Journal | None) -> Series:
        done = []
        for k, (stage, snapshot) in enumerate(zip(stages, found, strict=True)):
            if snapshot.sha256 in before:
                done.append(whole.of_stage(stage, snapshot, before[snapshot.sha256]))
                continue
            try:
                done.append(whole.at(stage, snapshot, journal, _of_all(progress, k, len(stages), snapshot.name)))
                if finished is not None:
                    finished(done[-1])
            except KeyboardInterrupt as error:
                kept = "nothing is kept" if journal is None else journal.advice()
                raise jobs.Interrupted(f"interrupted at checkpoint {k + 1} of {len(stages)}; {kept}") from error
        if progress is not None:
            progress(len(stages), len(stages), "")
        return joined(done)

    if out is None:
        return computed(None)
    begun = {**source, "dtype": about["dtype"], **known, "the weights of": read_from}
    with jobs.open_journal(out, begun, overwrite=overwrite, replaces=bool(before)) as journal:
        result = computed(journal)
        journal.finish(result)
    return result


_OF_MEMORY = {"batch_size", "basis"}
"""Entries of provenance that depend on the memory that there was at a checkpoint."""
_OF_ONE_RUN = {"checkpoints"} | _OF_MEMORY
"""Entries of provenance, beside those of every run, that change no number of a checkpoint beyond rounding."""


def _before(out: str | Path, about: dict[str, Any]) -> dict[str, Result]:
    """Return the results in a file by the SHA-256 of their checkpoints; nothing if there is no file."""
    if not Path(out).exists():
        return {}
    found = store.load(out)
    if not isinstance(found, Series):
        raise StoreError(f"{out} is a {found.kind} and no series: choose another file")
    refuse_others(Path(out), found.provenance, about, free=_OF_ONE_RUN)
    read_from = found.provenance.get("checkpoints")
    if not isinstance(read_from, dict) or len(read_from) != len(found.checkpoints):
        raise StoreError(f"{out} does not say from which files it was computed: choose another file")
    return {sha256: found.at(k) for k, sha256 in enumerate(read_from.values())}


def _costs(
    analysis: Callable[..., Any],
    objective: Objective,
    with_parts: Sequence[str],
    options: dict[str, Any],
    n_stages: int,
) -> costs.Repeated:
    """Return the cost of an analysis of groups and parts at all checkpoints."""
    plans: list[costs.Plan] = []
    for own in (*map(objective.alone, with_parts), objective):
        with costs.asking() as more:
            analysis(own, **options)
        plans += more
    return costs.Repeated(plans, n_stages)


_VALUE = re.compile(r"^(eigenvector \d+ of .*|PC \d+) \([^()]*\)$")
"""The name of a direction that ends with a number of one checkpoint; `directions` makes these names."""


@dataclass(frozen=True)
class _Whole:
    """The values that all checkpoints have in common."""

    analysis: Callable[..., Any]
    objective: Objective
    with_parts: tuple[str, ...]
    options: dict[str, Any]
    read: dict[str, Any]
    about: dict[str, Any]

    def at(self, stage: Stage, snapshot: Snapshot, journal: Journal | None, progress: jobs.Progress | None) -> Series:
        """Return the series of one checkpoint."""
        with snapshots.named(snapshot.path):
            here = self.objective.at(snapshots.network(self.objective, snapshot, **self.read))
            result = together(self.analysis, here, self.with_parts, journal, snapshot.name, progress, self.options)
        return self.of_stage(stage, snapshot, result)

    def of_stage(self, stage: Stage, snapshot: Snapshot, result: Result) -> Series:
        """Return the series of one checkpoint that has its result already."""
        if isinstance(result, Surface):  # along the same kind of direction, whatever its eigenvalue is
            result = replace(result, axes=tuple(_VALUE.sub(r"\1", axis) for axis in result.axes))
        edge, rule = stage.optimizer.edge if stage.optimizer else (None, "")
        return of_one(
            result,
            snapshot.name,
            epoch=stage.epoch,
            training_step=stage.step,
            learning_rate=stage.optimizer.rate if stage.optimizer else None,
            edge=edge,
            edge_rule=rule,
            provenance=self.about | {k: v for k, v in result.provenance.items() if k in _OF_MEMORY},
        )


def together(
    analysis: Callable[..., Any],
    objective: Objective,
    with_parts: Sequence[str],
    journal: Journal | None,
    name: str,
    progress: jobs.Progress | None,
    options: dict[str, Any],
) -> Result:
    """Return the result of an analysis of some groups and of an objective's own parts, joined along the parts.

    Args:
        analysis: as for `series`.
        objective: at a checkpoint.
        with_parts: names of the groups.
        journal: of the whole run; None stores nothing.
        name: of the checkpoint, distinct from the other names.
        progress: called with (done, total, text).
        options: of the analysis.
    """
    some = {group: objective.alone(group) for group in with_parts} | {"": objective}
    done = []
    for k, (group, own) in enumerate(some.items()):
        piece = None if journal is None else journal.within(f"{name}/{group}")
        done.append(analysis(own, out=piece, progress=_of_all(progress, k, len(some), ""), **options))
    whole: Result = concatenate(done)
    return whole


def _of_all(progress: jobs.Progress | None, k: int, total: int, name: str) -> jobs.Progress | None:
    """Return a function that reports the progress of one of several jobs as progress of all."""
    if progress is None:
        return None

    def tell(done: float, of: int, text: str) -> None:
        progress(k + done / max(1, of), total, " ".join(filter(None, (name, text))))

    return tell


def _refuse(
    analysis: Callable[..., Any], objective: Objective, with_parts: Sequence[str], options: dict[str, Any]
) -> None:
    """Refuse arguments that would fail only at the end of the first checkpoint."""
    returned = get_type_hints(analysis).get("return") if hasattr(analysis, "__annotations__") else None
    if isinstance(returned, type) and issubclass(returned, Result) and returned not in SERIES:
        kinds = ", ".join(kind.kind for kind in SERIES)
        raise InputError(
            f"{arg('analysis', _name(analysis))} has no series: results of the kinds {kinds} do; gradients and "
            f"features have their own argument {arg('checkpoints')}"
        )
    for name in with_parts:
        if name in objective.partition.names:
            raise InputError(f"{name} is a part already: leave it out of {arg('with_parts')}")
    if len(set(with_parts)) < len(with_parts):
        raise InputError(f"{arg('with_parts')} names a group twice: {', '.join(with_parts)}")
    if with_parts and options.get("overlap"):
        raise InputError(
            f"{arg('overlap', True)} compares the parts with each other and cannot include the groups of "
            f"{arg('with_parts')}: leave one of the two out"
        )
    if with_parts and returned is Surface:
        raise InputError(f"groups of a surface follow from its classes by regroup: leave {arg('with_parts')} out")


def _name(analysis: Callable[..., Any]) -> str:
    return str(getattr(analysis, "__name__", type(analysis).__name__))


def _plain(value: Any) -> Any:
    """Return an option as a JSON value for the provenance, or only its type; journals use its full value."""
    try:
        store.to_json(value, "an option")
    except StoreError:
        return type(value).__name__
    return value
