"""Sharpness of parts: quadratic losses have all four figures in closed form; networks only bounds and symmetries."""

import math

import numpy as np
import pytest
import torch
from cases import CASES, CLASS_SIZES
from refusals import refused
from scipy.optimize import brentq
from torch import nn

import landscape as ls
from landscape.analyses import ball, directions, noise
from landscape.data import datasets
from landscape.errors import InputError, StoreError
from landscape.objective import jobs, points
from landscape.objective.evaluator import Evaluator
from landscape.objective.objective import Objective


def squared(logits, labels):
    return 0.5 * (logits - nn.functional.one_hot(labels, logits.shape[1]).to(logits)).square().sum(1)


def linear(inputs, labels, weight, loss=squared, **options):
    """A network that is linear in its parameters, so that a squared loss is a quadratic function of them."""
    model = nn.Linear(inputs.shape[1], weight.shape[0], bias=False)
    model.weight.data = weight.clone()
    samples = datasets.from_dataset((inputs, labels), name="quadratic", class_counts=CLASS_SIZES)
    built = {"partition": "class", "dtype": torch.float64, "batch_size": 4, "device": "cpu"} | options
    return Objective.build(model, samples, loss=loss, **built)


def quadratic(seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(CLASS_SIZES)])
    inputs = torch.randn(len(labels), 4, generator=generator, dtype=torch.float64) * torch.tensor([3.0, 2.0, 1.0, 0.5])
    return linear(inputs, labels, torch.randn(3, 4, generator=generator, dtype=torch.float64), **options)


def expansion(objective, part):
    """Loss, gradient and Hessian of a part's squared loss, written out: H = I (x) X^T X / n for W by rows."""
    index = objective.partition.indices(part)
    X, y = (t.numpy() for t in objective.samples.batch(index, objective.device, torch.float64))
    W, Y = objective.model.weight.detach().double().numpy(), np.eye(3)[y]
    R = X @ W.T - Y
    return 0.5 * (R**2).sum(1).mean(), (R.T @ X / len(X)).ravel(), np.kron(np.eye(3), X.T @ X / len(X))


def trust_region(g, H, rho):
    """The largest of g u + u H u / 2 in a ball: on its border, (mu - H) u = g with mu above all eigenvalues."""
    values, vectors = np.linalg.eigh(H)
    along = vectors.T @ g
    assert np.abs(along[np.isclose(values, values[-1])]).max() > 1e-9  # not the hard case
    low, high = values[-1] * (1 + 1e-13), values[-1] + np.linalg.norm(g) / rho + 1e-12
    mu = brentq(lambda mu: np.linalg.norm(along / (mu - values)) - rho, low, high, xtol=1e-15, rtol=1e-14)
    u = along / (mu - values)
    return along @ u + 0.5 * values @ u**2


@pytest.mark.parametrize(("adaptive", "rho"), [(False, 0.05), (False, 2.0), (True, 0.5)])
def test_rises_within_a_ball_of_a_quadratic_are_those_of_its_trust_region(adaptive, rho):
    objective = quadratic(batch_size=16)
    found, short = (ls.sharpness(objective, rho=rho, adaptive=adaptive, ascent_steps=n, draws=1) for n in (100, 20))
    T = np.abs(objective.model.weight.detach().numpy()).ravel() if adaptive else np.ones(12)
    for part in range(3):
        _, g, H = expansion(objective, part)
        g, H = T * g, T[:, None] * H * T
        u = rho * g / np.linalg.norm(g)
        largest = trust_region(g, H, rho)
        assert found.first_order_rise[part] == pytest.approx(g @ u + 0.5 * u @ H @ u, rel=1e-10)
        assert found.worst_rise[part] == pytest.approx(largest, rel=1e-8)
        assert found.first_order_rise[part] <= short.worst_rise[part] <= largest * (1 + 1e-12)
        assert short.worst_rise[part] >= 0.99 * largest


def drawn(objective, n, seed=0):
    return directions.random(objective, n, seed=seed).theta.numpy()


