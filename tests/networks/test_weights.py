"""Weights of a checkpoint that fit a network, and why others do not."""

import collections
import os
from pathlib import Path

import pytest
import torch
from refusals import refused
from torch import nn

import landscape as ls
from landscape.analyses import convergence
from landscape.errors import InputError, NumericalError
from landscape.networks import checkpoints, classifiers, models, weights
from landscape.networks.models import NormedLinear
from landscape.objective import points


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def model():
    return models.build("small-resnet", 10)


def copy_of(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def other_weights(model):
    """A state of other values, as a checkpoint holds one."""
    return {name: t + 1 for name, t in model.state_dict().items()}


def renamed(state, old, new):
    return {name.replace(old, new): t for name, t in state.items()}


def refusal(model, state, kind=InputError):
    """The message; checks that the model is as it was."""
    before = copy_of(model)
    with pytest.raises(kind) as caught:
        weights.load_weights(model, state)
    assert "\n" not in str(caught.value)
    assert_holds(model, before)
    return str(caught.value)


def assert_holds(model, state):
    found = model.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name].to(found[name].dtype)) for name in state)


# --- weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.model.", "module.module.", "any.thing."]
)
def test_weights_fit_under_any_prefix_common_to_all(prefix, model):
    state = other_weights(model)
    report = weights.load_weights(model, {prefix + name: t for name, t in state.items()})
    assert_holds(model, state)
    assert report == weights.LoadReport(prefix=prefix, notes=())


def test_a_prefix_that_is_the_models_own_stays():
    model = nn.Sequential(collections.OrderedDict(module=nn.Linear(2, 3)))
    state = other_weights(model)
    assert weights.load_weights(model, state).prefix == ""
    assert weights.load_weights(model, {f"module.{n}": t for n, t in state.items()}).prefix == "module."
    assert_holds(model, state)


def test_a_bare_layer_is_a_model_too():
    model, other = nn.Linear(2, 3), nn.Linear(2, 4)
    weights.load_weights(model, {f"fc.{n}": t for n, t in other_weights(model).items()})
    assert "the checkpoint has 4 classes in its last layer, the data set 3" in refusal(model, other.state_dict())


def test_counts_of_batches_may_be_missing(model):
    state = {n: t for n, t in other_weights(model).items() if not n.endswith("num_batches_tracked")}
    weights.load_weights(model, state)
    assert torch.equal(model.bn1.weight, state["bn1.weight"])
    assert model.bn1.num_batches_tracked == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precision_are_converted_and_reported(dtype, model):
    state = {n: t.to(dtype) if t.is_floating_point() else t for n, t in other_weights(model).items()}
    report = weights.load_weights(model, state)
    assert report.notes == (f"weights converted from {dtype} to torch.float32",)
    assert_holds(model, state)


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (float("nan"), torch.float32, "1 of the 6 values of weight are not finite: did the training diverge?"),
        (float("-inf"), torch.float32, "1 of the 6 values of weight are not finite"),
        (1e300, torch.float64, "1 of the 6 values of weight overflow in torch.float32: did the training diverge?"),
        (-1e100, torch.float64, "1 of the 6 values of weight overflow in torch.float32: try dtype='float64'"),
    ],
)
def test_weights_that_are_not_finite_are_refused_by_name(value, dtype, message):
    state = {"weight": torch.ones(3, 2, dtype=dtype), "bias": torch.ones(3)}
    state["weight"][1, 1] = value
    assert message in refusal(nn.Linear(2, 3), state, NumericalError)


def test_integers_are_no_weights():
    state = {"weight": torch.ones(3, 2, dtype=torch.int8), "bias": torch.ones(3)}
    assert "weight is torch.int8 in the checkpoint, torch.float32 in the model" in refusal(nn.Linear(2, 3), state)


def test_a_classifier_of_another_name_is_taken_and_reported(model):
    state = other_weights(model)
    report = weights.load_weights(model, renamed(state, "linear.", "head.fc."))
    assert_holds(model, state)
    assert report.notes == ("classifier 'head.fc' of the checkpoint taken as 'linear'",)


