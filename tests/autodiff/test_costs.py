"""What a run would take: declared once by each, timed on a few samples, and nothing is written."""

import inspect
import itertools
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import CASES

import landscape as ls
import trainers
from landscape.analyses import convergence
from landscape.analyses.between import Run
from landscape.autodiff import costs, distributed
from landscape.data import datasets
from landscape.errors import InputError
from landscape.objective import jobs, pilot, points
from trainers import methods

ANALYSES = {
    "spectrum": lambda o, **k: ls.spectrum(o, steps=3, probes=2, backend="reverse", sampling_errors=False, **k),
    "surface": lambda o, **k: ls.surface(o, ls.directions.random(o, 1), [-1.0, 0.0, 1.0], **k),
    "surface1d": lambda o, **k: ls.surface1d(o, n=3, **k),
    "surface2d": lambda o, **k: ls.surface2d(o, n=3, **k),
    "trajectory": lambda o, **k: ls.trajectory(o, {"run": path(o)}, n=3, **k),
    "distances": lambda o, **k: ls.distances(o, [Run(name="run", points=path(o), start=points.origin(o))],
                                             source="test", over="all", **k),
    "gradients": lambda o, **k: ls.gradients(o, **k),
    "features": lambda o, **k: ls.features(o, **k),
    "sensitivity": lambda o, **k: ls.sensitivity(o, of="0", n=1, draws=1, **k),
    "series": lambda o, **k: ls.series(ls.surface1d, o, stages(o), n=3, **k),
    "sharpness": lambda o, **k: ls.sharpness(o, draws=1, ascent_steps=1, **k),
}  # fmt: skip


def path(objective):
    """Three checkpoints that are not on one line."""
    here = points.origin(objective)
    steps = np.random.default_rng(0).normal(size=(3, len(here.theta)))
    return {f"epoch-{k}": (points.Point(here.theta + here.theta.new_tensor(s), here.buffers), float(k))
            for k, s in enumerate(steps)}  # fmt: skip


@cache
def stages(objective):
    """Two checkpoints of its network."""
    folder = Path(tempfile.mkdtemp())
    for k in range(2):
        torch.save({n: t + 0.1 * k for n, t in objective.model.state_dict().items()}, folder / f"epoch-{k}.pt")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def objective():
    return CASES["mlp-tanh"].objective()


def test_every_analysis_is_tried_here():
    """Whatever writes a result by the one loop: a new one is to say what it takes."""
    writing = {name for name in ls.__all__ if name not in {"plots", "directions"} and "out" in parameters(name)}
    assert writing | {"surface1d", "surface2d"} == set(ANALYSES)


def parameters(name):
    found = getattr(ls, name)
    return inspect.signature(found).parameters if inspect.isfunction(found) else {}


@pytest.mark.parametrize("name", ANALYSES)
def test_costs_are_known_beforehand_and_nothing_is_written(objective, name, tmp_path):
    found = ls.estimate(ANALYSES[name], objective, out=tmp_path / "result.h5")
    assert list(tmp_path.iterdir()) == []
    assert found.seconds > 0
    assert found.memory > 0
    assert found.disk > 0
    assert all(cost.seconds > 0 and cost.times > 0 for cost in found.costs)


def test_steps_are_timed_on_samples_of_the_largest_part():
    labels = torch.tensor([0] * 2 + [1] * 20 + [2] * 5)
    objective = ls.make_objective(torch.nn.Linear(4, 3), (torch.zeros(27, 4), labels), parts="class")
    small = pilot.few(objective, [3, 30])
    assert [small.samples.labels[index].tolist() for index in small.members] == [[1] * 3, [1] * 30]


def test_products_are_as_many_as_are_taken(objective):
    def run(**options):
        return ls.spectrum(objective, steps=4, probes=3, backend="reverse", trace="probes", **options)

    found = {cost.what: cost.times for cost in ls.estimate(run).costs}
    assert found["products with the hessian"] == run().steps.sum()


def test_the_overlap_is_over_all_samples_also_where_few_are_drawn(objective):
    options = {"vectors": 1, "overlap": True, "backend": "reverse", "samples": 2}
    with costs.asking() as plans:
        ls.spectrum(objective, **options)
    works = {work.what: work for work in plans[0].works}
    assert works["products with the hessian"].samples == 2
    assert works["products for the overlap"].samples == pilot.mean_count(objective)
    assert costs.measured(plans).seconds > 0


