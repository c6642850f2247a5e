"""GSA against a plain transcription of its equations, in float64 on a small network with batch norm."""

import copy
import itertools
import math

import pytest
import torch
from refusals import refused
from steps import COUNTS, batch, batch_gradient, closure, flat, found_gradient, gradient, network, shifted
from torch import nn
from torch.nn import functional as F

from landscape.errors import InputError
from trainers import gsa
from trainers.gsa import GSA


def transcribed(model, inputs, labels, groups, *, counts=COUNTS, Z=1e-2, per_group=False, projected=False, **options):
    """Equations 12 to 15, a line each; groups weigh by their share of the batch. Returns the gradient of the step."""
    theta, d = flat(model.parameters()), sum(p.numel() for p in model.parameters())
    losses = F.cross_entropy(model(inputs), labels, reduction="none")
    g = gradient(losses.mean(), model, retain_graph=True)
    total, joint = torch.zeros_like(theta), torch.zeros_like(theta)
    for k, n in enumerate(counts):
        here = groups == k
        if not here.any():
            continue
        share = here.double().mean()
        g_g = gradient(losses[here].mean(), model, retain_graph=True)
        h = g_g - (g_g @ g) / (g @ g) * g
        if projected:
            h = g_g - h
        if options.get("released"):  # the batch's gradient for every group, less its average: here another vector
            h = g - options["released"] * g
        rho = (theta.norm() / (2 * h.norm())).sqrt() * d**-0.25 * max(n - 1, 1) ** -0.25
        scaled = Z * rho
        if "clip" in options:
            scaled = scaled.clamp(*options["clip"])
        direction = theta**2 * h / (theta * h).norm() if options.get("adaptive") else h / h.norm()
        eps = scaled * math.sqrt(d) * direction
        joint += share * eps
        if per_group:
            moved = shifted(model, eps)
            total += share * gradient(F.cross_entropy(moved(inputs), labels, reduction="none")[here].mean(), moved)
        if options.get("norm_term"):
            total += share * theta / theta.norm() / (2 * math.sqrt(max(n - 1, 1)) * rho)
    if not per_group:
        moved = shifted(model, joint)
        total += gradient(F.cross_entropy(moved(inputs), labels), moved)
    return total


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"per_group": True},
        {"projected": True},
        {"adaptive": True},
        {"clip": (2e-3, 3e-3)},
        {"norm_term": True},
        {"per_group": True, "norm_term": True, "Z": 0.1},
    ],
)
def test_gsa_agrees_with_a_plain_transcription_of_its_equations(options):
    inputs, labels, groups = batch()
    expected = transcribed(network(), inputs, labels, groups, **options)
    model = network()
    optimizer = GSA(
        model.parameters(),
        torch.optim.SGD,
        counts=COUNTS,
        average=0,
        scale=options.get("Z", 1e-2),
        perturb="per-group" if options.get("per_group") else "joint",
        direction="projected" if options.get("projected") else "specific",
        adaptive=options.get("adaptive", False),
        clip=options.get("clip"),
        norm_term=options.get("norm_term", False),
        model=model,
        lr=0.1,
    )
    before = flat(model.parameters())
    optimizer.gradients(closure(model, inputs, labels), groups)
    torch.testing.assert_close(found_gradient(model), expected, rtol=0, atol=1e-12)
    assert torch.equal(flat(model.parameters()), before)
    assert (expected - batch_gradient(network(), inputs, labels)).norm() > 1e-5  # the perturbation does something


def test_the_average_direction_is_an_exponential_average_of_batch_gradients():
    model, (inputs, labels, groups) = network(), batch()
    optimizer = GSA(model.parameters(), torch.optim.SGD, counts=COUNTS, average=0.75, model=model, lr=0.0)
    others = inputs.square()  # batch norm would take away a shift or a factor
    first, second = (batch_gradient(network(), x, labels) for x in (inputs, others))
    assert (first - second).norm() > 0.1 * first.norm()
    optimizer.step(closure(model, inputs, labels), groups)
    torch.testing.assert_close(optimizer.average, first, rtol=0, atol=1e-13)
    optimizer.step(closure(model, others, labels), groups)
    torch.testing.assert_close(optimizer.average, 0.75 * first + 0.25 * second, rtol=0, atol=1e-13)


