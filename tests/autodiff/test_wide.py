"""Sums are float64 on every device: on one that has no float64, the host adds them up, and the numbers are the same.

The stand-in refuses float64, as Apple's devices do; each analysis and each training method must pass on it.
"""

import tempfile
from dataclasses import fields
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import stand_in
import torch
from refusals import refused

import landscape as ls
from landscape.analyses import directions, monitor
from landscape.analyses.between import Run
from landscape.autodiff import memory
from landscape.autodiff.wide import place, products, wide, zeros
from landscape.curvature import kinds
from landscape.curvature.operators import curvature_operator
from landscape.errors import InputError, NumericalError
from landscape.objective import points
from trainers import methods
from trainers.training import train

CPU = torch.device("cpu")
AXIS = [-1.0, 0.0, 1.0]
FINE = np.linspace(-1, 1, 9)


def test_a_device_with_float64_keeps_its_numbers():
    t = torch.randn(5)
    assert place(CPU) == CPU
    assert torch.equal(wide(t), t.double())
    same = t.double()
    assert wide(same) is same


def test_without_float64_the_host_has_it():
    with stand_in.entered(float64=False) as device:
        where = torch.device(stand_in.NAME)
        t = torch.arange(3.0, device=where)
        assert t.device.type == stand_in.NAME
        assert place(where) == CPU
        assert (wide(t).device, wide(t).dtype) == (CPU, torch.float64)
        assert (zeros(2, where).device, zeros(2, where).dtype) == (CPU, torch.float64)
        assert device.reads
        with pytest.raises(TypeError, match="no float64"):
            t.double()
        with pytest.raises(TypeError, match="no float64"):
            t.to("cpu", torch.float64)  # converted before it is sent
        with pytest.raises(RuntimeError, match="cpu"):
            t + torch.ones(3)


def test_an_objective_in_float64_is_refused_where_there_is_none():
    with stand_in.entered(float64=False), refused(InputError, "cpu", device="cpu"):
        _objective(stand_in.NAME, dtype=torch.float64)


@pytest.mark.parametrize("held", [lambda x, y: (x, y), lambda x, y: ({"x": x}, y)])
def test_data_in_float64_are_narrowed_before_they_are_sent_where_there_is_none(held):
    x, y = torch.randn(8, 3, dtype=torch.float64), torch.arange(8) % 2
    model = torch.nn.Linear(3, 2) if isinstance(held(x, y)[0], torch.Tensor) else _OfDict()
    options = {"model": model, "dataset": held(x, y), "partition": "class", "loss": "ce"}
    with stand_in.entered(float64=False):
        found = ls.load_objective(**options, device=stand_in.NAME).evaluation.loss
    assert found == pytest.approx(ls.load_objective(**options, device="cpu").evaluation.loss, rel=1e-6)


class _OfDict(torch.nn.Linear):
    def __init__(self):
        super().__init__(3, 2)

    def forward(self, x):
        return super().forward(x)


def test_derivatives_come_back_to_the_device():
    with stand_in.entered(float64=False):
        t = torch.arange(3.0, device=stand_in.NAME).requires_grad_()
        (slope,) = torch.autograd.grad(wide(t).square().sum(), t)
        assert (slope.device.type, slope.dtype) == (stand_in.NAME, torch.float32)
        assert slope.tolist() == [0.0, 2.0, 4.0]


def _model():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    model(torch.randn(12, 3))
    return model.eval()


def _objective(device, **options):
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(12, 3, generator=generator), torch.arange(12) % 2
    return ls.load_objective(model=_model(), dataset=data, partition="class", device=device, batch_size=5, **options)


def _shifted():
    """The network at other weights."""
    other = _model()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    return other


def _towards(objective):
    return directions.towards(objective, [points.of_network(objective, _shifted())], ["other"])


def _drawn(objective):
    return ls.draw_samples(objective, 4)


def _path(objective):
    """Three points that are not on one line."""
    here, there = points.origin(objective), points.of_network(objective, _shifted().to(objective.device))
    thetas = [here.theta, 1.1 * here.theta, there.theta]
    return {f"epoch-{k}": (points.Point(theta, here.buffers), float(k)) for k, theta in enumerate(thetas)}


def _run(objective):
    return Run(name="run", points=_path(objective), start=points.origin(objective))


@cache
def _stages():
    """Two checkpoints of the network."""
    folder = Path(tempfile.mkdtemp())
    for k, model in enumerate((_model(), _shifted())):
        torch.save(model.state_dict(), folder / f"epoch-{k}.pt")
    return sorted(folder.iterdir())


def _reverse(objective, kind):
    return curvature_operator(objective, kinds.find(kind), backend="reverse")


def _overlap(objective):
    of = ls.spectrum(objective, steps=4, vectors=1, backend="reverse", sampling_errors=False)
    return ls.overlap(objective, of, backend="reverse")


def _bounded(objective, *, on_host=False):
    """A spectrum whose basis has no room on the device, but perhaps on its host."""
    few = 21 * 4 * objective.layout.size  # bytes of the vectors of a restarted run

    def room(device, limit):
        return 10 * few if on_host and device == CPU else few if limit else 0

    objective = objective.alone("0")
    options = {"steps": 12, "probes": 1, "backend": "reverse", "cache_bytes": 0, "sampling_errors": False}
    with mock.patch.object(memory, "room", room):
        found = ls.spectrum(objective, **options, trace="probes", memory_bytes=1)
    kept = found.provenance.get("basis")
    assert kept is None if on_host and objective.device == CPU else kept.startswith("on the" if on_host else "not kept")
    return found


