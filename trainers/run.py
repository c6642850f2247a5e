"""A run and its folder: what is written after each epoch, and how an interrupted run goes on.

    config.toml         the recipe, with all that was left open decided
    last.pt, best.pt    the model now, and when the validation samples were classified best (only with --validation)
    snapshots/          the trajectory: epoch-0000.pt before the first step, then every --snapshot-every epochs
    bank/               one snapshot for each epoch in which a class had its best features, while a class needs it
    history.csv, .h5    a row for each epoch; the .h5 holds the classes' statistics too
    state.pt            what the next epoch needs; written last, so that an epoch counts when this file says so
    groups-0020.pt      convergence points and Fisher information of the groups made after epoch 20

All but `state.pt` and `groups-*.pt` are read by every analysis without further options.
"""

import csv
import dataclasses
import io
import platform
import shutil
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch
from torch import Tensor, nn

from landscape import checkpoints, class_means, datasets, devices, distributed, models, store
from landscape.datasets import Samples
from landscape.errors import DataError, InputError, NumericalError, StoreError
from landscape.results import History
from trainers import evaluation, gkp, methods
from trainers.batches import split_validation
from trainers.loop import FIRST, Trainer, seeded
from trainers.methods import Recipe

Progress = Callable[[float, int, str], None]
"""(epochs done, epochs in all, a line of text) -> None."""

OWN = ("config.toml", "last.pt", "best.pt", "snapshots", "bank", "history.csv", "history.h5", "state.pt", "tensorboard")
COUNTS = ("parts", "train_counts", "test_counts")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Data:
    """What a run learns from and reports on."""

    whole: Samples  # the training set as it can be loaded again
    train: Samples  # of it, what is trained on
    validation: Samples | None
    test: Samples

    def moved(self, device: torch.device) -> "Data":
        """Keep the inputs that are in memory on a device; `whole` stays where it is."""

        def move(samples: Samples) -> Samples:
            if samples.inputs is None or device.type == "cpu":
                return samples
            return dataclasses.replace(samples, inputs=samples.inputs.to(device))

        validation = None if self.validation is None else move(self.validation)
        return dataclasses.replace(self, train=move(self.train), validation=validation, test=move(self.test))


def load(recipe: Recipe) -> tuple[Recipe, Data]:
    """Load the data and decide what a recipe left to them.

    Args:
        recipe: what to do.

    Returns:
        The recipe with its views set, and the data.

    Raises:
        InputError: the recipe does not fit the data.
        DataError: the data cannot be found or used.
    """
    of_images = {name: getattr(recipe, name) for name in ("train_list", "test_list", "image_size")}
    whole, test = (
        datasets.load(
            recipe.dataset,
            root=recipe.data_root,
            split=split,
            imbalance=recipe.imbalance,
            imbalance_type=recipe.imbalance_type,
            seed=recipe.data_seed,
            normalize=recipe.normalize,
            **of_images,
        )
        for split in ("train", "test")
    )
    return fitted(recipe, whole, test)


def fitted(recipe: Recipe, whole: Samples, test: Samples) -> tuple[Recipe, Data]:
    """Decide what a recipe left to the data; see `load`."""
    if whole.class_names != test.class_names:
        raise DataError(
            f"{whole.name} has {len(whole.class_names)} classes in its train split and {len(test.class_names)} in its "
            "test split, or other names: both must have the same"
        )
    n_classes = len(whole.class_names)
    if recipe.grouped and recipe.groups > n_classes:
        raise InputError(f"--groups {recipe.groups} are more than the {n_classes} classes of {whole.name}: lower it")
    train, validation = whole, None
    if recipe.validation:
        train, validation = split_validation(whole, recipe.validation, recipe.data_seed)
    return dataclasses.replace(recipe, augment=recipe.augment or _views(recipe, whole)), Data(
        whole=whole, train=train, validation=validation, test=test
    )


