"""Gradients of every part's loss at one or several checkpoints: norms, angles, and the specific component of each part.

With g_p the gradient of part p's mean loss over its n_p samples, and g = sum over parts of share times g_p:

    h_p   = g_p - (<g_p, g> / |g|^2) g                                     (12) component specific to the part
    rho_p = (|theta| / (2 |h_p|))^(1/2) d^(-1/4) (n_p - 1)^(-1/4)          (13) radius of its perturbation
    c_p   = share_p <g_p, g> / |g|^2                                       share of g, and of SAM's perturbation

Norms, cosines and all of the above follow from inner products: one Gram matrix of the g_p and g, in float64. The
contribution of each layer to it gives norm, cosine and c_p within the layer. Gradients are exact over the data, or
those of random batches as in training, in which rare parts have few samples or none.

A gradient that is not much longer than its rounding (gradient_rounding.py), over all parameters or within a layer, has
no direction: what involves it is nan, except its norm and the shares of parts in a longer whole.

Source: "Reframing Long-Tailed Learning via Loss Landscape Geometry" (CVPR 2026), equations 12 and 13, Figures 4 and 6.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from landscape.analyses import gradient_errors, gradient_rounding
from landscape.analyses.at_checkpoints import Report, at_checkpoints
from landscape.analyses.gradient_rounding import Rounding
from landscape.autodiff import costs
from landscape.autodiff.distributed import Team
from landscape.autodiff.wide import wide
from landscape.callables import checked
from landscape.curvature import gram
from landscape.curvature.gram import Products
from landscape.errors import InputError, NumericalError, arg
from landscape.networks import overflow
from landscape.objective import evaluation, jobs, pilot
from landscape.objective.objective import Objective
from landscape.objective.snapshots import File
from landscape.results import Gradients
from landscape.results.gradients import CLEAR

CACHE_BYTES = 2**31
"""Default memory for gradients of parts that are kept at the same time."""

_OF_LAYERS = ("layer_norm", "layer_cosine", "layer_contribution", "layer_whole_norm")
_WITH_ERRORS = (
    "norm", "cosine", "projected", "specific", "radius", "contribution", "between", "whole_norm", *_OF_LAYERS,
)  # fmt: skip
_ROUNDING = ("norm_rounding", "whole_norm_rounding", "layer_norm_rounding", "layer_whole_norm_rounding")


@checked
def gradients(
    objective: Objective,
    *,
    checkpoints: Sequence[File] | None = None,
    batches: int | None = None,
    samples_per_batch: int = 128,
    seed: int = 0,
    sampling_errors: bool = False,
    cache_bytes: int = CACHE_BYTES,
    ckpt_key: str | None = None,
    trust_pickle: bool = False,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: jobs.Progress | None = None,
) -> Gradients:
    """Compare the gradients of an objective's parts with the whole gradient and with each other.

    The whole gradient is that of all samples in parts; with `classes` or "head-tail" the other samples do not count.
    The model is in eval mode. Gradients are with respect to the parameters of the objective; use `params` to compare
    encoder and classifier.

    Args:
        objective: model, loss and data in parts.
        checkpoints: files with weights that replace those of the model, one after the other, such as the snapshots of a
            run; or pairs of a file and its epoch, for files that do not store their epoch. None uses the model itself.
        batches: None for exact gradients, with one pass over the data for each checkpoint. A number for means over that
            many random batches of the data, with standard errors, as in the paper's Figure 6; the batches are the same
            at all checkpoints. Use 50 to 100 for a figure.
        samples_per_batch: samples per batch; use the batch size of the training. At most all samples.
        seed: of the batches.
        sampling_errors: for exact gradients, also compute how much another draw of the samples would change the numbers
            of parts and layers. This needs one pass over the data, and more where `cache_bytes` does not hold a
            gradient of each part. Numbers of layers get none where gradients of single samples are not possible.
        cache_bytes: memory for gradients that are kept at the same time. With less memory there are more passes over
            the data, and the same results: with memory for 1/k of the parts there are (k + 1) / 2 passes.
        ckpt_key: key of the weights in the files of `checkpoints`; None finds them automatically.
        trust_pickle: let these files run code when they are read. Use it only for files that you made.
        out: result file to write; finished checkpoints are kept beside it until it is complete, and a repeated
            call with the same options continues from them.
        overwrite: replace an existing result file.
        progress: called with (done, total, text).

    Returns:
        The gradients at all checkpoints, in the order given.

    Raises:
        InputError: an option out of its range, or a checkpoint that does not fit.
        NumericalError: a loss or gradient is not finite.
        StoreError: the result file cannot be written, or an unfinished run beside it had other options.
    """
    _refuse(objective, batches, samples_per_batch, seed, cache_bytes, sampling_errors=sampling_errors)
    n_points = len(checkpoints or [None])
    plan = partial(_costs, objective, n_points, batches, samples_per_batch, cache_bytes, sampling_errors)
    jobs.declare(plan, out)
    size = min(samples_per_batch, int(objective.counts.sum()))
    options: dict[str, Any] = {"batches": batches} | ({"sampling_errors": True} if sampling_errors else {})
    if batches is not None:
        options |= {"samples_per_batch": size, "seed": seed}

    def measure(network: nn.Module, report: Report) -> dict[str, Any]:
        here = (objective if network is objective.model else objective.at(network)).shared()
        rounding = gradient_rounding.measured(here)
        if batches is None:
            found = _exact(here, rounding, cache_bytes, report, sampling_errors=sampling_errors)
        else:
            drawn = list(islice(_drawn(here, size, seed), batches))
            found = _over_batches(here, rounding, drawn, cache_bytes, report)
        return {
            **{name: np.asarray(value)[None] for name, value in found.items()},
            "theta_norm": np.array([_length(here)]),
            "parts": objective.partition.names,
            "layers": tuple(objective.layout.layers),
            "n_samples": objective.population,
            "train_counts": objective.trained,
            "size": objective.layout.size,
            "batch_size": 0 if batches is None else size,
        }

    return at_checkpoints(
        Gradients,
        objective,
        checkpoints,
        measure,
        options=options,
        ckpt_key=ckpt_key,
        trust_pickle=trust_pickle,
        out=out,
        overwrite=overwrite,
        progress=progress,
    )


def _refuse(
    objective: Objective,
    batches: int | None,
    samples_per_batch: int,
    seed: int,
    cache_bytes: int,
    *,
    sampling_errors: bool,
) -> None:
    """Refuse options out of their range, and those that contradict each other or the objective."""
    for name, value, least in (("batches", batches, 1), ("samples_per_batch", samples_per_batch, 1), ("seed", seed, 0)):
        if value is not None and value < least:
            raise InputError(f"{arg(name)} must be at least {least}, got {value}")
    if sampling_errors and batches is not None:
        raise InputError(f"{arg('sampling_errors', True)} is for exact gradients: leave {arg('batches')} out")
    if batches is not None and objective.draws is not None:
        raise InputError(
            f"{arg('batches')} are random as in training, which draws in proportion to uncertainty are not: leave "
            f"{arg('samples')} out"
        )
    if cache_bytes < 0:
        raise InputError(f"{arg('cache_bytes')} must not be negative, got {cache_bytes / 2**30:g} GiB")
    if objective.weight_decay:
        raise InputError(
            f"{arg('weight_decay', objective.weight_decay)} is for curvature: gradients are those of the data, "
            "leave it out"
        )


def _costs(
    objective: Objective,
    n_points: int,
    batches: int | None,
    samples_per_batch: int,
    cache_bytes: int,
    sampling_errors: bool,
) -> costs.Known:
    """Return the cost of the gradients at a number of checkpoints."""
    n, n_parts, size = pilot.mean_count(objective), len(objective.partition), objective.layout.size
    held = min(n_parts, max(1, cache_bytes // (size * objective.dtype.itemsize)))
    keeps = held * size * objective.dtype.itemsize
    disk = 2 * 8 * n_points * n_parts * ((2 + sampling_errors) * n_parts + 4 * len(objective.layout.layers))
    pieces = n_parts * n_points

    of_rounding = costs.Work(
        what="gradients of single samples in float32 and float64",
        prepare=lambda n: partial(gradient_rounding.once, objective),
        times=gradient_rounding.computed(objective),
        pieces=n_points,
        divided=False,
    )
    works = [pilot.evaluation(objective), of_rounding]
    of_parts: dict[str, Any] = {
        "pieces": pieces,
        "samples": n,
        "batch": objective.batch_size,
        "most": max(map(len, objective.members)),
    }
    if batches is not None:
        counts = min(samples_per_batch, sum(map(len, objective.members)))

        def of_batch(n: int) -> Callable[[], object]:
            index = np.sort(np.resize(np.concatenate(objective.members), n))
            rounding = gradient_rounding.measured(objective)
            return lambda: _over_batches(objective, rounding, [index], cache_bytes, lambda share: None)

        what, halve = "batches", arg("batches", batches // 2)
        many: dict[str, Any] = {"times": batches, "pieces": n_points, "samples": counts, "batch": counts}
        works.append(costs.Work(what=what, prepare=of_batch, halve=halve, **many))
        return costs.Known(works=works, keeps=keeps, disk=disk, spare=arg("cache_bytes"))

    def of_part(n: int) -> Callable[[], object]:
        small = pilot.few(objective, [n])
        return lambda: gram.direction(small, 0)

    def slopes(n_vectors: int, n: int) -> Callable[[], object]:
        small = pilot.few(objective, [n])
        vectors = gram.direction(small, 0).expand(n_vectors, -1)
        return lambda: gradient_errors.of_samples(small, 0, vectors, n_scopes)

    layers = sampling_errors and gradient_errors.has_layers(objective)
    n_scopes = 1 + layers * len(objective.layout.layers)
    block = gradient_errors.in_block(objective, cache_bytes, layers=layers)
    n_blocks = -(-n_parts // block)
    again = (-(-n_parts // held) + 1) / 2 + sampling_errors * (1 + (n_blocks > 1))
    works.append(costs.Work(what="gradients of parts", prepare=of_part, times=again, **of_parts))
    if sampling_errors:
        what, halve = "slopes of single samples along all gradients", arg("sampling_errors", False)
        along_all = partial(slopes, min(block, n_parts) + 1)
        works.append(costs.Work(what=what, prepare=along_all, times=n_blocks, halve=halve, **of_parts))
        if n_blocks > 1:
            what = "slopes of single samples along the part's own gradient"
            works.append(costs.Work(what=what, prepare=partial(slopes, 1), halve=halve, **of_parts))
        keeps = max(keeps, (min(block, n_parts) + 1) * size * objective.dtype.itemsize)
    return costs.Known(works=works, keeps=keeps, disk=disk, spare=arg("cache_bytes"))


# Numbers of one checkpoint --------------------------------------------------------------------------------------------


def _exact(
    objective: Objective, rounding: Rounding, cache_bytes: int, report: Report, *, sampling_errors: bool
) -> dict[str, Any]:
    loss, products = gram.exact(objective, cache_bytes, report)
    _check_finite(objective, range(len(loss)), loss, products.matrix)
    found = _numbers(products, objective.shares, objective, rounding, objective.counts)
    errors = {f"{name}_stderr": np.where(np.isnan(found[name]), np.nan, 0.0) for name in _WITH_ERRORS}
    if sampling_errors:
        errors |= gradient_errors.over_samples(objective, found, cache_bytes)
    return found | errors | {"loss": loss, "batches": np.zeros(len(loss), dtype=np.int64)}


def _over_batches(
    objective: Objective, rounding: Rounding, drawn: Sequence[np.ndarray], cache_bytes: int, report: Report
) -> dict[str, Any]:
    """Return means over batches with their standard errors."""
    n_parts, part_of, team = len(objective.partition), objective.partition.part_of, objective.team
    model = gram.trainable(objective.model, objective.layout)
    means = {name: _Mean() for name in (*_WITH_ERRORS, *_ROUNDING, "conflict")}
    loss = np.zeros(n_parts)
    seen, batches = (np.zeros(n_parts, dtype=np.int64) for _ in range(2))
    first = gram.batch_first(objective, model)
    checked: set[int] = set()
    own = drawn[team.share(len(drawn))]
    for k, index in enumerate(own or drawn[:1]):  # a process without a batch computes one that it does not count
        for chunk in np.split(index, range(objective.batch_size, len(index), objective.batch_size)):
            if len(chunk) not in checked:
                gram.check(objective, model, chunk, first)
                checked.add(len(chunk))
        present, groups = np.unique(part_of[index], return_inverse=True)
        counts = np.bincount(groups)
        sums, products = gram.of_batch(objective, model, index, groups, cache_bytes, first)
        _check_finite(objective, present, sums, products.matrix)
        found = _numbers(products, counts / len(index), objective, rounding, counts, present)
        for name, mean in means.items():
            mean.add(found[name] if own else np.full_like(found[name], np.nan))
        loss[present] += sums * bool(own)
        seen[present] += counts * bool(own)
        batches[present] += bool(own)
        report(min(0.99, (k + 1) / max(1, len(own))))
    objective.verify(model)
    for mean in means.values():
        mean.add_up(team)
    loss_sum, n_seen, n_batches = _total(team, np.stack([loss, seen, batches]))
    numbers = {name: mean.value for name, mean in means.items()}
    errors = {f"{name}_stderr": means[name].stderr for name in _WITH_ERRORS}
    mean_loss = np.divide(loss_sum, n_seen, out=np.full(n_parts, np.nan), where=n_seen > 0)
    return numbers | errors | {"loss": mean_loss, "batches": n_batches.astype(np.int64)}


def _check_finite(
    objective: Objective, present: Sequence[int] | np.ndarray, loss: np.ndarray, products: np.ndarray
) -> None:
    for part, value, square in zip(present, loss, np.diag(products), strict=False):
        name = objective.partition.names[part]
        if not abs(value) <= overflow.LARGEST:
            raise NumericalError(f"the loss of part {name} is {value:.4g}: {evaluation.reason(objective, part)}")
        if not np.isfinite(square):
            remedy = overflow.remedy(objective.dtype)
            raise NumericalError(f"the gradient of part {name}, or its square, is not finite: {remedy}")


def _drawn(objective: Objective, size: int, seed: int) -> Iterator[np.ndarray]:
    """Yield batches as in training: epoch after epoch, each divided so that no sample is left out."""
    generator = np.random.default_rng(seed)
    index = np.sort(np.concatenate(objective.members))  # the batches are the same for any partition of these samples
    while True:
        yield from np.array_split(generator.permutation(index), -(-len(index) // size))


class _Mean:
    """Running mean and standard error of arrays, for each entry over the values that are not nan (Welford 1962)."""

    def __init__(self) -> None:
        self._n: Any = 0
        self._mean: Any = 0.0
        self._squares: Any = 0.0

    def add(self, values: np.ndarray) -> None:
        """Add an array."""
        known = ~np.isnan(values)
        self._n = self._n + known
        apart = np.where(known, values - self._mean, 0.0)
        self._mean = self._mean + apart / np.maximum(self._n, 1)
        self._squares = self._squares + apart * np.where(known, values - self._mean, 0.0)

    def add_up(self, team: Team) -> None:
        """Combine the means of the processes of a team (Chan, Golub and LeVeque 1983)."""
        own_n, own_mean = self._n, self._mean
        self._n = _total(team, own_n)
        self._mean = _total(team, own_n * own_mean) / np.maximum(self._n, 1)
        self._squares = _total(team, self._squares + own_n * (own_mean - self._mean) ** 2)

    @property
    def value(self) -> np.ndarray:
        """The mean; nan for entries without values."""
        return np.where(self._n > 0, self._mean, np.nan)

    @property
    def stderr(self) -> np.ndarray:
        """Its standard error; nan for fewer than two values."""
        variance = self._squares / np.maximum(self._n - 1, 1)
        return np.where(self._n > 1, np.sqrt(variance / np.maximum(self._n, 1)), np.nan)


def _total(team: Team, values: Any) -> np.ndarray:
    """Add numbers up over a team."""
    found: np.ndarray = team.total(torch.from_numpy(np.array(values, dtype=np.float64))).numpy()
    return found


def _numbers(
    products: Products,
    shares: np.ndarray,
    objective: Objective,
    rounding: Rounding,
    counts: np.ndarray,
    present: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Return all numbers of the parts that are present, and nan for the others.

    Args:
        products: of the gradients of the present parts and, last, of the whole gradient.
        shares: (G,) of the present parts in the whole.
        objective: of all P parts.
        rounding: of their gradients.
        counts: (G,) samples of which the gradients of the present parts are means.
        present: (G,) their positions among all; None for all.

    Returns:
        Fields of `Gradients`: (P,), (P, P), (L, P), (L,) or ().
    """
    n_parts, size = len(objective.partition), objective.layout.size
    here = np.arange(n_parts) if present is None else present
    off = rounding.of(np.sqrt(products.squares[:, :-1]), here, counts)
    off = np.column_stack([off, off @ shares])  # that of the whole, at most
    off_at_all = np.linalg.norm(off, axis=0)
    # Below this fraction of a gradient's norm, everything is rounding of the gradients and of roots of differences.
    least = max(16 * torch.finfo(objective.dtype).eps, 1e-7)
    known = _against_whole(np.diag(products.matrix), products.matrix[:, -1], shares, off_at_all, least)
    norm = known["norm"]
    own = np.sqrt(np.maximum(norm**2 - known["projected"] ** 2, 0))
    of_own = off_at_all[:-1] + off_at_all[-1] * np.abs(_ratio(known["projected"], known["whole_norm"]))
    own = np.where(own <= np.fmax(least * norm, CLEAR * of_own), 0.0, own)
    spare = objective.population[here] - 1.0
    known |= {
        "specific": own,
        "radius": np.sqrt(_ratio(np.full(len(here), _length(objective)), 2 * own * np.sqrt(size * spare))),
        "norm_rounding": off_at_all[:-1],
        "layer_norm_rounding": off[:, :-1],
    }
    of_layers = _against_whole(products.squares, products.along, shares, off, least)
    known |= {name: of_layers[name.removeprefix("layer_")] for name in _OF_LAYERS}
    found = {name: known.pop(name) for name in ("whole_norm", "layer_whole_norm")}
    for name, values in known.items():
        found[name] = np.full((*values.shape[:-1], n_parts), np.nan)
        if name.endswith("contribution"):
            found[name][np.isfinite(values).all(axis=-1)] = 0  # what is absent adds nothing
        found[name][..., here] = values
    between = np.full((n_parts, n_parts), np.nan)
    clear = _clear(norm, off_at_all[:-1])
    between[np.ix_(here, here)] = _cosine(products.matrix[:-1, :-1], np.outer(clear, clear))
    conflict = np.where(np.isnan(between), np.nan, between < 0)
    wholes = {"whole_norm_rounding": off_at_all[-1], "layer_whole_norm_rounding": off[:, -1]}
    return found | wholes | {"between": between, "conflict": conflict}


