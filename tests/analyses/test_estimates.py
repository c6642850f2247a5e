"""What an estimate announces, counted beside what the run then takes: products, passes, gradients and bytes."""

from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch
from refusals import refused
from torch import nn

import landscape as ls
from landscape.analyses import displacements, gradient_errors, part_losses, samples, spectrum_costs
from landscape.analyses.between import Run
from landscape.autodiff import memory
from landscape.curvature import gram
from landscape.curvature.products import Products
from landscape.errors import InputError
from landscape.objective import points
from landscape.objective.evaluator import Evaluator

TOLERANCE, OF_SHARPNESS = 0.25, 0.4  # the number of rungs up to the doubling radius is not known before
COUNTED = {
    "products with the hessian": (Products, "__call__"),
    "passes for single samples' gradients and curvatures": (samples, "samples"),
    "gradients of parts": (gram, "_of_part"),
    "slopes of single samples": (gradient_errors, "of_samples"),
    "points": (Evaluator, "measure"),
    "passes over all samples": (Evaluator, "each"),
    "passes for the Fisher": (displacements, "by_fisher"),
    "second derivatives at points": (displacements, "rises_by_hessian"),
    "gradients of the search": (points, "gradient"),
    "losses of parts": (part_losses.PartLosses, "losses"),
}
"""What estimates call the steps of a kind, by the beginning; and what takes one step.

private: two of these functions, since no public one takes one step each."""


@cache
def objective():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(36) % 3
    inputs = 2 * torch.eye(6)[labels].double() + torch.randn(36, 6, generator=generator, dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)).double()
    with torch.no_grad():  # it classifies well, so that little noise doubles its loss
        model[0].weight += torch.eye(9, 6)
        model[2].weight += 4 * torch.eye(3, 9)
    return ls.make_objective(model, (inputs, labels), parts="class", dtype="float64", batch_size=5, device="cpu")


def run():
    here = points.origin(objective())
    steps = np.random.default_rng(0).normal(size=(3, len(here.theta)))
    found = {f"epoch-{k}": (points.Point(here.theta + torch.tensor(s), here.buffers), float(k))
             for k, s in enumerate(steps)}  # fmt: skip
    return Run(name="run", points=found, start=here)


JOBS = {
    "hessian": lambda: ls.spectrum(objective()),
    "hessian with probes for the trace": lambda: ls.spectrum(objective(), sampling_errors=False, trace="probes"),
    "density": lambda: ls.spectrum(objective(), steps=8, probes=2, trace="probes"),
    "rows": lambda: ls.spectrum(objective(), operator="ggn"),
    "gradients": lambda: ls.gradients(objective(), sampling_errors=True),
    "gradients in blocks": lambda: ls.gradients(objective(), sampling_errors=True, cache_bytes=0),
    "sharpness": lambda: ls.sharpness(objective(), draws=2),
    "surface": lambda: ls.surface2d(objective(), n=3),
    "distances": lambda: ls.distances(objective(), [run()], source="points", over="all", barrier_points=3,
                                      curvature=True),
}  # fmt: skip


def taken(job, monkeypatch):
    """Count the steps of a job."""
    found = Counter()
    for what, (owner, name) in COUNTED.items():
        real = getattr(owner, name)

        def counted(*args, _what=what, _real=real, **options):
            found[_what] += args[1].shape[:2].numel() if _real is Products.__call__ else 1
            return _real(*args, **options)

        monkeypatch.setattr(owner, name, counted)
    job()
    return found


def compare(job, monkeypatch, tolerance=TOLERANCE):
    said = {cost.what: cost.times for cost in ls.estimate(job).costs}
    with monkeypatch.context() as patched:
        counts = taken(job, patched)
    for what in COUNTED:
        announced = sum(times for name, times in said.items() if name.startswith(what))
        if announced:
            assert announced == pytest.approx(counts[what], rel=tolerance), what
    assert counts["products with the hessian"] == 0 or "products with the hessian" in said
    return said


@pytest.mark.parametrize("name", JOBS)
def test_as_many_steps_are_announced_as_are_taken(name, monkeypatch):
    compare(JOBS[name], monkeypatch, OF_SHARPNESS if name == "sharpness" else TOLERANCE)


@pytest.mark.parametrize("options", [{}, {"steps": 20, "probes": 1}], ids=str)
def test_the_products_of_a_run_without_a_basis_are_announced(options, monkeypatch):
    entry = 8 * objective().layout.size
    monkeypatch.setattr(memory, "room", lambda device, limit: 25 * entry)
    kept = {"sampling_errors": False, "trace": "probes", "cache_bytes": 0, "backend": "reverse"}
    said = compare(lambda: ls.spectrum(objective(), **kept, **options), monkeypatch)
    assert said["products with the hessian"] > 3 * 20


def test_what_the_run_refuses_is_refused_by_its_estimate(monkeypatch):
    entry = 8 * objective().layout.size
    monkeypatch.setattr(memory, "room", lambda device, limit: 10 * entry)
    with refused(InputError, "memory_bytes", 10, 19):
        ls.estimate(ls.spectrum, objective(), sampling_errors=False, trace="probes", cache_bytes=0)
    with refused(InputError, "memory_bytes", method="lanczos"):
        ls.estimate(ls.spectrum, objective(), operator="ggn", method="rows")


def test_rows_that_are_measured_for_the_estimate_take_no_room_from_vectors(monkeypatch):
    entry, measured, real = 8 * objective().layout.size, [], samples.samples
    monkeypatch.setattr(samples, "samples", lambda *a, **k: measured.append(1) or real(*a, **k))
    monkeypatch.setattr(memory, "room", lambda device, limit: (10 if measured else 400) * entry)  # as the peak is high
    given = {"steps": 5, "probes": 1, "cache_bytes": 10 * entry, "memory_bytes": 1}
    assert ls.estimate(ls.spectrum, objective(), **given).costs
    assert measured
    measured.clear()
    ls.spectrum(objective(), **given)


def test_an_accuracy_counts_pilot_draws_and_says_that_more_is_not_known():
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(210, 6, generator=generator), torch.arange(210) % 2
    many = ls.make_objective(nn.Linear(6, 2), (inputs, labels), parts="class", device="cpu")
    found = ls.estimate(ls.spectrum, many, accuracy=0.2)
    assert {cost.what: cost.times for cost in found.costs}["pilot draws for the accuracy"] == 2 * 2
    assert "accuracy" in found.note
    assert ls.estimate(ls.spectrum, many).note == ""
    few = ls.estimate(ls.spectrum, objective(), accuracy=0.2)  # parts of 12 samples: all are taken
    assert few.note == ""
    assert not any(cost.what.startswith("pilot") for cost in few.costs)


def test_the_timed_run_of_lanczos_takes_all_of_its_steps(monkeypatch):
    taken, real = [], spectrum_costs.lanczos

    def counted(matvec, probes, steps):
        found = real(matvec, probes, steps)
        taken.append((steps, int(found.steps.max())))
        return found

    monkeypatch.setattr(spectrum_costs, "lanczos", counted)
    ls.estimate(ls.spectrum, objective(), steps=20, probes=1)
    assert set(taken) == {(20, 20)}
