"""Distances between convergence points, against closed forms and loops."""

import dataclasses
from functools import cache, partial

import numpy as np
import pytest
import torch
from cases import CASES
from converged import run_of
from refusals import refused
from torch import nn

import landscape as ls
from landscape import plots
from landscape.analyses import convergence
from landscape.analyses.between import Run
from landscape.data import datasets
from landscape.errors import InputError, StoreError
from landscape.objective import points
from landscape.objective.evaluator import Evaluator
from landscape.objective.objective import Objective
from landscape.objective.points import Point
from landscape.plots.figures import distances as distances_figures


def test_distances_and_cosines_are_those_of_the_vectors():
    objective = CASES["residual-relu"].objective()
    run = run_of(objective)
    found = ls.distances(objective, [run], source="test", over="all")
    vectors = np.stack([p.theta.numpy() for p, _ in run.points.values()])
    moved = vectors - run.start.theta.numpy()
    for i in range(3):
        for j in range(3):
            assert found.euclidean[0, i, j] == pytest.approx(np.linalg.norm(vectors[i] - vectors[j]), abs=1e-12)
            cosine = moved[i] @ moved[j] / np.linalg.norm(moved[i]) / np.linalg.norm(moved[j])
            assert found.cosine[0, i, j] == pytest.approx(cosine, abs=1e-12)
    np.testing.assert_allclose(found.norm[0], np.linalg.norm(moved, axis=1))
    half = np.linalg.norm(vectors[0] - (vectors[0] + vectors[2]) / 2)
    assert found.along_training[0, 1, 0] == pytest.approx(half)
    assert found.along_training[0, 0, 2] == pytest.approx(0, abs=1e-12)
    assert found.size == objective.layout.size
    assert found.point_epoch[0, :2].tolist() == [3, 7]


def test_the_encoder_is_all_before_the_classifier():
    objective = CASES["residual-relu"].objective()
    found = ls.distances(objective, [run_of(objective)], source="test")
    sizes = dict(zip(objective.layout.names, objective.layout.sizes, strict=True))
    assert found.size == objective.layout.size - sizes["fc.weight"] - sizes["fc.bias"]
    keep = np.concatenate([np.full(n, not name.startswith("fc")) for name, n in sizes.items()])
    a, b = (p.theta.numpy()[keep] for p, _ in list(run_of(objective).points.values())[:2])
    assert found.euclidean[0, 0, 1] == pytest.approx(np.linalg.norm(a - b))


def test_filter_normalised_distances_do_not_see_the_scale_of_a_network():
    objective = CASES["mlp-relu"].objective()
    a, b = (points.origin(CASES["mlp-relu"].objective(seed=s)) for s in (1, 2))
    scaled = [Point(7 * p.theta, p.buffers) for p in (a, b)]
    found = [
        ls.distances(
            objective, [Run(name="r", points={"a": (x, 0.0), "b": (y, 0.0)}, start=a)], source="test", over="all"
        ).filter_normalised[0, 0, 1]
        for x, y in ((a, b), scaled)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-12)
    layout, values = objective.layout, []
    for x, y in zip(layout.tensors(a.theta), layout.tensors(b.theta), strict=True):
        rows = (x.reshape(len(x), -1), y.reshape(len(y), -1))
        apart = (rows[0] - rows[1]).norm(dim=1)
        values += (2 * apart / (rows[0].norm(dim=1) + rows[1].norm(dim=1))).tolist()
    assert found[0] == pytest.approx(np.sqrt(np.mean(np.square(values))), rel=1e-12)


