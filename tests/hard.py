"""Small objectives of models that are hard to differentiate, and dense matrices by plain backward passes."""

import torch
from exact import differences
from torch import nn
from torch.autograd.function import once_differentiable

import landscape as ls
from landscape.data import datasets
from landscape.objective.objective import Objective


def objective_of(
    make, *, loss="ce", tokens=False, batch_size=4, partition="class", dtype=torch.float64, scale=1.0, shift=0.0
):
    """Two classes of 7 and 4 samples: tokens of which 0 fills up the second class, or vectors, the second's shifted."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(2).repeat_interleave(torch.tensor([7, 4]))
    if tokens:
        inputs = torch.randint(1, 6, (11, 4), generator=generator)
        inputs[labels == 1, 2:] = 0
    else:
        inputs = scale * torch.randn(11, 3, generator=generator, dtype=torch.float64) + shift * labels[:, None]
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(2)
        model = make()
    return Objective.build(
        model, datasets.from_dataset((inputs, labels)), loss=loss, partition=partition, dtype=dtype,
        device="cpu", batch_size=batch_size,
    )  # fmt: skip


def matrix(objective, kind="hessian", backend="auto"):
    """Of the first parts, column by column."""
    operator = ls.curvature_operator(objective, kind, backend=backend)
    eye = torch.eye(operator.size, dtype=operator.dtype)
    return operator.matvec(eye.expand(len(operator.parts), -1, -1)).mT


def some(objective, n=4):
    """Random vectors (n, D): whatever two matrices differ by, they see it as the whole basis does."""
    generator = torch.Generator().manual_seed(4)
    return torch.randn(n, objective.layout.size, generator=generator, dtype=torch.float64).to(objective.dtype)


def product(objective, kind="hessian", backend="auto"):
    """Of some vectors with the matrices of the parts, (P, n, D)."""
    operator = ls.curvature_operator(objective, kind, backend=backend)
    return operator.matvec(some(objective).expand(len(operator.parts), -1, -1))


def product_by_differences(objective, part):
    return torch.stack([differences(objective, part, v) for v in some(objective)])


def by_rows(objective, part, kind):
    """Return the dense matrix from plain backward passes, sample by sample, none of them twice."""
    theta = [t.clone().requires_grad_() for t in objective.theta]
    total = 0
    for x, y in zip(*objective.samples.batch(objective.members[part], objective.device, objective.dtype), strict=True):
        z = objective.logits(theta, x[None])
        if kind == "empirical-fisher":
            values, middle = objective.loss(z, y[None]), torch.ones(1, 1, dtype=z.dtype)
        else:  # the cross-entropy's
            p = z.detach().softmax(1)[0]
            values, middle = z[0], torch.diag(p) - torch.outer(p, p)
        J = torch.stack([
            objective.layout.flat(torch.autograd.grad(v, theta, retain_graph=True, materialize_grads=True))
            for v in values
        ])
        total = total + J.T @ middle @ J
    return total / len(objective.members[part])


def by_differences(objective, part):
    eye = torch.eye(objective.layout.size, dtype=torch.float64)
    return torch.stack([differences(objective, part, e) for e in eye])


def relative(found, exact):
    return ((found - exact).norm() / exact.norm()).item()


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def layers(activation):
    return nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 4), activation, nn.Linear(4, 2))


class Softsign(torch.autograd.Function):
    """As a compiled extension has it: its gradient has no derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x / (1 + x.abs())

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g / (1 + x.abs()) ** 2


class _Slope(torch.autograd.Function):
    """g sigmoid(x), of which the second derivative is cut off."""

    @staticmethod
    def forward(ctx, x, g):
        ctx.save_for_backward(x, g)
        return g * x.sigmoid()

    @staticmethod
    def backward(ctx, gg):
        x, g, gg = (t.detach() for t in (*ctx.saved_tensors, gg))
        s = x.sigmoid()
        return s * (1 - s) * g * gg, s * gg


class Softplus(torch.autograd.Function):
    """As one in NumPy is: its second derivative is right, and its third one cut off, without an error."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return nn.functional.softplus(x)

    @staticmethod
    def backward(ctx, g):
        return _Slope.apply(*ctx.saved_tensors, g)


class Bag(nn.Module):
    """A mean over words."""

    def __init__(self, **options):
        super().__init__()
        self.words, self.out = nn.Embedding(6, 3, **options), nn.Linear(3, 2)
        nn.init.normal_(self.words.weight)

    def forward(self, tokens):
        return self.out(torch.tanh(self.words(tokens)).mean(1).sin())
