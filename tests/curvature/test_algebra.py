"""Operators as values: vectors of every shape, sums, parts and SciPy, against dense matrices."""

from functools import partial
from typing import get_args

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh

import landscape as ls
from landscape.curvature.kinds import KINDS, KindName
from landscape.errors import InputError
from tests.cases import CASES
from tests.exact import dense

NAMES = ("0", "1", "2")


@pytest.fixture(scope="module")
def objective():
    return CASES["residual-gelu"].objective()


@pytest.fixture(scope="module")
def hessian(objective):
    return ls.curvature_operator(objective, backend="reverse")


@pytest.fixture(scope="module")
def exact(objective):
    return torch.stack([dense(objective, part) for part in range(3)])


def vectors(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def close(found, expected):
    return np.linalg.norm(np.asarray(found) - np.asarray(expected)) < 1e-9 * np.linalg.norm(np.asarray(expected))


@pytest.mark.parametrize("form", [torch.Tensor.clone, torch.Tensor.numpy], ids=["tensor", "array"])
def test_vectors_for_all_parts_keep_their_shape_and_their_type(hessian, exact, form):
    size = hessian.size
    assert hessian.shape == (3, size, size)
    for shape, expected in (
        ((size,), "pij,j->pi"),
        ((3, size), "pij,pj->pi"),
        ((3, size, 2), "pij,pjk->pik"),
    ):
        V = vectors(*shape)
        found = hessian @ form(V)
        assert type(found) is type(form(V))
        assert close(found, torch.einsum(expected, exact, V))


@pytest.mark.parametrize("form", [torch.Tensor.clone, torch.Tensor.numpy], ids=["tensor", "array"])
def test_one_part_is_one_matrix(hessian, exact, form):
    size = hessian.size
    part = hessian["1"]
    assert part.shape == (size, size)
    assert part.parts == ("1",)
    for shape in ((size,), (size, 3), (1, size, 3)):
        V = vectors(*shape)
        found = part @ form(V)
        assert type(found) is type(form(V))
        assert close(found, exact[1] @ V)


def test_several_names_choose_several_parts_in_their_order(hessian, exact):
    V = vectors(2, hessian.size)
    found = hessian[["2", "0"]] @ V
    assert close(found, torch.einsum("pij,pj->pi", exact[[2, 0]], V))


def test_a_product_by_itself_takes_tensors_of_its_own_dtype(hessian):
    for other in (vectors(2, 1, hessian.size).float(), vectors(2, 1, hessian.size).numpy()):
        with pytest.raises(InputError, match="float64"):
            hessian.matvec(other)


def test_vectors_of_another_dtype_are_taken_and_products_are_in_the_operators(hessian):
    single = ls.curvature_operator(CASES["residual-gelu"].objective(dtype=torch.float32), backend="reverse")
    assert (single["0"] @ np.ones(single.size)).dtype == np.float32
    assert (hessian["0"] @ np.ones(single.size, dtype=int)).dtype == np.float64


def test_sums_and_multiples_are_those_of_the_matrices(objective, hessian, exact):
    gauss_newton = ls.curvature_operator(objective, "ggn", backend="reverse")
    G = torch.stack([dense(objective, part, "ggn") for part in range(3)])
    V = vectors(3, hessian.size)
    for found, matrices in (
        (hessian + gauss_newton, exact + G),
        (hessian - gauss_newton, exact - G),
        (2 * hessian - gauss_newton * 0.5, 2 * exact - 0.5 * G),
        (-(hessian - gauss_newton) / 4, (G - exact) / 4),
        (np.float64(3) * hessian, 3 * exact),
    ):
        expected = torch.einsum("pij,pj->pi", matrices, V)
        assert close(found @ V, expected)
        assert close(found["1"] @ V[1], expected[1])


def test_sums_are_called_by_what_they_are(objective, hessian):
    difference = 2 * hessian - ls.curvature_operator(objective, "ggn", backend="reverse")
    assert (difference.name, difference.symbol) == ("2 hessian - ggn", "2 H - G")
    assert (3 * -difference).symbol == "-6 H + 3 G"
    assert difference.objective is objective
    assert repr(difference["1"]).startswith("<2 hessian - ggn of 1: (")


@pytest.mark.parametrize(
    ("name", "backend"), [("residual-gelu", "reverse"), ("smoothed", "linearized"), ("features", "reverse")]
)
def test_gauss_newton_and_residual_add_up_to_the_hessian(name, backend):
    """With weight decay, which is in the Hessian and in Gauss-Newton, and not in what they differ by."""
    objective = CASES[name].objective(weight_decay=0.3)
    H, G, R = (ls.curvature_operator(objective, kind, backend=backend) for kind in ("hessian", "ggn", "residual"))
    V = vectors(3, H.size, 4)
    assert close((G + R) @ V, H @ V)
    for p, part in enumerate(NAMES):
        assert close(R[part] @ V[p], dense(objective, p, "residual") @ V[p])


def test_scipy_finds_the_eigenvalues(hessian, exact):
    for p, part in list(enumerate(NAMES))[1:]:
        operator = hessian[part].to_scipy()
        assert operator.dtype == np.float64
        found = eigsh(operator, k=3, which="LA", return_eigenvectors=False)
        assert np.allclose(np.sort(found), torch.linalg.eigvalsh(exact[p])[-3:], rtol=1e-7)
        assert close(operator @ np.ones((hessian.size, 2)), exact[p].sum(1)[:, None].expand(-1, 2))


def test_each_door_leads_to_the_matrix_of_its_name():
    objective = CASES["mlp-tanh"].objective(partition="all")
    doors = {kind: getattr(ls, kind) for kind in ("hessian", "ggn", "fisher")} | {"residual": ls.residual}
    doors |= {"empirical-fisher": partial(ls.fisher, empirical=True)}
    assert set(doors) == set(KINDS)
    for kind, door in doors.items():
        operator = door(objective)
        assert operator.name == kind
        assert close(operator @ vectors(operator.size, 2), dense(objective, 0, kind) @ vectors(operator.size, 2))


def test_every_kind_has_a_name_that_types_know_and_a_symbol_of_its_own():
    assert get_args(KindName) == tuple(KINDS)
    assert len({kind.symbol for kind in KINDS.values()}) == len(KINDS)


def test_wrong_vectors_are_refused_with_the_shapes_that_fit(hessian):
    size = hessian.size
    for call, words in (
        (lambda: hessian @ vectors(size, 3), rf"must have shape \(3, {size}\) or .*got \({size}, 3\); choose a part"),
        (lambda: hessian["0"] @ vectors(3, size), rf"must have shape \({size},\) or .*transpose them"),
        (lambda: hessian["0"] @ vectors(size + 1), rf"got \({size + 1},\)$"),
        (lambda: hessian @ np.ones(size, dtype=complex), "must be real"),
        (lambda: hessian @ np.array(["a"] * size), "array of numbers"),
        (lambda: hessian["3"], "no part '3': choose 0, 1, 2"),
        (lambda: hessian.to_scipy(), r"choose a part, as in H\['0'\]"),
        (lambda: hessian + hessian["0"], "different parts"),
        (lambda: hessian["0"] + ls.matrix(np.eye(3), parts=["0"]), "different size"),
        (lambda: float("nan") * hessian, "multiplied by nan"),
        (lambda: hessian / 0, "divided by 0"),
    ):
        with pytest.raises(InputError, match=words):
            call()
    for call in (lambda: hessian + 1, lambda: "2" * hessian, lambda: True * hessian, lambda: np.eye(3) * hessian):
        with pytest.raises(TypeError):
            call()


FIRST = [kind for kind in KINDS if kind not in ("hessian", "residual")]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("mlp-relu", kind) for kind in KINDS] + [("mlp-tanh", kind) for kind in FIRST] + [("residual-inplace", "hessian")],
)
def test_traces_and_diagonals_are_exact_where_they_can_be_had(name, kind):
    objective = CASES[name].objective(weight_decay=0.2)
    operator = ls.curvature_operator(objective, kind, backend="reverse")
    trace, diagonal = operator.trace(), operator.diagonal()
    assert trace.exact
    assert diagonal.exact
    assert not trace.stderr.any()
    assert not diagonal.stderr.any()
    decay = 0.2 * KINDS[kind].decays
    exact = torch.stack([dense(objective, part, kind) for part in range(3)]).diagonal(dim1=1, dim2=2) + decay
    scale = exact.abs().max().item() + 1e-3
    assert np.abs(diagonal.value - exact.numpy()).max() < 1e-10 * scale
    assert np.abs(trace.value - exact.sum(1).numpy()).max() < 1e-10 * scale * operator.size


