"""Results with the measures of how well each part is predicted."""

from dataclasses import dataclass

from landscape.results.axes import Counts, Floats, array
from landscape.results.base import Result
from landscape.results.measures import MEASURES


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Predicted(Result):
    """A result with the measures of `measures.MEASURES` at the checkpoint; measures of other tasks are absent."""

    parts: tuple[str, ...] = array("part", doc="names of the parts of the data")
    mean_squared_error: Floats | None = array(
        "part", unit="squared targets", doc="squared error, mean over outputs and samples", optional=True
    )
    mean_squared_error_stderr: Floats | None = array(
        "part", unit="squared targets", doc="its standard error over samples", optional=True
    )
    f1: Floats | None = array(
        "part",
        doc="F1 of all labels (micro): twice the true positives, as a fraction of n_labels",
        optional=True,
    )
    f1_stderr: Floats | None = array("part", doc="its standard error over samples; nan for F1 of 0 or 1", optional=True)
    n_labels: Counts | None = array(
        "part", unit="labels", doc="labels that are 1, and once more those that are predicted to be 1", optional=True
    )
    perplexity: Floats | None = array(
        "part", doc="exponential of the mean loss of a token, over all tokens that count", optional=True
    )
    perplexity_stderr: Floats | None = array("part", doc="its standard error over samples", optional=True)
    token_accuracy: Floats | None = array(
        "part", doc="share of the tokens that count that are predicted correctly", optional=True
    )
    token_accuracy_stderr: Floats | None = array(
        "part", doc="its standard error over samples; nan for a share of 0 or 1", optional=True
    )
    n_tokens: Counts | None = array("part", unit="tokens", doc="tokens that count, or pixels", optional=True)


FIELDS = tuple(dict.fromkeys(name for m in MEASURES for name in (m.field, m.error, m.units) if name != "n_samples"))
"""The fields that `Predicted` adds."""
