"""Gradients of parts: closed forms, a loop over parts by another route, and what each number claims of itself."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import landscape as ls
from landscape.analyses import gradients
from landscape.curvature import gram
from landscape.data.datasets import from_dataset
from landscape.errors import InputError, NumericalError, StoreError
from landscape.networks import checkpoints
from landscape.objective.objective import Objective
from tests.cases import CASES, CLASS_SIZES, Case, mlp
from tests.exact import flat_function

LAYERS = ("layer_norm", "layer_cosine", "layer_contribution", "layer_whole_norm")
NUMBERS = (
    "norm", "cosine", "projected", "specific", "radius", "contribution", "between", "conflict", "whole_norm", *LAYERS,
)  # fmt: skip
SHARES = np.array(CLASS_SIZES) / sum(CLASS_SIZES)


def of_parts(objective):
    """The gradient of each part's mean loss, (P, D), by torch.func.grad on all of its samples at once, in float64."""
    found = [flat_function(objective, p)[1:3] for p in range(len(objective.partition))]
    return np.stack([torch.func.grad(loss)(point).numpy() for loss, point in found])


def layers_of(objective):
    """Where the parameters that each module itself holds stand in a flat vector."""
    layout, found = objective.layout, {}
    place = dict(zip(layout.names, np.split(np.arange(layout.size), np.cumsum(layout.sizes)[:-1]), strict=True))
    for name, module in objective.model.named_modules():
        own = [place[n] for k, _ in module.named_parameters(recurse=False) if (n := f"{name}.{k}".lstrip(".")) in place]
        if own:
            found[name] = np.concatenate(own)
    return found


def numbers(rows, shares, counts, theta_norm, layers):
    """What the result claims, from the vectors themselves, as equations 12 and 13 are written."""
    g = shares @ rows
    parts = [(rows[:, at], g[at]) for at in layers.values()]
    d = len(g)
    h = np.stack([row - (row @ g) / (g @ g) * g for row in rows])
    sizes = [np.linalg.norm(row) for row in rows]
    rho = [
        np.sqrt(theta_norm / (2 * np.linalg.norm(h_p))) * d ** (-1 / 4) * (n - 1) ** (-1 / 4) if n > 1 else np.nan
        for h_p, n in zip(h, counts, strict=True)
    ]
    between = np.array([
        [a @ b / (p * q) for b, q in zip(rows, sizes, strict=True)] for a, p in zip(rows, sizes, strict=True)
    ])
    return {
        "norm": sizes,
        "cosine": [row @ g / (p * np.linalg.norm(g)) for row, p in zip(rows, sizes, strict=True)],
        "projected": rows @ g / np.linalg.norm(g),
        "specific": np.linalg.norm(h, axis=1),
        "radius": rho,
        "contribution": shares * (rows @ g) / (g @ g),
        "between": between,
        "conflict": between < 0,
        "whole_norm": np.linalg.norm(g),
        "layer_norm": [np.linalg.norm(own, axis=1) for own, _ in parts],
        "layer_cosine": [own @ h / (np.linalg.norm(own, axis=1) * np.linalg.norm(h)) for own, h in parts],
        "layer_contribution": [shares * (own @ h) / (h @ h) for own, h in parts],
        "layer_whole_norm": [np.linalg.norm(h) for _, h in parts],
    }


def agree(found, expected, *, rel=1e-7, names=NUMBERS):
    """All numbers of one point, relative to the largest of their kind; roots of differences have half the digits."""
    for name in names:
        value = np.asarray(expected[name], dtype=float)
        np.testing.assert_allclose(
            getattr(found, name)[0], value, rtol=rel, atol=rel * np.nanmax(np.abs(value)), err_msg=name
        )


