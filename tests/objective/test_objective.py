"""What users bring as a model: wrapped, left as training left it, or unfit; and what one objective has of another."""

import threading
import warnings

import numpy as np
import pytest
import torch
from refusals import refused
from torch import nn
from torch.utils.data import TensorDataset

import landscape as ls
from landscape.data import datasets
from landscape.data.partition import Partition
from landscape.errors import DataError, InputError, StoreError
from landscape.networks import losses
from landscape.objective.parts import make_partition
from tests.cases import Case, Overwrites, Shifts, mlp
from tests.exact import differences


def tangent(objective):
    v = torch.randn(objective.layout.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return v / v.norm()


def products(objective, kind="hessian", **options):
    """Return H v of each part, (P, D), or that of another matrix."""
    v = tangent(objective)
    operator = ls.curvature_operator(objective, kind, **options)
    return operator.matvec(v.expand(len(objective.partition), 1, -1))[:, 0]


def seeded(make):
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(1)
        return make()


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda m: nn.DataParallel(torch.compile(m))])
def test_a_wrapped_model_has_the_products_of_the_one_inside(wrap):
    model = seeded(lambda: mlp(nn.Tanh()))
    plain, wrapped = Case(lambda: model).objective(), Case(lambda: wrap(model)).objective()
    assert wrapped.layout == plain.layout
    found, expected = (products(o, backend="reverse") for o in (wrapped, plain))
    assert torch.equal(found, expected)


def test_a_wrapped_model_takes_the_weights_of_the_one_inside(tmp_path):
    torch.save(seeded(lambda: mlp(nn.Tanh())).state_dict(), tmp_path / "w.pt")
    data = (torch.randn(4, 2, 3, 3), torch.tensor([0, 1, 2, 0]))
    objective = ls.load_objective(str(tmp_path / "w.pt"), model=torch.compile(mlp(nn.Tanh())), dataset=data)
    assert torch.equal(objective.theta[0], torch.load(tmp_path / "w.pt")["1.weight"])


class Keeps(nn.Module):
    """Keeps its features for others to look at."""

    def __init__(self):
        super().__init__()
        self.inner = mlp(nn.Tanh())

    def forward(self, x):
        self.features = self.inner[:-1](x)
        return self.inner[-1](self.features)


def old_weight_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = mlp(nn.Tanh())
        nn.utils.weight_norm(model[1])
    return model


@pytest.mark.parametrize("make", [Keeps, old_weight_norm])
def test_a_model_that_has_run_can_be_copied(make):
    model = seeded(make)
    model(torch.ones(2, 2, 3, 3))
    objective = Case(lambda: model).objective()
    for part, found in enumerate(products(objective)):
        exact = differences(objective, part, tangent(objective))
        assert (found - exact).norm() < 1e-8 * exact.norm()


class Rotation(nn.Module):
    """Turns pairs of features by fixed angles, as rotary embeddings do."""

    def __init__(self):
        super().__init__()
        self.register_buffer("turns", torch.polar(torch.ones(9), torch.arange(9.0)))
        self.fc = nn.Linear(18, 3)

    def forward(self, x):
        pairs = torch.view_as_complex(x.flatten(1).reshape(-1, 9, 2))
        return self.fc(torch.view_as_real(pairs * self.turns).flatten(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_complex_buffers_keep_their_imaginary_part(dtype):
    objective = Case(Rotation).objective(dtype=dtype)
    assert objective._fixed["turns"].dtype == dtype.to_complex()
    assert objective._fixed["turns"].imag.abs().max() > 0.9


class Locked(nn.Sequential):
    def __init__(self):
        super().__init__(*mlp(nn.Tanh()))
        self.lock = threading.Lock()


def complex_parameter():
    model = mlp(nn.Tanh())
    model.phase = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    return model


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(mlp(nn.Tanh()))


class BatchAsTime(nn.Module):
    """Forgets batch_first: the first sample sees itself alone, each later one all before it."""

    def __init__(self):
        super().__init__()
        self.rnn, self.fc = nn.RNN(9, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.rnn(x.flatten(2))[0][:, -1])


class Raises(nn.Sequential):
    def __init__(self, error, when=lambda x: True):
        super().__init__(*mlp(nn.Tanh()))
        self.error, self.when = error, when

    def forward(self, x):
        if self.when(x):
            raise self.error
        return super().forward(x)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Locked, ("TypeError",)),
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), ("1.weight",)),
        (lambda: mlp(nn.Tanh()).to("meta"), ("meta",)),
        (complex_parameter, ("phase",)),
        (scripted, ("TorchScript",)),
        (BatchAsTime, ("samples",)),
        (lambda: Raises(KeyError("pixels")), ("KeyError", "pixels")),
        (lambda: Raises(AssertionError()), ("AssertionError",)),
    ],
    ids=["lock", "lazy", "meta", "complex", "script", "batch as time", "KeyError", "AssertionError"],
)
def test_an_unfit_model_is_refused_in_a_line(make, words):
    with refused(InputError, *words) as caught:
        Case(make).objective()
    assert "\n" not in str(caught.value)


