"""The options of `spectrum` that determine its numbers, and what follows from them."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, Literal, TypeAlias, get_args

from landscape.analyses import samples as of_samples
from landscape.analyses.samples import GGN_TOL, LEFT_OUT, METHODS, Method
from landscape.curvature import extremes, probing, traces
from landscape.curvature.algebra import Operator
from landscape.curvature.kinds import HESSIAN, KINDS, Kind
from landscape.curvature.lanczos import DISTRIBUTIONS, Distribution
from landscape.curvature.places import Place, Room
from landscape.curvature.probing import DEFLATED, Plan
from landscape.errors import InputError, arg, check_choice
from landscape.objective.objective import Objective

log = logging.getLogger(__name__)

Trace: TypeAlias = Literal["auto", "exact", "sampled", "probes"]
TRACES: tuple[Trace, ...] = get_args(Trace)
DEFAULT_TOL = 1e-3
STEPS, PROBES = 80, 4
"""Defaults for the density."""
OF_ROWS = 20
"""Rows leave out at most an accuracy over this, of the trace and of lambda_max."""
SHORT = 12
"""Steps of each run if no density is wanted, but the run for both ends does not fit into memory."""


class Way(IntEnum):
    """How the vectors of a part are kept; the larger, the better."""

    NONE = 0  # too few fit
    RESTARTS = 1  # those of a restarted run, see curvature/bounded.py
    BASIS = 2  # a Lanczos basis


LISTED = 10
"""Ritz values that are stored if no number is requested."""
STEPS_EACH = 12
"""The largest number of steps for each eigenvalue that is requested, without the density."""
MOST = 100_000
"""The largest number of steps, probes, eigenvalues and vectors; arrays of these are made before the first product."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options that determine the numbers of a spectrum; see `spectrum`."""

    operator: str
    density: bool | None
    steps: int | None
    probes: int | None
    seed: int
    distribution: Distribution
    top: int | None
    vectors: int
    tol: float | None
    gap: float | None
    max_steps: int | None
    trace: Trace
    trace_tol: float | None
    negative_tol: float
    samples: int | None
    accuracy: float | None
    method: Method
    ggn_tol: float
    sampling_errors: bool

    def __post_init__(self) -> None:
        """Raise InputError for a value out of its range, except where the range depends on the objective."""
        at_least = {"steps": (self.n_steps, 1), "probes": (self.n_probes, 1), "top": (self.listed, 1)}
        at_least |= {"vectors": (self.vectors, 0), "seed": (self.seed, 0)}
        for name, (value, least) in at_least.items():
            if value < least:
                raise InputError(f"{arg(name)} must be at least {least}, got {value}")
            if name != "seed" and value > MOST:
                raise InputError(f"{arg(name)} must be at most {MOST:,}, got {value:,}")
        for name, number in {
            "tol": self.tol,
            "gap": self.gap,
            "trace_tol": self.trace_tol,
            "accuracy": self.accuracy,
        }.items():
            if number is not None and not 0 < number < 1:
                raise InputError(f"{arg(name)} must be between 0 and 1, got {number:g}")
        if not 0 <= self.negative_tol < 1:
            raise InputError(f"{arg('negative_tol')} must be between 0 and 1, got {self.negative_tol:g}")
        least = self.n_steps if self.has_density else 1
        if self.max_steps is not None and (self.tol is None or self.max_steps < least):
            raise InputError(
                f"{arg('max_steps', self.max_steps)} goes with {arg('tol')}, and must be at least {arg('steps', least)}"
            )
        if self.density is False and (self.steps is not None or self.probes is not None):
            name = "probes" if self.steps is None else "steps"
            raise InputError(f"{arg(name)} is of the density, which {arg('density', False)} leaves out")
        if not 0 <= self.ggn_tol < 1:
            raise InputError(f"{arg('ggn_tol')} must be at least 0 and below 1, got {self.ggn_tol:g}")
        check_choice("method", self.method, METHODS)
        if self.samples is not None and self.samples < 2:
            raise InputError(f"{arg('samples')} must be at least 2, got {self.samples}")
        if self.samples is not None and self.accuracy is not None:
            raise InputError(f"{arg('accuracy')} says how many {arg('samples')} are drawn: leave one of them out")
        check_choice("trace", self.trace, TRACES)
        check_choice("distribution", self.distribution, DISTRIBUTIONS)

    @property
    def has_density(self) -> bool:
        """Whether the density is requested, by itself or by one of its options."""
        return self.steps is not None or self.probes is not None if self.density is None else self.density

    @property
    def n_steps(self) -> int:
        """Lanczos steps of each run for the density."""
        return STEPS if self.steps is None else self.steps

    @property
    def n_probes(self) -> int:
        """Number of runs for the density."""
        return PROBES if self.probes is None else self.probes

    @property
    def products(self) -> int:
        """Number of products that all eigenvalues would take by Lanczos: with more work than theirs, rows lose."""
        return self.n_steps * self.n_probes

    @property
    def listed(self) -> int:
        """Number of the largest Ritz values that are stored, without those of the vectors."""
        return LISTED if self.top is None else self.top

    @property
    def sought(self) -> int:
        """Number of the largest eigenvalues that are requested, with or without their vectors."""
        return max(self.vectors, self.top or 0)

    @property
    def most(self) -> int:
        """The largest number of steps of a run for both ends."""
        return self.max_steps or max(extremes.MOST, STEPS_EACH * (self.top or 0))

    def plan(self, room: Room) -> Plan:
        """Return how each part's matrix is probed for the density, given how many vectors fit into memory."""
        given = {item.name: getattr(self, item.name) for item in fields(Plan) if item.name != "room"}
        given |= {"steps": self.n_steps, "probes": self.n_probes, "trace_tol": self.of_trace}
        given |= {} if self.accuracy is None else {"tol": self.residual}
        if not self.has_density:  # only the ends and the trace are wanted, whose own run does not fit
            given |= {"steps": min(SHORT, self.most), "tol": self.residual, "max_steps": self.most}
        return Plan(**given, room=room)

    def place_of_ends(self, room: Room) -> Place | None:
        """Return where a run for both ends keeps its basis; None if a density is computed in its place.

        This is so if the density is requested, or if such a run does not fit into memory.
        """
        longest = 3 * self.most // 2
        return None if self.has_density else room.place(longest + DEFLATED, self.vectors + 12)

    def way(self, room: Room, size: int) -> Way:
        """Say how the vectors of a part with matrices of this size are kept, given how many fit into memory."""
        plan = self.plan(room)
        if self.place_of_ends(room) is not None or probing.keeps_basis(plan, size):
            return Way.BASIS
        return Way.RESTARTS if probing.can_restart(plan, size) else Way.NONE

    @property
    def residual(self) -> float:
        """The largest residual of lambda_max that counts as converged, as a fraction of it."""
        wanted = DEFAULT_TOL if self.accuracy is None else self.accuracy / 4
        return wanted if self.tol is None else self.tol

    def gap_for(self, error: float | None) -> float:
        """Return how far an eigenvalue may exceed lambda_max at the end of a run for both ends, as a fraction of it.

        Args:
            error: the standard error of lambda_max over samples, as a fraction of it; None if it is unknown.

        Returns:
            This error between two limits, if neither a gap nor an accuracy is requested.
        """
        if self.gap is not None:
            return self.gap
        wide = self.sampling_errors and self.tol is None and self.accuracy is None
        return extremes.gap_beside(error) if wide and error is not None else extremes.GAP

    @property
    def of_trace(self) -> float | None:
        """The largest error of the trace over probes, as a fraction of it; None for no limit."""
        wanted = None if self.accuracy is None else self.accuracy / 3
        return wanted if self.trace_tol is None else self.trace_tol

    @property
    def of_samples(self) -> dict[str, Any]:
        """The arguments of `samples.samples`."""
        left_out = LEFT_OUT if self.accuracy is None else self.accuracy / OF_ROWS
        trace_tol = 0.0 if self.trace == "exact" else self.of_trace
        products = None if self.method == "rows" else self.products
        return {
            "tol": self.ggn_tol,
            "left_out": left_out,
            "seed": self.seed,
            "trace_tol": trace_tol,
            "products": products,
        }