def test_filters_that_are_zero_in_both_networks_count_as_equal_ones():
    objective = CASES["mlp-relu"].objective()
    a, b = (points.origin(CASES["mlp-relu"].objective(seed=s)) for s in (1, 2))
    squares = []
    for p in (a, b):
        objective.layout.tensors(p.theta)[0][0] = 0  # the first of five filters of the first layer
    for x, y in zip(objective.layout.tensors(a.theta), objective.layout.tensors(b.theta), strict=True):
        for row, other in zip(x.reshape(len(x), -1), y.reshape(len(y), -1), strict=True):
            mean = (row.norm() + other.norm()).item() / 2
            squares.append(((row - other).norm().item() / mean) ** 2 if mean else 0.0)
    assert squares[0] == 0
    run = Run(name="r", points={"a": (a, 0.0), "b": (b, 0.0)}, start=points.origin(objective))
    found = ls.distances(objective, [run], source="test", over="all").filter_normalised[0, 0, 1]
    assert found == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-12)


def test_fisher_weights_are_squared_gradients_of_the_parts_own_samples():
    objective = CASES["residual-relu"].objective()
    run = run_of(objective)
    found = ls.distances(objective, [run], source="test", over="all")
    (a, _), (b, _) = list(run.points.values())[:2]
    part = objective.part("0")
    squares = []
    buffers = points.buffer_layout(objective.model)
    fixed = dict(objective._fixed) | dict(zip(buffers.names, buffers.tensors(a.buffers), strict=True))
    at = dataclasses.replace(objective, _fixed=fixed)
    for i in objective.members[part]:
        inputs, labels = objective.samples.batch(np.array([i]), objective.device, objective.dtype)
        leaf = a.theta.clone().requires_grad_()
        (g,) = torch.autograd.grad(at.losses(at.layout.tensors(leaf), inputs, labels).sum(), leaf)
        squares.append((g.square() @ (a.theta - b.theta).square()).item())
    expected = np.sqrt(np.mean(squares))
    assert found.fisher[0, 0, 1] == pytest.approx(expected, rel=1e-8)
    error = np.std(squares, ddof=1) / np.sqrt(len(squares)) / (2 * expected)
    assert found.fisher_stderr[0, 0, 1] == pytest.approx(error, rel=1e-8)
    assert np.diag(found.fisher_stderr[0]).tolist() == [0] * len(found.points)
    assert found.fisher[0, 0, 1] != pytest.approx(found.fisher[0, 1, 0], rel=1e-3)  # each has a Fisher of its own


class Tokens(nn.Module):
    """Eight tokens of four numbers, of which a layer gets the first axis for the second."""

    def __init__(self, order):
        super().__init__()
        self.order = order
        self.inner, self.fc = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        if self.order == "tokens first":
            return self.fc(torch.tanh(self.inner(x.transpose(0, 1))).sum(0))
        if self.order == "reversed":
            return self.fc(torch.tanh(self.inner(x.flip(0))).flip(0).sum(1))
        shared = torch.tanh(self.inner(x)).sum(1) + torch.tanh(self.inner(x.flip(0))).flip(0).sum(1)
        return self.fc(shared)