def softmax_classifier(C=4, F=3, n_per_class=(5, 3, 2, 1)):
    """A linear model without bias, data, and the closed form of its class gradients: mean of (p - e_y) x^T."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((sum(n_per_class), F), generator=generator, dtype=torch.float64)
    y = torch.cat([torch.full((n,), c) for c, n in enumerate(n_per_class)])
    model = nn.Linear(F, C, bias=False).double()
    with torch.no_grad():
        model.weight.normal_(generator=generator)
    objective = Objective.build(model, from_dataset((x, y)), partition="class", dtype=torch.float64, batch_size=4)
    W = model.weight.detach().numpy()
    z = x.numpy() @ W.T
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    error = p - np.eye(C)[y.numpy()]
    rows = [(error[y == c].T @ x.numpy()[y == c]).ravel() / n for c, n in enumerate(n_per_class)]
    return objective, np.stack(rows), np.array(n_per_class), np.linalg.norm(W)


def test_a_softmax_classifier_has_the_gradients_of_the_closed_form():
    objective, rows, counts, length = softmax_classifier()
    found = ls.gradients(objective)
    agree(found, numbers(rows, counts / counts.sum(), counts, length, {"weight": np.arange(12)}))
    assert found.layers == ("weight",)  # the model itself holds it
    assert found.theta_norm[0] == pytest.approx(length)
    assert found.size == 12
    assert np.isnan(found.radius[0, 3])  # one sample


@pytest.mark.parametrize("name", list(CASES))
def test_all_numbers_are_those_of_the_vectors_themselves(name):
    objective = CASES[name].objective()
    rows = of_parts(objective)
    length = float(torch.cat([t.reshape(-1) for t in objective.theta]).norm())
    found = ls.gradients(objective)
    layers = layers_of(objective)
    agree(found, numbers(rows, SHARES, np.array(CLASS_SIZES), length, layers))
    assert found.layers == tuple(layers)
    assert found.loss[0] == pytest.approx(objective.evaluation.loss)
    for field in dataclasses.fields(found):
        if field.name.endswith("_stderr"):
            assert (np.nan_to_num(getattr(found, field.name)) == 0).all(), field.name
    assert (found.batches == 0).all()
    assert found.batch_size == 0


def test_the_group_specific_part_is_orthogonal_and_the_two_make_up_the_gradient():
    objective = CASES["residual-relu"].objective()
    found = ls.gradients(objective)
    assert np.allclose(found.projected**2 + found.specific**2, found.norm**2, rtol=1e-12)
    rows = of_parts(objective)
    g = SHARES @ rows
    h = rows - np.outer(found.projected[0] / found.whole_norm[0], g)
    assert np.abs(h @ g).max() < 1e-12 * (g @ g)
    assert np.allclose(np.linalg.norm(h, axis=1), found.specific[0], rtol=1e-7)


def test_the_whole_is_the_share_weighted_sum_of_the_parts():
    parts = ls.gradients(CASES["mlp-tanh"].objective())
    whole = ls.gradients(CASES["mlp-tanh"].objective(partition="all"))
    assert whole.norm[0, 0] == pytest.approx(parts.whole_norm[0], rel=1e-12)
    assert SHARES @ parts.projected[0] == pytest.approx(parts.whole_norm[0], rel=1e-12)
    assert parts.contribution.sum() == pytest.approx(1, rel=1e-12)
    # Shared norms: |sum of share_p g_p|^2 from the cosines between the parts alone.
    weights = SHARES * parts.norm[0]
    assert weights @ parts.between[0] @ weights == pytest.approx(parts.whole_norm[0] ** 2, rel=1e-9)


@pytest.mark.parametrize("options", [{}, {"batches": 1, "samples_per_batch": 6}])
def test_layers_add_up_to_the_whole(options):
    found = ls.gradients(CASES["residual-gelu"].objective(), **options)
    known = found.norm[0] > 0  # in the batch
    squares, products = found.layer_whole_norm**2, found.layer_contribution * found.layer_whole_norm[..., None] ** 2
    for value, expected in (
        ((found.layer_norm**2).sum(axis=1)[:, known], found.norm[:, known] ** 2),
        (squares.sum(axis=1), found.whole_norm**2),
        (products.sum(axis=1), found.contribution * found.whole_norm**2),
        ((found.layer_cosine * found.layer_norm * found.layer_whole_norm[..., None]).sum(axis=1)[:, known],
         (found.projected * found.whole_norm)[:, known]),
        (found.layer_contribution.sum(axis=2), np.ones((1, 5))),
    ):  # fmt: skip
        np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max())


def test_samples_in_no_part_are_not_in_the_whole():
    two = ls.gradients(CASES["mlp-tanh"].objective(classes="2,0"))
    rows = of_parts(CASES["mlp-tanh"].objective())[[2, 0]]
    assert two.whole_norm[0] == pytest.approx(np.linalg.norm(np.array([0.1, 0.9]) @ rows), rel=1e-9)
    assert two.n_samples.tolist() == [1, 9]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_part_has_nothing_of_its_own(dtype):
    found = ls.gradients(CASES["mlp-tanh"].objective(partition="all", dtype=dtype))
    assert found.specific[0, 0] == 0
    assert np.isnan(found.radius[0, 0])
    assert found.cosine[0, 0] == pytest.approx(1, abs=1e-12)
    assert found.contribution[0, 0] == pytest.approx(1, abs=1e-6)


def test_float32_agrees_with_float64_and_the_batch_size_changes_nothing():
    reference = ls.gradients(CASES["residual-gelu"].objective())
    expected = {name: getattr(reference, name)[0] for name in NUMBERS}
    for size in (1, 7, 1000):
        agree(ls.gradients(CASES["residual-gelu"].objective(batch_size=size)), expected)
    agree(ls.gradients(CASES["residual-gelu"].objective(dtype=torch.float32)), expected, rel=1e-4)


@pytest.mark.parametrize("rows_that_fit", [0, 1, 2])
def test_gradients_that_do_not_fit_together_give_the_same(rows_that_fit):
    objective = CASES["residual-gelu"].objective()
    reference = ls.gradients(objective)
    found = ls.gradients(objective, cache_bytes=rows_that_fit * 8 * objective.layout.size)
    agree(found, {name: getattr(reference, name)[0] for name in NUMBERS}, rel=1e-9)


def test_parameters_are_those_that_were_chosen():
    whole = CASES["mlp-tanh"].objective()
    found = ls.gradients(CASES["mlp-tanh"].objective(params="3"))
    last = sum(t.numel() for n, t in zip(whole.layout.names, whole.theta, strict=True) if n.startswith("3."))
    assert found.size == last
    length = float(torch.cat([t.reshape(-1) for t in whole.theta])[-last:].norm())
    layers = {"3": np.arange(last)}
    agree(found, numbers(of_parts(whole)[:, -last:], SHARES, np.array(CLASS_SIZES), length, layers))
    assert found.layers == ("3",)
    both = [ls.gradients(CASES["mlp-tanh"].objective(params="3"), **o) for o in ({}, {"batches": 1})]
    agree(both[1], {name: getattr(both[0], name)[0] for name in NUMBERS})


def no_loss_for_the_last(logits, labels):
    return nn.functional.cross_entropy(logits, labels, reduction="none") * (labels != 2)


@pytest.mark.parametrize("batches", [None, 1])
def test_a_gradient_of_zero_has_no_cosine(batches):
    found = ls.gradients(Case(mlp_of_tanh, loss=no_loss_for_the_last).objective(), batches=batches)
    assert found.norm[0].tolist()[2] == found.specific[0, 2] == found.projected[0, 2] == 0
    for name in ("cosine", "cosine_stderr", "radius"):
        assert np.isnan(getattr(found, name)[0, 2]), name
    for name in ("between", "conflict"):
        assert np.isnan(getattr(found, name)[0, 2]).all(), name
        assert np.isnan(getattr(found, name)[0, :, 2]).all(), name
        assert np.isfinite(getattr(found, name)[0, :2, :2]).all(), name
    assert found.contribution[0, 2] == 0
    assert np.isfinite(found.cosine[0, :2]).all()


def mlp_of_tanh():
    return mlp(nn.Tanh())


@pytest.mark.parametrize("batches", [None, 1])
@pytest.mark.parametrize("C", [2, 7])
def test_gradients_that_cancel_leave_no_direction(batches, C):
    """One sample x = 1 a class and weights 0: g_c = 1/C - e_c, whose mean is zero, or 1e-17 as 7/7 is rounded."""
    model = nn.Linear(1, C, bias=False).double()
    nn.init.zeros_(model.weight)
    samples = from_dataset((torch.ones((C, 1), dtype=torch.float64), torch.arange(C)))
    objective = Objective.build(model, samples, partition="class", dtype=torch.float64)
    found = ls.gradients(objective, batches=batches)
    assert found.norm[0] == pytest.approx(np.full(C, np.sqrt(1 - 1 / C)))
    assert (found.whole_norm[0] > 0) == (C == 7)
    assert found.whole_norm[0] == pytest.approx(0, abs=1e-15)
    for name in ("cosine", "projected", "specific", "radius", "contribution"):
        assert np.isnan(getattr(found, name)).all(), name
    others = ~np.eye(C, dtype=bool)
    assert found.between[0][others] == pytest.approx(np.full(C * (C - 1), -1 / (C - 1)))
    np.testing.assert_array_equal(found.conflict[0], others)


# Batches


@pytest.mark.parametrize("name", ["residual-inplace", "attention", "features", "balanced"])
@pytest.mark.parametrize("options", [{"batch_size": 4}, {"batch_size": 100}, {"batch_size": 4, "cache_bytes": 500}])
def test_one_batch_of_all_samples_gives_the_exact_numbers(name, options):
    options = dict(options)
    objective = CASES[name].objective(batch_size=options.pop("batch_size"))
    exact = ls.gradients(objective)
    found = ls.gradients(objective, batches=1, samples_per_batch=15, **options)
    agree(found, {n: getattr(exact, n)[0] for n in NUMBERS})
    assert found.loss == pytest.approx(exact.loss)
    assert found.batches.tolist() == [[1, 1, 1]]
    assert found.batch_size == 15
    for n in ("cosine_stderr", "norm_stderr", "between_stderr", "whole_norm_stderr"):
        assert np.isnan(getattr(found, n)).all()  # one batch cannot tell its own spread


def drawn(seed, n_batches, size):
    """The batches, as they are promised: random epochs, each cut into pieces that differ by one sample at most."""
    generator = np.random.default_rng(seed)
    pieces = []
    while len(pieces) < n_batches:
        pieces += np.array_split(generator.permutation(15), -(-15 // size))
    return pieces[:n_batches]


@pytest.mark.parametrize("size", [2, 6])
def test_numbers_over_batches_are_means_over_those_that_have_the_part(size):
    objective = CASES["mlp-tanh"].objective(partition=ls.Partition.from_index(part_of := parts_of(), ("a", "b", "c")))
    found = ls.gradients(objective, batches=10, samples_per_batch=size, seed=3)
    _, _, point, _ = flat_function(objective, 0)
    x, y = objective.samples.batch(np.arange(15), "cpu", torch.float64)
    layout, model = objective.layout, objective.model

    def loss(theta, index):
        state = dict(zip(layout.names, layout.tensors(theta), strict=True))
        return objective.loss(torch.func.functional_call(model, state, (x[index],)), y[index]).mean()

    layers = layers_of(objective)
    values = {name: [] for name in NUMBERS}
    losses = {p: [] for p in range(3)}
    for index in drawn(3, 10, size):
        present = [p for p in range(3) if (part_of[index] == p).any()]
        rows = np.stack([torch.func.grad(loss)(point, index[part_of[index] == p]).numpy() for p in present])
        shares = np.array([(part_of[index] == p).mean() for p in present])
        with np.errstate(divide="ignore"):
            one = numbers(rows, shares, objective.counts[present], float(point.norm()), layers)
        for p in present:
            losses[p] += [float(loss(point, [i])) for i in index[part_of[index] == p]]
        alone = np.isclose(one["cosine"], 1)  # a batch of one part: nothing is left of h, and of its radius
        one["radius"] = np.where(alone, np.nan, one["radius"])
        one["specific"] = np.where(alone, 0, one["specific"])
        for name in NUMBERS:
            rows_of = {"between": (3,), "conflict": (3,)}.get(name, (len(layers),) if name in LAYERS else ())
            empty = np.full((*rows_of, 3), 0.0 if name.endswith("contribution") else np.nan)
            if name in {"between", "conflict"}:
                empty[np.ix_(present, present)] = one[name]
            elif not name.endswith("whole_norm"):
                empty[..., present] = one[name]
            values[name].append(one[name] if name.endswith("whole_norm") else empty)
    for name, each in values.items():
        each = np.array(each, dtype=float)
        n = np.isfinite(each).sum(axis=0)
        mean = np.where(n > 0, np.nansum(each, axis=0) / np.maximum(n, 1), np.nan)
        np.testing.assert_allclose(getattr(found, name)[0], mean, rtol=1e-7, atol=1e-9, err_msg=name)
        if name != "conflict":
            squares = np.nansum((each - mean) ** 2, axis=0)
            stderr = np.where(n > 1, np.sqrt(squares / np.maximum(n - 1, 1) / np.maximum(n, 1)), np.nan)
            np.testing.assert_allclose(getattr(found, f"{name}_stderr")[0], stderr, rtol=1e-6, atol=1e-9, err_msg=name)
    assert found.batches[0].tolist() == [np.isfinite(np.array(values["norm"])[:, p]).sum() for p in range(3)]
    assert found.loss[0] == pytest.approx([np.mean(losses[p]) for p in range(3)])


def parts_of():
    """Parts that cut across the classes: sizes 7, 7 and 1."""
    return np.array([0, 1] * 7 + [2])


def test_the_same_seed_draws_the_same_batches_and_another_does_not():
    objective = CASES["mlp-tanh"].objective()
    a, b, c = (ls.gradients(objective, batches=4, samples_per_batch=3, seed=s).norm for s in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c, equal_nan=True)


def test_a_part_that_no_batch_has_is_unknown():
    """The class of one sample is in one of the five batches of an epoch: some first batch lacks it."""
    objective = CASES["mlp-tanh"].objective()
    found = next(
        f
        for s in range(20)
        if (f := ls.gradients(objective, batches=2, samples_per_batch=3, seed=s)).batches[0, 2] == 0
    )
    for name in ("norm", "cosine", "cosine_stderr", "specific", "loss"):
        assert np.isnan(getattr(found, name)[0, 2]), name
    assert np.isnan(found.between[0, 2]).all()
    assert found.contribution[0, 2] == 0  # what is absent adds nothing to the batch's gradient
    assert found.contribution.sum() == pytest.approx(1)
    everyone = ls.gradients(objective, batches=5, samples_per_batch=3)
    assert everyone.batches[0, 2] == 1
    assert everyone.n_samples.tolist() == list(CLASS_SIZES)


class TimeFirst(nn.Module):
    """A layer whose first axis is not the batch: samples are independent, but slices of that axis are not samples."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, x):
        steps = x.flatten(2).permute(2, 0, 1)  # (9, B, 2)
        return self.out(torch.tanh(self.inner(steps)).sum(0))


