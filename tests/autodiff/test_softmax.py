"""Log softmax and log sigmoid against closed forms in many digits, where probabilities round to 1 and where not."""

import mpmath
import numpy as np
import pytest
import torch
from torch import nn
from torch.func import hessian, jacrev, vmap
from torch.nn import functional as F

import landscape as ls
from landscape.autodiff import softmax
from landscape.autodiff.differentiable import differentiable_attention

MARGINS = (0.0, 1.0, 36.5, 60.0, 300.0)
LOGITS = {margin: [margin, 0.0, -0.25 * margin - 1, 0.5] for margin in MARGINS}


def exact(z, label):
    """The loss, its gradient and its second derivative in the logits, from sixty times as many digits as float64."""
    with mpmath.workdps(1000):
        e = [mpmath.exp(mpmath.mpf(value)) for value in z]
        p = [value / sum(e) for value in e]
        gradient = [p[c] - (c == label) for c in range(len(z))]
        middle = [[p[c] * ((c == d) - p[d]) for d in range(len(z))] for c in range(len(z))]
        return (
            float(-mpmath.log(p[label])),
            np.array([float(value) for value in gradient]),
            np.array([[float(value) for value in row] for row in middle]),
        )


@pytest.mark.parametrize("label", range(4))
@pytest.mark.parametrize("margin", MARGINS)
def test_derivatives_of_the_cross_entropy_are_exact_entry_by_entry(margin, label):
    z = torch.tensor(LOGITS[margin], dtype=torch.float64)

    def loss(z):
        return softmax.cross_entropy(z[None], torch.tensor([label]))[0]

    value, gradient, middle = exact(LOGITS[margin], label)
    assert loss(z).item() == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(jacrev(loss)(z), gradient, rtol=1e-12)
    np.testing.assert_allclose(hessian(loss)(z), middle, rtol=1e-12)
    np.testing.assert_allclose(torch.autograd.functional.hessian(loss, z), middle, rtol=1e-12)


@pytest.mark.parametrize("margin", MARGINS)
def test_derivatives_of_the_log_sigmoid_are_those_of_two_classes(margin):
    for x in (margin, -margin):
        point = torch.tensor(x, dtype=torch.float64)
        value, gradient, middle = exact([x, 0.0], 0)
        assert softmax.log_sigmoid(point).item() == pytest.approx(-value, rel=1e-12)
        assert jacrev(softmax.log_sigmoid)(point).item() == pytest.approx(-gradient[0], rel=1e-12)
        assert hessian(softmax.log_sigmoid)(point).item() == pytest.approx(-middle[0, 0], rel=1e-12)


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_values_are_those_of_pytorch_along_each_axis_also_where_there_are_none(dim):
    z = torch.randn(3, 4, 5, dtype=torch.float64)
    z[0, 1, 2], z[1, 0, 0], z[2, 3, 4] = -torch.inf, torch.inf, torch.nan
    z[:, 0, 1] = z[0, :, 1] = z[0, 0, :] = 0.5  # ties
    torch.testing.assert_close(softmax.log_softmax(z, dim), F.log_softmax(z, dim), equal_nan=True)
    torch.testing.assert_close(vmap(lambda z: softmax.log_softmax(z, -1))(z), F.log_softmax(z, -1), equal_nan=True)
    assert torch.equal(softmax.log_softmax(z.float(), dim).nan_to_num(), F.log_softmax(z.float(), dim).nan_to_num())


LOSSES = {
    "ce": None,
    "function": lambda z, y: F.cross_entropy(z, y, reduction="none"),
    "module": nn.CrossEntropyLoss(reduction="none"),
    "log softmax": lambda z, y: -z.log_softmax(1).gather(1, y[:, None])[:, 0],
    "likelihood": lambda z, y: F.nll_loss(torch.log_softmax(z, 1), y, reduction="none"),
    "yes or no": lambda z, y: F.binary_cross_entropy_with_logits(z[:, 1] - z[:, 0], y.to(z), reduction="none"),
    "log sigmoid": lambda z, y: -F.logsigmoid((2 * y - 1) * (z[:, 1] - z[:, 0])),
    "one-hot": lambda z, y: F.cross_entropy(z, F.one_hot(y, 2).to(z), reduction="none"),
    "weighted": lambda z, y: 2 * F.cross_entropy(z, y, weight=torch.tensor([0.5, 0.5]).to(z), reduction="none"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", LOSSES)
def test_matrices_of_a_class_that_is_fitted_beyond_rounding_are_right(loss, dtype):
    """Where p rounds to 1, products with H, G and F were 25,000 times too small, or refused as not symmetric."""
    x = torch.tensor([[1.0, 0.1], [-1.0, 0.2], [1.0, -0.2]])
    model, margin = nn.Linear(2, 2, bias=False), 21.0
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-margin, 0.0], [margin, 0.0]]))
    objective = ls.make_objective(model, (x, (x[:, 0] > 0).long()), loss=LOSSES[loss], dtype=dtype)
    _, (gradient, _), middle = exact([2 * margin, 0.0], 0)
    length = (x.double() ** 2).sum(1).mean().item()
    squares = {"hessian": middle.trace(), "ggn": middle.trace(), "fisher": middle.trace()}
    squares["empirical-fisher"] = 2 * gradient**2
    for kind, square in squares.items():
        if kind == "fisher" and loss != "ce":  # others have no distribution
            continue
        operator = ls.curvature_operator(objective, kind)
        found = operator.matvec(torch.eye(4, dtype=dtype)[None])[0].trace().item()
        assert found == pytest.approx(length * square, rel=1e-5), kind
    assert ls.spectrum(objective).trace[0] == pytest.approx(length * middle.trace(), rel=1e-5)
    assert objective.evaluation.loss[0] == pytest.approx(exact([2 * margin, 0.0], 0)[0], rel=1e-4)


def test_rare_options_are_left_to_pytorch():
    z, y = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, -100, 1])
    soft, w = torch.rand(6, 4, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    calls = (
        lambda: F.cross_entropy(z, y, w),
        lambda: F.cross_entropy(z, y, w, ignore_index=-100, reduction="sum"),
        lambda: F.cross_entropy(z, y, label_smoothing=0.1),
        lambda: F.cross_entropy(z, soft),
        lambda: F.cross_entropy(z, soft, w, reduction="sum"),
        lambda: F.cross_entropy(z[..., None], soft[..., None]),
        lambda: F.cross_entropy(z[0], y[0]),
        lambda: F.cross_entropy(z[..., None].expand(6, 4, 3), y[:, None].expand(6, 3)),  # an axis of pixels
        lambda: F.log_softmax(z, 0, dtype=torch.float32),
        lambda: torch.special.log_softmax(z, 1),
        lambda: F.binary_cross_entropy_with_logits(z, soft),
        lambda: F.binary_cross_entropy_with_logits(z, soft, w, pos_weight=2 * w, reduction="sum"),
        lambda: nn.LogSoftmax(1)(z),
        lambda: nn.BCEWithLogitsLoss(pos_weight=w)(z, soft),
    )
    for call in calls:
        expected = call()
        with differentiable_attention():
            torch.testing.assert_close(call(), expected)
