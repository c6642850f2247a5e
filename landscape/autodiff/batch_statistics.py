"""Batch norm in training mode: keep its running statistics, or treat the statistics of the batch as constants."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from landscape.errors import InputError, arg


def running(model: nn.Module) -> list[_NormBase]:
    """Return the layers of batch norm and instance norm that have running statistics, which they use in eval mode."""
    return [m for m in model.modules() if isinstance(m, _NormBase) and m.track_running_stats]


@contextmanager
def kept_statistics(model: nn.Module | None) -> Generator[None, None, None]:
    """Let batch norm and instance norm normalise as in training inside the block, but keep their running statistics.

    The second pass of a step uses perturbed parameters; its statistics are not those of the model.

    Args:
        model: the model with the layers; None does nothing.

    Yields:
        Nothing.
    """
    norms = [] if model is None else [m for m in model.modules() if isinstance(m, _NormBase)]
    tracking = [m.track_running_stats for m in norms]
    buffers = [(m.running_mean, m.running_var) for m in norms]
    try:
        for m in norms:
            if m.training:  # without buffers a layer in training mode normalises by its inputs and records nothing
                m.track_running_stats = False
                m.running_mean = m.running_var = None
        yield
    finally:
        for m, before, (mean, var) in zip(norms, tracking, buffers, strict=True):
            m.track_running_stats, m.running_mean, m.running_var = before, mean, var


@contextmanager
def batch_statistics_constant(model: nn.Module) -> Generator[None, None, None]:
    """Let batch norm in training mode treat its batch's statistics as constants: its samples are then independent.

    Outputs and running statistics are those of training; the gradient does not pass through mean and variance.

    Args:
        model: the model with the batch norm.

    Yields:
        Nothing.

    Raises:
        InputError: the model has a SyncBatchNorm, which uses the statistics of several batches.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    if any(isinstance(m, nn.SyncBatchNorm) for m in norms):
        raise InputError("SyncBatchNorm takes statistics over all ranks: build the model with BatchNorm2d")
    before = [m.__dict__.get("forward") for m in norms]
    try:
        for m in norms:
            m.__dict__["forward"] = Constant(m)
        yield
    finally:
        for m, forward in zip(norms, before, strict=True):
            m.__dict__.pop("forward", None)
            if forward is not None:
                m.__dict__["forward"] = forward


class Constant:
    """Stands in for the forward of one batch norm."""

    def __init__(self, module: _BatchNorm) -> None:
        self._module = module
        self.statistics: tuple[Tensor, ...] = ()  # of the latest batch: mean and biased variance, (C,)

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise by the batch, whose statistics are constants."""
        m: Any = self._module
        self.statistics = ()
        if not by_batch(m):
            plain: Tensor = type(m).forward(m, x)
            return plain
        m._check_input_dim(x)
        n = x.numel() // x.shape[1]
        if n < 2:
            raise InputError(f"batch norm got one value per channel, shape {tuple(x.shape)}: raise {arg('batch_size')}")
        with torch.no_grad():
            wide = x.float() if x.dtype in {torch.float16, torch.bfloat16} else x
            # on a CPU twice as fast as torch.var_mean, which is a sixth of the pass
            _, mean, inverse = torch.native_batch_norm(wide, None, None, None, None, True, 0.0, 0.0)
            variance = torch.where(inverse > 0, inverse**-2, 0.0)  # torch has 0 for the inverse of 0
            if m.training and m.track_running_stats and m.running_mean is not None and m.running_var is not None:
                rate: Any = m.momentum
                if m.num_batches_tracked is not None:
                    m.num_batches_tracked.add_(1)
                    rate = (1 / m.num_batches_tracked).to(mean) if rate is None else rate
                m.running_mean.lerp_(mean.to(m.running_mean), rate)
                m.running_var.lerp_((variance * (n / (n - 1))).to(m.running_var), rate)
        self.statistics = mean, variance
        return F.batch_norm(x, mean, variance, m.weight, m.bias, training=False, eps=m.eps)


def by_batch(module: _BatchNorm) -> bool:
    """Say whether a batch norm normalises by its batch."""
    return module.training or module.running_mean is None


def coupling(model: nn.Module) -> list[str]:
    """Name the batch norms through which the samples of a batch influence each other, in the present modes.

    Args:
        model: in eval mode, these are the batch norms without running statistics.

    Returns:
        Their names in the model, without those within `batch_statistics_constant`.
    """
    norms = [(name, m) for name, m in model.named_modules() if isinstance(m, _BatchNorm) and by_batch(m)]
    return [name or "the model" for name, m in norms if not isinstance(m.__dict__.get("forward"), Constant)]