def test_what_a_model_raises_at_a_later_sample_is_named_too():
    model = Raises(AssertionError("too many"), when=lambda x: len(x) == 9)
    with refused(InputError, "AssertionError"):
        _ = Case(lambda: model).objective(batch_size=9).evaluation


def test_a_first_class_of_one_sample_hides_no_coupling():
    model = nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), nn.Flatten(), nn.Linear(18, 3))
    data = (torch.randn(7, 2, 3, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 1, 1, 2, 2, 2]))
    with refused(InputError, "samples"):
        ls.load_objective(model=model, dataset=data, partition="class")


@pytest.mark.parametrize("kind", ["hessian", "ggn", "residual"])
@pytest.mark.parametrize("backend", ["auto", "reverse"])
def test_a_model_may_overwrite_its_inputs(kind, backend):
    objective, plain = Case(Overwrites).objective(), Case(Shifts).objective()
    inputs = objective.samples.inputs.clone()
    found, expected = (products(own, kind, backend=backend) for own in (objective, plain))
    torch.testing.assert_close(found, expected)
    assert torch.equal(objective.samples.inputs, inputs)


class Caches(Keeps):
    """Makes a mask for the size of the batch when that changes."""

    mask = None

    def forward(self, x):
        h = self.inner[:-1](x)
        if self.mask is None or self.mask.shape != h.shape:
            self.mask = torch.linspace(0, 1, 5, dtype=h.dtype).expand(len(h), -1).clone()
        return self.inner[-1](h * self.mask)


def test_an_evaluation_reports_each_sample_once_and_is_kept():
    objective = Case(lambda: mlp(nn.Tanh())).objective(batch_size=4)
    reports = []
    found = objective.evaluate(lambda done, total, text: reports.append((done, total)))
    total = sum(len(m) for m in objective.members)
    assert reports[-1] == (total, total)
    assert [b[0] - a[0] for a, b in zip([(0, 0), *reports], reports, strict=False)] == [
        len(labels) for part in range(len(objective.partition)) for _, labels in objective.batches(part)
    ]
    assert objective.evaluation is found


def test_a_model_may_keep_tensors_from_the_evaluation():
    objective = Case(Caches).objective()
    assert np.isfinite(objective.evaluation.loss).all()  # ends with the one sample of the last part
    v = tangent(objective)
    found = ls.curvature_operator(objective, backend="reverse").restrict([2]).matvec(v[None, None])[0, 0]
    exact = differences(objective, 2, v)
    assert (found - exact).norm() < 1e-8 * exact.norm()


def test_a_caller_may_have_switched_gradients_off():
    expected = products(Case(lambda: mlp(nn.Tanh())).objective())
    with torch.no_grad():
        found = products(Case(lambda: mlp(nn.Tanh())).objective())
    assert torch.equal(found, expected)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_a_weight_decay_that_is_none_is_refused(value):
    with refused(InputError, "weight_decay"):
        Case(lambda: mlp(nn.Tanh())).objective(weight_decay=value)


def test_training_samples_are_known_of_classes_alone():
    """Or each domain would claim those of all, and the first domain would be the head."""
    data, known = (
        (torch.randn(10, 4), torch.tensor([0] * 5 + [1] * 3 + [2] * 2)),
        {"class": [5, 3, 2], "head-tail": [5, 2], "all": [10]},
    )
    for parts, counts in known.items():
        assert ls.make_objective(nn.Linear(4, 3), data, parts=parts).trained.tolist() == counts
    objective = ls.make_objective(nn.Linear(4, 3), data, parts=["a", "b"] * 5)
    assert np.isnan(objective.trained).all()
    assert objective.alone("all").trained.tolist() == [10]
    found = ls.surface1d(objective, n=3)
    for groups in ({"groups": "head-tail"}, {"groups": "all", "weights": "training"}):
        with pytest.raises(InputError, match="training samples"):
            ls.regroup(found, **groups)


TEST_SET = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
COUNTS = [5, 500, 50]


class Counted(TensorDataset):
    class_counts = COUNTS


