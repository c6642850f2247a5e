"""SAM against a plain transcription of its equations, and what SAM and GSA share with every optimizer."""

import copy
import math

import pytest
import torch
from refusals import refused
from steps import COUNTS, batch, closure, flat, gradient, network, shifted
from torch import nn
from torch.nn import functional as F

from landscape.errors import InputError
from landscape.objective import runs
from trainers.class_sam import ClassSAM
from trainers.gsa import GSA
from trainers.passes import kept_statistics, length, unit
from trainers.sam import SAM

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


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d])
@pytest.mark.parametrize("method", ["sam", "gsa"])
def test_running_statistics_count_the_first_pass_only(method, norm):
    inputs, labels, groups = batch()
    model, plain = network(), network()
    model[1], plain[1] = (norm(4, affine=True, track_running_stats=True).double() for _ in range(2))
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
    assert model[1].running_mean.any()


def test_a_step_with_no_gradient_stays_finite():
    x = nn.Parameter(torch.zeros(2))
    SAM([x], torch.optim.SGD, lr=0.1).step(lambda: (x @ x)[None])
    assert x.detach().tolist() == [0, 0]


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("factor", [2.0**-120, 2.0**-80, 1.0, 2.0**80])  # whose squares are no numbers of float32
def test_a_perturbation_has_the_radius_however_small_the_gradient_is(factor, adaptive):
    generator = torch.Generator().manual_seed(0)
    start, g = (torch.randn(50, generator=generator) for _ in range(2))
    x = nn.Parameter(start.clone())
    optimizer = SAM([x], torch.optim.SGD, rho=0.25, adaptive=adaptive, lr=0.1)
    x.grad = g * factor
    optimizer.first_step()
    theta, wide = start.double(), g.double()
    expected = theta**2 * wide / (theta * wide).norm() if adaptive else wide / wide.norm()
    torch.testing.assert_close(x.detach().double() - theta, 0.25 * expected, rtol=0, atol=1e-6)


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


@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan])
@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay"])
@pytest.mark.parametrize("kind", [SAM, GSA, ClassSAM])
def test_an_option_of_the_base_optimizer_out_of_range_is_refused(kind, name, value):
    """PyTorch accepts nan and infinity, and anything in a group of parameters."""
    needed = {SAM: {}, GSA: {"counts": COUNTS}, ClassSAM: {"weights": torch.ones(3)}}[kind]
    parameters = [nn.Parameter(torch.ones(1))]
    with refused(InputError, name, value, 0):
        kind(parameters, torch.optim.SGD, **needed, **{"lr": 0.1, name: value})
    with refused(InputError, name, value, 0):
        kind([{"params": parameters, name: value}], torch.optim.SGD, **needed, lr=0.1)


def test_what_the_base_optimizer_refuses_is_refused_in_one_line():
    parameters = [nn.Parameter(torch.ones(1))]
    with refused(InputError, "Adam", "betas"):
        SAM(parameters, torch.optim.Adam, lr=0.1, betas=(math.nan, 0.9))
    with refused(InputError, "SGD", "learning_rate"):
        SAM(parameters, torch.optim.SGD, learning_rate=0.1)


def test_a_second_step_without_a_first_is_refused():
    with refused(InputError, "first_step"):
        SAM([nn.Parameter(torch.ones(1))], torch.optim.SGD, lr=0.1).second_step()


def test_a_mean_in_place_of_losses_is_refused():
    model, (inputs, labels, groups) = network(), batch()

    def mean():
        return F.cross_entropy(model(inputs), labels)

    with refused(InputError, reduction="none"):
        GSA(model.parameters(), torch.optim.SGD, counts=COUNTS, lr=0.1).step(mean, groups)


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


@pytest.mark.parametrize("kind", ["sam", "gsa"])
def test_steps_take_their_arguments_by_the_names_that_lightning_gives_them(kind):
    model, other, (inputs, labels, groups) = network(), network(), batch()
    more = {"groups": groups} if kind == "gsa" else {}
    made(kind, model).step(closure=closure(model, inputs, labels), **more)
    made(kind, other).step(closure(other, inputs, labels), *more.values())
    assert torch.equal(flat(model.parameters()), flat(other.parameters()))


def test_the_length_of_a_long_vector_has_the_digits_of_its_dtype():
    vector = torch.randn(2**22, generator=torch.Generator().manual_seed(0))
    expected = vector.double().norm()
    torch.testing.assert_close(length(vector).double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(unit(vector).double(), vector.double() / expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("wrapper", [SAM, ClassSAM, GSA])
def test_a_copy_of_a_network_with_its_optimizer_trains_as_the_original(wrapper):
    inputs, labels, groups = batch()
    model = network()
    options = {ClassSAM: {"weights": torch.ones(3)}, GSA: {"counts": COUNTS}}.get(wrapper, {})
    optimizer = wrapper(model.parameters(), torch.optim.SGD, model=model, lr=0.1, momentum=0.9, **options)
    more = [] if wrapper is SAM else [groups]
    optimizer.step(closure(model, inputs, labels), *more)
    copied, of_copy = copy.deepcopy((model, optimizer))
    for each, its_own in ((model, optimizer), (copied, of_copy)):
        its_own.step(closure(each, inputs, labels), *more)
    assert torch.equal(flat(copied.parameters()), flat(model.parameters()))
    assert of_copy.param_groups is of_copy.base.param_groups


def test_parameters_may_have_several_dtypes_and_sparse_gradients():
    """Against the same network with one dtype and dense gradients."""
    tokens, labels = torch.arange(6), torch.tensor([0, 1, 2, 0, 1, 2])
    found = []
    for own in (True, False):
        torch.random.default_generator.manual_seed(0)
        model = nn.Sequential(nn.Embedding(9, 4, sparse=own), nn.Linear(4, 3)).double()
        if own:
            model[0].float()
            model.insert(1, nn.Identity())
            model[1].register_forward_pre_hook(lambda _, x: (x[0].double(),))
        optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1)
        optimizer.step(lambda model=model: F.cross_entropy(model(tokens), labels, reduction="none"))
        F.cross_entropy(model(tokens), labels).backward()
        optimizer.first_step()
        F.cross_entropy(model(tokens), labels).backward()
        optimizer.second_step()
        found.append(flat(p.double() for p in model.parameters()))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wrapper", [SAM, GSA])
def test_its_options_and_its_state_tell_that_its_steps_are_not_those_of_the_base(wrapper, tmp_path):
    """The edge of stability of SGD is not that of SAM; also where a state of an earlier version was loaded."""
    options = {"counts": COUNTS} if wrapper is GSA else {"rho": 0.2}
    optimizer = wrapper(network().parameters(), torch.optim.SGD, lr=0.1, momentum=0.9, **options)
    plain = torch.optim.SGD(network().parameters(), lr=0.1, momentum=0.9)
    old = plain.state_dict() | ({"average": None} if wrapper is GSA else {})
    assert runs.of_groups(plain.state_dict()["param_groups"]).edge[0] == pytest.approx(38)
    for _ in range(2):
        for groups in (optimizer.param_groups, optimizer.base.param_groups, optimizer.state_dict()["param_groups"]):
            assert math.isnan(runs.of_groups(groups).edge[0])
        optimizer.load_state_dict(old)
    if wrapper is SAM:
        assert optimizer.rho == pytest.approx(0.2)


@pytest.mark.parametrize("wrapper", [SAM, GSA])
def test_a_base_that_evaluates_the_loss_itself_is_refused(wrapper):
    options = {"counts": COUNTS} if wrapper is GSA else {}
    with pytest.raises(InputError, match="LBFGS evaluates the loss in its steps"):
        wrapper(network().parameters(), torch.optim.LBFGS, lr=0.1, **options)
