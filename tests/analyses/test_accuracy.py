"""As many samples as an error asks for, against the matrices of all samples."""

import contextvars

import hungry
import numpy as np
import pytest
import torch
from interruptions import Interrupting
from refusals import refused
from torch import nn

import landscape as ls
from landscape.analyses import accuracy
from landscape.analyses import samples as of_samples
from landscape.data import datasets
from landscape.errors import InputError
from landscape.objective import jobs
from landscape.objective.objective import Objective

SIZES = (900, 40)


@pytest.fixture(scope="module")
def objective():
    """A class of many samples that are nearly all fitted, and one of few."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=p.dtype)
    model[2].weight.data *= 4
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(SIZES)])
    inputs = torch.randn(len(labels), 4, generator=generator, dtype=torch.float64)
    samples = datasets.from_dataset((inputs, labels), name="case")
    return Objective.build(model, samples, partition="class", dtype=torch.float64, batch_size=256, device="cpu")


@pytest.mark.parametrize(("operator", "seeds"), [("hessian", 2), ("ggn", 6)])
def test_the_error_that_is_asked_for_is_met_by_few_samples_and_holds(objective, operator, seeds):
    whole, wanted = ls.spectrum(objective, operator=operator, backend="reverse"), 0.25
    off = {"lambda_max": [], "trace": []}
    for seed in range(seeds):
        found = ls.spectrum(objective, operator=operator, accuracy=wanted, seed=seed, backend="reverse")
        assert 20 < found.n_used[0] < accuracy.WORTH * SIZES[0]
        assert found.n_used[1] == SIZES[1]
        for name, values in off.items():
            value, error, exact = (getattr(s, n) for s, n in ((found, name), (found, f"{name}_error"), (whole, name)))
            assert error[0] <= 1.1 * wanted * value[0]  # lambda_max of H has other products than the pilot's rows
            assert abs(value[1] - exact[1]) <= error[1] + 1e-9 * exact[1]  # no draw, no error of one
            assert error[1] <= wanted / 4 * exact[1]
            values.append((value[0] - exact[0]) / exact[0])
    for values in off.values():
        assert np.sqrt(np.mean(np.square(values))) < wanted
        assert np.std(values) > 0  # a draw it is


@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_the_error_of_the_draw_is_known_also_where_those_over_samples_are_left_out(objective, operator):
    options = {
        "operator": operator,
        "accuracy": 0.25,
        "method": "lanczos",
        "trace": "probes",
        "seed": 1,
        "backend": "reverse",
    }
    with_errors, found = (ls.spectrum(objective, **options, sampling_errors=own) for own in (True, False))
    assert found.sample_trace is None
    for name in ("lambda_max_error", "trace_error"):
        np.testing.assert_allclose(getattr(found, name), getattr(with_errors, name), rtol=0.1)
    assert found.lambda_max_error[0] > 0.02 * found.lambda_max[0]
    assert found.trace_error[0] > 0.02 * found.trace[0]


def test_the_error_of_the_draw_is_known_also_where_there_are_too_many_rows(objective, monkeypatch):
    options = {"operator": "ggn", "accuracy": 0.25, "seed": 1, "ggn_tol": 0}
    expected = ls.spectrum(objective, **options)
    most = expected.n_used[0] - 1  # not all, but enough for the pilot
    monkeypatch.setattr(of_samples, "are_worth_it", lambda objective, n, n_rows, *_: n_rows <= most)
    for sampling_errors in (True, False):
        found = ls.spectrum(objective, **options, sampling_errors=sampling_errors)
        assert np.isnan(found.eigenvalue_above[0])  # products replace the rows
        assert found.n_used[0] == expected.n_used[0]
        for name in ("lambda_max_error", "trace_error"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0.1, err_msg=name)


def test_a_part_that_would_need_most_of_its_samples_is_taken_whole(objective):
    found = ls.spectrum(objective, operator="ggn", accuracy=0.0005)
    assert found.n_used.tolist() == list(SIZES)
    assert (found.trace_error == 0).all()
    assert (found.lambda_max_error <= 0.0005 * found.lambda_max).all()


@pytest.mark.parametrize("wanted", [0.3, 0.005])
def test_rows_leave_out_a_twentieth_of_the_accuracy_and_not_much_less(objective, wanted):
    found = ls.spectrum(objective, operator="ggn", accuracy=wanted)
    left = np.maximum(found.eigenvalue_above, found.eigenvalue_below) - found.eigenvalue_rounding
    assert (left <= wanted / 20 * found.lambda_max).all()
    assert left.max() > wanted / 200 * found.lambda_max.max()
    given = ls.spectrum(objective, operator="ggn", accuracy=wanted, ggn_tol=0)
    np.testing.assert_allclose(given.eigenvalue_above, given.eigenvalue_rounding, rtol=1e-9)


def test_a_matrix_without_traces_of_samples_takes_all(objective):
    found = ls.spectrum(objective, operator="residual", accuracy=0.2)
    assert found.n_used.tolist() == list(SIZES)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"accuracy": 0.0}, ("accuracy",)),
        ({"accuracy": 0.1, "samples": 9}, ("accuracy",)),
        ({"accuracy": 0.1, "operator": "fisher"}, ("accuracy",)),
    ],
)
def test_what_does_not_go_together_is_refused(objective, options, words):
    with refused(InputError, *words):
        ls.spectrum(objective, **options)
    with refused(InputError, "accuracy"):
        ls.spectrum(np.eye(3), accuracy=0.1)


@pytest.mark.parametrize("operator", ["ggn", "hessian"])
def test_an_interrupted_run_has_its_pilots(objective, operator, tmp_path, monkeypatch):
    # private: the pilots of an interrupted run leave no other trace than that they are not made again
    made, pilots = accuracy._of_part, []

    def counted(*given):
        pilots.append(given[2])
        return made(*given)

    def stop(found):
        raise KeyboardInterrupt

    monkeypatch.setattr(accuracy, "_of_part", counted)
    options = {"operator": operator, "accuracy": 0.25, "backend": "reverse"}
    wanted = options | {"out": tmp_path / "a.h5"}
    with pytest.raises(jobs.Interrupted):
        ls.spectrum(objective, **wanted, finished=stop)
    assert pilots == [0, 1]
    found = ls.spectrum(objective, **wanted)
    assert pilots == [0, 1]
    plain = ls.spectrum(objective, **options)  # the Hessian's last pilot is not computed again
    np.testing.assert_array_equal(found.sample_index, plain.sample_index)
    for name in ("lambda_max", "trace", "lambda_max_error", "trace_error", "sample_curvature", "gram"):
        np.testing.assert_allclose(getattr(found, name), getattr(plain, name), rtol=1e-12, err_msg=name)


def test_memory_may_run_out_before_the_first_draw():
    expected, found = (
        contextvars.copy_context().run(ls.spectrum, hungry.objective(most, partition="all"), accuracy=0.3)
        for most in (100, 3)  # in a context of its own, which alone keeps in mind that memory has run out
    )
    np.testing.assert_allclose(found.trace, expected.trace, rtol=1e-9)


def test_an_interrupted_run_has_the_numbers_of_one_that_was_not(tmp_path):
    """With more outputs than a few, of which random combinations of rows are measured: those of the pilot again."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(400, 5, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 20))
    with torch.no_grad():
        model[2].weight *= 8
        labels = model(inputs).argmax(1)
    parts = ["a"] * 200 + ["b"] * 200

    def run(name, progress=None):
        made = ls.make_objective(model, (inputs, labels), parts=parts, device="cpu")
        return ls.spectrum(made, accuracy=0.4, backend="reverse", out=tmp_path / name, progress=progress)

    expected = run("whole.h5")
    assert (expected.n_used < 200).all()
    with pytest.raises(jobs.Interrupted):
        run("cut.h5", Interrupting(after=2))  # after the draws of both
    found = run("cut.h5")
    np.testing.assert_array_equal(found.sample_index, expected.sample_index)
    for name in ("trace", "trace_stderr", "trace_sampling_stderr", "sample_trace"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-5, err_msg=name)
