"""Regression and dict inputs: the numbers of PyHessian and curvlinops, where they are installed, and ours."""

import pytest
import torch
from refusals import refused
from task_cases import TWO, TwoBranches, X, draw, mlp, seeded
from torch import nn

import landscape as ls
from landscape.curvature import verify
from landscape.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore")  # of other libraries


def test_a_regression_by_pyhessian_has_our_largest_eigenvalue_and_trace():
    y = draw(9, 2, seed=2)
    objective = ls.make_objective(mlp(2), (X, y), dtype="float64", batch_size=4)
    ours = ls.spectrum(objective, steps=40, probes=8)
    theirs = verify.pyhessian(objective, "all")
    largest = max(ours.lambda_max[0], ours.lambda_min[0], key=abs)
    assert theirs.top == pytest.approx(largest, rel=2e-2)  # power iteration stops at 1e-3 of a step
    assert abs(theirs.trace - ours.trace[0]) <= 6 * (theirs.trace_stderr**2 + ours.trace_stderr[0] ** 2) ** 0.5


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_regression_on_dicts_by_curvlinops_is_our_matrix(kind):
    curvlinops = pytest.importorskip("curvlinops", reason="curvlinops is not installed")

    class OnDict(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = seeded(lambda: TwoBranches(1))

        def forward(self, batch):
            return self.inner(batch["left"], batch["right"])

    model, y = OnDict(), draw(9, 1, seed=2)
    objective = ls.make_objective(model, ({"left": X, "right": TWO}, y), dtype="float64", batch_size=4)
    class_of = {"hessian": curvlinops.HessianLinearOperator, "ggn": curvlinops.GGNLinearOperator}[kind]
    batches = [({"left": X[i : i + 4], "right": TWO[i : i + 4]}, y[i : i + 4]) for i in (0, 4, 8)]
    params = list(model.parameters())
    theirs = class_of(model, nn.MSELoss(), params, batches, batch_size_fn=lambda batch: len(batch["left"]))
    size = objective.layout.size
    eye = torch.eye(size, dtype=torch.float64)
    ours = ls.curvature_operator(objective, kind).matvec(eye[None])[0]
    torch.testing.assert_close(ours, torch.as_tensor(theirs @ eye).T, rtol=0, atol=1e-11)


class Leaves(nn.Module):
    """Keeps what it computed last, overwrites its inputs, and may have a layer that it does not use."""

    def __init__(self, unused):
        super().__init__()
        self.inner = mlp(2)
        if unused:
            self.other = nn.Linear(2, 2)

    def forward(self, x):
        x += 1
        self.last = self.inner(x)
        return self.last


def test_pyhessian_takes_copies_of_a_model_that_keeps_tensors_and_of_inputs():
    objective = ls.make_objective(Leaves(unused=False), (X, draw(9, 2, seed=2)), dtype="float64")
    ls.hessian(objective).diagonal()
    assert not objective.model.last.is_leaf
    plain = ls.make_objective(mlp(2), (X + 1, draw(9, 2, seed=2)), dtype="float64")
    assert verify.pyhessian(objective, "all").top == pytest.approx(verify.pyhessian(plain, "all").top, rel=1e-6)


def test_what_pyhessian_cannot_do_is_an_error_in_a_line():
    unused = ls.make_objective(Leaves(unused=True), (X, draw(9, 2, seed=2)), dtype="float64")
    with refused(InputError, "PyHessian"):
        verify.pyhessian(unused, "all")
    two = ls.make_objective(seeded(lambda: TwoBranches(1)), ((X, TWO), draw(9, 1, seed=2)), dtype="float64")
    with refused(InputError, "PyHessian", "inputs", "tuple"):
        verify.pyhessian(two, "all")
