"""Loss and measures of each part at the model's own parameters, from one pass over the data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from landscape.autodiff import distributed, memory
from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.wide import wide, zeros
from landscape.errors import NumericalError
from landscape.networks import losses as losses_of
from landscape.networks.models import failures_named
from landscape.networks.overflow import LARGEST
from landscape.objective import contract, weighing
from landscape.objective.weighing import weighed
from landscape.results import inference
from landscape.results.measures import Measure

if TYPE_CHECKING:
    from landscape.objective.objective import Objective

Progress: TypeAlias = Callable[[float, int, str], None]
"""Called with (number of finished samples, number of all samples, text)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """Mean loss of each part, and how well it is predicted by the measures of the task."""

    parts: tuple[str, ...]
    counts: np.ndarray  # (P,)
    loss: np.ndarray  # (P,) mean over the part's samples
    loss_stderr: np.ndarray  # (P,) its standard error over samples; nan for one sample
    accuracy: np.ndarray | None  # (P,) fraction predicted correctly; None where that has no meaning
    accuracy_stderr: np.ndarray | None  # (P,) its standard error over samples, likewise
    sums: Mapping[Measure, np.ndarray]  # (P, 2) what the task's measures are made of
    errors: Mapping[Measure, np.ndarray]  # (P + 1,) standard errors of the measures over samples, at last of all parts
    uncertainty: tuple[np.ndarray, ...] | None  # tr M of each sample, part by part, where the logits give it at once

    @property
    def measures(self) -> dict[str, np.ndarray]:
        """The task's other measures of each part, (P,) each, by their names."""
        return {measure.name: measure.value(sums) for measure, sums in self.sums.items()}

    @property
    def measure_errors(self) -> dict[str, np.ndarray]:
        """Standard errors over samples of the measures of each part and, at last, of all parts, (P + 1,) each."""
        return {measure.name: errors for measure, errors in self.errors.items()}

    @property
    def whole(self) -> dict[str, float]:
        """The same over the samples of all parts together."""
        return {measure.name: float(measure.value(sums.sum(axis=0))) for measure, sums in self.sums.items()}

    def fields(self, part: int | None = None) -> dict[str, Any]:
        """Return losses, accuracies and measures, with their errors, as fields of a result.

        Args:
            part: the position of the only one that is meant; None for all.

        Returns:
            "loss" and "accuracy", their errors, and what `predicted` returns.
        """
        chosen = slice(None) if part is None else slice(part, part + 1)
        known = {name: getattr(self, name) for name in ("loss", "loss_stderr", "accuracy", "accuracy_stderr")}
        return {n: None if v is None else v[chosen] for n, v in known.items()} | self.predicted(part)

    def predicted(self, part: int | None = None) -> dict[str, np.ndarray]:
        """Return the measures and their numbers of units as fields of a result.

        Args:
            part: the position of the only one that is meant; None for all.

        Returns:
            Fields of `results.predicted.Predicted`.
        """
        chosen = slice(None) if part is None else slice(part, part + 1)
        fields = {m.field: m.value(sums)[chosen] for m, sums in self.sums.items()}
        fields |= {m.error: errors[:-1][chosen] for m, errors in self.errors.items()}
        return fields | {m.units: sums[chosen, 1] for m, sums in self.sums.items() if m.units != "n_samples"}

    @property
    def overall(self) -> tuple[float, float | None]:
        """Mean loss and accuracy over the samples of all parts together."""
        shares = self.counts / self.counts.sum()
        return float(shares @ self.loss), None if self.accuracy is None else float(shares @ self.accuracy)


def evaluate(objective: "Objective", progress: Progress | None = None) -> Evaluation:
    """Compute loss and measures of each part.

    Args:
        objective: model, loss and data in parts.
        progress: called after each batch.

    Returns:
        The numbers. Within `distributed.together` each rank takes some of the samples.

    Raises:
        NumericalError: a loss is not finite.
    """
    names, counts, stands_for = objective.partition.names, objective.counts, objective.population / objective.counts
    scatter, left = weighing.scatter(objective.draws, objective.members)
    sums, of_measures, uncertainty = memory.halving(lambda: _added_up(objective, left, progress))
    loss = sums[0, 0] / counts
    cuts = np.cumsum([len(own) for own in objective.members])[:-1]
    each = {measure: np.split(values, cuts) for measure, values in of_measures.items()}
    for part, value in enumerate(loss):
        if not abs(value) <= LARGEST:
            raise NumericalError(f"the loss of part {names[part]} is {value:.4g}: {reason(objective, part)}")
    return Evaluation(
        parts=names,
        counts=objective.population,
        loss=loss,
        loss_stderr=scatter.stderr(sums[0, 1:]),
        accuracy=None if len(sums) == 1 else (counts - sums[1, 0]) / counts,
        accuracy_stderr=None if len(sums) == 1 else scatter.share_stderr(sums[1, 1:]),
        sums={measure: stands_for[:, None] * [of.sum(axis=0) for of in of_parts] for measure, of_parts in each.items()},
        errors={measure: _errors(objective, measure, of_parts) for measure, of_parts in each.items()},
        uncertainty=uncertainty,
    )


def reason(objective: "Objective", part: int) -> str:
    """Say why the loss of a part is not finite, or so large that its square is not.

    Args:
        objective: model, loss and data in parts.
        part: position of the part.

    Returns:
        The first layer with outputs that are not finite, or another cause, and the remedy.
    """
    own = objective.members[part]
    for begin in range(0, len(own), objective.batch_size):
        some = own[begin : begin + objective.batch_size]
        inputs, targets = objective.samples.batch(some, objective.device, objective.dtype)
        with differentiable_attention(), torch.no_grad():
            values = objective.losses(objective.theta, inputs, targets)
        if not values.isfinite().all():
            return contract.reason(objective, inputs)
    return f"squares of losses beyond {LARGEST:g} overflow float64; did the training diverge?"


def _errors(objective: "Objective", measure: Measure, of_parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return the standard errors over samples of a measure, of each part and of all together, (P + 1,).

    The jackknife leaves out each sample with all of its units, so that the tokens of a sample may be alike.

    Args:
        objective: of the parts.
        measure: of the task.
        of_parts: what each sample adds to both sums, (n, 2).
    """
    drawn = [objective.as_drawn(part, values.T) for part, values in enumerate(of_parts)]
    together = np.concatenate(of_parts).T if objective.draws is None else np.full((2, 1), np.nan)
    found = []
    for summands, units in [*drawn, together]:
        value = measure.value(np.array([summands.sum(), units.sum()]))
        with np.errstate(over="ignore", invalid="ignore"):  # of a perplexity beyond all numbers
            error = inference.jackknife(measure.of_mean(inference.without_each(summands, units)))
        unknown = (measure.share and value in (0, 1)) or not np.isfinite(error)
        found.append(np.nan if unknown else error)
    return np.array(found)


def _added_up(
    objective: "Objective", left: np.ndarray, progress: Progress | None
) -> tuple[np.ndarray, dict[Measure, np.ndarray], tuple[np.ndarray, ...] | None]:
    """Return sums over the samples of each part, of `weighing.terms` of losses and of wrong predictions: (2, 4, P).

    Without classes, only those of losses. Also what each sample adds to the sums of each measure, (N, 2), and the
    uncertainty of each, see `Evaluation`.
    """
    n_parts, team = len(objective.partition), distributed.team()
    order, ends = np.concatenate(objective.members), np.cumsum([0, *map(len, objective.members)])
    done, total, own = 0, len(order), team.share(len(order))
    pieces = [
        (part, slice(begin, min(begin + objective.batch_size, own.stop, ends[part + 1])))
        for part in range(n_parts)
        for begin in range(max(own.start, ends[part]), min(own.stop, ends[part + 1]), objective.batch_size)
    ]
    measured, is_correct = objective.task.measures if objective.outputs.measurable else (), objective.correct
    # On the device, and read when all batches are done: the host waits for what it reads.
    found = zeros((1 if is_correct is None else 2, 4, n_parts), objective.device)
    remaining = torch.from_numpy(left).to(found.device)
    summands = zeros((len(measured), total, 2), objective.device)
    uncertainty = None
    if objective.loss is losses_of.cross_entropy and losses_of.of_classes(objective.loss, objective.example(0)[1]):
        uncertainty = zeros(total, objective.device)
    # Not in inference mode: what a model keeps for later from there cannot take part in a derivative.
    with differentiable_attention(), torch.no_grad():
        for part, where in pieces:
            inputs, targets = objective.samples.batch(order[where], objective.device, objective.dtype)
            with failures_named(inputs):
                logits = objective.logits(objective.theta, inputs)
                losses = wide(objective.values(logits, targets))
            if uncertainty is not None:
                uncertainty[where] = losses_of.uncertainty(logits)
            wrong = [] if is_correct is None else [1 - wide(is_correct(logits, targets))]
            found[:, :, part] += weighing.terms(torch.stack([losses, *wrong]), remaining[where]).sum(2)
            for m, one in enumerate(measured):
                values = weighed(one.sums, objective.draws)(objective.outputs.restore(logits), targets)
                summands[m, where] = wide(values)
            done += where.stop - where.start
            if progress is not None:
                progress(min(done * team.size, total), total, "loss and accuracy")
    of_all, of_measures = (team.total(t).cpu().numpy() for t in (found, summands))
    each = None if uncertainty is None else tuple(np.split(team.total(uncertainty).cpu().numpy(), ends[1:-1]))
    return of_all, {one.measure: values for one, values in zip(measured, of_measures, strict=True)}, each
