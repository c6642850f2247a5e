"""Models, losses and data that do not hold still are refused, at the start or at the end of an analysis."""

import copy
import random

import numpy as np
import pytest
import torch
from refusals import refused
from torch import nn
from torch.nn import functional as F

import landscape as ls
from landscape.analyses import directions
from landscape.autodiff import randomness
from landscape.data import datasets
from landscape.errors import DataError, InputError, NumericalError
from landscape.objective import batch_norm
from landscape.objective.objective import Objective

X = torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
Y = torch.arange(40) % 3


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def objective_of(model, **options):
    data = datasets.from_dataset((X, Y))
    return Objective.build(model, data, partition="class", dtype=torch.float64, device="cpu", **options)


class Noisy(nn.Module):
    """Draws random numbers in each pass, from one generator or another."""

    def __init__(self, draw):
        super().__init__()
        self.net, self.draw = net(), draw

    def forward(self, x):
        return self.draw(self.net(x))


NUMPY = np.random.mtrand._rand  # the generator behind np.random.rand, which users' code draws from
DRAWS = {
    "dropout": lambda z: F.dropout(z, 0.5, training=True),
    "dropout of 0.1 %": lambda z: F.dropout(z, 0.001, training=True),
    "noise": lambda z: z + 1e-3 * torch.randn_like(z),
    "NumPy's": lambda z: z * (1 + 1e-3 * (NUMPY.rand() < 0.05)),
    "Python's": lambda z: z * (1 + 1e-3 * (random.random() < 0.05)),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("seed", range(3))
def test_a_model_that_draws_random_numbers_is_refused(name, seed):
    torch.manual_seed(seed)
    NUMPY.seed(seed)
    random.seed(seed)
    with pytest.raises(InputError, match=r"differs between two runs.*dropout or noise"):
        objective_of(Noisy(DRAWS[name]))


def test_a_model_that_draws_and_does_not_use_it_is_welcome():
    before = randomness.state()
    objective_of(Noisy(lambda z: z + 0 * torch.rand(1)))
    assert randomness.state() != before
    assert randomness.state() == randomness.state()


class Drifting(nn.Module):
    """Its output changes after so many passes, by a counter of its own or in a buffer."""

    def __init__(self, after, buffer):
        super().__init__()
        self.net, self.after, self.calls = net(), after, 0
        self.register_buffer("count", torch.zeros((), dtype=torch.int64)) if buffer else None

    def forward(self, x):
        if hasattr(self, "count"):
            self.count += 1
            calls = self.count
        else:
            self.calls += 1
            calls = self.calls
        return self.net(x) * (1 + 0.05 * (calls > self.after))


ANALYSES = {
    "spectrum": lambda o: ls.spectrum(o, steps=12, probes=2, backend="reverse"),
    "surface": lambda o: ls.surface(o, directions.random(o, 1), np.linspace(-1, 1, 15)),
    "gradients": lambda o: ls.gradients(o, batches=25, samples_per_batch=8),
    "sharpness": lambda o: ls.sharpness(o, draws=2, ascent_steps=3),
    "features": lambda o: [ls.features(o) for _ in range(9)],
}


@pytest.mark.parametrize("buffer", [False, True])
@pytest.mark.parametrize("name", ANALYSES)
def test_a_model_that_drifts_is_refused_at_the_end(name, buffer):
    objective = objective_of(Drifting(45, buffer), batch_size=4)
    if name == "surface" and not buffer:  # the traced pass never calls the model, whose counter stands still
        still = ANALYSES[name](objective_of(Drifting(10**6, buffer), batch_size=4))
        np.testing.assert_array_equal(ANALYSES[name](objective).loss, still.loss)
        return
    with pytest.raises(InputError, match="the end of the analysis"):
        ANALYSES[name](objective)


def test_a_model_that_counts_its_calls_and_does_not_drift_is_analysed():
    ANALYSES["gradients"](objective_of(Drifting(10**6, buffer=True), batch_size=4))


class Items(torch.utils.data.Dataset):
    """Samples of which some have a random input, or a random label."""

    def __init__(self, label=lambda i: False, noise=lambda i: False, own=False):
        self.label, self.noise = label, noise
        self.draw = np.random.default_rng(0) if own else NUMPY

    def __len__(self):
        return 40

    def __getitem__(self, i):
        x = X[i] + torch.from_numpy(self.draw.normal(size=5)).float() if self.noise(i) else X[i]
        return x, int(self.draw.integers(3) if hasattr(self.draw, "integers") else self.draw.randint(3)) if (
            self.label(i)
        ) else int(Y[i])


@pytest.mark.parametrize(
    ("items", "what"),
    [
        (Items(noise=lambda i: True), "sample"),
        (Items(noise=lambda i: i >= 8), "sample"),
        (Items(noise=lambda i: i >= 8, own=True), "sample"),
        (Items(noise=lambda i: i == 31), "sample 31"),
        (Items(label=lambda i: True), "the label of sample"),
        (Items(label=lambda i: i >= 8), "the label of sample"),
        (Items(label=lambda i: i >= 8, own=True), "the label of sample"),
    ],
)
def test_random_items_are_refused_wherever_they_begin(items, what):
    for seed in range(3):
        NUMPY.seed(seed)
        with refused(DataError, what):
            datasets.from_dataset(items)


def read_often(items):
    for _ in range(6):  # a random label may come out alike
        datasets.from_dataset(items)


@pytest.mark.parametrize("kind", ["noise", "label"])
def test_one_random_item_is_found_wherever_it_is(kind):
    """By the generators that it draws from, as a few items that are read again would miss it."""
    for i in (0, 1, 6, 7, 8, 9, 22, 31, 32, 39):
        NUMPY.seed(3 * i)
        items = Items(**{kind: lambda j, i=i: j == i})
        with refused(DataError, i):
            read_often(items)


@pytest.mark.usefixtures("read_late")
def test_data_too_large_for_memory_are_looked_at_again_at_the_end():
    items = Items()
    objective = Objective.build(net(), datasets.from_dataset(items), dtype=torch.float64, device="cpu")
    objective.verify()
    items.noise = lambda i: True
    with pytest.raises(InputError, match="the end of the analysis"):
        objective.verify()


# The caller's model


def trained(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()


def loaded(model):
    model.load_state_dict({name: t + 0.1 for name, t in model.state_dict().items()})


def written(model):
    model[0].weight.data[0, 0] += 1.0  # which no version counter of autograd sees


def top(objective):
    return ls.spectrum(objective, steps=8, probes=1, backend="reverse", sampling_errors=False).lambda_max


@pytest.mark.parametrize(
    ("change", "wrap"),
    [(trained, nn.DataParallel), *((change, lambda m: m) for change in (trained, loaded, written))],
)
def test_an_objective_of_a_model_that_was_changed_gives_no_numbers(change, wrap):
    model = net()
    given = wrap(model)
    objective = objective_of(given)
    kept = objective_of(copy.deepcopy(model))
    before = top(objective)
    change(model)
    for use in (*ANALYSES.values(), ls.hessian):
        with refused(InputError, "objective.at"):
            use(objective)
    now = objective.at(given)
    fresh = objective_of(model)
    found = top(now)
    np.testing.assert_array_equal(found, top(fresh))
    assert not np.allclose(found, before)
    assert now.source["weights_sha256"] == fresh.source["weights_sha256"] != objective.source["weights_sha256"]
    np.testing.assert_array_equal(top(kept), before)
    change(model)
    with pytest.raises(InputError, match="changed since"):
        top(now)


def test_an_objective_outlives_the_model_it_was_made_of():
    objective = objective_of(net())
    assert objective._theirs.model() is None
    objective.refuse_stale()


def test_another_network_is_no_later_state_of_this_one():
    objective = objective_of(net())
    for other in (nn.Linear(5, 3), nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 3))):
        with pytest.raises(InputError, match="architecture"):
            objective.at(other)


