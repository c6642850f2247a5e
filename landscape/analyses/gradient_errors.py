"""How much another draw of the samples would change the numbers of exact gradients, by the delta method.

All numbers of gradients are functions of the inner products of the g_p and g. A sample of part q moves g_q by d, its
gradient less g_q, and g by share_q d. So it moves

    |g_q|       by <u_q, d>                                         u_q = g_q / |g_q|, u = g / |g|
    <g_p, u>    by [p = q] <u, d> + share_q <h_p, d> / |g|          h_p = g_p - <g_p, u> u
    |h_p|       by ([p = q] - share_q <g_p, u> / |g|) <h_p, d> / |h_p|
    cos(p, r)   by <u_r - cos(p, r) u_p, d> / |g_p| for p = q       and by the same of r for r = q

The slopes of each sample's loss along the u_p and u are all that these need. The numbers of a layer are the same
functions of the gradients within it, so they need the slopes' parts from each layer: these come from the gradients of
single samples, layer by layer (autodiff/single_samples.py), where the model permits them. Samples are independent
draws, within a part and between parts; the parts' shares are given.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.analyses import part_losses
from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.wide import products, wide, zeros
from landscape.curvature import gram, rows
from landscape.curvature.kinds import Factors
from landscape.objective.objective import Objective
from landscape.results import inference

log = logging.getLogger(__name__)

_LOSSES = Factors()  # the rows that these have are the gradients of single losses


def over_samples(objective: Objective, found: Mapping[str, np.ndarray], cache_bytes: int) -> dict[str, np.ndarray]:
    """Return standard errors over samples of the numbers of exact gradients.

    If not all unit vectors fit into memory, there is a pass over the data along each part's own one, and then one for
    each block of them.

    Args:
        objective: model, loss and data in P parts.
        found: fields of `Gradients` at one checkpoint, (P,), (P, P), (L, P), (L,) or ().
        cache_bytes: memory for unit vectors and slopes.

    Returns:
        Fields of `Gradients`; nan where a number is not defined, or a part with a single sample is involved: its spread
        is unknown. Those of layers are missing where the gradients of single samples cannot be computed.
    """
    shares, n_parts = objective.shares, len(objective.partition)
    layers = has_layers(objective)
    scopes = _Scopes.of(found, shares, layers=layers)
    each = in_block(objective, cache_bytes, layers=layers)
    units = torch.zeros(min(each, n_parts) + 1, objective.layout.size, dtype=objective.dtype, device=objective.device)
    whole = zeros(objective.layout.size, objective.device)
    own: list[np.ndarray] = []  # slopes of each part's samples along its own gradient
    for p in range(n_parts):
        direction = gram.direction(objective, p)
        whole += shares[p] * found["norm"][p] * wide(direction)
        if n_parts <= each:
            units[p] = direction
        else:
            own.append(of_samples(objective, p, direction[None], len(scopes.whole_norm))[1][:, 0])
    length = whole.norm()  # which may be tiny, where gradients cancel or are
    units[-1] = whole / length if length > 0 else 0
    variances = scopes.empty | {"loss": np.full(n_parts, np.nan)}
    for start in range(0, n_parts, each):
        block = range(start, min(start + each, n_parts))
        for p in block if n_parts > each else ():  # once more: so many do not fit into memory together
            units[p - start] = gram.direction(objective, p)
        vectors = units if len(block) + 1 == len(units) else torch.cat([units[: len(block)], units[-1:]])
        for q in range(n_parts):
            losses, slopes = of_samples(objective, q, vectors, len(scopes.whole_norm))
            variances["loss"][q] = inference.variance_of_mean(losses)
            scopes.add(variances, shares, q, block, slopes, own[q] if own else slopes[:, q])
    between = variances["between"] + variances["between"].T
    np.fill_diagonal(between, 0 * between.diagonal())  # each agrees with itself
    variances |= {"between": between, "whole_norm": variances["whole_norm"].sum(axis=-1)}
    errors = scopes.fields({name: np.sqrt(values) for name, values in variances.items()})
    errors["radius"] = found["radius"] / 2 * errors["specific"] / _positive(found["specific"])
    return {f"{name}_sampling_stderr": values for name, values in errors.items()}


def has_layers(objective: Objective) -> bool:
    """Say whether the numbers of layers get errors; if not, the reason is logged once for all checkpoints."""
    refusal = rows.refusal(objective, _LOSSES)
    if refusal is not None and objective.known.first("errors of layers"):
        log.warning("the numbers of layers have no errors over samples: %s", refusal)
    return objective.team.all(refusal is None)


def in_block(objective: Objective, cache_bytes: int, *, layers: bool) -> int:
    """Return for how many parts the gradients and the slopes along them fit into memory beside those of the whole.

    Args:
        objective: model, loss and data in parts.
        cache_bytes: memory for both.
        layers: slopes are divided into those of layers.

    Returns:
        The number, at least 1.
    """
    slopes = (1 + layers * len(objective.layout.layers)) * max(map(len, objective.members)) * 8
    return max(1, cache_bytes // (objective.layout.size * objective.dtype.itemsize + slopes) - 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scopes:
    """Numbers of the gradients by all parameters and, after these, within each layer: S = 1 or 1 + L scopes."""

    norm: np.ndarray  # (S, P)
    cosine: np.ndarray  # (S, P)
    projected: np.ndarray  # (S, P)
    whole_norm: np.ndarray  # (S,)
    specific: np.ndarray  # (P,), of all parameters
    between: np.ndarray  # (P, P), of all parameters

    @classmethod
    def of(cls, found: Mapping[str, np.ndarray], shares: np.ndarray, *, layers: bool) -> "_Scopes":
        """Take them from fields of `Gradients` at one checkpoint and the shares of the parts in the whole, (P,)."""
        both = {name: found[name][None] for name in ("norm", "cosine", "projected", "whole_norm")}
        if layers:
            of_layers = {name: found[f"layer_{name}"] for name in ("norm", "cosine", "whole_norm")}
            of_layers["projected"] = found["layer_contribution"] * of_layers["whole_norm"][:, None] / shares
            both = {name: np.concatenate([values, of_layers[name]]) for name, values in both.items()}
        return cls(**both, specific=found["specific"], between=found["between"])

    @property
    def empty(self) -> dict[str, np.ndarray]:
        """Zeros for the variances, to which each part adds; of the whole's norm one for each part."""
        found = {name: np.zeros_like(self.norm) for name in ("cosine", "projected", "contribution")}
        unknown = {name: np.full_like(self.norm, np.nan) for name in ("norm", "whole_norm")}
        return found | unknown | {"specific": np.zeros_like(self.specific), "between": np.zeros_like(self.between)}

    def add(
        self,
        variances: dict[str, np.ndarray],
        shares: np.ndarray,
        q: int,
        block: range,
        slopes: np.ndarray,
        own: np.ndarray,
    ) -> None:
        """Add how much the samples of part q contribute to the variances of the numbers of the parts of a block.

        Args:
            variances: as of `empty`.
            shares: of the parts in the whole, (P,).
            q: position of the part whose samples these are.
            block: positions p.
            slopes: of the samples' losses along the u_p of the block and, last, along u, (S, B + 1, n): the part of
                each scope in the slopes along vectors that are unit vectors of all parameters.
            own: along u_q, (S, n).
        """
        here, has_whole = slice(block.start, block.stop), np.isfinite(self.projected).any(axis=1)
        # The same along the unit vectors of each scope; where there is none, slopes are 0.
        whole, norm = (np.nan_to_num(values[0] / _positive(values)) for values in (self.whole_norm, self.norm))
        along, along_parts, own = (
            slopes[:, -1:] * whole[:, None, None],
            slopes[:, :-1] * norm[:, here, None],
            own * norm[:, q, None],
        )
        for name, moves in self._moved(shares, q, block, along_parts, along, own):
            into = variances[name][q] if name == "between" else variances[name]
            into[..., here] += inference.variance_of_mean(moves)
        variances["norm"][:, q] = np.where(self.norm[:, q] > 0, inference.variance_of_mean(own), np.nan)
        variances["whole_norm"][:, q] = np.where(
            has_whole, shares[q] ** 2 * inference.variance_of_mean(along[:, 0]), np.nan
        )

    def _moved(
        self, shares: np.ndarray, q: int, block: range, along_parts: np.ndarray, along: np.ndarray, own: np.ndarray
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Yield names of numbers, and how far each sample of part q moves them, (S, B, n) or (B, n).

        Arguments are as for `add`, with (S, B, n), (S, 1, n) and (S, n) slopes along unit vectors of each scope.
        """
        here = slice(block.start, block.stop)
        norm, cosine, projected = (values[:, here, None] for values in (self.norm, self.cosine, self.projected))
        is_own, of_parts = np.equal(block, q)[:, None], shares[here, None]
        whole = _positive(self.whole_norm)[:, None, None]  # without a direction, nan
        share = shares[q] / whole
        apart = norm * along_parts - projected * along  # along the h_p
        yield "projected", is_own * along + share * apart
        yield "cosine", (is_own * (along - cosine * own[:, None]) + share * apart) / _positive(norm)
        yield "contribution", of_parts * (is_own * along + share * (apart - projected * along)) / whole
        specific = _positive(self.specific)[here, None]
        yield "specific", (is_own - share[0] * projected[0]) * apart[0] / specific
        yield "between", (along_parts[0] - self.between[here, q, None] * own[0]) / _positive(self.norm[0, q])

    def fields(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the values by names of fields of `Gradients`."""
        apart = ("loss", "specific", "between")
        found = {name: value if name in apart else value[0] for name, value in values.items()}
        if len(self.norm) > 1:
            found |= {f"layer_{name}": values[name][1:] for name in ("norm", "cosine", "contribution", "whole_norm")}
        return found


def of_samples(objective: Objective, part: int, vectors: Tensor, n_scopes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return losses and slopes of the samples of a part, over all processes; their means have the errors over samples.

    Args:
        objective: model, loss and data in parts.
        part: position of the part.
        vectors: (V, D).
        n_scopes: S, 1 or 1 + number of layers.

    Returns:
        Losses (n,), and slopes along the vectors (S, V, n): the first of all parameters, the others what each layer
        contributes to them.
    """
    if n_scopes == 1:
        values = part_losses.with_slopes(objective, objective.batches(part), vectors)
    else:
        values = _by_layers(objective, part, vectors)
    everywhere = objective.team.gathered(torch.from_numpy(values.T.copy()))
    drawn = objective.as_drawn(part, everywhere.numpy().T)
    return drawn[0], drawn[1:].reshape(n_scopes, len(vectors), -1)


def _by_layers(objective: Objective, part: int, vectors: Tensor) -> np.ndarray:
    """Return the loss of each of this process's samples, its slopes, and the layers' parts of these, (1 + S V, n)."""
    layer_of = {name: layer for layer, own in enumerate(objective.layout.layers.values()) for name in own}
    pieces = dict(zip(objective.layout.names, torch.split(vectors, list(objective.layout.sizes), dim=1), strict=True))
    n_layers, n_vectors = len(objective.layout.layers), len(vectors)
    found = [torch.empty(1 + (1 + n_layers) * n_vectors, 0, dtype=torch.float64)]
    with differentiable_attention(), objective.trainable():
        for inputs, targets in objective.batches(part):
            run = rows.recorded(objective, _LOSSES, inputs, targets)
            losses = run.values.detach()
            slopes = zeros((n_layers, n_vectors, len(losses)), objective.device)
            for name, some, each in run.pieces(torch.ones_like(losses)):
                slopes[layer_of[name], :, some] += products(pieces[name], each)
            slopes = torch.cat([slopes.sum(0, keepdim=True), slopes])
            found.append(torch.cat([wide(losses)[None], slopes.flatten(0, 1)]).cpu())
    return torch.cat(found, dim=1).numpy()


def _positive(values: np.ndarray) -> np.ndarray:
    """Return values, with nan in place of those that are not positive."""
    return np.where(values > 0, values, np.nan)