@pytest.mark.parametrize("perturb", ["joint", "per-group"])
def test_one_group_has_no_direction_of_its_own_and_leaves_the_batchs_gradient(perturb):
    """h = g - g: what rounding leaves of it must not be blown up to a perturbation."""
    model, (inputs, labels, _) = network().float(), batch()
    inputs = inputs.float()
    expected = batch_gradient(copy.deepcopy(model), inputs, labels)
    optimizer = GSA(model.parameters(), torch.optim.SGD, counts=[53], average=0, perturb=perturb, model=model, lr=0.1)
    optimizer.gradients(closure(model, inputs, labels), torch.zeros(11, dtype=torch.int64))
    torch.testing.assert_close(found_gradient(model), expected, rtol=0, atol=1e-6)
    assert optimizer.radii.radius.tolist() == [0]


def test_the_released_codes_direction_is_the_batchs_gradient_less_its_average():
    """Every group has it: after a step at the same place the average is g, so after one of 2 g it is 3/2 g at 1/2."""
    model, (inputs, labels, groups) = network(), batch()
    options = {"counts": COUNTS, "direction": "difference", "first_pass": "shared", "clip": None, "model": model}
    optimizer = GSA(model.parameters(), torch.optim.SGD, average=0.5, lr=0.0, **options)
    optimizer.average = 2 * batch_gradient(network(), inputs, labels)
    passes = []

    def counted():
        passes.append(1)
        return closure(model, inputs, labels)()

    optimizer.gradients(counted, groups)
    expected = transcribed(network(), inputs, labels, groups, released=1.5)
    torch.testing.assert_close(found_gradient(model), expected, rtol=0, atol=1e-12)
    assert len(passes) == 2
    assert (optimizer.perturbation @ batch_gradient(network(), inputs, labels)) < 0  # g - 3/2 g


@pytest.mark.parametrize(("bound", "clipped"), [(0.0, [0, 0, 0]), (1e6, [1, 1, 1]), (None, [0, 0, 0])])
def test_a_radius_that_a_bound_has_set_is_counted(bound, clipped):
    model, (inputs, labels, groups) = network(), batch()
    clip = None if bound is None else (bound, 1e9)
    optimizer = GSA(model.parameters(), torch.optim.SGD, counts=COUNTS, clip=clip, average=0, model=model, lr=0.1)
    optimizer.gradients(closure(model, inputs, labels), groups)
    assert optimizer.radii.clipped.tolist() == clipped
    d = len(flat(model.parameters()))
    expected = (1e-2 * optimizer.radii.rho).clamp(min=bound or 0.0) * math.sqrt(d)
    torch.testing.assert_close(optimizer.radii.radius, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("direction", gsa.DIRECTIONS)
def test_radii_tell_the_shares_and_lengths_of_the_latest_step(direction):
    model, (inputs, labels, groups) = network(), batch(3)  # groups 0, 1, 0: the third is absent
    options = {"counts": COUNTS, "direction": direction, "clip": (0.0, 1e-9), "model": model, "lr": 0.1}
    optimizer = GSA(model.parameters(), torch.optim.SGD, **options)
    optimizer.step(closure(model, inputs, labels), groups)
    assert optimizer.radii.share.tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    assert (optimizer.radii.radius > 0).tolist() == [True, True, False]
    assert optimizer.radii.clipped.tolist() == [1, 1, 0]
    assert optimizer.radii.specific_norm[2] == 0
    assert torch.isfinite(found_gradient(model)).all()


@pytest.mark.parametrize("direction", gsa.DIRECTIONS)
@pytest.mark.parametrize("power", [-70, 70])
def test_perturbations_do_not_depend_on_the_unit_of_the_loss(direction, power):
    """Losses times 2^p have lengths times 2^p, radii over 2^(p / 2), and Z makes up for these."""
    found = []
    for p in (0, power):
        model, (inputs, labels, groups) = network().float(), batch()
        losses = closure(model, inputs.float(), labels)
        options = {"counts": COUNTS, "direction": direction, "scale": 0.01 * 2 ** (p / 2), "clip": None, "model": model}
        optimizer = GSA(model.parameters(), torch.optim.SGD, lr=0.1, **options)
        optimizer.average = 2.0**p * batch_gradient(network(), inputs.square(), labels).float()
        optimizer.gradients(lambda losses=losses, p=p: losses() * 2.0**p, groups)
        radii, lengths = optimizer.radii, (optimizer.radii.specific_norm, optimizer.radii.gradient_norm)
        found.append(torch.cat([optimizer.perturbation, radii.radius, *(x * 2.0**-p for x in lengths)]))
    assert found[0].abs().min() > 0
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-7)


