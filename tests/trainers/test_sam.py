"""SAM and GSA against plain transcriptions of their equations, in float64 on a small network with batch norm."""

import copy
import itertools
import math

import pytest
import torch
from refusals import refused
from torch import nn
from torch.nn import functional as F

from landscape.errors import InputError
from trainers.gsa import GSA
from trainers.passes import kept_statistics
from trainers.sam import SAM

COUNTS = [40, 12, 1]


def network():
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3)
        return nn.Sequential(*layers).double()


def batch(n=11):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(n, 1, 6, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (n,), generator=generator)
    groups = torch.tensor([0, 1, 0, 2, 0, 0, 1, 0, 0, 1, 0])[:n]
    return inputs, labels, groups


def flat(tensors):
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def gradient(loss, model, **options):
    return flat(torch.autograd.grad(loss, list(model.parameters()), **options))


def shifted(model, by):
    """A copy of the model at theta + by."""
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for p, piece in zip(moved.parameters(), by.split([p.numel() for p in moved.parameters()]), strict=True):
            p.add_(piece.view_as(p))
    return moved


def batch_gradient(model, inputs, labels):
    return gradient(F.cross_entropy(model(inputs), labels), model)


def closure(model, inputs, labels):
    return lambda: F.cross_entropy(model(inputs), labels, reduction="none")


def found_gradient(model):
    return flat([p.grad for p in model.parameters()])


# SAM --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_on_a_quadratic_steps_along_the_gradient_at_the_known_worst_point(adaptive):
    """L = x'Ax / 2: g = Ax, eps = rho g / |g| (adaptive: rho x^2 g / |x g|), and the step is -lr A(x + eps)."""
    A = torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64))
    start = torch.tensor([1.0, -2.0], dtype=torch.float64)
    x = nn.Parameter(start.clone())
    SAM([x], torch.optim.SGD, rho=0.1, adaptive=adaptive, lr=0.5).step(lambda: (0.5 * x @ A @ x)[None])
    g = torch.tensor([4.0, -2.0], dtype=torch.float64)
    eps = 0.1 * start**2 * g / (start * g).norm() if adaptive else 0.1 * g / math.sqrt(20)
    torch.testing.assert_close(x.detach(), start - 0.5 * A @ (start + eps), rtol=1e-14, atol=0)


