"""How often intervals over samples hold the truth: sub-samples of a class whose rows are all known.

    python benchmarks/coverage.py --ckpt resnet32.th --model resnet32 --dataset cifar10 --data-root DIR \
        --normalize imagenet --split train --part airplane --population 2000

    python benchmarks/coverage.py --files figures/data/digits.ce.ends.h5,figures/data/digits.sam.ends.h5 --part head

The population's Gauss-Newton matrix is the truth. Samples are drawn from it alike, or in proportion to tr M_i with
weights, as `--samples` does. Printed for each size: estimate / truth (mean and standard deviation) and how often a 90 %
interval holds. With --files, the samples of a part in result files are the population, and what is measured are numbers
per uncertainty, and how often the test of two models on the same images rejects a true hypothesis at 5 %.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kstest
from scipy.stats import t as student

import landscape as ls
from landscape.curvature import rows
from landscape.curvature.kinds import KINDS
from landscape.objective import draws
from landscape.results import inference, matched, permutation, same_images
from landscape.results.gram import Gram
from landscape.results.pool import Pool

SIZES = (6, 10, 25, 50, 100, 200)
POWERED = 200  # tests that state their power, each by 1,600 draws
RATIOS = (1.5, 2.0, 3.0)  # for which the power of the test is measured
LEFT_OUT = 1e-3  # share of the trace that the population's rows leave out


def loaded(options: argparse.Namespace) -> Any:
    """Return the objective of the population."""
    return ls.load_objective(
        options.ckpt, model=options.model, dataset=options.dataset, data_root=options.data_root,
        normalize=options.normalize, split=options.split, samples_per_class=options.population,
        **({"partition": "all"} if options.part == "all" else {"partition": "class", "classes": options.part}),
    )  # fmt: skip


def population(options: argparse.Namespace) -> tuple[Gram, np.ndarray, np.ndarray]:
    """Return the rows' products of all samples, and each sample's tr M and trace of the kept rows."""
    if options.rows is not None and options.rows.exists():
        kept = np.load(options.rows)
        products, sign, sample, n = (kept[name] for name in ("gram", "sign", "sample", "n"))
        gram = Gram(products=products, sign=sign, sample=sample, n=int(n))
        uncertainty = kept["uncertainty"]
    else:
        objective = loaded(options)
        known = rows.lengths(objective, KINDS["ggn"].factors, 0)
        gram, uncertainty = rows.rows(objective, KINDS["ggn"].factors, 0, known, LEFT_OUT).gram, known.uncertainty
        if options.rows is not None:
            np.savez(
                options.rows, gram=gram.products, sign=gram.sign, sample=gram.sample, n=gram.n, uncertainty=uncertainty
            )
    return gram, uncertainty, np.bincount(gram.sample, gram.sign * gram.products.diagonal(), minlength=gram.n)


def one_draw(
    gram: Gram, traces: np.ndarray, uncertainty: np.ndarray, n: int, random: np.random.Generator, *, weighted: bool
) -> dict:
    """Draw n samples, alike or by their uncertainty as `draws.pick` does, and return estimates and intervals."""
    drawn, chances, weights = random.choice(gram.n, n, replace=False), None, np.full(n, 1 / n)
    if weighted:
        chances = draws.inclusion(uncertainty, n, draws.AT)
        drawn = draws.systematic(chances, random)
        chances = chances[drawn]
        weights = 1 / (gram.n * chances)
    place = np.full(gram.n, -1)
    place[drawn] = np.arange(len(drawn))
    kept = np.flatnonzero(place[gram.sample] >= 0)
    own = Gram(
        products=gram.products[np.ix_(kept, kept)],
        sign=gram.sign[kept],
        sample=place[gram.sample[kept]],
        n=len(drawn),
    )
    value, combination = own.top(weights)
    q = inference.draws(own.curvatures(combination), weights, chances)
    held_out = inference.draws(own.crossfitted(weights), weights, chances)
    x, u = (inference.draws(values[drawn], weights, chances) for values in (traces, uncertainty))
    tell = None if chances is None else chances < 1
    low, high = inference.ratio_interval(q, u, tell=tell)
    t = student.ppf(0.95, n - 1)
    error = inference.stderr(x)
    quarter = inference.LEAST
    inference.LEAST = 2  # to see what happens below it
    try:
        found = {
            "trace": x.mean(),
            "t": (x.mean() - t * error, x.mean() + t * error),
            "bootstrap-t": inference.interval(x, repetitions=500, seed=int(random.integers(2**31))),
            "lambda_max": value,
            "plug-in": (value - t * inference.stderr(q), value + t * inference.stderr(q)),
            "bracket": inference.bracket(value, inference.stderr(q), held_out.mean(), inference.stderr(held_out), n),
            "trace / unc.": x.mean() / u.mean(),
            "of trace / unc.": inference.ratio_interval(x, u, tell=tell),
            "lambda_max / unc.": value / u.mean(),
            "of lambda_max / unc.": (low - (value - held_out.mean()) / u.mean(), high),
        }
    finally:
        inference.LEAST = quarter
    return found


TABLES = {
    "numbers": {"trace": ("t", "bootstrap-t"), "lambda_max": ("plug-in", "bracket")},
    "ratios": {"trace / unc.": ("of trace / unc.",), "lambda_max / unc.": ("of lambda_max / unc.",)},
}
"""The numbers of each table, and their intervals."""


def table(gram: Gram, traces: np.ndarray, uncertainty: np.ndarray, what: str, repetitions: int, weighted: bool) -> None:
    """Print one table for one way to draw."""
    trace, top = traces.mean(), gram.top(np.full(gram.n, 1 / gram.n))[0]
    truths = {"trace": trace, "lambda_max": top}
    truths |= {f"{name} / unc.": truth / uncertainty.mean() for name, truth in truths.items()}
    heads = [head for name, own in TABLES[what].items() for head in (f"{name}: mean (s.d.)", *own)]
    print("| n | " + " | ".join(heads) + " |")
    print("|---|" + "---|" * len(heads))
    for n in SIZES:
        if not weighted and n > gram.n / 5:
            continue
        random = np.random.default_rng(n)
        found = [one_draw(gram, traces, uncertainty, n, random, weighted=weighted) for _ in range(repetitions)]
        cells = [str(n)]
        for name, intervals in TABLES[what].items():
            values = np.array([one[name] for one in found]) / truths[name]
            cells.append(f"{values.mean():.2f} ({values.std():.2f})")
            for interval in intervals:
                ends = np.array([one[interval] for one in found])
                ends = ends[np.isfinite(ends[:, 0])]
                held = np.mean((ends[:, 0] <= truths[name]) & (truths[name] <= ends[:, 1])) if len(ends) else np.nan
                refused = f" ({1 - len(ends) / len(found):.0%} refused)" if len(ends) < len(found) else ""
                cells.append(f"{held:.0%}{refused}")
        print("| " + " | ".join(cells) + " |", flush=True)


def ratios(population: dict[str, np.ndarray], repetitions: int) -> None:
    """Print how often intervals of a number per uncertainty hold that of a population, given its samples' values."""
    truth = {name: population[name].mean() / population["uncertainty"].mean() for name in ("trace", "curvature")}
    heads = [h for name in truth for h in (f"{name} / unc.: mean (s.d.)", "linear, t", "interval")]
    print("| n | " + " | ".join(heads) + " |")
    print("|---|---|---|---|---|---|---|")
    for n in SIZES:
        random, cells = np.random.default_rng(n), [str(n)]
        chosen = random.integers(len(population["uncertainty"]), size=(repetitions, n))
        below = population["uncertainty"][chosen]
        for name, right in truth.items():
            above = population[name][chosen]
            value = above.mean(axis=1) / below.mean(axis=1)
            off = (above - value[:, None] * below) / below.mean(axis=1, keepdims=True)
            linear = student.ppf(0.95, n - 1) * off.std(axis=1, ddof=1) / np.sqrt(n)
            ends = np.array([inference.ratio_interval(x, y) for x, y in zip(above, below, strict=True)])
            given = np.isfinite(ends[:, 0])
            held = np.mean((ends[given, 0] <= right) & (right <= ends[given, 1]))
            refused = f" ({1 - given.mean():.0%} refused)" if not given.all() else ""
            cells += [
                f"{value.mean() / right:.2f} ({value.std() / right:.2f})",
                f"{np.mean(abs(value - right) <= linear):.0%}",
                f"{held:.0%}{refused}",
            ]
        print("| " + " | ".join(cells) + " |", flush=True)


def paired(first: dict[str, np.ndarray], second: dict[str, np.ndarray], repetitions: int) -> None:
    """Print how often the test of two models rejects that their numbers are equal, where they are, or differ 1.5 x."""
    names = ("trace", "trace per uncertainty", "lambda_max", "lambda_max per uncertainty")
    print("| n | " + " | ".join(f"{name}: equal, 1.5 x" for name in names) + " |")
    print("|---|" + "---|" * len(names))
    for n in SIZES[:5]:
        chosen = np.random.default_rng(n).integers(len(first["trace"]), size=(repetitions, n))
        cells = [str(n)]
        for name in names:
            below = "uncertainty" if name.endswith("per uncertainty") else None
            field = "trace" if name.startswith("trace") else "curvature"
            right = [own[field].mean() / (own[below].mean() if below else 1) for own in (first, second)]
            shares = []
            for factor in (1.0, 1.5):
                p = []
                for i in chosen:
                    one, other = (
                        (own["trace"][i] * by, own["curvature"][i] * by, own["uncertainty"][i])
                        for own, by in ((first, 1.0), (second, factor * right[0] / right[1]))
                    )
                    p.append(same_images.difference(one, other, name)[2])
                shares.append(np.mean(np.array(p) <= 0.05))
            cells.append(", ".join(f"{share:.1%}" for share in shares))
        print("| " + " | ".join(cells) + " |", flush=True)


