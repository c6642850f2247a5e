"""Checkpoints that hold a value in itself, or one value in exponentially many ways."""

import pytest
import torch
from refusals import refused
from torch import nn

from landscape.errors import InputError
from landscape.networks import checkpoints

STATE = {"weight": torch.zeros(2)}


def twice(make, value, times=40):
    """Nest a value: each holds the one before twice, so that there are 2^times ways to the innermost."""
    for _ in range(times):
        value = make(value)
    return value


def modules(child):
    outer = nn.Module()
    outer.one = outer.two = child
    return outer


def within_itself(make):
    content = make(None)
    for name in content:
        content[name] = content
    return content


HOSTILE = {
    "a mapping in itself": lambda: within_itself(lambda c: {"model": c}),
    "halves in themselves": lambda: within_itself(lambda c: {"feat_model": c, "classifier": c}),
    "two ways at each level": lambda: twice(lambda c: {"model": c, "net": c}, {"epoch": 1}),
    "two ways through lists": lambda: twice(lambda c: [c, c], {"epoch": 1}),
    "two halves at each level": lambda: twice(lambda c: {"feat_model": c, "classifier": c}, {}),
    "two children at each level": lambda: twice(modules, nn.Module()),
    "too deep": lambda: twice(lambda c: {"model": c}, STATE, 200),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("content", HOSTILE)
def test_a_small_file_of_which_a_search_would_not_end_is_refused(content, tmp_path):
    torch.save(HOSTILE[content](), tmp_path / "ckpt.pth")
    with refused(InputError, tmp_path / "ckpt.pth", "ckpt_key"):
        checkpoints.read(tmp_path / "ckpt.pth")


def test_a_module_that_is_used_twice_has_both_names(tmp_path):
    model = nn.Sequential(*[nn.Linear(2, 2)] * 2, modules(nn.BatchNorm1d(2)))
    torch.save(model, tmp_path / "ckpt.pth")
    assert list(checkpoints.read(tmp_path / "ckpt.pth").state) == list(model.state_dict())