@pytest.mark.parametrize(("world", "expected"), [(1, 1.0), (2, 1.6), (10, 8.0)])
def test_processes_are_expected_to_lose_time_by_waiting_for_each_other(objective, monkeypatch, world, expected):
    asked = []
    monkeypatch.setattr(distributed, "world", lambda: world)
    monkeypatch.setattr(distributed, "of_main", lambda found: found)
    monkeypatch.setattr(costs, "measured", lambda plans, *, ranks: asked.append(ranks))
    ls.estimate(ls.gradients, objective)
    assert asked == [expected]


def test_a_training_is_not_begun_and_its_network_stays(tmp_path):
    recipe = methods.recipe("gsa-gkp", dataset="digits-lt", model="small-resnet", epochs=5, groups=2, batch_size=64)
    found = ls.estimate(trainers.train, None, None, recipe, out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    n = len(datasets.load("digits-lt"))
    steps = [cost.times for cost in found.costs if cost.what.startswith("steps")]
    assert sum(steps) == 5 * -(-n // 64)
    assert len(steps) == 2  # before and with groups


def test_a_stage_that_is_left_out_is_counted_too(objective):
    def both():
        ended = convergence.finetuned(objective, "0", epochs=2, batch_size=4)
        assert ended.theta.equal(points.origin(objective).theta)
        ls.surface1d(objective, n=3)

    found = {cost.what: cost.times for cost in ls.estimate(both).costs}
    assert found["steps of the training on parts"] == 2 * 3  # 9 samples by 4
    assert found["points, each a pass over all samples"] == 3 + 1


def test_what_does_not_say_its_costs_is_refused_before_it_begins(objective):
    with pytest.raises(InputError, match="cost"):
        ls.estimate(lambda: jobs.run(["a"], lambda unit, report: None))
    with pytest.raises(InputError, match="cost"):
        ls.estimate(lambda: None)


# The straight line ----------------------------------------------------------------------------------------------------


def clocked(fixed, each, first):
    """A step that takes fixed + each * n seconds of a clock, and more when it is taken first; and the clock."""
    now = [0.0]

    def prepare(n):
        taken = itertools.count()

        def step():
            now[0] += fixed + each * n + (first * n if next(taken) == 0 else 0)

        return step

    return prepare, lambda: now[0]


@pytest.mark.parametrize("samples", [1, 7, 16, 1000])
def test_time_is_a_straight_line_over_samples_and_first_steps_may_be_dearer(samples):
    prepare, clock = clocked(3.0, 0.5, 2.0)
    work = costs.Work(what="steps", prepare=prepare, times=10, pieces=4, samples=samples, batch=8)
    found = costs.measured([costs.Known(works=[work])], clock=clock)
    warm = costs.warming(samples)
    expected = 4 * (10 * (3 + 0.5 * samples) + 2 * samples) + 3 + 2.5 * warm
    assert found.seconds == pytest.approx(expected)
    assert found.costs[0].times == 40


def test_unequal_pieces_are_timed_at_a_small_and_a_large_one():
    assert costs.sizes(42, 64, 124) == (21, 124)
    assert costs.sizes(42, 64, 42) == costs.sizes(42, 64) == (42,)
    assert costs.sizes(200, 64, 300) == (64, 128)
    prepare, clock = clocked(3.0, 0.5, 0.0)
    work = costs.Work(what="steps", prepare=prepare, times=2, pieces=3, samples=42, most=124, batch=64)
    found = costs.measured([costs.Known(works=[work])], clock=clock)
    assert found.seconds == pytest.approx(3 * 2 * (3 + 0.5 * 42) + 3 + 0.5 * 2)


def test_what_stages_have_in_common_counts_once_and_ranks_share():
    prepare, clock = clocked(1.0, 0.0, 0.0)
    plan = costs.Known(
        works=[costs.Work(what="pass", prepare=prepare, common=True), costs.Work(what="steps", prepare=prepare)],
        keeps=5,
        disk=7,
    )
    found = costs.measured([plan, plan], ranks=2, clock=clock)
    assert {cost.what: cost.seconds for cost in found.costs} == {"pass": 0.5, "steps": 1.0}
    assert found.disk == 14


def test_what_one_rank_does_alone_is_not_divided():
    prepare, clock = clocked(1.0, 0.0, 0.0)
    works = [costs.Work(what=str(divided), prepare=prepare, divided=divided) for divided in (True, False)]
    found = costs.measured([costs.Known(works=works)], ranks=2, clock=clock)
    assert {cost.what: cost.seconds for cost in found.costs} == {"True": 0.5, "False": 1.0}