def test_the_rise_under_noise_of_a_quadratic_is_half_its_curvature_along_the_draws():
    objective = quadratic()
    found = ls.sharpness(objective, sigma=0.3, draws=5, seed=7)
    for part in range(3):
        H = expansion(objective, part)[2]
        rises = 0.5 * 0.3**2 * np.einsum("ki,ij,kj->k", *(d := drawn(objective, 5, 7),), H, d)
        assert found.noise_rise[part] == pytest.approx(rises.mean(), rel=1e-9)
        assert found.noise_rise_stderr[part] == pytest.approx(rises.std(ddof=1) / math.sqrt(5), rel=1e-8)
    assert np.isnan(ls.sharpness(objective, draws=1).noise_rise_stderr).all()


def test_noise_has_in_each_filter_the_size_that_is_asked_for():
    objective = CASES["residual-relu"].objective()
    draw = noise.drawer(objective, 3)
    start, noisy = (objective.layout.tensors(p.theta) for p in (points.origin(objective), draw(1).at(0.25)))
    for name, w, moved in zip(objective.layout.names, start, noisy, strict=True):
        step = (moved - w).flatten(1).norm(dim=1) if w.ndim > 1 else (moved - w).abs()
        size = 0.25 * w.flatten(1).norm(dim=1) if w.ndim > 1 else torch.zeros_like(w)
        torch.testing.assert_close(step, size, rtol=1e-12, atol=1e-14, msg=name)


def test_the_doubling_radius_of_a_quadratic_is_a_root_of_its_parabola():
    """From a bracket of a factor 2, halved 6 times, the last stretch of a parabola is straight to 1e-4 of itself."""
    objective = quadratic()
    found = ls.sharpness(objective, draws=8)
    for part in range(3):
        loss, g, H = expansion(objective, part)
        radii = []
        for d in drawn(objective, 8):
            slope, bend = g @ d, 0.5 * d @ H @ d
            radii.append((-slope + math.sqrt(slope**2 + 4 * bend * loss)) / (2 * bend))
        radii = np.sort(radii)
        assert radii[5] < noise.LIMIT
        assert found.doubling_radius[part] == pytest.approx((radii[3] + radii[4]) / 2, rel=1e-4)
        assert found.doubling_radius_spread[part] == pytest.approx((radii[5] - radii[1]) / 2, rel=1e-2)


@pytest.mark.parametrize("offset", [1e-3, 4e-6])
def test_a_tiny_loss_doubles_under_tiny_noise(offset):
    """A sample that is nearly fitted. Below the lowest rung the bracket begins at the checkpoint itself."""
    x = torch.tensor([[1.0, -2.0, 0.5, 1.0]], dtype=torch.float64)
    fitted = torch.tensor([[1.0, 0, 0]], dtype=torch.float64).T @ x / x.square().sum()
    objective = linear(x, torch.tensor([0]), fitted + offset, classes="0")
    loss, g, H = expansion(objective, 0)
    (d,) = drawn(objective, 1)
    slope, bend = g @ d, 0.5 * d @ H @ d
    expected = (-slope + math.sqrt(slope**2 + 4 * bend * loss)) / (2 * bend)
    found = ls.sharpness(objective, draws=1)
    assert found.doubling_radius[0] == pytest.approx(expected, rel=1e-3)
    assert np.isnan(found.doubling_radius_spread[0])
    # private: both sides of the lowest rung must be among the cases
    assert (expected < noise._RUNGS[0]) == (offset < 1e-4)


def bounded(logits, labels):
    """For labels of 0 a parabola, for 1 between 0.9 and 1.1, for 2 never positive."""
    return torch.stack([0.1 + logits[:, 0] ** 2, 1 + 0.1 * logits[:, 0].sin(), -(logits[:, 0] ** 2)])[
        labels, torch.arange(len(labels))
    ]