def test_sams_first_order_maximum_lies_on_the_sphere_of_radius_rho():
    model, (inputs, labels, _) = network(), batch()
    optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.3, lr=0.1)
    before = flat(model.parameters())
    closure(model, inputs, labels)().mean().backward()
    optimizer.first_step()
    assert (flat(model.parameters()) - before).norm().item() == pytest.approx(0.3, rel=1e-12)


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_closure_and_the_two_steps_agree_with_the_equations(adaptive):
    inputs, labels, _ = batch()
    one, two, plain = network(), network(), network()
    theta = flat(plain.parameters())
    g = gradient(F.cross_entropy(plain(inputs), labels), plain)
    eps = 0.2 * theta**2 * g / (theta * g).norm() if adaptive else 0.2 * g / g.norm()
    moved = shifted(plain, eps)
    expected = theta - 0.1 * gradient(F.cross_entropy(moved(inputs), labels), moved)

    SAM(one.parameters(), torch.optim.SGD, rho=0.2, adaptive=adaptive, model=one, lr=0.1).step(
        closure(one, inputs, labels)
    )
    optimizer = SAM(two.parameters(), torch.optim.SGD, rho=0.2, adaptive=adaptive, lr=0.1)
    F.cross_entropy(two(inputs), labels).backward()
    optimizer.first_step()
    with kept_statistics(two):
        F.cross_entropy(two(inputs), labels).backward()
    optimizer.second_step()
    for model in (one, two):
        torch.testing.assert_close(flat(model.parameters()), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("method", ["sam", "gsa"])
def test_batch_norm_counts_the_first_pass_only(method):
    inputs, labels, groups = batch()
    model, plain = network(), network()
    if method == "sam":
        SAM(model.parameters(), torch.optim.SGD, model=model, lr=0.1).step(closure(model, inputs, labels))
    else:
        GSA(model.parameters(), torch.optim.SGD, counts=COUNTS, model=model, lr=0.1).step(
            closure(model, inputs, labels), groups
        )
    plain(inputs)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(dict(model.named_buffers())[name], buffer, rtol=0, atol=0)
    assert model[1].track_running_stats


def test_a_step_with_no_gradient_stays_finite():
    x = nn.Parameter(torch.zeros(2))
    SAM([x], torch.optim.SGD, lr=0.1).step(lambda: (x @ x)[None])
    assert x.detach().tolist() == [0, 0]


def test_parameters_are_given_back_when_the_second_pass_fails():
    x = nn.Parameter(torch.ones(2))
    calls = []

    def losses():
        calls.append(x.detach().clone())
        if len(calls) == 2:
            raise KeyboardInterrupt
        return (x @ x)[None]

    with pytest.raises(KeyboardInterrupt):
        SAM([x], torch.optim.SGD, rho=0.5, lr=0.1).step(losses)
    assert not torch.equal(calls[1], torch.ones(2))
    assert torch.equal(x.detach(), torch.ones(2))


@pytest.mark.parametrize("rho", [-0.1, math.inf, math.nan])
def test_a_radius_out_of_range_is_refused(rho):
    with refused(InputError, "rho", 0):
        SAM([nn.Parameter(torch.ones(1))], torch.optim.SGD, rho=rho, lr=0.1)


def test_a_second_step_without_a_first_is_refused():
    with refused(InputError, "first_step"):
        SAM([nn.Parameter(torch.ones(1))], torch.optim.SGD, lr=0.1).second_step()


def test_a_mean_in_place_of_losses_is_refused():
    model, (inputs, labels, groups) = network(), batch()

    def mean():
        return F.cross_entropy(model(inputs), labels)

    with refused(InputError, reduction="none"):
        GSA(model.parameters(), torch.optim.SGD, counts=COUNTS, lr=0.1).step(mean, groups)


# GSA --------------------------------------------------------------------------------------------------------------


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


def test_radii_tell_the_shares_and_lengths_of_the_latest_step():
    model, (inputs, labels, groups) = network(), batch(3)  # groups 0, 1, 0: the third is absent
    optimizer = GSA(model.parameters(), torch.optim.SGD, counts=COUNTS, model=model, lr=0.1)
    optimizer.step(closure(model, inputs, labels), groups)
    assert optimizer.radii.share.tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    assert (optimizer.radii.radius > 0).tolist() == [True, True, False]
    assert torch.isfinite(found_gradient(model)).all()


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


@pytest.mark.parametrize("kind", ["sam", "gsa"])
def test_steps_take_their_arguments_by_the_names_that_lightning_gives_them(kind):
    model, other, (inputs, labels, groups) = network(), network(), batch()
    more = {"groups": groups} if kind == "gsa" else {}
    made(kind, model).step(closure=closure(model, inputs, labels), **more)
    made(kind, other).step(closure(other, inputs, labels), *more.values())
    assert torch.equal(flat(model.parameters()), flat(other.parameters()))


def test_decoupled_gradients_need_the_model_that_holds_the_parameters():
    model, (inputs, labels, groups) = network(), batch()
    options = {"counts": COUNTS, "first_pass": "decoupled", "model": model[:4], "lr": 0.1}
    with refused(InputError, "model"):
        GSA(model.parameters(), torch.optim.SGD, **options).step(closure(model, inputs, labels), groups)


# As every optimizer -----------------------------------------------------------------------------------------------


def made(kind, model):
    options = {"model": model, "lr": 0.1, "momentum": 0.9}
    if kind == "gsa":
        return GSA(model.parameters(), torch.optim.SGD, counts=COUNTS, scale=1.0, clip=None, **options)
    return SAM(model.parameters(), torch.optim.SGD, **options)


def stepped(optimizer, model, times):
    inputs, labels, groups = batch()
    for _ in range(times):
        optimizer.step(closure(model, inputs, labels), *([groups] if isinstance(optimizer, GSA) else []))


@pytest.mark.parametrize("kind", ["sam", "gsa"])
def test_an_optimizer_that_was_kept_and_loaded_goes_on_as_if_nothing_had_happened(kind, tmp_path):
    """Momentum and average gradient come along, and a scheduler still sets the rate of the base optimizer."""
    model = network()
    optimizer = made(kind, model)
    stepped(optimizer, model, 2)
    torch.save([model.state_dict(), optimizer.state_dict()], tmp_path / "kept.pt")
    optimizer.param_groups[0]["lr"] = 0.05
    stepped(optimizer, model, 2)

    other = shifted(network(), torch.ones(len(flat(model.parameters())), dtype=torch.float64))
    again = made(kind, other)
    weights, state = torch.load(tmp_path / "kept.pt")
    other.load_state_dict(weights)
    again.load_state_dict(state)
    again.param_groups[0]["lr"] = 0.05
    stepped(again, other, 2)
    assert all(torch.equal(t, other.state_dict()[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("kind", ["sam", "gsa"])
def test_parameters_that_are_added_take_the_base_optimizers_options(kind):
    optimizer = made(kind, network())
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": 0.3})
    found = optimizer.base.param_groups[1]
    assert (found["lr"], found["momentum"]) == (0.3, 0.9)


def test_regrouping_changes_the_number_of_groups():
    model, (inputs, labels, _) = network(), batch()
    optimizer = GSA(model.parameters(), torch.optim.SGD, counts=[53], model=model, lr=0.1)
    optimizer.regroup([50, 3])
    optimizer.step(closure(model, inputs, labels), (labels == 0).long())
    assert len(optimizer.radii.share) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": -1.0}, ("scale", -1.0)),
        ({"direction": "up"}, ("direction", "up")),
        ({"average": 1.0}, ("average", 1.0)),
        ({"perturb": "both"}, ("perturb", "both")),
        ({"first_pass": "fast"}, ("first_pass", "fast")),
        ({"first_pass": "decoupled"}, ("first_pass", "decoupled", "model")),
        ({"clip": (2.0, 1.0)}, ("clip", 2.0, 1.0)),
        ({"counts": [3, 0]}, (3, 0)),
    ],
)
def test_an_option_that_does_not_fit_is_named_with_its_value(options, message):
    with refused(InputError, *message):
        GSA([nn.Parameter(torch.ones(1))], torch.optim.SGD, **{"counts": [1], "lr": 0.1} | options)


def test_a_group_that_does_not_exist_is_refused():
    model, (inputs, labels, groups) = network(), batch()
    optimizer = GSA(model.parameters(), torch.optim.SGD, counts=[50, 3], model=model, lr=0.1)
    with refused(InputError, 0, 1, 2):
        optimizer.step(closure(model, inputs, labels), groups)
