from functools import partial
from itertools import permutations
from threading import Lock

import numpy as np
import pytest
import torch
from permuting import Net, made, move, normal
from refusals import refused
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from landscape.errors import DataError, InputError, NumericalError
from landscape.networks import models
from landscape.networks.matching import matching


def mlp():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def small_resnet(**options):
    return models.CifarResNet(3, n_blocks=1, widths=(3, 7, 12), in_channels=2, **options)


def downsampling():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        models.Bottleneck(4, 3, 6, 2, 1),
        models.Bottleneck(6, 4, 6, 1, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


def flattening():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 6), nn.Linear(6, 3)
    )


def copy_of(model, make, state):
    twin = make().to(next(model.parameters()).dtype)
    twin.load_state_dict(state)
    return twin.eval()


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_a_perceptron_permuted_by_hand_is_recovered():
    model = made(mlp)
    state = snapshot(model)
    p, q = [3, 0, 5, 1, 2, 4], [4, 3, 0, 1, 2]
    state["0.weight"], state["0.bias"] = state["0.weight"][p], state["0.bias"][p]
    state["2.weight"], state["2.bias"] = state["2.weight"][q][:, p], state["2.bias"][q]
    state["4.weight"] = state["4.weight"][:, q]
    found = matching.match(model, copy_of(model, mlp, state), [normal(40, 4)])
    assert equal(found.state, model.state_dict())
    assert [order.tolist() for order in found.orders] == [np.argsort(p).tolist(), np.argsort(q).tolist()]
    assert (found.moved, found.n_channels) == (11, 11)
    assert found.correlation == pytest.approx(1, abs=1e-12)
    assert found.correlation_before < 0.5


def test_the_inside_of_a_block_permuted_by_hand_is_recovered_with_its_statistics():
    model = made(small_resnet)
    state = snapshot(model)
    p = [6, 2, 0, 1, 5, 3, 4]
    for name in ("conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"):
        state[f"layer2.0.{name}"] = state[f"layer2.0.{name}"][p]
    state["layer2.0.conv2.weight"] = state["layer2.0.conv2.weight"][:, p]
    found = matching.match(model, copy_of(model, small_resnet, state), [normal(9, 2, 8, 8)])
    assert equal(found.state, model.state_dict())
    assert found.moved == 7


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (small_resnet, torch.float64),
        (partial(small_resnet, scale=9.0), torch.float32),
        (downsampling, torch.float32),
        (flattening, torch.float64),
    ],
)
def test_all_groups_permuted_at_random_are_recovered(make, dtype):
    model = made(make).to(dtype)
    inputs = normal(9, 2, 8, 8).to(dtype)
    twin = copy_of(model, make, model.state_dict())
    generator, n_moved = torch.Generator().manual_seed(0), 0
    for group in matching.groups(model, inputs):
        order = torch.randperm(group.size, generator=generator).tolist()
        move(twin.state_dict(), group, order)
        n_moved += sum(place != channel for place, channel in enumerate(order))
    assert not equal(twin.state_dict(), model.state_dict())
    found = matching.match(model, twin, inputs.split(4))
    assert equal(found.state, model.state_dict())
    assert found.moved == n_moved
    assert found.held == ()


@pytest.mark.parametrize("make", [mlp, small_resnet, downsampling, flattening])
def test_matching_keeps_the_function(make):
    reference, other = made(make, seed=1), made(make, seed=2)
    inputs = normal(9, 4) if make is mlp else normal(9, 2, 8, 8)
    found = matching.match(reference, other, inputs.split(4))
    assert found.moved > 0
    assert found.correlation > found.correlation_before
    torch.testing.assert_close(copy_of(other, make, found.state)(inputs), other(inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [mlp, small_resnet, flattening])
def test_a_network_matches_itself_without_a_move(make):
    model = made(make)
    found = matching.match(model, model, [normal(9, 4) if make is mlp else normal(9, 2, 8, 8)])
    assert found.moved == 0
    assert equal(found.state, model.state_dict())
    assert found.correlation == found.correlation_before == pytest.approx(1, abs=1e-12)


def correlations(one, two, inputs):
    """Of the hidden channels of two perceptrons, before and after the activation function, by NumPy."""
    read = []
    for layer in (0, 1, 2, 3):
        a, b = (model[: layer + 1](inputs).detach().numpy().T for model in (one, two))
        read.append(np.corrcoef(a, b)[: len(a), len(a) :])
    return (read[0] + read[1]) / 2, (read[2] + read[3]) / 2


@pytest.mark.parametrize("seed", range(3))
def test_no_other_order_has_a_larger_correlation(seed):
    one, two, inputs = made(mlp, seed=seed), made(mlp, seed=seed + 10), normal(50, 4)
    for model in (one, two):
        model[0].bias.data.mul_(0.3)  # no unit is dead or always alive
    found = matching.match(one, two, [inputs])
    r = correlations(one, two, inputs)
    best = [max(permutations(range(len(m))), key=lambda order, m=m: sum(m[range(len(m)), order])) for m in r]
    assert [order.tolist() for order in found.orders] == [list(order) for order in best]
    totals = [
        sum(m[range(len(m)), order].sum() for m, order in zip(r, orders, strict=True))
        for orders in (best, (range(6), range(5)))
    ]
    assert (found.correlation, found.correlation_before) == pytest.approx([t / 11 for t in totals], abs=1e-12)


@pytest.mark.parametrize("size", [1, 4])
def test_the_division_into_batches_changes_nothing(size):
    one, two, inputs = made(small_resnet, seed=1), made(small_resnet, seed=2), normal(9, 2, 8, 8)
    whole, ragged = (matching.match(one, two, batches) for batches in ([inputs], inputs.split(size)))
    assert all(np.array_equal(a, b) for a, b in zip(whole.orders, ragged.orders, strict=True))
    assert (ragged.correlation, ragged.correlation_before) == pytest.approx(
        (whole.correlation, whole.correlation_before), abs=1e-12
    )


def test_dead_channels_have_no_correlation_and_keep_their_order():
    model = made(mlp)
    model[0].weight.data[[1, 3, 4]] = 0
    model[0].bias.data[[1, 3, 4]] = torch.tensor([-1.0, 0.1, 1 / 3], dtype=torch.float64)
    same = matching.match(model, model, [normal(40, 4)])
    assert same.moved == 0
    assert same.correlation == pytest.approx((3 + 5) / 11, abs=1e-12)
    twin = copy_of(model, mlp, model.state_dict())
    hidden = matching.groups(model, normal(1, 4))[0]
    move(twin.state_dict(), hidden, [2, 1, 0, 3, 4, 5])  # two that live
    found = matching.match(model, twin, [normal(40, 4)])
    assert equal(found.state, model.state_dict())
    assert found.moved == 2


def test_of_places_for_dead_channels_each_keeps_its_own():
    """Channels 0, 1, 2 of the first are 0, 2, 4 of the other; that leaves the places 3 and 4 to the dead 1 and 3."""

    def narrow():
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    one, two = made(narrow), made(narrow)
    one[0].weight.data[3:] = 0
    two[0].weight.data[[1, 3]] = 0
    two[0].weight.data[[0, 2, 4]] = one[0].weight.data[:3]
    two[0].bias.data[[0, 2, 4]] = one[0].bias.data[:3]
    found = matching.match(one, two, [normal(40, 4)])
    assert found.orders[0].tolist() == [0, 2, 4, 3, 1]


def test_one_sample_tells_nothing_of_a_perceptron():
    found = matching.match(made(mlp, seed=1), made(mlp, seed=2), [normal(1, 4)])
    assert (found.moved, found.correlation, found.correlation_before) == (0, 0, 0)


def test_a_large_mean_hides_no_correlation():
    model = made(mlp)
    model[0].bias.data.fill_(1e4)
    twin = copy_of(model, mlp, model.state_dict())
    move(twin.state_dict(), matching.groups(model, normal(1, 4))[0], [1, 2, 3, 4, 5, 0])
    found = matching.match(model, twin, [normal(40, 4)])
    assert found.orders[0].tolist() == [5, 0, 1, 2, 3, 4]


def test_models_and_inputs_are_left_as_they_were():
    def make():
        return nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 3))

    one, two, inputs = made(make, seed=1).train(), made(make, seed=2), normal(9, 4)
    one[4].requires_grad_(False)
    before = [*(snapshot(model) for model in (one, two)), inputs.clone()]
    found = matching.match(one, two, inputs.split(4))
    assert equal(one.state_dict(), before[0])
    assert equal(two.state_dict(), before[1])
    assert torch.equal(inputs, before[2])
    assert [m.training for m in one] == [True] * 5
    assert not any(m.training for m in two)
    assert [p.requires_grad for p in one.parameters()] == [True] * 4 + [False] * 2
    assert all(p.grad is None for p in one.parameters())
    found.state["1.weight"].zero_()
    assert equal(two.state_dict(), before[1])


