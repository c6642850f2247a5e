"""The costs of a run: time, memory and disk space, estimated from a few timed steps.

Before its first step, an analysis or a training declares which steps it will take and how often. If only its costs are
wanted, it stops there, and a few steps of each kind are timed here. So there is no second list of analyses, and no file
is written.

A step over n samples is timed at its own size or, if this is many batches, at one and two batches, from which the time
is extrapolated linearly to n. The first step of a piece may take longer than later ones, because it prepares data that
these use.
"""

import math
import statistics
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch

from landscape.autodiff import distributed, memory
from landscape.callables import checked
from landscape.errors import InputError

_ENOUGH = 0.5  # after this many seconds of later steps of one size, no further step is timed
_REPEATS = 5


@dataclass(frozen=True, kw_only=True)
class Work:
    """Steps of one kind, which a run takes many times."""

    what: str  # the steps are, such as "products with the hessian"
    prepare: Callable[[int], Callable[[], object]]  # number of samples -> a function that takes one step over so many
    times: float = 1.0  # steps of each piece
    each: int = 1  # number of the named operations that one step makes together
    pieces: int = 1  # parts, points or epochs that are alike
    samples: int = 1  # that one step goes over, on average over the pieces
    most: int = 0  # that the largest piece has, where they differ
    batch: int = 1  # samples that go through the model at a time
    halve: str = ""  # an option that would halve it
    divided: bool = True  # among the processes of the run
    common: bool = False  # done once for all stages of the run with the same value


