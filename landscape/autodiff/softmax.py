"""Logarithms of probabilities whose derivatives keep their digits, however close a probability is to 1.

The derivative of log p_y is e_y - p, and along v this changes by -p (v - p.v). PyTorch computes both as they are
written. Where p_y rounds to 1, both lose their entry for class y: the first is then no gradient, and the second is no
product with a symmetric matrix. Here the terms of all classes but the most probable one, a, are summed relative to it:

    S = sum_{c != a} exp(z_c - z_a),    log p_c = z_c - z_a - log(1 + S).

Its derivatives are sums and products of numbers of the size of S. The sigmoid is that of two classes. This is used in
float64 only, since losses are computed in it (objective/precise.py); in float32 PyTorch's function takes less memory.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def log_softmax(z: Tensor, dim: int = -1) -> Tensor:
    """Return log p for the probabilities p = softmax(z).

    Args:
        z: logits, of any shape.
        dim: axis of the classes.

    Returns:
        Logarithms, of the shape of z.
    """
    if z.dtype != torch.float64:
        return F.log_softmax(z, dim)
    top = z.detach().argmax(dim, keepdim=True)
    largest = z.gather(dim, top)
    zero = (largest - largest).detach()  # nan for infinite logits, which have no probabilities
    # Without the derivative of z_a - z_a, whose two ones would cancel the last digits of the others.
    ahead = (z - largest).scatter(dim, top, zero)
    others: Tensor = ahead.exp().scatter(dim, top, zero).sum(dim, keepdim=True)
    return ahead - others.log1p()


def log_sigmoid(x: Tensor) -> Tensor:
    """Return log s(x), elementwise, for s(x) = 1 / (1 + exp(-x))."""
    if x.dtype != torch.float64:
        return F.logsigmoid(x)
    below = x < 0
    return torch.where(below, x, 0.0) - torch.where(below, x, -x).exp().log1p()


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return -sum_c t_c log p_c of each sample.

    Args:
        logits: (B, C, ...), or (C,) for a single sample.
        targets: the classes, (B, ...) integers, which are t = 1; or probabilities t, of the shape of the logits.

    Returns:
        (B, ...).
    """
    if logits.dtype != torch.float64:
        return F.cross_entropy(logits, targets, reduction="none")
    dim = 1 if logits.ndim > 1 else 0
    found = log_softmax(logits, dim)
    if targets.is_floating_point():
        return -(targets * found).sum(dim)
    return F.nll_loss(found, targets, reduction="none")


def others(values: Tensor) -> Tensor:
    """Return for each number of a row the sum of the others; the largest is not subtracted from a sum with itself."""
    top = values.argmax(1, keepdim=True)
    rest = values.scatter(1, top, 0).sum(1, keepdim=True)
    found = rest + values.gather(1, top) - values
    return found.scatter(1, top, rest)