@pytest.mark.parametrize("batch_size", [2, 3, 8, 9, 15])
def test_an_axis_as_long_as_the_batch_does_not_pass_for_it(batch_size):
    objective = Case(TimeFirst).objective(batch_size=batch_size)  # its layer has an axis of nine
    exact = ls.gradients(objective)
    found = ls.gradients(objective, batches=1, samples_per_batch=15)
    agree(found, {n: getattr(exact, n)[0] for n in NUMBERS})


class Reversed(nn.Module):
    """The samples change places within the model, which no size of an axis tells."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(18, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.inner(x.flatten(1).flip(0))).flip(0))


def test_samples_that_change_places_are_told_apart():
    objective = Case(Reversed).objective(batch_size=15)
    exact = ls.gradients(objective)
    agree(ls.gradients(objective, batches=1, samples_per_batch=15), {n: getattr(exact, n)[0] for n in NUMBERS})


class Coupled(nn.Module):
    """Samples lose the mean of their batch, which no layer shows."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(18, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = torch.tanh(self.inner(x.flatten(1)))
        return self.out(x - x.mean(0) * (len(x) > 4))


def test_samples_that_influence_each_other_are_noticed():
    objective = Case(Coupled).objective(batch_size=4)  # of few samples each is by itself
    with pytest.raises(NumericalError, match=r"of 15 samples do not add up.*leave batches out"):
        ls.gradients(dataclasses.replace(objective, batch_size=15), batches=1, samples_per_batch=15)


# Checkpoints


@pytest.fixture
def run(tmp_path):
    """Three snapshots of a run; the middle one does not say its epoch."""
    paths = []
    for epoch in range(3):
        model = CASES["mlp-norm"].objective(seed=epoch).model
        paths.append(tmp_path / "run" / f"epoch-{epoch}.pt")
        paths[-1].parent.mkdir(exist_ok=True)
        checkpoints.write(paths[-1], model.state_dict(), {} if epoch == 1 else {"epoch": 10 * epoch})
    return paths


def weights(objective):
    return {n: t.clone() for n, t in objective.model.state_dict().items()}


@pytest.mark.parametrize("params", [None, "4"])
@pytest.mark.parametrize("options", [{}, {"batches": 3, "samples_per_batch": 6}])
def test_over_training_each_checkpoint_gives_what_its_weights_give(run, options, params):
    objective = CASES["mlp-norm"].objective(params=params)
    before = weights(objective)
    found = ls.gradients(objective, checkpoints=run, **options)
    assert found.points == ("epoch-0", "epoch-1", "epoch-2")
    np.testing.assert_array_equal(found.epoch, [0, np.nan, 20])
    for seed in range(3):
        # The case's data depend on the seed too: the weights of one in the objective of the other.
        one = CASES["mlp-norm"].objective(params=params).at(CASES["mlp-norm"].objective(seed=seed).model)
        alone = ls.gradients(one, **options)
        for name in (*NUMBERS, "theta_norm", "loss", "cosine_stderr"):
            np.testing.assert_array_equal(getattr(found, name)[seed], getattr(alone, name)[0], err_msg=name)
    for name, tensor in objective.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_an_epoch_can_be_given_and_wins(run):
    found = ls.gradients(CASES["mlp-norm"].objective(), checkpoints=[(run[1], 5), (run[2], 6.0)])
    assert found.epoch.tolist() == [5, 6]


