"""Which layer is the classifier, and what its weights and its input are."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import landscape as ls
from landscape.analyses import displacements
from landscape.errors import InputError
from landscape.networks import classifiers
from trainers.evaluation import classifier_of


class First(nn.Module):
    """The layer that runs first was registered last."""

    def __init__(self):
        super().__init__()
        self.fc, self.hidden = nn.Linear(3, 3), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.hidden(x).relu())


class Gated(First):
    """No layer gives the logits as they are."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(6, 3)

    def forward(self, x):
        return self.gate(x).sigmoid() * super().forward(x)


class Named(First):
    """Calls its layers by keyword."""

    def forward(self, x):
        return self.fc(input=self.hidden(input=x).relu())


def data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(30, 6, generator=generator, dtype=torch.float64), torch.arange(30) % 3


def objective_of(model):
    return ls.make_objective(model.double(), data(), parts="class", dtype="float64", device="cpu")


@pytest.mark.parametrize("kind", [First, Named])
def test_the_classifier_is_the_layer_that_gives_the_logits_whatever_the_order_of_registration(kind):
    torch.manual_seed(0)
    model = kind().double()
    found, expected = (ls.features(objective_of(m)) for m in (model, nn.Sequential(model.hidden, nn.ReLU(), model.fc)))
    features = model.hidden(data()[0]).relu().detach()
    means = torch.stack([features[data()[1] == c].mean(0) for c in range(3)])
    nearest = (torch.cdist(means, means) + torch.diag(torch.full((3,), torch.inf))).min(1).values
    np.testing.assert_allclose(found.distance[0], nearest.numpy(), rtol=1e-10)
    np.testing.assert_allclose(found.duality, expected.duality, rtol=1e-10)
    assert displacements.chosen_of(objective_of(model), "encoder").names == ("hidden.weight", "hidden.bias")
    samples = objective_of(model).samples
    assert classifier_of(model.float(), samples) == "fc"


def test_of_several_layers_without_the_logits_the_last_one_called_is_named(caplog):
    torch.manual_seed(0)
    model, run = Gated().double(), []
    assert classifiers.find(model, 3, lambda: run.append(1) or model(data()[0])) == "fc"
    assert "fc, which is called last" in caplog.text
    assert not model.fc._forward_hooks
    with pytest.raises(InputError, match="is called"):
        classifiers.find(model, 3, lambda: data()[0][:, :3])
    caplog.clear()
    assert classifiers.find(nn.Sequential(nn.Linear(6, 3)), 3, run.clear) == "0"  # the only one: it is not run
    assert run == [1]
    assert not caplog.text


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm, nn.utils.weight_norm,
                                  nn.utils.spectral_norm])  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_classifier_whose_weight_is_computed_has_its_effective_weight(norm):
    torch.manual_seed(0)
    model, plain = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), norm(nn.Linear(5, 3))).eval(), nn.Linear(5, 3)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)  # an attribute that the older kind sets in each call is stale now
        model(data()[0].float())
        plain.weight.copy_(model[2].weight)
        plain.bias.copy_(model[2].bias)
    found, expected = (ls.features(objective_of(m)) for m in (model, nn.Sequential(*model[:2], plain)))
    for name in ("quality", "distance", "duality", "within_between", "accuracy"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-6, err_msg=name)
