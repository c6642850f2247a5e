"""Group and weight the classes of a finished surface or spectrum in any way, without a new computation.

A surface that was computed per class has L_c at every point, and a class-weighted loss is a mean of these,

    L_group = sum over c in group of w_c L_c / sum over c in group of w_c,

and so are the accuracy and the trace of the Hessian; its eigenvalues and their density are not. The largest eigenvalue
of a group's Gauss-Newton or Fisher matrix follows from the rows that a spectrum stores for all its parts (pool.py), and
from its weight decay. Other nonlinear quantities (lowest point, doubling radius, worst rise, barrier, verdict) are
computed from the group's own loss by the same functions as in the analysis: a barrier is not an average of barriers.

Which classes a group has, and their weights w_c, is determined in groups.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike, fspath
from typing import Any, TypeVar, overload

import numpy as np

from landscape.callables import checked
from landscape.results import Spectrum, Surface, Traces, column_values, inference
from landscape.results.grid import summary
from landscape.results.grouping import ENDS, FEW, MANY
from landscape.results.groups import members_of, partition_of, read_weights, shares_of
from landscape.results.measures import MEASURES
from landscape.results.mesh import Grid
from landscape.results.over_samples import repeated
from landscape.results.pool import Pool, decay_of, pool
from landscape.results.traces import of_rows

S = TypeVar("S", bound=Surface)


@overload
def regroup(
    result: Spectrum,
    groups: str | PathLike[str] | Mapping[str, Sequence[int | str]],
    weights: str | PathLike[str] | Mapping[str, float] = ...,
    *,
    many: int = ...,
    few: int = ...,
    ends: int = ...,
    beta: float = ...,
) -> Traces: ...


@overload
def regroup(
    result: S,
    groups: str | PathLike[str] | Mapping[str, Sequence[int | str]],
    weights: str | PathLike[str] | Mapping[str, float] = ...,
    *,
    many: int = ...,
    few: int = ...,
    ends: int = ...,
    beta: float = ...,
) -> S: ...


@checked
def regroup(
    result: Surface | Spectrum,
    groups: str | PathLike[str] | Mapping[str, Sequence[int | str]],
    weights: str | PathLike[str] | Mapping[str, float] = "natural",
    *,
    many: int = MANY,
    few: int = FEW,
    ends: int = ENDS,
    beta: float = 0.9999,
) -> Surface | Traces:
    """Join the parts of a surface or a spectrum into groups, with the weighted mean loss of each.

    For a spectrum, quantities that are linear in the loss can be joined: the trace, the loss and the accuracy. Their
    standard errors over probes are upper bounds, because the parts use the same probes and may be correlated. If the
    spectrum has rows of its parts, they give lambda_max of the group's Gauss-Newton or Fisher matrix, with the weight
    decay; `lambda_max_matrix` names it.

    Args:
        result: computed per class, or with any parts if groups are given by names. A trajectory remains a trajectory.
        groups: "all"; "class", which joins nothing; "head-tail"; "many-medium-few"; a .json file
            {"name": [class, ...]}; or a mapping of this form. Members are names of parts or numbers of classes, and a
            part may be in several groups.
        weights: "natural", "balanced", "training", "drw", a mapping of part names to weights, or a .json file of this.
        many: "many" classes have more training samples than this.
        few: "few" classes have fewer training samples than this.
        ends: number of classes at each end of "head-tail".
        beta: of the effective number of samples; near 1 all classes have equal weight, as in "balanced".

    Returns:
        A surface with the same points and the groups as parts, or the traces of the groups. A part without samples is
        in no group.

    Raises:
        InputError: unknown names, a group without members or weight, or counts that the weighting needs but the
            result does not have.

    Source: Cui et al. 2019, "Class-balanced loss based on effective number of samples"; Cao et al. 2019 for its
        deferred use; Liu et al. 2019 for many, medium and few.
    """
    groups = fspath(groups) if isinstance(groups, PathLike) else groups
    weights = read_weights(fspath(weights) if isinstance(weights, PathLike) else weights)
    members = members_of(result, groups, many=many, few=few, ends=ends)
    shares = shares_of(result, members, weights, beta)
    provenance = _provenance(result, members, weights, beta)
    if isinstance(result, Spectrum):
        return _traces(result, members, shares, provenance)
    return _surface(result, members, shares, provenance)


def _surface(
    surface: Surface,
    members: Mapping[str, np.ndarray],
    shares: Sequence[Sequence[tuple[int, float]]],
    provenance: dict[str, Any],
) -> Surface:
    alike = _alike(members, provenance)
    changes: dict[str, Any] = {
        "parts": tuple(members),
        "loss": _mixed(shares, surface.loss, 0),
        "accuracy": _joined(shares, surface.accuracy, 0),
        "centre_loss": _mixed(shares, surface.centre_loss, 0),
        "centre_accuracy": _joined(shares, surface.centre_accuracy, 0),
        "mark_loss": _mixed(shares, surface.mark_loss, 1),
        "mark_accuracy": _joined(shares, surface.mark_accuracy, 1),
        **_predicted(surface, members, shares, alike),
    }
    for prefix, axis in (("", 0), ("centre_", 0), ("mark_", 1)):
        changes |= _sampling_errors(surface, shares, alike, prefix, axis)
    if surface.centre_policy_loss is not None:
        changes["centre_policy_loss"] = _mixed(shares, surface.centre_policy_loss, 0)
    if surface.mark_policy_loss is not None:
        changes["mark_policy_loss"] = _mixed(shares, surface.mark_policy_loss, 1)
    changes |= _counted(surface, members)
    changes |= _summary(
        surface,
        list(members),
        changes["loss"],
        changes["centre_loss"],
        changes["mark_loss"],
        changes.get("mark_policy_loss"),
        changes.get("centre_policy_loss"),
        loss_stderr=changes["loss_stderr"],
    )
    return replace(surface, **changes, provenance=provenance)


def _traces(
    spectrum: Spectrum,
    members: Mapping[str, np.ndarray],
    shares: Sequence[Sequence[tuple[int, float]]],
    provenance: dict[str, Any],
) -> Traces:
    alike = _alike(members, provenance)
    natural = np.full(len(members), provenance["regrouped"]["weights"] == "natural")  # of draws too: see below
    return Traces(
        parts=tuple(members),
        **_counted(spectrum, members),
        loss=_mixed(shares, spectrum.loss, 0),  # as accuracy and measures, over all samples, not over draws
        accuracy=_joined(shares, spectrum.accuracy, 0),
        **_sampling_errors(spectrum, shares, natural),
        **_predicted(spectrum, members, shares, natural),
        trace=_mixed(shares, spectrum.trace, 0),
        trace_stderr=_mixed(shares, spectrum.trace_stderr, 0),
        **_by_rows(spectrum, shares, alike),
        size=spectrum.size,
        operator=spectrum.operator,
        lambda_max_matrix=of_rows(spectrum.operator),
        provenance=provenance,
    )


def _by_rows(
    spectrum: Spectrum, shares: Sequence[Sequence[tuple[int, float]]], alike: np.ndarray
) -> dict[str, np.ndarray]:
    """Return what follows from the samples and rows of the parts, as far as the spectrum has them."""
    groups: list[dict[str, float]] = []
    decay = decay_of(spectrum)  # shares sum to 1, so groups have the same
    for of, as_one in zip(shares, alike, strict=True) if spectrum.sample_trace is not None else ():
        parts = [p for p, _ in of]
        together = pool(spectrum, parts)
        share = np.array([w for _, w in of])
        weights = share[together.part] * together.weights
        unknown = any(repeated(spectrum, p) for p in parts)

        def error(
            values: np.ndarray,
            together: Pool = together,
            share: np.ndarray = share,
            weights: np.ndarray = weights,
            unknown: bool = unknown,
            as_one: bool = bool(as_one),
        ) -> float:
            """Return the error of a group: of one part where all count alike, else squares of the parts' errors."""
            if unknown:
                return math.nan
            if as_one:
                return inference.stderr(inference.draws(values, weights))
            each = [together.part == k for k in range(len(share))]
            errors = [
                inference.stderr(inference.draws(values[own], together.weights[own], together.chances[own]))
                for own in each
            ]
            return float(np.sqrt((share**2 * np.square(errors)).sum()))

        own = {"trace_sampling_stderr": error(together.whole)}
        if together.gram is not None:
            value, combination = together.gram.top(weights)
            own |= {"lambda_max": value + decay, "lambda_max_above": together.left_out(weights)}
            own |= {"lambda_max_sampling_stderr": error(together.gram.curvatures(combination))}
        groups.append(own)
    names = dict.fromkeys(name for own in groups for name in own)  # a group may have no rows where others have some
    return {name: np.array([own.get(name, np.nan) for own in groups]) for name in names}


