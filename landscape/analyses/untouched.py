"""A measurement that the training around it does not notice: its random numbers, modes and hooks stay as they are."""

import random
from collections.abc import Generator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import nn

from landscape.autodiff import memory


def without_new_hooks(model: nn.Module, then: nn.Module) -> nn.Module:
    """Remove hooks that `then`, an earlier copy, does not have: hooks that record a training must not see this."""
    before = dict(then.named_modules())
    for name, module in model.named_modules():
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            hooks = vars(module)[kind]
            for key in hooks.keys() - vars(before.get(name, module))[kind].keys():
                del hooks[key]
    return model


@contextmanager
def untouched() -> Generator[None, None, None]:
    """Restore the global state after the block: random number generators and the modes of autograd."""
    devices = range(torch.cuda.device_count()) if memory.used_cuda() else ()
    plain, legacy = random.getstate(), np.random.get_state()  # ruff: ignore[numpy-legacy-random]  # a user's code may draw from it
    kinds = ("cpu", "cuda") if devices else ("cpu",)
    try:
        with ExitStack() as modes:
            for kind in kinds:
                modes.enter_context(torch.autocast(kind, enabled=False))
            modes.enter_context(torch.inference_mode(False))
            modes.enter_context(torch.random.fork_rng(devices))
            modes.enter_context(torch.enable_grad())
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(legacy)  # ruff: ignore[numpy-legacy-random]  # the same
