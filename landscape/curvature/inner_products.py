"""Inner products of rows, on which eigenvalues, overlaps and comparisons of parts rest."""

import numpy as np
import torch
from torch import Tensor

from landscape.autodiff.distributed import ALONE, Team
from landscape.autodiff.squares import power
from landscape.autodiff.wide import zeros

_BLOCK = 128  # rows that are multiplied with all after them
_COLUMNS = 512  # columns of the rows that are multiplied in the model's dtype before the sum goes on in float64


def products(a: Tensor, b: Tensor, team: Team = ALONE) -> np.ndarray:
    """Return the inner products of rows with rows.

    Args:
        a: (A, d).
        b: (B, d), of the same dtype.
        team: processes that each have some of the columns.

    Returns:
        (A, B) float64; some hundred columns at a time are multiplied in the dtype of the rows.
    """
    found = zeros((len(a), len(b)), a.device)
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(a), _BLOCK)]
    by_a = power(a)
    by_b = by_a if a is b else power(b)
    pieces = (torch.split(t, _COLUMNS, dim=1) for t in (a, b))
    for x, y in zip(*pieces, strict=True):
        x, y = (t if by == 1 else t * by for t, by in ((x, by_a), (y, by_b)))
        for some in blocks:  # of rows with themselves, those below the diagonal are not needed
            after = some.start if a is b else 0
            found[some, after:] += (x[some] @ y[after:].T).to(found.device)
    if a is b:
        found = found.triu() + found.triu(1).T
    return team.total(found / by_a / by_b).cpu().numpy()
