"""Losses that only training needs: they couple the samples of a batch, which an analysis of parts does not allow.

Deferred re-weighting (Cao et al. 2019) weights classes by their effective number of samples. Balanced contrastive
learning (BCL; Zhu et al. 2022) adds, to the logit-adjusted cross-entropy of one view of each sample, a contrastive
loss of further views, in which all classes have equal weight:

    2.0 * CE(z + log pi, y) + 0.6 * L_contrastive
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.callables import checked
from landscape.errors import InputError, arg
from trainers.passes import Reduce, alone


@dataclasses.dataclass(frozen=True, kw_only=True)
class BCL:
    """The options of balanced contrastive learning; the defaults are those for long-tailed CIFAR.

    Raises:
        InputError: a weight or tau is negative, the temperature or a width is not positive, or a width not whole.
    """

    ce_weight: float = 2.0  # of the logit-adjusted cross-entropy
    contrast_weight: float = 0.6  # of the contrastive loss
    temperature: float = 0.1  # of the contrastive loss
    tau: float = 1.0  # of the logit adjustment
    hidden: float = 512  # width of the projection head within
    projected: float = 128  # dimension of its output

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            least = "at least 0" if name in {"ce_weight", "contrast_weight", "tau"} else "positive"
            if not 0 <= value < math.inf or (value == 0 and least == "positive"):
                raise InputError(f"{name} of {arg('loss', 'bcl')} must be finite and {least}, got {value:g}")
            if name in {"hidden", "projected"} and value != int(value):
                raise InputError(f"{name} of {arg('loss', 'bcl')} must be a whole number, got {value:g}")


@checked
def options_of(text: str | None) -> dict[str, float]:
    """Read options of a loss.

    Args:
        text: such as "gamma=0.3,tau=1"; None means no options.

    Returns:
        Their values by name.

    Raises:
        InputError: the text is no list of names and numbers, or names one twice.
    """
    found: dict[str, float] = {}
    for word in text.split(",") if text else ():
        name, _, value = word.partition("=")
        try:
            number = float(value)
        except ValueError:
            raise InputError(f"{arg('loss_options')} must be such as gamma=0.3,tau=1, got {text!r}") from None
        if name.strip() in found:
            raise InputError(f"{arg('loss_options')} name {name.strip()} twice: {text!r}")
        found[name.strip()] = number
    return found


@checked
def bcl_of(options: Mapping[str, float]) -> BCL:
    """Make the options of bcl.

    Args:
        options: by name, such as {"temperature": 0.07}.

    Returns:
        The given options, and the defaults of all others.

    Raises:
        InputError: there is no such option, or a value is out of its range.
    """
    names = [item.name for item in dataclasses.fields(BCL)]
    for name in options:
        if name not in names:
            raise InputError(f"{arg('loss', 'bcl')} has no option {name}; its options: {', '.join(names)}")
    return BCL(**options)


@checked
def effective_number_weights(class_counts: np.ndarray, beta: float = 0.9999) -> Tensor:
    """Weight classes by the inverse of their effective number of samples: w_c ~ (1 - beta) / (1 - beta^n_c).

    Args:
        class_counts: n, (C,) training samples of each class.
        beta: at least 0, which gives equal weights, and below 1; near 1 the weights are proportional to 1 / n_c.

    Returns:
        w, (C,) in float64, with sum C.

    Raises:
        InputError: a class has no training samples, its weight is not finite; or beta is out of its range.

    Source: Cui et al. 2019, "Class-balanced loss based on effective number of samples", equation 2 and section 4.
    """
    if not 0 <= beta < 1:
        raise InputError(f"beta of the effective number of samples must be at least 0 and below 1, got {beta:g}")
    counts = np.asarray(class_counts, dtype=np.float64)
    for c in np.flatnonzero(counts <= 0)[:1]:
        raise InputError(
            f"{arg('reweight', 'drw')} needs training samples of every class, class {c} has none; pass "
            f"{arg('reweight', 'none')}"
        )
    weights = (1 - beta) / (1 - beta**counts)
    return torch.from_numpy(weights * (len(counts) / weights.sum()))


@checked
def reweighted(
    loss: Callable[[Tensor, Tensor], Tensor], weights: Tensor, reduce: Reduce = alone
) -> Callable[[Tensor, Tensor], Tensor]:
    """Weight a loss by class so that its mean over a batch is the weighted mean: sum_i w_i l_i / sum_i w_i.

    Sample i gets w_i / mean(w) l_i with the mean over its batch, as in the deferred re-weighting of Cao et al. 2019 and
    in torch's cross-entropy with class weights. The loss of a sample thus depends on its batch: in a batch of one, it
    is the plain loss.

    Args:
        loss: logits (B, C), labels (B,) -> (B,).
        weights: w, (C,), positive.
        reduce: sums a tensor over all ranks that share the batch, in place.

    Returns:
        The weighted loss of each sample.
    """

    def weighted(logits: Tensor, labels: Tensor) -> Tensor:
        values = loss(logits, labels)
        w = weights.to(device=values.device, dtype=values.dtype, non_blocking=True)[labels]
        total = torch.stack([w.sum(), torch.full_like(w.sum(), len(w))])
        reduce(total)
        return w * (total[1] / total[0]) * values

    return weighted


class ContrastiveHead(nn.Module):
    """Two small networks of the same form, which map samples and classes to one unit sphere.

    Each is Linear (F, H), batch norm, ReLU, Linear (H, K), then division by the norm. One is for the features of
    samples; the other maps the weight vectors of the classifier to the prototypes of the classes. Weights are drawn as
    in He et al. 2015 for a ReLU.

    Source: Zhu et al. 2022, section 4.3; widths and initial weights are those of the released
    ChenShengHan100/gkp-gsa for CIFAR, and of FlamieZhu/Balanced-Contrastive-Learning for larger images.
    """

    def __init__(self, n_features: int, n_hidden: int = 512, n_projected: int = 128) -> None:
        """Draw the weights from torch's global generator.

        Args:
            n_features: F, inputs of the classifier.
            n_hidden: H, width of the hidden layer.
            n_projected: K, dimension of the output.
        """
        super().__init__()
        self.n_features = n_features
        self.of_samples = _perceptron(n_features, n_hidden, n_projected)
        self.of_classes = _perceptron(n_features, n_hidden, n_projected)

    def forward(self, features: Tensor, class_weights: Tensor) -> tuple[Tensor, Tensor]:
        """Project samples and classes.

        Args:
            features: of samples, (B, F); B at least 2 in training, for batch norm.
            class_weights: the classifier's weight vectors, a row for each class, (C, F); C at least 2 likewise.

        Returns:
            Projections (B, K) and prototypes (C, K), all of length 1.

        Raises:
            InputError: the shapes do not fit, or batch norm has a single row to normalise.
        """
        for what, rows, remedy in (
            ("features", features, f"raise {arg('batch_size')}"),
            ("the classifier's weights", class_weights, f"choose another {arg('loss')} for a single class"),
        ):
            if rows.ndim != 2 or rows.shape[1] != self.n_features:
                raise InputError(
                    f"{what} have shape {tuple(rows.shape)}: {arg('loss', 'bcl')} expects (rows, {self.n_features})"
                )
            if self.training and len(rows) < 2:
                raise InputError(
                    f"{what} have {len(rows)} rows, batch norm in {arg('loss', 'bcl')} needs at least 2: {remedy}"
                )
        return F.normalize(self.of_samples(features), dim=1), F.normalize(self.of_classes(class_weights), dim=1)


def _perceptron(n_in: int, n_hidden: int, n_out: int) -> nn.Sequential:
    first, last = nn.Linear(n_in, n_hidden), nn.Linear(n_hidden, n_out)
    for linear in (first, last):
        nn.init.kaiming_normal_(linear.weight)
    return nn.Sequential(first, nn.BatchNorm1d(n_hidden), nn.ReLU(), last)


@checked
def balanced_contrastive(projections: Tensor, labels: Tensor, prototypes: Tensor, temperature: float = 0.1) -> Tensor:
    """Pull a sample's views towards those of its class and away from the other classes, which have equal weight.

    For view i of a sample with label y, and B_j all views of the batch with label j, along with the prototype of j:

        L_i = -1 / (|B_y| - 1) sum_{p in B_y, p != i} log( exp(z_i.z_p / t) / S_i )
        S_i = sum_{j != y} 1 / |B_j| sum_{k in B_j} exp(z_i.z_k / t)
              + 1 / (|B_y| - 1) sum_{k in B_y, k != i} exp(z_i.z_k / t)

    The anchor i is left out of all sums and counts over its own class, in the numerators and in S_i: |B_y| - 1 counts
    the other views of class y and its prototype. |B_j| of another class counts all of its views and its prototype.
    Because each class has its prototype in the batch, no class is empty. Prototypes are no anchors.

    Args:
        projections: z of V views of each sample, (V, B, K), of length 1.
        labels: y, (B,), from 0 to C - 1.
        prototypes: z of each class, (C, K), of length 1.
        temperature: t, positive; for small values only the nearest views matter.

    Returns:
        The mean of L_i over the views of each sample, (B,).

    Raises:
        InputError: the shapes do not fit, or the temperature is not positive.

    Source: Zhu et al. 2022, "Balanced contrastive learning for long-tailed visual recognition", section 4; the counts
    follow the released FlamieZhu/Balanced-Contrastive-Learning, loss/contrastive.py.
    """
    if projections.ndim != 3 or labels.shape != projections.shape[1:2] or prototypes.shape[1:] != projections.shape[2:]:
        raise InputError(
            f"projections have shape {tuple(projections.shape)}, labels {tuple(labels.shape)} and prototypes "
            f"{tuple(prototypes.shape)}: expected (V, B, K), (B,) and (C, K)"
        )
    if not 0 < temperature < math.inf:
        raise InputError(f"the temperature of {arg('loss', 'bcl')} must be positive and finite, got {temperature:g}")
    n_views, n_samples, _ = projections.shape
    anchors = projections.flatten(0, 1)  # (A, K), A = V * B
    others = torch.cat([anchors, prototypes])  # (A + C, K)
    own = labels.repeat(n_views)
    every = torch.arange(len(prototypes), device=labels.device)
    classes = torch.cat([own, every])
    itself = torch.eye(len(anchors), len(others), dtype=torch.bool, device=labels.device)
    positive = (own[:, None] == classes) & ~itself

    similarity = anchors @ others.T / temperature  # (A, A + C)
    size = torch.zeros_like(every).index_add(0, classes, torch.ones_like(classes))  # |B_j|, (C,)
    size_without = (size[own] - 1).to(similarity)[:, None]  # (A, 1)
    log_size = torch.where(positive, size_without.log(), size.to(similarity).log()[classes])
    log_sum = (similarity - log_size).masked_fill(itself, -math.inf).logsumexp(dim=1)
    attraction = (similarity * positive / size_without).sum(dim=1)
    return (log_sum - attraction).view(n_views, n_samples).mean(dim=0)
