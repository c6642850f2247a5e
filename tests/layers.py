"""Networks of layers that have a formula for gradients of single samples, and those gradients one by one."""

import torch
from torch import nn
from torch.nn import functional as F

from landscape.networks import models

GROUPS = torch.tensor([3, 0, 3, 1, 0, 3, 0])  # unsorted; group 2 is absent
N, C = len(GROUPS), 3
LABELS = torch.tensor([0, 2, 1, 1, 0, 2, 2])
IMAGES = (N, 2, 8, 8)


class Tokens(nn.Module):
    """Embedding, LayerNorm, bare parameters, one without axes, one without numbers: `out` alone has a formula."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.shift = nn.Parameter(torch.randn(6))
        self.scale, self.empty = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.zeros(0, 3))
        self.norm = nn.LayerNorm(6)
        self.mix = nn.Conv1d(6, 6, 3, padding="same")
        self.out = nn.Linear(6, C)

    def forward(self, tokens):
        x = self.norm(self.embed(tokens) + self.shift)
        return self.scale * self.out(torch.tanh(self.mix(x.mT)).mT).mean(1)


class Twice(nn.Module):
    """One layer used twice, one weight in two layers, and one used by name beside its layer."""

    def __init__(self):
        super().__init__()
        self.again, self.first, self.second = (nn.Linear(4, 4) for _ in range(3))
        self.second.weight = self.first.weight
        self.out = nn.Linear(4, C)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        x = torch.tanh(self.again(torch.tanh(self.again(x))))
        x = torch.tanh(self.second(torch.tanh(self.first(x))))
        return self.out(x) + F.linear(x.square(), self.out.weight)


class Inplace(nn.Module):
    """Activations that overwrite what a layer returned, and a batch on another axis than the first."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.pixels, self.out = nn.Linear(4, 5), nn.Linear(5, C)

    def forward(self, x):
        x = F.relu(self.norm(F.relu(self.conv(x), inplace=True)), inplace=True)
        x = self.pixels(x.flatten(2).permute(2, 0, 1).flatten(0, 1)).view(64, -1, 5)  # (64 N, 5): not sliceable
        return self.out(x.tanh().sum(0))


def plain():
    layers = nn.Conv2d(2, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5)
    return nn.Sequential(*layers, nn.Tanh(), nn.Linear(5, C))


def grouped():
    layers = nn.Conv2d(2, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2), nn.Tanh()
    return nn.Sequential(
        *layers,
        nn.Conv2d(6, 6, 3, groups=6, bias=False),
        nn.Flatten(2),
        nn.Linear(8, 3),
        nn.Flatten(),
        nn.Linear(18, C),
    )


def one_and_three():
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, 2),
        nn.Tanh(),
        nn.Unflatten(1, (1, 2, 2)),
        nn.Conv3d(1, 2, (1, 2, 3)),
        nn.Flatten(),
        nn.Linear(2 * 2 * 1 * 29, C),
    )


CASES = {
    "conv, batch norm, linear": (plain, IMAGES),
    "small-resnet": (lambda: models.build("small-resnet", C), (N, 1, 8, 8)),
    "cosine": (lambda: models.build("small-resnet", C, in_channels=2, cosine=True), IMAGES),
    "grouped": (grouped, IMAGES),
    "one and three axes": (one_and_three, (N, 2, 64)),
    "tokens": (Tokens, (N, 5)),
    "twice": (Twice, (N, 4)),
    "in place": (Inplace, IMAGES),
}


def case(name):
    make, shape = CASES[name]
    generator = torch.Generator().manual_seed(2)
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(1)
        model = make().double()
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):  # fresh ones would hide what is left out
                for t, low, high in (
                    (m.running_mean, -1, 1),
                    (m.running_var, 0.5, 2),
                    (m.weight, -1, 2),
                    (m.bias, -1, 1),
                ):
                    t.uniform_(low, high, generator=generator)
    if name == "tokens":
        return model, torch.randint(0, 11, shape, generator=generator)
    return model, torch.randn(shape, generator=generator, dtype=torch.float64)


def closure(model, inputs, labels=LABELS):
    return lambda: F.cross_entropy(model(inputs), labels, reduction="none")


def gradient(value, model, names=None, **options):
    chosen = [p for n, p in model.named_parameters() if p.requires_grad and (names is None or n in names)]
    found = torch.autograd.grad(value, chosen, materialize_grads=True, **options)
    return torch.cat([g.reshape(-1) for g in found])


def single_gradients(model, inputs, names=None):
    """(N, D), a forward and a backward pass for each sample."""
    rows = []
    for i in range(len(inputs)):
        loss = F.cross_entropy(model(inputs[i : i + 1]), LABELS[i : i + 1])
        rows.append(gradient(loss, model, names))
    return torch.stack(rows)


def means(rows, n_groups=4):
    found = torch.zeros(n_groups, rows.shape[1], dtype=rows.dtype)
    for g in set(GROUPS.tolist()):
        found[g] = rows[g == GROUPS].mean(0)
    return found


def same(found, expected, tolerance=1e-10):
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def loss_of(logits, labels):
    return F.cross_entropy(logits, labels, reduction="none")
