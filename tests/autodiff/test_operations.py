"""Numbers of multiplications, against those of the definition."""

import logging

import pytest
import torch
from torch import nn

from landscape.autodiff.operations import multiplications


def test_products_and_convolutions_are_counted():
    x = torch.ones(3, 5, 8, 8)
    assert multiplications(lambda: nn.Conv2d(5, 7, 3, padding=1)(x)) == 3 * 7 * 8 * 8 * 5 * 9
    assert multiplications(lambda: nn.Linear(8, 6)(x)) == 3 * 5 * 8 * 8 * 6
    assert multiplications(lambda: torch.einsum("abij,abkj->abik", x, x)) == 3 * 5 * 8 * 8 * 8


def test_what_cannot_be_counted_is_zero_and_told(caplog):
    def fails():
        raise AssertionError("a formula does not know this shape")

    with caplog.at_level(logging.INFO):
        assert multiplications(fails) == 0
    assert "does not know this shape" in caplog.text
    assert multiplications(lambda: torch.ones(4).exp()) == 0


def test_memory_that_runs_out_is_not_a_matter_of_counting():
    def fails():
        raise MemoryError

    with pytest.raises(MemoryError):
        multiplications(fails)