def _views(recipe: Recipe, samples: Samples) -> str:
    """Choose views by the kind of data: crop and flip for small colour images, and the strong ones for bcl."""
    n = 3 if recipe.loss == "bcl" else 1
    inputs, _ = samples.batch(np.zeros(1, dtype=np.int64))
    if samples.mean is None or inputs.ndim != 4:
        if n == 3:
            raise InputError(f"--loss bcl needs three augmented views; {samples.name} has no uint8 images to augment")
        return "none"
    if inputs.shape[1] != 3 or inputs.shape[2] != inputs.shape[3]:
        return "none" if n == 1 else "crop,crop,crop"
    if samples.inputs is None:
        return "imagenet" if n == 1 else "imagenet-randaugment,simclr,simclr"
    return "crop-flip" if n == 1 else "autoaugment,simclr,simclr"


def build(recipe: Recipe, samples: Samples) -> tuple[nn.Module, int | None]:
    """Build the model for the data, and say how many channels the images have; None if they are no images.

    Args:
        recipe: what to do.
        samples: of the data.

    Returns:
        The model with its first weights, which the recipe's seed decides on every device alike, and the channels.

    Raises:
        InputError: the model does not fit the data.
    """
    inputs, _ = samples.batch(np.zeros(1, dtype=np.int64))
    in_channels = inputs.shape[1] if inputs.ndim == 4 else None
    if in_channels is None and ":" not in recipe.model:
        raise InputError(
            f"--model {recipe.model} is for images (channels, height, width), {samples.name} has inputs "
            f"{tuple(inputs.shape[1:])}: pass --model package.module:callable"
        )
    with seeded(torch.device("cpu"), recipe.seed, FIRST):
        n_classes = len(samples.class_names)
        cosine = bool(recipe.cosine) and ":" not in recipe.model
        return models.build(recipe.model, n_classes, in_channels=in_channels, cosine=cosine), in_channels


