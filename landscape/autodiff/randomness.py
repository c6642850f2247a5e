"""Whether code draws random numbers: the state of the global generators."""

import hashlib
import random

import numpy as np
import torch

from landscape.autodiff import memory


def state() -> bytes:
    """Return a digest of the states of the global generators of Python, NumPy and PyTorch, on the CPU and used GPUs.

    CUDA is not initialised. If it is initialised between two calls, these differ.
    """
    digest = hashlib.sha256(repr(random.getstate()).encode())
    name, keys, *rest = np.random.get_state(legacy=True)  # ruff: ignore[numpy-legacy-random]  # the generator of users' code
    digest.update(repr((name, *rest)).encode())
    digest.update(np.asarray(keys).tobytes())
    digest.update(torch.get_rng_state().numpy().tobytes())
    for generator in torch.cuda.get_rng_state_all() if memory.used_cuda() else ():
        digest.update(generator.numpy().tobytes())
    if torch.backends.mps.is_available():
        digest.update(torch.mps.get_rng_state().cpu().numpy().tobytes())
    return digest.digest()