class Recurrence(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.rnn = getattr(nn, kind)(4, 3, batch_first=True, **options)
        self.fc = nn.Linear(6 if self.rnn.bidirectional else 3, 3)

    def forward(self, x):
        return self.fc(self.rnn(x)[0][:, -1])


MODELS = {order: (partial(Tokens, order), torch.float64) for order in ("tokens first", "reversed")} | {
    "shared": (partial(Tokens, "shared"), torch.float32),
    "LSTM": (partial(Recurrence, "LSTM", num_layers=2, bidirectional=True), torch.float64),
    "GRU": (partial(Recurrence, "GRU", num_layers=2), torch.float32),
    "RNN": (partial(Recurrence, "RNN", bidirectional=True), torch.float64),
}


@pytest.mark.parametrize(("make", "dtype"), MODELS.values(), ids=MODELS)
def test_fishers_do_not_depend_on_the_batch_size_nor_on_the_layout_of_a_layer(make, dtype):
    """Against a backward pass for each sample; eight tokens, so that a batch of eight has as many."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(11, 8, 4, generator=generator), torch.arange(11) % 3
    torch.manual_seed(0)
    model, found = make(), []
    for batch_size in (8, 11):
        objective = Objective.build(
            model, datasets.from_dataset(data), partition="all", dtype=dtype, device="cpu", batch_size=batch_size
        )
        start = points.origin(objective)
        moved = Point(start.theta + 0.1, start.buffers)
        run = Run(name="r", points={"all": (start, 0.0), "other": (moved, 1.0)}, start=start)
        found.append(ls.distances(objective, [run], source="test", over="all").fisher[0, 0, 1])
    total = 0.0
    for x, y in zip(*objective.batch(0, 0), strict=True):
        leaves = [t.clone().requires_grad_() for t in objective.theta]
        total += (
            objective.layout
            .flat(torch.autograd.grad(objective.losses(leaves, x[None], y[None]).sum(), leaves))
            .double()
            .square()
        )
    expected = (total @ (moved.theta - start.theta).double().square() / 11).sqrt().item()
    np.testing.assert_allclose(found, expected, rtol=1e-5 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("batch_norm", ["log-interpolate", "interpolate"])
def test_losses_and_barriers_are_those_of_the_segments(batch_norm):
    objective = CASES["residual-relu"].objective()
    run = run_of(objective)
    found = ls.distances(objective, [run], source="test", barrier_points=3, batch_norm=batch_norm)
    evaluator = Evaluator(objective)
    at = [p for p, _ in run.points.values()]
    np.testing.assert_allclose(found.loss[0, 1], evaluator(at[1])[0], rtol=1e-12)
    t = np.linspace(0, 1, 5)
    layout = points.buffer_layout(objective.model)
    variance = torch.cat([
        torch.full((n,), name.endswith("running_var") and batch_norm == "log-interpolate")
        for name, n in zip(layout.names, layout.sizes, strict=True)
    ])

    def power(v, w, s):
        return (v + 1e-5) ** (1 - s) * (w + 1e-5) ** s - 1e-5

    expected = np.zeros_like(found.barrier[0])
    for i, a in enumerate(at):
        for j, b in enumerate(at):
            between = [
                Point(torch.lerp(a.theta, b.theta, s), torch.where(variance, power(v, w, s), torch.lerp(v, w, s)))
                for v, w in [(a.buffers, b.buffers)]
                for s in t
            ]
            line = np.stack([evaluator(point)[0] for point in between])
            expected[i, j] = np.maximum(line - ((1 - t)[:, None] * line[0] + t[:, None] * line[-1]), 0).max(0)
    np.testing.assert_allclose(found.barrier[0], expected, atol=1e-10)
    assert np.isnan(ls.distances(objective, [run], source="test").barrier).all()


def test_a_barrier_of_zero_has_the_error_of_the_rise_inside():
    """Losses along a straight path of a linear model with squared errors are convex: nothing rises."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(9, 3, generator=generator), torch.randn(9, 1, generator=generator)
    objective = ls.make_objective(nn.Linear(3, 1), (x, y), loss="mse", dtype=torch.float64)
    start = points.origin(objective)
    run = Run(
        name="r",
        points={"all": (start, 0.0), "other": (dataclasses.replace(start, theta=start.theta + 1), 1.0)},
        start=start,
    )
    found = ls.distances(objective, [run], source="test", over="all", barrier_points=3)
    assert found.barrier[0, 0, 1] == 0
    assert found.barrier_stderr[0, 0, 1] > 0


def test_barriers_follow_the_policy_for_batch_norm():
    objective = CASES["residual-relu"].objective()
    run = run_of(objective)
    found = ls.distances(objective, [run], source="test", barrier_points=1, batch_norm="reestimate", seed=5)
    evaluator = Evaluator(objective, batch_norm="reestimate", seed=5)
    a, b = (p for p, _ in list(run.points.values())[:2])
    ends, middle = (evaluator(p)[0] for p in (a, b)), Point(torch.lerp(a.theta, b.theta, 0.5), a.buffers)
    np.testing.assert_allclose(
        found.barrier[0, 0, 1], np.maximum(evaluator(middle)[0] - np.mean(list(ends), 0), 0), atol=1e-10
    )
    itself = ls.distances(objective, [run], source="test", barrier_points=1)
    np.testing.assert_array_equal(found.loss, itself.loss)  # at the points as they are
    assert not np.allclose(found.barrier, itself.barrier)


def test_runs_of_several_seeds_stand_side_by_side(tmp_path):
    objective = CASES["residual-relu"].objective()
    runs = [run_of(objective, "seed 0"), run_of(objective, "seed 1", seeds=(3, 4))]
    found = ls.distances(objective, runs, source="test", barrier_points=1, out=tmp_path / "d.h5")
    assert found.runs == ("seed 0", "seed 1")
    alone = ls.distances(objective, runs[1:], source="test")
    np.testing.assert_array_equal(found.euclidean[1], alone.euclidean[0])
    back = ls.load(tmp_path / "d.h5")
    np.testing.assert_array_equal(back.fisher, found.fisher)
    for kind, figure in plots.KIND_FIGURES["distances"].items():
        fig = figure(back)
        fig.draw_without_rendering()
        assert fig.axes, kind
    text = [t.get_text() for t in plots.distance_maps(back).axes[0].texts]
    order = distances_figures.clustered(back.euclidean.mean(0))
    mean, spread = back.euclidean.mean(0), back.euclidean.std(0, ddof=1)
    i, j = order[0], order[1]
    assert text[1] == f"{mean[i, j]:.3g}\n±{spread[i, j]:.1g}"
    with refused(InputError, "x", 0, 1, 2):
        plots.cross_losses(back, ["x"])


def test_distances_go_on_where_rounding_has_changed_points_that_were_computed(tmp_path):
    objective, out = CASES["residual-relu"].objective(), tmp_path / "d.h5"
    runs = [dataclasses.replace(run_of(objective, name), computed=("0", "2")) for name in ("a", "b")]
    at_once = ls.distances(objective, runs, source="test")
    with pytest.raises(KeyboardInterrupt):
        ls.distances(objective, runs, source="test", out=out, progress=interrupting("fisher at 2"))

    def moved(run, *names):
        changed = {n: (Point(run.points[n][0].theta * 1.001, run.points[n][0].buffers), 0.0) for n in names}
        return dataclasses.replace(run, points={**run.points, **changed})

    with refused(StoreError, "points"):
        ls.distances(objective, [runs[0], moved(runs[1], "final")], source="test", out=out)
    others = [moved(run, *run.computed) for run in runs]
    found = ls.distances(objective, others, source="test", out=out)
    np.testing.assert_array_equal(found.euclidean, at_once.euclidean)
    np.testing.assert_array_equal(found.fisher, at_once.fisher)


def tuned_run(objective):
    start = points.origin(objective)
    tuned = {part: convergence.Tuning(start=objective, part=part, epochs=1, lr=0.05, seed=3) for part in ("0", "2")}
    return Run(name="r", points={"start": (start, np.nan)}, start=start, tuned=tuned)


def test_points_that_are_trained_for_the_distances_are_those_of_the_training_alone():
    objective, seen = CASES["residual-relu"].objective(), []
    run = tuned_run(objective)
    found = ls.distances(objective, [run], source="test", barrier_points=1, settled=seen.extend)
    options = {"epochs": 1, "lr": 0.05, "seed": 3}
    alone = {part: (convergence.finetuned(objective, part, **options), np.nan) for part in ("0", "2")}
    given = dataclasses.replace(run, points={**alone, **run.points}, tuned={})
    expected = ls.distances(objective, [given], source="test", barrier_points=1)
    assert list(seen[0].points) == list(given.points) == list(found.points)
    for name, (point, _) in seen[0].points.items():
        assert torch.equal(point.theta, given.points[name][0].theta), name
    for item in dataclasses.fields(found):
        if item.name != "provenance":
            np.testing.assert_array_equal(getattr(found, item.name), getattr(expected, item.name), err_msg=item.name)
    assert found.provenance["options"]["vectors_sha256"] == expected.provenance["options"]["vectors_sha256"]


TUNED = {"source": "test", "barrier_points": 1, "curvature": True}


@cache
def at_once():
    """The distances of networks that are trained for them, by a run that is not interrupted."""
    objective = CASES["residual-relu"].objective()
    return ls.distances(objective, [tuned_run(objective)], **TUNED)


@pytest.mark.parametrize(("text", "left"), [("training on 2", ["2"]), ("from", []), ("at start", [])])
def test_distances_go_on_after_the_last_step_that_was_finished(tmp_path, monkeypatch, text, left):
    objective, out, trained, expected = CASES["residual-relu"].objective(), tmp_path / "d.h5", [], at_once()
    with pytest.raises(KeyboardInterrupt):
        ls.distances(objective, [tuned_run(objective)], **TUNED, out=out, progress=interrupting(text))
    real = convergence.finetuned
    monkeypatch.setattr(convergence, "finetuned", lambda *a, **k: trained.append(k["part"]) or real(*a, **k))
    other = dataclasses.replace(tuned_run(objective).tuned["2"], lr=0.04)
    changed = dataclasses.replace(tuned_run(objective), tuned={**tuned_run(objective).tuned, "2": other})
    with refused(StoreError, "0.05", "0.04"):
        ls.distances(objective, [changed], **TUNED, out=out)
    found = ls.distances(objective, [tuned_run(objective)], **TUNED, out=out)
    assert trained == left
    for item in dataclasses.fields(found):
        if item.name != "provenance":
            np.testing.assert_array_equal(getattr(found, item.name), getattr(expected, item.name), err_msg=item.name)


def interrupting(text):
    """Progress that is interrupted before the first step whose description begins so."""

    def told(done, total, now):
        if now.removeprefix("b: ").startswith(text):
            raise KeyboardInterrupt

    return told


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": {"1": None}}, (1, 0, 2)),
        ({"snapshots": ()}, ("a", "b", "epochs")),
        ({"name": "a"}, ("two",)),
    ],
)
def test_runs_that_do_not_compare_are_refused(change, message):
    objective = CASES["residual-relu"].objective()
    runs = [run_of(objective, "a"), dataclasses.replace(run_of(objective, "b"), **change)]
    with refused(InputError, *message):
        ls.distances(objective, runs, source="test")