ANALYSES = {
    "hessian": lambda o: ls.spectrum(o, steps=4, vectors=1, sampling_errors=False),
    "ggn": lambda o: ls.spectrum(o, operator="ggn", steps=4, backend="reverse"),
    "empirical-fisher": lambda o: ls.spectrum(o, operator="empirical-fisher", steps=4, backend="reverse"),
    "accuracy": lambda o: ls.spectrum(o, accuracy=0.3, backend="reverse"),
    "draws": lambda o: ls.spectrum(_drawn(o), steps=4, backend="reverse"),
    "diagonal": lambda o: _reverse(o, "ggn").diagonal(),
    "probed diagonal": lambda o: _reverse(o, "residual").diagonal(probes=8),
    "top": lambda o: _reverse(o, "hessian").top(1),
    "overlap": _overlap,
    "surface": lambda o: ls.surface(o, directions.random(o, 2), AXIS, AXIS),
    "descent": lambda o: ls.surface(o, directions.gradients(o, ["0"]), AXIS),
    "surface of draws": lambda o: ls.surface(_drawn(o), directions.random(o, 1), AXIS),
    "refined": lambda o: ls.surface(o, directions.random(o, 2), FINE, FINE, refine=0.01),
    "batch norm of batches": lambda o: ls.surface(o, directions.random(o, 1), AXIS, batch_norm="batch"),
    "basis on the host": lambda o: _bounded(o, on_host=True),
    "no basis": _bounded,
    "towards": lambda o: ls.surface(o, _towards(o), AXIS, batch_norm="reestimate"),
    "gradients": lambda o: ls.gradients(o, sampling_errors=True),
    "gradients of batches": lambda o: ls.gradients(o, batches=2),
    "features": ls.features,
    "gradients of draws": lambda o: ls.gradients(_drawn(o), sampling_errors=True),
    "sharpness": lambda o: ls.sharpness(o, draws=1),
    "sharpness of draws": lambda o: ls.sharpness(_drawn(o), draws=1, ascent_steps=2),
    "trajectory": lambda o: ls.trajectory(o, {"run": _path(o)}, n=3),
    "trajectory of draws": lambda o: ls.trajectory(_drawn(o), {"run": _path(o)}, n=3),
    "distances": lambda o: ls.distances(o, [_run(o)], source="points", over="all", barrier_points=3),
    "sensitivity": lambda o: ls.sensitivity(o, of="0", n=1, draws=1),
    "series": lambda o: ls.series(ls.surface1d, o, _stages(), n=3),
}


@pytest.mark.parametrize("analysis", list(ANALYSES.values()), ids=list(ANALYSES))
def test_each_analysis_runs_without_float64(analysis):
    """Batch by batch both devices compute the same; only where float64 is added up differs, and its numbers do not."""
    expected = analysis(_objective("cpu"))
    with stand_in.entered(float64=False):
        objective = _objective(stand_in.NAME)
        assert objective.theta[0].device.type == stand_in.NAME
        found = analysis(objective)
    compared = 0
    for field in fields(expected):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(b, np.ndarray) and b.dtype.kind == "f":
            scale = np.abs(b[np.isfinite(b)]).max(initial=0)
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * scale, err_msg=field.name)  # float32 of both
            compared += 1
    assert compared


def test_a_monitor_takes_the_host_for_what_needs_float64(monkeypatch):
    def refuses(own, **options):
        if own.dtype == torch.float32:
            raise NumericalError("the matrix is not symmetric")
        return ls.spectrum(own, **options)

    monkeypatch.setattr(monitor, "spectrum", refuses)
    data, model = (torch.randn(12, 3, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 2), _model()
    expected = ls.spectrum(ls.make_objective(model, data, dtype="float64", device="cpu"), tol=1e-4)
    with stand_in.entered(float64=False):
        made = ls.make_objective(model, data, device=stand_in.NAME)
        found = ls.Monitor(made, what=["lambda_max"], samples=None, tol=1e-4).measure()
    np.testing.assert_allclose(found.lambda_max[0], expected.lambda_max, rtol=1e-3)


@pytest.mark.parametrize("method", methods.METHODS)
def test_each_way_of_training_runs_without_float64(method):
    views = "none,none,none" if method.startswith("bcl") else "none"
    options = {"dataset": "toys:vectors", "model": "toys:batched", "epochs": 5, "batch_size": 8, "augment": views}
    made = methods.compose(options, method=method)
    other = {"groups": 2} if made.grouped else {} if made.reweight == "drw" else {"epochs": 2}  # nothing begins late
    recipe = methods.compose(options | other, method=method)
    expected = train(None, None, recipe, device="cpu").history
    with stand_in.entered(float64=False):
        found = train(None, None, recipe, device=stand_in.NAME).history
    np.testing.assert_allclose(found.train_loss, expected.train_loss, rtol=1e-4)


@pytest.mark.parametrize("shape", [(2, 2**22 + 5), (2, 1, 2**22 + 5)])
def test_inner_products_of_long_vectors_keep_the_digits_of_their_dtype(shape):
    a = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found, expected = products(a, a), wide(a) @ wide(a).mT
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * 2**22)