def of_test_data(maker, data=TEST_SET, *, parts="all", **options):
    """An objective of data that are not the training set, by one of the two functions."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    if maker == "make":
        return ls.make_objective(model, data, split="test", parts=parts, **options)
    return ls.load_objective(model=model, dataset=data, split="test", partition=parts, **options)


RECORDS = [{"input": x, "label": y} for x, y in zip(TEST_SET[0], TEST_SET[1].tolist(), strict=True)]
makers = pytest.mark.parametrize("maker", ["make", "load"])


@makers
@pytest.mark.parametrize("data", [TEST_SET, RECORDS], ids=["pairs", "records"])
@pytest.mark.parametrize(
    "given", [{"parts": "head-tail"}, {"parts": "many-medium-few"}, {"loss": "logit-adjust"}], ids=str
)
def test_test_data_do_not_say_how_frequent_classes_are_in_training(maker, data, given):
    with refused(InputError, "class_counts", "test", *given.values()):
        of_test_data(maker, data, **given)


@makers
@pytest.mark.parametrize("name", losses.LOSSES)
def test_losses_of_class_counts_take_those_of_training(maker, name):
    if losses.takes_counts(name):
        with refused(InputError, "class_counts", loss=name):
            of_test_data(maker, loss=name)
    else:
        of_test_data(maker, loss=name)
    found = of_test_data(maker, loss=name, class_counts=COUNTS, dtype="float64")
    z, y = torch.randn(12, 3, dtype=torch.float64), TEST_SET[1]
    assert torch.equal(found.loss(z, y), losses.build(name, np.array(COUNTS))(z, y))
    assert (found.source["class_counts"], found.source["split"]) == (COUNTS, "test")


@makers
def test_groups_of_test_data_go_by_training_samples(maker):
    for given in ({"class_counts": COUNTS}, {"class_counts": np.array(COUNTS)}, {"data": Counted(*TEST_SET)}):
        found = of_test_data(maker, parts="many-medium-few", **given)
        assert dict(zip(found.partition.names, found.partition.classes, strict=True)) == {
            "many": (1,), "medium": (2,), "few": (0,),
        }  # fmt: skip
        assert found.trained.tolist() == [500, 50, 5]
    with refused(DataError, "class_counts"):
        of_test_data(maker, class_counts=[0.5, 0.5, 1])


@makers
def test_without_counts_training_samples_are_unknown(maker):
    found = of_test_data(maker, parts="class")
    assert np.isnan(found.trained).all()
    with refused(InputError, "class_counts", "head-tail"):
        found.alone("tail")
    features = ls.features(found)
    assert np.isnan(features.train_counts).all()
    assert [line.get_xdata()[0] for line in ls.plots.class_quality(features).axes[0].lines] == [0, 1, 2]
    with pytest.raises(InputError, match="training samples"):
        ls.regroup(ls.surface1d(found, n=3), "head-tail")


def test_counts_of_data_that_state_theirs_are_refused():
    samples = datasets.from_dataset(TEST_SET)
    for data in ("digits-lt", samples):
        with refused(InputError, "class_counts"):
            of_test_data("load", data, class_counts=COUNTS)
    with refused(InputError, "class_counts"):
        of_test_data("make", samples, class_counts=COUNTS)


def test_the_test_split_of_a_users_callable_has_the_counts_of_its_training_split():
    found = of_test_data("load", "toys:vectors", parts="head-tail", loss="balanced")
    assert (found.trained.tolist(), found.samples.split) == ([9, 1], "test")


def test_a_group_that_is_named_twice_is_refused(tmp_path):
    (tmp_path / "groups.json").write_text('{"a": [0], "a": [1]}')
    samples = datasets.from_dataset((torch.ones(3, 2), torch.tensor([0, 1, 2])))
    with refused(InputError, "'a'"):
        make_partition(samples, str(tmp_path / "groups.json"))


@pytest.mark.parametrize("other", ["weights", "samples"])
def test_an_unfinished_run_is_not_continued_with_another_model_or_partition(tmp_path, other):
    model = mlp(nn.Tanh())
    data = (torch.randn(8, 2, 3, 3), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2]))

    def run(index, progress=None):
        parts = Partition.from_index(np.array(index), ["a", "b"])
        objective = ls.load_objective(model=model, dataset=data, partition=parts)
        return ls.spectrum(objective, steps=3, probes=1, out=tmp_path / "out.h5", progress=progress)

    def interrupted(done, total, text):
        if done >= 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([0, 0, 0, 0, 1, 1, 1, 1], interrupted)
    if other == "weights":
        with torch.no_grad():
            model[1].weight += 1
    with pytest.raises(StoreError, match="was begun with"):
        run([0, 0, 0, 0, 1, 1, 1, 1] if other == "weights" else [0, 1, 0, 1, 0, 1, 0, 1])
