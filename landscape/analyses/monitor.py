"""Measure the loss landscape while a network trains: the numbers of a series, computed between two steps.

    monitor = ls.Monitor(ls.make_objective(model, data, parts="class"), optimizer, out="monitor.h5")
    for ... in loader:
        ...; optimizer.step()
        monitor.step()

A measurement copies the weights of the model and uses the copy: it changes neither the model, its gradients, the
optimizer nor the state of any random generator. Beside the spectra of each part and of all samples together it has:

    critical sharpness   2 / eta_p, with eta_p the smallest step along the gradient g of all samples at which the loss
                         of part p rises: at most ten forward passes over the part
    alignment            |cos(g_p, v)| with v the eigenvector of lambda_max of all samples
    batch sharpness      mean over batches B of g_B^T H_B g_B / |g_B|^2

On a parabola the critical sharpness is g^T H_p g / <g_p, g>, and the rise divided by the step size is linear in the
step size. The zero of this line is interpolated between steps that grow or shrink by a factor of two.

The numbers of a measurement depend only on the weights, not on earlier measurements; only the search for the critical
sharpness begins at the one before where lambda_max is not measured. A Lanczos run that starts from the
eigenvector of the measurement before would take more products, not fewer: within ten epochs the vector turns (|cos|
below 0.6 in the median, ResNet-20 on CIFAR-10-LT), and most products serve the certificate that no larger eigenvalue
was missed, for which random noise is the best start.

Sources: Kalra et al. 2026, "A scalable measure of loss landscape curvature for analyzing the training dynamics of LLMs"
(arXiv 2601.16979), also for the loss of one set along the update of another; Andreyev and Beneventano 2024, "Edge of
stochastic stability" (arXiv 2412.20553), for batches; Cohen et al. 2021 for 2 / learning rate.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import nn

from landscape.analyses import callbacks, descent
from landscape.analyses.options import Trace
from landscape.analyses.spectrum import spectrum
from landscape.analyses.untouched import untouched, without_new_hooks
from landscape.autodiff import distributed
from landscape.autodiff.wide import place
from landscape.callables import checked
from landscape.curvature import traces
from landscape.curvature.kinds import HESSIAN, find
from landscape.data.datasets import Samples
from landscape.data.partition import LEFT_OUT
from landscape.errors import InputError, NumericalError, StoreError, arg, check_choice
from landscape.networks.copies import converted, copied, unwrapped
from landscape.objective import runs
from landscape.objective.objective import Objective
from landscape.objective.provenance import about_run, refuse_others
from landscape.results import Series, Spectrum, disk, hdf5, store
from landscape.results.axes import concatenate
from landscape.results.series import SpectrumSeries, joined, of_one

log = logging.getLogger(__name__)

What: TypeAlias = Literal["lambda_max", "trace", "critical_sharpness", "alignment", "batch_sharpness"]
WHAT: tuple[What, ...] = get_args(What)
"""The measurements. lambda_max and trace come from one run, which alignment needs too."""

SAMPLES, OF_ALL = 32, 2
"""Default number of samples of each part that are measured; of all samples together it is `OF_ALL` times that."""
EPOCHS = 20
"""Default number of epochs between measurements."""
_CHEAP = {"sampling_errors": False, "tol": 0.05, "gap": 0.25}  # the error of an eigenvalue is its residual's square
_LAST_STEP = 2**53  # the file has float64
_OPTIONS = signature(spectrum).parameters.keys() - {"objective", "out", "overwrite", "progress"}
_FREE = {"measuring", "every"}  # what may change in a training that continues
_FEW_OUTPUTS = 2  # for these an exact trace takes about as long as an estimate from drawn rows


class Monitor:
    """Measures a network while it trains; call `step` after each step of the optimizer.

    The training is not changed. On a GPU, a measurement resets PyTorch's statistics of peak memory.
    """

    @checked
    def __init__(
        self,
        objective: Objective | Callable[[], Objective],
        optimizer: torch.optim.Optimizer | None = None,
        *,
        model: nn.Module | None = None,
        every: int | None = None,
        what: Sequence[What] = WHAT,
        samples: int | None = SAMPLES,
        batch_size: int = 128,
        batches: int = 2,
        seed: int = 0,
        out: str | Path | None = None,
        start: int = 0,
        overwrite: bool = False,
        **options: Any,
    ) -> None:
        """Prepare to measure.

        Args:
            objective: of the network that is trained, with the data and the parts to measure, from `make_objective`; or
                a function that returns it, which is called when it is first needed.
            optimizer: its learning rate and momentum determine the edge of stability.
            model: the network that is trained; None means the one from which the objective was made.
            every: measure after each multiple of this number of steps. None measures after the first step, and then
                every twenty epochs, of the objective's samples in batches of `batch_size`.
            what: the numbers to measure.
            samples: the largest number of samples of each part, drawn once with `seed`; of all samples together it is
                twice that. None uses all samples.
            batch_size: samples per batch of the training, for the batch sharpness and for `every`.
            batches: number of batches for the batch sharpness.
            seed: of the draws.
            out: result file, rewritten after each measurement.
            start: number of steps before this training continues. Measurements of earlier steps in `out` are kept,
                later ones are removed.
            overwrite: replace an existing file.
            options: of `spectrum`, such as `tol` or `density`. By default there are no errors over samples, `tol` is
                0.05, `gap` is 0.25, and `trace` is "sampled" for models with more than two outputs where that is
                possible.

        Raises:
            InputError: an option out of its range.
            StoreError: `out` exists and `start` is 0, or it holds measurements of other parts.
        """
        for number in what:
            check_choice("what", number, WHAT)
        unknown = [name for name in options if name not in _OPTIONS]
        if unknown:
            raise InputError(f"{arg(unknown[0])} is no option of a monitor or of the spectra that it measures")
        at_least: dict[str, tuple[int | None, int]] = {"every": (every, 1), "samples": (samples, 2)}
        at_least |= {"batch_size": (batch_size, 1)}
        at_least |= {"batches": (batches, 1), "seed": (seed, 0), "start": (start, 0)}
        for name, (value, least) in at_least.items():
            if value is not None and value < least:
                raise InputError(f"{arg(name)} must be at least {least}, got {value}")
        if not what:
            raise InputError(f"{arg('what')} is empty: choose from {', '.join(WHAT)}")
        self._latest: callbacks.LatestStep | None = None
        self.optimizer, self.every, self.out = optimizer, every, None if out is None else Path(out)
        self._given, self._model = objective, model
        self._what, self._samples, self._seed = tuple(what), samples, seed
        self._batch_size, self._batches, self._options = batch_size, batches, options
        self._step, self._measured = start, -1
        self._begun, self._spent = time.perf_counter(), 0.0
        self._done: list[Series] = []
        self._taken_up, self._stamp = False, None if self.out is None else disk.stamp(self.out)
        if self.out is not None and distributed.is_main():
            self._take_up(self.out, start, overwrite=overwrite)

    @property
    def optimizer(self) -> Any:
        """The optimizer whose learning rate is stored: that of its latest step, or of the next if there was none."""
        return None if self._latest is None else self._latest.optimizer

    @optimizer.setter
    def optimizer(self, optimizer: Any) -> None:
        if self._latest is not None:
            self._latest.forget()
        self._latest = None if optimizer is None else callbacks.LatestStep(optimizer)

    def _take_up(self, out: Path, start: int, *, overwrite: bool) -> None:
        """Read the measurements of an earlier part of the training."""
        if start == 0 or not out.exists():
            disk.refuse_taken(out, overwrite=overwrite, signature=hdf5.SIGNATURE)
            return
        before = store.load(out)
        options = before.provenance.get("options")
        if not isinstance(before, SpectrumSeries) or not isinstance(options, dict) or "batches" not in options:
            raise StoreError(f"{out} holds a {before.kind}, and no measurements of a monitor: choose another file")
        kept = np.flatnonzero(before.training_step <= start).tolist()
        self._done, self._taken_up = [before.only(k) for k in kept], bool(kept)

    @property
    def series(self) -> Series:
        """All measurements so far.

        Raises:
            InputError: there is no measurement yet.
        """
        if not self._done:
            raise InputError("nothing is measured yet: call step() after the steps of the optimizer, or measure()")
        return joined(self._done)

    @property
    def seconds(self) -> tuple[float, float]:
        """Time of the measurements, and time since the monitor was made, in seconds."""
        return self._spent, time.perf_counter() - self._begun

    @checked
    def step(self, step: int | None = None, *, epoch: float | None = None) -> Series | None:
        """Record that the optimizer has taken a step, and measure if a measurement is due.

        If several processes train one network, all may call this; only the first one measures, by itself.

        Args:
            step: number of steps so far; None counts the calls.
            epoch: number of epochs so far, if it shall be stored.

        Returns:
            The measurement, or None if none was due, and in every process but the first.

        Raises:
            InputError: the model is no longer the one of the objective.
            NumericalError: a loss is not finite.
            StoreError: the file cannot be written.
        """
        before, self._step = self._step, self._step + 1 if step is None else step
        begins = self.every is None and not self._done and self._step > before
        due = begins or self._step // self.interval > before // self.interval
        if self._step == self._measured or not distributed.is_main() or not due:
            return None
        return self.measure(self._step, epoch=epoch)

    __call__ = step

    @property
    def interval(self) -> int:
        """Number of steps between measurements: `every`, or that of twenty epochs."""
        if self.every is not None:
            return self.every
        return max(1, EPOCHS * len(self._everything.members[0]) // self._batch_size)

    @checked
    def measure(self, step: int | None = None, *, epoch: float | None = None) -> Series:
        """Measure now; arguments and errors as for `step`."""
        began = time.perf_counter()
        step = self._step if step is None else step
        last = int(self._done[-1].training_step[0]) if self._done else 0
        if not last <= step <= _LAST_STEP:
            raise InputError(f"{arg('step')} must be from {last}, that of the last measurement, to 2^53, got {step}")
        if epoch is not None and (epoch < 0 or math.isinf(epoch)):
            raise InputError(f"{arg('epoch')} must be a number, at least 0, got {epoch:g}")
        self._step = step
        with untouched(), distributed.apart():
            found = self._found(epoch)
        self._done = [one for one in self._done if one.training_step[0] < self._step] + [found]
        self._measured = self._step
        self._spent += time.perf_counter() - began
        if self.out is not None and distributed.is_main():
            self.write()
        log.info("%r", self)
        return found

    def write(self) -> None:
        """Write all measurements to `out`, as after each measurement.

        Raises:
            InputError: there is no measurement yet, or no file.
            StoreError: the file cannot be written.
        """
        if self.out is None:
            raise InputError(f"this monitor has no file: set {arg('out')}")
        spent, elapsed = self.seconds
        whole = self.series
        taken = {"seconds": round(spent, 3), "of": round(elapsed, 3)}
        whole = replace(whole, provenance={**whole.provenance, "measuring": taken})
        with disk.writing(self.out):
            if disk.stamp(self.out) not in {None, self._stamp}:
                raise StoreError(
                    f"{self.out} has been changed by something else, such as another monitor, and is kept: give each "
                    "monitor a file of its own; the measurements are in monitor.series"
                )
            store.write_result(self.out, whole)
            self._stamp = disk.stamp(self.out)

    def __repr__(self) -> str:
        """Say what measurements have cost, and when the next one comes."""
        spent, elapsed = self.seconds
        if not self._done:
            return "Monitor: nothing is measured yet"
        n = sum(len(one.checkpoints) for one in self._done)
        text = f"Monitor: {n} measurement{'s' * (n > 1)} in {spent:.1f} s, {spent / elapsed:.1%} of {elapsed:.1f} s"
        return f"{text}; the next at step {(self._step // self.interval + 1) * self.interval}"

    def for_lightning(self) -> Any:
        """Return a callback for a Trainer of Lightning, which calls `step` after each step of the optimizer."""
        return callbacks.lightning(self)

    def for_transformers(self) -> Any:
        """Return a callback for a Trainer of Hugging Face, which calls `step` after each step of the optimizer."""
        return callbacks.transformers(self)

    # One measurement --------------------------------------------------------------------------------------------------

    @cached_property
    def _objectives(self) -> tuple[Objective, Objective, Objective]:
        """The objectives of all samples, of a subset of them, and of the parts."""
        own = self._given if isinstance(self._given, Objective) else self._given()
        if not isinstance(own, Objective):
            raise InputError(f"{arg('objective')} returned {type(own).__name__}, and must return an Objective")
        everything = own.alone("all")
        whole = restricted(everything, self._samples and OF_ALL * self._samples, self._seed)
        return everything, whole, restricted(own, self._samples, self._seed)

    @property
    def _everything(self) -> Objective:
        return self._objectives[0]

    def _of_now(self) -> tuple[Objective, Objective, Objective]:
        """Return the objectives at the current weights."""
        everything, whole, parts = self._objectives
        now = everything.at(without_new_hooks(copied(self._trained(everything)), everything.model))
        whole, parts = (replace(own.of_network(now.model), known=now.known) for own in (whole, parts))
        return now, whole, parts

    def _trained(self, objective: Objective) -> nn.Module:
        if self._model is not None:
            return unwrapped(self._model)
        theirs = None if objective._theirs is None else objective._theirs.model()
        if theirs is None:
            raise InputError(f"the network from which the objective was made no longer exists: pass {arg('model')}")
        return theirs

    def _found(self, epoch: float | None) -> Series:
        everything, whole, parts = self._of_now()
        about = self._about(whole, parts)
        if self._taken_up and self.out is not None:
            refuse_others(self.out, self._done[0].provenance, about, free=_FREE)
            self._taken_up = False
        what = self._what
        more: dict[str, Any] = {}
        has_spectrum = bool({"lambda_max", "trace", "alignment"} & set(what))
        some = [part for part in (whole, parts) if part is whole or parts.partition.names != ("all",)]
        results, sharpest = [], None
        for own in some:
            if has_spectrum:
                options = _CHEAP | {"trace": self._trace(own)} | self._options
                if own is whole and "alignment" in what:
                    options["vectors"] = 1
                found = self._spectrum(own, options)
                if own is whole and found.ritz_vectors is not None:
                    sharpest = torch.from_numpy(found.ritz_vectors[0, 0])
                results.append(replace(found, ritz_vectors=None))
            else:
                results.append(unmeasured(own))
        if {"critical_sharpness", "alignment"} & set(what):
            slopes = descent.slopes(some, sharpest)
            if "alignment" in what:
                more["alignment"] = slopes.alignment
            if "critical_sharpness" in what:
                more["critical_sharpness"] = descent.critical_sharpness(some, slopes, self._first(results[0]))
        if "batch_sharpness" in what:
            mean, error = descent.batch_sharpness(everything, self._batch_size, self._batches, self._seed)
            more |= {"batch_sharpness": mean, "batch_sharpness_stderr": error}
        optimizer = runs.of_groups(self._latest.groups) if self._latest is not None else None
        edge, rule = optimizer.edge if optimizer else (None, "")
        return of_one(
            concatenate(results),
            f"step {self._step}",
            epoch=epoch,
            training_step=self._step,
            learning_rate=optimizer.rate if optimizer else None,
            edge=edge,
            edge_rule=rule,
            provenance=about,
            **more,
        )

    def _trace(self, own: Objective) -> Trace:
        """Choose how traces are computed by default."""
        kind = find(self._options.get("operator", HESSIAN.name))
        return "auto" if own.outputs.size <= _FEW_OUTPUTS or traces.refusal(own, kind) else "sampled"

    def _spectrum(self, own: Objective, options: dict[str, Any]) -> Spectrum:
        """Compute a spectrum; in float64 if float32 is not precise enough, as can happen early in a training."""
        try:
            return spectrum(own, **options)
        except NumericalError as error:
            if own.dtype == torch.float64:
                raise
            log.warning("step %d is measured in float64: %s", self._step, error)
        where = place(own.device)
        network = converted(copied(own.model), where, torch.float64)
        return spectrum(replace(own, dtype=torch.float64, device=where).of_network(network), **options)

    def _first(self, result: Spectrum) -> float:
        """Return the first step that the search tries: at this step the sharpest direction would be just stable."""
        sharpness = float(result.lambda_max[0])
        if math.isfinite(sharpness) and sharpness > 0:
            return 2 / sharpness
        known = [] if not self._done else self._done[-1].critical_sharpness[0, :1].tolist()
        return 2 / known[0] if known and 0 < known[0] < math.inf else 1.0

    def _about(self, whole: Objective, parts: Objective) -> dict[str, Any]:
        dropped = {name for name in parts.source if name.startswith(("checkpoint", "weights"))}
        options: dict[str, Any] = {"what": list(self._what), "samples": self._samples, "batch_size": self._batch_size}
        options |= {"batches": self._batches, "seed": self._seed, "every": self.interval}
        options |= {"with_parts": ["all"] if parts.partition.names != ("all",) else []}
        options |= {name: value for name, value in self._options.items() if isinstance(value, str | int | float)}
        source = {name: value for name, value in parts.source.items() if name not in dropped}
        return about_run(options, whole.device, whole.dtype) | source


def of_training(
    model: nn.Module,
    samples: Samples,
    optimizer: torch.optim.Optimizer,
    *,
    out: Path | None,
    start: int,
    of_epoch: int,
    batch_size: int,
) -> Monitor:
    """Return the monitor of `landscape train --monitor`: every class and all samples, with the cross-entropy.

    Args:
        model: the network in training.
        samples: the training data.
        optimizer: of the training.
        out: result file; None for none yet.
        start: number of steps so far.
        of_epoch: number of steps in an epoch.
        batch_size: samples per batch of the training.

    Returns:
        A monitor that measures every twenty epochs.
    """
    device = next(model.parameters()).device
    made = Objective.build(model, samples, partition="class", device=device)
    return Monitor(made, optimizer, every=EPOCHS * of_epoch, batch_size=batch_size, out=out, start=start)


def restricted(objective: Objective, samples: int | None, seed: int) -> Objective:
    """Return an objective with at most `samples` samples of each part, drawn without weights."""
    if samples is None or all(len(own) <= samples for own in objective.members):
        return objective
    drawn = [
        np.sort(np.random.default_rng([seed, p]).choice(own, min(samples, len(own)), replace=False))
        for p, own in enumerate(objective.members)
    ]
    part_of = np.full_like(objective.partition.part_of, LEFT_OUT)
    for p, own in enumerate(drawn):
        part_of[own] = p
    return replace(objective, partition=replace(objective.partition, part_of=part_of), members=tuple(drawn))


def unmeasured(objective: Objective) -> Spectrum:
    """Return what is known of the parts without a Lanczos run: their samples, losses and measures."""
    n = len(objective.partition)
    nothing: dict[str, Any] = {
        name: np.full(n, np.nan)
        for name in ("lambda_max", "lambda_max_residual", "lambda_min", "lambda_min_residual", "trace", "trace_stderr")
    }
    return Spectrum(
        parts=objective.partition.names,
        n_samples=objective.counts,
        train_counts=objective.trained,
        n_used=objective.counts,
        **(nothing | objective.evaluation.fields()),
        converged=np.zeros(n, dtype=bool),
        ritz_values=np.full((n, 1), np.nan),
        ritz_residuals=np.full((n, 1), np.nan),
        size=objective.layout.size,
        operator="hessian",
        symbol="H",
        tol=0.0,
        negative_tol=0.0,
    )