def _joined(shares: Sequence[Sequence[tuple[int, float]]], values: np.ndarray | None, axis: int) -> np.ndarray | None:
    return None if values is None else _mixed(shares, values, axis)


def _sampling_errors(
    result: Surface | Spectrum,
    shares: Sequence[Sequence[tuple[int, float]]],
    alike: np.ndarray,
    prefix: str = "",
    axis: int = 0,
) -> dict[str, Any]:
    """Return the standard errors of groups' losses and accuracies, as the fields of these names.

    Args:
        result: of the parts.
        shares: of the parts in each group.
        alike: (G,) the groups in which all samples count alike, so that they are like one part.
        prefix: of the names of the fields.
        axis: of the parts in these fields.

    Returns:
        None for errors that the result does not have.
    """
    names = [f"{prefix}{what}" for what in ("loss", "accuracy")]
    of_loss, of_accuracy = found = [_errors(shares, getattr(result, f"{name}_stderr"), axis) for name in names]
    accuracy = _joined(shares, getattr(result, names[1]), axis)
    for g in np.flatnonzero(alike).tolist():
        where = (slice(None),) * axis + (g,)
        parts, own = [p for p, _ in shares[g]], np.array([w for _, w in shares[g]])
        n = result.n_samples[parts]
        if of_accuracy is not None and accuracy is not None:
            of_accuracy[where] = inference.share_stderr(accuracy[where], float(n.sum()))
        if of_loss is not None and len(parts) > 1:
            means, errors = (np.moveaxis(getattr(result, f), axis, 0)[parts] for f in (names[0], f"{names[0]}_stderr"))
            of_loss[where] = inference.joined_stderr(means, errors, n, own)
    return {f"{name}_stderr": errors for name, errors in zip(names, found, strict=True)}


