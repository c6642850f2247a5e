"""Accuracy and sharpness of CE, SAM, GSA, GKP and GSA+GKP over several seeds, with paired differences from CE.

    python benchmarks/ablation.py --out runs/ablation --table figures/data/ablation-digits-lt.csv
    python benchmarks/ablation.py --part 0.1 --data-root DIR --out runs/part --table figures/data/ablation-cifar.csv

The first line trains on digits-lt. The second draws a part of each class of CIFAR-10-LT, two images at least, and
trains a ResNet-20 on it. Runs that are done are not repeated, and one that was cut goes on. Sharpness is that of the
training loss of the most frequent and of the rarest class at the end. The same seed gives the same first weights and
the same order of samples to all methods, so differences are taken run by run. The trace of cross-entropy falls with the
loss, so that the two are also shown divided.
"""

import argparse
import csv
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import landscape as ls
from landscape.cli import main as landscape
from landscape.data import datasets
from trainers.evaluation import by_frequency

METHODS = ("ce", "sam", "gsa", "gkp", "gsa-gkp")
COLUMNS = (
    "accuracy", "many", "medium", "few", "train_accuracy", "head_lambda_max", "tail_lambda_max", "head_trace",
    "tail_trace", "head_loss", "tail_loss", "head_trace_by_loss", "tail_trace_by_loss", "pull_share", "clipped_share",
    "n_groups",
)  # fmt: skip
DIGITS = ["--dataset", "digits-lt", "--epochs", "40"]
CIFAR = [
    "--dataset", "ablation:part", "--model", "resnet20", "--normalize", "0.4914,0.4822,0.4465/0.2023,0.1994,0.2010",
    "--augment", "crop-flip", "--epochs", "40", "--batch-size", "64", "--bf16", "--channels-last", "--evaluate-every",
    "10",
]  # fmt: skip


def part(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a part of each class of CIFAR-10-LT, the data set of the second line above, and all test images."""
    whole = datasets.load("cifar10", root=os.environ["ABLATION_ROOT"], split=split)
    share = float(os.environ["ABLATION_PART"]) if split == "train" else 1.0
    rng, kept = np.random.default_rng(0), []
    for c in range(len(whole.class_names)):
        members = np.flatnonzero(whole.labels == c)
        kept.append(rng.permutation(members)[: max(2, round(share * len(members)))])
    chosen = np.sort(np.concatenate(kept))
    return whole.inputs[torch.from_numpy(chosen)], torch.from_numpy(whole.labels[chosen])


def main() -> None:
    """Train what is not trained, measure what is not measured, write the table, print the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--part", type=float, default=0.0, help="of CIFAR-10-LT; 0: digits-lt")
    parser.add_argument("--data-root", default="")
    parser.add_argument("--done", action="store_true", help="only the runs that are trained and analysed")
    parser.add_argument("--options", default="", help="further options of landscape train, in one string")
    args = parser.parse_args()
    os.environ |= {"ABLATION_ROOT": args.data_root, "ABLATION_PART": str(args.part)}
    words = [*(CIFAR if args.part else DIGITS), *args.options.split()]
    rows = []
    for seed in range(args.seeds):
        for method in args.methods.split(","):
            folder = args.out / f"{method}-{seed}"
            if args.done and not (folder / "ends.h5").exists():
                continue
            rows.append({"method": method, "seed": seed, **measured(folder, method, seed, words)})
            args.table.parent.mkdir(parents=True, exist_ok=True)
            with open(args.table, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, rows[0], lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
    show(rows)


def measured(folder: Path, method: str, seed: int, words: list[str]) -> dict[str, float]:
    """Return the numbers of one run, which is trained or analysed first where it is not yet."""
    ends = folder / "ends.h5"
    if not ends.exists():
        history = ls.load(folder / "history.h5") if (folder / "history.h5").exists() else None
        if history is None or history.epoch[-1] < history.provenance["recipe"]["epochs"]:
            code = landscape(["train", method, *words, "--seed", str(seed), "--device", "cpu", "-q", "-o", str(folder)])
            sys.exit(code) if code else None
        exact = [] if "ldam" in method or "bcl" in method else ["--trace", "exact"]  # these have a cosine classifier
        about = ["--partition", "head-tail", *exact, "--device", "cpu", "-q"]
        code = landscape(["hessian", "--ckpt", str(folder / "last.pt"), *about, "-o", str(ends)])
        sys.exit(code) if code else None
    history, found = ls.load(folder / "history.h5"), ls.load(ends)
    right = np.nansum(history.eval_accuracy_per_class[-1] * history.train_counts) / history.train_counts.sum()
    shares = [np.nan if v is None else v[-1] for v in (history.pull_share, history.clipped_share, history.n_groups)]
    sharpness = [*found.lambda_max, *found.trace, *found.loss, *(found.trace / found.loss)]
    values = [*by_frequency(history), right, *sharpness, *shares]
    return {name: float(value) for name, value in zip(COLUMNS, values, strict=True)}


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print means over seeds, and differences from CE with their standard errors."""
    print("\n".join(lines(rows)))


def lines(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = COLUMNS) -> list[str]:
    """Return a table of means over the seeds that all methods have, and of differences from the first method.

    Args:
        rows: one for each run.
        columns: what is shown of them.

    Returns:
        The lines of the table; differences are taken run by run, with the standard errors of their means.
    """
    found = {(row["method"], row["seed"]): row for row in rows}
    names = list(dict.fromkeys(row["method"] for row in rows))
    seeds = [s for s in sorted({row["seed"] for row in rows}) if all((name, s) in found for name in names)]
    told = [f"| {len(seeds)} seeds |" + "|".join(columns) + "|", "|" + "---|" * (len(columns) + 1)]
    for method in names:
        means = [np.mean([float(found[method, s][c]) for s in seeds]) for c in columns]
        told.append(f"| `{method}` |" + "|".join("  " if np.isnan(m) else f" {m:.4g} " for m in means) + "|")
    for method in names[1:]:
        cells = []
        for c in columns:
            d = np.array([float(found[method, s][c]) - float(found[names[0], s][c]) for s in seeds])
            error = d.std(ddof=1) / np.sqrt(len(d)) if len(d) > 1 else np.nan
            cells.append("  " if np.isnan(d).all() else f" {d.mean():+.3g} ± {error:.2g} ")
        told.append(f"| `{method}` - `{names[0]}` |" + "|".join(cells) + "|")
    return told


if __name__ == "__main__":
    main()
