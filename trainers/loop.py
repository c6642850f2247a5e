"""The training loop: one epoch for any recipe, and the state that is needed to continue.

At the start of each epoch the generators are seeded with (seed, epoch, rank), so that no generator has to be saved: an
interrupted run continues from its last epoch with the same result; on a CPU bit for bit.
"""

import dataclasses
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.autodiff import distributed, per_sample
from landscape.autodiff.batch_statistics import batch_statistics_constant, coupling
from landscape.autodiff.called import evaluating
from landscape.autodiff.wide import place, zeros
from landscape.data.datasets import Samples
from landscape.errors import InputError, NumericalError, arg
from landscape.networks import classifiers, losses, models
from landscape.networks.models import failures_named
from trainers import schedule
from trainers.batches import Batches
from trainers.class_sam import ClassSAM, class_conditional
from trainers.evaluation import classifier_of
from trainers.gkp import GKP
from trainers.gsa import GSA
from trainers.losses import (
    BCL,
    ContrastiveHead,
    balanced_contrastive,
    bcl_of,
    effective_number_weights,
    options_of,
    reweighted,
)
from trainers.optimizers import optimizer_of
from trainers.passes import alone, flat, gradient, hand_over, kept_statistics, length, trainable
from trainers.recipes import Recipe
from trainers.sam import SAM, shares

SHUFFLE, STEPS, FIRST, TRIAL = range(4)  # numbers of the streams of random numbers