def test_runs_of_the_same_file_names_are_told_apart(run, tmp_path):
    other = tmp_path / "other" / "epoch-0.pt"
    other.parent.mkdir()
    other.write_bytes(run[0].read_bytes())
    found = ls.gradients(CASES["mlp-norm"].objective(), checkpoints=[run[0], other])
    assert found.points == (str(run[0]), str(other))
    np.testing.assert_array_equal(found.norm[0], found.norm[1])


@pytest.mark.parametrize("options", [{}, {"batches": 2}])
def test_an_interrupted_run_goes_on_where_it_was(run, tmp_path, monkeypatch, options):
    objective = CASES["mlp-norm"].objective()
    reference = ls.gradients(objective, checkpoints=run, **options)
    out = tmp_path / "out.h5"
    real, calls = gradients._at, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(gradients, "_at", interrupted)
    with pytest.raises(KeyboardInterrupt, match="1 of 3"):
        ls.gradients(objective, checkpoints=run, out=out, **options)
    assert not out.exists()
    with pytest.raises(StoreError, match=r"was begun (with batches=2|with batches=None), now with batches=7"):
        ls.gradients(objective, checkpoints=run, out=out, batches=7)
    with pytest.raises(StoreError, match="was begun with the weights of"):
        ls.gradients(objective, checkpoints=run[:2], out=out, **options)
    found = ls.gradients(objective, checkpoints=run, out=out, **options)
    assert len(calls) == 4  # the second checkpoint again, and the third
    for result in (found, ls.load(out)):
        for field in dataclasses.fields(result):
            if field.name != "provenance":
                np.testing.assert_array_equal(getattr(result, field.name), getattr(reference, field.name))
    told = ls.load(out).provenance
    assert list(told["checkpoints"]) == [str(p) for p in run]
    assert told["options"]["batches"] == options.get("batches")
    with pytest.raises(StoreError, match="exists"):
        ls.gradients(objective, checkpoints=run, out=out, **options)