def ggn_tol_for(accuracy: float | None) -> float:
    """Return the fraction of the trace that rows leave out where none is given, for an accuracy that is asked for."""
    return GGN_TOL if accuracy is None else accuracy / OF_ROWS


def way_of_trace(operator: Operator, options: Options, refusal: Callable[[], str | None] | None = None) -> Trace:
    """Say how traces are computed.

    Args:
        operator: of the matrices.
        options: of the spectrum.
        refusal: says why rows, which are computed anyway, do not give the trace; None asks the operator, which tries
            its rows first.

    Returns:
        "exact", "sampled" or "probes".

    Raises:
        InputError: the options require exact or sampled traces, but these are not possible.
    """
    many = operator.exact.cost > options.products
    if options.trace == "probes" or (options.trace == "auto" and refusal is None and many):
        return "probes"
    sampled = options.trace == "sampled"
    refusal = refusal or operator.exact.refusal
    reason = "this matrix has no rows" if sampled and operator.exact.sampled is None else refusal()
    if reason is None:
        return "sampled" if sampled else "exact"
    if options.trace != "auto":
        way = arg("trace", options.trace)
        raise InputError(f"{way} is not possible: {reason}; {arg('trace', 'probes')} estimates it")
    log.info("the trace is estimated by probes, because %s", reason)
    return "probes"