class Caching(nn.Module):
    """Keeps something of its last inputs, as rotary embeddings keep their angles."""

    def __init__(self):
        super().__init__()
        self.net = net()
        self.register_buffer("cache", torch.zeros(0), persistent=False)

    def forward(self, x):
        if len(self.cache) < len(x):
            self.cache = x.detach()[:, 0].clone()
        return self.net(x)


def test_what_a_forward_pass_keeps_for_later_is_no_change():
    model = Caching()
    objective = objective_of(model)
    model(X)
    ls.spectrum(objective, steps=4, probes=1)


class Counting(nn.Module):
    """Counts its passes in a buffer that a checkpoint holds, and has another that is nan; neither enters the output."""

    def __init__(self):
        super().__init__()
        self.net = net()
        self.register_buffer("passes", torch.zeros(()))
        self.register_buffer("unknown", torch.tensor(float("nan")))

    def forward(self, x):
        self.passes += 1
        return self.net(x)


def test_what_passes_over_the_copy_count_and_what_is_nan_is_no_change_of_the_model():
    model = Counting()
    objective = objective_of(model)
    found = ls.spectrum(objective, steps=4, probes=1).lambda_max
    np.testing.assert_allclose(found, ls.spectrum(objective_of(model.net), steps=4, probes=1).lambda_max, rtol=1e-12)
    assert model.passes == 0
    model.unknown.fill_(1)
    with pytest.raises(InputError, match="changed since"):
        objective.refuse_stale()