def test_progress_ends_with_all_that_there_is(run):
    told = []
    ls.gradients(CASES["mlp-norm"].objective(), checkpoints=run[:2], progress=lambda *a: told.append(a))
    assert told[0] == (0, 2, str(run[0]))
    assert told[-1] == (2, 2, "")
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)


def test_a_checkpoint_that_does_not_fit_is_named_before_anything_is_computed(run, tmp_path):
    checkpoints.write(tmp_path / "other.pt", CASES["mlp-tanh"].objective().model.state_dict(), {})
    told = []
    with pytest.raises(InputError, match=r"other\.pt: the checkpoint does not fit the model"):
        ls.gradients(
            CASES["mlp-norm"].objective(),
            checkpoints=[run[0], tmp_path / "other.pt"],
            progress=lambda *a: told.append(a),
        )
    assert told == []


def test_a_checkpoint_that_changes_meanwhile_is_named(run):
    def change(done, total, text):
        run[1].write_bytes(run[0].read_bytes())

    with pytest.raises(InputError, match=r"epoch-1\.pt changed during the run"):
        ls.gradients(CASES["mlp-norm"].objective(), checkpoints=run, progress=change)


def test_a_checkpoint_with_nan_is_named(run, tmp_path):
    state = CASES["mlp-norm"].objective().model.state_dict()
    checkpoints.write(run[1], state | {"1.weight": state["1.weight"] * np.nan}, {})
    with pytest.raises(NumericalError, match=r"epoch-1\.pt: 90 of the 90 values of 1\.weight are not finite"):
        ls.gradients(CASES["mlp-norm"].objective(), checkpoints=run)


