"""What a forward pass says of the rows of a part: their sizes in the logits, and which are probably the longest.

The length of a row a_ik = J_i^T s_ik (middles.py) is known only after a backward pass. But it varies little relative to
|s_ik|, while |s_ik|^2, as a rule an eigenvalue of M_i, varies by orders of magnitude. So this says which rows are worth
a pass.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from landscape.autodiff import trees
from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.distributed import ALONE, Team
from landscape.autodiff.trees import Tree
from landscape.autodiff.wide import place
from landscape.curvature.functions import functions_of
from landscape.curvature.kinds import Factors
from landscape.curvature.middles import Middle
from landscape.objective.objective import Objective

_CHUNK = 32  # samples


@dataclass(frozen=True, kw_only=True, eq=False)
class Outputs:
    """What a forward pass shows of the rows of a part."""

    logits: Tensor  # (n, C) float64 on the CPU
    targets: Tree  # of the n samples, on the CPU
    uncertainty: np.ndarray  # tr M_i, (n,)
    sizes: np.ndarray  # |s_ik|^2, (n, R), in the order of `Middle`


def outputs(objective: Objective, factors: Factors, part: int) -> Outputs:
    """Compute a part's logits, and how their matrices are split.

    Processes that work together divide the passes, and all return the same numbers: they choose the same rows.

    Args:
        objective: as for `lengths`.
        factors: as for `lengths`.
        part: position of the part.

    Returns:
        Both, with the targets.
    """
    members, own = objective.members[part], objective.own(part)
    logits, targets_of, traces, sizes = [], [], [], []
    with differentiable_attention(), torch.no_grad():
        some = own if len(own) else members[:1]  # a process without samples uses one to get the shapes
        for chunk in chunks(objective, len(some))[0]:
            inputs, targets = objective.samples.batch(some[chunk], objective.device, objective.dtype)
            values = factors.outputs(functions_of(objective), objective.logits(objective.theta, inputs), targets)
            logits.append(values.cpu().double())
            targets_of.append(trees.mapped(Tensor.cpu, targets))
            middle = split(objective, factors, logits[-1], targets_of[-1])
            traces.append(middle.traces)
            sizes.append(middle.sizes)

    def joined(found: Tensor) -> Tensor:
        return objective.team.gathered(found[: len(own)])

    return Outputs(
        logits=joined(torch.cat(logits)),
        targets=trees.mapped(joined, trees.join(targets_of)),
        uncertainty=joined(torch.cat(traces)).numpy(),
        sizes=joined(torch.cat(sizes)).numpy(),
    )


def split(objective: Objective, factors: Factors, logits: Tensor, targets: Tree) -> Middle:
    """Split logits, which are on the CPU, by `factors.split` where float64 is computed for this device."""
    there = place(objective.device)
    return factors.split(objective, logits.to(there), trees.mapped(lambda t: t.to(there), targets))


def chunks(objective: Objective, n: int, team: Team = ALONE) -> list[list[slice]]:
    """Divide n samples into pieces, of which the matrices between the Jacobians are kept at a time.

    Args:
        objective: has the batch size.
        n: number of samples.
        team: processes that divide the samples.

    Returns:
        The pieces of each process.
    """
    size = min(objective.batch_size, _CHUNK)
    shares = [replace(team, rank=rank).share(n) for rank in range(team.size)]
    return [[slice(start, min(start + size, own.stop)) for start in range(own.start, own.stop, size)] for own in shares]


@dataclass(frozen=True, kw_only=True)
class Keep:
    """The choice of the rows that are kept and not only measured: sizes in the logits predict which are needed."""

    tol: float  # fraction of the sum of sizes that may be left out
    most: int  # rows

    def chosen(self, sizes: np.ndarray) -> np.ndarray:
        """Return whether each row is kept, (n, R), given |s_ik|^2, (n, R)."""
        sample, row = largest(sizes, self.tol)
        if len(sample) > self.most:
            chosen = np.argsort(-sizes[sample, row], kind="stable")[: self.most]
            sample, row = sample[chosen], row[chosen]
        wanted = np.zeros(sizes.shape, dtype=bool)
        wanted[sample, row] = True
        return wanted


def largest(sizes: np.ndarray, tol: float, beside: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Choose the fewest numbers such that the others sum to at most a fraction of the total.

    Args:
        sizes: (n, R), at least 0.
        tol: this fraction.
        beside: a sum of further numbers, which are never chosen.

    Returns:
        Their positions, row by row; those of all that are not zero if even these do not suffice.
    """
    order = np.argsort(-sizes.ravel(), kind="stable")
    # Summed from the smallest, so that small sums do not get lost in the rounding of the total.
    rest = np.append(np.cumsum(sizes.ravel()[order][::-1])[::-1], 0.0)
    enough = rest + beside <= tol * (rest[0] + beside)
    n_kept = int(np.flatnonzero(enough if enough.any() else rest == 0)[0])
    sample, row = np.unravel_index(np.sort(order[:n_kept]), sizes.shape)
    return sample, row
