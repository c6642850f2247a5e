"""Class-dependent sharpness-aware minimisation, to compare GSA with: Focal-SAM, ImbSAM and CC-SAM.

With l_i the loss of sample i of class y_i, and a weight c_y of each class, Focal-SAM and ImbSAM descend along

    grad mean_i (1 - c_{y_i}) l_i  at theta   +   grad mean_i c_{y_i} l_i  at theta + eps,
    eps = rho v / ||v||,   v = grad mean_i c_{y_i} l_i  at theta

    Focal-SAM:  c_y = lambda (1 - n_y / N)^gamma        Li et al. 2025, "Focal-SAM", section 4
    ImbSAM:     c_y = 1 for classes of at most eta samples, else 0        Zhou et al. 2023, "ImbSAM", section 3

CC-SAM (Zhou et al. 2023, "Class-conditional sharpness-aware minimization for deep long-tailed recognition") perturbs
only the classifier, for each class by the gradient of its own mean loss, with the radius of equations 13 and 14 of the
paper that `gsa` follows. With d the classifier's number of entries and t each of its tensors:

    eps_{c,t} = Z sqrt(d) (||t|| / (2 ||g_{c,t}||))^(1/2) d^(-1/4) (n_c - 1)^(-1/4) g_{c,t} / ||g_{c,t}||
    loss of a sample of class c:  (1 - f) l(theta) + f l(theta + eps_c)

Its second stage, which trains the classifier again on balanced classes, is not implemented.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from landscape.errors import InputError
from trainers.passes import Losses, Reduce, alone, flat, gradient, hand_over, kept_statistics, length, moved, trainable
from trainers.sam import SAM, perturbation, shares


def focal_weights(class_counts: np.ndarray, strength: float, gamma: float) -> Tensor:
    """Return the class weights of Focal-SAM.

    Args:
        class_counts: n, (C,).
        strength: lambda, from 0 to 1.
        gamma: at least 0; with 0 all classes have the same weight, which with lambda = 1 is SAM.

    Returns:
        c, (C,) float64.

    Raises:
        InputError: a number is out of its range.
    """
    if not 0 <= strength <= 1 or not gamma >= 0:
        raise InputError(f"lambda of Focal-SAM must be from 0 to 1 and gamma at least 0, got {strength} and {gamma}")
    counts = np.asarray(class_counts, dtype=np.float64)
    return torch.from_numpy(strength * (1 - counts / counts.sum()) ** gamma)


def tail_weights(class_counts: np.ndarray, most: int) -> Tensor:
    """Return the class weights of ImbSAM: 1 for classes of at most `most` samples, 0 for all others, (C,) float64."""
    return torch.from_numpy((np.asarray(class_counts) <= most).astype(np.float64))


class ClassSAM(SAM):
    """SAM with a weight for the sharpness of each class.

    weights = focal_weights(counts, 0.5, 3.0)
    optimizer = ClassSAM(model.parameters(), torch.optim.SGD, weights=weights, rho=0.2, model=model, lr=0.1)
    for inputs, labels in batches:
        optimizer.step(lambda: F.cross_entropy(model(inputs), labels, reduction="none"), labels)
    """

    def __init__(
        self,
        params: Iterable[Any],
        base: type[torch.optim.Optimizer],
        *,
        weights: Tensor,
        rho: float = 0.05,
        adaptive: bool = False,
        model: nn.Module | None = None,
        reduce: Reduce = alone,
        **options: Any,
    ) -> None:
        """Wrap an optimizer.

        Args:
            params: parameters, or groups of parameters.
            base: the optimizer's class.
            weights: c, (C,).
            rho: length of the perturbation.
            adaptive: scale the perturbation of each parameter by its size.
            model: the model; its batch norm updates the running statistics only in the first pass.
            reduce: adds a tensor up over all ranks, in place.
            options: options of the base optimizer.
        """
        super().__init__(params, base, rho=rho, adaptive=adaptive, model=model, reduce=reduce, **options)
        self._weights = weights.to(trainable(self.param_groups)[0])

    def gradients(self, losses: Losses, labels: Tensor | None = None) -> Tensor:
        """Write the gradient of a step into the parameters' `.grad`, without changing the parameters.

        Args:
            losses: runs the model on the batch; called twice.
            labels: labels of the batch, (B,).

        Returns:
            The losses of the first pass, (B,), without a graph.

        Raises:
            InputError: there are no labels, or the losses are not one number for each sample.
        """
        if labels is None:
            raise InputError("sharpness by class needs the labels of the batch: step(losses, labels)")
        parameters = trainable(self.param_groups)
        theta = flat(parameters)
        first = losses()
        each = shares(first, self._reduce)
        of_sharpness = each * self._weights[labels.to(self._weights.device, non_blocking=True)]
        plain = gradient(first, each - of_sharpness, parameters, keep=True)
        v = gradient(first, of_sharpness, parameters)
        self._reduce(v)
        with moved(parameters, theta, self._perturbation(theta, v)), kept_statistics(self._model):
            plain += gradient(losses(), of_sharpness, parameters)
        self._reduce(plain)
        hand_over(plain, parameters)
        return first.detach()

    def step(self, closure: Losses, labels: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Make one step; see `gradients`."""
        values = self.gradients(closure, labels)
        self.base.step()
        return values


def class_conditional(
    criterion: Callable[[Tensor, Tensor], Tensor],
    classifier: nn.Module,
    features: Tensor,
    labels: Tensor,
    values: Tensor,
    class_counts: Tensor,
    *,
    scale: float = 1e-2,
    share: float = 0.3,
) -> Tensor:
    """Return the losses of CC-SAM, (B,); the perturbations are constants.

    Args:
        criterion: (logits (B, C), labels (B,)) -> (B,).
        classifier: features (B, F) -> logits (B, C).
        features: features of the batch, (B, F), with their graph.
        labels: (B,); on the CPU they need no wait for a GPU.
        values: the criterion's values at the unperturbed classifier, with their graph.
        class_counts: n, (C,) training samples, on the CPU.
        scale: Z.
        share: f, the weight of the perturbed loss.

    Returns:
        (1 - f) l + f l', with l' the loss at the classifier perturbed for the sample's class.
    """
    named = dict(classifier.named_parameters())
    d = sum(p.numel() for p in named.values())
    on_host, place = labels.cpu(), values.device
    perturbed = torch.zeros_like(values)
    for c in torch.bincount(on_host).nonzero().flatten().tolist():
        members = (on_host == c).nonzero().flatten().to(place, non_blocking=True)
        found = torch.autograd.grad(values[members].mean(), list(named.values()), retain_graph=True)
        radius = scale * d**0.25 * max(int(class_counts[c]) - 1, 1) ** -0.25
        moved_to = {}
        for (name, p), g in zip(named.items(), found, strict=True):
            distance = radius * length(p.detach()).sqrt() * _inverse_root(2 * length(g))
            moved_to[name] = p + distance * perturbation(p, g, adaptive=False)
        logits = functional_call(classifier, moved_to, (features[members],))
        there = labels.to(place, non_blocking=True)[members]
        perturbed = perturbed.index_put((members,), criterion(logits.to(values), there).to(values))
    return (1 - share) * values + share * perturbed


def _inverse_root(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 1.0).rsqrt()  # if a gradient is zero, its direction is set to zero