class Run:
    """One run in its folder."""

    def __init__(
        self,
        recipe: Recipe,
        data: Data,
        out: Path,
        *,
        method: str,
        device: str | torch.device | None = None,
        workers: int = 0,
        overwrite: bool = False,
        tensorboard: bool = False,
    ) -> None:
        """Take the folder, and go back to its last epoch if it holds an unfinished run of this recipe.

        Args:
            recipe: what to do, as `load` left it.
            data: as `load` gave them.
            out: the folder.
            method: a name for the recipe.
            device: "cpu", "cuda", "cuda:1"; None takes a GPU where there is one.
            workers: processes that read images from files.
            overwrite: replace a run in the folder, when this one's first epoch is done.
            tensorboard: write scalars for TensorBoard as well.

        Raises:
            InputError: the recipe does not fit the data or the machine.
            StoreError: the folder holds another or a finished run, is in use, or cannot be written.
        """
        place = devices.choose(device)
        self._writer_class = _tensorboard() if tensorboard and distributed.is_main() else None
        self.recipe, self.out, self.method = recipe, out, method
        self.data = data = data.moved(place)
        model, self._in_channels = build(recipe, data.whole)
        self.trainer = Trainer(recipe, model, data.train, device=place, workers=workers)
        self._classifier = self._found_classifier()
        self._fresh = True
        self._saved = 0  # epochs done that state.pt holds
        self._best = -1.0
        self._rows: dict[str, list[Any]] = {}
        self.resumed = False
        refuse(out, recipe, overwrite=overwrite)
        self._lock = _locked(out) if distributed.is_main() else None
        self._bank = gkp.Bank(out / "bank", len(data.train.class_names))
        if not overwrite and (out / "state.pt").exists():
            self._go_back()
        self._first = None if self.trainer.epoch or not recipe.snapshot_every else _copied(model)
        self._writer: Any = None  # made after the first epoch, when the folder is this run's

    def _found_classifier(self) -> str | None:
        if self.recipe.grouped or self.recipe.loss == "bcl":
            return self.trainer.classifier
        try:
            return self.trainer.classifier
        except InputError:  # the features are then left out of the history
            return None

    @property
    def features_known(self) -> bool:
        """Say whether the features are seen, whose quality the history tells."""
        return self._classifier is not None

    def train(self, progress: Progress | None = None) -> None:
        """Train to the end of the recipe, writing after each epoch.

        Args:
            progress: is told how far it is.

        Raises:
            NumericalError: the loss is not finite; the checkpoints of the last good epoch are kept.
            StoreError: a file cannot be written; the run goes on from its last epoch when there is room.
            KeyboardInterrupt: that of the user, with what is kept.
        """
        epochs, text = self.recipe.epochs, ""

        def tell(done: int, total: int) -> None:
            if progress:
                progress(self.trainer.epoch + done / total, epochs, text)

        try:
            while self.trainer.epoch < epochs:
                started = time.perf_counter()
                row = self.trainer.run_epoch(tell)
                if distributed.is_main():
                    row |= self._measured()
                    row |= self._banked(row)
                self._regroup()
                if distributed.is_main():
                    row |= self._grouped() | {"epoch": self.trainer.epoch, "seconds": time.perf_counter() - started}
                    for name, value in row.items():
                        if name != "state":
                            self._rows.setdefault(name, []).append(value)
                    self._save()
                    text = self._line()
                distributed.barrier()
                tell(0, 1)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(
                f"interrupted after {self._saved} of {epochs} epochs: the same command goes on from there"
                if self._saved
                else "interrupted before the first epoch was done: nothing is kept"
            ) from stop

    def close(self) -> None:
        """Give the folder free."""
        if self._writer:
            self._writer.close()
        if self._lock:
            self._lock.release()

    def history(self) -> History:
        """Return the history so far, which the first rank keeps."""
        columns = {name: np.array(values) for name, values in self._rows.items()}
        return History(
            parts=self.data.train.class_names,
            train_counts=np.bincount(self.data.train.labels, minlength=len(self.data.train.class_names)),
            test_counts=np.bincount(self.data.test.labels, minlength=len(self.data.test.class_names)),
            method=self.method,
            provenance={
                "recipe": methods.plain(self.recipe),
                "data_sha256": self.data.whole.fingerprint,
                "device": str(self.trainer.device),
                "ranks": distributed.world(),
                "versions": versions(),
            },
            **columns,
        )

    # What one epoch adds ----------------------------------------------------------------------------------------

    def _measured(self) -> dict[str, Any]:
        """Measure the model on the test, validation and training samples."""
        r, model, epoch = self.recipe, self.trainer.model, self.trainer.epoch
        nothing = np.full(len(self.data.train.class_names), np.nan)
        test = evaluation.evaluate(model, self.data.test, bf16=r.bf16)
        row: dict[str, Any] = {
            "test_loss": test.loss,
            "test_accuracy": test.accuracy,
            "test_loss_per_class": test.loss_per_class,
            "test_accuracy_per_class": test.accuracy_per_class,
            "validation_accuracy": np.nan,
        }
        if not np.isfinite(test.loss):
            raise NumericalError(
                f"the test loss is not finite after epoch {epoch} of {r.epochs}: lower --lr, now {r.lr:g}, or raise "
                f"--warmup-epochs, now {r.warmup_epochs}"
            )
        if self.data.validation is not None:
            held_out = evaluation.evaluate(model, self.data.validation, bf16=r.bf16)
            row["validation_accuracy"] = float(np.nanmean(held_out.accuracy_per_class))
        names = ("eval_loss_per_class", "eval_accuracy_per_class", "quality", "distance", "variance", "gradient_cosine")
        row |= dict.fromkeys(names, nothing)
        if r.statistics_every and (epoch % r.statistics_every == 0 or epoch in {1, r.epochs}):
            train = evaluation.evaluate(model, self.data.train, classifier=self._classifier, bf16=r.bf16)
            row |= {"eval_loss_per_class": train.loss_per_class, "eval_accuracy_per_class": train.accuracy_per_class}
            if train.features is not None:
                q = class_means.feature_quality(
                    train.features,
                    torch.from_numpy(self.data.train.labels),
                    len(nothing),
                    beta=r.quality_beta,
                    form=r.quality_form,
                )
                row |= {"quality": q.quality, "distance": q.distance, "variance": q.variance}
        if r.cosines_every and (epoch % r.cosines_every == 0 or epoch == 1):
            row["gradient_cosine"] = evaluation.gradient_cosines(
                model, self.data.train, batch_size=r.batch_size, seed=r.seed
            )
        return row

    def _banked(self, row: dict[str, Any]) -> dict[str, Any]:
        """Keep the model for the classes whose features are better than ever."""
        nothing = np.full(len(self.data.train.class_names), np.nan)
        if not self.recipe.grouped or np.isnan(row["eval_loss_per_class"]).all():
            return {"bank_epoch": nothing}
        self._clear()
        self._bank.update(self.trainer.epoch, row["quality"], self.trainer.model.state_dict(), self._meta(row))
        return {"bank_epoch": self._bank.epochs.astype(float)}

    def _grouped(self) -> dict[str, Any]:
        group_of = self.trainer.group_of
        nothing = np.full(len(self.data.train.class_names), np.nan)
        return {"group": nothing if group_of is None else group_of.numpy().astype(float)}

    def _regroup(self) -> None:
        """Group the classes anew where the recipe says so; the first rank does, the others are told."""
        r, epoch = self.recipe, self.trainer.epoch
        first = max(1, round(r.group_after * r.epochs))
        every = max(1, round(r.regroup_every * r.epochs)) if r.regroup_every else r.epochs
        if not r.grouped or epoch < first or (epoch - first) % every or epoch == r.epochs:
            return
        found: dict[str, Tensor] = {}
        if distributed.is_main():
            groups = gkp.group_classes(self._bank, self.trainer.encoder, r.groups, centre=r.centre, seed=r.seed)
            found["group_of"] = torch.from_numpy(np.asarray(groups.group_of, dtype=np.int64))
            if r.gkp:
                found |= self._convergence_points(groups)
            checkpoints.write(self.out / f"groups-{epoch:04d}.pt", found, {"epoch": epoch})
        self._use(self._told(found))

    def _convergence_points(self, groups: gkp.Groups) -> dict[str, Tensor]:
        centres = gkp.group_centres(self._bank, groups, self.trainer.encoder)
        fisher = gkp.group_fisher(
            self.trainer.model,
            self.data.train,
            groups,
            centres,
            self.trainer.encoder,
            max_samples=self.recipe.fisher_samples,
            seed=self.recipe.seed,
        )
        return {"centres": centres.parameters.cpu(), "fisher": fisher.cpu()}

    def _told(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what the first rank has found, on every rank."""
        if distributed.world() == 1:
            return found
        size = sum(dict(self.trainer.model.named_parameters())[n].numel() for n in self.trainer.encoder)
        n_groups = torch.zeros((), dtype=torch.int64)
        if distributed.is_main():
            n_groups += int(found["group_of"].max()) + 1
        distributed.broadcast([n_groups])
        if not distributed.is_main():
            found = {"group_of": torch.zeros(len(self.data.train.class_names), dtype=torch.int64)}
            if self.recipe.gkp:
                found |= {name: torch.zeros(int(n_groups), size) for name in ("centres", "fisher")}
        distributed.broadcast(found[name] for name in sorted(found))
        return found

    def _use(self, found: dict[str, Tensor]) -> None:
        """Hand groups to the trainer."""
        group_of = found["group_of"].numpy()
        penalty = None
        if self.recipe.gkp:
            counts = self.data.train.class_counts if self.recipe.divide_by == "samples" else np.ones(len(group_of))
            penalty = gkp.Penalty(
                found["centres"].to(self.trainer.device),
                found["fisher"].to(self.trainer.device),
                np.bincount(group_of, counts),
                strength=self.recipe.preservation,
            )
        self.trainer.regroup(group_of, penalty)

    # Files ------------------------------------------------------------------------------------------------------

    def _clear(self) -> None:
        """Remove what an earlier run left, now that there is something to put in its place."""
        if not self._fresh:
            return
        self._fresh = False
        for name in OWN:
            path = self.out / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        for path in self.out.glob("groups-*.pt"):
            path.unlink()

    def _save(self) -> None:
        self._clear()
        r, epoch, model = self.recipe, self.trainer.epoch, self.trainer.model
        row = {name: values[-1] for name, values in self._rows.items()}
        meta = self._meta(row)
        with store.writing(self.out):
            text = methods.to_toml(methods.plain(r))
            store.write_aside(self.out / "config.toml", lambda file: file.write(text.encode()))
            if r.snapshot_every:
                (self.out / "snapshots").mkdir(exist_ok=True)
            table = self._table().encode()
            store.write_aside(self.out / "history.csv", lambda file: file.write(table))
        if self._first is not None:
            checkpoints.write(self.out / "snapshots" / "epoch-0000.pt", self._first, self._meta(None))
            self._first = None
        if r.snapshot_every and (epoch % r.snapshot_every == 0 or epoch == r.epochs):
            checkpoints.write(self.out / "snapshots" / f"epoch-{epoch:04d}.pt", model.state_dict(), meta)
        checkpoints.write(self.out / "last.pt", model.state_dict(), meta)
        if row["validation_accuracy"] > self._best:
            self._best = row["validation_accuracy"]
            checkpoints.write(self.out / "best.pt", model.state_dict(), meta)
        store.save(self.out / "history.h5", self.history(), overwrite=True)
        state = self.trainer.state()
        state |= {f"history.{name}": torch.from_numpy(np.array(values)) for name, values in self._rows.items()}
        groups = sorted(self.out.glob("groups-*.pt"))
        kept = {"epoch": epoch, "best": self._best, "recipe": methods.plain(r), "bank": self._bank.state()}
        kept["groups"] = groups[-1].name if groups and self.trainer.group_of is not None else None
        checkpoints.write(self.out / "state.pt", state, kept)
        self._saved = epoch
        for path in groups[:-1]:
            path.unlink(missing_ok=True)
        if self._writer_class and self._writer is None:
            self._writer = self._writer_class(str(self.out / "tensorboard"))
        if self._writer:
            for name, value in row.items():
                if np.ndim(value) == 0 and np.isfinite(value):
                    self._writer.add_scalar(name, value, epoch)

    def _go_back(self) -> None:
        found = checkpoints.read(self.out / "state.pt")
        meta = found.meta
        self.trainer.restore(meta["epoch"], found.state)
        self._saved = meta["epoch"]
        self._best = meta["best"]
        self._fresh = False
        self._rows = {
            name.removeprefix("history."): list(t.numpy())
            for name, t in found.state.items()
            if name.startswith("history.")
        }
        self._bank.restore(meta["bank"])
        if meta["groups"] is not None:
            self._use(dict(checkpoints.read(self.out / meta["groups"]).state))
        for path in self.out.glob("groups-*.pt"):  # of an epoch that was cut
            if path.name != meta["groups"] and distributed.is_main():
                path.unlink(missing_ok=True)
        self.resumed = True

    def _meta(self, row: dict[str, Any] | None) -> dict[str, Any]:
        """Describe a checkpoint so that every analysis can read it; `row` is None before the first epoch."""
        r, whole, train = self.recipe, self.data.whole, self.data.train
        known = whole.mean is not None and whole.std is not None
        right = None
        if row is not None and not np.isnan(row["eval_accuracy_per_class"]).all():
            right = float(np.nansum(row["eval_accuracy_per_class"] * np.bincount(train.labels)) / len(train))
        return {
            "model": r.model,
            "n_classes": len(whole.class_names),
            "in_channels": self._in_channels,
            "cosine": bool(r.cosine) and ":" not in r.model,
            "dataset": whole.options,
            "data_sha256": whole.fingerprint,
            "normalisation": [whole.mean, whole.std] if known else None,
            "class_counts": whole.class_counts.tolist(),
            "class_names": whole.class_names,
            "method": self.method,
            "loss": r.loss,
            "epoch": 0 if row is None else self.trainer.epoch,
            "seed": r.seed,
            "options": methods.plain(r),
            "device": str(self.trainer.device),
            "train_accuracy": right,
            "test_accuracy": None if row is None else row["test_accuracy"],
            "versions": versions(),
        }

    def _table(self) -> str:
        """Return the history as CSV: a row for each epoch, a column for each class's test accuracy."""
        text = io.StringIO()
        single = [name for name, values in self._rows.items() if np.ndim(values[0]) == 0]
        single.sort(key=lambda name: name != "epoch")
        accuracies = np.array(self._rows["test_accuracy_per_class"])
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*single, *(f"test_accuracy of {name}" for name in self.data.test.class_names)])
        writer.writerows(zip(*(self._rows[name] for name in single), *accuracies.T, strict=True))
        return text.getvalue()

    def _line(self) -> str:
        many = "/".join("-" if np.isnan(a) else f"{a:.0%}" for a in by_frequency(self.history())[1:])
        return f"loss {self._rows['train_loss'][-1]:.3g}, test {self._rows['test_accuracy'][-1]:.1%} ({many})"