def of_hessian(options: argparse.Namespace) -> None:
    """Print how lambda_max and trace of the Hessian of weighted draws differ from those of all samples."""
    objective = loaded(options)
    whole, values, used = ls.spectrum(objective), [], []
    names, wanted = ("lambda_max", "trace"), options.accuracy
    of_draw = "sampling_stderr" if wanted is None else "error"
    for seed in range(options.draws):
        found = ls.spectrum(objective, samples=100 if wanted is None else None, accuracy=wanted, seed=seed)
        values.append([(getattr(found, name)[0], getattr(found, f"{name}_{of_draw}")[0]) for name in names])
        used.append(int(found.n_used[0]))
    n = min(used)
    for name, (value, error) in zip(names, np.array(values).transpose(1, 2, 0), strict=True):
        truth = float(getattr(whole, name)[0])
        holds = np.mean(np.abs(value - truth) <= student.ppf(0.95, n - 1) * error)
        print(
            f"{name} of H: {truth:.5g}; {options.draws} draws of {n} to {max(used)}: {value.mean() / truth:.3f} "
            f"({value.std() / truth:.3f}), stated {np.mean(error / value):.3f}, ± t s.e. holds in {holds:.0%}",
            flush=True,
        )


def two_parts(
    gram: Gram,
    traces: np.ndarray,
    uncertainty: np.ndarray,
    sizes: tuple[int, int],
    random: np.random.Generator,
    *,
    drawn: int | None = None,
    ratio: float = 1.0,
) -> matched.Pair:
    """Draw two parts from one population, the smaller one as many times as sharp, to be compared.

    Args:
        gram: rows of the population.
        traces: of its samples.
        uncertainty: of its samples.
        sizes: of the smaller and of the larger part.
        random: source of the draw.
        drawn: so many samples of the larger part are drawn in proportion to uncertainty; None for all of them.
        ratio: by which the curvature of the smaller part's samples is multiplied.

    Returns:
        Both parts.
    """
    small, large = sizes
    chosen = random.choice(gram.n, small + large, replace=False)
    of_large = float(uncertainty[chosen[small:]].mean())
    weights, chances = np.repeat([1 / small, 1 / large], [small, large]), np.full(small + large, np.nan)
    if drawn is not None:
        every = draws.inclusion(uncertainty[chosen[small:]], drawn, draws.AT)
        kept = draws.systematic(every, random)
        chosen = np.append(chosen[:small], chosen[small + kept])
        chances = np.append(np.full(small, np.nan), every[kept])
        weights = np.append(weights[:small], 1 / (large * every[kept]))
    sharper = np.where(np.arange(len(chosen)) < small, ratio, 1.0)
    place = np.full(gram.n, -1)
    place[chosen] = np.arange(len(chosen))
    rows_of = np.flatnonzero(place[gram.sample] >= 0)
    sample = place[gram.sample[rows_of]]
    roots = np.sqrt(sharper[sample])
    together = Pool(
        part=(np.arange(len(chosen)) >= small).astype(int),
        weights=weights,
        chances=chances,
        traces=sharper * traces[chosen],
        uncertainty=uncertainty[chosen],
        gram=Gram(
            products=roots[:, None] * gram.products[np.ix_(rows_of, rows_of)] * roots,
            sign=gram.sign[rows_of],
            sample=sample,
            n=len(chosen),
        ),
    )
    return matched.pair(together, sizes, (float(together.uncertainty[:small].mean()), of_large))