def test_without_radius_gsa_is_the_base_optimizer():
    model, plain, (inputs, labels, groups) = network(), network(), batch()
    GSA(model.parameters(), torch.optim.SGD, counts=COUNTS, scale=0.0, model=model, lr=0.1).step(
        closure(model, inputs, labels), groups
    )
    F.cross_entropy(plain(inputs), labels).backward()
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    torch.testing.assert_close(flat(model.parameters()), flat(plain.parameters()), rtol=0, atol=1e-14)


def all_of(model):
    return model.parameters()


def biases_first(model):
    named = dict(model.named_parameters())
    of_bias = [name for name in named if name.endswith("bias")]
    rest = [name for name in named if name not in of_bias]
    return [{"params": [named[n] for n in of_bias], "weight_decay": 0}, {"params": [named[n] for n in rest]}]


def the_last_layer(model):
    return model[-1].parameters()


@pytest.mark.parametrize("chosen", [all_of, biases_first, the_last_layer])
def test_decoupled_gradients_are_exact_where_batch_norm_does_not_couple(chosen):
    """Whatever parameters are trained, in whatever order."""
    inputs, labels, groups = batch()
    found = []
    for first_pass in ("exact", "decoupled"):
        model = network()
        model[1].eval()
        options = {"counts": COUNTS, "first_pass": first_pass, "average": 0, "model": model, "lr": 0.1}
        optimizer = GSA(chosen(model), torch.optim.SGD, **options)
        optimizer.gradients(closure(model, inputs, labels), groups)
        found.append(flat([p.grad for group in optimizer.param_groups for p in group["params"]]))
    assert optimizer.perturbation.norm() > 1e-4
    torch.testing.assert_close(*found, rtol=0, atol=1e-13)


class TimeFirst(nn.Module):
    """Time before samples, with dropout: where there are as many steps as samples, a slice is not of a group."""

    def __init__(self):
        super().__init__()
        self.step, self.drop, self.out = nn.Linear(6, 5), nn.Dropout(0.3), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(self.drop(torch.tanh(self.step(x[:, 0].movedim(1, 0)))).sum(0))


@pytest.mark.parametrize("n", [5, 6, 7])  # of six steps
def test_decoupled_gradients_are_exact_where_another_axis_is_as_long_as_the_batch(n):
    """The model runs twice for a step, with the random numbers of the exact first pass."""
    inputs, labels, groups = batch(n)
    found, passes = [], []
    for first_pass in ("exact", "decoupled"):
        with torch.random.fork_rng():
            torch.random.default_generator.manual_seed(0)
            model = TimeFirst().double()
            model.register_forward_hook(lambda *_: passes.append(1))
            options = {"counts": COUNTS, "first_pass": first_pass, "average": 0, "model": model, "lr": 0.1}
            optimizer = GSA(model.parameters(), torch.optim.SGD, **options)
            for _ in range(2):
                optimizer.step(closure(model, inputs, labels), groups)
            found.append(torch.cat([optimizer.radii.gradient_norm, found_gradient(model), optimizer.perturbation]))
    assert len(passes) == 8
    torch.testing.assert_close(*found, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "options", [{}, {"perturb": "per-group"}, {"first_pass": "decoupled"}, {"first_pass": "shared"}]
)
def test_a_batch_in_pieces_is_the_batch(options):
    """Where samples do not meet in batch norm; the pieces are uneven, and the second lacks a group."""
    inputs, labels, groups = batch()
    found = []
    for cuts in ([0, 11], [0, 4, 5, 11]):
        model = network()
        model[1].eval()
        optimizer = GSA(model.parameters(), torch.optim.SGD, counts=COUNTS, average=0, model=model, lr=0.1, **options)
        pieces = [slice(a, b) for a, b in itertools.pairwise(cuts)]
        losses = [closure(model, inputs[p], labels[p]) for p in pieces]
        values = optimizer.gradients(losses, [groups[p] for p in pieces])
        found.append(torch.cat([values, found_gradient(model)]))
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)
    if options.get("first_pass") != "shared":
        assert (found_gradient(model) - batch_gradient(copy.deepcopy(model), inputs, labels)).norm() > 1e-5


