"""Group and weight the classes of a finished surface or spectrum in any way, without a new computation.

A surface that was computed per class has L_c at every point, and a class-weighted loss is a mean of these,

    L_group = sum over c in group of w_c L_c / sum over c in group of w_c,

and so are the accuracy and the trace of the Hessian; its eigenvalues and their density are not. The largest eigenvalue
of a group's Gauss-Newton matrix follows from the rows that a spectrum stores for all its parts (pool.py). Other
nonlinear quantities (lowest point, doubling radius, worst rise, barrier, verdict) are computed from the group's own
loss by the same functions as in the analysis: a barrier is not an average of barriers.

With n_c the number of evaluated samples of class c, and N_c the number of its training samples, w_c is

    natural    n_c                                  the mean over the evaluated samples
    balanced   1                                    equal weight of each class
    training   N_c                                  the training distribution, whichever split was evaluated
    drw        N_c (1 - beta) / (1 - beta^N_c)      deferred re-weighting: samples weighted by effective number
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike, fspath
from typing import Any, TypeVar, overload

import numpy as np

from landscape.callables import checked
from landscape.errors import InputError, arg
from landscape.results import Spectrum, Surface, Traces, disk, inference
from landscape.results.grid import summary
from landscape.results.grouping import ENDS, FEW, GROUPINGS, MANY, NAMES, Thresholds
from landscape.results.measures import MEASURES
from landscape.results.mesh import Grid
from landscape.results.pool import Pool, pool

S = TypeVar("S", bound=Surface)

WEIGHTS = ("natural", "balanced", "training", "drw")
"""Names of weightings; a mapping or a JSON file defines others."""


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
    spectrum has rows of its parts, they give lambda_max of the group's Gauss-Newton matrix.

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
    weights = _from_weights_file(fspath(weights) if isinstance(weights, PathLike) else weights)
    members = _members(result, groups, many=many, few=few, ends=ends)
    shares = _shares(result, members, weights, beta)
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
    changes: dict[str, Any] = {
        "parts": tuple(members),
        "loss": _mixed(shares, surface.loss, 0),
        "accuracy": _joined(shares, surface.accuracy, 0),
        "centre_loss": _mixed(shares, surface.centre_loss, 0),
        "centre_accuracy": _joined(shares, surface.centre_accuracy, 0),
        "mark_loss": _mixed(shares, surface.mark_loss, 1),
        "mark_accuracy": _joined(shares, surface.mark_accuracy, 1),
        **_predicted(surface, members, shares),
        "loss_stderr": _errors(shares, surface.loss_stderr, 0),
        "centre_loss_stderr": _errors(shares, surface.centre_loss_stderr, 0),
        "mark_loss_stderr": _errors(shares, surface.mark_loss_stderr, 1),
    }
    if surface.mark_policy_loss is not None:
        changes["mark_policy_loss"] = _mixed(shares, surface.mark_policy_loss, 1)
    changes |= _counted(surface, members)
    changes |= summary(
        grid_of(surface),
        parts=list(members),
        loss=changes["loss"],
        centre_loss=changes["centre_loss"],
        loss_stderr=changes["loss_stderr"],
        radius=surface.radius,
        batch_norm=surface.batch_norm,
        marks=surface.marks,
        mark_loss=changes["mark_loss"],
        mark_policy_loss=changes.get("mark_policy_loss"),
        between=surface.barrier is not None,
        n_classes=provenance.get("n_classes"),
        augmented=provenance.get("augmented", False),
        variance_invalid=surface.variance_invalid,
    )
    return replace(surface, **changes, provenance=provenance)


def _traces(
    spectrum: Spectrum,
    members: Mapping[str, np.ndarray],
    shares: Sequence[Sequence[tuple[int, float]]],
    provenance: dict[str, Any],
) -> Traces:
    return Traces(
        parts=tuple(members),
        **_counted(spectrum, members),
        loss=_mixed(shares, spectrum.loss, 0),
        accuracy=_joined(shares, spectrum.accuracy, 0),
        **_predicted(spectrum, members, shares),
        trace=_mixed(shares, spectrum.trace, 0),
        trace_stderr=_mixed(shares, spectrum.trace_stderr, 0),
        **_by_rows(spectrum, shares),
        size=spectrum.size,
        operator=spectrum.operator,
        provenance=provenance,
    )


def _by_rows(spectrum: Spectrum, shares: Sequence[Sequence[tuple[int, float]]]) -> dict[str, np.ndarray]:
    """Return what follows from the samples and rows of the parts, as far as the spectrum has them."""
    fields: dict[str, list[float]] = {}
    for of in shares if spectrum.sample_trace is not None else ():
        together = pool(spectrum, [p for p, _ in of])
        share = np.array([w for _, w in of])

        def error(values: np.ndarray, together: Pool = together, share: np.ndarray = share) -> float:
            """Return the error of a group; parts are independent, so that the squares of their errors add up."""
            each = [together.part == k for k in range(len(share))]
            errors = [inference.stderr(inference.draws(values[own], together.weights[own])) for own in each]
            return float(np.sqrt((share**2 * np.square(errors)).sum()))

        own = {"trace_sampling_stderr": error(together.traces)}
        if together.gram is not None:
            weights = share[together.part] * together.weights
            value, combination = together.gram.top(weights)
            own |= {"lambda_max": value, "lambda_max_above": together.left_out(weights)}
            own |= {"lambda_max_sampling_stderr": error(together.gram.curvatures(combination))}
        for name, number in own.items():
            fields.setdefault(name, []).append(number)
    return {name: np.array(numbers) for name, numbers in fields.items()}


def _joined(shares: Sequence[Sequence[tuple[int, float]]], values: np.ndarray | None, axis: int) -> np.ndarray | None:
    return None if values is None else _mixed(shares, values, axis)


def _errors(shares: Sequence[Sequence[tuple[int, float]]], values: np.ndarray | None, axis: int) -> np.ndarray | None:
    """Return the standard errors of weighted means over samples; parts are independent, so squares add up."""
    if values is None:
        return None
    squared = [[(p, w * w) for p, w in of] for of in shares]
    found: np.ndarray = np.sqrt(_mixed(squared, values**2, axis))
    return found


def _predicted(
    result: Surface | Spectrum, members: Mapping[str, np.ndarray], shares: Sequence[Sequence[tuple[int, float]]]
) -> dict[str, np.ndarray]:
    """Return the measures of groups: means over units, each weighted like its sample."""
    fields: dict[str, np.ndarray] = {}
    for measure in MEASURES:
        values, units = getattr(result, measure.field), getattr(result, measure.units)
        if values is None or units is None:
            continue
        found = []
        for of in shares:
            parts = [p for p, _ in of]
            found.append(measure.joined(values[parts], units[parts], [w / result.n_samples[p] for p, w in of]))
        fields[measure.field] = np.array(found)
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
    partition = _partition(result)
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
    policy, provenance = surface.mark_policy_loss, surface.provenance
    found = summary(
        grid_of(surface),
        parts=[surface.parts[p] for p in parts],
        loss=surface.loss[parts],
        centre_loss=surface.centre_loss[parts],
        radius=surface.radius,
        batch_norm=surface.batch_norm,
        marks=surface.marks,
        mark_loss=surface.mark_loss[:, parts],
        mark_policy_loss=None if policy is None else policy[:, parts],
        between=surface.barrier is not None,
        n_classes=provenance.get("n_classes"),
        augmented=provenance.get("augmented", False),
        variance_invalid=surface.variance_invalid,
    )
    return str(found["verdict"])


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


def effective_number_weights(train_counts: np.ndarray, beta: float) -> np.ndarray:
    """Return the weight of one sample of each class: the inverse of the class's effective number of samples.

    Args:
        train_counts: N, (C,) training samples of each class.
        beta: at least 0, which gives samples equal weights, and below 1; near 1 it gives classes equal weights.

    Returns:
        (1 - beta) / (1 - beta^N_c), (C,); 0 for a class without training samples.

    Raises:
        InputError: beta is out of its range.

    Source: Cui et al. 2019, equation 2.
    """
    if not 0 <= beta < 1:
        raise InputError(f"beta of the effective number of samples must be at least 0 and below 1, got {beta:g}")
    counts = np.asarray(train_counts, dtype=np.float64)
    effective = (1 - beta**counts) / (1 - beta)
    weights: np.ndarray = np.divide(1.0, effective, out=np.zeros_like(effective), where=counts > 0)
    return weights


def _members(
    result: Surface | Spectrum, groups: str | Mapping[str, Sequence[int | str]], *, many: int, few: int, ends: int
) -> dict[str, np.ndarray]:
    """Return the parts of each group as their positions."""
    everything = np.arange(len(result.parts))
    if isinstance(groups, str):
        if groups == "all":
            return {"all": everything}
        if groups == "class":
            return {name: everything[[p]] for p, name in enumerate(result.parts)}
        if groups in GROUPINGS:
            thresholds = Thresholds(many=many, few=few, ends=ends)
            return GROUPINGS[groups].make(_class_counts(result, groups), thresholds)
        groups = _from_file(groups)
    if not groups:
        raise InputError("there are no groups")
    return {name: _positions(result, name, of) for name, of in groups.items()}


def _positions(result: Surface | Spectrum, name: str, members: Sequence[int | str]) -> np.ndarray:
    partition = _partition(result)
    part_of_class = {tuple(of): p for p, of in enumerate(partition)} if partition else {}
    found: list[int] = []
    for member in members:
        if isinstance(member, str) and member in result.parts:
            part = result.parts.index(member)
        elif isinstance(member, (int, np.integer)) and not isinstance(member, bool) and (int(member),) in part_of_class:
            part = part_of_class[int(member),]
        elif not partition and isinstance(member, (int, np.integer)) and 0 <= member < len(result.parts):
            part = int(member)
        else:
            shown = ", ".join(result.parts[:10]) + (", ..." if len(result.parts) > 10 else "")
            raise InputError(f"group {name!r}: {member!r} is no part here; there are {shown}")
        if part in found:
            raise InputError(f"group {name!r} holds {result.parts[part]!r} twice")
        found.append(part)
    if not found:
        raise InputError(f"group {name!r} joins no parts")
    return np.array(found)


def _partition(result: Surface | Spectrum) -> list[list[int]] | None:
    """Return the classes of each part, or None if the result does not contain them."""
    stated = result.provenance.get("partition")
    if not isinstance(stated, Mapping) or any(name not in stated for name in result.parts):
        return None
    return [list(stated[name]) for name in result.parts]


def _class_counts(result: Surface | Spectrum, groups: str) -> np.ndarray:
    for name, classes in zip(result.parts, _partition(result) or [], strict=False):
        if len(classes) != 1:
            raise InputError(
                f"{groups} groups classes, and {name!r} has {len(classes)}: compute with {arg('partition', 'class')}"
            )
    return _told(result, "train_counts", f"{groups} goes by training samples")


def _told(result: Surface | Spectrum, field: str, why: str) -> np.ndarray:
    counts = np.asarray(getattr(result, field), dtype=np.float64)
    if not np.isfinite(counts).all():
        raise InputError(f"{why}, which the file does not tell: name the parts of groups, or take other weights")
    return counts


def _from_file(name: str) -> dict[str, list[int | str]]:
    if not name.endswith(".json"):
        raise InputError(f"groups {name!r} are unknown: choose {', '.join(NAMES)} or a .json file of groups")
    groups = _read(name, "groups")
    if not all(isinstance(of, list) for of in groups.values()):
        raise InputError(f'{name} must hold {{"name": [class, ...]}}')
    return groups


def _from_weights_file(weights: str | Mapping[str, float]) -> str | Mapping[str, float]:
    if not isinstance(weights, str) or not weights.endswith(".json"):
        return weights
    found = _read(weights, "weights")
    if not all(isinstance(w, (int, float)) and not isinstance(w, bool) for w in found.values()):
        raise InputError(f'{weights} must hold {{"name": weight}}, the weight of each part')
    return found


def _read(name: str, what: str) -> dict[str, Any]:
    found = disk.read_json(name, InputError)
    if not isinstance(found, dict):
        raise InputError(f"{name} must hold an object, with the {what} by name")
    return found


def _weights(result: Surface | Spectrum, weights: str | Mapping[str, float], beta: float) -> np.ndarray:
    """Return the weight of each part, (P,); nan where it is unknown."""
    train_counts = np.asarray(result.train_counts, dtype=np.float64)
    if isinstance(weights, Mapping):
        for name, value in weights.items():
            if name not in result.parts:
                raise InputError(f"weights: there is no part {name!r}; there are {', '.join(result.parts)}")
            if not 0 <= value < np.inf:
                raise InputError(f"the weight of {name!r} must be a finite number, at least 0, got {value}")
        for name in result.parts:
            if name not in weights:
                raise InputError(f"weights: part {name!r} has none; give 0 to leave it out")
        return np.array([weights[name] for name in result.parts], dtype=np.float64)
    if weights == "natural":
        return np.asarray(result.n_samples, dtype=np.float64)
    if weights == "balanced":
        return np.ones(len(result.parts))
    if weights == "training":
        return train_counts
    if weights == "drw":
        if _partition(result):
            train_counts = _class_counts(result, "drw")
        of_classes: np.ndarray = train_counts * effective_number_weights(train_counts, beta)
        return of_classes
    raise InputError(f"weights {weights!r} are unknown: choose {', '.join(WEIGHTS)} or a .json file")


def _shares(
    result: Surface | Spectrum, members: Mapping[str, np.ndarray], weights: str | Mapping[str, float], beta: float
) -> list[list[tuple[int, float]]]:
    """Return, for each group, its parts with their shares, which sum to 1; parts of share 0 are left out."""
    weight_of = _weights(result, weights, beta)
    empty = np.asarray(result.n_samples) == 0
    shares = []
    for name, parts in members.items():
        inside = np.where(empty[parts], 0.0, weight_of[parts])
        if len(parts) == 1 and not empty[parts[0]]:
            inside = np.ones(1)  # a part alone is itself, whatever its weight
        if np.isnan(inside).any():
            of = "the samples of each part" if weights == "natural" else "the training samples of each class"
            raise InputError(
                f"{weights} weights need {of}, which the file does not tell: take {arg('weights', 'balanced')}"
            )
        if not inside.sum() > 0:
            what = weights if isinstance(weights, str) else "these"
            raise InputError(f"group {name!r} has no samples, or {what} weights leave nothing of it")
        inside = inside / inside.sum()
        shares.append([(int(p), float(w)) for p, w in zip(parts, inside, strict=True) if w > 0])
    return shares


def _mixed(shares: Sequence[Sequence[tuple[int, float]]], values: np.ndarray, axis: int) -> np.ndarray:
    """Return the weighted means along the axis of parts; a nan of any part is the group's."""
    rows = np.moveaxis(values, axis, 0).astype(np.float64)
    mixed = [np.sum([w * rows[p] for p, w in of], axis=0) for of in shares]
    means: np.ndarray = np.moveaxis(np.array(mixed), 0, axis)
    return means
