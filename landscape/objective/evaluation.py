"""Loss and accuracy of each part."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """Mean loss of each part, and how well it is predicted by the measures of the task."""

    parts: tuple[str, ...]
    counts: np.ndarray  # (P,)
    loss: np.ndarray  # (P,) mean over the part's samples
    accuracy: np.ndarray | None  # (P,) share of the samples that are predicted correctly; None where there is no such
    measures: Mapping[str, np.ndarray]  # (P,) each, by their names
    whole: Mapping[str, float]  # the same over the samples of all parts together

    @property
    def overall(self) -> tuple[float, float | None]:
        """Mean loss and accuracy over the samples of all parts together."""
        shares = self.counts / self.counts.sum()
        return float(shares @ self.loss), None if self.accuracy is None else float(shares @ self.accuracy)
