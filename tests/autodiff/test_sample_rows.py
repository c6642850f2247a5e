"""Layers with a row for each sample, found by gradients, against autograd group by group in float64."""

import pytest
import torch
from layers import CASES, GROUPS, LABELS, C, N, case, closure, gradient, same
from torch import nn
from torch.nn import functional as F

from landscape.autodiff import per_sample
from landscape.autodiff.batch_statistics import batch_statistics_constant
from landscape.autodiff.sample_rows import SampleRows


def seeded(make):
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        return make().double()


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def expected(losses, model):
    """Gradients of the groups' means, a backward pass for each."""
    values = losses()
    rows = [torch.zeros(sum(p.numel() for p in model.parameters())).double() for _ in range(4)]
    for g in set(GROUPS[: len(values)].tolist()):
        here = GROUPS[: len(values)] == g
        rows[g] = gradient(values[here].mean(), model, retain_graph=True)
    return torch.stack(rows)


class Sequence(nn.Module):
    """Time before samples; the first step alone, or their mean, gives the logits."""

    def __init__(self, read=lambda h: h.mean(0)):
        super().__init__()
        self.embed, self.attend = nn.Linear(4, 4), nn.MultiheadAttention(4, 2)
        self.mix, self.out, self.read = nn.Linear(4, 4), nn.Linear(4, C), read

    def forward(self, x):
        h = self.embed(x).transpose(0, 1)
        h = h + self.attend(h, h, h, need_weights=False)[0]
        return self.out(self.read(torch.tanh(self.mix(h))))


class Sorting(nn.Module):
    """Samples in the order of their first number, and back again."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(4, 4), nn.Linear(4, C)

    def forward(self, x):
        order = x[:, 0].argsort()
        return self.out(torch.tanh(self.inner(x[order]))[order.argsort()])


class Meeting(nn.Module):
    """Samples that influence each other after the first layer."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(4, 4), nn.Linear(4, C)

    def forward(self, x):
        h = self.inner(x)
        return self.out(torch.tanh(h - 0.5 * h.mean(0)))


@pytest.mark.parametrize("n", [1, 2, N - 1, N])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (Sequence, (N, 4)),
        (lambda: Sequence(lambda h: h[0]), (N, 4)),
        (lambda: Sequence(lambda h: h[-1]), (N - 1, 4)),
        (Sorting, (4,)),
        (Meeting, (4,)),
    ],
)
def test_groups_have_their_own_gradients_whatever_the_first_axis_is(make, shape, n):
    model, found = seeded(make), SampleRows()
    for seed in range(3):  # the layers are found in the first batch
        losses = closure(model, normal(n, *shape, seed=seed), LABELS[:n])
        _, rows = per_sample.group_gradients(model, losses, GROUPS[:n], 4, first=found)
        same(rows, expected(losses, model))


def test_a_layer_of_another_axis_is_not_trusted_at_a_batch_size_where_its_gradient_was_zero():
    """The last layer begins with zeros, so that the first batch says nothing of the layers before it."""
    model, found = seeded(Sequence), SampleRows()
    nn.init.zeros_(model.out.weight)
    for seed in range(2):
        losses = closure(model, normal(N, N, 4, seed=seed))
        _, rows = per_sample.group_gradients(model, losses, GROUPS, 4, first=found)
        same(rows, expected(losses, model))
        nn.init.constant_(model.out.weight[0], 1.0)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_all_layers_of_independent_samples_are_found_in_one_batch(name, kind):
    """In training mode with constant statistics of batch norm, and in bfloat16; random numbers are kept."""
    model, inputs = case(name)
    passes, found = [], SampleRows()
    model = model.float() if kind == torch.bfloat16 else model
    inputs = inputs.float() if kind == torch.bfloat16 and inputs.is_floating_point() else inputs

    def losses():
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == torch.bfloat16):
            logits = model(inputs)
        logits.register_hook(lambda slope: passes.append(1))
        return F.cross_entropy(logits, LABELS, reduction="none")

    before = torch.get_rng_state()
    for _ in range(2):
        passes.clear()
        with batch_statistics_constant(model):
            per_sample.group_gradients(model, losses, GROUPS, 4, first=found)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(passes) == 1 + 3 * (name in {"cosine", "tokens", "twice", "in place"})  # as without the search