def test_pieces_that_do_not_pair_are_refused():
    model, (inputs, labels, groups) = network(), batch()
    optimizer = GSA(model.parameters(), torch.optim.SGD, counts=COUNTS, model=model, lr=0.1)
    one = closure(model, inputs, labels)
    for losses, of in ((one, [groups]), ([one], groups), ([one, one], [groups]), ([], [])):
        with pytest.raises(InputError, match="a batch in pieces needs a list of losses, and of groups one for each"):
            optimizer.gradients(losses, of)


def test_decoupled_gradients_need_the_model_that_holds_the_parameters():
    model, (inputs, labels, groups) = network(), batch()
    options = {"counts": COUNTS, "first_pass": "decoupled", "model": model[:4], "lr": 0.1}
    with refused(InputError, "model"):
        GSA(model.parameters(), torch.optim.SGD, **options).step(closure(model, inputs, labels), groups)


def test_the_average_of_parameters_that_are_set_free_begins_anew_and_that_of_others_goes_on():
    """As where layers are unfrozen one after the other; some have as many entries as those that are frozen then."""
    model, (inputs, labels, groups) = nn.Sequential(*(nn.Linear(6, 6) for _ in range(3))).double(), batch()
    inputs, labels = inputs[:, 0, 0], labels * 2
    first, second, last = model

    def gradients_of(*layers):
        chosen = [p for layer in layers for p in layer.parameters()]
        return flat(torch.autograd.grad(F.cross_entropy(model(inputs), labels), chosen))

    optimizer = GSA(model.parameters(), torch.optim.SGD, counts=COUNTS, lr=0.1)
    first.requires_grad_(False)
    begun = gradients_of(second, last)
    optimizer.gradients(closure(model, inputs, labels), groups)
    torch.testing.assert_close(optimizer.average, begun, rtol=1e-12, atol=1e-15)
    first.requires_grad_(True)
    second.requires_grad_(False)
    inputs = inputs + 1
    optimizer.gradients(closure(model, inputs, labels), groups)
    size = len(begun) // 2
    expected = torch.cat([gradients_of(first), 0.9 * begun[size:] + 0.1 * gradients_of(last)])
    torch.testing.assert_close(optimizer.average, expected, rtol=1e-12, atol=1e-15)


def test_an_average_of_another_number_of_parameters_is_refused():
    model, (inputs, labels, groups) = network(), batch()
    optimizer = GSA(model.parameters(), torch.optim.SGD, counts=COUNTS, model=model, lr=0.1)
    optimizer.step(closure(model, inputs, labels), groups)
    state = optimizer.state_dict()
    model[0].requires_grad_(False)
    before = optimizer.average
    with pytest.raises(InputError, match="the average gradient has 243 entries, and 203 require a gradient here"):
        optimizer.load_state_dict(state)
    assert optimizer.average is before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda groups: groups == 0, r"integers, one for each sample, got torch.bool of shape \(11,\)"),
        (lambda groups: groups.double(), r"integers, one for each sample, got torch.float64 of shape \(11,\)"),
        (lambda groups: groups[:, None], r"got torch.int64 of shape \(11, 1\)"),
        (lambda groups: groups - 1, "groups begin with 0, the batch has group -1"),
        (lambda groups: groups + 1, "groups are 0 to 2, the batch has group 3"),
        (lambda groups: groups[:4], "11 values for groups"),
    ],
)
@pytest.mark.parametrize("first_pass", ["exact", "decoupled", "shared"])
def test_groups_that_do_not_fit_are_refused_for_what_they_are(first_pass, change, message):
    model, (inputs, labels, groups) = network(), batch()
    optimizer = GSA(model.parameters(), torch.optim.SGD, counts=COUNTS, first_pass=first_pass, model=model, lr=0.1)
    before = flat(model.parameters())
    with pytest.raises(InputError, match=message):
        optimizer.step(closure(model, inputs, labels), change(groups))
    assert torch.equal(flat(model.parameters()), before)
