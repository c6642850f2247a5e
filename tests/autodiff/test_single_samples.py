"""Squared gradients and rows of single samples, against autograd sample by sample in float64."""

import pytest
import torch
from layers import CASES, LABELS, N, case, gradient, loss_of, same, single_gradients
from torch import nn

from landscape.autodiff import formulas, single_samples
from landscape.autodiff.batch_statistics import batch_statistics_constant


@pytest.fixture(params=[1, 2**25], ids=["one sample at a time", "all at once"])
def pieces(request, monkeypatch):
    """How many entries of gradients may be there at a time."""
    monkeypatch.setattr(formulas, "ENTRIES", request.param)


@pytest.fixture(params=[0, torch.inf], ids=["by positions", "by gradients"])
def lengths(request, monkeypatch):
    """Whether lengths come from inner products between positions, however little work that saves."""
    # private: what decides
    monkeypatch.setattr(formulas, "_WIDE", request.param)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("name", CASES)
def test_squared_gradients_equal_a_loop_over_samples(name):
    model, inputs = case(name)
    model.train()
    if name == "small-resnet":
        model.bn1.eval()  # a mode of its own, which must survive
    modes = [m.training for m in model.modules()]
    batches = [(inputs[:4], LABELS[:4]), (inputs[4:], LABELS[4:])]
    found = single_samples.squared_gradients(model, batches, loss_of)
    assert [m.training for m in model.modules()] == modes
    assert found.dtype == torch.float64
    same(found, single_gradients(model.eval(), inputs).square().sum(0))


def test_squared_gradients_of_chosen_parameters_leave_the_others_out():
    model, inputs = case("cosine")
    names = [n for n, _ in model.named_parameters() if not n.startswith("linear.")]
    found = single_samples.squared_gradients(model, [(inputs, LABELS)], loss_of, names)
    same(found, single_gradients(model.eval(), inputs, names).square().sum(0))


@pytest.mark.usefixtures("lengths", "pieces")
@pytest.mark.parametrize("name", CASES)
def test_rows_of_any_combination_of_logits_equal_a_loop_over_samples(name):
    """Several combinations from one forward pass, one of them zero for some samples."""
    model, inputs = case(name)
    model.eval()
    params = list(model.parameters())
    z = model(inputs)
    all_seeds = torch.randn(2, *z.shape, generator=torch.Generator().manual_seed(1), dtype=z.dtype)
    all_seeds[1, ::2] = 0
    found = single_samples.record(model, inputs, LABELS, lambda outputs, _: outputs)
    lengths, gradients = [], []
    for seeds in all_seeds:
        expected = torch.stack([
            torch.cat([
                g.reshape(-1)
                for g in torch.autograd.grad((z[i] * seeds[i]).sum(), params, retain_graph=True, materialize_grads=True)
            ])
            for i in range(N)
        ])
        same(found.rows(seeds, keep=True), expected)
        lengths.append(expected.square().sum(1))
        gradients.append(expected)
    kept = torch.arange(2)[:, None] == torch.arange(N) % 3 % 2  # of both combinations, and of some samples in no order
    squares, rows = found.square_norms(all_seeds, kept)
    same(squares, torch.stack(lengths))
    same(rows, torch.stack(gradients, dim=1)[kept.T])


@pytest.mark.usefixtures("lengths", "pieces")
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(6, 8, 3, padding=1), (6, 4, 4)),
        (nn.Conv2d(6, 8, (1, 3), stride=(2, 1), dilation=(1, 2), groups=2, bias=False), (6, 5, 6)),
        (nn.Conv2d(4, 4, 2, groups=4), (4, 3, 3)),
        (nn.Linear(6, 8), (6,)),
        (nn.Linear(6, 8), (5, 6)),
        (nn.Linear(6, 8), (2, 3, 6)),
    ],
    ids=str,
)
def test_squared_lengths_of_one_layer_equal_those_of_its_gradients(layer, shape):
    torch.manual_seed(0)
    model = nn.Sequential(layer.double(), nn.Tanh(), nn.Flatten())
    inputs = torch.randn(5, *shape, dtype=torch.float64)
    z = model(inputs)
    seeds = torch.randn(3, *z.shape, dtype=torch.float64)
    rows = [[gradient((z[i] * seed[i]).sum(), model, retain_graph=True) for i in range(5)] for seed in seeds]
    expected = torch.stack([torch.stack(of_seed) for of_seed in rows])
    found = single_samples.record(model, inputs, torch.zeros(5), lambda outputs, _: outputs)
    kept = torch.rand(3, 5) < 0.4
    squares, vectors = found.square_norms(seeds, kept)
    same(squares, expected.square().sum(2))
    same(vectors, expected.transpose(0, 1)[kept.T])


def test_lengths_come_from_positions_where_these_are_few(monkeypatch):
    taken, run = [], formulas.by_positions
    # private: which layers take this way
    monkeypatch.setattr(formulas, "by_positions", lambda x, d: taken.append(x.shape[-1]) or run(x, d))
    model = nn.Sequential(nn.Conv2d(16, 16, 3), nn.AvgPool2d(10), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(16, 9))
    found = single_samples.record(model, torch.randn(2, 16, 32, 32), torch.zeros(2), lambda outputs, _: outputs)
    seeds = torch.eye(9)[:, None].expand(9, 2, 9).contiguous()
    found.square_norms(seeds)
    assert taken == [1, 1]  # and not of 900 positions
    taken.clear()
    found.square_norms(seeds, torch.ones(9, 2, dtype=torch.bool))
    assert not taken  # all gradients are wanted anyway


