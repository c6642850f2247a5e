"""Squares of gradients of any size, against float64."""

import pytest
import torch
from layers import CASES, LABELS, case, loss_of

from landscape.autodiff import formulas, single_samples, squares

SIZES = [1e-36, 1e-30, 1e-22, 1e-12, 1.0, 1e12, 1e22, 1e36]


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", SIZES)
def test_lengths_and_sums_of_squares_have_their_digits(size):
    rows = drawn(6, 40) * torch.tensor([1, 0, 1, 1e-6, 1, 1])[:, None] * size
    exact = rows.double().square()
    assert torch.allclose(squares.lengths(rows), exact.sum(1), rtol=1e-5, atol=0)
    assert torch.allclose(squares.summed(rows), exact.sum(0), rtol=1e-5, atol=0)
    several = rows.reshape(3, 2, 4, 10)
    assert torch.allclose(squares.lengths(several), several.double().square().sum((2, 3)), rtol=1e-5, atol=0)
    assert torch.allclose(squares.lengths(rows.double()), exact.sum(1), rtol=1e-12, atol=0)


def test_nothing_and_zeros_are_zeros():
    assert squares.power(torch.zeros(3)) == squares.power(torch.zeros(0)) == 1
    assert not squares.lengths(torch.zeros(2, 3)).any()
    assert squares.lengths(torch.zeros(2, 0)).shape == (2,)


@pytest.mark.parametrize("positions", [0, torch.inf], ids=["by positions", "by gradients"])
@pytest.mark.parametrize("size", [1e-22, 1e22])
@pytest.mark.parametrize("name", CASES)
def test_squares_of_gradients_of_every_layer_have_their_digits(name, size, positions, monkeypatch):
    monkeypatch.setattr(formulas, "_WIDE", positions)  # private: how lengths are computed
    model, inputs = case(name)
    model, inputs = model.eval().float(), inputs.float() if inputs.is_floating_point() else inputs
    seeds = drawn(2, len(LABELS), 3)

    def numbers(by):
        def loss(z, y):
            return loss_of(z, y) * by

        weights = torch.ones(1, sum(p.numel() for p in model.parameters() if p.requires_grad))
        run = single_samples.record(model, inputs, LABELS, lambda z, y: z)
        return (
            single_samples.squared_gradients(model, [(inputs, LABELS)], loss),
            single_samples.weighted_squares(model, [(inputs, LABELS)], loss, weights),
            run.square_norms(seeds * by)[0],
        )

    for found, usual in zip(numbers(size), numbers(1.0), strict=True):
        assert torch.allclose(found / size / size, usual, rtol=1e-3, atol=1e-6 * float(usual.max()))
