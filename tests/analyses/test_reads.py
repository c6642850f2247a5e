"""What the host waits for: numbers are read from a device when a sum is complete, not batch by batch."""

import pytest
import stand_in
import torch

import landscape as ls
from landscape.curvature.lanczos import lanczos, probe
from landscape.curvature.operators import curvature_operator


def read(work, batch_size):
    """How often the host waits for a device in some work on two parts of six samples each."""
    with stand_in.entered() as device:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        data = torch.randn(12, 3), torch.arange(12) % 2
        options = {"partition": "class", "device": stand_in.NAME, "batch_size": batch_size}
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
}


@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
def test_nothing_is_read_within_the_loop_over_batches(work):
    assert 0 < read(work, 6) == read(work, 2)


def test_a_step_of_lanczos_reads_its_two_coefficients_and_whether_the_product_is_finite():
    def steps(n):
        def work(objective):
            operator = curvature_operator(objective, backend="reverse").restrict([0])
            z = probe(operator.size, seed=0, number=0).to(stand_in.NAME)[None, None]
            operator.matvec(z)
            return lambda: lanczos(operator.matvec, z, n)

        return work

    assert read(steps(9), 6) - read(steps(5), 6) == 4 * 2
