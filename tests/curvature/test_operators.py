"""Products against dense matrices that are made by another route, all parts ragged."""

from functools import cache

import pytest
import torch
from refusals import refused
from torch import nn

from landscape.autodiff.linearize import linearize, n_bytes
from landscape.autodiff.tracing import TRACE_SIZES, NotTraceableError
from landscape.curvature import products
from landscape.curvature.kinds import KINDS
from landscape.curvature.operators import CACHE_BYTES, curvature_operator, problem_of
from landscape.data import datasets
from landscape.errors import InputError, NumericalError
from landscape.objective.objective import Objective
from tests.cases import CASES, CLASS_SIZES, Case, Residual, mlp
from tests.exact import dense, differences

BACKENDS = ("reverse", "linearized")


def probes(objective):
    """Eight random vectors (D, 8): matrices that agree on them agree."""
    return torch.randn(objective.layout.size, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def acting(operator, V):
    """Return what an operator makes of V, (P, D, 8)."""
    return operator.matvec(V.T.to(operator.dtype).expand(len(operator.parts), -1, -1)).mT


def relative(found, exact):
    return ((found - exact).norm() / exact.norm()).item()


@cache
def exact(name, part, kind="hessian"):
    if kind == "residual":
        return exact(name, part) - exact(name, part, "ggn")
    return dense(CASES[name].objective(), part, kind)


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        *((name, "reverse") for name in CASES if name != "attention"),
        # A graph has the operations of the layers and of the loss: some other network here has those of these two.
        *((name, "linearized") for name in CASES if name not in ("attention", "mlp-relu", "logit-adjust")),
    ],
)
def test_class_hessians_are_the_dense_ones(name, backend):
    objective = CASES[name].objective()
    V = probes(objective)
    found = acting(curvature_operator(objective, backend=backend), V)
    for part in range(3):
        assert relative(found[part], exact(name, part) @ V) < 1e-9


