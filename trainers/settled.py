"""Re-estimate the running statistics of batch norm and instance norm for the current weights.

Training averages the statistics of its batches over about ten steps: after a few steps they still contain much of the
initial mean 0 and variance 1, and while the weights change fast they belong to earlier weights. Features in eval mode
are then misleading: in the first epoch of a small data set they can be a hundred times too large.
"""

from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from landscape.autodiff.batch_statistics import running
from landscape.autodiff.called import evaluating
from landscape.data.datasets import Samples
from landscape.errors import InputError
from trainers.batches import Batches

BATCH, BATCHES = 256, 20
"""Samples per batch, and the largest number of batches: with 5,120 samples the statistics are known to 2 %."""


@contextmanager
def settled_statistics(
    model: nn.Module, samples: Samples, *, seed: int = 0, workers: int = 0, bf16: bool = False
) -> Generator[None, None, None]:
    """Use re-estimated running statistics inside the block; afterwards the original ones are restored exactly.

    In one pass over training samples, without augmentation, each layer normalises as in training; means and variances
    of batches are averaged, weighted by their numbers of samples. A model without running statistics is not evaluated.

    Args:
        model: inputs (B, ...) -> anything.
        samples: the training set; at most `BATCH * BATCHES` of them are drawn.
        seed: of the draw and its order, which must be random: a batch of one class has the statistics of that class.
        workers: number of processes that read images from files.
        bf16: run the forward passes in bfloat16 with autocast.

    Yields:
        Nothing.

    Raises:
        InputError: a layer has a single value per channel (and instance), or computes its statistics over all ranks.
        DataError: a sample cannot be read.
    """
    norms = running(model)
    kept = [{name: b.detach().clone() for name, b in m.named_buffers(recurse=False)} for m in norms]
    try:
        if norms:
            _measure(model, norms, samples, seed, workers, bf16)
        yield
    finally:
        with torch.no_grad():
            for m, buffers in zip(norms, kept, strict=True):
                for name, b in buffers.items():
                    m.get_buffer(name).copy_(b)


@torch.no_grad()
def _measure(model: nn.Module, norms: list[_NormBase], samples: Samples, seed: int, workers: int, bf16: bool) -> None:
    if any(isinstance(m, nn.SyncBatchNorm) for m in norms):
        raise InputError("SyncBatchNorm takes statistics over all ranks: build the model with BatchNorm2d")
    drawn = torch.from_numpy(np.random.default_rng(seed).permutation(len(samples))[: BATCH * BATCHES])
    pieces = drawn.tensor_split(-(-len(drawn) // BATCH))
    momenta = [m.momentum for m in norms]
    example = next(model.parameters())
    reader = Batches(samples, ["none"], example.device, example.dtype, workers)
    seen = 0
    try:
        with evaluating(model):
            for m in norms:
                m.train()
            for (inputs,), _, indices in reader.epoch(pieces):
                seen += len(indices)
                for m in norms:
                    m.momentum = len(indices) / seen
                with torch.autocast(example.device.type, torch.bfloat16, enabled=bf16):
                    model(inputs)
    except ValueError as error:  # one value per channel has no variance
        raise InputError(f"running statistics cannot be estimated from {len(pieces[0])} sample(s): {error}") from None
    finally:
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum
