"""Measures of how well a part is predicted, where accuracy does not say it.

Each is a mean over units of the part (samples, tokens, labels), or a function of one, and is stored with the number of
its units: what several parts have together then follows from what each has. A new one is an entry of `MEASURES`, its
fields in `predicted.Predicted`, and in `networks/tasks.py` what is summed over a batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np


def _same(mean: np.ndarray) -> np.ndarray:
    return mean


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A mean over units, or a function of one."""

    name: str
    field: str  # of a result
    units: str  # the field of the result that counts what the mean is over
    form: Literal["number", "percent"] = "number"
    of_mean: Callable[[np.ndarray], np.ndarray] = _same
    to_mean: Callable[[np.ndarray], np.ndarray] = _same  # what undoes `of_mean`

    def value(self, sums: np.ndarray) -> np.ndarray:
        """Return the measure.

        Args:
            sums: (..., 2) what is added up over units, and how many units there are.

        Returns:
            (...), nan where there are no units.
        """
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            return np.asarray(self.of_mean(sums[..., 0] / sums[..., 1]))

    def joined(self, values: np.ndarray, units: np.ndarray, weights: Sequence[float]) -> float:
        """Return the measure of several parts together.

        Args:
            values: of each part, (P,).
            units: of each part, (P,).
            weights: of one unit of each part, (P,).

        Returns:
            The measure; nan where there are no units.
        """
        counted = np.asarray(weights) * units
        with np.errstate(divide="ignore", invalid="ignore"):  # of parts without units
            sums = np.where(counted > 0, counted * self.to_mean(values), 0.0).sum()
        return float(self.value(np.array([sums, counted.sum()])))


SQUARED_ERROR = Measure(name="mean squared error", field="mean_squared_error", units="n_samples")
F1 = Measure(name="F1 of all labels", field="f1", units="n_labels")
PERPLEXITY = Measure(name="perplexity", field="perplexity", units="n_tokens", of_mean=np.exp, to_mean=np.log)
TOKEN_ACCURACY = Measure(name="accuracy of tokens", field="token_accuracy", units="n_tokens", form="percent")

MEASURES = (SQUARED_ERROR, F1, PERPLEXITY, TOKEN_ACCURACY)
