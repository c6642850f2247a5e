"""Every analysis of a task without classes: numbers or a reason, and no accuracy."""

import copy

import numpy as np
import pytest
import torch
from task_cases import cases

import landscape as ls
from landscape.analyses.between import Run
from landscape.errors import InputError
from landscape.objective.points import Point, of_network, origin
from landscape.report import rows
from landscape.results import columns
from landscape.results.measures import MEASURES

CASES = cases()


def objective_of(case):
    return ls.make_objective(case.model, case.data, parts=[i % 2 for i in range(9)], dtype="float64", **case.options)


def loss_at(case, objective, point):
    """Return the mean loss of both parts of the case's own model at a point, by the loss written out by hand."""
    model = copy.deepcopy(case.model)
    torch.nn.utils.vector_to_parameters(point, model.parameters())
    values = case.loss(model(*case.args, **case.kwargs), case.targets).detach().numpy()
    return np.array([values[::2].mean(), values[1::2].mean()])


@pytest.mark.parametrize("name", ["regression, one output", "multi-label, dict", "the model's own loss"])
def test_analyses_of_points_have_the_losses_of_the_networks_there_and_no_accuracy(name, tmp_path):
    case = CASES[name]
    objective = objective_of(case)
    plane = ls.directions.random(objective, 2)
    surface = ls.surface(objective, plane, [-1.0, 0.0, 1.0], [-1.0, 0.5])
    theta = objective.layout.flat(objective.theta)
    step = torch.from_numpy(np.asarray(plane.theta if hasattr(plane, "theta") else plane.directions)).double()
    expected = loss_at(case, objective, theta + step[0] - step[1])
    np.testing.assert_allclose(surface.loss[:, 0, 2], expected, rtol=1e-9)
    assert surface.accuracy is None
    assert surface.centre_accuracy is None
    ls.save(tmp_path / "surface.h5", surface)
    assert ls.load(tmp_path / "surface.h5").accuracy is None
    assert not any("accuracy" in name for name in surface.to_dataframe().columns)
    ls.plots.surface(surface)
    with pytest.raises(InputError, match="no accuracy"):
        ls.plots.surface_accuracy(surface)
    moved = {
        str(k): (Point(theta + k * step[0] + k * k * step[1], origin(objective).buffers), float(k)) for k in range(3)
    }
    trajectory = ls.trajectory(objective, {"run": moved}, n=3)
    np.testing.assert_allclose(trajectory.mark_loss[1], loss_at(case, objective, theta + step[0] + step[1]), rtol=1e-9)
    assert trajectory.mark_accuracy is None
    ls.plots.trajectory(trajectory)
    sharpness = ls.sharpness(objective, draws=2)
    assert sharpness.accuracy is None
    assert np.isfinite(sharpness.worst_rise).all()
    with pytest.raises(InputError, match="have no classes"):
        ls.features(objective)


@pytest.mark.parametrize("name", ["tokens, embedding and attention", "triplets, a tuple in and out"])
def test_gradients_and_distances_take_any_loss(name):
    case = CASES[name]
    objective = objective_of(case)
    for p in case.model.parameters():
        p.grad = None
    values = case.loss(case.model(*case.args, **case.kwargs), case.targets)
    g = torch.cat([t.reshape(-1) for t in torch.autograd.grad(values[::2].mean(), tuple(case.model.parameters()))])
    assert ls.gradients(objective).norm[-1, 0] == pytest.approx(g.norm().item(), rel=1e-9)
    assert np.isfinite(ls.gradients(objective, batches=2).norm).all()
    other = copy.deepcopy(objective.model)
    with torch.no_grad():
        next(iter(other.parameters())).add_(0.1)
    runs = [
        Run(
            name="r",
            points={"0": (origin(objective), 0.0), "1": (of_network(objective, other), 0.0)},
            start=origin(objective),
        )
    ]
    apart = ls.distances(objective, runs, source="by hand", over="all", barrier_points=1)
    assert apart.accuracy is None
    np.testing.assert_allclose(apart.loss[0, 0], [values[::2].mean().item(), values[1::2].mean().item()], rtol=1e-9)


def test_draws_with_weights_stand_for_all_samples_of_a_regression():
    """With as many draws as samples none is left out: the numbers are those of all."""
    case = CASES["regression, several outputs"]
    objective = objective_of(case)
    options = {"steps": 20, "probes": 1, "backend": "reverse"}
    whole, drawn = (ls.spectrum(objective, samples=n, **options) for n in (None, 9))
    np.testing.assert_allclose(drawn.lambda_max, whole.lambda_max, rtol=1e-6)