def by_frequency(history: History, *, many: int = 100, few: int = 20) -> tuple[float, float, float, float]:
    """Return the last epoch's test accuracy over all samples, and over those of many-, medium- and few-shot classes.

    Args:
        history: of a run.
        many: classes of more training samples are many-shot.
        few: classes of fewer training samples are few-shot.

    Returns:
        Shares of test samples; nan where there is no such class.
    """
    counts, n_test = history.train_counts, history.test_counts
    right = np.nan_to_num(history.test_accuracy_per_class[-1]) * n_test
    masks = (counts >= 0, counts > many, (counts >= few) & (counts <= many), counts < few)
    found = [right[m].sum() / n_test[m].sum() if n_test[m].sum() else np.nan for m in masks]
    return found[0], found[1], found[2], found[3]


def refuse(out: Path, recipe: Recipe, *, overwrite: bool) -> None:
    """Raise StoreError if a folder cannot take this run: another run's, a finished one's, or no folder.

    Args:
        out: the folder.
        recipe: of the run.
        overwrite: what is there may be replaced.

    Raises:
        StoreError: it cannot.
    """
    if overwrite:
        return
    state, config = out / "state.pt", out / "config.toml"
    done, theirs = 0, None
    if state.exists():
        meta = checkpoints.read(state).meta
        done, theirs = meta["epoch"], meta["recipe"]
    elif config.exists():  # a run that was killed in its first epoch
        theirs = methods.plain(methods.compose({}, config=config))
    elif (out / "last.pt").exists():
        raise StoreError(f"{out / 'last.pt'} exists: pass --overwrite to replace it, or choose another --out")
    difference = theirs and methods.first_difference(theirs, methods.plain(recipe))
    if difference:
        name, before, now = difference
        raise StoreError(
            f"{out} holds a run with {methods.flag(name)} {before}, now it is {now}: repeat the options, or pass "
            "--overwrite, or choose another --out"
        )
    if done >= recipe.epochs:
        raise StoreError(f"{out} holds this run, complete: pass --overwrite to repeat it, or choose another --out")


def versions() -> dict[str, str]:
    """Return the versions of what makes the numbers."""
    packages = {"landscape": "loss-landscape-per-class", "torch": "torch", "numpy": "numpy"}
    return {name: metadata.version(package) for name, package in packages.items()} | {
        "python": platform.python_version()
    }


def _locked(out: Path) -> filelock.BaseFileLock:
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(out / ".lock", timeout=0)
        lock.acquire()
    except filelock.Timeout:
        raise StoreError(f"{out} is in use by another process: wait until it ends, or choose another --out") from None
    except OSError as error:
        raise StoreError(f"--out {out} cannot be the folder of a run: {error.strerror}") from error
    return lock


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().cpu().clone() for name, t in model.state_dict().items()}


def _tensorboard() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("--tensorboard needs the package tensorboard: pip install tensorboard") from error
    return SummaryWriter