def test_bad_options_are_refused():
    objective = CASES["residual-relu"].objective()
    for options, message in (
        ({"barrier_points": -1}, "barrier_points must not be negative, got -1"),
        ({"over": "decoder"}, r"over='decoder' is unknown: did you mean encoder\? choose encoder, all"),
    ):
        with pytest.raises(InputError, match=message):
            ls.distances(objective, [run_of(objective)], source="test", **options)
    with refused(InputError, "run"):
        ls.distances(objective, [], source="test")


@pytest.mark.parametrize("task", ["regression", "binary"])
def test_a_model_without_a_classifier_is_told_to_take_all_its_parameters(task):
    model, data = nn.Sequential(nn.Linear(3, 1)), (torch.randn(6, 3), torch.arange(6) % 2)
    objective = ls.make_objective(model, (data[0], data[1].float() if task == "regression" else data[1]), task=task)
    start = points.origin(objective)
    run = Run(
        name="run",
        points={"a": (start, np.nan), "b": (Point(start.theta + 1, start.buffers), np.nan)},
        start=Point(start.theta - 1, start.buffers),
        snapshots=[],
    )
    with refused(InputError, "over='all'", task, over="encoder"):
        ls.distances(objective, [run], source="test")
    assert np.isfinite(ls.distances(objective, [run], source="test", over="all").euclidean).all()


def test_points_that_lie_together_stand_together():
    places = np.array([0.0, 10.0, 0.1, 10.1, 0.2])
    order = distances_figures.clustered(np.abs(places[:, None] - places))
    near = [place < 5 for place in places[order]]
    assert near in ([True] * 3 + [False] * 2, [False] * 2 + [True] * 3)
