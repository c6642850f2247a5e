"""Measures of how well a part is predicted, for tasks without an accuracy.

Each is a mean over units of the part (samples, tokens, labels), or a function of a mean. It is stored with the number
of its units, so that the value for several parts together follows from their values, and with its standard error over
samples, each of which may have several units. A new measure needs an entry in `MEASURES`, its fields in
`predicted.Predicted`, and its sum over a batch in `networks/tasks.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from landscape.results import inference


def _same(mean: np.ndarray) -> np.ndarray:
    return mean


def _one(mean: np.ndarray) -> np.ndarray:
    return np.ones_like(mean)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A mean over units, or a function of a mean."""

    name: str
    field: str  # of a result
    units: str  # the field of the result that counts the units
    form: Literal["number", "percent"] = "number"
    of_mean: Callable[[np.ndarray], np.ndarray] = _same
    to_mean: Callable[[np.ndarray], np.ndarray] = _same  # the inverse of `of_mean`
    slope: Callable[[np.ndarray], np.ndarray] = _one  # the derivative of `of_mean`, of the mean
    share: bool = False  # a share of the units, of which 0 and 1 say nothing of its error

    @property
    def error(self) -> str:
        """The field of a result that has the standard error over samples."""
        return f"{self.field}_stderr"

    def value(self, sums: np.ndarray) -> np.ndarray:
        """Return the measure.

        Args:
            sums: (..., 2) sum over units, and number of units.

        Returns:
            (...); nan without units.
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
            The measure; nan without units.
        """
        counted = np.asarray(weights) * units
        with np.errstate(divide="ignore", invalid="ignore"):  # for parts without units
            sums = np.where(counted > 0, counted * self.to_mean(values), 0.0).sum()
        return float(self.value(np.array([sums, counted.sum()])))

    def joined_stderr(
        self,
        values: np.ndarray,
        errors: np.ndarray,
        units: np.ndarray,
        weights: Sequence[float],
        samples: np.ndarray | None = None,
    ) -> float:
        """Return the standard error over samples of the measure of several parts together, to first order.

        The numbers of units of the parts are taken for known.

        Args:
            values: of each part, (P,).
            errors: the standard errors of these, (P,).
            units: of each part, (P,).
            weights: of one unit of each part, (P,).
            samples: of each part, (P,), if all count alike, as in one part; None for parts that are independent.

        Returns:
            The error; nan if that of a part with units is unknown.
        """
        counted = np.asarray(weights) * units
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            means, total = self.to_mean(values), counted.sum()
            of_means = np.where(counted > 0, errors / self.slope(means), 0.0)
            means, shares = np.where(counted > 0, means, 0.0), counted / total
            slope = self.slope((shares * means).sum())
            if samples is not None:
                return float(slope * inference.joined_stderr(means, of_means, samples, shares))
            return float(slope * np.sqrt(((shares * of_means) ** 2).sum()))


SQUARED_ERROR = Measure(name="mean squared error", field="mean_squared_error", units="n_samples")
F1 = Measure(name="F1 (micro)", field="f1", units="n_labels", share=True)
PERPLEXITY = Measure(
    name="perplexity", field="perplexity", units="n_tokens", of_mean=np.exp, to_mean=np.log, slope=np.exp
)
TOKEN_ACCURACY = Measure(
    name="accuracy of tokens", field="token_accuracy", units="n_tokens", form="percent", share=True
)

MEASURES = (SQUARED_ERROR, F1, PERPLEXITY, TOKEN_ACCURACY)
