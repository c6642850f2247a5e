"""What a run would take: time, memory and room on the disk, from a few timed steps.

An analysis, or a training, declares once which steps it takes and how often, before it takes the first. Where only its
costs are asked for it goes no further, and a few steps of each kind are timed here. So there is no second list of
analyses, and no file is written.

A step over n samples is timed at its own size or, where that is many batches, at one and two batches, between which and
n time is a straight line. The first step of a piece may take longer than later ones, as it prepares what these find.
"""

import math
import statistics
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from landscape.autodiff import memory
from landscape.callables import checked
from landscape.errors import InputError

_ENOUGH = 0.5  # seconds of later steps of one size, after which no more are timed
_REPEATS = 5


@dataclass(frozen=True, kw_only=True)
class Work:
    """Steps of one kind, of which a run takes many."""

    what: str  # they are, as "products with the hessian"
    prepare: Callable[[int], Callable[[], object]]  # number of samples -> what takes one step over so many
    times: float = 1.0  # steps of each piece
    each: int = 1  # of what they are called after, that a step makes together
    pieces: int = 1  # parts, points or epochs that are alike
    samples: int = 1  # that one step goes over, on average over the pieces
    most: int = 0  # that the largest piece has, where they differ
    batch: int = 1  # samples that go through the model at a time
    halve: str = ""  # an option that would halve it
    common: bool = False  # other stages of the run that say the same need not do it again


class Plan(Protocol):
    """What a stage of a run does and keeps; its steps are asked for first, and timed as they come."""

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


@dataclass(frozen=True, kw_only=True)
class Known:
    """A plan all of which is known from the start."""

    works: Sequence[Work]
    keeps: int = 0
    disk: int = 0
    spare: str = ""


@dataclass(frozen=True)
class Repeated:
    """Plans that are carried out several times, one after the other."""

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


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Steps of one kind, and what they take together."""

    what: str
    times: float
    seconds: float
    halve: str


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run would take."""

    costs: tuple[Cost, ...]
    memory: int  # bytes that the process would have at most
    disk: int  # bytes of its files
    spare: str  # an option that would save memory

    @property
    def seconds(self) -> float:
        """Seconds of all steps together."""
        return sum(cost.seconds for cost in self.costs)


class Declared(BaseException):
    """Ends a run whose costs alone are asked for, as soon as it has declared all of them."""


_plans: ContextVar[list[Plan] | None] = ContextVar("plans", default=None)


def noted(plan: Callable[[], Plan]) -> bool:
    """Declare a stage of a run.

    Args:
        plan: makes it.

    Returns:
        Whether only the costs are asked for; the stage is then to be left out, with anything in the place of its
        result.
    """
    plans = _plans.get()
    if plans is None:
        return False
    plans.append(plan())
    return True


def declare(plan: Callable[[], Plan]) -> None:
    """Declare the last stage of a run, before it begins and before a file is written.

    Args:
        plan: makes it.

    Raises:
        Declared: only the costs are asked for.
    """
    if noted(plan):
        raise Declared


def refuse_undeclared() -> None:
    """Refuse to begin a run of which only the costs are asked for, and which has declared none.

    Raises:
        InputError: that is so.
    """
    if _plans.get() is not None:
        raise InputError("this run does not say what it would take: leave the question out")


@contextmanager
def asking() -> Generator[list[Plan], None, None]:
    """Ask for the costs alone within a block, which ends where its last stage is declared.

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
    raise InputError("this run does not say what it would take")


@checked
def estimate(function: Callable[..., Any], *arguments: Any, **options: Any) -> Estimate:
    """Estimate what an analysis or a training would take, without doing it.

        ls.estimate(ls.spectrum, objective, steps=80)

    Args:
        function: such as `spectrum`, `surface2d` or `trainers.train`.
        arguments: what it is called with.
        options: what it is called with by name.

    Returns:
        Its time, memory and files; a few steps of each kind are timed for it.

    Raises:
        InputError: the function does not say what it would take.
    """
    with asking() as plans:
        function(*arguments, **options)
    return measured(plans)


def measured(plans: Sequence[Plan], *, ranks: float = 1.0, clock: Callable[[], float] = time.perf_counter) -> Estimate:
    """Time a few steps of each kind.

    Args:
        plans: of all stages of a run.
        ranks: processes that share the steps, less what they lose by waiting for each other.
        clock: tells the time in seconds.

    Returns:
        The estimate.
    """
    found: dict[str, Cost] = {}
    for work in (work for plan in plans for work in plan.works):  # one by one: a later one may need what is timed
        known = found.get(work.what)
        if known is not None and work.common:
            continue
        seconds, times = _seconds(work, clock) / ranks, work.pieces * work.times * work.each
        if known is not None:
            seconds, times = seconds + known.seconds, times + known.times
        found[work.what] = Cost(what=work.what, times=times, seconds=seconds, halve=work.halve)
    return Estimate(
        costs=tuple(found.values()),
        memory=memory.peak() + sum(plan.keeps for plan in plans),
        disk=sum(plan.disk for plan in plans),
        spare=next((plan.spare for plan in plans if plan.spare), ""),
    )


def sizes(samples: int, batch: int, most: int = 0) -> tuple[int, ...]:
    """Return the numbers of samples at which a step is timed.

    Args:
        samples: that the step goes over, on average over the pieces.
        batch: samples at a time.
        most: that the largest piece has; where that is more, the time of the average is read off between a small and a
            large piece, as the time of small ones alone does not tell that of large ones.

    Returns:
        One number, or two from which a straight line leads to `samples`.
    """
    if samples > 2 * batch:
        return batch, 2 * batch
    large = min(most, 2 * batch)
    return (samples,) if large <= samples else (-(-samples // 2), large)


def warming(samples: int) -> int:
    """Return the number of samples of the step that is taken before others are timed, for what is done but once."""
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
    """Return the time at a number of samples, on the straight line through what was timed."""
    if len(at) == 1:
        return values[0]
    slope = max(0.0, (values[1] - values[0]) / (at[1] - at[0]))
    return values[1] + slope * (samples - at[1])


def _timed(step: Callable[[], object], again: bool, clock: Callable[[], float]) -> tuple[float, float]:
    """Return the seconds of the first step and, where there are several, of a later one."""
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
