"""Tiny problems with what goes wrong elsewhere: ragged last batches, a class of one sample, many kinds of layers."""

import copy
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from landscape.data import datasets
from landscape.objective import points
from landscape.objective.objective import Objective
from landscape.objective.points import Point

CLASS_SIZES = (9, 5, 1)  # with batches of 4: 4 + 4 + 1, 4 + 1, 1


class Residual(nn.Module):
    """Convolutions, batch norm, a shortcut, padding of channels, in-place ReLU: what ResNets are made of."""

    def __init__(self, activation, inplace=False, bias=False):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 3, 3, padding=1, bias=bias)
        self.bn1 = nn.BatchNorm2d(3)
        self.conv2 = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=bias)
        self.bn2 = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)
        self.activation = nn.ReLU(inplace=True) if inplace else activation

    def forward(self, x):
        x = self.activation(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(x)) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 1))
        return self.fc(self.activation(y).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True)
        self.embed = nn.Embedding(5, 4)
        self.fc = nn.Linear(4, 3)

    def forward(self, tokens):
        return self.fc(self.layer(self.embed(tokens)).mean(1))


def mlp(activation):
    return nn.Sequential(nn.Flatten(), nn.Linear(18, 5), activation, nn.Linear(5, 3))


def mlp_with_norm():
    return nn.Sequential(nn.Flatten(), nn.Linear(18, 5), nn.BatchNorm1d(5, affine=False), nn.Tanh(), nn.Linear(5, 3))


class Features(nn.Module):
    """Returns (features, logits)."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(18, 5), nn.Tanh())
        self.fc = nn.Linear(5, 3)

    def forward(self, x):
        features = self.encoder(x)
        return features, self.fc(features)


class Shifts(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = mlp(nn.Tanh())

    def forward(self, x):
        return self.inner((x - 0.5) * 2)


class Overwrites(Shifts):
    """The same function, which changes its inputs."""

    def forward(self, x):
        x -= 0.5
        x *= 2
        return self.inner(x)


@dataclass(frozen=True)
class Case:
    make: object
    tokens: bool = False
    loss: object = "ce"

    def objective(self, *, dtype=torch.float64, batch_size=4, partition="class", seed=0, **options):
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng():
            torch.default_generator.manual_seed(seed)
            model = self.make()
            for module in model.modules():
                if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                    module.running_mean.normal_(0, 0.3)
                    module.running_var.uniform_(0.5, 2)
                    if module.affine:
                        module.weight.data.uniform_(0.5, 1.5)
                        module.bias.data.normal_(0, 0.3)
        labels = torch.cat([torch.full((n,), c) for c, n in enumerate(CLASS_SIZES)])
        labels = labels[torch.randperm(len(labels), generator=generator)]
        if self.tokens:
            inputs = torch.randint(0, 5, (len(labels), 3), generator=generator)
        else:
            inputs = torch.randn((len(labels), 2, 3, 3), generator=generator, dtype=torch.float64)
        samples = datasets.from_dataset((inputs, labels), name="case")
        return Objective.build(
            model,
            samples,
            loss=self.loss,
            partition=partition,
            dtype=dtype,
            batch_size=batch_size,
            device="cpu",
            **options,
        )


def smoothed(logits, labels):
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.1)


def concave(logits, labels):
    """A loss whose curvature in the logits has both signs."""
    return torch.sin(3 * logits).sum(1) + logits[:, 0] * logits[:, 1] + 0.0 * labels


CASES = {
    "mlp-tanh": Case(partial(mlp, nn.Tanh())),
    "mlp-relu": Case(partial(mlp, nn.ReLU())),
    "mlp-norm": Case(mlp_with_norm),
    "residual-gelu": Case(partial(Residual, nn.GELU())),
    "residual-relu": Case(partial(Residual, nn.ReLU(), bias=True)),
    "residual-inplace": Case(partial(Residual, None, inplace=True)),
    "features": Case(Features),
    "attention": Case(Attention, tokens=True),
    "smoothed": Case(partial(mlp, nn.Softplus()), loss=smoothed),
    "logit-adjust": Case(partial(mlp, nn.SiLU()), loss="logit-adjust"),
    "balanced": Case(partial(mlp, nn.SiLU()), loss="balanced"),
}


def moved(objective, seed=0):
    """A point beside an objective's own weights."""
    centre = points.origin(objective)
    generator = torch.Generator().manual_seed(seed)
    step = torch.randn(len(centre.theta), generator=generator, dtype=torch.float64)
    return Point(centre.theta + 0.1 * step.to(centre.theta), centre.buffers * 1.1)


class PaddedBag(nn.Module):
    """Sums of embedded tokens, of which the first means nothing and has no gradient."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4, padding_idx=0)
        self.fc, self.out = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, tokens):
        return self.out(torch.tanh(self.fc(self.embed(tokens).sum(1))))


def padded(batch_size=4):
    """An objective whose first class has sentences without padding, and whose others are full of it."""
    generator = torch.Generator().manual_seed(0)
    tokens, labels = torch.randint(1, 7, (18, 5), generator=generator), torch.arange(18) // 6
    tokens[labels > 0, 3:] = 0
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        model = PaddedBag()
    return Objective.build(
        model,
        datasets.from_dataset((tokens, labels)),
        partition="class",
        dtype=torch.float64,
        device="cpu",
        batch_size=batch_size,
    )


def hessian_by_double_backward(objective, part):
    """The (D, D) Hessian of a part's mean loss, row by row by plain double backward through the module itself."""
    model = copy.deepcopy(objective.model).requires_grad_(True)
    inputs, labels = objective.samples.batch(objective.members[part], objective.device, objective.dtype)
    params = list(model.parameters())
    first = torch.autograd.grad(F.cross_entropy(model(inputs), labels), params, create_graph=True)
    rows = [torch.autograd.grad(entry, params, retain_graph=True, materialize_grads=True) for entry in flat(first)]
    return torch.stack([flat(row) for row in rows]).detach()


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors])