def test_a_second_classifier_is_not_taken(model):
    state = other_weights(model)
    two = {**renamed(state, "linear.", "fc."), "fc_aux.weight": state["linear.weight"]}
    message = refusal(model, two)
    assert "2 missing (linear.weight, linear.bias), 3 unexpected (fc.weight, fc.bias, fc_aux.weight);" in message


def test_a_classifier_that_is_there_is_not_replaced_by_another(model):
    state = model.state_dict()
    state["fc.weight"] = state["linear.weight"]
    del state["linear.bias"]
    assert "1 missing (linear.bias), 1 unexpected (fc.weight);" in refusal(model, state)


def test_another_number_of_classes_asks_for_the_data_set(model):
    question = "the checkpoint has 64 classes in its last layer, the data set 10: is this the right dataset?"
    other = models.build("small-resnet", 64)
    assert question in refusal(model, other.state_dict())
    assert question in refusal(model, renamed(other.state_dict(), "linear.", "fc."))
    assert question in refusal(
        models.build("small-resnet", 10, cosine=True), models.build("small-resnet", 64, cosine=True).state_dict()
    )


def test_misshapen_weights_are_listed_with_both_shapes(model):
    message = refusal(model, models.build("small-resnet", 64).state_dict())
    assert "2 of another shape (linear.weight (64, 32) for (10, 32), linear.bias (64,) for (10,));" in message


@pytest.mark.parametrize("n_classes", [10, 32, 64])  # 32: the shape of a square weight does not tell
def test_a_cosine_classifier_is_not_taken_for_a_linear_layer(n_classes):
    state = models.build("small-resnet", n_classes, cosine=True).state_dict()
    for plain in (models.build("small-resnet", 10), models.build("small-resnet", 32)):
        assert "looks like a cosine classifier: pass cosine=True" in refusal(plain, renamed(state, "linear.", "fc."))


def test_a_linear_classifier_with_a_bias_is_not_taken_for_a_cosine_classifier(model):
    cosine = models.build("small-resnet", 10, cosine=True)
    assert "a plain linear layer: leave out cosine=True" in refusal(cosine, model.state_dict())
    assert "a plain linear layer: leave out cosine=True" in refusal(cosine, renamed(model.state_dict(), "linear", "fc"))


def test_a_cosine_classifier_of_rows_is_transposed_and_reported():
    model = models.build("small-resnet", 10, cosine=True)
    state = other_weights(model)
    report = weights.load_weights(model, {**state, "linear.weight": state["linear.weight"].T.contiguous()})
    assert_holds(model, state)
    assert report.notes == ("linear.weight transposed from (classes, features) to (features, classes)",)


def test_a_square_weight_of_a_cosine_classifier_stays_as_it_is():
    model = models.build("small-resnet", 32, cosine=True)
    state = other_weights(model)
    assert weights.load_weights(model, state).notes == ()
    assert_holds(model, state)


@pytest.mark.parametrize("word", ["shortcut", "downsample"])
def test_shortcuts_with_weights_do_not_fit_a_model_without(word, model):
    state = {**model.state_dict(), f"layer2.0.{word}.0.weight": torch.zeros(16, 8, 1, 1)}
    message = refusal(model, state)
    assert f"1 unexpected (layer2.0.{word}.0.weight); it has weights in its shortcuts (option B)" in message


@pytest.mark.parametrize("word", ["shortcut", "downsample"])
def test_weights_with_convolutions_in_the_shortcuts_find_a_network_that_has_them(word, tmp_path):
    theirs = models.build("resnet20", 10, shortcut=word)
    state = {f"module.{n}": t for n, t in theirs.state_dict().items()}
    torch.save(state, tmp_path / "theirs.pt")
    images, labels = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    data = torch.utils.data.TensorDataset(images, labels)
    data.classes = list("abcdefghij")
    objective = ls.load_objective(str(tmp_path / "theirs.pt"), model="resnet20", dataset=data)
    loss = torch.nn.functional.cross_entropy(theirs.eval()(images), labels)
    assert objective.evaluation.overall[0] == pytest.approx(loss.item(), rel=1e-5)
    assert objective.source["checkpoint_notes"][0] == f"shortcuts are convolutions, called '{word}' (option B)"


