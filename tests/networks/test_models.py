"""Networks have the published sizes, outputs are found, and weights are taken whole or not at all."""

import collections
import sys

import pytest
import torch
from refusals import refused
from torch import nn
from torch.func import functional_call, grad, jvp
from torch.fx.experimental.proxy_tensor import make_fx

from landscape.errors import InputError
from landscape.networks import models


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def n_parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.fixture
def model():
    return models.build("small-resnet", 10)


# --- networks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "n_classes", "expected"),
    [
        # He et al. 2016, table 6, gives 0.27, 0.46, 0.66, 0.85 and 1.7 million
        ("resnet20", 10, 269_722),
        ("resnet32", 10, 464_154),
        ("resnet44", 10, 658_586),
        ("resnet56", 10, 853_018),
        ("resnet110", 10, 1_727_962),
        ("resnet50", 1000, 25_557_032),
        ("resnext50_32x4d", 1000, 25_028_904),
        ("small-resnet", 10, 19_074),
    ],
)
def test_networks_have_the_published_number_of_parameters(name, n_classes, expected):
    with torch.device("meta"):
        assert n_parameters(models.build(name, n_classes)) == expected


def test_every_name_is_built_for_any_number_of_classes_and_channels():
    for name in models.names():
        with torch.device("meta"):
            model = models.build(name, 7, in_channels=2).eval()
            assert model(torch.zeros(2, 2, 32, 32)).shape == (2, 7)


def test_networks_without_a_number_of_channels_take_those_of_their_data(model):
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    assert models.build("resnet20", 10)(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet32", {"conv1.weight", "bn1.running_var", "layer1.4.conv2.weight", "layer3.0.bn1.bias", "linear.bias"}),
        (
            "resnet50",
            {
                "conv1.weight",
                "layer1.0.downsample.0.weight",
                "layer4.0.downsample.1.bias",
                "layer3.5.bn3.bias",
                "fc.bias",
            },
        ),
    ],
)
def test_names_are_those_of_public_checkpoints(name, expected):
    with torch.device("meta"):
        state = models.build(name, 10).state_dict()
    assert expected <= state.keys()
    assert not any("shortcut" in n for n in state)
    assert sum("downsample.0.weight" in n for n in state) == (4 if name == "resnet50" else 0)


def test_a_stage_halves_the_image_in_its_3x3_convolution():
    with torch.device("meta"):
        model = models.build("resnet50", 10)
        shapes = []
        for name in ("layer1", "layer2", "layer3", "layer4"):
            model.get_submodule(name).register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape)))
        model(torch.zeros(1, 3, 224, 224))
    assert shapes == [(1, 256, 56, 56), (1, 512, 28, 28), (1, 1024, 14, 14), (1, 2048, 7, 7)]
    assert [model.layer2[0].conv1.stride, model.layer2[0].conv2.stride] == [(1, 1), (2, 2)]


def test_the_shortcut_of_option_a_takes_every_second_pixel_and_pads_channels_with_zeros():
    block = models.CifarBlock(2, 4, stride=2).eval()
    nn.init.zeros_(block.conv2.weight)
    images = torch.rand(1, 2, 4, 4)
    found = block(images)
    assert torch.equal(found[:, 1:3], images[:, :, ::2, ::2])
    assert not found[:, [0, 3]].any()


@pytest.mark.parametrize("scale", [None, 4.0])
def test_cosine_logits_are_the_scaled_cosines_with_the_columns(scale):
    head = models.build("resnet20", 5, cosine=True, scale=scale).linear
    features = torch.randn(3, 64)
    expected = [
        [torch.cosine_similarity(x, w, dim=0) * (scale or 30) for w in head.weight.detach().T] for x in features
    ]
    assert head.weight.shape == (64, 5)
    torch.testing.assert_close(head(features), torch.tensor(expected))