@pytest.mark.parametrize("backend", ["reverse", "linearized"])
def test_products_of_a_transformer_are_differences_of_its_gradients(backend):
    """torch.func.hessian is no witness here: for an embedding it is asymmetric by 11 % (torch 2.13)."""
    objective = CASES["attention"].objective()
    v = torch.randn(objective.layout.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    v /= v.norm()
    found = curvature_operator(objective, backend=backend).matvec(v.expand(3, 1, -1))[:, 0]
    for part in range(3):
        assert relative(found[part], differences(objective, part, v)) < 1e-8


@pytest.mark.parametrize("backend", ["reverse", "linearized"])
@pytest.mark.parametrize("name", ["mlp-tanh", "residual-gelu"])
def test_float32_products_are_the_dense_ones_to_1e_4(name, backend):
    objective = CASES[name].objective(dtype=torch.float32)
    V = probes(objective)
    found = acting(curvature_operator(objective, backend=backend), V)[0]
    assert relative(found.double(), exact(name, 0) @ V) < 1e-4


@pytest.mark.parametrize(
    ("name", "kind", "backend"),
    [
        *(("residual-gelu", kind, backend) for kind in KINDS if kind != "hessian" for backend in BACKENDS),
        ("mlp-relu", "residual", "linearized"),  # no curvature of the network but that of products of weights
        *(("smoothed", kind, "linearized") for kind in ("ggn", "fisher")),  # which are two matrices of this loss
        *(("features", kind, "linearized") for kind in ("residual", "empirical-fisher")),  # by outputs, and by losses
    ],
)
def test_every_other_kind_of_matrix_is_the_dense_one(name, kind, backend):
    objective = CASES[name].objective()
    V = probes(objective)
    found = acting(curvature_operator(objective, kind, backend=backend), V)
    for part in range(3):
        assert relative(found[part], exact(name, part, kind) @ V) < 1e-9


def test_the_true_fisher_is_the_gauss_newton_matrix_of_the_cross_entropy_and_not_of_another_loss():
    same = CASES["mlp-tanh"].objective()
    squared = Case(lambda: mlp(nn.Tanh()), loss=lambda z, y: z.pow(2).sum(1)).objective()

    def of(objective, kind):
        return acting(curvature_operator(objective, kind, backend="reverse"), probes(objective))

    assert relative(of(same, "fisher"), of(same, "ggn")) < 1e-12
    assert relative(of(same, "fisher"), of(same, "empirical-fisher")) > 0.1
    assert relative(of(squared, "fisher"), of(squared, "ggn")) > 0.1


@cache
def products_of_the_whole():
    whole = CASES["residual-relu"].objective(batch_size=4, partition="all")
    return acting(curvature_operator(whole, backend="reverse"), probes(whole))[0]


@pytest.mark.parametrize(
    ("batch_size", "backend"), [(1, "linearized"), (1, "reverse"), (7, "linearized"), (1000, "reverse")]
)
def test_class_matrices_weighted_by_share_sum_to_the_whole(batch_size, backend):
    by_class = CASES["residual-relu"].objective(batch_size=batch_size)
    shares = torch.as_tensor(by_class.partition.shares)
    summed = (shares[:, None, None] * acting(curvature_operator(by_class, backend=backend), probes(by_class))).sum(0)
    assert relative(summed, products_of_the_whole()) < 1e-12
    assert by_class.counts.tolist() == list(CLASS_SIZES)


def test_a_block_is_its_vectors_one_by_one_and_parts_are_independent():
    operator = curvature_operator(CASES["residual-gelu"].objective())
    V = torch.randn(3, 4, operator.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    block = operator.matvec(V)
    for part in range(3):
        for k in range(4):
            alone = operator.restrict([part]).matvec(V[part : part + 1, k : k + 1])
            assert torch.allclose(alone[0, 0], block[part, k], rtol=1e-13, atol=1e-15)


def test_products_do_not_depend_on_what_fits_the_cache():
    objective = CASES["residual-relu"].objective()
    V = torch.randn(3, 2, objective.layout.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kept = curvature_operator(objective)
    one_batch = curvature_operator(objective, cache_bytes=40_000)
    nothing = curvature_operator(objective, cache_bytes=0)
    assert (kept.cached, nothing.cached) == (True, False)
    expected = kept.matvec(V)
    for operator in (kept, one_batch, nothing):
        assert torch.equal(operator.matvec(V), expected)


def test_a_subset_of_parameters_is_a_block_of_the_whole_matrix():
    whole = CASES["residual-gelu"].objective()
    some = CASES["residual-gelu"].objective(params="conv2,fc.bias")
    assert some.layout.names == ("conv2.weight", "fc.bias")
    indices = dict(zip(whole.layout.names, torch.arange(whole.layout.size).split(whole.layout.sizes), strict=True))
    positions = torch.cat([indices[name] for name in some.layout.names])
    V = probes(some)
    exact = dense(whole, 0)[positions][:, positions] @ V
    for backend in ("reverse", "linearized"):
        assert relative(acting(curvature_operator(some, backend=backend), V)[0], exact) < 1e-9


def test_weight_decay_adds_its_multiple_of_the_identity():
    plain, decayed = CASES["mlp-tanh"].objective(), CASES["mlp-tanh"].objective(weight_decay=0.25)
    V = probes(plain)
    traced = acting(curvature_operator(decayed), V)
    difference = traced - acting(curvature_operator(plain, backend="reverse"), V)
    assert torch.allclose(difference, 0.25 * V.expand_as(difference), atol=1e-12)


def test_the_callers_model_is_given_back_as_it_was():
    model = Residual(nn.ReLU())
    model.train()
    model.fc.weight.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    case = Case(lambda: model)
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    mode = model.training
    objective = case.objective(seed=1)
    before = {k: v.clone() for k, v in model.state_dict().items()}  # the case sets running statistics first
    curvature_operator(objective).matvec(torch.ones(3, 1, objective.layout.size, dtype=torch.float64))
    assert model.training is mode
    assert flags == {n: p.requires_grad for n, p in model.named_parameters()}
    assert "fc.weight" not in objective.layout.names
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_zero_hessian_is_a_matrix_of_zeros():
    linear = Case(lambda: nn.Sequential(nn.Flatten(), nn.Linear(18, 3)), loss=lambda z, y: z[torch.arange(len(y)), y])
    for backend in ("reverse", "linearized"):
        objective = linear.objective()
        assert acting(curvature_operator(objective, backend=backend), probes(objective)).abs().max() == 0


class OneDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z.pow(2).sum(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (z,) = ctx.saved_tensors
        return 2 * z * g[:, None]


def test_a_loss_without_a_second_derivative_is_refused_in_a_line():
    objective = Case(lambda: mlp(nn.Tanh()), loss=lambda z, y: OneDerivative.apply(z)).objective()
    with refused(NumericalError, "empirical-fisher"):
        curvature_operator(objective).matvec(torch.ones(3, 1, objective.layout.size, dtype=torch.float64))


class Branches(nn.Module):
    """Control flow that depends on data: a trace of one branch would be wrong for other batches."""

    def __init__(self):
        super().__init__()
        self.inner = mlp(nn.Tanh())

    def forward(self, x):
        z = self.inner(x)
        return z * 2 if x.flatten(1).sum(1).max() > 1e9 else z


def test_a_model_that_cannot_be_traced_falls_back_and_says_so(caplog):
    objective = Case(Branches).objective()
    with caplog.at_level("INFO"):
        found = acting(curvature_operator(objective), probes(objective))
    assert "reverse mode is used" in caplog.text
    assert relative(found[0], dense(objective, 0) @ probes(objective)) < 1e-9
    with refused(InputError, backend="linearized"):
        curvature_operator(objective, backend="linearized")


def test_integers_that_stand_for_the_batch_size_follow_the_batch():
    """One trace serves batches of 4, of 1 and of 9."""
    objective = CASES["residual-gelu"].objective(batch_size=9)
    problem, kind = problem_of(objective), KINDS["hessian"]
    linearized = products.by_trace(problem, kind, next(objective.batches(0))).at((*problem.theta, *problem.fixed))
    v = objective.layout.tensors(torch.randn(objective.layout.size, dtype=torch.float64))
    for part in range(3):
        batch = next(objective.batches(part))
        found = objective.layout.flat(linearized.product(linearized.residuals(*batch), v))
        reference = objective.layout.flat(products.by_reverse(problem, kind, batch, [v])[0])
        assert relative(found, reference) < 1e-12


def weight_normed():
    return nn.Sequential(
        nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(18, 5)), nn.Tanh(), nn.Linear(5, 3)
    )


@pytest.mark.parametrize("backend", ["reverse", "linearized"])
def test_weight_norm_has_the_second_derivative_that_its_gradients_have(backend):
    """torch._weight_norm has none that is right (torch 2.13), so torch.func.hessian is no witness."""
    objective = Case(weight_normed).objective()
    v = probes(objective)[:, 0]
    v /= v.norm()
    found = curvature_operator(objective, backend=backend).matvec(v.expand(3, 1, -1))[:, 0]
    for part in range(3):
        assert relative(found[part], differences(objective, part, v)) < 1e-8


class OneByOne(nn.Module):
    """Loops over the samples, so that a trace has as many branches as it had samples."""

    def __init__(self):
        super().__init__()
        self.inner = mlp(nn.Tanh())

    def forward(self, x):
        return torch.cat([self.inner(sample[None]) for sample in x])


def test_a_trace_that_fits_one_batch_size_only_is_left_aside_in_silence(capfd):
    objective = Case(OneByOne).objective()
    found = acting(curvature_operator(objective), probes(objective))
    assert relative(found[0], dense(objective, 0) @ probes(objective)) < 1e-9
    assert capfd.readouterr() == ("", "")


def objective_of(model, inputs, counts):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return Objective.build(
        model, datasets.from_dataset((inputs, labels)), partition="class", dtype=torch.float64, device="cpu"
    )


class FirstFeatures(nn.Module):
    """Sums as many features as there are samples in a trace."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 2))

    def forward(self, x):
        return self.inner(x[:, : TRACE_SIZES[0]].sum(1, keepdim=True))


def test_a_first_batch_of_the_traces_size_hides_no_wrong_trace():
    n = TRACE_SIZES[0]
    inputs = torch.randn(n + 4, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    objective = objective_of(FirstFeatures(), inputs, [n, 4])
    found = acting(curvature_operator(objective), probes(objective))
    for part in range(2):
        assert relative(found[part], dense(objective, part) @ probes(objective)) < 1e-9


class Padded(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how
        self.embed = nn.Embedding(25, 4, padding_idx=22 if how == "embedding" else None)
        self.fc = nn.Linear(4, 2)

    def forward(self, tokens):
        h = torch.tanh(self.embed(tokens))
        return self.fc((h if self.how == "embedding" else h * (tokens != 22)[..., None]).mean(1))


@pytest.mark.parametrize("how", ["embedding", "mask"])
def test_a_padding_token_is_no_batch_size(how):
    """22 is twice the size of a trace; no sample of the first part, on which the trace is checked, is padded."""
    tokens = torch.tensor([[1, 2, 3]] * 5 + [[8, 22, 4]] * 4)
    objective = objective_of(Padded(how), tokens, [5, 4])
    v = probes(objective)[:, 0]
    v[22 * 4 : 23 * 4] = 0  # the padding's own vector is a constant to the gradient
    v /= v.norm()
    found = curvature_operator(objective, backend="linearized").matvec(v.expand(2, 1, -1))[:, 0]
    for part in range(2):
        assert relative(found[part], differences(objective, part, v)) < 1e-8


def test_batch_norm_is_folded_away_and_few_tensors_are_kept():
    objective = CASES["residual-relu"].objective(dtype=torch.float32)
    batch = next(objective.batches(0))
    problem = problem_of(objective)
    linearized = products.by_trace(problem, KINDS["hessian"], batch).at((*problem.theta, *problem.fixed))
    code = linearized._residuals.code + linearized._tangent.code
    assert "batch_norm" not in code
    assert n_bytes(linearized.residuals(*batch)) <= CACHE_BYTES


def test_a_dimension_for_every_trace_size_is_refused():
    big = 11 * 13 * 17 * 19 * 23 * 29
    theta = (torch.empty(0, big),)
    with pytest.raises(NotTraceableError, match="divides"):
        linearize(lambda t, x, y, v: v, theta, torch.ones(1, 1), torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda o: curvature_operator(o, "laplacian"), ("kind", "laplacian")),
        (lambda o: curvature_operator(o, "hesian"), ("hessian",)),
        (lambda o: curvature_operator(o, backend="magic"), ("backend",)),
        (lambda o: curvature_operator(o).matvec(torch.zeros(3, 1, 5)), ("vectors",)),
    ],
)
def test_bad_input_is_named(call, words):
    with refused(InputError, *words):
        call(CASES["mlp-tanh"].objective())


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_products_match_curvlinops(kind):
    curvlinops = pytest.importorskip("curvlinops", reason="curvlinops is not installed: see README, peers")
    objective = CASES["residual-relu"].objective(partition="all")
    model = objective.model
    for p in model.parameters():
        p.requires_grad_(True)
    make = {"hessian": curvlinops.HessianLinearOperator, "ggn": curvlinops.GGNLinearOperator}[kind]
    theirs = make(
        model,
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        list(objective.batches(0)),
        check_deterministic=False,
    )
    v = torch.randn(objective.layout.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = curvature_operator(objective, kind).matvec(v[None, None])[0, 0]
    assert relative(ours, theirs @ v) < 1e-9


@pytest.mark.parametrize(
    ("kind", "decays"),
    [
        ("hessian", True),
        ("ggn", True),
        ("fisher", True),
        ("residual", False),
        ("empirical-fisher", False),
    ],
)
def test_weight_decay_is_in_those_matrices_that_are_of_a_loss_with_it(kind, decays):
    plain, decayed = (CASES["mlp-tanh"].objective(weight_decay=w) for w in (0.0, 0.25))
    V = probes(plain)
    found = [acting(curvature_operator(o, kind, backend="reverse"), V) for o in (plain, decayed)]
    assert torch.allclose(found[1] - found[0], 0.25 * decays * V.expand_as(found[0]), atol=1e-12)