def uniform_p(gram: Gram, traces: np.ndarray, uncertainty: np.ndarray, repetitions: int, drawn: int | None) -> None:
    """Print how the p values of the pooled test are spread where both parts are draws of one population, and its power.

    The power is how often a true ratio of 2 is found at 5 %, the mean of what the first `POWERED` tests state.

    Args:
        gram: rows of the population.
        traces: of its samples.
        uncertainty: of its samples.
        repetitions: number of tests.
        drawn: as of `two_parts`.
    """
    random = np.random.default_rng(0)
    print("| sizes | " + " | ".join(f"{name}: rejects, KS p, power" for name in matched.NUMBERS) + " |")
    print("|---|" + "---|" * len(matched.NUMBERS))
    for sizes in ((25, 25), (25, 100), (10, 500), (10, 990)) if drawn is None else ((20, 980), (50, 950)):
        if sum(sizes) > gram.n:
            continue
        p, power = [], []
        for seed in range(repetitions):
            trials = permutation.TRIALS if seed < POWERED else 0
            parts = two_parts(gram, traces, uncertainty, sizes, random, drawn=drawn)
            found = parts.tests(repetitions=199, trials=trials, seed=seed)
            p.append([found[name].p for name in matched.NUMBERS])
            power.append([found[name].power for name in matched.NUMBERS])
        cells = ["{} against {}".format(*sizes)]
        for k in range(len(matched.NUMBERS)):
            values, share = np.array(p)[:, k], np.nanmean(np.array(power)[:, k])
            fit = kstest(values - 0.01 * random.random(repetitions), "uniform").pvalue
            cells.append(f"{np.mean(values <= 0.05):.1%}, {fit:.2f}, {share:.0%}")
        print("| " + " | ".join(cells) + " |", flush=True)