def by_hand(name, out, y):
    """Return sums and numbers of units of a case's measures, sample by sample, by loops over plain numbers."""
    if name.startswith("regression"):
        return {"mean_squared_error": [(np.mean((o - t) ** 2), 1) for o, t in zip(out, y, strict=True)]}
    if name.startswith("multi-label"):
        said = [[v > 0 for v in row] for row in out]
        pairs = [[(int(s), int(t > 0.5)) for s, t in zip(*rows, strict=True)] for rows in zip(said, y, strict=True)]
        return {"f1": [(2 * sum(s and t for s, t in row), sum(s + t for s, t in row)) for row in pairs]}
    logits = np.moveaxis(out, 1, -1) if name == "pixels" else out
    rows = []
    for o, t in zip(logits, y, strict=True):
        z, kept = o.reshape(-1, o.shape[-1]), t.reshape(-1)
        z, kept = (z[:-1], kept[1:]) if name == "next token" else (z, kept)
        losses = [np.log(np.exp(v).sum()) - v[c] for v, c in zip(z, kept, strict=True) if c != -100]
        hits = [int(np.argmax(v) == c) for v, c in zip(z, kept, strict=True) if c != -100]
        rows.append((sum(losses), sum(hits), len(hits)))
    return {"perplexity": [(a, n) for a, _, n in rows], "token_accuracy": [(b, n) for _, b, n in rows]}


@pytest.mark.parametrize(
    "name",
    ["regression, several outputs", "multi-label, dict", "tokens, embedding and attention", "pixels", "next token"],
)
def test_measures_are_kept_with_what_they_are_over_and_those_of_groups_follow(name, tmp_path):
    case = CASES[name]
    objective = objective_of(case)
    out, y = case.model(*case.args, **case.kwargs).detach().numpy(), case.targets.numpy()
    options = {"density": False, "sampling_errors": False, "trace": "probes", "tol": 0.5, "backend": "reverse"}
    ls.save(tmp_path / "s.h5", ls.spectrum(objective, **options))
    found = ls.load(tmp_path / "s.h5", ls.Spectrum)
    whole = ls.regroup(found, "all")
    for field, sums in by_hand(name, out, y).items():
        sums = np.array(sums, dtype=float)
        function = np.exp if field == "perplexity" else np.asarray
        counts = {"f1": "n_labels", "perplexity": "n_tokens", "token_accuracy": "n_tokens"}
        for p in range(2):
            total = sums[p::2].sum(0)
            assert getattr(found, field)[p] == pytest.approx(function(total[0] / total[1]), rel=1e-12)
            own = sums[p::2]
            without = [function(left[0] / left[1]) for left in (np.delete(own, i, 0).sum(0) for i in range(len(own)))]
            error = np.sqrt((len(own) - 1) ** 2 / len(own)) * np.std(without, ddof=1)
            if field in ("f1", "token_accuracy") and total[0] in (0, total[1]):
                error = np.nan
            stated = getattr(found, f"{field}_stderr")
            assert stated[p] == pytest.approx(error, rel=1e-9, nan_ok=True)
            if field in counts:
                assert getattr(found, counts[field])[p] == total[1]
        assert getattr(whole, field)[0] == pytest.approx(function(sums[:, 0].sum() / sums[:, 1].sum()), rel=1e-12)
        units = np.array([sums[::2, 1].sum(), sums[1::2, 1].sum()])
        slopes = getattr(found, field) if field == "perplexity" else np.ones(2)
        means = np.log(slopes) if field == "perplexity" else getattr(found, field)
        n, share = np.array([len(sums[::2]), len(sums[1::2])]), units / units.sum()
        within, between = (n - 1) * (stated / slopes) ** 2, (means - share @ means) ** 2
        expected = np.sqrt((share**2 * (within + between) / n).sum() * n.sum() / (n.sum() - 1))
        expected *= getattr(whole, field)[0] if field == "perplexity" else 1
        assert getattr(whole, f"{field}_stderr")[0] == pytest.approx(expected, rel=1e-9, nan_ok=True)
        if np.ptp(sums[:, 1]) == 0 and field != "perplexity" and not np.isnan(expected):  # one part's, exactly
            assert expected == pytest.approx((sums[:, 0] / sums[:, 1]).std(ddof=1) / np.sqrt(len(sums)), rel=1e-9)
        assert field in found.to_dataframe().columns
        measure = next(m for m in MEASURES if m.field == field)
        assert any(measure.name in head for head in columns.table(found)[0])
        # With weights a unit weighs as much as the sample that it is of.
        halves = ls.regroup(found, "all", weights={"0": 1, "1": 3})
        each = np.array([1 / 5, 3 / 4])  # of a sample of each of the parts, which have five and four
        weighted = (each[:, None] * [sums[::2].sum(0), sums[1::2].sum(0)]).sum(0)
        assert getattr(halves, field)[0] == pytest.approx(function(weighted[0] / weighted[1]), rel=1e-12)
    assert found.accuracy is None


def test_measures_stand_in_results_at_the_checkpoint_and_their_tables(tmp_path):
    objective = objective_of(CASES["regression, one output"])
    expected = objective.evaluation.measures["mean squared error"]
    line = ls.surface(objective, ls.directions.random(objective, 1), [0.0, 1.0])
    for result in (line, ls.sharpness(objective, draws=1, ascent_steps=1)):
        np.testing.assert_array_equal(result.mean_squared_error, expected)
        assert "mean squared error ± samples" in columns.table(result)[0]
        np.testing.assert_allclose(result.mean_squared_error_stderr, line.centre_loss_stderr, rtol=1e-9)
        assert result.perplexity is None
    whole = ls.regroup(line, "all")
    np.testing.assert_allclose(whole.mean_squared_error_stderr, whole.centre_loss_stderr, rtol=1e-9)
    assert "mean squared error" in [c.heading for c in rows.COLUMNS]