class Trainer:
    """A model under training by a recipe."""

    def __init__(self, recipe: Recipe, model: nn.Module, train: Samples, *, device: torch.device, workers: int = 0):
        """Prepare the training; only the initial weights of bcl's head are random here.

        Args:
            recipe: with its views set.
            model: inputs (B, ...) -> logits (B, C). It is moved to the device and trained.
            train: the training samples. Their labels count, not the class counts that they state.
            device: of the training.
            workers: number of processes that read images from files.

        Raises:
            InputError: a trial with a few samples shows that model, loss and data do not fit together.
            NumericalError: the loss is not finite, or the samples of a batch influence each other although the recipe
                requires that they do not.
        """
        if not any(p.requires_grad for p in model.parameters()):
            raise InputError("the model has no parameters to train: leave requires_grad on")
        self.n_classes = len(train.class_names)
        # losses, groups and penalties count what is trained on, while selected samples state the counts of their set
        counts = np.bincount(train.labels, minlength=self.n_classes)
        train = dataclasses.replace(train, class_counts=counts)
        self.recipe, self.train, self.device = recipe, train, device
        self.model = model.to(device)
        if recipe.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stubs lack it
        self.epoch = 0  # done
        self.group_of: Tensor | None = None  # (C,) on the CPU, once there are groups
        self.penalty: GKP | None = None
        self.head: ContrastiveHead | None = None
        self._bcl = bcl_of(options_of(recipe.loss_options)) if recipe.loss == "bcl" else BCL()
        if recipe.loss == "bcl":
            n_features = classifiers.class_weights(model, self.classifier).shape[1]
            with seeded(device, recipe.seed, FIRST):
                self.head = ContrastiveHead(n_features, int(self._bcl.hidden), int(self._bcl.projected)).to(device)
        self._reduce = distributed.all_reduce_sum if distributed.world() > 1 else alone
        if recipe.drop_last and len(train) < recipe.batch_size:
            raise InputError(
                f"{arg('drop_last', True)} leaves no batch of {arg('batch_size', recipe.batch_size)}: {len(train)} "
                "samples"
            )
        self._smallest = len(train) // math.ceil(len(train) / recipe.batch_size) // distributed.world()
        if not self._smallest:
            raise InputError(
                f"batches of {recipe.batch_size} do not give each of {distributed.world()} ranks a sample: "
                f"raise {arg('batch_size')}, or start fewer"
            )
        self.batches = Batches(train, recipe.views, device, workers=workers)
        self._forward: Callable[[Tensor], Any] = torch.compile(model) if recipe.compile else model
        self.criterion = self._loss()
        self._weighted = self.criterion
        if recipe.reweight == "drw":
            weights = effective_number_weights(train.class_counts, recipe.drw_beta).to(place(device))
            self._weighted = reweighted(self.criterion, weights, self._reduce)
        self._both = self.model if self.head is None else nn.ModuleList([self.model, self.head])
        self.optimizer = optimizer_of(recipe, self._both, train, self._reduce)
        self._base = self.optimizer.base if isinstance(self.optimizer, SAM | GSA) else self.optimizer
        self._parameters = trainable(self._base.param_groups)
        # sums over an epoch's steps, read at its end: share of GKP's pull, steps with a pull; clipped radii, all radii
        self._effect = zeros(4, device)
        self._set_rate(0)  # what measures before the first step reads it
        self._try_out()

    @property
    def n_batches(self) -> int:
        """Number of steps per epoch."""
        size, of_batch = len(self.train), self.recipe.batch_size
        return size // of_batch if self.recipe.drop_last else math.ceil(size / of_batch)

    @property
    def base(self) -> torch.optim.Optimizer:
        """The base optimizer, inside SAM or GSA."""
        return self._base

    @cached_property
    def classifier(self) -> str:
        """Name of the model's last linear layer."""
        return classifier_of(self.model, self.train)

    @cached_property
    def encoder(self) -> list[str]:
        """Names of the parameters before the classifier, which GKP preserves."""
        return classifiers.encoder(self.model, self.classifier)

    def _loss(self) -> losses.Loss:
        if self.recipe.loss == "bcl":
            return losses.build("logit-adjust", self.train.class_counts, tau=self._bcl.tau)
        return losses.build(self.recipe.loss, self.train.class_counts, **options_of(self.recipe.loss_options))

    def _try_out(self) -> None:
        """Evaluate model and loss on the smallest batch that a step may have, without lasting effects."""
        r = self.recipe
        self.model.train()
        with seeded(self.device, r.seed, TRIAL), kept_statistics(self._both):
            views, labels = self.batches.get(torch.arange(min(4, self._smallest)))
            with failures_named(views[0], self._remedy(views[0])):
                values, _ = self._losses(views, labels, self.model)
            if not bool(values.isfinite().all()):
                found = values.detach().mean().item()
                raise NumericalError(
                    f"the loss is not finite before the first step ({found:g}): look at the data, the loss and the "
                    "model's first weights"
                )
            if not values.requires_grad:
                raise InputError("the loss does not depend on the model's parameters: no gradient reaches them")
            if r.sharpness == "gsa" and r.first_pass == "decoupled":
                self._try_decoupled()
        self._refuse_coupling()

    def _try_decoupled(self) -> None:
        """Refuse a model in which samples meet; GSA would then need as many backward passes as the exact first pass."""
        most = min(32, len(self.train))
        met: NumericalError | None = None
        for n in (most, max(most - 1, 3)):  # as long as one of them may be another axis, which GSA tells apart
            views, labels = self.batches.get(torch.arange(n))
            try:
                with batch_statistics_constant(self.model):
                    per_sample.check(self.model, partial(self._first_losses, views, labels))
                return
            except NumericalError as error:
                met = error
        raise NumericalError(f"{met}; use {arg('first_pass', 'exact')}") from met

    def _refuse_coupling(self) -> None:
        """Refuse a model in which samples meet in eval mode for GKP, whose Fisher information is of single samples."""
        with evaluating(self.model):
            met = coupling(self.model) if self.recipe.gkp else []
        if met:
            raise InputError(
                f"{arg('gkp', True)} takes the gradient of each sample by itself, but {met[0]} is a batch norm without "
                "running statistics, which normalises by the batch in eval mode too: build it with "
                f"track_running_stats=True, or leave {arg('gkp', True)} out"
            )

    def _first_losses(self, views: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        return self._losses(views, labels, self.model)[0]

    def _remedy(self, inputs: Tensor) -> str:
        """Return a possible remedy if the model or the loss fails in the trial."""
        if inputs.dtype == torch.uint8:
            return f"; these are bytes: pass {arg('normalize')}, such as {arg('normalize', 'none')}"
        if self._smallest == 1:
            return f"; batches of {self.recipe.batch_size} leave a step with one sample: raise {arg('batch_size')}"
        return ""

    def regroup(self, group_of: np.ndarray, penalty: GKP | None) -> None:
        """Change the groups from the next epoch on.

        Args:
            group_of: number of each class's group, (C,).
            penalty: of GKP; None if the recipe has none.
        """
        self.group_of = torch.from_numpy(np.asarray(group_of, dtype=np.int64))
        self.penalty = penalty
        if isinstance(self.optimizer, GSA):
            self.optimizer.regroup(np.bincount(group_of, self.train.class_counts).astype(int).tolist())

    def run_epoch(self, progress: Callable[[int, int], None] | None = None) -> dict[str, float]:
        """Train for one epoch.

        An epoch is divided into ceil(N / batch_size) batches with sizes that differ by at most one: no sample is
        dropped, and batch norm gets no batch of one sample unless batches have two. With drop_last all batches are
        full, and the remaining samples are not used in this epoch.

        Args:
            progress: called with (finished batches, number of batches).

        Returns:
            learning_rate of the last step; train_loss and train_accuracy over the samples; pull_share and
            clipped_share over the steps, nan if there is no pull or no radius.

        Raises:
            NumericalError: the loss is no longer finite; the model's weights are then useless.
        """
        r, size = self.recipe, len(self.train)
        n_batches = self.n_batches
        with seeded(torch.device("cpu"), r.seed, SHUFFLE, self.epoch):
            order = torch.randperm(size)
        order = order[: n_batches * r.batch_size] if r.drop_last else order
        mine = [b.tensor_split(distributed.world())[distributed.rank()] for b in order.tensor_split(n_batches)]
        if self.group_of is not None and r.first_pass == "decoupled":  # which takes slices of adjacent samples
            groups = self.group_of[torch.from_numpy(self.train.labels)]
            mine = [b[groups[b].argsort(stable=True)] for b in mine]
        self.model.train()
        if r.sharpness == "sam" and isinstance(self.optimizer, SAM):
            self.optimizer.rho = schedule.radius(
                self.epoch, r.epochs, r.rho_schedule, r.rho, r.rho if r.rho_end is None else r.rho_end, r.drw_start
            )
        sums = zeros(2, self.device)  # losses, hits; read when the epoch ends
        with seeded(self.device, r.seed, STEPS, self.epoch, distributed.rank()):
            for b, (views, labels, indices) in enumerate(self.batches.epoch(mine)):
                rate = self._set_rate(self.epoch * n_batches + b)
                values, hits = self.step(views, labels, self.train.labels[indices.numpy()])
                sums += torch.stack([values.sum(), hits.sum()]).to(sums.device)
                if progress:
                    progress(b + 1, n_batches)
        distributed.all_reduce_sum(sums)
        distributed.broadcast(b for b in self.model.buffers())
        loss, accuracy = (sums / len(order)).tolist()
        if not math.isfinite(loss):
            raise NumericalError(
                f"the loss is not finite in epoch {self.epoch + 1} of {r.epochs} ({loss:g}): {self.remedy()}"
            )
        self.epoch += 1
        pull, steps, clipped, radii = self._effect.tolist()
        self._effect.zero_()
        return {
            "learning_rate": rate,
            "train_loss": loss,
            "train_accuracy": accuracy,
            "pull_share": pull / steps if steps else math.nan,
            "clipped_share": clipped / radii if radii else math.nan,
        }

    def remedy(self) -> str:
        """Return advice for keeping the loss finite."""
        r = self.recipe
        radius = {
            "sam": f", or {arg('rho')}, now {r.rho:g}",
            "gsa": f", or {arg('radius_scale')}, now {r.radius_scale:g}",
        }
        pull = f", or {arg('preservation')}, now {r.preservation:g}" if r.gkp else ""
        return (
            f"lower {arg('lr')}, now {r.lr:g}{radius.get(r.sharpness, '')}{pull}, or raise {arg('warmup_epochs')}, "
            f"now {r.warmup_epochs}"
        )

    def _set_rate(self, step: int) -> float:
        """Set the learning rate of a step, counted from 0, and return it."""
        rate = self._rate(step)
        for group in self._base.param_groups:
            group["lr"] = rate
        return rate

    def _rate(self, step: int) -> float:
        r, n_batches = self.recipe, self.n_batches
        length = r.warmup_epochs * n_batches
        risen = step if r.warmup_by == "step" else (step // n_batches + 1) * n_batches - 1  # the epoch's last step's
        factor = schedule.warmup(risen, length)
        if r.schedule == "cosine":
            factor *= schedule.cosine(step, r.epochs * n_batches, length)
        elif r.schedule == "multistep":
            factor *= schedule.multistep(step // n_batches, r.milestones or (), r.gamma)
        return r.lr * factor

    def step(self, views: tuple[Tensor, ...], labels: Tensor, classes: np.ndarray) -> tuple[Tensor, Tensor]:
        """Make one step on a batch.

        Args:
            views: of the samples, (B, ...) each.
            labels: (B,), on the device.
            classes: the same labels on the CPU, (B,).

        Returns:
            The losses of the first pass, and whether it classified each sample correctly, (B,) each.
        """
        hits: list[Tensor] = []
        groups = None if self.group_of is None else self.group_of[torch.from_numpy(classes)]
        # the first pass has several backward passes, but a compiled graph allows only one
        by_group = isinstance(self.optimizer, ClassSAM) or (isinstance(self.optimizer, GSA) and groups is not None)

        def run() -> Tensor:
            forward = self.model if by_group and not hits else self._forward
            values, right = self._losses(views, labels, forward, torch.from_numpy(classes))
            hits.append(right)
            return values

        self._base.zero_grad()
        if isinstance(self.optimizer, ClassSAM):
            values = self.optimizer.gradients(run, labels)
        elif isinstance(self.optimizer, SAM):
            values = self.optimizer.gradients(run)
        elif isinstance(self.optimizer, GSA) and groups is not None:
            values = self.optimizer.gradients(run, groups)
            radii = self.optimizer.radii
            if radii is not None:
                clipped = torch.stack([radii.clipped.sum(), (radii.radius > 0).sum()])
                self._effect[2:] += clipped.to(self._effect.device)
        else:
            values = run()
            g = gradient(values, shares(values, self._reduce), self._parameters)
            self._reduce(g)
            hand_over(g, self._parameters)
        if self.penalty is not None and groups is not None:
            self._preserve(self.penalty, groups)
        self._base.step()
        return values.detach(), hits[0]

    def _preserve(self, penalty: GKP, groups: Tensor) -> None:
        """Combine the gradients of the data and of GKP by alpha and 1 - alpha (equation 16), and record the shares."""
        r = self.recipe
        alpha = schedule.mixing(self.epoch, r.epochs, r.alpha_start, r.alpha_end)
        counts = torch.bincount(groups, minlength=len(penalty.centres)).to(
            self.device, torch.float32, non_blocking=True
        )
        distributed.all_reduce_sum(counts)
        named = dict(self.model.named_parameters())
        encoder = [named[name] for name in self.encoder]
        pull = penalty.gradient(self._place(encoder), counts / counts.sum()).mul_(1 - alpha)
        for p in self._parameters:
            if p.grad is not None:
                p.grad.mul_(alpha)
        data, own = length(flat(p.grad for p in self._parameters if p.grad is not None)), length(pull)
        self._effect[0] += torch.nan_to_num(own / (own + data)).to(self._effect.device)
        self._effect[1] += 1
        for p, piece in zip(encoder, torch.split(pull, [p.numel() for p in encoder]), strict=True):
            piece = piece.view_as(p)
            p.grad = piece if p.grad is None else p.grad.add_(piece)

    def _place(self, encoder: Sequence[Tensor]) -> Tensor:
        """Return the point for GKP's gradient: theta or, as in the released code, GSA's perturbed theta."""
        theta = flat(encoder)
        if self.recipe.pull_at == "theta" or not isinstance(self.optimizer, GSA) or self.optimizer.perturbation is None:
            return theta
        pieces = torch.split(self.optimizer.perturbation, [p.numel() for p in self._parameters])
        moved_by = {id(p): piece for p, piece in zip(self._parameters, pieces, strict=True)}
        return theta + torch.cat([moved_by[id(p)] for p in encoder])

    def _losses(
        self,
        views: tuple[Tensor, ...],
        labels: Tensor,
        forward: Callable[[Tensor], Any],
        on_host: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of each sample with its graph, and whether it is classified correctly, (B,) each."""
        late = self.recipe.reweight == "drw" and self.epoch >= schedule.deferred(
            self.recipe.epochs, self.recipe.drw_start
        )
        criterion = self._weighted if late else self.criterion
        inputs = views[0] if self.head is None else torch.cat(views)
        if self.recipe.channels_last and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bf16):
            if self.recipe.sharpness == "cc-sam":
                return self._class_conditional(inputs, labels, labels.cpu() if on_host is None else on_host)
            if self.head is None:
                logits = models.logits_of(forward(inputs), self.n_classes).float()
                contrast = None
            else:
                logits, contrast = self._contrast(self.head, inputs, labels, forward)
        values = criterion(logits, labels)
        if values.shape != labels.shape:
            raise InputError(
                f"loss returned shape {tuple(values.shape)} for a batch of {len(labels)}: it must return one value per "
                'sample; use reduction="none"'
            )
        if contrast is not None:
            values = self._bcl.ce_weight * values + self._bcl.contrast_weight * contrast
        return values, logits.detach().argmax(dim=1) == labels

    def _contrast(
        self, head: ContrastiveHead, inputs: Tensor, labels: Tensor, forward: Callable[[Tensor], Any]
    ) -> tuple[Tensor, Tensor]:
        """Return the first view's logits (B, C) and the contrastive loss of the others, (B,).

        The head projects all views, including the first one, as in the released code; its batch norm uses all of them.
        """
        with classifiers.Tap(self.model, self.classifier) as tap:
            logits = models.logits_of(forward(inputs), self.n_classes)
            features = tap.features
        n = len(labels)
        projections, prototypes = head(features, classifiers.class_weights(self.model, self.classifier))
        others = projections[n:].view(-1, n, projections.shape[1]).float()
        contrast = balanced_contrastive(others, labels, prototypes.float(), self._bcl.temperature)
        return logits[:n].float(), contrast

    def _class_conditional(self, inputs: Tensor, labels: Tensor, on_host: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses of CC-SAM, and whether the unperturbed classifier classifies each sample correctly."""
        with classifiers.Tap(self.model, self.classifier) as tap:
            logits = models.logits_of(self.model(inputs), self.n_classes).float()
            features = tap.features
        values = class_conditional(
            self.criterion,
            self.model.get_submodule(self.classifier),
            features,
            on_host,
            self.criterion(logits, labels),
            torch.from_numpy(self.train.class_counts),
            scale=self.recipe.radius_scale,
            share=self.recipe.sharpness_share,
        )
        return values, logits.detach().argmax(dim=1) == labels

    def state(self) -> dict[str, Tensor]:
        """Return everything that changes from step to step, by name, for `restore`."""
        found = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        if self.head is not None:
            found |= {f"head.{name}": t for name, t in self.head.state_dict().items()}
        for i, p in enumerate(self._parameters):
            momentum = self._base.state[p].get("momentum_buffer")
            if momentum is not None:
                found[f"momentum.{i}"] = momentum
        if isinstance(self.optimizer, GSA) and self.optimizer.average is not None:
            found["average"] = self.optimizer.average
        return found

    def restore(self, epoch: int, state: Mapping[str, Tensor]) -> None:
        """Restore a state.

        Args:
            epoch: number of finished epochs at that time.
            state: from `state`.
        """
        self.epoch = epoch
        self.model.load_state_dict(_below("model.", state))
        if self.head is not None:
            self.head.load_state_dict(_below("head.", state))
        for i, p in enumerate(self._parameters):
            if f"momentum.{i}" in state:
                self._base.state[p]["momentum_buffer"] = state[f"momentum.{i}"].to(p)
        if isinstance(self.optimizer, GSA) and "average" in state:
            self.optimizer.average = state["average"].to(self.device)


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}


@contextmanager
def seeded(device: torch.device, *entropy: int) -> Generator[None, None, None]:
    """Seed torch's global generators, which layers, dropout and augmentation use; restore them at the end.

    Args:
        device: its generator is seeded besides that of the CPU.
        entropy: nonnegative numbers; different numbers give independent streams.

    Yields:
        Nothing.
    """
    seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield
