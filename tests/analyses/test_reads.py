"""What the host waits for: numbers are read from a device when a sum is complete, not batch by batch."""

import pytest
import stand_in
import torch

import landscape as ls
from landscape.curvature import rows
from landscape.curvature.lanczos import lanczos, probe
from landscape.curvature.operators import curvature_operator


def read(work, batch_size, *, samples=12, classes=2, partition="class"):
    """How often the host waits for a device in some work, on two parts of six samples each unless others are given."""
    with stand_in.entered() as device:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, classes))
        data = torch.randn(samples, 3), torch.arange(samples) % classes
        options = {"partition": partition, "device": stand_in.NAME, "batch_size": batch_size}
        objective = ls.load_objective(model=model, dataset=data, **options)
        made = work(objective)
        device.reads = 0
        made()
        return device.reads


def product(objective):
    operator = curvature_operator(objective, backend="reverse").restrict([0])
    v = torch.ones(1, 1, operator.size, device=stand_in.NAME)
    operator.matvec(v)  # the first is compared with differences of the gradient
    return lambda: operator.matvec(v)


WORKS = {
    "evaluation": lambda o: o.evaluate,
    "surface": lambda o: lambda: ls.surface1d(o, n=3),
    "gradients": lambda o: lambda: ls.gradients(o),
    "product": product,
    "features": lambda o: lambda: ls.features(o),
}
ONE_BY_ONE = {
    "hessian": (7, lambda o: lambda: ls.spectrum(o, steps=2, probes=1, backend="reverse")),
    "ggn by rows": (7, lambda o: lambda: ls.spectrum(o, operator="ggn", method="rows")),
    "sharpness": (1, lambda o: lambda: ls.sharpness(o, draws=1, ascent_steps=2)),
    "gradients": (1, lambda o: lambda: ls.gradients(o, sampling_errors=True)),
}
"""Analyses of single samples, with the largest number of reads for each batch more."""


@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
def test_nothing_is_read_within_the_loop_over_batches(work):
    assert 0 < read(work, 6) == read(work, 2)


def test_features_and_their_errors_are_added_up_on_the_device():
    assert read(WORKS["features"], 12, samples=24) == read(WORKS["features"], 6, samples=24)


@pytest.mark.parametrize(("most", "work"), ONE_BY_ONE.values(), ids=ONE_BY_ONE)
def test_a_batch_is_read_a_few_times_and_not_sample_by_sample_or_class_by_class(most, work, monkeypatch):
    monkeypatch.setattr(rows, "_PAIRS", 6)  # private: so that the backward passes of a class are a group of their own
    assert read(work, 2) - read(work, 6) <= 4 * most  # six batches in place of two
    few = read(work, 12, partition="all")
    assert read(work, 24, samples=24, partition="all") <= few
    assert read(work, 12, classes=6, partition="all") <= few


def test_a_step_of_lanczos_reads_its_two_coefficients_and_whether_the_product_is_finite():
    def steps(n):
        def work(objective):
            operator = curvature_operator(objective, backend="reverse").restrict([0])
            z = probe(operator.size, seed=0, number=0).to(stand_in.NAME)[None, None]
            operator.matvec(z)
            return lambda: lanczos(operator.matvec, z, n)

        return work

    assert read(steps(5), 6) - read(steps(3), 6) == 2 * 2


def test_the_steps_of_a_spectrum_read_nothing_else():
    def steps(n):
        return lambda o: lambda: ls.spectrum(o, steps=n, probes=1, backend="reverse", sampling_errors=False)

    assert read(steps(4), 6) - read(steps(2), 6) == read(steps(4), 2) - read(steps(2), 2) == 2 * 2 * 2  # of two parts
