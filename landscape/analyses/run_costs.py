"""The Lanczos runs of a part, and the cost of the spectra of any matrices, which consists of their products."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from landscape.analyses.options import Options, Way
from landscape.analyses.room import needs_all, room_of, sizes_of
from landscape.autodiff import distributed
from landscape.autodiff.costs import Known, Work
from landscape.autodiff.distributed import ALONE, Team
from landscape.curvature import bounded, places, probing
from landscape.curvature.algebra import Operator
from landscape.curvature.lanczos import probe
from landscape.curvature.places import Place, Room
from landscape.errors import arg
from landscape.objective import jobs


@dataclass(frozen=True)
class Runs:
    """The Lanczos runs of one part."""

    products: int
    steps: int  # of one run
    kept: int  # vectors that this process keeps on the device, counted in whole vectors


def runs_of(
    own: Operator,
    options: Options,
    room: Room,
    of_ends: Callable[[], int],
    restarted: Callable[[probing.Plan, Place], int],
) -> Runs:
    """Return the runs that `spectrum` would make for a part.

    Args:
        own: operator of the part.
        options: of the spectrum.
        room: for vectors.
        of_ends: returns the number of products of a run for both ends.
        restarted: returns that of a restarted run.

    Returns:
        The runs.

    Raises:
        InputError: too few vectors fit into memory.
    """
    place = options.place_of_ends(room)
    if place is not None:
        products = of_ends()
        number = 2 * products  # a basis that grows is copied
        return Runs(products, products, 0 if place.on_host else place.team.largest(number))
    plan = options.plan(room)
    block, place = probing.at_a_time(own, plan)
    products = plan.steps * plan.probes
    number = block * (plan.steps + 1) + min(2, plan.probes) * min(probing.DEFLATED, plan.steps // 2)
    if not block:
        number = bounded.n_restarted(probing.capacity(own, plan, place))
        products += restarted(plan, place)
    return Runs(products, plan.steps, 0 if place.on_host else place.team.largest(number))


def costs_of_matrices(operator: Operator, options: Options, memory_bytes: int | None) -> Known:
    """Return the cost of the spectra of any matrices, which is that of their products.

    Args:
        operator: of the matrices.
        options: of the spectrum.
        memory_bytes: of this process; None for most of what is free.

    Returns:
        The plan; if runs stop by themselves, it states the largest cost.

    Raises:
        InputError: too few vectors fit into memory.
    """
    own = operator[operator.parts[0]]
    room = Room.beside(own, memory_bytes)
    if operator.objective is not None:
        sizes = sizes_of(operator.parts, operator.objective)
        own = operator.restrict([int(np.argmax(sizes))])
        with distributed.together():
            room = _room_of_largest(own, options, sorted(sizes, reverse=True), memory_bytes)
    runs = runs_of(own, options, room, lambda: options.most, lambda plan, place: plan.max_steps or 4 * plan.steps)
    v = probe(operator.size, seed=0, number=0).to(operator.device, operator.dtype)[None, None]
    work = Work(
        what=f"products with the {operator.name}",
        prepare=lambda n: lambda: own.matvec(v),
        times=runs.products,
        pieces=len(operator.parts),
        halve=arg("steps", options.n_steps // 2),
    )
    keeps = runs.kept * operator.size * operator.dtype.itemsize
    return Known(works=(work,), keeps=keeps, disk=16 * options.vectors * operator.size * len(operator.parts))


def _room_of_largest(own: Operator, options: Options, sizes: Sequence[int], memory_bytes: int | None) -> Room:
    """Return the room for the largest part of an objective, which all processes compute together, or one."""
    team, entry = distributed.team(), own.size * own.dtype.itemsize
    own_free = np.array(places.free(own.device, memory_bytes))
    free, most = team.least(own_free), -team.least(-own_free)

    def beside(of: Team) -> int:
        return own.keeps // of.size

    is_shared = jobs.n_shared(sizes, team.size) > 0 or needs_all(options, own.size, entry, free, beside, team)
    of = team if is_shared else ALONE
    room = room_of(free - [beside(of), 0], entry, of)
    if options.way(room, own.size) is Way.NONE:  # only others have the memory, by themselves
        return room_of(most - [beside(ALONE), 0], entry, ALONE)
    return room