def test_the_hessian_product_of_a_network_with_a_cosine_head_exists():
    model = models.build("small-resnet", 3, cosine=True).eval().double()
    theta = {name: p.detach() for name, p in model.named_parameters()}
    images = torch.rand(2, 1, 8, 8, dtype=torch.float64)

    def loss(theta):
        return functional_call(model, theta, (images,)).logsumexp(1).mean()

    product = jvp(grad(loss), (theta,), (theta,))[1]
    assert all(torch.isfinite(t).all() for t in product.values())
    # the cosines do not change along the weight itself, so that its own block of the Hessian gives -gradient
    gradient = grad(loss)(theta)["linear.weight"]
    along = {n: t if n == "linear.weight" else torch.zeros_like(t) for n, t in theta.items()}
    torch.testing.assert_close(jvp(grad(loss), (theta,), (along,))[1]["linear.weight"], -gradient)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet18", 10), ("resnet18", "small-resnet")),
        (("resnet20", 0), (0,)),
        (("resnet20", 10, 0), (10, 0)),
        (("resnet20", 10, 3, False, 16.0), ("cosine", True, 16)),
        (("resnet20", 10, 3, True, float("inf")), ("inf",)),
        (("nets:small", 10, 3, True), ("cosine", True)),
    ],
)
def test_options_that_do_not_fit_are_refused(arguments, message):
    options = dict(zip(("name", "n_classes", "in_channels", "cosine", "scale"), arguments, strict=False))
    with refused(InputError, *message):
        models.build(**options)


@pytest.fixture
def users_nets(tmp_path, monkeypatch):
    code = """
from torch import nn
def fixed(): return nn.Linear(2, 3)
def sized(width=2, num_classes=1): return nn.Linear(width, num_classes)
class Net(nn.Linear):
    def __init__(self, n_classes): super().__init__(2, n_classes)
def greedy(width): return nn.Linear(width, 3)
def broken(): raise RuntimeError("two\\nlines")
def text(): return "net"
"""
    (tmp_path / "users_nets.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("users_nets", None)


@pytest.mark.usefixtures("users_nets")
@pytest.mark.parametrize(("name", "n_out"), [("fixed", 3), ("sized", 7), ("Net", 7)])
def test_a_users_model_is_told_the_number_of_classes_if_it_asks(name, n_out):
    assert models.build(f"users_nets:{name}", 7, in_channels=3).out_features == n_out


@pytest.mark.usefixtures("users_nets")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("greedy", ("model", "users_nets:greedy", "TypeError", "greedy", 1, "width")),
        ("broken", ("model", "users_nets:broken", "RuntimeError")),
        ("text", ("model", "users_nets:text", "it", "torch.nn")),
        ("absent", ("users_nets", "absent")),
    ],
)
def test_a_users_model_that_cannot_be_made_is_refused_with_the_reason(name, message):
    with refused(InputError, *message):
        models.build(f"users_nets:{name}", 7)


# --- logits -----------------------------------------------------------------------------------------------------

LOGITS = torch.arange(20.0).view(4, 5)
FEATURES = torch.zeros(4, 8)


@pytest.mark.parametrize(
    ("output", "index"),
    [
        (LOGITS, None),
        ((FEATURES, LOGITS), None),
        ([LOGITS, FEATURES], None),
        ((FEATURES, LOGITS, torch.zeros(5, 8)), None),
        ((torch.zeros(4, 5), LOGITS), 1),
        ((None, LOGITS, LOGITS.argmax(1), torch.zeros(4, 5, dtype=torch.int64), torch.zeros(4, 2, 5)), None),
        (collections.OrderedDict(loss=torch.zeros(()), logits=LOGITS, hidden_states=(FEATURES,)), None),
        ({"features": torch.zeros(4, 5), "logits": LOGITS}, 1),
    ],
)
def test_logits_are_found_in_what_a_model_returns(output, index):
    assert models.logits_of(output, 5, index) is LOGITS


@pytest.mark.parametrize(
    ("output", "index", "message"),
    [
        (FEATURES, None, (4, 8, 5)),
        (LOGITS[0], None, (5,)),
        (LOGITS, 0, ("logits_index", 0)),
        ((torch.zeros(4, 5), LOGITS), None, (0, 4, 5, 1, "logits_index")),
        ((FEATURES, LOGITS), 0, ("logits_index", 1, 0)),
        ((FEATURES, LOGITS), 2, ("logits_index", 1, 2)),
        ((FEATURES, None), None, (0, 4, 8, 1, "NoneType", 5)),
        ((FEATURES, None), 0, ("logits",)),
        ((), None, ("nothing",)),
        ("logits", None, ("str", "logits")),
    ],
)
def test_outputs_without_clear_logits_are_refused_with_their_shapes(output, index, message):
    with refused(InputError, *message):
        models.logits_of(output, 5, index)


def test_taking_the_logits_can_be_traced():
    traced = make_fx(lambda x: models.logits_of((x[:, :2], 2 * x), 5))(LOGITS)
    assert torch.equal(traced(LOGITS + 1), 2 * (LOGITS + 1))
