"""The fields of one part's spectrum that come from single samples, and from all eigenvalues of its rows."""

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.analyses.samples import Kept, Samples, along_vector
from landscape.autodiff import trees
from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.wide import wide
from landscape.curvature.outputs import split
from landscape.curvature.rows import Lengths
from landscape.data.thumbnails import thumbnails
from landscape.errors import one_line
from landscape.networks.tasks import Task
from landscape.objective.objective import Objective
from landscape.results.converged import converged

log = logging.getLogger(__name__)

MOST_IMAGES = 8
"""The largest number of images of each part of which small copies are kept."""
ROUNDING = 100, 10, 3
"""Units of rounding of the largest |eigenvalue| by rows: so many, so many for each unit of the largest |output|, and so
many for each unit by which outputs are seen to differ from those in float64. Measured
(tests/campaigns/test_row_bound.py): of random networks none needed more than two fifths of it."""
_COMPARED = 32  # samples with outputs that are computed in float64 too


def statistics(
    found: Samples, curvature: np.ndarray, crossfit: np.ndarray, beyond: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return the fields of one part's spectrum that come from single samples.

    Args:
        found: of the part.
        curvature: (n,) of `along_rows` or `along_vector`.
        crossfit: (n,) of the same.
        beyond: (n,) of `beyond_traces`; None if the trace is that of the rows.

    Returns:
        Fields by name, each with a part axis of length 1.
    """
    known = found.lengths
    traces = known.traces if beyond is None else known.traces + beyond
    decay = found.objective.weight_decay if found.kind.decays else 0.0
    fields: dict[str, Any] = {
        "trace_sampling_stderr": found.stderr(traces),
        "lambda_max_sampling_stderr": found.stderr(curvature),
        "lambda_max_crossfit": float(known.weights @ crossfit) + decay,
        "lambda_max_crossfit_stderr": found.stderr(crossfit),
        "uncertainty": found.uncertainty,
        "sample_index": found.index.astype(float),
        "sample_weight": known.weights * found.factors,
        "sample_chance": found.chances,
        "sample_label": np.where(found.labels < 0, np.nan, found.labels),
        "sample_prediction": _predictions(known, found.objective.task),
        "sample_loss": _losses(found) / found.factors,
        "sample_uncertainty": known.uncertainty / found.factors,
        "sample_trace": known.traces / found.factors,
        "sample_curvature": curvature / found.factors,
    } | _sharpest(found, known.weights * curvature)
    if beyond is not None:
        fields["sample_beyond"] = beyond / found.factors
    return {name: np.asarray(value)[None] for name, value in fields.items()}


def of_eigenvalues(found: Samples, values: np.ndarray, vectors: np.ndarray) -> dict[str, np.ndarray]:
    """Return the standard errors over samples of the largest eigenvalues of a part, to first order.

    Another draw of the samples moves an eigenvalue by the mean change of v^T A_i v, with v its eigenvector.

    Args:
        found: of the part.
        values: (1, r) eigenvalues, descending.
        vectors: (1, k, D) the first of their eigenvectors, k at most r; nan for those that do not exist.

    Returns:
        The field, with a part axis of length 1; nan for eigenvalues without a vector.
    """
    errors = np.full(values.shape, np.nan)
    for r, vector in enumerate(vectors[0]):
        if np.isfinite(vector).all():
            v = torch.from_numpy(vector).to(found.objective.device, found.objective.dtype)
            errors[0, r] = found.stderr(along_vector(found, v, float(values[0, r]), folds=False)[0])
    return {"ritz_sampling_stderr": errors}


def _sharpest(found: Samples, shares: np.ndarray) -> dict[str, np.ndarray]:
    """Return small copies of the images that add most to lambda_max, and their positions; none without images."""
    chosen = np.argsort(-shares, kind="stable")[:MOST_IMAGES]
    copies = thumbnails(found.objective.samples, found.members[chosen].tolist())
    if copies is None:
        return {}
    free = MOST_IMAGES - len(chosen)
    return {
        "images": np.pad(copies, [(0, free), *[(0, 0)] * 3]),
        "image_sample": np.pad(chosen.astype(float), (0, free), constant_values=np.nan),
    }


def eigenvalues(found: Samples) -> dict[str, np.ndarray]:
    """Return the fields with all eigenvalues of a part; nan if there are too many rows.

    Args:
        found: of the part.

    Returns:
        Fields by name, each with a part axis of length 1; no fields if the rows only give directions.
    """
    fields = _eigenvalues(found, found.kept) if found.complete else {}
    return {name: np.asarray(value)[None] for name, value in fields.items()}


def by_rows(
    found: Samples, kept: Kept, *, top: int, vectors: int, tol: float, negative_tol: float, sampling_errors: bool
) -> dict[str, Any]:
    """Return the fields of one part's spectrum with eigenvalues from rows, without a probe.

    Args:
        found: of the part.
        kept: its rows.
        top: number of the largest eigenvalues to list.
        vectors: number of their eigenvectors to keep.
        tol: relative tolerance of `converged`.
        negative_tol: as in `spectrum`.
        sampling_errors: also return the errors of these eigenvalues over samples.

    Returns:
        Fields by name.
    """
    size = found.objective.layout.size
    own = _eigenvalues(found, kept)
    values, rest = own["eigenvalues"], own["eigenvalue_rest"]
    bound = max(own["eigenvalue_above"], own["eigenvalue_below"])
    everything = values if len(values) >= size else np.append(values, rest)
    largest, smallest = everything.max(), everything.min()
    n_others = size - len(values)
    scale = np.abs(everything).max()
    negative = np.count_nonzero(values < -negative_tol * scale) / size
    absolute = np.abs(values).sum() + n_others * abs(rest)
    listed = max(top, vectors)
    count = min(listed, len(values))
    ritz_values, residuals, errors = np.full((3, listed), np.nan)
    ritz_values[:count], residuals[:count] = values[:count], bound
    ritz_vectors = np.full((1, vectors, size), np.nan) if vectors else None
    combinations = kept.eigen.combinations[:, _real(found, kept)[:count]].T
    for r, combination in enumerate(combinations):
        if not combination.any():  # the eigenvalue is rounding, and has no vector
            continue
        errors[r] = found.stderr(kept.gram.curvatures(combination))
        if ritz_vectors is not None and r < vectors:
            ritz_vectors[0, r] = wide(kept.direction(combination)).cpu().numpy()
    return {
        "lambda_max": np.array([largest]),
        "lambda_max_residual": np.array([bound]),
        "lambda_min": np.array([smallest]),
        "lambda_min_residual": np.array([bound]),
        "converged": converged(np.array([largest]), np.array([bound]), tol=tol, scale=largest),
        "trace": np.array([found.trace[0]]),
        "trace_stderr": np.zeros(1),
        "negative_mass": np.array([negative]),
        "negative_mass_stderr": np.zeros(1),
        "negative_curvature": np.array([np.maximum(-values, 0).sum() / absolute if absolute else np.nan]),
        "negative_curvature_stderr": np.zeros(1),
        "saddle_ratio": np.array([abs(smallest / largest) if largest > 0 else np.nan]),
        "saddle_ratio_stderr": np.zeros(1),
        "ritz_values": ritz_values[None],
        "ritz_residuals": residuals[None],
        "ritz_sampling_stderr": errors[None] if sampling_errors else None,
        "ritz_vectors": ritz_vectors,
    }


def _eigenvalues(found: Samples, kept: Kept | None) -> dict[str, Any]:
    """Return the eigenvalues from rows, at most one per parameter, and their bounds; nan without rows."""
    if kept is None:
        names = ("eigenvalue_rest", "eigenvalue_above", "eigenvalue_below", "eigenvalue_rounding")
        bounds = dict.fromkeys(names, np.nan)
        return {"eigenvalues": np.empty(0), **bounds}
    decay = found.objective.weight_decay if found.kind.decays else 0.0
    values = kept.eigen.values[_real(found, kept)]
    rounding = _rounding(found) * np.abs(values).max(initial=0)
    return {
        "eigenvalues": values + decay,
        "eigenvalue_rest": decay,
        "eigenvalue_above": kept.rows.tau_plus + rounding,
        "eigenvalue_below": kept.rows.tau_minus + rounding,
        "eigenvalue_rounding": rounding,
    }


def _rounding(found: Samples) -> float:
    """Return what rounding may change of the eigenvalues by rows, as a fraction of the largest.

    An output of size z has an error of eps z at least, and more if it is made of larger numbers: the outputs of some
    samples are compared with those in float64. The matrix of a sample changes with the outputs by as much, unless its
    loss is quadratic in them; and the gradients of the outputs by a like fraction. Outputs that are not finite, and
    classes without probability, change nothing.
    """
    objective, known = found.objective, found.lengths
    eps = torch.finfo(objective.dtype).eps
    seen, moves = 0.0, known.logits.ndim > 1 and _depend_on_outputs(found)
    least = ROUNDING[0] + (ROUNDING[1] * _largest(known.logits, found, eps) if moves else 0.0)
    if objective.dtype != torch.float64:
        index = found.members[np.linspace(0, len(found.members) - 1, min(_COMPARED, len(found.members))).astype(int)]
        try:
            here, there = (_outputs(one, index) for one in (objective, objective.in_dtype(torch.float64)))
            apart, size = (_largest(z, found, eps, of=here) for z in (here - there, there))
            seen = max(apart / size if size else 0.0, apart if moves else 0.0)
        except Exception as error:  # a model may be written for float32 only, and then raise any error
            if objective.known.first("rounding of outputs"):
                log.warning(
                    "the rounding of outputs is not measured, so the bound of eigenvalues by rows may be too small: in "
                    "float64, %s",
                    one_line(error),
                )
    return float(objective.team.agreed(np.array([max(eps * least, ROUNDING[2] * seen)]))[0])


def _outputs(objective: Objective, index: np.ndarray) -> Tensor:
    with differentiable_attention(), torch.no_grad():
        inputs, _ = objective.samples.batch(index, objective.device, objective.dtype)
        return objective.logits(objective.theta, inputs).cpu().double()


def _largest(values: Tensor, found: Samples, eps: float, of: Tensor | None = None) -> float:
    """Return the largest |value| of those outputs that have an influence on the loss."""
    outputs = values if of is None else of
    matter = values.isfinite()
    if found.objective.task.name == "classification":
        matter &= outputs.softmax(1) > eps
    return float(torch.where(matter, values, 0).abs().max())


def _depend_on_outputs(found: Samples) -> bool:
    """Say whether the matrices of samples depend on the outputs, as those of the squared error do not."""
    known, factors = found.lengths, found.kind.factors
    if factors is None:
        return True
    some = slice(8)
    z, targets = known.logits[some], trees.take(known.targets, some)
    apart = torch.linspace(0.01, 0.02, z[0].numel(), dtype=z.dtype).view(z.shape[1:])  # softmax ignores equal shifts
    here, there = (split(found.objective, factors, at, targets).traces for at in (z, z + apart))
    return not torch.allclose(here, there, rtol=1e-9, atol=0)


def _real(found: Samples, kept: Kept) -> np.ndarray:
    """Return the positions of as many eigenvalues as there are parameters, descending; all others are rounding."""
    largest = np.argsort(-np.abs(kept.eigen.values), kind="stable")[: found.objective.layout.size]
    positions: np.ndarray = np.sort(largest)
    return positions


def _predictions(known: Lengths, task: Task) -> np.ndarray:
    if known.logits.ndim == 1 or task.name != "classification":  # of the empirical Fisher: losses
        return np.full(len(known.weights), np.nan)
    return known.logits.argmax(1).numpy().astype(float)


def _losses(found: Samples) -> np.ndarray:
    known = found.lengths
    if known.logits.ndim == 1:
        return known.logits.numpy()
    objective = found.objective
    with torch.no_grad():
        z = known.logits.to(objective.device, objective.dtype)
        targets = trees.to(known.targets, objective.device, objective.dtype)
        return wide(objective.values(z, targets)).cpu().numpy()
