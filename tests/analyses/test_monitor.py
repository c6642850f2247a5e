"""A monitor in a training: it leaves no trace, and measures what analyses and closed forms say."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

import landscape as ls
from landscape.analyses import descent, monitor
from landscape.analyses.untouched import untouched
from landscape.curvature import traces
from landscape.errors import InputError, NumericalError, StoreError

X = torch.randn(24, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.tensor([0] * 14 + [1] * 7 + [2] * 3)
QUICK = {"backend": "reverse"}


def network(dropout=0.0):
    torch.manual_seed(0)
    first = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(dropout)
    return nn.Sequential(*first, nn.Linear(5, 3)).double()


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9} | options)


def objective(model, parts="class", **options):
    return ls.make_objective(model, (X, Y), parts=parts, dtype="float64", **options)


def train(watched, out=None):
    """Steps of a model with dropout and batch norm, which draw random numbers; what is left of them."""
    model = network(dropout=0.5)
    optimizer = sgd(model)
    if watched:
        watch = ls.Monitor(objective(model), optimizer, every=2, batch_size=8, batches=2, out=out, **QUICK)
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # ruff: ignore[numpy-legacy-random]  # what a user's code draws from
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()
        if watched:
            watch.step()
    if watched:
        assert watch.series.training_step.tolist() == [2]
    return {
        "weights": [t.clone() for t in model.state_dict().values()],
        "gradients": [p.grad.clone() for p in model.parameters()],
        "momentum": [s["momentum_buffer"].clone() for s in optimizer.state.values()],
        "training": [m.training for m in model.modules()] + [p.requires_grad for p in model.parameters()],
        "random": (torch.get_rng_state().tolist(), random.random(), np.random.random()),  # ruff: ignore[numpy-legacy-random]
        "modes": (torch.is_grad_enabled(), torch.get_num_threads(), torch.get_default_dtype()),
        "hooks": [len(m._forward_hooks) for m in model.modules()],
    }


def test_a_training_with_a_monitor_is_that_without_one_bit_for_bit(tmp_path):
    plain, watched = train(watched=False), train(watched=True, out=tmp_path / "monitor.h5")
    for name, own in plain.items():
        for a, b in zip(own, watched[name], strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, name


def drawn():
    """The next number of each generator that a user's code may draw from."""
    return torch.rand(()).item(), random.random(), np.random.random()  # ruff: ignore[numpy-legacy-random]


def test_what_a_measurement_draws_is_given_back():
    np.random.seed(1)  # ruff: ignore[numpy-legacy-random]
    random.seed(1)
    torch.manual_seed(1)
    with untouched():
        inside = drawn()
    assert drawn() == inside
    assert drawn() != inside


def test_a_step_that_is_measured_again_has_one_measurement():
    model = network()
    watch = ls.Monitor(objective(model), what=["batch_sharpness"], batch_size=8, batches=1)
    for step in (2, 3, 3):
        watch.measure(step)
    assert watch.series.training_step.tolist() == [2, 3]


@pytest.fixture(scope="module")
def measured():
    """A measurement in the middle of a training, and the model as it was then."""
    model = network()
    optimizer = sgd(model)
    watch = ls.Monitor(objective(model), optimizer, samples=None, batch_size=100, batches=2, **QUICK)
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()
    found = watch.measure(4, epoch=0.5)
    return found, copy.deepcopy(model)


def dense(model):
    """Gradient and Hessian of each part and the whole at a model in eval mode, by torch.func."""
    here = objective(model, "all")
    theta = here.layout.flat(list(here.theta))
    numbers = []
    for rows in (slice(None), Y == 0, Y == 1, Y == 2):

        def loss(t, rows=rows):
            return here.losses(here.layout.tensors(t), X[rows], Y[rows]).mean()

        numbers.append((torch.func.grad(loss)(theta), torch.func.hessian(loss)(theta)))
    return numbers


