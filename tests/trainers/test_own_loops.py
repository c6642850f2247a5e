"""Loops of one's own: mixed precision, batches in pieces, and Lightning, as docs/training.md shows them."""

import copy
import re
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import batched, blobs

from trainers import GKP, GSA, SAM, Memory
from trainers.passes import kept_statistics

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training.md"
COUNTS, GROUP_OF = [14, 1], torch.tensor([0, 0, 1])
SAMPLES = blobs()
LABELS = torch.from_numpy(SAMPLES.labels)
BATCHES = [(SAMPLES.inputs[k::3], LABELS[k::3]) for k in range(3)]


def optimizer_of(kind, model):
    if kind == "sam":
        return SAM(model.parameters(), torch.optim.SGD, rho=0.5, model=model, lr=0.1)
    return GSA(model.parameters(), torch.optim.SGD, counts=COUNTS, clip=None, scale=1.0, model=model, lr=0.1)


def flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def losses_of(model, inputs, labels, *, bf16):
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(inputs)
    return F.cross_entropy(logits.float(), labels, reduction="none")


def stepped(kind, *, bf16=False, epochs=2):
    """A network after some epochs of a plain loop."""
    model = batched()
    optimizer = optimizer_of(kind, model)
    for inputs, labels in BATCHES * epochs:
        groups = [GROUP_OF[labels]] if kind == "gsa" else []
        optimizer.step(lambda x=inputs, y=labels: losses_of(model, x, y, bf16=bf16), *groups)
    return model


def penalty(model, seed=0):
    """GKP's term around a point near a network."""
    names = tuple(name for name, _ in model.named_parameters())[:-2]
    n = sum(model.get_parameter(name).numel() for name in names)
    rng = torch.Generator().manual_seed(seed)
    centres, fisher = torch.randn(2, n, generator=rng), torch.rand(2, n, generator=rng)
    return GKP(centres, fisher, np.array(COUNTS), group_of=GROUP_OF.numpy(), names=names)


# Mixed precision --------------------------------------------------------------------------------------------------


def test_sam_in_bfloat16_is_two_gradients_in_bfloat16_of_weights_in_float32():
    (inputs, labels), model, plain = BATCHES[0], batched(), batched()
    optimizer_of("sam", model).step(lambda: losses_of(model, inputs, labels, bf16=True))
    theta, parameters = flat(plain), list(plain.parameters())

    def gradient():
        found = torch.autograd.grad(losses_of(plain, inputs, labels, bf16=True).mean(), parameters)
        return torch.cat([g.reshape(-1) for g in found])

    g = gradient()
    eps = g * (1 / g.norm()) * 0.5
    nn.utils.vector_to_parameters(theta + eps, parameters)
    expected = theta - 0.1 * gradient()
    assert g.dtype == flat(model).dtype == torch.float32
    torch.testing.assert_close(flat(model), expected, rtol=0, atol=1e-6)
    assert (expected - flat(stepped("sam", epochs=1))).abs().max() > 1e-5  # and float32 is another step


@pytest.mark.parametrize("kind", ["gsa", "gkp"])
def test_an_autocast_around_a_whole_step_rounds_no_product_of_weights_and_gradients(kind):
    """A trainer such as Lightning's casts all that is called within its step."""
    (inputs, labels), found = BATCHES[2], []  # the batch that has both groups
    for around in (False, True):
        model = batched()
        with torch.autocast("cpu", torch.bfloat16, enabled=around):
            if kind == "gsa":
                optimizer = optimizer_of("gsa", model)
                optimizer.step(lambda m=model: losses_of(m, inputs, labels, bf16=True), GROUP_OF[labels])
                found.append(optimizer.perturbation)
            else:
                value = penalty(model)(model, labels)
                found.append(torch.cat([value[None], *(g.reshape(-1) for g in gradients_of(value, model))]))
    assert found[0].dtype == found[1].dtype == torch.float32
    assert found[0].norm() > 1e-4
    assert torch.equal(*found)


def gradients_of(value, model):
    parameters = list(model.parameters())[:-2]
    return torch.autograd.grad(value, parameters)


@pytest.mark.parametrize("kind", ["sam", "gsa"])
def test_an_autocast_around_a_whole_step_casts_the_perturbed_weights_too(kind):
    """It keeps the casts of weights until it ends, whether it is enabled or not."""
    (inputs, labels), found = BATCHES[2], []
    for around in (nullcontext(), torch.autocast("cpu", torch.bfloat16)):
        model = batched()
        optimizer, groups = optimizer_of(kind, model), [GROUP_OF[labels]] if kind == "gsa" else []
        with around:
            optimizer.gradients(lambda m=model: losses_of(m, inputs, labels, bf16=True), *groups)
        found.append(torch.cat([p.grad.reshape(-1) for p in model.parameters()]))
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