class Overflowing(torch.autograd.Function):
    """Finite values whose gradient is not."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g * np.inf


def infinite_for_the_last(logits, labels):
    values = nn.functional.cross_entropy(logits, labels, reduction="none")
    return torch.where(labels == 2, Overflowing.apply(values), values)


@pytest.mark.parametrize("batches", [None, 1])
def test_a_gradient_that_is_not_finite_is_refused(batches):
    objective = Case(mlp_of_tanh, loss=infinite_for_the_last).objective()
    with pytest.raises(NumericalError, match="the gradient of part"):
        ls.gradients(objective, batches=batches)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batches": 0}, "batches must be at least 1, got 0"),
        ({"batches": 2, "samples_per_batch": 0}, "samples_per_batch must be at least 1"),
        ({"batches": 2, "seed": -1}, "seed must be at least 0"),
        ({"cache_bytes": -1}, "cache_bytes must not be negative"),
        ({"checkpoints": []}, "there is no checkpoint"),
        ({"checkpoints": ["absent.pt"]}, "absent.pt cannot be read"),
    ],
)
def test_options_out_of_range_are_named(options, words):
    with pytest.raises(InputError, match=words):
        ls.gradients(CASES["mlp-tanh"].objective(), **options)


def test_a_checkpoint_that_is_given_twice_is_named(run):
    with pytest.raises(InputError, match=r"epoch-0\.pt is given twice"):
        ls.gradients(CASES["mlp-norm"].objective(), checkpoints=[run[0], run[0]])


def test_weight_decay_is_refused_as_it_is_in_curvature_only():
    with pytest.raises(InputError, match=r"weight_decay=0\.01 is for curvature"):
        ls.gradients(CASES["mlp-tanh"].objective(weight_decay=0.01))


def test_the_model_that_gradients_are_taken_of_is_a_copy():
    objective = CASES["mlp-tanh"].objective(params="3")
    model = gram.trainable(objective.model, objective.layout)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["3.weight", "3.bias"]
    assert not any(p.requires_grad for p in objective.model.parameters())
    assert not model.training