def test_a_loss_that_never_doubles_has_no_radius_and_costs_the_others_theirs_not():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1, 1, 2])
    weight = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    found = ls.sharpness(linear(inputs, labels, weight, bounded))
    alone = ls.sharpness(linear(inputs, labels, weight, bounded, classes="0"))
    assert np.isinf(found.doubling_radius).tolist() == [False, True, False]
    assert np.isnan(found.doubling_radius).tolist() == [False, False, True]  # of a negative loss twice is no rise
    assert found.doubling_radius[0] == pytest.approx(alone.doubling_radius[0], rel=1e-12)
    assert found.limit == noise.LIMIT
    assert np.isfinite(found.worst_rise).all()


def test_the_median_takes_a_radius_beyond_the_limit_for_a_large_one():
    inf = math.inf
    assert noise.median(np.array([1.0, inf, 2.0])) == (2.0, pytest.approx(math.nan, nan_ok=True))
    assert noise.median(np.array([4.0, 1.0, 2.0, 3.0, inf])) == (3.0, 1.0)
    for radii in ([1.0, inf], [inf] * 4):
        assert noise.median(np.array(radii))[0] == inf
    assert np.isnan(noise.median(np.array([1.0, math.nan, 2.0]))[0])


# Where the gradient vanishes, or a number is none ---------------------------------------------------------------------


def test_without_a_gradient_sam_does_not_move_but_the_largest_rise_is_found():
    """A sample that is fitted exactly: the loss is |x|^2 |e|^2 / 2 along the input."""
    x = torch.tensor([[1.0, -2.0, 0.5, 1.0]], dtype=torch.float64)
    weight = torch.zeros(3, 4, dtype=torch.float64)
    weight[0, 0] = 1
    found = ls.sharpness(linear(x, torch.tensor([0]), weight, classes="0"), rho=0.1, draws=2)
    assert found.first_order_rise[0] == 0
    assert found.worst_rise[0] == pytest.approx(0.5 * 6.25 * 0.01, rel=1e-9)
    assert found.loss[0] == 0
    assert np.isnan(found.doubling_radius[0])


def test_at_a_saddle_the_rise_is_that_of_its_positive_curvature_and_at_a_maximum_none():
    x = torch.eye(4, dtype=torch.float64)[:2] * torch.tensor([[3.0], [2.0]])
    weight = torch.zeros(3, 4, dtype=torch.float64)
    weight[2, 3] = 1  # there must be something for noise to be relative to

    def saddle(logits, labels):
        return 1 + (1 - 2 * labels) * logits[:, 0] ** 2

    whole = ls.sharpness(linear(x, torch.tensor([0, 1]), weight, saddle, partition="all"), rho=0.1, draws=1)
    assert whole.first_order_rise[0] == 0
    assert whole.worst_rise[0] == pytest.approx(9 * 0.01 / 2, rel=1e-6)
    parts = linear(x, torch.tensor([0, 1]), weight, saddle, classes="0,1")
    found = ls.sharpness(parts, rho=0.1, draws=1).worst_rise
    np.testing.assert_allclose(found, [9 * 0.01, 0], rtol=1e-6, atol=1e-15)
    assert ls.sharpness(parts, rho=0.1, draws=1, ascent_steps=0).worst_rise[1] == 0  # the centre's own


def broken(value, label=0):
    def loss(logits, labels):
        far = (logits.abs().amax(1) > 2) & (labels == label)
        return torch.where(far, logits[:, 0] * 0 + value, 0.1 + logits.square().sum(1))

    return loss


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_nearby_stays_so_and_leaves_other_parts_alone(value):
    x = torch.ones(2, 4, dtype=torch.float64)
    weight = torch.full((3, 4), 0.4, dtype=torch.float64)  # logits of 1.6
    objective = linear(x, torch.tensor([0, 1]), weight, broken(value), classes="0,1")
    found = ls.sharpness(objective, rho=2.0, sigma=1.5)
    for rise in (found.first_order_rise, found.worst_rise, found.noise_rise):
        assert np.array_equal(rise[0], value, equal_nan=True)
        assert 0 < rise[1] < math.inf
    assert np.isnan(found.doubling_radius[0]) == math.isnan(value)
    near = ls.sharpness(objective, rho=0.01, sigma=0.01)
    np.testing.assert_allclose(near.worst_rise[0], near.worst_rise[1], rtol=1e-9)
    assert np.isfinite(near.noise_rise).all()