def power_of(gram: Gram, traces: np.ndarray, uncertainty: np.ndarray, repetitions: int) -> None:
    """Print how often the pooled test finds, at 5 %, a part that is some times as sharp as a larger one.

    Args:
        gram: rows of the population, of which both parts are drawn.
        traces: of its samples.
        uncertainty: of its samples.
        repetitions: number of tests.
    """
    print("| sizes | " + " | ".join(f"{name}: " + ", ".join(f"{r:g} x" for r in RATIOS) for name in matched.NUMBERS))
    print("|---|" + "---|" * len(matched.NUMBERS))
    for small in (6, 10, 25, 50, 100):
        sizes, random = (small, min(20 * small, gram.n - small)), np.random.default_rng(small)
        shares = []
        for ratio in RATIOS:
            p = []
            for seed in range(repetitions):
                parts = two_parts(gram, traces, uncertainty, sizes, random, ratio=ratio)
                found = parts.tests(repetitions=199, trials=0, seed=seed)
                p.append([found[name].p for name in matched.NUMBERS])
            shares.append(np.mean(np.array(p) <= 0.05, axis=0))
        cells = ["{} against {}".format(*sizes), *(", ".join(f"{x:.0%}" for x in own) for own in np.transpose(shares))]
        print("| " + " | ".join(cells) + " |", flush=True)


def of_files(files: list[str], part: str, repetitions: int) -> None:
    """Print the tables for which the samples in result files are enough."""
    populations = []
    for file in files:
        found = ls.load(file, ls.Spectrum)
        own = np.isfinite(found.sample_trace[found.index(part)])
        fields = {"trace": "sample_trace", "curvature": "sample_curvature", "uncertainty": "sample_uncertainty"}
        populations.append({name: getattr(found, field)[found.index(part)][own] for name, field in fields.items()})
        print(f"\n{file}: {own.sum()} samples, drawn with replacement")
        ratios(populations[-1], repetitions)
    for k in range(1, len(files)):
        print(f"\n{files[k]} and {files[0]}, the same samples of both: rejected at 5 %")
        paired(populations[0], populations[k], repetitions)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("ckpt", "model", "dataset", "data-root", "normalize"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--split", default="train")
    parser.add_argument("--part", default="0", help="the class, or all together")
    parser.add_argument("--population", type=int, default=2000, help="samples of each class")
    parser.add_argument("--repetitions", type=int, default=300)
    parser.add_argument("--what", default="alike,weighted,numbers,pooled", help="tables; hessian alone takes long")
    parser.add_argument("--rows", type=Path, help="a .npz to keep the population's rows in")
    parser.add_argument("--draws", type=int, default=20, help="for the Hessian, and of the larger part")
    parser.add_argument("--accuracy", type=float, help="of the draws for the Hessian, instead of 100 samples each")
    parser.add_argument("--files", help="spectra of landscape hessian, whose part is the population, by commas")
    options = parser.parse_args()
    if options.what == "hessian":
        of_hessian(options)
        return
    if options.files:
        of_files(options.files.split(","), options.part, options.repetitions)
        return
    gram, uncertainty, traces = population(options)
    print(f"{gram.n} samples, {len(gram.sample)} rows, trace {traces.mean():.4g}, "
          f"lambda_max {gram.top(np.full(gram.n, 1 / gram.n))[0]:.4g}")  # fmt: skip
    tables = options.what.split(",")
    for way, weighted in (("alike", False), ("weighted", True)):
        for what in TABLES:
            if {way, what} <= set(tables):
                print("\n" + ("drawn in proportion to tr M" if weighted else "drawn alike"))
                table(gram, traces, uncertainty, what, options.repetitions, weighted)
    if "pooled" in tables:
        print("\np of two parts of one population")
        uniform_p(gram, traces, uncertainty, options.repetitions, None)
    if "power" in tables:
        print("\nhow often a true ratio is found")
        power_of(gram, traces, uncertainty, options.repetitions)
    if "pooled-draws" in tables:
        print(f"\np of two parts of one population, the larger one from {options.draws} draws")
        uniform_p(gram, traces, uncertainty, options.repetitions, options.draws)


if __name__ == "__main__":
    main()