def test_spectra_are_those_of_the_analysis_bit_for_bit(measured):
    found, model = measured
    assert found.parts == ("all", "0", "1", "2")
    options = {"sampling_errors": False, "tol": 0.05, "gap": 0.25, **QUICK}  # tanh: probes
    alone = ls.spectrum(objective(model, "all"), vectors=1, **options)  # alignment needs its vector
    classes = ls.spectrum(objective(model), **options)
    for name in ("lambda_max", "trace", "trace_stderr", "lambda_min", "lambda_max_residual", "loss", "accuracy"):
        expected = np.concatenate([getattr(alone, name), getattr(classes, name)])
        np.testing.assert_array_equal(getattr(found, name)[0], expected, err_msg=name)


def test_traces_of_networks_that_allow_it_are_sampled(monkeypatch):
    monkeypatch.setattr(traces, "_ALL", 1)  # private: of so few rows all would be computed
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    found = ls.Monitor(objective(model), what=["trace"], samples=None, **QUICK).measure()
    expected = ls.spectrum(objective(model), sampling_errors=False, tol=0.05, gap=0.25, trace="sampled", **QUICK)
    assert (expected.trace_stderr > 0).any()
    np.testing.assert_array_equal(found.trace[0, 1:], expected.trace)


def test_lambda_max_alignment_and_batch_sharpness_are_those_of_dense_matrices(measured):
    found, model = measured
    numbers = dense(model)
    values, vectors = torch.linalg.eigh(numbers[0][1])
    for p, (g, H) in enumerate(numbers):
        off = abs(float(torch.linalg.eigvalsh(H)[-1]) - found.lambda_max[0, p])
        assert off <= found.lambda_max_residual[0, p] + 1e-9
        expected = abs(float(g @ vectors[:, -1])) / float(g.norm())
        # A residual r turns the vector by r / gap at most (Davis and Kahan).
        turned = float(found.lambda_max_residual[0, 0] / (values[-1] - values[-2]))
        assert abs(found.alignment[0, p] - expected) <= 2 * turned + 1e-9
    g, H = numbers[0]
    np.testing.assert_allclose(found.batch_sharpness, float(g @ H @ g / (g @ g)), rtol=1e-9)
    np.testing.assert_allclose(found.batch_sharpness_stderr, 0, atol=1e-12)  # each batch is all samples


def test_the_edge_is_that_of_the_optimizer(measured):
    found, _ = measured
    np.testing.assert_allclose([found.learning_rate[0], found.edge[0]], [0.1, 38.0])
    assert (found.epoch[0], found.training_step[0]) == (0.5, 4)


class Wrapper:
    """As accelerate's: it has the groups of an optimizer, whose steps it calls."""

    def __init__(self, optimizer):
        self.optimizer, self.param_groups = optimizer, optimizer.param_groups


@pytest.mark.parametrize("wrap", [lambda own: own, Wrapper])
def test_the_learning_rate_is_that_of_the_latest_step_and_not_what_a_scheduler_makes_of_it(wrap):
    model = network()
    optimizer = sgd(model)
    watch = ls.Monitor(objective(model), every=1, what=["batch_sharpness"], batches=1)
    watch.optimizer = wrap(optimizer)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=4)
    rates = [watch.measure(0).learning_rate[0]]
    for _ in range(4):
        nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()
        schedule.step()
        rates.append(watch.step().learning_rate[0])
    assert optimizer.param_groups[0]["lr"] == 0
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.075, 0.05, 0.025])
    watch.optimizer = sgd(model, lr=0.5)  # steps of the other one no longer count
    optimizer.step()
    assert watch.measure(4).learning_rate.tolist() == [0.5]