@pytest.mark.parametrize(
    ("rises", "largest"),
    [([1, 2, math.nan, 5], math.nan), ([1, 2, math.inf], math.inf), ([1, 3, 2, 4], 4), ([-1, -2, -3, -4], 0)],
)
def test_the_ascent_keeps_the_largest_rise_and_does_not_know_it_past_a_nan(rises, largest):
    left = iter(rises)

    def at(u):
        rise = float(next(left))
        return rise, torch.full_like(u, math.nan if math.isinf(rise) else 1)

    found = ball.ascend(at, torch.tensor([0.0, 1.0]), rho=1.0, steps=3, report=lambda share: None)
    assert found[0] == rises[0]
    np.testing.assert_equal(found[1], largest)


@pytest.mark.parametrize("start", [0.45, 0.1, -0.8])
def test_the_ascent_shortens_its_step_after_an_overshoot(start):
    """A narrow peak within the ball, beyond which the first step leads: only shorter ones reach its top."""
    peak = torch.tensor([0.5, 0.1], dtype=torch.float64)

    def at(u):
        return 1 - 50 * float((u - peak).square().sum()), -100 * (u - peak)

    begin = torch.tensor([start, 0.1], dtype=torch.float64)
    first, largest, _ = ball.ascend(at, begin, rho=1.0, steps=20, report=lambda _: None)
    assert first == pytest.approx(1 - 50 * (start - 0.5) ** 2)
    assert largest == pytest.approx(1, abs=1e-3)


def test_a_gradient_that_is_not_finite_makes_the_rises_of_its_part_unknown():
    """The root of a square has no derivative at zero, and PyTorch says nan."""
    x = torch.tensor([[1.0, 1, 0, 0], [2, 1, 0, 0]], dtype=torch.float64)
    weight = torch.zeros(3, 4, dtype=torch.float64)
    weight[0, :2] = torch.tensor([1.0, -1.0])

    def root(logits, labels):
        return 1 + torch.where(labels == 0, logits.square().sum(1).sqrt(), (logits - 1).square().sum(1))

    found = ls.sharpness(linear(x, torch.tensor([0, 1]), weight, root, classes="0,1"), draws=2)
    assert np.isnan([found.first_order_rise[0], found.worst_rise[0]]).all()
    assert np.isfinite([found.first_order_rise[1], found.worst_rise[1], *found.noise_rise]).all()


# Networks -------------------------------------------------------------------------------------------------------------

QUICK = {"ascent_steps": 4, "draws": 3}
NUMBERS = (
    "loss", "accuracy", "first_order_rise", "worst_rise", "noise_rise", "noise_rise_stderr", "doubling_radius",
    "doubling_radius_spread",
)  # fmt: skip


def assert_same(found, expected, **tolerance):
    for name in NUMBERS:
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), err_msg=name, **tolerance)


def test_batch_size_and_what_is_kept_change_nothing(monkeypatch):
    expected = ls.sharpness(CASES["mlp-tanh"].objective(), **QUICK)
    monkeypatch.setattr(noise, "_KEPT_BYTES", 0)
    for batch_size in (1, 7, 1000):
        found = ls.sharpness(CASES["mlp-tanh"].objective(batch_size=batch_size), **QUICK)
        assert_same(found, expected, rtol=1e-8)


@pytest.mark.parametrize("name", ["residual-relu", "attention"])
def test_the_largest_rise_is_at_least_that_of_sams_step_and_the_network_is_left_as_it_was(name):
    objective = CASES[name].objective()
    before = {k: t.clone() for k, t in objective.model.state_dict().items()}
    none, found = (ls.sharpness(objective, draws=1, ascent_steps=n) for n in (0, 4))
    np.testing.assert_array_equal(none.worst_rise, none.first_order_rise)
    np.testing.assert_array_equal(found.first_order_rise, none.first_order_rise)
    assert (found.worst_rise > found.first_order_rise).all()
    assert found.n_samples.tolist() == list(CLASS_SIZES)
    assert all(torch.equal(t, before[k]) for k, t in objective.model.state_dict().items())


