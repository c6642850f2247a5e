"""Spectra of operators and of matrices that are no network's: the same numbers, figures and files."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from interruptions import Interrupting
from refusals import refused
from scipy.sparse.linalg import LinearOperator, aslinearoperator

import landscape as ls
from landscape.cli import main
from landscape.curvature.kinds import KINDS
from landscape.errors import InputError, StoreError
from tests.cases import CASES
from tests.exact import dense

SIZE = 40


def symmetric(seed, size=SIZE):
    A = np.random.default_rng(seed).normal(size=(size, size))
    return A @ A.T / size - 0.5 * np.eye(size)


STACK = np.stack([symmetric(0), symmetric(1)])
FULL = {"steps": SIZE, "probes": 2}


@pytest.mark.parametrize("trace", ["exact", "probes"])
def test_a_stack_of_matrices_has_its_eigenvalues_and_traces(trace):
    found = ls.spectrum(STACK, trace=trace, top=3, vectors=2, **FULL)
    assert (found.parts, found.size, found.operator, found.symbol) == (("0", "1"), SIZE, "matrix", "A")
    for p, A in enumerate(STACK):
        exact = np.linalg.eigvalsh(A)
        assert np.allclose(found.ritz_values[p], exact[::-1][:3], atol=1e-10)
        assert found.lambda_min[p] == pytest.approx(exact[0], abs=1e-10)
        assert np.allclose(A @ found.ritz_vectors[p].T, found.ritz_vectors[p].T * found.ritz_values[p, :2], atol=1e-8)
        if trace == "exact":
            assert (found.trace[p], found.trace_stderr[p]) == (pytest.approx(exact.sum()), 0)
        else:
            assert 0 < abs(found.trace[p] - exact.sum()) < 4 * found.trace_stderr[p]


@pytest.mark.parametrize("form", [aslinearoperator, torch.as_tensor, ls.matrix, lambda A: A[None]])
def test_every_form_of_a_matrix_gives_the_same_spectrum(form):
    expected = ls.spectrum(STACK, trace="probes", **FULL)
    found = ls.spectrum(form(STACK[0]), trace="probes", **FULL)
    assert np.allclose(found.alpha[0], expected.alpha[0], atol=1e-12)
    assert found.trace[0] == pytest.approx(expected.trace[0], abs=1e-12)


def test_what_only_data_have_is_nan_and_nothing_else():
    found = ls.spectrum(STACK, steps=5, probes=2)
    unknown = {
        n for n in ("n_samples", "n_used", "train_counts", "loss", "accuracy") if np.isnan(getattr(found, n)).all()
    }
    assert unknown == {"n_samples", "n_used", "train_counts", "loss", "accuracy"}
    for item in dataclasses.fields(found):
        value = getattr(found, item.name)
        if (
            item.name not in unknown
            and isinstance(value, np.ndarray)
            and item.name not in ("ritz_values", "ritz_residuals")
        ):
            assert np.isfinite(value).all(), item.name
    assert {"created", "versions", "options", "dtype", "matrix_sha256"} <= set(found.provenance)


@pytest.mark.parametrize("n", [1, 3, 30])
def test_figures_of_matrices_say_nothing_of_samples(n):
    stack = np.stack([symmetric(seed, 8) for seed in range(n)])
    found = ls.spectrum(ls.matrix(stack, symbol="K"), steps=4, probes=2)
    for figure in (ls.plots.densities(found), ls.plots.summary(found), ls.plots.density(found, "0").figure):
        figure.draw_without_rendering()
        text = " ".join(t.get_text() for t in figure.findobj(match=lambda a: hasattr(a, "get_text")))
        assert "nan" not in text
        assert "n =" not in text
        assert "K" in text


def test_files_of_matrices_are_read_shown_compared_and_reported(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, stack in (("a.h5", STACK), ("b.h5", 2 * STACK)):
        ls.spectrum(stack, steps=6, probes=2, out=name)
    assert np.array_equal(ls.load("a.h5").alpha, ls.spectrum(STACK, steps=6, probes=2).alpha)
    assert main(["info", "a.h5"]) == 0
    shown = capsys.readouterr().out
    assert "nan" not in shown.split("options")[0]
    assert "samples" not in shown.split("options")[0]
    assert main(["compare", "a.h5", "b.h5"]) == 0
    assert main(["plot", "a.h5", "--out", "a.png"]) == 0
    assert main(["report", "a.h5", "b.h5", "--out", "page.html"]) == 0
    text = re.sub(r"data:[^\"]*", "", (tmp_path / "page.html").read_text().split("<script", 1)[0])  # without figures
    assert "NaN" not in text
    with pytest.raises(InputError, match="weights need the samples of each part"):
        ls.regroup(ls.load("a.h5"), {"both": ["0", "1"]})


@pytest.mark.parametrize(
    ("make", "other", "given"),
    [
        (lambda: STACK, STACK + np.eye(SIZE), {}),
        (lambda: {"a": aslinearoperator(STACK[0]), "b": aslinearoperator(STACK[1])}, None, {"fingerprint": "run 7"}),
    ],
    ids=["dense", "products"],
)
def test_a_matrix_that_is_known_by_a_fingerprint_is_resumed(tmp_path, make, other, given):
    out, options = tmp_path / "out.h5", {"steps": 5, "probes": 2, **given}
    expected = ls.spectrum(make(), **options)
    with pytest.raises(KeyboardInterrupt):
        ls.spectrum(make(), out=out, **options, progress=Interrupting(1))
    with pytest.raises(StoreError, match="was begun"):
        ls.spectrum(
            make() if other is None else other, out=out, **(options | ({"fingerprint": "8"} if other is None else {}))
        )
    missing = Interrupting()
    found = ls.spectrum(make(), out=out, **options, progress=missing)
    assert len(missing.units) == 1
    assert np.array_equal(found.alpha, expected.alpha)
    assert np.array_equal(ls.load(out).alpha, expected.alpha)


def test_parts_may_be_called_like_options(tmp_path):
    """Neither hides the other: matrices of the parts distinguish runs, and so does the seed."""
    out, named = tmp_path / "out.h5", {"seed": STACK[0], "versions": STACK[1]}
    options = {"steps": 5, "probes": 2}
    with pytest.raises(KeyboardInterrupt):
        ls.spectrum(named, out=out, **options, progress=Interrupting(1))
    with refused(StoreError, 7, seed=0):
        ls.spectrum(named, out=out, seed=7, **options)
    with pytest.raises(StoreError, match="was begun"):
        ls.spectrum(named | {"seed": STACK[1]}, out=out, **options)
    assert "torch" in ls.spectrum(named, out=out, **options).provenance["versions"]


def test_products_without_a_fingerprint_keep_nothing_and_write_the_result(tmp_path):
    out, stack = tmp_path / "out.h5", {"a": aslinearoperator(STACK[0]), "b": aslinearoperator(STACK[1])}
    with pytest.raises(KeyboardInterrupt):
        ls.spectrum(stack, steps=4, probes=1, out=out, progress=Interrupting(1))
    assert not list(tmp_path.iterdir())
    found = ls.spectrum(stack, steps=4, probes=1, out=out)
    assert [path.name for path in tmp_path.iterdir()] == ["out.h5"]
    assert np.array_equal(ls.load(out).alpha, found.alpha)
    calls = []
    with pytest.raises(StoreError, match="exists"):
        ls.spectrum(LinearOperator((4, 4), matvec=lambda v: calls.append(1) or v, dtype=float), steps=2, out=out)
    assert len(calls) <= 2  # the check of symmetry, and nothing after it


def test_an_objectives_operator_gives_the_spectrum_of_its_objective():
    objective = CASES["mlp-tanh"].objective()
    by_products = {"method": "lanczos", "sampling_errors": False}  # as an operator alone is known
    expected = ls.spectrum(objective, operator="ggn", steps=8, probes=2, backend="reverse", **by_products)
    operator = ls.curvature_operator(objective, "ggn", backend="reverse")
    found = ls.spectrum(operator, steps=8, probes=2)
    for item in dataclasses.fields(found):
        if item.name != "provenance":
            value, wanted = getattr(found, item.name), getattr(expected, item.name)
            np.testing.assert_equal(value, wanted, item.name)
    last = operator["2"]  # whose position among its own parts is another one
    assert ls.estimate(ls.spectrum, last, steps=8, probes=2).costs[0].times == 8 * 2
    assert ls.spectrum(last, steps=8, probes=2).loss[0] == expected.loss[2]
    one = ls.spectrum(operator["1"], steps=8, probes=2)
    assert one.parts == ("1",)
    assert np.array_equal(one.alpha[0], expected.alpha[1], equal_nan=True)
    assert one.loss[0] == expected.loss[1]


def test_the_residual_is_a_matrix_of_its_own():
    objective = CASES["mlp-tanh"].objective(batch_size=9)
    H, G = (ls.curvature_operator(objective, kind, backend="reverse") for kind in ("hessian", "ggn"))
    options = {"steps": 45, "probes": 2}
    found = ls.spectrum(objective, operator="residual", **options, backend="reverse", sampling_errors=False)
    difference = ls.spectrum(H - G, **options)
    assert (found.operator, found.symbol) == ("residual", "R")
    assert (difference.operator, difference.symbol) == ("hessian - ggn", "H - G")
    for p in range(3):
        exact = torch.linalg.eigvalsh(dense(objective, p, "residual"))
        for one in (found, difference):
            assert one.lambda_max[p] == pytest.approx(exact[-1].item(), rel=1e-8)
            assert one.lambda_min[p] == pytest.approx(exact[0].item(), rel=1e-8)
            assert abs(one.trace[p] - exact.sum().item()) < 4 * one.trace_stderr[p]


def test_the_residuals_trace_is_zero_for_a_network_of_relus_and_unknown_for_others():
    options = {"operator": "residual", "trace": "exact", "steps": 2, "probes": 1, "backend": "reverse"}
    found = ls.spectrum(CASES["residual-relu"].objective(), **options)
    assert found.trace.tolist() == [0, 0, 0]
    assert dense(CASES["residual-relu"].objective(), 0, "residual").trace().abs() < 1e-12
    with pytest.raises(InputError, match="not known to be piecewise linear"):
        ls.spectrum(CASES["mlp-tanh"].objective(), **options)


@pytest.mark.parametrize("method", ["rows", "lanczos"])
def test_a_kind_of_ones_own_is_taken_as_the_registered_ones_are(method):
    own = dataclasses.replace(KINDS["ggn"], name="mine", symbol="M")
    objective = CASES["mlp-tanh"].objective()
    found = ls.spectrum(objective, operator=own, steps=4, probes=1, backend="reverse", method=method)
    assert (found.operator, found.symbol) == ("mine", "M")
    expected = ls.spectrum(objective, operator="ggn", steps=4, probes=1, backend="reverse", method=method)
    assert np.array_equal(found.ritz_values, expected.ritz_values, equal_nan=True)
    assert (found.alpha is not None) == (method == "lanczos")
    if found.alpha is not None:
        assert np.array_equal(found.alpha, expected.alpha, equal_nan=True)


@pytest.mark.parametrize(
    "options",
    [{"operator": "ggn"}, {"backend": "reverse"}, {"cache_bytes": 0}, {"samples": 9}, {"overlap": True}],
)
def test_options_of_objectives_are_refused_for_matrices(options):
    with refused(InputError, next(iter(options))):
        ls.spectrum(STACK, **options)
