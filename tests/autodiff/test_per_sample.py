"""Gradients of groups of samples, against autograd sample by sample in float64."""

import copy

import pytest
import torch
from layers import CASES, GROUPS, LABELS, C, N, case, closure, gradient, loss_of, means, same, single_gradients
from refusals import refused
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from landscape.autodiff import per_sample, single_samples
from landscape.autodiff.batch_statistics import batch_statistics_constant, kept_statistics
from landscape.errors import InputError, NumericalError

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


@pytest.mark.parametrize("name", ["conv, batch norm, linear", "small-resnet", "grouped", "cosine"])
def test_samples_that_lie_in_the_order_of_their_groups_give_the_same(name):
    model, inputs = case(name)
    model.eval()
    order = GROUPS.argsort(stable=True)
    assert not torch.equal(order, torch.arange(N))

    def losses():
        return F.cross_entropy(model(inputs[order]), LABELS[order], reduction="none")

    _, rows = per_sample.group_gradients(model, losses, GROUPS[order], 4)
    same(rows, means(single_gradients(model, inputs)))


def test_in_bfloat16_batch_norm_sums_in_float32():
    """Four thousand positions of one size, where a sum in bfloat16 stops growing after 256."""
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        model[1].weight.fill_(1.0)
    inputs, groups = torch.full((4, 2, 32, 32), 1.0).bfloat16(), torch.tensor([0, 0, 1, 1])

    def losses():
        with torch.autocast("cpu", torch.bfloat16):
            return model(inputs).float().sum(1) * 1024

    with batch_statistics_constant(model.eval()):
        _, rows = per_sample.group_gradients(model, losses, groups, 2)
    torch.testing.assert_close(rows[:, :4], torch.full((2, 4), 2048.0), rtol=1e-2, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_one_backward_pass_suffices_where_all_layers_have_a_formula(name):
    """Of the cases above, those with other layers need one pass more for each group that is present."""
    model, inputs = case(name)
    model.eval()
    passes = []

    def losses():
        logits = model(inputs)
        logits.register_hook(lambda slope: passes.append(1))
        return F.cross_entropy(logits, LABELS, reduction="none")

    per_sample.group_gradients(model, losses, GROUPS, 4)
    assert len(passes) == 1 + 3 * (name in {"cosine", "tokens", "twice", "in place"})


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
    with refused(InputError, "batch_statistics_constant"):
        per_sample.group_gradients(model, closure(model, inputs), GROUPS, 4)


def test_one_value_per_channel_and_synchronised_statistics_are_refused():
    model = nn.Sequential(nn.BatchNorm1d(3))
    with batch_statistics_constant(model), pytest.raises(InputError, match="one value per channel"):
        model(torch.ones(1, 3))
    with refused(InputError, "SyncBatchNorm"), batch_statistics_constant(nn.SyncBatchNorm(3)):
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
    with pytest.raises(NumericalError, match="change their order"):
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
        with refused(InputError, "groups"):
            per_sample.group_gradients(model, losses, groups, n)
    with refused(InputError, "x"):
        per_sample.group_gradients(model, losses, GROUPS, 4, ["x"])
    with refused(InputError, "reduction"):
        per_sample.group_gradients(model, lambda: losses().mean(), GROUPS, 4)
    with refused(InputError, "no_grad"), torch.no_grad():
        per_sample.group_gradients(model, losses, GROUPS, 4)
    with refused(InputError, "requires_grad"):
        per_sample.group_gradients(model.requires_grad_(False), losses, GROUPS, 4)