def test_rescaling_the_layers_of_a_relu_network_changes_no_adaptive_rise():
    """Kwon et al. 2021, section 3: the reason for the adaptive ball. The Euclidean one changes."""
    rises = []
    for factor in (1.0, 4.0):
        plain = CASES["mlp-relu"].objective()
        model = plain.model
        for layer, scale in ((model[1], factor), (model[3], 1 / factor)):
            layer.weight.data *= scale
        model[1].bias.data *= factor
        again = Objective.build(
            model.requires_grad_(), plain.samples, partition="class", dtype=torch.float64, device="cpu"
        )
        rises.append([
            ls.sharpness(again, rho=rho, adaptive=adaptive, draws=1).worst_rise
            for rho, adaptive in ((0.3, True), (0.3, False))
        ])
    np.testing.assert_allclose(rises[0][0], rises[1][0], rtol=1e-8)
    assert (np.abs(rises[0][1] - rises[1][1]) > 0.01 * rises[0][1]).all()


def test_float32_gives_the_float64_numbers():
    single, double = (
        ls.sharpness(CASES["mlp-tanh"].objective(dtype=d), **QUICK) for d in (torch.float32, torch.float64)
    )
    assert_same(single, double, rtol=1e-3, atol=1e-5)


# Files and refusals ---------------------------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on_with_what_is_missing(tmp_path, monkeypatch):
    objective, out = CASES["mlp-tanh"].objective(), tmp_path / "s.h5"
    expected = ls.sharpness(objective, **QUICK)
    evaluate, within = Evaluator.measure, ball.rises_within
    passes, parts = [], []

    def counted(self, *given, **options):
        passes.append(1)
        if len(passes) == 10:
            raise KeyboardInterrupt
        return evaluate(self, *given, **options)

    def stopping(*given, **options):
        parts.append(1)
        if len(parts) == 2:
            raise KeyboardInterrupt
        return within(*given, **options)

    monkeypatch.setattr(Evaluator, "measure", counted)
    monkeypatch.setattr(ball, "rises_within", stopping)
    for _ in range(2):
        with pytest.raises(jobs.Interrupted):
            ls.sharpness(objective, **QUICK, out=out)
    assert len(parts) == 2
    with refused(StoreError, 0.1, rho=0.05):
        ls.sharpness(objective, **QUICK, rho=0.1, out=out)
    before = len(passes)
    found = ls.sharpness(objective, **QUICK, out=out)
    assert (len(passes), len(parts)) == (before, 4)  # the points are kept, and the first part
    for result in (found, ls.load(out)):
        for name in NUMBERS:
            np.testing.assert_array_equal(getattr(result, name), getattr(expected, name), err_msg=name)
    assert found.provenance["options"]["ascent_steps"] == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rho": 0.0}, ("rho", 0)),
        ({"rho": math.nan}, ("rho", "nan")),
        ({"sigma": -0.1}, ("sigma", -0.1)),
        ({"sigma": math.inf}, ("sigma", "inf")),
        ({"draws": 0}, ("draws", 0)),
        ({"ascent_steps": -1}, ("ascent_steps", -1)),
        ({"seed": -1}, ("seed", -1)),
    ],
)
def test_options_out_of_range_are_named(options, words):
    with refused(InputError, *words):
        ls.sharpness(quadratic(), **options)


def test_what_has_no_sharpness_is_refused():
    with refused(InputError, weight_decay=0.1):
        ls.sharpness(quadratic(weight_decay=0.1))
    biases = CASES["residual-relu"].objective(params="bn1,*.bias")
    with refused(InputError, params="bn1,*.bias"):
        ls.sharpness(biases)


def test_the_search_among_many_parameters_stays_within_the_ball():
    slope, places = torch.randn(2**22, generator=torch.Generator().manual_seed(0)), []

    def at(u):
        places.append(float(u.double().norm()))
        return float(len(places)), slope

    ball.ascend(at, torch.zeros_like(slope), rho=1.0, steps=2, report=lambda share: None)
    np.testing.assert_allclose(places[1:], 1, rtol=1e-6)