def test_a_buffer_that_runs_overwrite_is_handed_on_as_it_was():
    def counting(net, x):
        net.calls += 1
        return net.fc(torch.tanh(net.hidden(x)))

    def counter():
        net = Net(counting, hidden=nn.Linear(4, 5), fc=nn.Linear(5, 3))
        net.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        return net

    one, two = made(counter, seed=1), made(counter, seed=2)
    two.calls.fill_(7)
    found = matching.match(one, two, normal(9, 4).split(4))
    assert (found.state["calls"], one.calls, two.calls) == (7, 0, 7)


class Pair(nn.Module):
    """Returns (features, logits)."""

    def __init__(self):
        super().__init__()
        self.encoder, self.fc = nn.Sequential(nn.Linear(4, 5), nn.Tanh()), nn.Linear(5, 3)

    def forward(self, x):
        features = self.encoder(x)
        return {"features": features, "logits": self.fc(features)}


def test_features_that_are_returned_move_only_if_the_logits_are_named():
    one, two, inputs = made(Pair, seed=1), made(Pair, seed=2), normal(40, 4)
    assert matching.match(one, two, [inputs]).n_channels == 0
    found = matching.match(one, two, [inputs], logits=partial(models.logits_of, n_classes=3))
    assert found.n_channels == 5
    assert found.moved > 0
    with pytest.raises(InputError, match=r"none is logits \(batch, 9\)"):
        matching.match(one, two, [inputs], logits=partial(models.logits_of, n_classes=9))
    expected = two(inputs)["logits"]
    torch.testing.assert_close(copy_of(two, Pair, found.state)(inputs)["logits"], expected, rtol=1e-12, atol=1e-12)


def test_a_network_without_hidden_channels_is_matched_as_it_is():
    one, two = (made(partial(nn.Linear, 4, 3), seed=seed) for seed in (1, 2))
    found = matching.match(one, two, [normal(3, 4)])
    assert (found.moved, found.n_channels, found.groups) == (0, 0, ())
    assert np.isnan(found.correlation)
    assert equal(found.state, two.state_dict())


def test_weights_of_another_type_keep_it():
    one = made(mlp)
    twin = copy_of(one, mlp, one.state_dict()).float()
    move(twin.state_dict(), matching.groups(one, normal(1, 4))[1], [1, 0, 2, 3, 4])
    found = matching.match(one, twin, [normal(40, 4).float()])
    assert found.moved == 2
    assert equal(found.state, one.float().state_dict())


def test_shared_parameters_move_together_and_must_be_shared_by_both():
    def sharing():
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Linear(5, 3))
        model[4].weight = model[2].weight
        return model

    model = made(sharing)
    twin = copy_of(model, sharing, model.state_dict())
    (group,) = matching.groups(model, normal(1, 4))
    for slot in group.slots:  # the name under which a shared tensor comes second would move it again
        if slot.name != "4.weight":
            old = twin.state_dict()[slot.name]
            old.copy_(old.roll(1, slot.axis))
    torch.testing.assert_close(twin(normal(3, 4)), model(normal(3, 4)), rtol=1e-12, atol=1e-12)
    found = matching.match(model, twin, [normal(40, 4)])
    assert found.moved == 5
    assert equal(found.state, model.state_dict())
    apart = made(lambda: nn.Sequential(*(nn.Linear(a, b) for a, b in ((4, 5), (5, 5), (5, 5), (5, 3)))))
    alike = nn.Sequential(*(nn.Linear(a, b) for a, b in ((4, 5), (5, 5), (5, 5), (5, 3)))).double()
    alike[2].weight = alike[1].weight
    with refused(InputError, "match"):
        matching.match(apart, alike, [normal(3, 4)])


def test_networks_of_different_architecture_are_refused():
    wider = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3))
    with refused(InputError, "0.weight", 6, 4, 7):
        matching.match(mlp(), wider, [normal(3, 4)])
    with refused(InputError, "1.weight", 5):
        matching.match(nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5)), nn.Sequential(nn.Linear(4, 5)), [normal(3, 4)])


