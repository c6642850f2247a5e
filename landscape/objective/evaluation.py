"""Loss and accuracy of each part."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from landscape.results.measures import Measure


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """Mean loss of each part, and how well it is predicted by the measures of the task."""

    parts: tuple[str, ...]
    counts: np.ndarray  # (P,)
    loss: np.ndarray  # (P,) mean over the part's samples
    accuracy: np.ndarray | None  # (P,) share of the samples that are predicted correctly; None where there is no such
    sums: Mapping[Measure, np.ndarray]  # (P, 2) what the task's measures are made of

    @property
    def measures(self) -> dict[str, np.ndarray]:
        """The task's other measures of each part, (P,) each, by their names."""
        return {measure.name: measure.value(sums) for measure, sums in self.sums.items()}

    @property
    def whole(self) -> dict[str, float]:
        """The same over the samples of all parts together."""
        return {measure.name: float(measure.value(sums.sum(axis=0))) for measure, sums in self.sums.items()}

    def predicted(self, part: int | None = None) -> dict[str, np.ndarray]:
        """Return the measures and their numbers of units as fields of a result.

        Args:
            part: the position of the only one that is meant; None for all.

        Returns:
            Fields of `results.predicted.Predicted`.
        """
        chosen = slice(None) if part is None else slice(part, part + 1)
        fields = {m.field: m.value(sums)[chosen] for m, sums in self.sums.items()}
        return fields | {m.units: sums[chosen, 1] for m, sums in self.sums.items() if m.units != "n_samples"}

    @property
    def overall(self) -> tuple[float, float | None]:
        """Mean loss and accuracy over the samples of all parts together."""
        shares = self.counts / self.counts.sum()
        return float(shares @ self.loss), None if self.accuracy is None else float(shares @ self.accuracy)