def test_terms_that_cancel_leave_the_digits_of_the_dtype():
    """The same input at all positions, and gradients whose sum over them is small: the products of positions cancel."""
    x = torch.ones(1, 64, 4, 4)
    d = torch.randn(3, 1, 64, 4, 4, generator=torch.Generator().manual_seed(0))
    d -= d.mean((3, 4), keepdim=True) * 0.999
    model = nn.Sequential(nn.Conv2d(64, 64, 1, bias=False), nn.Flatten())
    found = single_samples.record(model, x, torch.zeros(1), lambda outputs, _: outputs)
    expected = 64 * d.double().sum((3, 4)).square().sum(2)
    torch.testing.assert_close(found.square_norms(d.flatten(2))[0], expected, rtol=1e-6, atol=0)


def test_a_channel_that_never_changes_has_the_statistics_of_batch_norm():
    """As after a unit that is never active: its variance is zero, and so is what batch norm makes of it."""
    x = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 2.0
    plain, constant = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    expected = plain(x)
    with batch_statistics_constant(constant):
        found = constant(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(constant.running_mean, plain.running_mean)
    torch.testing.assert_close(constant.running_var, plain.running_var)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_rows_of_recurrent_layers_equal_a_loop_over_samples(kind):
    """vmap has no rule for some of them; then each sample has a backward pass, of the combination asked for."""

    class Recurrence(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.fc = getattr(nn, kind)(3, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(self.rnn(x)[0][:, -1])

    torch.manual_seed(0)
    model, inputs = Recurrence().double(), torch.randn(5, 6, 3, dtype=torch.float64)
    params = list(model.parameters())
    z = model(inputs)
    seeds = torch.randn(z.shape, dtype=z.dtype)
    expected = torch.stack([
        torch.cat([g.reshape(-1) for g in torch.autograd.grad((z[i] * seeds[i]).sum(), params, retain_graph=True)])
        for i in range(5)
    ])
    found = single_samples.record(model, inputs, torch.zeros(5), lambda outputs, _: outputs)
    torch.testing.assert_close(found.rows(seeds, keep=True), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.square_norms(seeds[None])[0][0], expected.square().sum(1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("recurrent", [False, True], ids=["vectorised", "one by one"])
def test_rows_of_a_model_that_overwrites_its_inputs_equal_a_loop_over_samples(recurrent):
    class Overwriting(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.rnn = nn.Parameter(torch.ones(3)), nn.LSTM(3, 3, batch_first=True)

        def forward(self, x):
            x -= 0.5
            x *= 2
            return ((self.rnn(x)[0] if recurrent else x) * self.scale).sin().sum(1)

    torch.manual_seed(0)
    model, inputs = Overwriting().double(), torch.randn(5, 6, 3, dtype=torch.float64)
    z, given = model(inputs.clone()), inputs.clone()
    seeds = torch.randn(z.shape, dtype=z.dtype)
    expected = torch.stack([gradient((z[i] * seeds[i]).sum(), model, retain_graph=True) for i in range(5)])
    found = single_samples.record(model, inputs, torch.zeros(5), lambda outputs, _: outputs)
    for _ in range(2):
        same(found.rows(seeds, keep=True), expected)
    assert torch.equal(inputs, given)


def test_an_operation_whose_derivative_looks_at_numbers_goes_back_once_for_each_combination():
    class Kind(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, g):
            return 2 * g if g.abs().max().item() >= 0 else g  # which no vectorised pass can answer

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.two(Kind.apply(self.one(x)).tanh())

    torch.manual_seed(0)
    model, inputs = Net().double(), torch.randn(5, 3, dtype=torch.float64)
    seeds = torch.randn(2, 5, 3, dtype=torch.float64)
    found = single_samples.record(model, inputs, torch.zeros(5), lambda outputs, _: outputs)
    expected = torch.stack([found.rows(s, keep=True).square().sum(1) for s in seeds])
    same(found.square_norms(seeds)[0], expected)


def test_squared_lengths_of_a_long_layer_are_as_exact_as_its_dtype():
    x = torch.randn(2, 2**22, generator=torch.Generator().manual_seed(0))
    model = nn.Linear(x.shape[1], 1, bias=False)
    found = single_samples.record(model, x, torch.zeros(2), lambda outputs, _: outputs[:, 0])
    torch.testing.assert_close(
        found.square_norms(torch.ones(1, 2))[0][0], x.double().square().sum(1), rtol=1e-6, atol=0
    )


@pytest.mark.usefixtures("lengths")
def test_squared_lengths_of_a_long_kernel_are_as_exact_as_its_dtype():
    generator = torch.Generator().manual_seed(0)
    x, seeds = torch.randn(2, 2048, 1, 1, generator=generator), torch.randn(2, 2, 2048, generator=generator)
    model = nn.Sequential(nn.Conv2d(2048, 2048, 1, bias=False), nn.Flatten())
    found = single_samples.record(model, x, torch.zeros(2), lambda outputs, _: outputs)
    expected = seeds.double().square().sum(2) * x.double().square().sum((1, 2, 3))
    torch.testing.assert_close(found.square_norms(seeds)[0], expected, rtol=5e-6, atol=0)


def test_weighted_squares_of_a_long_layer_are_as_exact_as_its_dtype():
    generator = torch.Generator().manual_seed(0)
    x, weights = torch.randn(2, 2**20, generator=generator), torch.rand(3, 2**20, generator=generator)
    model = nn.Linear(x.shape[1], 1, bias=False)
    batches = [(x, torch.zeros(2))]
    found = single_samples.weighted_squares(model, batches, lambda outputs, _: outputs[:, 0], weights)
    torch.testing.assert_close(found, weights.double() @ x.double().square().T, rtol=1e-5, atol=0)