def test_sums_have_the_sum_of_exact_traces_and_diagonals():
    objective = CASES["mlp-relu"].objective()
    H, F = (ls.curvature_operator(objective, kind, backend="reverse") for kind in ("hessian", "empirical-fisher"))
    for found, single in (
        ((H - 2 * F).trace(), H.trace().value - 2 * F.trace().value),
        ((H - 2 * F).diagonal(), H.diagonal().value - 2 * F.diagonal().value),
    ):
        assert found.exact
        assert close(found.value, single)


def test_a_sum_is_as_exact_as_the_least_exact_of_its_terms(objective, hessian, exact):
    fisher = ls.curvature_operator(objective, "fisher", backend="reverse")
    found = (fisher + hessian)["1"].trace(steps=20, probes=2)
    assert fisher["1"].trace().exact
    assert not found.exact
    wanted = (dense(objective, 1, "fisher") + exact[1]).trace().item()
    assert abs(found.value - wanted) <= 4 * found.stderr


def test_the_seed_decides_on_probes(hessian):
    part = hessian["1"]
    for call in (
        lambda seed: part.trace(steps=4, probes=2, seed=seed).value,
        lambda seed: part.diagonal(probes=6, seed=seed).value.sum(),
        lambda seed: part.top(max_steps=2, seed=seed).values[0],
    ):
        assert call(0) == call(0) != call(1)