class Plan(Protocol):
    """The steps and the memory of one stage of a run; the steps are requested first and timed one by one."""

    @property
    def works(self) -> Iterable[Work]:
        """All steps."""

    @property
    def keeps(self) -> int:
        """Bytes of memory beside what a step takes for a moment."""

    @property
    def disk(self) -> int:
        """Bytes of its files."""

    @property
    def spare(self) -> str:
        """An option that would save memory."""

    @property
    def note(self) -> str:
        """What is not known before the run; empty if all is."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """A plan that is completely known from the start."""

    works: Sequence[Work]
    keeps: int = 0
    disk: int = 0
    spare: str = ""
    note: str = ""


@dataclass(frozen=True)
class Repeated:
    """Plans that are executed several times, one after the other."""

    plans: Sequence[Plan]
    times: int

    @property
    def works(self) -> Generator[Work, None, None]:
        """All steps."""
        for plan in self.plans:
            for work in plan.works:
                yield replace(work, pieces=work.pieces * self.times)

    @property
    def keeps(self) -> int:
        """Bytes of memory beside what a step takes for a moment."""
        return max(plan.keeps for plan in self.plans)

    @property
    def disk(self) -> int:
        """Bytes of files."""
        return self.times * sum(plan.disk for plan in self.plans)

    @property
    def spare(self) -> str:
        """An option that would save memory."""
        return self.plans[0].spare

    @property
    def note(self) -> str:
        """What is not known before the run; empty if all is."""
        return self.plans[0].note


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Steps of one kind and their total cost."""

    what: str
    times: float
    seconds: float
    halve: str


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The estimated costs of a run."""

    costs: tuple[Cost, ...]
    memory: int  # bytes that the process would have at most
    disk: int  # bytes of its files
    spare: str  # an option that would save memory
    note: str = ""  # what is not known before the run

    @property
    def seconds(self) -> float:
        """Seconds of all steps together."""
        return sum(cost.seconds for cost in self.costs)


class Declared(BaseException):
    """Ends a run of which only the costs are wanted, as soon as it has declared all of them."""


_plans: ContextVar[list[Plan] | None] = ContextVar("plans", default=None)


def noted(plan: Callable[[], Plan]) -> bool:
    """Declare a stage of a run.

    Args:
        plan: returns the plan of the stage.

    Returns:
        Whether only the costs are wanted; the caller must then skip the stage, and may use any value as its result.
    """
    plans = _plans.get()
    if plans is None:
        return False
    plans.append(plan())
    return True


def wanted() -> bool:
    """Say whether only the costs of a run are wanted."""
    return _plans.get() is not None


def declare(plan: Callable[[], Plan]) -> None:
    """Declare the last stage of a run, before it begins and before a file is written.

    Args:
        plan: returns the plan of the stage.

    Raises:
        Declared: only the costs are wanted.
    """
    if noted(plan):
        raise Declared


def refuse_undeclared() -> None:
    """Refuse to begin a run that has declared no costs, although only the costs are wanted.

    Raises:
        InputError: this is the case.
    """
    if wanted():
        raise InputError("the cost of this call is not known in advance: compute it without an estimate")


@contextmanager
def asking() -> Generator[list[Plan], None, None]:
    """Compute only the costs within a block, which ends when its last stage is declared.

    Yields:
        The plans of all stages, as they are declared.

    Raises:
        InputError: nothing was declared.
    """
    plans: list[Plan] = []
    token = _plans.set(plans)
    try:
        yield plans
    except Declared:
        return
    finally:
        _plans.reset(token)
    raise InputError("the cost of this call is not known in advance: compute it without an estimate")


@checked
def estimate(function: Callable[..., Any], *arguments: Any, **options: Any) -> Estimate:
    """Estimate the time, memory and disk space of an analysis or a training without running it.

        ls.estimate(ls.spectrum, objective, steps=80)

    Args:
        function: for example `spectrum`, `surface2d` or `trainers.train`.
        arguments: its positional arguments.
        options: its keyword arguments.

    Returns:
        Its time, memory and files. To estimate the time, a few steps of each kind are run.

    Raises:
        InputError: the function does not declare its costs.
    """
    with asking() as plans:
        function(*arguments, **options)
    found, ranks = None, distributed.speedup()
    if distributed.is_main():  # each by its own clock would take another number of steps, for which all meet
        with distributed.apart():
            found = measured(plans, ranks=ranks)
    return cast(Estimate, distributed.of_main(found))


def measured(plans: Sequence[Plan], *, ranks: float = 1.0, clock: Callable[[], float] = time.perf_counter) -> Estimate:
    """Time a few steps of each kind.

    Args:
        plans: the plans of all stages of a run.
        ranks: number of processes that divide the steps which are divided, minus their loss by waiting for each other.
        clock: returns the time in seconds.

    Returns:
        The estimate.
    """
    found: dict[str, Cost] = {}
    for work in (work for plan in plans for work in plan.works):  # one by one: a later one may need an earlier time
        known = found.get(work.what)
        if known is not None and work.common:
            continue
        seconds, times = _seconds(work, clock), work.pieces * work.times * work.each
        if work.divided:
            seconds /= ranks
        if known is not None:
            seconds, times = seconds + known.seconds, times + known.times
        found[work.what] = Cost(what=work.what, times=times, seconds=seconds, halve=work.halve)
    return Estimate(
        costs=tuple(found.values()),
        memory=memory.peak() + sum(plan.keeps for plan in plans),
        disk=sum(plan.disk for plan in plans),
        spare=next((plan.spare for plan in plans if plan.spare), ""),
        note="; ".join(dict.fromkeys(plan.note for plan in plans if plan.note)),
    )


def sizes(samples: int, batch: int, most: int = 0) -> tuple[int, ...]:
    """Return the numbers of samples at which a step is timed.

    Args:
        samples: number of samples in a step, on average over the pieces.
        batch: batch size.
        most: number of samples in the largest piece; if this is more than the average, the time of the average is
            interpolated between a small and a large piece, because the time of small pieces does not predict that of
            large ones.

    Returns:
        One number, or two for linear extrapolation to `samples`.
    """
    if samples > 2 * batch:
        return batch, 2 * batch
    large = min(most, 2 * batch)
    return (samples,) if large <= samples else (-(-samples // 2), large)


def warming(samples: int) -> int:
    """Return the number of samples of a step that is run first, so that one-time work is not timed."""
    return min(2, samples)


def _seconds(work: Work, clock: Callable[[], float]) -> float:
    at = sizes(work.samples, work.batch, work.most)
    once = _clocked(work.prepare(warming(work.samples)), clock)
    if work.pieces == work.times == work.samples == 1:
        return once
    timed = [_timed(work.prepare(n), work.times > 1, clock) for n in at]
    first, later = (_extended(at, values, work.samples) for values in zip(*timed, strict=True))
    return once + work.pieces * (first * min(1.0, work.times) + later * max(0.0, work.times - 1))


def _extended(at: Sequence[int], values: Sequence[float], samples: int) -> float:
    """Return the time for a number of samples, extrapolated linearly from the measured times."""
    if len(at) == 1:
        return values[0]
    slope = max(0.0, (values[1] - values[0]) / (at[1] - at[0]))
    return values[1] + slope * (samples - at[1])


def _timed(step: Callable[[], object], again: bool, clock: Callable[[], float]) -> tuple[float, float]:
    """Return the seconds of the first step and, if there are several, of a later one."""
    first = _clocked(step, clock)
    later: list[float] = []
    while again and len(later) < _REPEATS and math.fsum(later) < _ENOUGH:
        later.append(_clocked(step, clock))
    return first, statistics.median(later) if later else first


def _clocked(step: Callable[[], object], clock: Callable[[], float]) -> float:
    begun = clock()
    step()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return clock() - begun
