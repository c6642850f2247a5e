"""Compute what docs/evidence.md says of the long runs on CIFAR-10-LT from their folders, and write its tables.

    python benchmarks/evidence.py --runs runs --data-root DIR [--minutes 30]
    python benchmarks/evidence.py --digits notebooks/runs/digits-lt
    python benchmarks/evidence.py --tables

A run is a folder METHOD-SEED that `landscape train` has written with --snapshot-every 5; it may be unfinished. Each
result is that of the newest snapshot, and the tables name its epoch. A result is computed again only if there is a
newer snapshot, and one of other options is refused; work that is interrupted by the time limit continues with the next
call. Results are in RUN/evidence, and copies without names of local folders in figures/data. The second command copies
results on digits that the notebooks have computed and the gallery shows. With --tables nothing is computed, and the
tables are written from the copies.
"""

import argparse
import csv
import dataclasses
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ablation
import numpy as np

import landscape as ls
from landscape.analyses.convergence import finetuned
from landscape.objective import points
from trainers.evaluation import by_frequency

ROOT = Path(__file__).resolve().parents[1]
DATA, PAGE = ROOT / "figures" / "data", ROOT / "docs" / "evidence.md"
LONG = "cifar10-long"
FIRST = "cifar10-first"
"""Names of copies: of the runs, and of earlier runs by the same commands and seeds on another machine."""

METHODS = {"ce": "CE", "sam": "CE + SAM", "gsa-gkp": "CE + GSA + GKP"}
PAPER = {  # Figure 9: lambda_max and trace of head and tail; Table 1: test accuracy
    "ce": ((38.15, 196.49), (74.99, 402.52), 70.4),
    "sam": ((7.42, 36.96), (35.19, 251.15), None),
    "gsa-gkp": ((6.93, 32.32), (30.93, 221.97), None),
}
DIGITS = (
    "ce.ends", "sam.ends", "gsa-gkp.ends", "ce.features", "gsa-gkp.features", "ce.early", "paths", "figure1",
)  # fmt: skip
"""Results of the notebooks that the gallery draws."""
ALONG = (
    "method",
    "seed",
    "epoch",
    "part",
    "accuracy",
    "loss",
    "lambda_max",
    "lambda_max_error",
    "trace",
    "trace_error",
)
"""Columns of the table of head and tail along the runs; errors are standard errors over samples."""

OF_PLANE = "ce-0"
"""The run whose end and start are on the plane."""

LARGE = {"image_sample", "images"}
"""Fields of a spectrum that its figures here do not need. Of the inner products of rows, those of head and tail are."""

Analysis = Callable[..., ls.Result]


class TimeIsUpError(Exception):
    """The minutes are over."""


