"""Derivatives by backward passes: memory that runs out is no missing derivative."""

import pytest
import torch

from landscape.autodiff import backward


class Hungry(torch.autograd.Function):
    """The identity, without memory for a backward pass."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    "derivative",
    [
        lambda y, x: backward.pull(y, (x,), torch.ones_like(y)),
        lambda y, x: backward.second(y, (x,), [(x.detach(),)]),
        lambda y, x: backward.along_gradient(y, (x,)),
    ],
    ids=["pull", "second", "along gradient"],
)
def test_memory_that_runs_out_in_a_derivative_is_told_as_such(derivative):
    x = torch.ones(3, requires_grad=True)
    with pytest.raises(torch.OutOfMemoryError):
        derivative(Hungry.apply(x.square()), x)