def test_one_part_has_numbers_without_the_axis_of_parts(hessian):
    part = hessian["1"]
    assert part.trace(steps=4, probes=1).value.shape == ()
    assert part.diagonal(probes=6).stderr.shape == (hessian.size,)
    top = part.top(2)
    assert (top.values.shape, top.residuals.shape, top.vectors.shape) == ((2,), (2,), (hessian.size, 2))


def test_probes_estimate_diagonal_and_trace_within_their_errors(hessian, exact):
    """Entry by entry the mean of 100 products of signs is nearly normal: beyond 5 standard errors in 6 of 1e7."""
    hessian, exact = hessian[["1", "2"]], exact[1:]
    diagonal, trace = hessian.diagonal(), hessian.trace()
    assert not diagonal.exact
    assert not trace.exact
    wanted = exact.diagonal(dim1=1, dim2=2).numpy()
    assert (np.abs(diagonal.value - wanted) <= 5 * diagonal.stderr + 1e-12).all()
    spread = np.sqrt((exact**2).sum(2).numpy() - wanted**2) / 10  # of 100 probes
    assert np.allclose(np.median(diagonal.stderr / spread), 1, atol=0.2)
    assert (np.abs(trace.value - wanted.sum(1)) <= 4 * trace.stderr).all()


def test_top_are_the_largest_eigenpairs_within_their_residuals(hessian, exact):
    hessian, exact = hessian[["1", "2"]], exact[1:]
    top = hessian.top(4, tol=1e-8)
    values = torch.linalg.eigvalsh(exact).flip(1)[:, :4].numpy()
    assert np.allclose(top.values, values, rtol=1e-7)
    assert (top.residuals <= 1e-8 * values[:, :1]).all()
    assert np.allclose(hessian @ top.vectors, top.vectors * top.values[:, None], atol=1e-6)
    short = hessian.top(4, tol=1e-8, max_steps=5)
    assert (short.residuals > 1e-8 * values[:, :1]).any()


def test_top_of_a_matrix_with_few_distinct_eigenvalues_has_nan_for_the_others():
    top = ls.matrix(np.diag([3.0, 3, 1, 1, 1])).top(3)
    assert np.allclose(top.values[:2], [3, 1])
    assert np.isnan(top.values[2])
    assert np.isnan(top.vectors[:, 2]).all()


def test_numbers_out_of_range_are_named(hessian):
    for call, words in (
        (lambda: hessian.top(0), "k must lie between 1 and"),
        (lambda: hessian.top(1, tol=0), "tol must be between 0 and 1"),
        (lambda: hessian.top(max_steps=0), "max_steps must be at least k=1, got 0"),
        (lambda: hessian.top(6, max_steps=5), "max_steps must be at least k=6, got 5"),
        (lambda: hessian.diagonal(probes=2), "probes must be at least 6"),
        (lambda: hessian.trace(steps=0), "steps must be at least 1"),
        (lambda: hessian.trace(probes=0), "probes must be at least 1"),
    ):
        with pytest.raises(InputError, match=words):
            call()


class Complex(torch.nn.Module):
    """Views pairs of numbers as complex ones, which must be side by side; or computes the same without."""

    def __init__(self, before, *, views=True):
        super().__init__()
        self.before = torch.nn.Parameter(torch.zeros(before)) if before else torch.zeros(1)
        self.pairs, self.views = torch.nn.Parameter(torch.randn(4, 3, 2)), views

    def forward(self, x):
        if self.views:
            pairs = torch.view_as_complex(self.pairs)
            return (x.to(pairs.dtype) @ pairs).abs() + self.before.sum()
        return ((x @ self.pairs[..., 0]) ** 2 + (x @ self.pairs[..., 1]) ** 2).sqrt() + self.before.sum()


@pytest.mark.parametrize("backend", ["linearized", "reverse"])
@pytest.mark.parametrize("before", [0, 3], ids=["at an even place", "at an odd place"])
def test_parameters_that_a_model_views_as_complex_are_multiplied_wherever_they_stand(before, backend):
    data = torch.randn(12, 4, generator=torch.Generator().manual_seed(2)), torch.arange(12) % 3
    nets = []
    for views in (True, False):
        torch.manual_seed(0)
        nets.append(Complex(before, views=views))
    objective, real = (ls.make_objective(net, data, dtype="float64") for net in nets)
    H, exact = ls.curvature_operator(objective, backend=backend), dense(real, 0)
    V = vectors(24 + before, 2)
    assert close(H @ V, exact @ V)
    assert close(H @ V[:, 0], exact @ V[:, 0])
    assert close(H.to_scipy().matmat(V.numpy()), exact @ V)
    assert close(H.matvec(V.T[None])[0].T, exact @ V)
