"""Every matrix of every task, with every kind of input, against dense ones of losses that are written out by hand."""

from functools import cache

import numpy as np
import pytest
import torch
from task_cases import N, cases
from torch.func import functional_call, hessian, jacrev

import landscape as ls
from landscape.errors import LandscapeError

CASES = cases()
PART = np.arange(N) % 3 > 0  # six of nine
FIRST = ("ggn", "fisher", "empirical-fisher")
KINDS = ("hessian", *FIRST)  # and of every second task the residual


def functions(case):
    """Return theta -> output over all samples, and the point."""
    named = dict(case.model.named_parameters())
    sizes, shapes = [p.numel() for p in named.values()], [p.shape for p in named.values()]

    def output(theta):
        tensors = {n: t.view(s) for n, t, s in zip(named, theta.split(sizes), shapes, strict=True)}
        return functional_call(case.model, tensors, case.args, case.kwargs)

    return output, torch.cat([p.detach().reshape(-1) for p in named.values()])


@cache
def dense(name, kind):
    """Return a matrix of the samples in `PART`, (D, D), by torch.func on all of them at once."""
    case = CASES[name]
    output, point = functions(case)
    chosen = torch.from_numpy(PART)

    def losses(theta):
        return case.loss(output(theta), case.targets)[chosen]

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        if kind == "hessian":
            return hessian(lambda t: losses(t).mean())(point)
        if kind == "residual":
            return dense(name, "hessian") - dense(name, "ggn")
        if kind == "empirical-fisher":
            g = jacrev(losses)(point)
            return g.T @ g / len(g)
        J = jacrev(lambda t: case.flat(output(t)))(point)[chosen]
        whole = output(point)
        M = hessian(lambda z: case.loss(case.back(z, whole), case.targets).sum())(case.flat(whole))
        M = torch.stack([M[i, :, i] for i in np.flatnonzero(PART)])
        return torch.einsum("nkd,nkl,nle->de", J, M, J) / len(J)


def objective_of(case, **options):
    parts = ls.Partition.from_index(PART.astype(int) - 1, ["some"])
    return ls.make_objective(case.model, case.data, parts=parts, dtype="float64", **case.options, **options)


@pytest.mark.parametrize("name", CASES)
def test_matrices_equal_dense_ones_of_the_loss_written_out_by_hand(name):
    case = CASES[name]
    objective = objective_of(case, batch_size=4)
    output, point = functions(case)
    loss = case.loss(output(point), case.targets)[torch.from_numpy(PART)].mean().item()
    assert objective.evaluation.loss[0] == pytest.approx(loss, rel=1e-12)
    V = torch.randn(len(point), 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))  # as good as all
    i = list(CASES).index(name)
    to_trace = ("hessian", *[FIRST[i // 2 % 3]] * (i % 2 == 0))  # one with the fast path that others share
    for kind in (*KINDS, *["residual"] * (i % 2)):
        refused = (not case.fisher and kind == "fisher") or (not case.ggn and kind == "ggn")
        if refused:
            with pytest.raises(LandscapeError, match="fisher|distribution" if kind == "fisher" else "zero"):
                ls.curvature_operator(objective, kind)
            continue
        expected = dense(name, kind if case.ggn or kind != "residual" else "hessian") @ V
        traced = kind in to_trace
        operator = ls.curvature_operator(objective, kind, backend="auto" if traced else "reverse")
        found = operator.matvec(V.T[None])[0].mT
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-11 * expected.abs().max().item(), msg=f"{kind}")
        if case.traced is not None:
            assert operator.cached == (case.traced and traced), kind


@pytest.mark.parametrize("name", CASES)
def test_numbers_of_single_samples_and_rows_equal_dense_ones_where_they_can_be_had(name):
    case = CASES[name]
    objective = objective_of(case)
    for kind in ("hessian", FIRST[list(CASES).index(name) % 3]):  # each is met by four cases or five
        if (kind == "fisher" and not case.fisher) or (kind == "ggn" and not case.ggn):
            continue
        how = {"sampling_errors": True, "tol": 1e-9, "backend": "reverse"}  # traces are compared above
        spectrum = ls.spectrum(objective, operator=kind, steps=35, probes=3, **how)
        values = torch.linalg.eigvalsh(dense(name, kind))
        assert spectrum.lambda_max[0] == pytest.approx(values[-1].item(), rel=1e-6)
        assert spectrum.trace[0] == pytest.approx(
            values.sum().item(), abs=max(1e-9, 6 * spectrum.trace_stderr[0]), rel=1e-9
        )
        assert (spectrum.accuracy is not None) == case.accuracy
