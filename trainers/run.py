"""A run and its folder: the files that are written after each epoch, and how an interrupted run continues.

    config.toml         the recipe, with all defaults filled in
    last.pt, best.pt    the current model, and that with the best validation accuracy (only with --validation)
    snapshots/          the trajectory: epoch-0000.pt before the first step, then every --snapshot-every epochs
    bank/               one snapshot for each epoch in which a class had its best features, while a class needs it
    history.csv, .h5    a row for each epoch; the .h5 holds the classes' statistics too
    monitor.h5          with --monitor: curvature of every class along the training
    state.pt            what the next epoch needs; written last, so that this file decides whether an epoch counts
    groups-0020.pt      convergence points and Fisher information of the groups made after epoch 20

Every analysis reads all files except `state.pt` and `groups-*.pt` without further options.
"""

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from landscape.autodiff import costs, devices, distributed
from landscape.errors import InputError, LandscapeError, NumericalError, StoreError, arg, one_line
from landscape.networks import checkpoints
from landscape.networks.class_means import Quality
from landscape.networks.models import NormedLinear
from landscape.results import History, disk, store
from trainers import evaluation, folder, planned, recipes, records, schedule
from trainers.data import Data, build
from trainers.evaluation import Scores
from trainers.grouped import Grouping
from trainers.loop import Trainer
from trainers.preserve import settled_quality
from trainers.recipes import Recipe

Progress = Callable[[float, int, str], None]
"""(epochs done, epochs in all, a line of text) -> None."""

_ANYWHERE: dict[str, Any] = dict.fromkeys(folder.PLACES)
"""The paths of the data, which may differ between machines."""

log = logging.getLogger(__name__)


class Run:
    """One run in its folder."""

    def __init__(
        self,
        recipe: Recipe,
        data: Data,
        out: Path,
        *,
        method: str,
        model: nn.Module | None = None,
        device: str | torch.device | None = None,
        workers: int = 0,
        overwrite: bool = False,
        tensorboard: bool = False,
        monitor: bool = False,
    ) -> None:
        """Lock the folder, and continue from its last epoch if it has an unfinished run of this recipe.

        Args:
            recipe: from `data.load`.
            data: from `data.load`.
            out: the folder.
            method: a name for the recipe.
            model: the network to train; None builds that of the recipe.
            device: "cpu", "cuda", "cuda:1"; None means a GPU if there is one.
            workers: number of processes that read images from files.
            overwrite: replace a run in the folder, after the first epoch of this one.
            tensorboard: also write scalars for TensorBoard.
            monitor: also measure the curvature of every class, before the first epoch and after every twentieth.

        Raises:
            InputError: the recipe does not fit the data or the machine; or processes differ in recipe, data or weights.
            StoreError: the folder holds another run, is in use, or cannot be written.
        """
        distributed.refuse_disagreement({**recipes.plain(recipe), **_ANYWHERE, "the data": data.whole.fingerprint})
        recipes.to_toml(recipes.plain(recipe))  # refuses now what could not be written after the first epoch
        place = devices.choose(device)
        self._writer_class = records.tensorboard_writer() if tensorboard and distributed.is_main() else None
        self.recipe, self.out, self.method = recipe, out, method
        self.data = data = data.moved(place)
        model, self._in_channels = build(recipe, data.whole, model)
        self.trainer = Trainer(recipe, model, data.train, device=place, workers=workers)
        self._classifier = self._found_classifier()
        self._warn_of_logits()
        evaluation.evaluate(model, data.test.select(np.arange(min(2, len(data.test)))), bf16=recipe.bf16)
        self._workers = workers
        self._overwrite = overwrite
        self._fresh = True  # nothing is written yet
        self._saved = 0  # epochs done that state.pt holds
        self._best = -1.0
        self._rows: dict[str, list[Any]] = {}
        self._writer: Any = None  # made after the first epoch, when the folder is this run's
        self.resumed = False
        folder.refuse_place(out)
        try:
            folder.refuse(out, recipe, data.whole.fingerprint, overwrite=overwrite)
        except StoreError:
            if not costs.wanted():
                raise
            self._overwrite = True  # nothing is written, and the costs are those of a run from its first epoch
        costs.declare(
            lambda: planned.plan(recipe, data, model, place, epoch=self._done(), workers=workers, monitor=monitor)
        )
        self._lock = folder.Hold(out) if distributed.is_main() else None
        self._grouping = Grouping(out, self.trainer, workers)
        try:
            if not overwrite and (out / "state.pt").exists():
                self._go_back()
                self._replace_lost()
            if distributed.world() > 1:
                weights = checkpoints.digest_of(self.trainer.state())
                distributed.refuse_disagreement({"the epoch": self.trainer.epoch, "the network": weights})
        except BaseException:
            self.close()
            raise
        self._first = None if self.trainer.epoch or not recipe.snapshot_every else records.state_of(model)
        self._monitor: Any = None
        if monitor and distributed.is_main():
            place_of_it = out / "monitor.h5" if self.resumed else None  # this run has no folder before the first epoch
            steps = self.trainer.epoch * self.trainer.n_batches
            of_run = {"done": steps, "of_epoch": self.trainer.n_batches, "batch_size": recipe.batch_size}
            self._monitor = records.monitor(model, self.trainer.train, self.trainer.base, out=place_of_it, **of_run)

    def _done(self) -> int:
        """Return the number of epochs of the recipe in the folder."""
        state = self.out / "state.pt"
        return 0 if self._overwrite or not state.exists() else int(checkpoints.read(state).meta["epoch"])

    def _found_classifier(self) -> str | None:
        if self.recipe.grouped or self.recipe.loss == "bcl":
            return self.trainer.classifier
        try:
            return self.trainer.classifier
        except InputError:  # the features are then left out of the history
            return None

    def _warn_of_logits(self) -> None:
        """Warn that margins between angles need cosine logits, which a user's own model may not have."""
        name, model = self._classifier, self.trainer.model
        cosine = name is not None and isinstance(model.get_submodule(name), NormedLinear)
        if self.recipe.loss in {"ldam", "bcl"} and not cosine and distributed.is_main():
            log.warning(
                f"{arg('loss', self.recipe.loss)} expects logits that are scaled cosines, and {self.recipe.model} "
                "does not end in landscape.networks.models.NormedLinear: make sure that its own classifier makes them"
            )

    @property
    def _n_trained(self) -> np.ndarray:
        """Number of training samples of each class, (C,), without those that are held out."""
        return self.trainer.train.class_counts

    @property
    def features_known(self) -> bool:
        """Say whether the run measures feature quality."""
        return self._classifier is not None

    def train(self, progress: Progress | None = None) -> None:
        """Train to the end of the recipe, writing after each epoch.

        Args:
            progress: see `Progress`.

        Raises:
            NumericalError: the loss is not finite; the checkpoints of the last good epoch are kept.
            StoreError: a file cannot be written; the run can continue from its last epoch when there is space.
            KeyboardInterrupt: Ctrl-C; the message says what is stored.
        """
        epochs, text = self.recipe.epochs, ""

        def tell(done: int, total: int) -> None:
            if progress:
                progress(self.trainer.epoch + done / total, epochs, text)

        try:
            if self._measurement_is_due():
                self._monitor.measure(self.trainer.epoch * self.trainer.n_batches, epoch=self.trainer.epoch)
            distributed.barrier(patient=True)
            while self.trainer.epoch < epochs:
                started = time.perf_counter()
                row = self.trainer.run_epoch(tell)
                if distributed.is_main():
                    row |= self._measured()
                self._grouping.regroup()
                if distributed.is_main():
                    seconds = time.perf_counter() - started
                    row |= self._grouping.row() | {"epoch": self.trainer.epoch, "seconds": seconds}
                    for name, value in row.items():
                        if name != "state":
                            self._rows.setdefault(name, []).append(value)
                    self._save()
                    self._measure_curvature()
                    text = self._line()
                distributed.barrier(patient=True)
                tell(0, 1)
            self._rows = distributed.of_main(self._rows)
        except KeyboardInterrupt as stop:
            same = f"the same command without {arg('overwrite', True)}" if self._overwrite else "the same command"
            raise KeyboardInterrupt(
                f"interrupted after {self._saved} of {epochs} epochs: {same} goes on from there"
                if self._saved
                else "interrupted before the first epoch was done: nothing is kept"
            ) from stop

    def _measurement_is_due(self) -> bool:
        """Say whether the curvature is to be measured before an epoch: the first, or where a run was cut before it."""
        steps = self.trainer.epoch * self.trainer.n_batches
        if self._monitor is None or steps % self._monitor.interval:
            return False
        try:
            return bool(self._monitor.series.training_step[-1] != steps)
        except InputError:  # nothing is measured yet
            return True

    def _measure_curvature(self) -> None:
        if self._monitor is not None:
            if self._monitor.out is None:
                self._monitor.out = self.out / "monitor.h5"
                self._monitor.write()  # the measurement before the first epoch
            self._monitor.step(self.trainer.epoch * self.trainer.n_batches, epoch=self.trainer.epoch)

    def close(self) -> None:
        """Unlock the folder."""
        if self._writer:
            self._writer.close()
        if self._lock:
            self._lock.release()

    def history(self) -> History:
        """Return the history so far; ranks other than the first have it only when the run is complete."""
        columns = {name: np.array(values) for name, values in self._rows.items()}
        return History(
            parts=self.data.train.class_names,
            train_counts=self._n_trained,
            test_counts=np.bincount(self.data.test.labels, minlength=len(self.data.test.class_names)),
            method=self.method,
            provenance={
                "recipe": recipes.plain(self.recipe),
                "data_sha256": self.data.whole.fingerprint,
                "device": str(self.trainer.device),
                "ranks": distributed.world(),
                "versions": records.versions(),
            },
            **columns,
        )

    # What one epoch adds ----------------------------------------------------------------------------------------

    def _measured(self) -> dict[str, Any]:
        """Evaluate the model on the test, validation and training samples, each as often as the recipe says."""
        r, model, epoch = self.recipe, self.trainer.model, self.trainer.epoch
        nothing = np.full(len(self.data.train.class_names), np.nan)
        options: dict[str, Any] = {"bf16": r.bf16, "workers": self._workers}
        single = "test_loss", "test_loss_stderr", "test_accuracy", "validation_accuracy"
        row: dict[str, Any] = dict.fromkeys(single, np.nan)
        names = ("test_loss_per_class", "test_loss_per_class_stderr", "test_accuracy_per_class")
        row |= dict.fromkeys(names, nothing)
        if epoch % r.evaluate_every == 0 or epoch in {1, r.epochs}:
            row |= self._tested(options)
        elif not all(p.isfinite().all() for p in model.parameters()):
            raise NumericalError(f"weights are not finite after epoch {epoch} of {r.epochs}: {self.trainer.remedy()}")
        names = ("eval_loss_per_class", "eval_loss_per_class_stderr", "eval_accuracy_per_class")
        row |= dict.fromkeys((*names, "quality", "distance", "variance", "gradient_cosine"), nothing)
        if r.statistics_every and (epoch % r.statistics_every == 0 or epoch in {1, r.epochs}):
            train = evaluation.evaluate(model, self.data.train, **options)
            of_train = train.loss_per_class, train.loss_per_class_stderr, train.accuracy_per_class
            row |= dict(zip(names, of_train, strict=True))
            if self._classifier is not None:
                row |= self._quality(self._classifier, options)
        if r.cosines_every and (epoch % r.cosines_every == 0 or epoch == 1):
            row["gradient_cosine"] = evaluation.gradient_cosines(
                model, self.data.train, batch_size=r.batch_size, seed=r.seed
            )
        return row

    def _tested(self, options: dict[str, Any]) -> dict[str, Any]:
        """Evaluate the model on test and validation samples."""
        model = self.trainer.model
        test = evaluation.evaluate(model, self.data.test, **options)
        if not np.isfinite(test.loss):
            raise NumericalError(
                f"the test loss is not finite after epoch {self.trainer.epoch} of {self.recipe.epochs}: "
                f"{self.trainer.remedy()}"
            )
        row: dict[str, Any] = {
            "test_loss": test.loss,
            "test_loss_stderr": test.loss_stderr,
            "test_accuracy": test.accuracy,
            "test_loss_per_class": test.loss_per_class,
            "test_loss_per_class_stderr": test.loss_per_class_stderr,
            "test_accuracy_per_class": test.accuracy_per_class,
        }
        if self.data.validation is not None:
            held_out = evaluation.evaluate(model, self.data.validation, **options)
            row["validation_accuracy"] = float(np.nanmean(held_out.accuracy_per_class))
        return row

    def _quality(self, classifier: str, options: dict[str, Any]) -> dict[str, Any]:
        """Measure the features with re-estimated statistics; store the network for classes with their best features."""
        r, epoch, model = self.recipe, self.trainer.epoch, self.trainer.model

        def keep(scores: Scores, quality: Quality) -> None:
            if r.grouped and schedule.banking(epoch, r.warmup_epochs, r.statistics_every):
                self._clear()
                known = {"eval_accuracy_per_class": scores.accuracy_per_class, "test_accuracy": np.nan}
                self._grouping.bank.update(epoch, quality.quality, model.state_dict(), self._meta(known))

        form: dict[str, Any] = {"beta": r.quality_beta, "form": r.quality_form, "seed": r.seed}
        try:
            q = settled_quality(model, self.data.train, classifier, keep=keep, **form, **options)
        except NumericalError as error:
            raise NumericalError(f"{error} ({self.trainer.remedy()})") from error
        return {"quality": q.quality, "distance": q.distance, "variance": q.variance}

    # Files ------------------------------------------------------------------------------------------------------

    def _clear(self) -> None:
        """Remove the files of an earlier run, now that this run has files of its own, and write the recipe."""
        if self._fresh:
            folder.clear(self.out)
            self._write_recipe()
            self._fresh = False

    def _write_recipe(self) -> None:
        text = recipes.to_toml(recipes.plain(self.recipe))
        with disk.writing(self.out):
            disk.write_aside(self.out / "config.toml", lambda file: file.write(text.encode()))

    def _save(self) -> None:
        self._clear()
        r, epoch, model = self.recipe, self.trainer.epoch, self.trainer.model
        row = self._row()
        meta = self._meta(row)
        self._write_recipe()  # the path of the data may have changed
        if r.snapshot_every:
            with disk.writing(self.out):
                (self.out / "snapshots").mkdir(exist_ok=True)
        self._write_table()
        if self._first is not None:
            checkpoints.write(self.out / "snapshots" / "epoch-0000.pt", self._first, self._meta(None))
            self._first = None
        if r.snapshot_every and (epoch % r.snapshot_every == 0 or epoch == r.epochs):
            checkpoints.write(self.out / "snapshots" / f"epoch-{epoch:04d}.pt", model.state_dict(), meta)
        self._write_last()
        if row["validation_accuracy"] > self._best:
            self._best = row["validation_accuracy"]
            checkpoints.write(self.out / "best.pt", model.state_dict(), meta)
        self._write_history()
        state = self.trainer.state()
        state |= {f"history.{name}": torch.from_numpy(np.array(values)) for name, values in self._rows.items()}
        kept = {
            "epoch": epoch,
            "best": self._best,
            "recipe": recipes.plain(r),
            "data_sha256": self.data.whole.fingerprint,
            "bank": self._grouping.bank.state(),
            "groups": self._grouping.file,
        }
        checkpoints.write(self.out / "state.pt", state, kept)
        self._saved = epoch
        folder.keep_groups(self.out, self._grouping.file)
        if self._writer_class and self._writer is None:
            self._writer = self._writer_class(str(self.out / "tensorboard"))
        if self._writer:
            for name, value in row.items():
                if np.ndim(value) == 0 and np.isfinite(value):
                    self._writer.add_scalar(name, value, epoch)

    def _row(self) -> dict[str, Any]:
        """Return what the history holds of the latest epoch."""
        return {name: values[-1] for name, values in self._rows.items()}

    def _write_table(self) -> None:
        table = records.table(self._rows, self.data.test.class_names).encode()
        with disk.writing(self.out):
            disk.write_aside(self.out / "history.csv", lambda file: file.write(table))

    def _write_last(self) -> None:
        checkpoints.write(self.out / "last.pt", self.trainer.model.state_dict(), self._meta(self._row()))

    def _write_history(self) -> None:
        with disk.writing(self.out):
            store.write_result(self.out / "history.h5", self.history())

    def _replace_lost(self) -> None:
        """Write again what `state.pt` also holds, where a file is missing or cannot be read."""
        if not distributed.is_main() or costs.wanted():
            return
        files: dict[str, tuple[Callable[[Path], object], Callable[[], None]]] = {
            "last.pt": (checkpoints.read, self._write_last),
            "history.csv": (partial(disk.read_text, error=StoreError), self._write_table),
            "history.h5": (store.load, self._write_history),
        }
        for name, (read, write) in files.items():
            try:
                read(self.out / name)
            except LandscapeError as error:
                log.warning("%s is written again from state.pt: %s", self.out / name, error)
                write()

    def _go_back(self) -> None:
        file = self.out / "state.pt"
        remedy = f"pass {arg('overwrite', True)} to begin anew, or choose another folder"
        try:
            found = checkpoints.read(file)
            meta = found.meta
            self._rows = {
                name.removeprefix("history."): list(t.numpy())
                for name, t in found.state.items()
                if name.startswith("history.")
            }
            for name in {f"{of}_stderr" for of in self._rows} & set(records.columns()) - set(self._rows):
                # errors, which earlier versions did not know
                self._rows[name] = [np.full_like(value, np.nan) for value in self._rows[name.removesuffix("_stderr")]]
            lacking = [name for name in ("best", "bank", "groups") if name not in meta]
            lacking += [name for name in records.columns() if name not in self._rows]
            if lacking:
                raise StoreError(f"{file} is of an older version, which did not keep {lacking[0]}")
            self.trainer.restore(meta["epoch"], found.state)
            for group in self.trainer.base.param_groups:
                group["lr"] = float(self._rows["learning_rate"][-1])
            self._saved, self._best, self._grouping.file = meta["epoch"], meta["best"], meta["groups"]
            self._grouping.bank.restore(meta["bank"])
            if self._grouping.file is not None:
                file = self.out / self._grouping.file
                self._grouping.use(dict(checkpoints.read(file).state))
        except LandscapeError as error:
            raise StoreError(f"{error}; {remedy}") from error
        except (RuntimeError, KeyError) as error:  # names or shapes: the code of the model may have changed
            raise StoreError(f"{file} does not fit the model as it is now ({one_line(error)}): {remedy}") from error
        self._fresh = False
        if distributed.is_main():
            folder.keep_groups(self.out, self._grouping.file)  # another file is from an interrupted epoch
        self.resumed = True

    def _meta(self, row: dict[str, Any] | None) -> dict[str, Any]:
        """Return the description of a checkpoint that analyses need; `row` is None before the first epoch."""
        r, whole, train = self.recipe, self.data.whole, self.data.train
        known = whole.mean is not None and whole.std is not None
        right = None
        if row is not None and not np.isnan(row["eval_accuracy_per_class"]).all():
            right = float(np.nansum(row["eval_accuracy_per_class"] * self._n_trained) / len(train))
        return {
            "model": r.model,
            "n_classes": len(whole.class_names),
            "in_channels": self._in_channels,
            "cosine": bool(r.cosine),
            "dataset": whole.options,
            "data_sha256": whole.fingerprint,
            "normalisation": [whole.mean, whole.std] if known else None,
            "class_counts": self._n_trained.tolist(),
            "dataset_counts": whole.class_counts.tolist(),
            "class_names": whole.class_names,
            "method": self.method,
            "loss": r.loss,
            "epoch": 0 if row is None else self.trainer.epoch,
            "seed": r.seed,
            "options": recipes.plain(r),
            "device": str(self.trainer.device),
            "train_accuracy": right,
            "test_accuracy": None if row is None or np.isnan(row["test_accuracy"]) else float(row["test_accuracy"]),
            "versions": records.versions(),
        }

    def _line(self) -> str:
        accuracy, *by_count = evaluation.by_frequency(self.history())
        many = "/".join("-" if np.isnan(a) else f"{a:.0%}" for a in by_count)
        return f"loss {self._rows['train_loss'][-1]:.3g}, test {accuracy:.1%} ({many})"
