"""Whether code draws random numbers: the state of the global generators."""

import hashlib
import random

import numpy as np
import torch


def state() -> bytes:
    """Return a digest of the states of the global generators of Python, NumPy and PyTorch, on the CPU and used GPUs."""
    digest = hashlib.sha256(repr(random.getstate()).encode())
    name, keys, *rest = np.random.get_state(legacy=True)  # ruff: ignore[numpy-legacy-random]  # the generator of users' code
    digest.update(repr((name, *rest)).encode())
    digest.update(np.asarray(keys).tobytes())
    digest.update(torch.get_rng_state().numpy().tobytes())
    for generator in torch.cuda.get_rng_state_all() if torch.cuda.is_available() else ():
        digest.update(generator.numpy().tobytes())
    return digest.digest()
