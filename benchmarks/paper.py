"""Train the paper's rows on CIFAR-10-LT and CIFAR-100-LT, in pieces that may be cut, and print them beside its numbers.

    python benchmarks/paper.py --data-root DIR --out runs --minutes 9
    python benchmarks/paper.py --datasets digits-lt --methods ce,gsa-gkp --options "--epochs 8" --out try --minutes 2

The second line tries the script out, on data that come with the package.

Every call goes on where the last one stopped: a run that the time cuts resumes from its last epoch. After each run of a
method of the paper's Figure 9 on CIFAR-10-LT the spectra of head and tail class follow. The table is printed
at the end of each call; each row is one command line, which stands in the run's folder as config.toml.
"""

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path

import landscape as ls
from trainers.evaluation import by_frequency

METHODS = ("ce", "sam", "gsa-gkp", "ldam-drw-sam", "bcl", "bcl-gsa-gkp")
FIGURE_9 = ("ce", "sam", "gsa-gkp")
OF_SPECTRA = ("cifar10", "digits-lt")  # the paper has those of CIFAR-10-LT
STARTING = 20.0  # seconds in which a command may not get anywhere
IMBALANCE = "100"  # of the paper's numbers
PAPER = {  # top-1 in percent, last epoch: all, many, medium, few; tables 1 and 4
    ("cifar10", "ce"): (70.4,),
    ("cifar10", "ldam-drw"): (77.0,),
    ("cifar10", "ldam-drw-sam"): (81.9,),
    ("cifar10", "bcl"): (84.3,),
    ("cifar10", "bcl-gsa-gkp"): (86.3,),
    ("cifar100", "ce"): (38.3, 65.2, 37.1, 9.1),
    ("cifar100", "gkp"): (42.1,),
    ("cifar100", "gsa-gkp"): (42.8,),
    ("cifar100", "ldam-drw"): (42.0, 61.5, 41.7, 20.2),
    ("cifar100", "ldam-drw-sam"): (45.4, 64.4, 46.2, 20.8),
    ("cifar100", "bcl"): (51.9, 67.2, 53.1, 32.9),
    ("cifar100", "bcl-gkp"): (52.4,),
    ("cifar100", "bcl-gsa"): (52.7,),
    ("cifar100", "bcl-gsa-gkp"): (53.2, 67.3, 54.9, 34.9),
}
SPECTRA = {  # lambda_max and trace of head and tail
    "ce": ((38.15, 196.49), (74.99, 402.52)),
    "sam": ((7.42, 36.96), (35.19, 251.15)),
    "gsa-gkp": ((6.93, 32.32), (30.93, 221.97)),
}


def main() -> None:
    """Work until the time is up; then print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--datasets", default="cifar10,cifar100")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--imbalance", default=IMBALANCE)
    parser.add_argument("--options", default="", help="further options of landscape train, in one string")
    args = parser.parse_args()
    until = time.monotonic() + 60 * args.minutes
    rows = [(d, m, s) for s in args.seeds.split(",") for d in args.datasets.split(",") for m in args.methods.split(",")]
    for dataset, method, seed in rows:
        folder = folder_of(args.out, dataset, method, args.imbalance, seed)
        root = ["--data-root", args.data_root] if args.data_root else []
        words = ["train", method, "--dataset", dataset, *root, "--imbalance", args.imbalance]
        words += ["--seed", seed, *args.options.split(), "--out", str(folder), "-q"]
        if not finished(folder) and not run(words, until):
            break
        if dataset in OF_SPECTRA and method in FIGURE_9 and not (folder / "ends.h5").exists():
            ends = ["hessian", "--ckpt", str(folder / "last.pt"), *root, "--partition", "head-tail"]
            if not run([*ends, "-o", str(folder / "ends.h5"), "-q"], until):
                break
    show(args.out, rows, args.imbalance)


def folder_of(out: Path, dataset: str, method: str, imbalance: str, seed: str) -> Path:
    """Return the folder of a run."""
    return out / f"{dataset}-{imbalance}-{method}-{seed}"


def finished(folder: Path) -> bool:
    """Say whether a run has all its epochs."""
    if not (folder / "history.h5").exists():
        return False
    history = ls.load(folder / "history.h5")
    return int(history.epoch[-1]) >= int(history.provenance["recipe"]["epochs"])


def run(words: list[str], until: float) -> bool:
    """Run a command; interrupt it when the time is up, and say whether it was done."""
    left = until - time.monotonic()
    if left < STARTING:
        return False
    child = subprocess.Popen([sys.executable, "-m", "landscape", *words])
    try:
        code = child.wait(timeout=left)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGINT)
        try:
            child.wait(timeout=STARTING)
        except subprocess.TimeoutExpired:  # a shell starts its background jobs with SIGINT ignored
            child.kill()
            child.wait()
        return False
    if code:
        sys.exit(code)
    return True


def show(out: Path, rows: list[tuple[str, str, str]], imbalance: str) -> None:
    """Print accuracies and, where there are any, spectra beside the paper's, which are those of imbalance 100."""
    heads = ("epochs", "minutes", "all", "many", "medium", "few")
    print(f"{'run':<32}" + "".join(f"{head:>9}" for head in heads) + "   paper: all many medium few")
    for dataset, method, seed in rows:
        folder, of_paper = folder_of(out, dataset, method, imbalance, seed), imbalance == IMBALANCE
        if not (folder / "history.h5").exists():
            continue
        history = ls.load(folder / "history.h5")
        shares = "".join(f"{100 * a:9.2f}" for a in by_frequency(history))
        paper = " ".join(f"{a:.1f}" for a in PAPER.get((dataset, method), ()) if of_paper) or "-"
        print(f"{folder.name:<32}{history.epoch[-1]:>9}{history.seconds.sum() / 60:>9.1f}{shares}   {paper}")
        if (folder / "ends.h5").exists():
            found = ls.load(folder / "ends.h5")
            for p, part in enumerate(found.parts):
                theirs = SPECTRA[method][p] if dataset == "cifar10" and of_paper else None
                top, trace = (f" (paper {value:6.2f})" for value in theirs) if theirs else ("", "")
                print(f"    {part:<12} lambda_max {found.lambda_max[p]:9.2f}{top}, ", end="")
                print(f"trace {found.trace[p]:9.2f}{trace}")


if __name__ == "__main__":
    main()
