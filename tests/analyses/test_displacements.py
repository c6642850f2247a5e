"""What the Hessians of parts at points predict towards other points, against dense matrices of single samples."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from cases import CASES, hessian_by_double_backward, padded
from converged import run_of
from exact import dense_of_samples
from hard import Applied, layers, objective_of
from refusals import refused

import landscape as ls
from landscape.analyses.between import Run
from landscape.data.partition import Partition
from landscape.errors import NumericalError
from landscape.objective import points
from landscape.objective.points import Point


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_predicted_rises_have_the_mean_and_the_spread_of_those_of_samples(decay):
    parts = Partition.from_index(np.arange(15) // 6, ["0", "1", "2"])  # of 6, 6 and 3 samples
    objective = CASES["residual-relu"].objective(partition=parts, weight_decay=decay)
    run = run_of(objective)
    found = ls.distances(objective, [run], source="test", over="all", curvature=True)
    at = [p for p, _ in run.points.values()]
    for i, own in enumerate(([0], [2], [0, 1, 2])):  # points of parts 0 and 2, and one of no part
        here = points.objective_at(objective, at[i])
        shares = objective.counts[own] / objective.counts[own].sum()
        matrices = [dense_of_samples(here, p) for p in own]
        for j, other in enumerate(at):
            way = other.theta - at[i].theta
            each = [((m @ way) @ way).numpy() / 2 for m in matrices]
            rise = decay * (way @ way).item() / 2 + sum(s * x.mean() for s, x in zip(shares, each, strict=True))
            variance = sum(s**2 * x.var(ddof=1) / len(x) for s, x in zip(shares, each, strict=True))
            assert found.hessian_rise[0, i, j] == pytest.approx(rise, rel=1e-8, abs=1e-12)
            assert found.hessian_rise_stderr[0, i, j] == pytest.approx(variance**0.5, rel=1e-8, abs=1e-12)


def test_the_error_of_a_rise_is_unknown_for_one_sample_and_zero_towards_the_point_itself():
    objective = CASES["residual-relu"].objective()
    found = ls.distances(objective, [run_of(objective)], source="test", over="all", curvature=True)
    errors = found.hessian_rise_stderr[0]
    assert np.isfinite(errors[0]).all()
    assert np.isnan(errors[1, [0, 2]]).all()  # class 2 has one sample
    assert np.diag(errors).tolist() == np.diag(found.hessian_rise[0]).tolist() == [0, 0, 0]


def test_predicted_rises_by_a_second_derivative_that_is_not_the_losss_are_refused():
    """A gate that carries no gradient: its product is differentiated as if the gate were a constant."""
    objective = objective_of(partial(layers, Applied(lambda x: x * torch.sigmoid(x).data)), dtype=torch.float64)
    at = points.origin(objective)
    moved = replace(at, theta=1.1 * at.theta)
    run = Run(name="run", points={"0": (at, 0.0), "moved": (moved, 1.0)}, start=at)
    with refused(NumericalError, "second derivative"):
        ls.distances(objective, [run], source="test", over="all", curvature=True)
    ls.distances(objective, [run], source="test", over="all")


def test_predicted_rises_are_absent_by_default_and_depend_on_the_chosen_parameters():
    objective = CASES["residual-relu"].objective()
    run = run_of(objective)
    plain = ls.distances(objective, [run], source="test")
    assert plain.hessian_rise is None
    assert plain.hessian_rise_stderr is None
    encoder, every = (
        ls.distances(objective, [run], source="test", over=over, curvature=True) for over in ("encoder", "all")
    )
    assert not np.allclose(encoder.hessian_rise, every.hessian_rise)


@pytest.mark.parametrize("batch_size", [2, 5, 18])
def test_rises_by_the_hessian_hold_where_later_parts_have_padding_and_the_first_has_none(batch_size):
    objective = padded(batch_size)
    start = points.origin(objective)
    way = 0.1 * torch.randn(len(start.theta), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = {name: (Point(start.theta + k * way, start.buffers), float(k)) for k, name in enumerate("012")}
    found = ls.distances(objective, [Run(name="r", points=ends, start=start)], source="t", over="all", curvature=True)
    for k, (point, _) in enumerate(ends.values()):
        hessian = hessian_by_double_backward(points.objective_at(objective, point), k)
        for j in range(3):
            expected = (j - k) ** 2 * (way @ hessian @ way).item() / 2
            assert found.hessian_rise[0, k, j] == pytest.approx(expected, rel=1e-9, abs=1e-14)
