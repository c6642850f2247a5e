"""The fields of one part's spectrum, from each of the three ways to compute it: rows, the two ends, the density."""

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from landscape.analyses import accuracy, sample_fields
from landscape.analyses import samples as of_samples
from landscape.analyses.accuracy import DrawError
from landscape.autodiff.wide import wide
from landscape.curvature.algebra import Operator
from landscape.curvature.extremes import Ends, beyond_gauss_newton
from landscape.curvature.probing import Runs
from landscape.objective.objective import Objective
from landscape.results import Spectrum, quadrature
from landscape.results.converged import converged

if TYPE_CHECKING:
    from landscape.analyses.options import Options

OF_ALL_EIGENVALUES = (
    "negative_mass", "negative_mass_stderr", "negative_curvature", "negative_curvature_stderr", "saddle_ratio",
    "saddle_ratio_stderr",
)  # fmt: skip


def of_rows(
    per_sample: of_samples.Samples, kept: of_samples.Kept, options: "Options", of_part: dict[str, Any]
) -> Spectrum:
    """Make the spectrum of a part from the eigenvalues of its rows.

    Args:
        per_sample: the numbers of its samples.
        kept: its rows.
        options: of the analysis.
        of_part: other fields.

    Returns:
        A result with one part.
    """
    if options.sampling_errors:
        of_part |= sample_fields.statistics(per_sample, *of_samples.along_rows(per_sample, kept))
    given: dict[str, Any] = {"top": options.listed, "vectors": options.vectors, "negative_tol": options.negative_tol}
    given |= {"tol": options.residual, "sampling_errors": options.sampling_errors}
    made = sample_fields.by_rows(per_sample, kept, **given)
    if not options.has_density:
        made |= {
            "largest_at_most": made["lambda_max"] + made["lambda_max_residual"],
            "smallest_at_least": made["lambda_min"] - made["lambda_min_residual"],
        }
    if options.accuracy is not None:
        made |= errors(made, per_sample.objective, per_sample.part, per_sample)
    return Spectrum(
        **made,
        parts=(per_sample.objective.partition.names[per_sample.part],),
        size=per_sample.objective.layout.size,
        operator=per_sample.kind.name,
        symbol=per_sample.kind.symbol,
        tol=options.residual,
        negative_tol=options.negative_tol,
        **of_part,
    )


def of_ends(
    found: Ends,
    operator: Operator,
    options: "Options",
    trace: tuple[float, float],
    per_sample: of_samples.Samples | None,
) -> dict[str, Any]:
    """Return the fields that follow from the two ends of a part's spectrum.

    Args:
        found: the ends.
        operator: of the part.
        options: of the analysis.
        trace: the part's trace and its standard error.
        per_sample: the numbers of its samples, or None.

    Returns:
        Fields by name.
    """
    values, residuals = found.ritz.values, found.ritz.residuals
    made = _common(operator, options) | _largest(found.ritz, values[::-1], residuals[::-1], found.vectors, options)
    made |= {
        "lambda_min": values[[0]],
        "lambda_min_residual": residuals[[0]],
        "trace": np.array([trace[0]]),
        "trace_stderr": np.array([trace[1]]),
        "largest_at_most": np.array([found.above]),
        "smallest_at_least": np.array([found.below]),
    }
    if per_sample is not None and per_sample.stored is not None and not per_sample.kind.has_rows:
        decay = per_sample.objective.weight_decay if per_sample.kind.decays else 0.0
        ends, errors = beyond_gauss_newton(found, per_sample.stored, per_sample.lengths.weights, decay)
        made |= {"beyond_min": ends[:1], "beyond_min_error": errors[:1]}
        made |= {"beyond_max": ends[1:], "beyond_max_error": errors[1:]}
    return made


def of_runs(found: Runs, operator: Operator, options: "Options", known: tuple[float, float] | None) -> dict[str, Any]:
    """Return the fields that follow from the Lanczos runs of a part's density.

    Args:
        found: the runs; of few steps if no density is requested, but the run for both ends does not fit into memory.
        operator: of the part.
        options: of the analysis.
        known: the part's trace and its error, if these are known without probes.

    Returns:
        Fields by name; without a density, the same ones as from `of_ends`, except for bounds of all eigenvalues.
    """
    lowest = min(found.ritz, key=lambda r: float(r.values[0]))
    highest = found.ritz[found.best]
    trace = found.trace if known is None else known
    made = _common(operator, options) | _largest(highest, found.values, found.residuals, found.extremes, options)
    made |= {
        "lambda_min": lowest.values[[0]],
        "lambda_min_residual": lowest.residuals[[0]],
        "trace": np.array([trace[0]]),
        "trace_stderr": np.array([trace[1]]),
    }
    return made | _density(found, options) if options.has_density else made


