"""Rows of all parts in one file, against the matrices that they stand for."""

import dataclasses

import numpy as np
import pytest
import sampled
import torch
from cases import CASES
from exact import dense
from refusals import refused
from stored import assert_same
from torch import nn

import landscape as ls
from landscape.analyses import pooled
from landscape.errors import InputError
from landscape.objective import points
from landscape.objective.points import Point
from landscape.results.axes import concatenate
from landscape.results.pool import overlap, pool

LEFT_OUT = 0.05  # so that these small networks, too, leave something out


@pytest.fixture(scope="module", params=["residual-relu", "mlp-tanh"])
def case(request):
    objective = CASES[request.param].objective()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pooled, "LEFT_OUT", (LEFT_OUT,))
        return objective, ls.spectrum(objective, operator="ggn")


def test_any_weighting_of_the_samples_is_the_matrix_of_that_loss_within_what_is_left_out(case):
    objective, found = case
    matrices = [dense(objective, p, "ggn").numpy() for p in range(3)]
    for parts, shares in (((0, 1, 2), (0.2, 0.5, 0.3)), ((2, 0), (0.9, 0.1)), ((1,), (1.0,))):
        together = pool(found, parts)
        weights = sum(share * together.of(k) for k, share in enumerate(shares))
        matrix = sum(share * matrices[p] for p, share in zip(parts, shares, strict=True))
        largest, left = np.linalg.eigvalsh(matrix)[-1], together.left_out(weights)
        off, rounding = largest - together.gram.top(weights)[0], 1e-12 * largest
        assert 0 <= left <= LEFT_OUT * np.trace(matrix)
        assert -rounding <= off <= left + rounding


def test_rows_that_leave_out_nothing_leave_no_less_for_rounding():
    rng = np.random.default_rng(0)
    found = sampled.of_rows(sampled.rows(rng, 5), sampled.rows(rng, 3))
    rounded = dataclasses.replace(found, sample_trace=found.sample_trace * (1 - 1e-7), eigenvalue_below=None)
    assert pool(rounded, (0, 1)).left_out(np.full(8, 1 / 8)) == 0
    joined = ls.regroup(rounded, {"both": list(found.parts)})
    assert joined.lambda_max_above == 0
    below = dataclasses.replace(rounded, eigenvalue_below=np.array([0.1, 0.3]))  # negative rows that are left out
    assert ls.regroup(below, {"both": list(found.parts)}).lambda_max_above == pytest.approx((5 * 0.1 + 3 * 0.3) / 8)


def test_overlap_by_rows_is_that_of_products(case):
    objective, found = case
    everything = ls.spectrum(objective, operator="ggn")
    for vectors in (1, 2):
        by_products = ls.spectrum(
            objective,
            operator="ggn",
            vectors=vectors,
            overlap=True,
            ggn_tol=0,
            backend="reverse",
            sampling_errors=False,
        )
        np.testing.assert_allclose(overlap(found, vectors=vectors), by_products.overlap, atol=2 * LEFT_OUT)
        np.testing.assert_allclose(overlap(everything, vectors=vectors), by_products.overlap, atol=1e-3)
        np.testing.assert_allclose(overlap(found, vectors=vectors).diagonal(), 1)


def test_groups_have_their_own_lambda_max_without_another_pass(case):
    objective, found = case
    groups = {"two": [found.parts[0], found.parts[2]], "all": list(found.parts), "one": [found.parts[1]]}
    for weights in ("natural", "balanced"):
        joined = ls.regroup(found, groups, weights)
        for g, names in enumerate(groups.values()):
            parts = [found.parts.index(name) for name in names]
            share = found.n_samples[parts] if weights == "natural" else np.ones(len(parts))
            matrix = sum(
                s / share.sum() * dense(objective, p, "ggn").numpy() for s, p in zip(share, parts, strict=True)
            )
            off = np.linalg.eigvalsh(matrix)[-1] - joined.lambda_max[g]
            assert -1e-12 <= off <= joined.lambda_max_above[g] + 1e-12
    assert joined.trace_sampling_stderr[2] == pytest.approx(found.trace_sampling_stderr[1], rel=1e-10)
    assert joined.lambda_max_sampling_stderr[2] == pytest.approx(found.lambda_max_sampling_stderr[1], rel=0.05)
    assert np.isnan(joined.trace_sampling_stderr[:2]).all()  # a part of one sample cannot tell its own spread
    two = ls.regroup(found[list(found.parts)[:2]], {"a": list(found.parts[:2])}, "balanced").trace_sampling_stderr
    assert two[0] == pytest.approx(np.hypot(*found.trace_sampling_stderr[:2]) / 2)


def test_a_choice_of_parts_takes_their_rows_along_and_joining_leaves_them_out(case):
    _, found = case
    chosen, whole = pool(found[[found.parts[2], found.parts[0]]], (1, 0)), pool(found, (0, 2))
    assert_same(dataclasses.replace(chosen, gram=None), dataclasses.replace(whole, gram=None))
    assert_same(chosen.gram, whole.gram)
    assert len(whole.gram.sample) < len(found.gram)
    assert concatenate([found[found.parts[0]], found[found.parts[1]]]).gram is None
    assert concatenate([found]).gram is found.gram