def test_a_grouping_within_an_autocast_leaves_no_casts_of_the_convergence_points():
    model, (inputs, _) = batched(), BATCHES[0]
    memory = Memory(model, SAMPLES, n_groups=2)
    for epoch in (1, 2):
        memory.update(epoch)
        nn.init.normal_(model[0].weight)
    with torch.autocast("cpu", torch.bfloat16):
        before = model(inputs)
        memory.regroup()
        assert torch.equal(model(inputs), before)


# Batches in pieces ------------------------------------------------------------------------------------------------


def test_gkps_term_of_a_batch_is_that_of_its_pieces_by_their_shares():
    model, labels = batched(), LABELS
    gkp = penalty(model)
    whole = gkp(model, labels)
    pieces = [labels[:4], labels[4:5], labels[5:]]
    parts = sum(gkp(model, y) * len(y) / len(labels) for y in pieces)
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=0)


def test_sams_two_steps_over_pieces_are_the_step_over_the_batch():
    """Where samples do not meet in batch norm."""
    found = []
    for n in (15, 4):
        model = batched().eval()
        optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.5, lr=0.1)
        pieces = list(zip(SAMPLES.inputs.split(n), LABELS.split(n), strict=True))
        for finish in (optimizer.first_step, optimizer.second_step):
            with kept_statistics(model):
                for x, y in pieces:
                    (F.cross_entropy(model(x), y, reduction="sum") / len(LABELS)).backward()
            finish()
        found.append(flat(model))
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


# Lightning --------------------------------------------------------------------------------------------------------


@pytest.fixture
def modules():
    """The two modules of the page."""
    pytest.importorskip("lightning", reason="Lightning is not installed (pip install lightning): its loops are not run")
    shown = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    names = {"torch": torch, "F": F, "GSA": GSA, "SAM": SAM}
    for block in shown:
        if "LightningModule" in block:
            exec(block, names)
    return names


def fit(module, *, epochs, precision="32-true"):
    """Train a module by Lightning, on the batches of the plain loops."""
    from lightning.pytorch import Trainer

    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary"), False)
    trainer = Trainer(accelerator="cpu", devices=1, max_epochs=epochs, precision=precision, **quiet)
    trainer.fit(module, torch.utils.data.DataLoader(BATCHES, batch_size=None))
    return flat(module.model)


@pytest.mark.filterwarnings("ignore")  # of Lightning: a loader without workers
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("kind", ["sam", "gsa"])
def test_sam_and_gsa_under_lightning_are_the_plain_loop_bit_for_bit(kind, precision, modules):
    module, plain = modules["WithGSA"](batched(), GROUP_OF, COUNTS), batched()
    if kind == "sam":
        module = with_sam(modules["WithGSA"])(batched(), GROUP_OF, COUNTS)
    optimizer = optimizer_of("sam", plain) if kind == "sam" else own_gsa(plain)
    for inputs, labels in BATCHES * 2:
        groups = [GROUP_OF[labels]] if kind == "gsa" else []
        bf16 = precision == "bf16-mixed"
        optimizer.step(lambda x=inputs, y=labels, b=bf16: losses_of(plain, x, y, bf16=b), *groups)
    assert torch.equal(fit(module, epochs=2, precision=precision), flat(plain))
    assert not torch.equal(flat(plain), flat(batched()))


def with_sam(module):
    """The page's module for GSA, with SAM and without groups."""

    class WithSAM(module):
        def configure_optimizers(self):
            return optimizer_of("sam", self.model)

        def training_step(self, batch, _):
            inputs, labels = batch
            self.optimizers().step(closure=lambda: F.cross_entropy(self.model(inputs), labels, reduction="none"))

    return WithSAM


def own_gsa(model):
    return GSA(model.parameters(), torch.optim.SGD, counts=COUNTS, model=model, lr=0.1)


@pytest.mark.filterwarnings("ignore")
def test_gkp_under_lightning_is_the_plain_loop_bit_for_bit(modules):
    model = batched()
    other = copy.deepcopy(model)
    module = modules["WithGKP"](model, Memory(model, SAMPLES, n_groups=2))
    memory = Memory(other, SAMPLES, n_groups=2)
    sgd = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(1, 7):
        for inputs, labels in BATCHES:
            loss = F.cross_entropy(other(inputs), labels)
            if memory.gkp:
                loss = 0.8 * loss + 0.2 * memory.gkp(other, labels)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
        memory.update(epoch)
        if epoch % 4 == 0:
            memory.regroup()
    assert torch.equal(fit(module, epochs=6), flat(other))
    assert module.memory.gkp is not None
