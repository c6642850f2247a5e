"""How much another draw of the samples would change the numbers of exact gradients, by the delta method.

All numbers of gradients are functions of the inner products of the g_p and g. A sample of part q moves g_q by d, its
gradient less g_q, and g by share_q d. So it moves

    |g_q|       by <u_q, d>                                         u_q = g_q / |g_q|, u = g / |g|
    <g_p, u>    by [p = q] <u, d> + share_q <h_p, d> / |g|          h_p = g_p - <g_p, u> u
    |h_p|       by ([p = q] - share_q <g_p, u> / |g|) <h_p, d> / |h_p|
    cos(p, r)   by <u_r - cos(p, r) u_p, d> / |g_p| for p = q       and by the same of r for r = q

The slopes of each sample's loss along the u_p and u are all that these need. Samples are independent draws, within a
part and between parts; the parts' shares are given.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from landscape.analyses import part_losses
from landscape.autodiff.wide import wide, zeros
from landscape.curvature import gram
from landscape.objective.objective import Objective
from landscape.results import inference

_OF_PARTS = ("cosine", "projected", "specific", "contribution")


def over_samples(objective: Objective, found: Mapping[str, np.ndarray], cache_bytes: int) -> dict[str, np.ndarray]:
    """Return standard errors over samples of the numbers of exact gradients.

    If not all unit vectors fit into memory, there is a pass over the data along each part's own one, and then one for
    each block of them.

    Args:
        objective: model, loss and data in P parts.
        found: fields of `Gradients` at one checkpoint, (P,), (P, P) or ().
        cache_bytes: memory for unit vectors.

    Returns:
        Fields of `Gradients`; nan where a number is not defined, or a part with a single sample is involved: its spread
        is unknown.
    """
    shares, n_parts = objective.shares, len(objective.partition)
    norm, has_whole = found["norm"], np.isfinite(found["projected"]).any()  # it is rounding where gradients cancel
    each = in_block(objective, cache_bytes)
    units = torch.zeros(min(each, n_parts) + 1, objective.layout.size, dtype=objective.dtype, device=objective.device)
    whole = zeros(objective.layout.size, objective.device)
    own: list[np.ndarray] = []  # slopes of each part's samples along its own gradient
    for p in range(n_parts):
        direction = gram.direction(objective, p)
        whole += shares[p] * norm[p] * wide(direction)
        if n_parts <= each:
            units[p] = direction
        else:
            own.append(_of_samples(objective, p, direction[None])[1])
    length = whole.norm()  # which may be tiny, where gradients cancel or are
    units[-1] = whole / length if length > 0 else 0
    of_loss, of_norm, of_whole = np.full((3, n_parts), np.nan)
    variances = {name: np.zeros(n_parts) for name in _OF_PARTS} | {"between": np.zeros((n_parts, n_parts))}
    for start in range(0, n_parts, each):
        block = range(start, min(start + each, n_parts))
        for p in block if n_parts > each else ():  # once more: so many do not fit into memory together
            units[p - start] = gram.direction(objective, p)
        vectors = units if len(block) + 1 == len(units) else torch.cat([units[: len(block)], units[-1:]])
        for q in range(n_parts):
            values = _of_samples(objective, q, vectors)
            slopes = values[1:]
            along_own = own[q] if own else slopes[q]
            for name, moves in _moved(found, shares, q, block, slopes, along_own):
                row = variances[name][q] if name == "between" else variances[name]
                n = moves.shape[1]
                row[block.start : block.stop] += moves.var(axis=1, ddof=1) / n if n > 1 else np.nan
            of_loss[q] = inference.stderr(values[0])
            of_norm[q] = inference.stderr(along_own) if norm[q] > 0 else np.nan
            of_whole[q] = shares[q] * inference.stderr(slopes[-1]) if has_whole else np.nan
    variances["between"] = variances["between"] + variances["between"].T
    np.fill_diagonal(variances["between"], 0 * variances["between"].diagonal())  # each agrees with itself
    errors = {name: np.sqrt(values) for name, values in variances.items()}
    errors["radius"] = found["radius"] / 2 * errors["specific"] / _positive(found["specific"])
    errors |= {"loss": of_loss, "norm": of_norm, "whole_norm": np.sqrt(np.square(of_whole).sum())}
    return {f"{name}_sampling_stderr": values for name, values in errors.items()}


def in_block(objective: Objective, cache_bytes: int) -> int:
    """Return the number of parts whose gradients fit into memory beside the whole gradient, at least 1."""
    return max(1, cache_bytes // (objective.layout.size * objective.dtype.itemsize) - 1)


def _of_samples(objective: Objective, part: int, vectors: torch.Tensor) -> np.ndarray:
    """Return the losses of a part's samples, and the slopes of these along vectors: (1 + V, n), over all processes.

    The means of these values have the standard errors over samples.
    """
    values = part_losses.with_slopes(objective, objective.batches(part), vectors)
    everywhere = objective.team.gathered(torch.from_numpy(values.T.copy()))
    return objective.as_drawn(part, everywhere.numpy().T)


def _moved(
    found: Mapping[str, np.ndarray], shares: np.ndarray, q: int, block: range, slopes: np.ndarray, own: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield how far each sample of part q moves the numbers of the parts p of a block.

    Args:
        found: fields of `Gradients`.
        shares: of the parts in the whole, (P,).
        q: position of the part whose samples these are.
        block: positions p.
        slopes: of the samples' losses along the u_p of the block and, last, along u; (B + 1, n).
        own: along u_q, (n,).

    Yields:
        Name and (B, n), for the numbers in `_OF_PARTS` and, for the cosines of q and p, "between".
    """
    here = slice(block.start, block.stop)
    norm, cosine, projected = (found[name][here, None] for name in ("norm", "cosine", "projected"))
    length, specific = (_positive(found[name])[:, None] for name in ("norm", "specific"))  # without a direction, nan
    whole, is_own = _positive(found["whole_norm"]), np.equal(block, q)[:, None]
    share, along_parts, along = shares[q] / whole, slopes[:-1], slopes[-1]
    apart = norm * along_parts - projected * along  # along the h_p
    yield "projected", is_own * along + share * apart
    yield "specific", (is_own - share * projected) * apart / specific[here]
    yield "cosine", (is_own * (along - cosine * own) + share * apart) / length[here]
    yield "contribution", shares[here, None] * (is_own * along + share * (apart - projected * along)) / whole
    yield "between", (along_parts - found["between"][here, q, None] * own) / length[q]


def _positive(values: np.ndarray) -> np.ndarray:
    """Return values, with nan in place of those that are not positive."""
    return np.where(values > 0, values, np.nan)