def main() -> None:
    """Compute what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--data-root")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--samples", type=int, default=64, help="of each class for spectra")
    parser.add_argument("--steps", type=int, default=30, help="of Lanczos at the end of a run; half along it")
    parser.add_argument("--batches", type=int, default=20, help="of 256 samples for gradients")
    parser.add_argument("--every", type=int, default=40, help="epochs between the spectra along a run")
    parser.add_argument("--marks", type=int, default=20, help="epochs between the marks of a run on the plane")
    parser.add_argument("--grid", type=int, default=15, help="points of the plane along each axis")
    parser.add_argument("--samples-of-plane", type=int, default=300, help="of each class, on the plane")
    parser.add_argument("--digits", type=Path)
    parser.add_argument("--tables", action="store_true")
    args = parser.parse_args()
    for name in DIGITS if args.digits else ():
        copied(ls.load(args.digits / f"{name}.h5"), DATA / f"digits.{name}.h5")
    if args.runs and not args.tables:
        until = time.monotonic() + 60 * args.minutes
        try:
            for folder in runs_in(args.runs):
                measure(folder, args, until)
            done = [folder for folder in runs_in(args.runs) if finished(folder)]
            if OF_PLANE in [folder.name for folder in done]:
                plane(done, args, until)
            else:
                print(f"the plane is left as it is: it contains the end of {OF_PLANE}, which is not among the runs")
        except TimeIsUpError:
            print("the time is up: call again to go on")
    write_tables(DATA, PAGE)


def runs_in(folder: Path) -> list[Path]:
    """Return the folders of runs with a snapshot, by method and seed."""
    found = [p for m in METHODS for p in sorted(folder.glob(f"{m}-[0-9]*")) if snapshots_of(p)]
    return [p for p in found if (p / "history.h5").exists()]


def snapshots_of(run: Path) -> list[Path]:
    """Return the snapshots of a run in the order of their epochs."""
    return sorted((run / "snapshots").glob("epoch-*.pt"))


def finished(run: Path) -> bool:
    """Return whether a run has completed its epochs."""
    history = ls.load(run / "history.h5")
    return bool(history.epoch[-1] == history.provenance["recipe"]["epochs"])


def epoch_of(snapshot: Path) -> int:
    """Return the epoch in the name of a snapshot."""
    return int(snapshot.stem.removeprefix("epoch-"))


# Computing --------------------------------------------------------------------------------------------------------


def measure(run: Path, args: argparse.Namespace, until: float) -> None:
    """Compute the results of one run and copy them, until the time is up."""
    shown, files = DATA / f"{LONG}.{run.name}", snapshots_of(run)
    newest, aside, rows = files[-1], run / "evidence", []
    aside.mkdir(exist_ok=True)

    def result(name: str, analysis: Analysis, snapshot: Path, partition: str, **options: Any) -> ls.Result:
        load = partial(ls.load_objective, snapshot, data_root=args.data_root, partition=partition)
        return once(aside / f"{snapshot.stem}.{name}", load, analysis, until, **options)

    def copy(name: str, *of_result: Any, **options: Any) -> None:
        copied(result(name, *of_result, **options), shown.with_name(f"{shown.name}.{name}"))

    copied(ls.load(run / "history.h5"), shown.with_name(f"{shown.name}.history.h5"))
    spectra, few_samples = partial(ls.spectrum, probes=1), {"samples": args.samples}
    copy("classes.h5", spectra, newest, "class", steps=args.steps, **few_samples)
    for snapshot in [s for s in files if epoch_of(s) % args.every == 0]:
        found = result("ends.h5", spectra, snapshot, "head-tail", steps=args.steps // 2, **few_samples)
        rows += rows_of(run, found, epoch_of(snapshot))
        write_rows(shown.with_name(f"{shown.name}.along.csv"), rows)
    few = [s for s in files if epoch_of(s) % 50 == 0 or s == newest]
    gradients = partial(ls.gradients, samples_per_batch=256)
    copy("gradients.h5", gradients, newest, "class", batches=args.batches, checkpoints=few)
    thinned = [s for s in files if epoch_of(s) % 10 == 0 or s == newest]
    copy("features.h5", ls.features, newest, "class", checkpoints=thinned)


def plane(runs: Sequence[Path], args: argparse.Namespace, until: float) -> None:
    """Compute the losses of the classes on the paper's plane (Figure 1), which contains the end of `OF_PLANE`.

    The other two points are its start, and an optimum of the rarest class: the network of its second snapshot, trained
    on that class alone.
    """
    first = snapshots_of(next(run for run in runs if run.name == OF_PLANE))
    aside = args.runs / "evidence"
    aside.mkdir(exist_ok=True)
    load = partial(ls.load_objective, data_root=args.data_root)

    def analysis(objective: ls.Objective, **options: Any) -> ls.Result:
        paths = {run.name: points.read(objective, path_of(run, args.marks)) for run in runs}
        begun = load(first[1], partition="class")
        rarest = objective.partition.names[int(objective.trained.argmin())]
        anchors = {
            "start": ls.point(objective, first[0]),
            f"{rarest} alone": finetuned(begun, rarest, epochs=400),
        }
        return ls.trajectory(
            objective, paths, anchors=anchors, n=args.grid, batch_norm="reestimate", training=begun.samples, **options
        )

    objective = partial(load, first[-1], partition="class", samples_per_class=args.samples_of_plane)
    file = aside / f"{'+'.join(run.name for run in runs)}.plane.h5"
    found: Any = once(file, objective, analysis, until)
    options = found.provenance["options"]
    n_marks = sum(len(path_of(run, args.marks)) for run in runs)
    was = {"grid": len(options["x"]), "marks": int((found.mark_run >= 0).sum())}
    refuse_others(file, was, {"grid": args.grid, "marks": n_marks})
    copied(found, DATA / f"{LONG}.plane.h5")


def path_of(run: Path, every: int) -> list[Path]:
    """Return the snapshots of a run that are marks on the plane."""
    return [file for file in snapshots_of(run) if epoch_of(file) % every == 0]


def once(file: Path, load: Callable[[], ls.Objective], analysis: Analysis, until: float, **options: Any) -> ls.Result:
    """Compute a result, or load it if its file exists.

    Args:
        file: of the result; its name contains the epoch.
        load: makes the objective.
        analysis: called with the objective.
        until: the time limit, as a value of `time.monotonic`.
        options: of the analysis; an existing file must have been computed with the same.

    Returns:
        The result.

    Raises:
        TimeIsUpError: the time limit was reached; finished work is kept beside the file.
        SystemExit: the file is of other options.
    """
    if file.exists():
        found = ls.load(file)
        refuse_others(file, found.provenance.get("options", {}), options)
        return found

    def told(done: float, total: float, text: str) -> None:
        if time.monotonic() > until:
            raise TimeIsUpError

    told(0, 0, "")
    started = time.monotonic()
    found = analysis(load(), out=file, progress=told, **options)
    print(f"{file}: {time.monotonic() - started:.0f} s", flush=True)
    return found


def refuse_others(file: Path, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """End with one line if a result was computed with other options; options that it does not store may differ."""
    for name in was.keys() & now.keys():
        if was[name] != now[name]:
            raise SystemExit(f"{file} has {name} {was[name]}, now it is {now[name]}: repeat that, or remove the file")


def copied(result: ls.Result, file: Path) -> None:
    """Write a result without names of local folders and without its largest fields."""
    names = {field.name for field in dataclasses.fields(result)}
    large: dict[str, Any] = dict.fromkeys(names & LARGE)
    if isinstance(result, ls.results.Spectrum) and result.gram is not None:
        own = np.isin(result.gram_part, (0, len(result.parts) - 1))
        large |= {name: getattr(result, name)[own] for name in ("gram_part", "gram_sample", "gram_sign")}
        large["gram"] = result.gram[np.ix_(own, own)]
    ls.save(file, dataclasses.replace(result, **large, provenance=portable(result.provenance)), overwrite=True)


def portable(value: Any) -> Any:
    """Return the provenance of a result, with file names instead of paths, and DIR for the folder of the data."""
    if isinstance(value, Mapping):
        return {
            portable(k): "DIR" if k in ("root", "data_root") and v else portable(v)
            for k, v in value.items()
            if k != "command"
        }
    if isinstance(value, (list, tuple)):
        return [portable(v) for v in value]
    return re.sub(r"^/.*?([^/]+/(?:snapshots/)?[^/]+)$", r"runs/\1", value) if isinstance(value, str) else value


def rows_of(run: Path, found: Any, epoch: int) -> list[dict[str, Any]]:
    """Return a row for head and tail at one epoch."""
    method, _, seed = run.name.rpartition("-")
    rows = []
    for p, part in enumerate(found.parts):
        top, trace = found.lambda_max[p], found.trace[p]
        errors = error(found, "lambda_max", p), error(found, "trace", p)
        numbers = found.accuracy[p], found.loss[p], top, errors[0], trace, errors[1]
        rows.append(dict(zip(ALONG, (method, seed, epoch, part, *(f"{n:.6g}" for n in numbers)), strict=True)))
    return rows


def error(spectrum: Any, name: str, part: int) -> float:
    """Return the standard error over samples of a number of a part; nan where it was not measured."""
    errors = getattr(spectrum, f"{name}_sampling_stderr")
    return float("nan") if errors is None else float(errors[part])


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table as CSV."""
    with open(file, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ALONG, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


# Tables -----------------------------------------------------------------------------------------------------------


def write_tables(data: Path, page: Path) -> None:
    """Write the tables between the marks `<!-- table NAME -->` and `<!-- end -->` of a page."""
    text = page.read_text(encoding="utf-8")
    for name, lines in tables(data).items():
        block = "\n".join(lines)
        mark = rf"(<!-- table {name} -->\n).*?(\n?<!-- end -->)"
        text, n = re.subn(mark, lambda m, b=block: f"{m[1]}\n{b}\n\n{m[2].strip()}", text, flags=re.DOTALL)
        if n != 1:
            raise SystemExit(f"{page} must have one place for the table {name}, and has {n}")
    page.write_text(text, encoding="utf-8")


def tables(data: Path) -> dict[str, list[str]]:
    """Return the lines of each table of the page."""
    names = [p.name.split(".")[1] for m in METHODS for p in sorted(data.glob(f"{LONG}.{m}-[0-9]*.history.h5"))]
    histories = {n: ls.load(data / f"{LONG}.{n}.history.h5") for n in names}
    files = {n: data / f"{LONG}.{n}.classes.h5" for n in names}
    classes = {n: ls.load(file) for n, file in files.items() if file.exists()}
    found = {"accuracy": accuracies(histories), "ends": ends(classes), "classes": of_classes(classes)}
    found |= {"twice": twice(data, classes), "along": along(data), "bank": banked(histories)}
    return found | ablations(data)


def ablations(data: Path) -> dict[str, list[str]]:
    """Return the tables of benchmarks/ablation.py by the names of their files."""
    ends_of = [f"{end}_{name}" for end in ("head", "tail") for name in ("lambda_max", "trace", "loss", "trace_by_loss")]
    found = {}
    for file in sorted(data.glob("ablation-*.csv")):
        with open(file, encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        found[file.stem] = ablation.lines(rows, ["accuracy", "few", *ends_of, "pull_share", "clipped_share"])
    return found


def heads(*names: str) -> list[str]:
    """Return the first two lines of a table."""
    return [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]


def titled(run: str) -> str:
    """Return the name of a run in the tables."""
    method, _, seed = run.rpartition("-")
    return f"{METHODS[method]}, seed {seed}"


def accuracies(histories: Mapping[str, Any]) -> list[str]:
    """Test accuracy by frequency of the classes, at the last epoch that was tested."""
    tested_on = ("tested after epoch", "all", "many (8 classes)", "medium (2)", "the paper, all")
    lines = heads("", "epochs of 200", "training samples, augmented", *tested_on)
    for run, h in histories.items():
        tested = int(h.epoch[np.isfinite(h.test_accuracy)][-1])
        shares = " | ".join(f"{100 * a:.1f} %" for a in by_frequency(h)[:3])
        theirs = PAPER[run.rpartition("-")[0]][2]
        reached = f"{titled(run)} | {h.epoch[-1]} | {100 * h.train_accuracy[-1]:.1f} % | {tested}"
        lines.append(f"| {reached} | {shares} | {f'{theirs} %' if theirs else ''} |")
    return lines


def banked(histories: Mapping[str, Any]) -> list[str]:
    """The epochs in which the features of each class were best, of those after the warm-up that were measured."""
    lines = heads(
        "",
        "epochs measured",
        "best epochs of the classes, head to tail",
        "number of different epochs after 1/4, 1/2, all of them",
    )
    for run, h in histories.items():
        known = np.isfinite(h.quality).all(axis=1) & (h.epoch > h.provenance["recipe"]["warmup_epochs"])
        epochs, quality = h.epoch[known].astype(int), h.quality[known]
        if len(epochs) < 4:  # too few to have quarters
            continue
        best = [epochs[quality[:n].argmax(axis=0)] for n in (len(epochs) // 4, len(epochs) // 2, len(epochs))]
        distinct = ", ".join(str(len(np.unique(b))) for b in best)
        order = np.argsort(-h.train_counts, kind="stable")
        listed = ", ".join(map(str, best[-1][order]))
        lines.append(f"| {titled(run)} | {len(epochs)}, {epochs[0]} to {epochs[-1]} | {listed} | {distinct} |")
    return lines


def value(number: float, error: float) -> str:
    """Return a number with its standard error, both to the error's first digit."""
    if not 0 < error < np.inf:
        return f"{number:.4g}"
    place = -int(np.floor(np.log10(error)))
    return f"{round(number, place):,.{max(place, 0)}f} ± {round(error, place):,.{max(place, 0)}f}"


def known(spectrum: Any, name: str, part: int) -> str:
    """Return a number of a part with its standard error over samples."""
    return value(getattr(spectrum, name)[part], error(spectrum, name, part))


def ends(classes: Mapping[str, Any]) -> list[str]:
    """Sharpness of the most frequent and the rarest class beside the paper's."""
    lines = heads("", "epoch", "class", "loss", "lambda_max", "the paper", "trace", "the paper")
    for run, s in classes.items():
        order = np.argsort(-s.train_counts, kind="stable")
        theirs = PAPER[run.rpartition("-")[0]]
        epoch = s.provenance["checkpoint_found"]["epoch"]
        for p, (top, trace) in zip((order[0], order[-1]), theirs[:2], strict=True):
            sharp, of_trace = (known(s, name, p) for name in ("lambda_max", "trace"))
            about = f"{titled(run)} | {epoch} | {s.parts[p]} ({s.train_counts[p]:,}) | {s.loss[p]:.4f}"
            lines.append(f"| {about} | {sharp} | {top} | {of_trace} | {trace} |")
    return lines


def of_classes(classes: Mapping[str, Any]) -> list[str]:
    """lambda_max and trace of every class, one column for each run."""
    if not classes:
        return ["There are no results yet."]
    first = next(iter(classes.values()))
    lines = heads("class", "samples", *(f"{titled(r)}: loss; lambda_max; trace; trace by loss" for r in classes))
    for p, part in enumerate(first.parts):
        cells = [
            f" {s.loss[p]:.3g}; {known(s, 'lambda_max', p)}; {known(s, 'trace', p)}; {s.trace[p] / s.loss[p]:,.0f} |"
            for s in classes.values()
        ]
        lines.append(f"| {part} | {first.train_counts[p]:,} |" + "".join(cells))
    return lines


def twice(data: Path, classes: Mapping[str, Any]) -> list[str]:
    """Return the sharpness of every class in the two runs of a method, where there are two."""
    of_first = {n: data / f"{FIRST}.{n}.classes.h5" for n in classes}
    firsts = {n: ls.load(file) for n, file in of_first.items() if file.exists()}
    both = [(f"{titled(n)}, {which}", s) for n, s in firsts.items() for which, s in (("1st", s), ("2nd", classes[n]))]
    lines = heads("class", *(f"{name}: lambda_max; trace; trace by uncertainty" for name, _ in both))
    for p, part in enumerate(both[0][1].parts if both else ()):
        cells = [
            f" {known(s, 'lambda_max', p)}; {known(s, 'trace', p)}; {s.trace[p] / s.uncertainty[p]:,.0f} |"
            for _, s in both
        ]
        lines.append(f"| {part} |" + "".join(cells))
    return lines


def along(data: Path) -> list[str]:
    """Sharpness of head and tail along the runs, so that methods are compared at equal losses."""
    lines = heads("", "epoch", "head: loss", "lambda_max", "trace", "tail: loss", "lambda_max", "trace")
    for file in (p for m in METHODS for p in sorted(data.glob(f"{LONG}.{m}-[0-9]*.along.csv"))):
        with open(file, encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        for head, tail in zip(rows[::2], rows[1::2], strict=True):
            cells = [
                f"{float(r['loss']):.4f} | {value(float(r['lambda_max']), float(r['lambda_max_error']))} | "
                f"{value(float(r['trace']), float(r['trace_error']))}"
                for r in (head, tail)
            ]
            lines.append(f"| {METHODS[head['method']]}, seed {head['seed']} | {head['epoch']} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