@pytest.mark.parametrize(
    ("options", "words"),
    [({}, "linear"), ({"cosine": True}, "cosine, scale 30"), ({"cosine": True, "scale": 16.0}, "cosine, scale 16")],
)
def test_an_objective_tells_its_classifier(options, words, tmp_path):
    model = models.build("small-resnet", 3, in_channels=2, **options)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    data = torch.utils.data.TensorDataset(torch.zeros(3, 2, 4, 4), torch.arange(3))
    for ckpt in (None, str(tmp_path / "w.pt")):
        assert ls.load_objective(ckpt, model=model, dataset=data).source["classifier"] == words
    encoder = nn.Sequential(model.conv1, nn.AdaptiveAvgPool2d(1), nn.Flatten())  # 8 features, and no layer of 8 outputs
    assert classifiers.described(encoder, 8) is None


def test_a_convolved_shortcut_is_the_projection_of_the_paper():
    block = models.build("resnet20", 10, shortcut="downsample").eval().layer2[0]
    x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    inner = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))
    convolution, norm = block.downsample
    projected = norm(torch.einsum("bchw,oc->bohw", x[:, :, ::2, ::2], convolution.weight[..., 0, 0]))
    torch.testing.assert_close(block(x), (inner + projected).relu())


def test_a_checkpoint_that_does_not_fit_another_model_names_its_own(tmp_path):
    ckpt = tmp_path / "c.pt"
    checkpoints.write(ckpt, models.build("small-resnet", 3).state_dict(), {"model": "small-resnet"})
    with refused(InputError, ckpt, "small-resnet", "resnet20", "60 missing"):
        ls.load_objective(ckpt, model="resnet20", dataset=(torch.randn(6, 3, 8, 8), torch.arange(6) % 3))


def test_shortcuts_without_weights_do_not_fit_a_model_with(model):
    model.layer2[0].downsample = nn.Conv2d(8, 16, 1)
    state = {n: t for n, t in model.state_dict().items() if "downsample" not in n}
    assert "its shortcuts have no weights (option A)" in refusal(model, state)


def test_another_depth_asks_for_the_model():
    message = refusal(models.build("resnet20", 10), models.build("resnet32", 10).state_dict())
    assert "layer1 has 5 blocks in the checkpoint, 3 in the model: is this the right model?" in message
    assert "72 unexpected (layer1.3.conv1.weight, layer1.3.bn1.weight, layer1.3.bn1.bias, ...);" in message


def test_other_channels_ask_for_the_data_set(model):
    message = refusal(model, models.build("small-resnet", 10, in_channels=3).state_dict())
    assert "conv1.weight has 3 input channels in the checkpoint, the data set has 1: is this the right" in message


def test_another_width_asks_for_the_model(model):
    assert "number of features than the model's: is this the right model?" in refusal(
        model, {**model.state_dict(), "linear.weight": torch.zeros(10, 64)}
    )


def test_weights_under_one_of_several_prefixes_are_pointed_out(model):
    state = {f"{half}.{n}": t for half in ("encoder_q", "encoder_k") for n, t in model.state_dict().items()}
    message = refusal(model, {**state, "queue": torch.zeros(3)})
    assert f"{len(model.state_dict())} of the model's" in message
    assert "are under 'encoder_q.': pass ckpt_key='encoder_q'" in message
    below = {f"module.{name}": tensor for name, tensor in state.items()}
    with refused(InputError, ckpt_key="net.module.encoder_q"):
        weights.load_weights(model, below, key="net")


def test_an_averaged_models_counter_is_ignored_and_noted(model):
    averaged = torch.optim.swa_utils.AveragedModel(model)
    report = weights.load_weights(model, {**averaged.state_dict(), "module.linear.total_ops": torch.zeros(1)})
    assert report.prefix == "module."
    assert report.notes == ("2 ignored, which are no weights (module.linear.total_ops, n_averaged)",)


@pytest.mark.parametrize("state", [{}, {"a.two\nlines": torch.zeros(1)}])
def test_nothing_of_the_model_is_refused_in_one_line(state, model):
    message = refusal(model, state)
    assert "missing (conv1.weight, bn1.weight, bn1.bias, ...)" in message
    assert (r"1 unexpected (a.two\nlines)" in message) == bool(state)
    assert message.endswith("is this the right model?")


def test_the_checkpoint_is_copied_not_shared(model):
    state = other_weights(model)
    before = {n: t.clone() for n, t in state.items()}
    weights.load_weights(model, state)
    with torch.no_grad():
        model.conv1.weight.zero_()
    assert all(torch.equal(state[n], before[n]) for n in state)


def test_the_public_resnet32_fits():
    root = os.environ.get("LANDSCAPE_TEST_DATA")
    if root is None:
        pytest.skip("LANDSCAPE_TEST_DATA is unset: no public checkpoint to load")
    content = torch.load(Path(root) / "checkpoints" / "resnet32-d509ac18.th", weights_only=True, map_location="cpu")
    model = models.build("resnet32", 10)
    assert weights.load_weights(model, content["state_dict"]) == weights.LoadReport(prefix="module.", notes=())
    assert torch.equal(model.linear.weight, content["state_dict"]["module.linear.weight"])
    assert "layer1 has 5 blocks in the checkpoint, 3" in refusal(models.build("resnet20", 10), content["state_dict"])
    assert isinstance(models.build("resnet32", 10, cosine=True).linear, NormedLinear)
    question = "the checkpoint has 10 classes in its last layer, the data set 100: is this the right dataset?"
    assert question in refusal(models.build("resnet32", 100), content["state_dict"])


class Two(nn.Module):
    """Holds one matrix under two names."""

    def __init__(self):
        super().__init__()
        self.features, self.b, self.fc = nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 4), nn.Linear(4, 3)
        self.b.weight = self.features[0].weight


@pytest.mark.parametrize("wrapper", ["module", "_orig_mod"])
def test_a_wrapper_in_the_middle_of_names_is_left_out(wrapper):
    model = Two()
    state = {n.replace("features.", f"features.{wrapper}."): t + 1 for n, t in model.state_dict().items()}
    weights.load_weights(model, state)
    assert torch.equal(model.features[0].weight, state[f"features.{wrapper}.0.weight"])


def test_a_shared_tensor_may_be_there_once():
    model = Two()
    state = {n: t + 1 for n, t in model.state_dict().items() if n != "b.weight"}
    report = weights.load_weights(model, state)
    assert torch.equal(model.b.weight, state["features.0.weight"])
    assert report.notes == ("b.weight taken from 'features.0.weight', with which it is shared",)


def test_a_shared_tensor_with_two_values_is_refused():
    model = Two()
    state = {n: t + (n == "b.weight") for n, t in model.state_dict().items()}
    with refused(InputError, "features.0.weight", "b.weight"):
        weights.load_weights(model, state)


class Keeping(nn.Linear):
    """Keeps more than tensors in its state."""

    def get_extra_state(self):
        return {"version": 3}

    def set_extra_state(self, state):
        raise AssertionError("a checkpoint of another program has none")


def test_what_modules_keep_beside_their_tensors_is_left_as_it_is(tmp_path):
    model, other = nn.Sequential(Keeping(3, 2)), nn.Sequential(Keeping(3, 2))
    torch.save(other.state_dict(), tmp_path / "w.pt")
    data = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    objective = ls.load_objective(str(tmp_path / "w.pt"), model=model, dataset=data, device="cpu")
    assert torch.equal(objective.theta[0], other[0].weight)
    state = convergence.state_of(objective, points.origin(objective))
    assert list(state) == ["0.weight", "0.bias"]
    assert torch.equal(state["0.bias"], other[0].bias)