def _density(found: Runs, options: "Options") -> dict[str, np.ndarray]:
    """Return the quadrature of the density, and what follows from it."""
    nodes, weights = quadrature.nodes_and_weights(found.alpha, found.beta, found.steps)
    mass = quadrature.mean_and_stderr(quadrature.negative_mass(nodes, weights, options.negative_tol))
    share = quadrature.negative_curvature(nodes, weights)
    ends = np.array([[abs(r.values[0]), abs(r.values[-1])] for r in found.ritz])
    ratio = quadrature.mean_and_stderr(
        np.divide(ends[:, 0], ends[:, 1], out=np.full(len(ends), np.nan), where=ends[:, 1] > 0)
    )
    return {
        "alpha": found.alpha[None],
        "beta": found.beta[None],
        "steps": found.steps[None],
        "probe_norm2": found.norm2[None],
        "trace_samples": found.trace_samples[None],
    } | {name: np.array([value]) for name, value in zip(OF_ALL_EIGENVALUES, (*mass, *share, *ratio), strict=True)}


def errors(
    made: dict[str, Any],
    objective: Objective,
    part: int,
    per_sample: of_samples.Samples | None,
    *,
    trace_of_rows: bool = True,
) -> dict[str, np.ndarray]:
    """Return the fields with the final errors, if an accuracy was requested.

    Args:
        made: the other fields of the part; an error over samples of lambda_max itself counts if it is larger than that
            of the rows, as where H - G is large.
        objective: model, loss and data in parts; of draws, if samples are drawn.
        part: position of the part.
        per_sample: the numbers of its samples, or None.
        trace_of_rows: the trace is that of the rows; else the error of its draw is the one over samples, if these have
            estimates of the traces of H - G.

    Returns:
        Fields by name; nan for a draw whose error is unknown.
    """
    of_draw = DrawError(trace=0.0, lambda_max=0.0)
    if objective.draws is not None and not objective.draws.whole[part]:
        unknown = DrawError(trace=np.nan, lambda_max=np.nan)
        of_draw = unknown if per_sample is None else accuracy.of_draw(per_sample)
    of_lambda_max = of_draw.of_lambda_max
    if of_lambda_max > 0 and (own := made.get("lambda_max_sampling_stderr")) is not None:
        of_lambda_max = max(of_lambda_max, float(np.hypot(own[0], of_draw.bias)))
    of_trace = of_draw.trace
    if of_trace != 0 and not trace_of_rows:
        of_trace = float(made["trace_sampling_stderr"][0]) if "sample_beyond" in made else np.nan
    return {
        "lambda_max_error": np.hypot(made["lambda_max_residual"], of_lambda_max),
        "trace_error": np.hypot(made["trace_stderr"], of_trace),
    }


def _common(operator: Operator, options: "Options") -> dict[str, Any]:
    return {
        "parts": operator.parts,
        "size": operator.size,
        "operator": operator.name,
        "symbol": operator.symbol,
        "tol": options.residual,
        "negative_tol": options.negative_tol,
    }


def _largest(
    ritz: quadrature.Ritz, values: np.ndarray, residuals: np.ndarray, vectors: Tensor, options: "Options"
) -> dict[str, Any]:
    """Return the fields of the largest Ritz values.

    Args:
        ritz: all Ritz values of a run.
        values: (n,) those to list, descending.
        residuals: (n,) their bounds.
        vectors: (r, D) of the first of these.
        options: of the analysis.

    Returns:
        Fields by name.
    """

    def first(numbers: np.ndarray) -> np.ndarray:
        n = max(options.listed, options.vectors)
        kept = numbers[:n]
        return np.pad(kept, (0, n - len(kept)), constant_values=np.nan)[None]

    kept_vectors = None
    if options.vectors:
        kept_vectors = np.full((1, options.vectors, vectors.shape[1]), np.nan)
        available = min(options.vectors, len(vectors))
        kept_vectors[0, :available] = wide(vectors[:available]).cpu().numpy()
    return {
        "lambda_max": ritz.values[[-1]],
        "lambda_max_residual": ritz.residuals[[-1]],
        "converged": converged(ritz.values[-1:], ritz.residuals[-1:], tol=options.residual, scale=ritz.values[-1]),
        "ritz_values": first(values),
        "ritz_residuals": first(residuals),
        "ritz_vectors": kept_vectors,
    }