def _errors(shares: Sequence[Sequence[tuple[int, float]]], values: np.ndarray | None, axis: int) -> np.ndarray | None:
    """Return the standard errors of weighted means over samples; parts are independent, so squares add up."""
    if values is None:
        return None
    squared = [[(p, w * w) for p, w in of] for of in shares]
    found: np.ndarray = np.sqrt(_mixed(squared, values**2, axis))
    return found


def _alike(members: Mapping[str, np.ndarray], provenance: Mapping[str, Any]) -> np.ndarray:
    """Say in which groups all samples count alike, (G,), so that they are like one part."""
    about = provenance["regrouped"]
    return np.array([about["weights"] == "natural" and name not in about.get("drawn", {}) for name in members])


def _predicted(
    result: Surface | Spectrum,
    members: Mapping[str, np.ndarray],
    shares: Sequence[Sequence[tuple[int, float]]],
    alike: np.ndarray,
) -> dict[str, np.ndarray]:
    """Return the measures of groups: means over units, each weighted like its sample."""
    fields: dict[str, np.ndarray] = {}
    for measure in MEASURES:
        values, units = getattr(result, measure.field), getattr(result, measure.units)
        if values is None or units is None:
            continue
        known, found = getattr(result, measure.error), []
        errors = np.full(len(values), np.nan) if known is None else known
        for of, as_one in zip(shares, alike, strict=True):
            parts, weights = [p for p, _ in of], [w / result.n_samples[p] for p, w in of]
            samples = result.n_samples[parts] if as_one and len(parts) > 1 else None
            value = measure.joined(values[parts], units[parts], weights)
            found.append((value, measure.joined_stderr(values[parts], errors[parts], units[parts], weights, samples)))
        fields[measure.field], fields[measure.error] = np.array(found).T
        if measure.units != "n_samples":
            fields[measure.units] = np.array([units[of].sum() for of in members.values()])
    return fields


def _counted(result: Surface | Spectrum, members: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name: np.array([getattr(result, name)[of].sum() for of in members.values()])
        for name in ("n_samples", "train_counts")
    }


def _provenance(
    result: Surface | Spectrum,
    members: Mapping[str, np.ndarray],
    weights: str | Mapping[str, float],
    beta: float,
) -> dict[str, Any]:
    provenance = dict(result.provenance)
    provenance["regrouped"] = {
        "groups": {name: [result.parts[p] for p in of] for name, of in members.items()},
        "weights": weights if isinstance(weights, str) else dict(weights),
        **({"beta": beta} if weights == "drw" else {}),
    }
    if (drawn := column_values.drawn(result)).any():
        of_draws = {name: drawn[of] for name, of in members.items()}
        provenance["regrouped"]["drawn"] = {n: "all" if d.all() else "some" for n, d in of_draws.items() if d.any()}
    partition = partition_of(result)
    if partition:
        provenance["partition"] = {name: [c for p in of for c in partition[p]] for name, of in members.items()}
    return provenance


def verdict_of(surface: Surface, parts: Sequence[int]) -> str:
    """Return the verdict on some parts of a surface alone.

    Args:
        surface: the result.
        parts: their numbers.

    Returns:
        The verdict of a surface with these parts only; remarks on a file of another program are kept.
    """
    if sorted(parts) == list(range(len(surface.parts))):
        return surface.verdict
    whole, some = (_verdict(surface, list(of)) for of in (range(len(surface.parts)), parts))
    return some + surface.verdict.removeprefix(whole) if surface.verdict.startswith(whole) else some


def _verdict(surface: Surface, parts: Sequence[int]) -> str:
    policy, centre = surface.mark_policy_loss, surface.centre_policy_loss
    found = _summary(
        surface,
        [surface.parts[p] for p in parts],
        surface.loss[parts],
        surface.centre_loss[parts],
        surface.mark_loss[:, parts],
        None if policy is None else policy[:, parts],
        None if centre is None else centre[parts],
    )
    return str(found["verdict"])


def _summary(
    surface: Surface,
    parts: Sequence[str],
    loss: np.ndarray,
    centre_loss: np.ndarray,
    mark_loss: np.ndarray,
    mark_policy_loss: np.ndarray | None,
    centre_policy_loss: np.ndarray | None,
    *,
    loss_stderr: np.ndarray | None = None,
) -> dict[str, Any]:
    """Return the fields that follow from the losses of some parts or groups on a surface; see `grid.summary`."""
    return summary(
        grid_of(surface),
        parts=parts,
        loss=loss,
        centre_loss=centre_loss,
        loss_stderr=loss_stderr,
        radius=surface.radius,
        batch_norm=surface.batch_norm,
        marks=surface.marks,
        mark_loss=mark_loss,
        mark_policy_loss=mark_policy_loss,
        centre_policy_loss=centre_policy_loss,
        between=surface.barrier is not None,
        n_classes=surface.stated("n_classes", of=int),
        augmented=surface.stated("augmented", of=bool) if "augmented" in surface.provenance else False,
        variance_invalid=surface.variance_invalid,
    )


def grid_of(surface: Surface) -> Grid:
    """Return the grid of a surface.

    Args:
        surface: a surface or trajectory.

    Returns:
        Its grid.
    """
    return Grid(
        xcoordinates=surface.xcoordinates,
        ycoordinates=surface.ycoordinates,
        unit_length=surface.unit_length,
        cosine=surface.cosine,
        computed=surface.computed,
    )


def _mixed(shares: Sequence[Sequence[tuple[int, float]]], values: np.ndarray, axis: int) -> np.ndarray:
    """Return the weighted means along the axis of parts; a group is nan if one of its parts is."""
    rows = np.moveaxis(values, axis, 0).astype(np.float64)
    mixed = [np.sum([w * rows[p] for p, w in of], axis=0) for of in shares]
    means: np.ndarray = np.moveaxis(np.array(mixed), 0, axis)
    return means
