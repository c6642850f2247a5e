"""`landscape hessian`: a checkpoint goes in, the spectra of its parts come out."""

import math
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import cloup
import numpy as np

from landscape.analyses import row_numbers
from landscape.analyses import samples as of_samples
from landscape.analyses.options import TRACES, Options, all_rows, ggn_tol_for
from landscape.analyses.samples import METHODS
from landscape.analyses.spectrum import spectrum
from landscape.autodiff import distributed
from landscape.cli import along, further, over_samples
from landscape.cli.analysis import DRAWN, checkpoint, numbers, output, parts, samples
from landscape.cli.begin import begin, told_draws
from landscape.cli.console import Console
from landscape.cli.options import Choice, command, limiting, option, seeding
from landscape.curvature import verify
from landscape.curvature.extremes import GAP
from landscape.curvature.kinds import HESSIAN, KINDS
from landscape.curvature.lanczos import DISTRIBUTIONS
from landscape.curvature.operators import BACKENDS
from landscape.errors import InputError, arg
from landscape.objective.objective import Objective
from landscape.results import Spectrum, columns
from landscape.results.predicted import FIELDS
from landscape.results.written import few, short

SPECTRUM = cloup.option_group(
    "Spectrum",
    option(
        "--operator",
        type=Choice(list(KINDS)),
        default=HESSIAN.name,
        show_default=True,
        help="Choose the matrix. " + "; ".join(f"{kind.name}: {kind.about}" for kind in KINDS.values()) + ".",
    ),
    option(
        "--density/--no-density",
        default=None,
        help="Also compute the density of all eigenvalues (the empirical spectral density, by stochastic Lanczos "
        "quadrature) and the negative mass. This needs M x K matrix-vector products instead of 10 to 25.",
        show_default="on if --steps or --probes is given",
    ),
    option(
        "--steps",
        type=int,
        metavar="M",
        help="Take M Lanczos steps for the density: 40 for a first look, 80 to 100 for a figure.",
        show_default="80",
    ),
    option(
        "--probes",
        type=int,
        metavar="K",
        help="Use K random starting vectors for each part. The error bars of the density are the spread between them.",
        show_default="4",
    ),
    seeding("the random vectors, and the draws of --samples and --accuracy"),
    option(
        "--distribution",
        type=Choice(DISTRIBUTIONS),
        default="rademacher",
        show_default=True,
        help="Draw the random vectors from this distribution.",
    ),
    option(
        "--top",
        type=int,
        metavar="K",
        help="Compute the K largest eigenvalues. Otherwise only lambda_max converges, and the next nine Ritz values "
        "are stored with their residuals.",
    ),
    option(
        "--vectors",
        default=0,
        show_default=True,
        metavar="K",
        help="Store the eigenvectors of the K largest eigenvalues.",
    ),
    option(
        "--overlap",
        is_flag=True,
        help="Measure the curvature of each part, with all of its samples, along the eigenvectors (--vectors) and "
        "gradients of the other parts.",
    ),
    option(
        "--tol",
        type=float,
        show_default="0.001; with the density, no further steps",
        metavar="FRACTION",
        help="Take more steps until the residual of lambda_max is at most this fraction of it, such as 1e-4.",
    ),
    option(
        "--gap",
        type=float,
        show_default="the error over samples, from 0.05 to 0.3; 0.05 with --tol, --accuracy or --no-sampling-errors",
        metavar="FRACTION",
        help="Without the density, take more steps until no eigenvalue exceeds lambda_max by more than this fraction "
        "of it, with a probability of 99 %.",
    ),
    option(
        "--max-steps",
        type=int,
        metavar="M",
        help="Take at most M steps for --tol.",
        show_default="48, or 12 times --top; 4 times --steps with the density",
    ),
    option(
        "--trace",
        type=Choice(TRACES),
        default="auto",
        show_default=True,
        help="Compute the trace exactly, or estimate it from gradients of drawn samples (sampled) or from random "
        "vectors (probes). For the Hessian, exact and sampled need a ReLU network.",
    ),
    option(
        "--trace-tol",
        type=float,
        metavar="FRACTION",
        help="Let the standard error of the trace be at most this fraction of it, such as 0.02. If it is larger, "
        "compute the gradients of every sample for all directions of the outputs, instead of estimating the small "
        "ones, or draw more random vectors.",
    ),
    option(
        "--negative-tol",
        default=1e-3,
        show_default=True,
        metavar="FRACTION",
        help="Count an eigenvalue as negative only if its size is above this fraction of the largest |eigenvalue|.",
    ),
    DRAWN,
    option(
        "--accuracy",
        type=float,
        metavar="FRACTION",
        help="Draw as many samples of each part as are needed for errors of lambda_max and trace below this fraction "
        "of their values, such as 0.05. A part that needs most of its samples uses all of them.",
    ),
    option(
        "--method",
        type=Choice(METHODS),
        default="auto",
        show_default=True,
        help="Compute all eigenvalues of a Gauss-Newton or Fisher matrix from gradients of single samples (rows), or "
        "its density from matrix-vector products (lanczos). auto chooses rows if they fit into memory and are less "
        "work. The Hessian always uses products.",
    ),
    option(
        "--ggn-tol",
        type=float,
        show_default="0.0001; with --accuracy, a twentieth of it",
        metavar="FRACTION",
        help="Leave out the rows of smallest norm, up to this fraction of the trace. The error of an eigenvalue is at "
        "most the trace of the rows that are left out.",
    ),
    option(
        "--sampling-errors/--no-sampling-errors",
        default=True,
        show_default=True,
        help="Also compute how much another sample of the data would change lambda_max and trace.",
    ),
)
BACKEND = option(
    "--backend",
    type=Choice(BACKENDS),
    default="auto",
    show_default=True,
    help="Choose how products with the matrix are computed. auto chooses the faster way that is correct for the model.",
)
LIMIT = limiting(
    "If a Lanczos basis does not fit, processes divide it, or the host keeps it for a GPU. If it still does not fit, a "
    "restarted run computes the largest eigenvalues, and runs without a basis compute the density. Rows of single "
    "samples that do not fit are replaced by products."
)
VERIFY = option(
    "--verify",
    "verify_with",
    type=Choice(["pyhessian"]),
    help="Also run this package on each part, and print both results.",
)


@command(
    "landscape hessian --ckpt run/last.pt --per-class",
    "landscape hessian --ckpt run --partition head-tail --with-parts all --density",
)
@checkpoint(series=True)
@samples(drawn=False)
@parts(along.WITH_PARTS)
@SPECTRUM
@numbers(BACKEND, LIMIT, weight_decay=True, cache="values that are the same in every product")
@output(along.EXTEND, VERIFY)
def hessian(
    *,
    ckpt: tuple[str, ...],
    per_class: bool,
    partition: str | None,
    with_parts: str | None,
    cache: float,
    memory: int | None,
    verify_with: str | None,
    out: str | None,
    overwrite: bool,
    extend: bool,
    as_json: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Compute the largest eigenvalue and the trace of each part's Hessian, and with --density all of its spectrum.

    Each number is printed with its error as soon as it is computed. The result is one HDF5 file, which landscape plot,
    compare, report and export read. For several checkpoints, the result is a series along training; it includes the
    learning rate and the edge of stability if they are known.

    Raises:
        InputError: options that are unknown or contradict each other.
    """
    if verify_with and given["operator"] != HESSIAN.name:
        raise InputError(f"--verify pyhessian compares Hessians only: leave it out for --operator {given['operator']}")
    if given["weight_decay"] and not KINDS[given["operator"]].decays:
        raise InputError(f"--weight-decay adds nothing to the matrix of --operator {given['operator']}: leave it out")
    if verify_with:
        verify.refuse(given["weight_decay"])
        for name in ("samples", "accuracy"):
            if given[name] is not None:
                raise InputError(f"--verify pyhessian computes with all samples: leave --{name} out")
        if given["dry_run"]:
            raise InputError("--dry-run does not know what --verify pyhessian takes: leave one of them out")
    first, stages = along.listed(ckpt, given)
    along.refuse_single(stages, extend=extend, with_parts=with_parts)
    if verify_with and stages:
        raise InputError("--verify runs PyHessian on one checkpoint: give one")
    ours = {name: given.pop(name) for name in SPECTRUM_NAMES}
    if ours["ggn_tol"] is None:
        ours["ggn_tol"] = ggn_tol_for(ours["accuracy"])
    options = Options(**{item.name: ours[item.name] for item in fields(Options)})  # refused before anything is loaded
    ours |= {"cache_bytes": int(min(cache, 2**30) * 2**30), "memory_bytes": memory}
    path = along.path_of(out, ckpt, stages, "hessian")
    with begin(ckpt=first, per_class=per_class, partition=partition, quiet=quiet, as_json=as_json, **given) as (
        objective,
        console,
    ):
        if verify_with:
            verify.refuse_data(objective)
        if stages:
            where: dict[str, Any] = {"out": path, "overwrite": overwrite, "extend": extend}
            where |= {"given": given, "with_parts": with_parts}
            course = along.run(console, spectrum, objective, stages, **where, **ours)
            along.conclude(console, course, path, _document, as_json=as_json)
            return
        with console.progress() as progress:
            found = spectrum(
                objective,
                **ours,
                out=path,
                overwrite=overwrite,
                progress=progress,
                finished=partial(_finished, console),
            )
        if not distributed.is_main():
            return
        _conclude(console, found, path, objective, options)
        checks = _verify(console, objective, found) if verify_with else None
        if as_json:
            console.json(_document(found, path, checks))


SPECTRUM_NAMES = [
    "operator", "density", "steps", "probes", "seed", "distribution", "top", "vectors", "overlap", "tol", "gap",
    "max_steps", "trace", "trace_tol", "negative_tol", "samples", "accuracy", "method", "ggn_tol", "sampling_errors",
    "backend",
]  # fmt: skip


MOST_COLUMNS = 12
"""The largest number of parts for which the overlap is printed as a table."""
ROUGH = 0.25
"""Error of the estimate of a trace, as a fraction of it, from which on the remedy is named."""
OVERLAP_TITLE = "column's curvature along the row's sharpest directions, as a fraction of that along its own directions"
ANGLE_TITLE = "smallest angle between the spaces of two parts' sharpest directions, in degrees"
GRADIENT_TITLE = "column's curvature along the row's gradient; at most the column's lambda_max"

DOCUMENT_NAMES = [
    "n_samples", "n_used", "loss", "loss_stderr", "accuracy", "accuracy_stderr", *FIELDS, "lambda_max",
    "lambda_max_residual", "converged", "lambda_min", "lambda_min_residual", "trace", "trace_stderr",
    "trace_sampling_stderr", "lambda_max_sampling_stderr", "lambda_max_crossfit", "lambda_max_crossfit_stderr",
    "uncertainty", "ritz_values", "ritz_residuals", "ritz_converged", "ritz_sampling_stderr", "negative_mass",
    "negative_mass_stderr", "negative_curvature", "negative_curvature_stderr", "saddle_ratio", "saddle_ratio_stderr",
    "largest_at_most", "smallest_at_least", "lambda_max_error", "trace_error", "beyond_max", "beyond_max_error",
    "beyond_min", "beyond_min_error",
]  # fmt: skip


def _finished(console: Console, found: Spectrum) -> None:
    """Print the first numbers of a part as soon as they are computed."""
    numbers = [column for column in columns.of_kind(found) if column.head in {"lambda_max", "trace", "± samples"}]
    words = [f"{column.head} {column.text(found, 0)}" for column in numbers if column.of(found)]
    console.note(f"{found.parts[0]}: {', '.join(words)}")


def _conclude(console: Console, found: Spectrum, path: Path, objective: Objective, options: Options) -> None:
    """Print the table, and below it warnings about its numbers."""
    heads, rows = columns.table(found)
    console.table(heads, rows, title=found.title)
    _doubts(console, found)
    if (found.n_used < found.n_samples).any():
        how = "in proportion to their uncertainty where that varies"
        console.note(told_draws(found.parts, found.n_used, found.n_samples, how))
    if (basis := found.provenance.get("basis")) is not None:
        console.note(f"the Lanczos basis was {basis}")
    _reached(console, found)
    over_samples.show(console, found)
    _by_rows(console, found, objective, options)
    if options.sought > 1:
        further.show(console, found, min(options.sought, MOST_COLUMNS))
        further.warn(console, found, options.sought)
    if found.overlap is not None:
        _show_overlap(console, found)
    also = "" if found.overlap is None else " [--kind overlap]"
    console.say(f"result: {path}\nfigure: landscape plot {path}{also}")


def _by_rows(console: Console, found: Spectrum, objective: Objective, options: Options) -> None:
    """Print how many eigenvalues rows gave and how exact these are, and why other parts were computed by Lanczos."""
    kind = KINDS[found.operator]
    if not kind.has_rows or options.method == "lanczos":
        return
    nothing = np.full(len(found.parts), np.nan)
    above, below = (nothing if b is None else b for b in (found.eigenvalue_above, found.eigenvalue_below))
    rounding = nothing if found.eigenvalue_rounding is None else found.eigenvalue_rounding
    bounds = np.fmax(above, below) - rounding
    own = np.isfinite(bounds)
    if found.eigenvalues is not None and own.any():
        rows = np.isfinite(found.eigenvalues[own]).sum(axis=1)
        which = "each part" if own.all() else f"{own.sum()} of {len(own)} parts"
        console.note(
            f"by rows: {rows.min():,} to {rows.max():,} eigenvalues of {which}; none is off by more than the rows that "
            f"are left out, {bounds[own].max():.2g}, and rounding, {rounding[own].max():.2g}"
        )
    if own.all():
        return
    if not all_rows(objective, kind, options):
        reason = f"{objective.outputs.size:,} backward passes are more than the products of Lanczos"
    elif (reason := of_samples.refusal(objective, kind) or "") == "":
        reason = (
            f"they need more rows than fit into --cache, or more than {row_numbers.FEW_ROWS:,}, which would take "
            f"longer than {options.products:,} products (--method rows takes them)"
        )
    others = [part for part, known in zip(found.parts, own, strict=True) if not known]
    console.note(f"by Lanczos, not by rows: {few(others)}, because {reason}")


def _reached(console: Console, found: Spectrum) -> None:
    """Print for each part how many samples `--accuracy` used, and the errors that remain."""
    wanted = found.provenance["options"]["accuracy"]
    if found.lambda_max_error is None or found.trace_error is None or wanted is None:
        return
    for p, part in enumerate(found.parts):
        used, n = int(found.n_used[p]), int(found.n_samples[p])
        errors = [
            error / abs(value) if value else math.nan
            for value, error in (
                (found.lambda_max[p], found.lambda_max_error[p]),
                (found.trace[p], found.trace_error[p]),
            )
        ]
        missed = f", above the requested {_percent(wanted)}" if any(error > wanted for error in errors) else ""
        missed += "; ? is unknown: a draw's error of H - G" if any(map(math.isnan, errors)) else ""
        console.note(
            f"{part}: {used if used < n else 'all'} of {n:,} samples, lambda_max {_within(errors[0])}, "
            f"trace {_within(errors[1])}{missed}"
        )


def _within(share: float) -> str:
    return f"within {_percent(share)}" if share else "exact"


def _percent(share: float) -> str:
    return "?" if math.isnan(share) else f"{short(100 * share)}%"


def _doubts(console: Console, found: Spectrum) -> None:
    """Name the parts whose lambda_max has not converged or might not be the largest, or whose trace is rough."""
    for p in np.flatnonzero(~found.converged).tolist():
        after = f" after {int(found.runs(p)[2].max())} steps" if found.ran(p) else ""
        console.note(
            f"* lambda_max of {found.parts[p]} has not converged: residual {found.lambda_max_residual[p]:.2g} of "
            f"{found.lambda_max[p]:.4g}{after}; {further.remedy(found, p)}"
        )
    options = found.provenance["options"]
    if options.get("trace_tol") is None and options.get("accuracy") is None:  # else a warning says what was not reached
        from_samples = 0.0 if found.trace_sampling_stderr is None else np.nan_to_num(found.trace_sampling_stderr)
        rough = found.trace_stderr > np.fmax(ROUGH * np.abs(found.trace), from_samples)
        if rough.any():
            who = few([found.parts[p] for p in np.flatnonzero(rough)])
            console.note(
                f"the trace of {who} is an estimate with an error above {_percent(ROUGH)} of it: "
                f"{arg('trace_tol', 0.1)} draws as many probes as an error of a tenth needs"
            )
    if found.largest_at_most is None:
        return
    given = found.provenance["options"]["gap"]
    allowed = (GAP if given is None else given) * np.abs(found.lambda_max)
    if given is None and found.lambda_max_sampling_stderr is not None:
        allowed = np.fmax(allowed, found.lambda_max_sampling_stderr)
    for p in np.flatnonzero(found.converged & (found.largest_at_most - found.lambda_max > 1.01 * allowed)).tolist():
        console.note(
            f"lambda_max of {found.parts[p]}: a larger eigenvalue, up to {found.largest_at_most[p]:.4g}, is not ruled "
            "out; raise --max-steps with --tol"
        )


def _show_overlap(console: Console, found: Spectrum) -> None:
    """Print the overlap of up to twelve parts, and name the parts whose directions have not converged."""
    angles = None if found.principal_angles is None else found.principal_angles[:, :, 0]
    for values, form, pair, title in (
        (found.overlap, ".3f", "directions of \\ curvature of", OVERLAP_TITLE),
        (found.gradient_curvature, ".3g", "gradient of \\ curvature of", GRADIENT_TITLE),
        (angles, ".1f", "directions of \\ directions of", ANGLE_TITLE),
    ):
        if values is not None and len(found.parts) <= MOST_COLUMNS:
            rows = [[part, *(format(v, form) for v in values[a])] for a, part in enumerate(found.parts)]
            console.table([pair, *found.parts], rows, title=title)
    if found.drawn.any():
        console.note("the directions are those of draws; the curvature along them is that of all samples")
    far = [found.parts[p] for p in np.flatnonzero(~found.vectors_converged)]
    if far:
        console.note(f"the directions of {few(far)} have not all converged: raise --steps, or keep fewer --vectors")


def _error(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2g}" if value else "exact"


def _verify(console: Console, objective: Objective, found: Spectrum) -> list[dict[str, Any]]:
    """Run PyHessian on each part and print both."""
    checks, rows = [], []
    theirs_of = []
    with console.progress() as progress:
        for p, part in enumerate(found.parts):
            progress(p, len(found.parts), f"PyHessian on {part}")
            theirs_of.append(verify.pyhessian(objective, part, seed=found.provenance["options"]["seed"]))
    for p, (part, theirs) in enumerate(zip(found.parts, theirs_of, strict=True)):
        # Power iteration finds the eigenvalue of largest magnitude, whichever end it is at.
        ours = {"top": float(max(found.lambda_max[p], found.lambda_min[p], key=abs)), "trace": float(found.trace[p])}
        checks.append({"part": part, "ours": ours, "pyhessian": vars(theirs)})
        error = np.hypot(theirs.trace_stderr, found.trace_stderr[p])
        rows.append([
            part,
            f"{ours['top']:.5g}",
            f"{theirs.top:.5g}",
            f"{theirs.top - ours['top']:+.2g}",
            f"{ours['trace']:.5g} " + ("exact" if found.trace_stderr[p] == 0 else f"± {_error(found.trace_stderr[p])}"),
            f"{theirs.trace:.5g} ± {_error(theirs.trace_stderr)} ({theirs.n_probes} probes)",
            f"{theirs.trace - ours['trace']:+.2g} ({abs(theirs.trace - ours['trace']) / error:.1f} s.e.)",
        ])
    console.table(
        ["part", "top eigenvalue", "PyHessian", "difference", "trace", "PyHessian", "difference"],
        rows,
        title="PyHessian's own eigenvalues() and trace() on the same samples",
    )
    return checks


def _document(found: Spectrum, path: Path, checks: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    numbers = {name: getattr(found, name) for name in DOCUMENT_NAMES} | columns.derived(found)
    parts = [
        {"part": part} | {name: values[p] for name, values in numbers.items() if values is not None}
        for p, part in enumerate(found.parts)
    ]
    document = {"result": str(path), "operator": found.operator, "parameters": found.size, "parts": parts}
    if found.overlap is not None:
        names = ("overlap", "subspace_overlap", "principal_angles", "gradient_curvature", "vectors_converged")
        document |= {name: getattr(found, name) for name in names}
    return document | {"verify": checks}
