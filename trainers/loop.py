"""Training, plainly: stochastic gradient descent on the mean of per-sample losses, one loop from top to bottom.

The learning rate of step t of T rises linearly over the first W steps, then falls along half a cosine to zero:

    rate(t) = lr * (t + 1) / W                                  for t < W
    rate(t) = lr / 2 * (1 + cos(pi * (t - W) / (T - W)))        from there on

(Goyal et al. 2017, section 2.2; Loshchilov and Hutter 2017, equation 5 without restarts.) Everything random comes from
one seed: on a CPU with the same number of threads the same call gives the same weights, bit for bit. There is no
augmentation.
"""

import dataclasses
import math
from collections.abc import Callable, Generator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from landscape import devices, losses, models
from landscape.datasets import Samples
from landscape.errors import DataError, InputError, NumericalError

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits (B, C), labels (B,)) -> one value per sample (B,)."""

Progress = Callable[[int, int, str], None]
"""(epochs done, epochs in all, a line of text) -> None."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class History:
    """How training went, one row for each of E epochs.

    The training columns are sums over the epoch's steps, so each sample was seen by the weights of its own step, in
    training mode. The test columns belong to the weights at the end of the epoch, in eval mode.
    """

    learning_rate: np.ndarray  # (E,) of the epoch's last step
    train_loss: np.ndarray  # (E,) mean over samples
    train_accuracy: np.ndarray  # (E,)
    test_loss: np.ndarray  # (E,) mean over samples
    test_correct: np.ndarray  # (E, C) int64, test samples of each class that are classified correctly
    test_counts: np.ndarray  # (C,) int64, test samples of each class

    @property
    def test_accuracy(self) -> np.ndarray:
        """Accuracy over all test samples, (E,)."""
        return np.asarray(self.test_correct.sum(axis=1) / self.test_counts.sum())

    @property
    def test_accuracy_per_class(self) -> np.ndarray:
        """Accuracy over the test samples of each class, (E, C); nan for a class that has none."""
        counts = np.where(self.test_counts > 0, self.test_counts, np.nan)
        return np.asarray(self.test_correct / counts)


def train(
    model: nn.Module,
    train_samples: Samples,
    test_samples: Samples,
    *,
    epochs: int,
    loss: str = "ce",
    batch_size: int = 64,
    lr: float = 0.1,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 5e-4,
    warmup_epochs: int = 1,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
) -> History:
    """Train a model in place.

    An epoch is cut into ceil(N / batch_size) batches whose sizes differ by one at most: no sample is dropped, and
    batch norm never meets a last batch of one.

    Args:
        model: inputs (B, ...) -> logits (B, C). It is moved to the device, trained, and left there in eval mode.
        train_samples: N samples to learn from.
        test_samples: samples to report on after each epoch; nothing is chosen by them.
        epochs: passes over the training samples.
        loss: a name of `losses.names()` or package.module:callable.
        batch_size: samples of one step, at most.
        lr: learning rate at the end of the warm-up; 0.1 suits batches of 64 to 256 of networks with batch norm.
        momentum: of the gradient, from 0 to below 1.
        nesterov: look ahead along the momentum.
        weight_decay: added to the gradient as weight_decay * theta, for all parameters.
        warmup_epochs: over which the learning rate rises; 5 for deep networks and large batches.
        seed: of the order of samples and of dropout.
        device: "cpu", "cuda", "cuda:1"; None takes a GPU where there is one.
        progress: is told after each epoch.

    Returns:
        The history.

    Raises:
        InputError: an option, or the model or loss, does not fit.
        DataError: the two splits do not have the same classes, or a sample cannot be read.
        NumericalError: the loss is not finite any more; the model's weights are of no use then.
    """
    _check(epochs, batch_size, lr, momentum, nesterov, weight_decay, warmup_epochs, seed)
    if train_samples.class_names != test_samples.class_names:
        raise DataError(
            f"{train_samples.name} has {len(train_samples.class_names)} classes in its train split and "
            f"{len(test_samples.class_names)} in its test split, or other names: both must have the same"
        )
    if not any(p.requires_grad for p in model.parameters()):
        raise InputError("the model has no parameters to train: leave requires_grad on")
    place = devices.choose(device)
    model.to(place)
    train_samples, test_samples = _moved(train_samples, place), _moved(test_samples, place)
    criterion = losses.build(loss, train_samples.class_counts)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
    shuffle = torch.Generator().manual_seed(seed)
    n_batches = math.ceil(len(train_samples) / batch_size)
    rates, train_losses, train_accuracies, test_losses, test_correct = [], [], [], [], []

    with seeded(seed, place):
        for epoch in range(epochs):
            model.train()
            loss_sums, hits = [], []  # stay on the device until the epoch ends: reading a number waits for the GPU
            order = torch.randperm(len(train_samples), generator=shuffle)
            for batch, indices in enumerate(order.tensor_split(n_batches)):
                rate = lr * schedule(epoch * n_batches + batch, epochs * n_batches, warmup_epochs * n_batches)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                inputs, labels = train_samples.batch(indices, place)
                values, correct = _forward(model, criterion, inputs, labels, len(train_samples.class_names))
                optimizer.zero_grad()
                torch.autograd.backward(values.mean())
                optimizer.step()
                loss_sums.append(values.detach().sum())
                hits.append(correct.sum())

            rates.append(rate)
            train_losses.append(float(torch.stack(loss_sums).cpu().double().sum()) / len(train_samples))
            train_accuracies.append(int(torch.stack(hits).sum()) / len(train_samples))
            test_loss, right = evaluate(model, test_samples, criterion)
            test_losses.append(test_loss)
            test_correct.append(right)
            if not math.isfinite(train_losses[-1]) or not math.isfinite(test_loss):
                raise NumericalError(
                    f"the loss is not finite in epoch {epoch + 1} of {epochs} (train {train_losses[-1]:g}, test "
                    f"{test_loss:g}): lower --lr, now {lr:g}, or raise --warmup-epochs, now {warmup_epochs}"
                )
            if progress:
                accuracy = right.sum() / len(test_samples)
                progress(epoch + 1, epochs, f"loss {train_losses[-1]:.3g}, test accuracy {accuracy:.1%}")

    return History(
        learning_rate=np.array(rates),
        train_loss=np.array(train_losses),
        train_accuracy=np.array(train_accuracies),
        test_loss=np.array(test_losses),
        test_correct=np.array(test_correct),
        test_counts=np.bincount(test_samples.labels, minlength=len(test_samples.class_names)),
    )


@torch.no_grad()
def evaluate(model: nn.Module, samples: Samples, criterion: Loss, *, batch_size: int = 256) -> tuple[float, np.ndarray]:
    """Measure a model in eval mode, in which it is left.

    Args:
        model: inputs (B, ...) -> logits (B, C).
        samples: what to measure it on.
        criterion: loss of each sample.
        batch_size: samples of one pass; changes memory, not the result.

    Returns:
        The mean loss over the samples, and how many of each class are classified correctly, (C,) int64.
    """
    model.eval()
    place = next(model.parameters()).device
    n_classes = len(samples.class_names)
    loss_sums, hits = [], []
    for indices in torch.arange(len(samples)).tensor_split(math.ceil(len(samples) / batch_size)):
        values, correct = _forward(model, criterion, *samples.batch(indices, place), n_classes)
        loss_sums.append(values.sum())
        hits.append(correct)
    right = torch.cat(hits).cpu().numpy()
    mean = float(torch.stack(loss_sums).cpu().double().sum()) / len(samples)
    return mean, np.bincount(samples.labels[right], minlength=n_classes)


def schedule(step: int, steps: int, warmup: int) -> float:
    """Return the learning rate of a step as a share of its largest value.

    Args:
        step: t, from 0 to steps - 1.
        steps: T.
        warmup: W, steps of the linear rise, at most T.

    Returns:
        The share, above 0 and at most 1.
    """
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


@contextmanager
def seeded(seed: int, device: torch.device) -> Generator[None, None, None]:
    """Seed torch's global generators, from which layers are initialised and dropout draws; give them back at the end.

    Args:
        seed: at least 0.
        device: whose generator is seeded besides the CPU's.

    Yields:
        Nothing.
    """
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield


def _forward(
    model: nn.Module, criterion: Loss, inputs: Tensor, labels: Tensor, n_classes: int
) -> tuple[Tensor, Tensor]:
    """Return the loss of each sample and whether it is classified correctly, (B,) each."""
    logits = models.logits_of(model(inputs), n_classes)
    values = criterion(logits, labels)
    if values.shape != labels.shape:
        raise InputError(
            f"loss returned shape {tuple(values.shape)} for a batch of {len(labels)}: it must return one value per "
            'sample; use reduction="none"'
        )
    return values, logits.argmax(dim=1) == labels


def _moved(samples: Samples, device: torch.device) -> Samples:
    """Keep inputs that are in memory on the device: bytes are moved once and become floats there."""
    return samples if samples.inputs is None else dataclasses.replace(samples, inputs=samples.inputs.to(device))


def _check(
    epochs: int,
    batch_size: int,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    warmup_epochs: int,
    seed: int,
) -> None:
    for fits, message in (
        (epochs >= 1, f"--epochs must be at least 1, got {epochs}"),
        (batch_size >= 1, f"--batch-size must be at least 1, got {batch_size}"),
        (0 < lr < math.inf, f"--lr must be a positive number, got {lr}"),
        (0 <= momentum < 1, f"--momentum must be at least 0 and below 1, got {momentum}"),
        (momentum > 0 or not nesterov, "--nesterov needs a --momentum above 0"),
        (0 <= weight_decay < math.inf, f"--weight-decay must not be negative, got {weight_decay}"),
        (0 <= warmup_epochs <= epochs, f"--warmup-epochs must be from 0 to --epochs {epochs}, got {warmup_epochs}"),
        (seed >= 0, f"--seed must not be negative, got {seed}"),
    ):
        if not fits:
            raise InputError(message)
