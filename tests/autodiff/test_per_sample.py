"""Gradients of groups and of single samples, against autograd sample by sample in float64."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from landscape.autodiff import per_sample, single_samples
from landscape.autodiff.batch_statistics import batch_statistics_constant, kept_statistics
from landscape.errors import InputError, NumericalError
from landscape.networks import models

GROUPS = torch.tensor([3, 0, 3, 1, 0, 3, 0])  # unsorted; group 2 is absent
N, C = len(GROUPS), 3
LABELS = torch.tensor([0, 2, 1, 1, 0, 2, 2])
IMAGES = (N, 2, 8, 8)


class Tokens(nn.Module):
    """Embedding, LayerNorm, a bare parameter and attention-free mixing: nothing that has a formula but `out`."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.shift = nn.Parameter(torch.randn(6))
        self.norm = nn.LayerNorm(6)
        self.mix = nn.Conv1d(6, 6, 3, padding="same")
        self.out = nn.Linear(6, C)

    def forward(self, tokens):
        x = self.norm(self.embed(tokens) + self.shift)
        return self.out(torch.tanh(self.mix(x.mT)).mT).mean(1)


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


# Groups ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_group_gradients_equal_means_over_single_samples(name):
    model, inputs = case(name)
    model.eval()
    losses = closure(model, inputs)
    values, rows = per_sample.group_gradients(model, losses, GROUPS, 4)
    same(rows, means(single_gradients(model, inputs)))
    assert torch.equal(values, losses().detach())
    assert not values.requires_grad
    assert not rows[2].any()


@pytest.mark.parametrize("name", CASES)
def test_one_backward_pass_suffices_where_all_layers_have_a_formula(name, monkeypatch):
    """Of the cases above, those with other layers need one pass more for each group that is present."""
    model, inputs = case(name)
    model.eval()
    calls, grad = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: (calls.append(1), grad(*a, **k))[1])
    per_sample.group_gradients(model, closure(model, inputs), GROUPS, 4)
    assert len(calls) == 1 + 3 * (name in {"cosine", "tokens", "twice", "in place"})


@pytest.mark.parametrize("name", ["cosine", "twice", "tokens"])
def test_chosen_parameters_come_in_the_order_asked_for_and_frozen_ones_do_not(name):
    model, inputs = case(name)
    model.eval()
    frozen, *_, wanted, last = [n for n, p in model.named_parameters() if "unused" not in n]
    model.get_parameter(frozen).requires_grad_(False)
    _, rows = per_sample.group_gradients(model, closure(model, inputs), GROUPS, 4, [last, wanted])
    expected = [means(single_gradients(model, inputs, [n])) for n in (last, wanted)]
    same(rows, torch.cat(expected, dim=1))
    _, rows = per_sample.group_gradients(model, closure(model, inputs), GROUPS, 4)
    same(rows, means(single_gradients(model, inputs)))


@pytest.mark.parametrize("name", ["conv, batch norm, linear", "small-resnet", "grouped"])
def test_the_arithmetic_is_that_of_an_ordinary_step(name):
    """Weight gradients computed twice would be a third more. Sums over groups in batch norm are some 2 % in these."""
    model, inputs = case(name)
    model.eval()
    with FlopCounterMode(display=False) as ordinary:
        closure(model, inputs)().mean().backward()
    with FlopCounterMode(display=False) as grouped:
        per_sample.group_gradients(model, closure(model, inputs), GROUPS, 4)
    assert 0 < ordinary.get_total_flops() <= grouped.get_total_flops() < 1.05 * ordinary.get_total_flops()


def test_hooks_of_others_are_seen_and_ours_are_gone():
    model, inputs = case("conv, batch norm, linear")
    model.eval()
    model[0].register_forward_hook(lambda _, __, output: 2 * output)
    model[4].register_forward_pre_hook(lambda _, inputs: (inputs[0] + 1,))
    _, rows = per_sample.group_gradients(model, closure(model, inputs), GROUPS, 4)
    same(rows, means(single_gradients(model, inputs)))
    assert [len(m._forward_hooks) for m in model] == [1] + [0] * 7


class Doubled(nn.Linear):
    """No linear layer, though it is one by its class."""

    def forward(self, x):
        return 2 * super().forward(x) + self.bias


class Unbatched(nn.Module):
    """Layers that are given one thing for the whole batch, as long as the batch has samples."""

    def __init__(self):
        super().__init__()
        self.line, self.image, self.out = nn.Linear(N, C), nn.Conv2d(N, C, 3), nn.Linear(4, C)

    def forward(self, x):
        common = self.line(torch.linspace(0, 1, N).double()) + self.image(torch.ones(N, 3, 3).double()).flatten()
        return self.out(x) * common


@pytest.mark.parametrize("make", [lambda: Doubled(4, C), Unbatched])
def test_layers_that_only_look_as_if_they_had_a_formula_get_their_own_passes(make):
    inputs = torch.randn(N, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.random.fork_rng():
        model = make().double()
    _, rows = per_sample.group_gradients(model, closure(model, inputs), GROUPS, 4)
    same(rows, means(single_gradients(model, inputs)))
    found = single_samples.squared_gradients(model, [(inputs, LABELS)], loss_of)
    same(found, single_gradients(model, inputs).square().sum(0))


def test_a_weight_made_by_a_parametrization_is_followed_to_its_parameters():
    model, inputs = case("conv, batch norm, linear")
    nn.utils.parametrizations.weight_norm(model[4])
    model.eval()
    _, rows = per_sample.group_gradients(model, closure(model, inputs), GROUPS, 4)
    same(rows, means(single_gradients(model, inputs)))


def test_bfloat16_within_autocast_gives_float32_rows_near_the_exact_ones():
    model, inputs = case("conv, batch norm, linear")
    exact = means(single_gradients(model.eval(), inputs)).float()
    model, inputs = model.float(), inputs.float()

    def losses():
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(inputs)
        return F.cross_entropy(logits.float(), LABELS, reduction="none")

    _, rows = per_sample.group_gradients(model, losses, GROUPS, 4)
    assert rows.dtype == torch.float32
    assert (rows - exact).norm() < 0.03 * exact.norm()  # bfloat16 has 8 bits: 0.4 % for each operation


# Batch norm -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("name", ["conv, batch norm, linear", "small-resnet", "in place"])
def test_constant_statistics_give_the_outputs_and_running_statistics_of_training(name, momentum):
    model, inputs = case(name)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            m.momentum = momentum
    twin = copy.deepcopy(model)
    for x in (inputs, inputs.flip(0) * 2):
        expected = twin(x)
        with batch_statistics_constant(model):
            same(model(x).detach(), expected.detach(), 1e-12)
    for (buffer, found), expected in zip(model.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, msg=buffer)
    assert all("forward" not in m.__dict__ for m in model.modules())


def detached(model, inputs):
    """A twin in eval mode whose running statistics are the batch's own, layer after layer, by hand."""
    twin = copy.deepcopy(model).train()

    def freeze(module, args):
        x = args[0].detach()
        axes = [a for a in range(x.ndim) if a != 1]
        module.running_mean = x.mean(axes)
        module.running_var = x.var(axes, correction=0)
        module.eval()

    norms = [m for m in twin.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    handles = [m.register_forward_pre_hook(freeze) for m in norms]
    twin(inputs)
    for handle in handles:
        handle.remove()
    return twin


@pytest.mark.parametrize("name", ["conv, batch norm, linear", "small-resnet", "cosine", "in place"])
def test_group_gradients_in_training_equal_those_with_statistics_detached_by_hand(name):
    model, inputs = case(name)
    expected = means(single_gradients(detached(model, inputs), inputs))
    with batch_statistics_constant(model):
        _, rows = per_sample.group_gradients(model, closure(model, inputs), GROUPS, 4)
    same(rows, expected)
    through = gradient(F.cross_entropy(model(inputs), LABELS), model)
    share = torch.bincount(GROUPS, minlength=4).double() / N
    assert (share @ rows - through).norm() > 1e-3 * through.norm()  # constants they are


def test_a_second_pass_without_statistics_leaves_them_alone():
    model, inputs = case("conv, batch norm, linear")
    before = copy.deepcopy(dict(model.named_buffers()))
    with batch_statistics_constant(model), kept_statistics(model):
        per_sample.group_gradients(model, closure(model, inputs), GROUPS, 4)
    assert all(torch.equal(t, before[name]) for name, t in model.named_buffers())


def test_batch_norm_in_training_mode_is_refused():
    model, inputs = case("small-resnet")
    with pytest.raises(InputError, match=r"bn1 is a batch norm .* batch_statistics_constant"):
        per_sample.group_gradients(model, closure(model, inputs), GROUPS, 4)


def test_one_value_per_channel_and_synchronised_statistics_are_refused():
    model = nn.Sequential(nn.BatchNorm1d(3))
    with batch_statistics_constant(model), pytest.raises(InputError, match="one value per channel"):
        model(torch.ones(1, 3))
    with pytest.raises(InputError, match="SyncBatchNorm"), batch_statistics_constant(nn.SyncBatchNorm(3)):
        pass


# The check, and what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_the_check_passes_where_samples_are_independent(name):
    model, inputs = case(name)
    before = copy.deepcopy(dict(model.named_buffers()))
    with batch_statistics_constant(model):
        per_sample.check(model, closure(model, inputs), tolerance=1e-10)
    assert all(torch.equal(t, before[key]) for key, t in model.named_buffers())


class Sequence(nn.Module):
    """Time before batch, as many steps as samples: slices of the first axis are not samples."""

    def __init__(self):
        super().__init__()
        self.step, self.out = nn.Linear(4, 4), nn.Linear(4, C)

    def forward(self, x):
        return self.out(torch.tanh(self.step(x.movedim(1, 0))).sum(0))


def test_the_check_finds_another_first_axis_and_samples_that_influence_each_other():
    inputs = torch.randn(N, N, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.random.fork_rng():
        model = Sequence().double()
    with pytest.raises(NumericalError, match=r"% off.*first_pass='exact'"):
        per_sample.check(model, closure(model, inputs))
    linear, x = nn.Linear(4, C).double(), inputs[0]
    with pytest.raises(NumericalError, match="influence each other"):
        per_sample.check(linear, closure(lambda x: linear(x) * linear(x).mean(0), x))
    with pytest.raises(InputError, match="at least 3"):
        per_sample.check(linear, closure(linear, x[:2], LABELS[:2]))


def test_what_does_not_fit_is_refused():
    model, inputs = case("twice")
    losses = closure(model, inputs)
    for groups, n in ((GROUPS, 3), (GROUPS - 1, 4), (GROUPS[:3], 4)):
        with pytest.raises(InputError, match="groups"):
            per_sample.group_gradients(model, losses, groups, n)
    with pytest.raises(InputError, match="no trainable parameter 'x'"):
        per_sample.group_gradients(model, losses, GROUPS, 4, ["x"])
    with pytest.raises(InputError, match="reduction"):
        per_sample.group_gradients(model, lambda: losses().mean(), GROUPS, 4)
    with pytest.raises(InputError, match="no_grad"), torch.no_grad():
        per_sample.group_gradients(model, losses, GROUPS, 4)
    with pytest.raises(InputError, match="requires_grad"):
        per_sample.group_gradients(model.requires_grad_(False), losses, GROUPS, 4)


# Squares --------------------------------------------------------------------------------------------------------------


def loss_of(logits, labels):
    return F.cross_entropy(logits, labels, reduction="none")


@pytest.mark.parametrize("entries", [1, 2**25])  # one sample at a time, and all at once
@pytest.mark.parametrize("name", CASES)
def test_squared_gradients_equal_a_loop_over_samples(name, entries, monkeypatch):
    monkeypatch.setattr(single_samples, "_ENTRIES", entries)
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


@pytest.mark.parametrize("entries", [1, 2**25])
@pytest.mark.parametrize("name", CASES)
def test_rows_of_any_combination_of_logits_equal_a_loop_over_samples(name, entries, monkeypatch):
    """Several combinations from one forward pass, one of them zero for some samples."""
    monkeypatch.setattr(single_samples, "_ENTRIES", entries)
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