def _against_whole(
    squares: np.ndarray, along: np.ndarray, shares: np.ndarray, rounding: np.ndarray, least: float
) -> dict[str, np.ndarray]:
    """Return what follows from <g_p, g_p> and <g_p, g>, for all parameters or for each layer.

    Args:
        squares: (..., G + 1) squared norms, the last of the whole gradient.
        along: (..., G + 1) inner products with the whole gradient.
        shares: (G,) shares of the parts in the whole.
        rounding: (..., G + 1) of the gradients; nan where it is unknown.
        least: fraction of a gradient's norm below which everything is rounding.

    Returns:
        Fields of `Gradients`: (..., G), or (...) for the whole gradient.
    """
    lengths = np.sqrt(squares)
    norm, clear = lengths[..., :-1], _clear(lengths, rounding)
    # If the gradients of the parts cancel, there is no direction to project on.
    whole = np.where(lengths[..., -1] > least * (norm @ shares), clear[..., -1], 0.0)[..., None]
    projected = _ratio(along[..., :-1], whole)
    return {
        "norm": norm,
        "whole_norm": lengths[..., -1],
        "cosine": _cosine(along[..., :-1], clear[..., :-1] * whole),
        "projected": np.where(np.isnan(clear[..., :-1]), np.nan, projected),
        "contribution": shares * _ratio(projected, whole),
    }


def _clear(lengths: np.ndarray, rounding: np.ndarray) -> np.ndarray:
    """Return lengths, with nan where they are only rounding; a gradient that is computed as zero has the length 0."""
    return np.where((lengths > 0) & (lengths <= CLEAR * rounding), np.nan, lengths)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Divide, with nan where the divisor is zero or unknown."""
    by = np.broadcast_to(b, a.shape)
    found: np.ndarray = np.divide(a, by, out=np.full(a.shape, np.nan), where=by > 0)
    return found


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.clip(_ratio(a, b), -1, 1)  # rounding may go beyond
    return found


def _length(objective: Objective) -> float:
    return math.sqrt(sum(float(wide(t).square().sum()) for t in objective.theta))
