"""Results of PyHessian's own code on the same part and data, for comparison with ours."""

import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module

import numpy as np
import torch
from torch import Tensor, nn

from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.trees import Tree
from landscape.callables import failures_of
from landscape.errors import InputError, arg, said
from landscape.networks.copies import copied
from landscape.objective.objective import Objective


@dataclass(frozen=True, kw_only=True)
class PyHessianResult:
    """The results of PyHessian's eigenvalues() and trace() for one part, with their defaults."""

    top: float  # the eigenvalue of largest magnitude, which may be lambda_min
    trace: float  # mean of its probes
    trace_stderr: float  # of that mean; PyHessian itself reports none
    n_probes: int  # it stops when its running mean changes by less than 0.1 %


def refuse(weight_decay: float) -> None:
    """Raise InputError if PyHessian cannot be run: it is not installed, or does not support the objective.

    Args:
        weight_decay: the weight decay of the objective.

    Raises:
        InputError: PyHessian cannot be run.
    """
    try:
        import_module("pyhessian")
    except ImportError as error:
        raise InputError(f"{said('PyHessian', '--verify pyhessian')} needs the package pyhessian: {error}") from error
    if weight_decay:
        raise InputError(
            f"{said('PyHessian', '--verify pyhessian')} cannot be used with {arg('weight_decay')}: PyHessian knows none"
        )


def refuse_data(objective: Objective) -> None:
    """Raise InputError if PyHessian does not take the data: it moves inputs and targets to a device as one tensor each.

    Args:
        objective: model, loss and data in parts.

    Raises:
        InputError: inputs or targets are not a tensor.
    """
    for what, given in zip(("inputs", "targets"), objective.example(0), strict=True):
        if not isinstance(given, Tensor):
            raise InputError(
                f"{said('PyHessian', '--verify pyhessian')} takes {what} that are one tensor, these are a "
                f"{type(given).__name__}"
            )


def pyhessian(objective: Objective, part: str, *, seed: int = 0) -> PyHessianResult:
    """Run PyHessian's top eigenvalue (by power iteration) and trace (Hutchinson) on one part.

    Args:
        objective: model, loss and data in parts; weight decay must be 0, because PyHessian does not support it.
        part: name of the part.
        seed: seed of torch's global generator, which PyHessian uses; the generator's state is restored afterwards.

    Returns:
        PyHessian's results.

    Raises:
        InputError: there is no such part, pyhessian is not installed or fails, the objective has weight decay, or its
            inputs or targets are not a tensor.
    """
    refuse(objective.weight_decay)
    refuse_data(objective)
    from pyhessian import hessian

    batches = list(objective.batches(objective.part(part)))
    model = _Logits(copied(objective.model), objective)
    for name, parameter in model.inner.named_parameters():
        parameter.requires_grad_(name in objective.layout.names)

    def criterion(logits: Tensor, targets: Tree) -> Tensor:
        return objective.loss(logits, targets).mean()

    cuda = [objective.device] if objective.device.type == "cuda" else []
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=cuda))
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(differentiable_attention())
        for device in cuda:
            stack.enter_context(torch.cuda.device(device))  # PyHessian's "cuda" is the current device
        # A parameter that is not used has no gradient, which PyHessian does not know.
        stack.enter_context(failures_of(lambda: "PyHessian cannot run here"))
        warnings.simplefilter("ignore")  # backward(create_graph=True) makes reference cycles, of which torch warns
        torch.random.manual_seed(seed)
        computation = hessian(model, criterion, dataloader=batches, cuda=bool(cuda))
        values, _ = computation.eigenvalues()
        samples = np.array(computation.trace())
    spread = samples.std(ddof=1) / np.sqrt(len(samples)) if len(samples) > 1 else np.nan
    return PyHessianResult(
        top=float(values[0]), trace=float(samples.mean()), trace_stderr=float(spread), n_probes=len(samples)
    )


class _Logits(nn.Module):
    """A model that returns its logits alone, as PyHessian expects."""

    def __init__(self, inner: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.inner = inner
        self._objective = objective

    def forward(self, inputs: Tree) -> Tensor:
        return self._objective.logits_of(self.inner, inputs)