def has_beyond(objective: Objective, kind: Kind, options: Options, way: Trace) -> bool:
    """Say whether the traces of samples' H - G are estimated, for the errors of the traces of Hessians over samples.

    Args:
        objective: model, loss and data in parts.
        kind: of matrix.
        options: of the spectrum.
        way: from `way_of_trace`.

    Returns:
        Whether they are: of networks for which H may have another trace than G.
    """
    by_probes = kind is HESSIAN and options.sampling_errors and way == "probes"
    return by_probes and traces.of_bends(objective, kind) is not None


def trace_of(operator: Operator, name: str, way: Trace, seed: int) -> tuple[float, float] | None:
    """Return the trace of a part and its standard error.

    Args:
        operator: of the part.
        name: of the part.
        way: from `way_of_trace`.
        seed: of draws.

    Returns:
        Both numbers, or None if probes are to estimate them.
    """
    if way == "sampled" and operator.exact.sampled is not None:
        return operator.exact.sampled(name, seed)
    return (operator.exact.trace(name), 0.0) if way == "exact" else None


def sample_by_sample(objective: Objective, kind: Kind, options: Options) -> bool:
    """Say whether rows and numbers of single samples are computed.

    Args:
        objective: model, loss and data in parts.
        kind: of matrix.
        options: of the spectrum.

    Returns:
        Whether they are computed.

    Raises:
        InputError: the options require them, but they are not possible.
    """
    if options.method == "rows" and not kind.has_rows:
        others = ", ".join(name for name, other in KINDS.items() if other.has_rows)
        raise InputError(f"{arg('method', 'rows')} is for {others}, and the {kind.name} has no rows: leave it out")
    by_rows = options.method != "lanczos" and all_rows(objective, kind, options)
    if kind.has_rows and not by_rows and options.method == "auto":
        passes = objective.outputs.size
        log.info(
            "Lanczos replaces rows, because %d backward passes are more than %d products", passes, options.products
        )
    of_errors = options.sampling_errors or options.accuracy is not None  # also those of a draw
    if not (by_rows or of_errors or _few_rows_give_traces(objective, kind, options)):
        return False
    reason = of_samples.refusal(objective, kind)
    if reason is None:
        return True
    if options.method == "rows":
        raise InputError(
            f"{arg('method', 'rows')} is not possible: {reason}; {arg('method', 'lanczos')} uses products instead"
        )
    log.info("there are no rows and no errors over samples, because %s", reason)
    return False


def all_rows(objective: Objective, kind: Kind, options: Options) -> bool:
    """Say whether all rows of a matrix are measured, which takes a backward pass for each output.

    Args:
        objective: model, loss and data in parts.
        kind: of matrix.
        options: of the spectrum.

    Returns:
        Whether this is requested, or takes no more passes than products are allowed.
    """
    few = not kind.decomposes or objective.outputs.size <= options.products
    return kind.has_rows and (few or options.method == "rows")


def _few_rows_give_traces(objective: Objective, kind: Kind, options: Options) -> bool:
    """Say whether the default takes the trace from few rows, with fewer passes than an exact trace needs."""
    if options.trace != "auto" or kind.factors is None or kind.has_rows:
        return False
    return objective.outputs.size > of_samples.FEW_OUTPUTS and traces.of_bends(objective, kind) is None