@pytest.mark.parametrize("batch_size", [2, 3, 128])
@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_a_choice_by_the_sum_of_a_batch_is_refused(batch_size, scale):
    model = Noisy(lambda z: z * (2 if scale * z.sum() > 0 else 1))
    with pytest.raises(InputError, match="depends on the other samples"):
        objective_of(model, batch_size=batch_size)


class Told(nn.Module):
    """Multiplies its outputs by what a function of the inputs says."""

    def __init__(self, factor):
        super().__init__()
        self.net, self.factor = net(), factor

    def forward(self, x):
        return self.net(x) * self.factor(x)


def test_one_sample_that_drifts_by_a_millionth_is_named():
    passes = []

    def drifts(x):
        passes.append(len(x))
        return 1 + 1e-6 * (len(passes) > 40) * (x[:, :1] == X[6, 0].double())

    objective = objective_of(Told(drifts))
    objective.verify()
    passes.extend([0] * 40)
    with refused(InputError, "sample 6"):
        objective.verify()


@pytest.mark.parametrize("shape", [(), (1,), (1, -1)])
def test_a_loss_that_is_not_one_value_for_each_sample_is_refused(shape):
    with pytest.raises(InputError, match=r"one value per sample, \(4,\)"):
        objective_of(net(), loss=lambda z, y: (z.mean() if len(shape) < 2 else z.mean(1)).reshape(shape))


def test_a_loss_of_each_output_is_refused_with_what_makes_it_one_of_each_sample():
    with pytest.raises(InputError, match=r"returned \(4, 3\).*loss\(output, target\).mean\(\(1,\)\)"):
        objective_of(net(), loss=lambda z, y: z.square())


def test_some_parameters_may_have_no_gradient_but_not_all():
    model = Told(lambda x: 1.0)
    model.unused = nn.Linear(2, 2)
    assert objective_of(model).layout.size == sum(p.numel() for p in model.parameters())
    with refused(InputError, "params"):
        objective_of(net(), loss=lambda z, y: z.detach().sum(1))


def with_one_loss_of(value, index, others=1.0):
    """An objective in which one sample's loss is not finite; `others` multiplies the outputs of those beside it."""
    inputs = X.clone()
    inputs[index, 0] = 100

    def loss(z, y):
        return F.cross_entropy(z, y, reduction="none") + torch.where(z[:, 0].abs() > 1e6, value, 0.0)

    model = Told(lambda x: torch.where(x[:, :1] > 50, 1e9, others if (x[:, 0] > 50).any() else 1.0))
    data = datasets.from_dataset((inputs, Y))
    return Objective.build(model, data, loss=loss, partition="class", dtype=torch.float64, device="cpu")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_is_refused_among_the_first_samples_and_hides_nothing_among_others(value):
    later = int(objective_of(net())._kept.batches[1][-1])
    with_one_loss_of(value, later).verify()
    with pytest.raises(NumericalError, match="first samples"):
        with_one_loss_of(value, 0)
    with pytest.raises(InputError, match="depends on the other samples"):
        with_one_loss_of(value, later, others=2.0)


def test_statistics_that_move_in_training_mode_are_a_change_too():
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    objective = objective_of(model)
    model(X)
    with pytest.raises(InputError, match="changed since"):
        ls.spectrum(objective, steps=4, probes=1)
    assert batch_norm.DEFAULT in batch_norm.POLICIES