def regression():
    """A loss that is a parabola: critical sharpness has a closed form."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1, bias=False).double()
    targets = X.sum(1, keepdim=True) + X[:, :1].sin()
    parts = ["b" if y else "a" for y in Y.tolist()]
    made = ls.make_objective(model, (X, targets), parts=parts, task="regression", dtype="float64")
    return model.weight[0].detach(), targets[:, 0], made


@pytest.mark.parametrize("first", [1e-2, 1.0, 30.0])
def test_critical_sharpness_of_a_parabola_is_the_closed_form(first):
    theta, targets, parts = regression()
    some = [parts.alone("all"), parts]
    slopes = descent.slopes(some, None)
    g, found = slopes.whole, descent.critical_sharpness(some, slopes, first)
    for value, rows in zip(found, (slice(None), Y == 0, Y > 0), strict=True):
        x, y = X[rows], targets[rows]
        own, H = 2 * x.T @ (x @ theta - y) / len(x), 2 * x.T @ x / len(x)
        assert value == pytest.approx(float(g @ H @ g / (own @ g)), rel=1e-8)


def test_what_any_step_harms_is_infinite_and_what_none_does_is_zero():
    # private: limits of the formula that no small network reaches
    _, _, parts = regression()
    assert descent._critical(parts.alone("a"), torch.zeros(4), 1.0, 0.0, 1.0) == np.inf
    assert descent._crossing(2.0, [0.5, 1.0], [-1.0, -0.5]) == 0
    assert descent._crossing(1.0, [1.0, 2.0], [-0.5, 0.5]) == pytest.approx(2 / 1.5)
    assert np.isfinite(descent._crossing(1.0, [1.0, 2.0], [-0.5, np.nan]))


def test_what_float32_has_not_the_digits_for_is_measured_in_float64(monkeypatch, caplog):
    def refuses(own, **options):
        if own.dtype == torch.float32:
            raise NumericalError("the matrix is not symmetric")
        return ls.spectrum(own, **options)

    monkeypatch.setattr(monitor, "spectrum", refuses)
    model, data = network().float(), (X.float(), Y)
    made = {dtype: ls.make_objective(model, data, parts="class", dtype=dtype) for dtype in ("float32", "float64")}
    found = ls.Monitor(made["float32"], what=["lambda_max", "critical_sharpness"], samples=None, **QUICK).measure()
    expected = ls.spectrum(made["float64"], sampling_errors=False, tol=0.05, gap=0.25, **QUICK)
    np.testing.assert_array_equal(found.lambda_max[0, 1:], expected.lambda_max)
    assert "step 0 is measured in float64: the matrix is not symmetric" in caplog.text
    assert made["float32"].dtype == next(model.parameters()).dtype == torch.float32


def test_only_what_is_asked_for_is_measured(monkeypatch):
    monkeypatch.setattr(monitor, "spectrum", None)
    model = network()
    found = ls.Monitor(objective(model), what=["critical_sharpness"], samples=5).measure()
    assert np.isnan(found.lambda_max).all()
    assert found.critical_sharpness.shape == (1, 4)
    assert found.alignment is None
    assert found.n_samples.tolist() == [10, 5, 5, 3]
    assert np.isnan(found.edge).all()


def test_the_measure_of_a_task_is_known_without_a_spectrum_too():
    model, inputs = nn.Linear(4, 1).double(), X[:, :4]
    targets = inputs.sum(1).exp()
    made = ls.make_objective(model, (inputs, targets), parts="quantiles:2", dtype="float64")
    found = ls.Monitor(made, what=["critical_sharpness"], samples=None).measure()
    errors = (model(inputs)[:, 0] - targets).square().detach().numpy()
    low = targets.numpy() <= np.median(targets)
    expected = [errors.mean(), errors[low].mean(), errors[~low].mean()]
    np.testing.assert_allclose(found.mean_squared_error[0], expected, rtol=1e-9)
    assert found.accuracy is None or np.isnan(found.accuracy).all()


def test_the_file_grows_and_a_training_that_goes_on_continues_it(tmp_path):
    out, model = tmp_path / "monitor.h5", network()
    options = {"what": ["batch_sharpness"], "every": 1, "out": out, "batches": 1}
    watch = ls.Monitor(lambda: objective(model), model=model, **options)
    with pytest.raises(InputError, match="nothing is measured yet"):
        _ = watch.series
    for k in range(1, 4):
        watch.step()
        assert ls.load(out).training_step.tolist() == list(range(1, k + 1))
    with pytest.raises(StoreError, match="exists"):
        ls.Monitor(objective(model), **options)
    taken = ls.load(out).provenance["measuring"]
    assert 0 < taken["seconds"] < taken["of"]
    assert "3 measurements" in repr(watch)
    assert repr(watch).endswith("the next at step 4")
    again = ls.Monitor(objective(model), start=2, **options)  # the third step is done once more
    again.step(3)
    again.step(3)  # batches whose gradients are gathered
    again.step(4)
    assert ls.load(out).training_step.tolist() == [1, 2, 3, 4]
    other = ls.Monitor(objective(model, "head-tail"), start=4, **options)
    with pytest.raises(StoreError, match=r"was made with .*repeat the former"):
        other.step()
    assert ls.load(out).training_step.tolist() == [1, 2, 3, 4]


def test_without_every_it_measures_at_the_first_step_and_after_each_twenty_epochs(monkeypatch):
    model = network()
    measurement = ls.Monitor(objective(model), what=["batch_sharpness"], batches=1).measure(0)
    monkeypatch.setattr(ls.Monitor, "_found", lambda self, epoch: measurement)
    watch = ls.Monitor(objective(model), batch_size=12)  # two steps in an epoch of 24 samples
    assert [step for step in range(1, 101) if watch.step(step) is not None] == [1, 40, 80]
    assert repr(watch).endswith("; the next at step 120")
    gathering = ls.Monitor(objective(model), batch_size=12)  # a batch only adds to the gradients: no step was taken
    assert [step for step in (0, 0, 1, 1, 2) if gathering.step(step) is not None] == [1]
    skipping = ls.Monitor(objective(model), batch_size=12)
    assert [step for step in (30, 60, 70, 130) if skipping.step(step) is not None] == [30, 60, 130]


def test_batches_larger_than_what_fits_at_once_have_the_same_sharpness():
    model = network()
    whole, pieces = objective(model, "all"), objective(model, "all", batch_size=7)
    np.testing.assert_allclose(
        descent.batch_sharpness(whole, 20, 2, 0), descent.batch_sharpness(pieces, 20, 2, 0), rtol=1e-9
    )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"what": ["lambda"]}, "did you mean lambda_max"),
        ({"what": []}, "is empty"),
        ({"every": 0}, "every must be at least 1"),
        ({"samples": 1}, "samples must be at least 2"),
        ({"tolerance": 0.1}, "tolerance is no option"),
        ({"out": "a\0b.h5"}, "is no name of a file"),
    ],
)
def test_options_out_of_their_range_are_refused(options, match):
    with pytest.raises((InputError, StoreError), match=match):
        ls.Monitor(objective(network()), **options)


def test_another_network_or_one_that_is_gone_is_refused():
    with pytest.raises(InputError, match="weight differs from that of the objective's model"):
        ls.Monitor(objective(network()), model=nn.Linear(4, 3), what=["batch_sharpness"]).measure()
    with pytest.raises(InputError, match="no longer exists: pass model"):
        ls.Monitor(objective(network()), what=["batch_sharpness"]).measure()


QUICKEST = {"what": ["batch_sharpness"], "batches": 1, "every": 1}


def test_what_a_training_changes_beside_the_weights_is_measured():
    model = network()
    watch = ls.Monitor(objective(model), **QUICKEST)
    watch.step()
    model[2] = nn.ReLU()
    model[1].eps = 10.0
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))  # as one that records activations
    found = watch.step()
    expected = nn.functional.cross_entropy(copy.deepcopy(model).eval()(X), Y).detach()
    assert found.loss[0, 0] == pytest.approx(float(expected))
    assert len(calls) == 1
    model[4] = nn.Linear(5, 4).double()
    with pytest.raises(InputError, match="give the same architecture"):
        watch.step()


def test_a_file_that_something_else_has_written_is_kept(tmp_path):
    model, out = network(), tmp_path / "monitor.h5"
    first, second = (ls.Monitor(objective(model), out=out, **QUICKEST) for _ in range(2))
    first.step()
    with pytest.raises(StoreError, match="a file of its own"):
        second.step(7)
    assert ls.load(out).training_step.tolist() == [1]
    assert second.series.training_step.tolist() == [7]
    out.unlink()
    first.step()  # nothing is lost by it
    assert ls.load(out).training_step.tolist() == [1, 2]
    out.write_text("notes")
    with pytest.raises(StoreError, match="a file of its own"):
        first.step()
    assert out.read_text() == "notes"


def test_a_training_continues_with_the_same_options(tmp_path):
    model, out = network(), tmp_path / "monitor.h5"
    ls.Monitor(objective(model), out=out, **QUICKEST).step()
    ls.Monitor(objective(model), out=out, start=1, **QUICKEST | {"every": 2}).step()
    for options in ({"seed": 1}, {"what": ["batch_sharpness", "trace"]}, {"operator": "ggn"}):
        watch = ls.Monitor(objective(model), out=out, start=2, **QUICKEST | options)
        with pytest.raises(StoreError, match=f"was made with {next(iter(options))} .*repeat the former"):
            watch.step()
    assert ls.load(out).training_step.tolist() == [1, 2]


def test_a_series_of_checkpoints_is_not_continued(tmp_path):
    model, out = network(), tmp_path / "series.h5"
    torch.save({"model": model.state_dict(), "epoch": 1}, tmp_path / "epoch-1.pt")
    ls.series(ls.spectrum, objective(model), tmp_path / "epoch-1.pt", out=out, steps=2, probes=2, **QUICK)
    with pytest.raises(StoreError, match="no measurements of a monitor"):
        ls.Monitor(objective(model), out=out, start=3, **QUICKEST)


@pytest.mark.parametrize(
    ("step", "epoch", "match"),
    [(4, None, "step must be from 5"), (2**60, None, r"to 2\^53"), (6, -1.0, "epoch must"), (6, np.inf, "epoch must")],
)
def test_a_place_in_training_that_cannot_be_is_refused(step, epoch, match):
    model = network()
    watch = ls.Monitor(objective(model), **QUICKEST)
    watch.measure(5)
    with pytest.raises(InputError, match=match):
        watch.measure(step, epoch=epoch)
    assert watch.series.training_step.tolist() == [5]


def test_a_function_that_returns_no_objective_is_refused():
    with pytest.raises(InputError, match="returned NoneType"):
        ls.Monitor(lambda: None, every=1).step()


def test_a_measurement_inside_inference_mode_is_the_same():
    model = network()
    watch = ls.Monitor(objective(model), **QUICKEST)
    outside = watch.step()
    with torch.inference_mode():
        inside = watch.step()
    np.testing.assert_array_equal(inside.batch_sharpness, outside.batch_sharpness)


@pytest.mark.parametrize("momentum", [None, "0.9"])
def test_a_momentum_that_is_no_number_gives_no_edge(momentum):
    model = network()
    optimizer = sgd(model)
    optimizer.param_groups[0]["momentum"] = momentum
    assert np.isnan(ls.Monitor(objective(model), optimizer, **QUICKEST).step().edge).all()


def test_parts_by_rows_are_measured_beside_all_samples_with_too_many_rows():
    model = network()
    own = objective(model)
    options = {"operator": "ggn", "density": True, "steps": 4, "probes": 1, "ggn_tol": 0.0, "what": ["trace"], **QUICK}
    found = ls.Monitor(own, every=1, **options, cache_bytes=40 * 8 * max(own.layout.sizes)).step()  # 40 rows of 48
    assert [found.last.ran(p) for p in range(4)] == [True, False, False, False]