@pytest.mark.parametrize(
    ("batches", "kind", "message"),
    [
        ([], DataError, ("samples",)),
        ([normal(0, 4)], DataError, ("samples",)),
        ([(normal(2, 4), torch.zeros(2))], InputError, ("tuple",)),
        ([normal(2, 3)], InputError, ("match",)),
    ],
)
def test_batches_that_do_not_fit_are_refused(batches, kind, message):
    with refused(kind, *message):
        matching.match(made(mlp), made(mlp), batches)


def test_empty_batches_between_others_are_passed_over():
    one, two, inputs = made(mlp, seed=1), made(mlp, seed=2), normal(9, 4)
    found = matching.match(one, two, (b for b in (inputs[:0], inputs[:5], inputs[:0], inputs[5:])))
    assert found.correlation == pytest.approx(matching.match(one, two, [inputs]).correlation, abs=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["0.weight", "4.bias"])
def test_a_network_that_diverged_is_refused(name, value):
    diverged = made(mlp)
    diverged.state_dict()[name].fill_(value)
    with refused(NumericalError, "finite"):
        matching.match(made(mlp), diverged, [normal(9, 4)])


def test_a_network_that_hides_what_it_does_is_refused():
    """Its square weight is transposed by way of its memory, as no operation shows."""

    def transposed(net, x):
        return net.fc(F.linear(net.hidden(x), net.square.weight.clone().as_strided_((5, 5), (1, 5))).tanh())

    layers = {"hidden": partial(nn.Linear, 4, 5), "square": partial(nn.Linear, 5, 5), "fc": partial(nn.Linear, 5, 3)}
    one, two = (made(lambda: Net(transposed, **{k: layer() for k, layer in layers.items()}), seed=s) for s in (1, 2))
    with pytest.raises(InputError, match=r"returns other values .* of .*: it uses its channels in a way"):
        matching.match(one, two, [normal(9, 4)])


def test_networks_without_shapes_or_that_refuse_to_be_copied_are_refused():
    with refused(InputError, "0.weight"):
        matching.match(nn.Sequential(nn.LazyLinear(3)), nn.Sequential(nn.LazyLinear(3)), [normal(9, 4)])
    holding = made(mlp)
    holding.lock = Lock()
    with refused(InputError, "TypeError"):
        matching.match(made(mlp), holding, [normal(9, 4)])


def test_a_network_that_takes_other_ways_for_other_batches_is_refused():
    def turning(net, x):
        return net.fc(torch.relu(net.hidden(x)) if len(x) > 1 else net.hidden(x))

    one, two = (made(lambda: Net(turning, hidden=nn.Linear(4, 5), fc=nn.Linear(5, 3)), seed=seed) for seed in (1, 2))
    with pytest.raises(InputError, match=r"inputs \(1, 4\) otherwise than \(4, 4\)"):
        matching.match(one, two, normal(9, 4).split(4))


def test_a_network_that_cannot_run_in_float64_is_refused():
    def narrow(net, x):
        return net.fc(net.hidden(x.float()))

    model = made(lambda: Net(narrow, hidden=nn.Linear(4, 5), fc=nn.Linear(5, 3))).float()
    with pytest.raises(InputError, match=r"does not run in float64, .*; leave out match"):
        matching.match(model, model, [normal(9, 4)])


def trained(inputs, labels, seed):
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for _ in range(15):
            for batch in torch.randperm(len(inputs)).split(60):
                optimizer.zero_grad()
                F.cross_entropy(model(inputs[batch]), labels[batch]).backward()
                optimizer.step()
    return model.eval()


def test_matching_lowers_the_barrier_between_two_trainings():
    images, labels = (torch.from_numpy(a) for a in load_digits(return_X_y=True))
    images = (images.float() - images.mean()) / images.std()
    one, two = (trained(images[:1200], labels[:1200], seed) for seed in (0, 1))
    found = matching.match(one, two, images[:1200].split(500))

    def barrier(state):
        def loss(t):
            mixed = {k: torch.lerp(one.state_dict()[k], state[k], t) for k in state}
            with torch.no_grad():
                return F.cross_entropy(torch.func.functional_call(one, mixed, (images[1200:],)), labels[1200:]).item()

        return loss(0.5) - (loss(0) + loss(1)) / 2

    before, after = barrier(two.state_dict()), barrier(found.state)
    assert before > 0.2  # the trainings ended in valleys of their own
    assert after < before / 4
    assert found.correlation > 0.5 > 0.1 > found.correlation_before