def test_a_part_whose_rows_are_not_in_the_file_has_no_lambda_max_in_a_pool(case):
    """Instead of one of zero; the rows of the others stay."""
    _, found = case
    own = np.isin(found.gram_part, (0, 2))
    few = {name: getattr(found, name)[own] for name in ("gram_part", "gram_sample", "gram_sign")}
    left = dataclasses.replace(found, gram=found.gram[np.ix_(own, own)], **few)
    assert_same(pool(left, (0, 2)).gram, pool(found, (0, 2)).gram)
    assert pool(left, (0, 1)).gram is None
    groups = {"a": [found.parts[0]], "b": [found.parts[1]], "c": [found.parts[0], found.parts[2]]}
    some, every = ls.regroup(left, groups), ls.regroup(found, groups)
    for name in ("lambda_max", "lambda_max_above", "lambda_max_sampling_stderr"):
        expected = np.where([False, True, False], np.nan, getattr(every, name))
        np.testing.assert_array_equal(getattr(some, name), expected)
    np.testing.assert_array_equal(some.trace, every.trace)
    nothing = dataclasses.replace(
        left,
        sample_trace=np.where(np.arange(len(found.parts))[:, None] == 1, 0 * found.sample_trace, found.sample_trace),
    )
    assert pool(nothing, (0, 1)).gram is not None


def fitted():
    """Large weights: some samples are certain and others not, so that draws have weights."""
    objective = CASES["mlp-tanh"].objective()
    centre = points.origin(objective)
    return points.objective_at(objective, Point(5 * centre.theta, centre.buffers))


def test_rows_of_weighted_draws_stand_for_the_whole(tmp_path):
    objective = fitted()
    path = tmp_path / "a.h5"
    found = ls.spectrum(objective, steps=5, probes=1, samples=4, out=path)
    assert_same(ls.load(path), found)
    together = pool(found, range(3))
    for p in range(3):
        weights = together.of(p)
        assert weights @ together.gram.traces + together.left_out(weights) == pytest.approx(
            weights @ together.traces, rel=1e-12
        )
        drawn = ls.spectrum(objective, operator="ggn", samples=4, ggn_tol=0)
        left = together.left_out(weights) + 1e-9
        assert 0 <= drawn.lambda_max[p] - together.gram.top(weights)[0] + 1e-9 <= 2 * left


def test_overlap_of_weighted_draws_weighs_each_draw():
    found = ls.spectrum(fitted(), operator="ggn", samples=4)
    together = pool(found, range(3))
    assert np.ptp(together.weights[together.part == 0]) > 0
    values, vectors = np.linalg.eigh(together.gram.products)
    rows = vectors * np.sqrt(np.maximum(values, 0))  # as vectors with these products
    matrices = [(rows.T * together.of(p)[together.gram.sample]) @ rows for p in range(3)]
    tops = [np.linalg.eigh(matrix)[1][:, -1] for matrix in matrices]
    forms = np.array([[v @ matrix @ v for matrix in matrices] for v in tops])
    np.testing.assert_allclose(overlap(found), forms / forms.diagonal(), rtol=1e-6, atol=1e-9)


def test_too_many_rows_are_left_out_and_said(monkeypatch, caplog):
    objective = CASES["mlp-tanh"].objective()
    caplog.set_level("INFO")
    two_rows = 2 * objective.layout.size * objective.dtype.itemsize
    assert ls.spectrum(objective, operator="ggn", cache_bytes=two_rows, steps=3, probes=1).gram is None
    caplog.clear()
    monkeypatch.setattr(pooled, "MOST_ROWS", 2)
    found = ls.spectrum(objective, operator="ggn")
    assert found.gram is None
    assert "too many" in caplog.text
    assert pool(found, (0,)).gram is None
    with refused(InputError, "rows"):
        overlap(found)


def six_outputs():
    """Two parts of 24 samples, of more outputs than all rows are measured for."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(48, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(6, (48,), generator=generator)
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6)).double()
    parts = ls.Partition.from_index(np.arange(48) % 2, ["even", "odd"])
    return ls.make_objective(model, (inputs, labels), parts=parts, dtype="float64")


@pytest.mark.parametrize(
    ("make", "operator"), [(CASES["mlp-tanh"].objective, "ggn"), (six_outputs, "hessian")], ids=["all", "estimated"]
)
def test_an_interrupted_run_gives_the_same_rows(make, operator, tmp_path):
    objective = make()
    whole = ls.spectrum(objective, operator=operator)
    path = tmp_path / "a.h5"
    assert (whole.trace_stderr > 0).all() == (operator == "hessian")  # only then rows were left out

    def stop(done, total, text):
        if text.startswith("products of the rows"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ls.spectrum(objective, operator=operator, out=path, progress=stop)
    again = ls.spectrum(objective, operator=operator, out=path)
    for name in ("gram", "gram_part", "gram_sample", "gram_sign", "trace"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