def test_inference_mode_is_named_where_it_would_make_derivatives_zero():
    outside = objective_of(net())
    for call in (
        lambda: objective_of(net()),
        lambda: ls.spectrum(outside),
        lambda: ls.gradients(outside),
        lambda: ls.hessian(outside)["0"] @ np.ones(outside.layout.size),
    ):
        with torch.inference_mode(), refused(InputError, "torch.inference_mode"):
            call()


@pytest.mark.parametrize("wide", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_keep_the_digits_that_file_and_analysis_have(tmp_path, wide, dtype):
    state = {name: torch.randn(t.shape, dtype=torch.float64).to(wide) for name, t in net().state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    objective = ls.load_objective(str(tmp_path / "w.pt"), model=net(), dataset=(X, Y), dtype=dtype)
    for name, t in zip(objective.layout.names, objective.theta, strict=True):
        assert torch.equal(t, state[name].to(objective.dtype))
    lost = torch.promote_types(wide, objective.dtype) != objective.dtype
    notes = " ".join(objective.source["checkpoint_notes"])
    assert (f"from {wide}" in notes) == (lost or (wide == torch.bfloat16 and dtype == "float32"))


class Renormalised(nn.Module):
    """An embedding that its forward pass changes, by PyTorch's own means or by hand."""

    def __init__(self, *, max_norm=None, by_hand=False):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.out, self.by_hand = nn.Embedding(6, 3, max_norm=max_norm), nn.Linear(3, 3), by_hand

    def forward(self, tokens):
        if self.by_hand:
            self.table.weight.data.clamp_(-0.5, 0.5)
        return self.out(self.table(tokens).sum(1))


TOKENS = torch.randint(0, 6, (12, 5), generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3


@pytest.mark.parametrize("params", [None, "out"])
@pytest.mark.parametrize("changes", [{"max_norm": 0.5}, {"max_norm": 1e3}, {"by_hand": True}], ids=str)
def test_a_model_whose_forward_pass_changes_its_parameters_is_refused_and_no_other(changes, params):
    with refused(InputError, "table.weight", "forward pass", "max_norm=None"):
        ls.make_objective(Renormalised(**changes), TOKENS, params=params)
    model = Renormalised()
    model.out.max_norm = 0.5  # only embeddings renormalise by it
    objective = ls.make_objective(model, TOKENS, params=params)
    with refused(InputError, "table.weight", "forward pass"):
        objective.at(Renormalised(**changes))
    with torch.no_grad():
        model.out.weight *= 2
    with refused(InputError, "the model has changed", "objective.at(model)"):
        ls.spectrum(objective)
    assert np.isfinite(ls.spectrum(objective.at(model)).lambda_max).all()


def test_targets_that_are_broadcast_against_the_outputs_are_named():
    """An output (B, 1) less targets (B,) is (B, B)."""
    inputs, model = torch.randn(9, 3), nn.Linear(3, 1)
    data = inputs, inputs[:, 0]
    for loss, said in (
        (lambda output, target: (output - target).square(), "4, 4.*broadcast against the output.*give both one shape"),
        (lambda output, target: (output - target).square().mean(1), "other samples.*broadcast against an output"),
    ):
        with pytest.raises(InputError, match=said):
            ls.make_objective(model, data, loss=loss, task="regression")
    right = ls.make_objective(model, data, loss=lambda output, target: (output[:, 0] - target).square())
    assert right.evaluation.overall[0] > 0


def test_an_objective_and_its_samples_are_described_in_a_line():
    inputs = torch.randn(300, 3)
    found = ls.make_objective(nn.Linear(3, 7), (inputs, torch.arange(300) % 7), parts="class")
    assert repr(found) == (
        "<Objective: ce of Linear, 28 parameters, on dataset: 0 (43), 1 (43), 2 (43), 3 (43), ...; float32 on cpu>"
    )
    assert repr(found.samples) == "<Samples: dataset, train split, 300 samples of 7 classes>"
    other = ls.make_objective(nn.Linear(3, 1), (inputs, inputs[:, :1]), task="regression")
    assert repr(other.samples) == "<Records: dataset, train split, 300 samples>"
