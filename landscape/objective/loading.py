"""Make an objective from a checkpoint, with the same call and the same checks for Python and the command line."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike, fspath
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from landscape.autodiff import devices, trees
from landscape.autodiff.called import call
from landscape.autodiff.differentiable import differentiable_attention
from landscape.callables import checked
from landscape.data import datasets, taking
from landscape.data.datasets import Samples
from landscape.data.records import Records
from landscape.data.samples import split_validation
from landscape.errors import InputError, arg, check_choice
from landscape.networks import checkpoints, classifiers, libraries, models, outputs, tasks, weights
from landscape.networks.arguments import arguments
from landscape.networks.checkpoints import Checkpoint
from landscape.networks.copies import converted, copied
from landscape.networks.models import failures_named
from landscape.objective.objective import Loss, Objective
from landscape.objective.parts import Parts
from landscape.results.grouping import ENDS, FEW, MANY

File: TypeAlias = str | PathLike[str]
Split: TypeAlias = Literal["train", "test"]
Imbalance: TypeAlias = Literal["exp", "step"]
ImbalanceDraw: TypeAlias = Literal["own", "ldam"]
DtypeName: TypeAlias = Literal["float32", "float64"]

DTYPES = {"float32": torch.float32, "float64": torch.float64}
HELD_OUT = "held_out"  # entry of an objective's source
_LOOKS = {"normalize", "image_size"}  # options that change images, not which they are

log = logging.getLogger(__name__)


@checked
def load_objective(
    ckpt: File | None = None,
    *,
    model: str | nn.Module | None = None,
    dataset: Any = None,
    data_root: File | None = None,
    train_list: File | None = None,
    test_list: File | None = None,
    image_size: int | None = None,
    split: str = "train",
    imbalance: float | None = None,
    imbalance_type: Imbalance | None = None,
    imbalance_draw: ImbalanceDraw | None = None,
    data_seed: int | None = None,
    normalize: str | None = None,
    samples_per_class: int | None = None,
    loss: str | Loss | None = None,
    task: str | None = None,
    target: str | int | None = None,
    partition: Parts = "all",
    classes: str | Sequence[str | int] | None = None,
    params: str | None = None,
    device: str | torch.device | None = None,
    dtype: DtypeName | torch.dtype = "float32",
    batch_size: int = 128,
    weight_decay: float = 0.0,
    logits_index: int | None = None,
    class_counts: Sequence[int] | np.ndarray | None = None,
    many: int = MANY,
    few: int = FEW,
    ends: int = ENDS,
    cosine: bool = False,
    ckpt_key: str | None = None,
    trust_pickle: bool = False,
) -> Objective:
    """Read a checkpoint, build its model and its data, and combine them into an objective.

    A checkpoint of `landscape train` states its model and its data. For any other, `model` and `dataset` must be given.
    Arguments have priority over what the checkpoint states. The training split of a run is without the samples that the
    run held out for validation.

    Args:
        ckpt: the file, or a Hugging Face folder; None if `model` is a trained module.
        model: a name of `models.names()`, `package.module:callable`, or a module. The weights of `ckpt`, if given, are
            loaded into a copy of the module.
        dataset: a name of `datasets.names()`, `package.module:callable`, or data as for `landscape.make_objective`.
        data_root: folder of the data.
        train_list: file with the training images of "image-list", lines of `path label`.
        test_list: file with the test images of "image-list".
        image_size: side of the square images of "image-list" and "image-folder", in pixels.
        split: "train" or "test". For data of your own it says which these are.
        imbalance: ratio of the largest to the smallest class of a long-tailed subset.
        imbalance_type: "exp" or "step".
        imbalance_draw: "own", or "ldam" for the samples that LDAM-DRW, and code that is built on it, keeps.
        data_seed: of the draw of `samples_per_class`; also of the long tail, except that of the checkpoint's own data,
            which keep their seed unless `imbalance` or `imbalance_draw` is given.
        normalize: "imagenet", "none", or "m,m,m/s,s,s"; None means the data set's own.
        samples_per_class: use at most this many samples of each class, drawn with `data_seed`.
        loss: see `Objective.build`; None means the task's own.
        task: see `Objective.build`; None infers it from loss and targets, else means classification.
        target: entry of an item that is the target, see `landscape.make_objective`.
        partition: see `Objective.build`.
        classes: see `Objective.build`.
        params: see `Objective.build`.
        device: see `Objective.build`.
        dtype: "float32" or "float64", or PyTorch's type of that name.
        batch_size: see `Objective.build`.
        weight_decay: see `Objective.build`.
        logits_index: see `Objective.build`.
        class_counts: training samples of each class, of data of your own that are not the training set; see
            `make_objective`. For the data set of a run with held-out samples they are those that the run was trained
            on.
        many: see `Objective.build`.
        few: see `Objective.build`.
        ends: see `Objective.build`.
        cosine: the model's classifier is cosine-normalised.
        ckpt_key: key of the weights in the file, such as "a.b"; None finds them automatically.
        trust_pickle: let the file run code when it is read. Use it only for files that you made.

    Returns:
        The objective; its `source` states the origin of model, data and weights.

    Raises:
        InputError: something is missing or does not fit.
        DataError: the data cannot be found or used.
    """
    ckpt = None if ckpt is None else fspath(ckpt)
    if samples_per_class is not None and samples_per_class < 1:
        raise InputError(f"{arg('samples_per_class')} must be at least 1, got {samples_per_class}")
    if ckpt is not None and model is None and libraries.is_folder(ckpt):
        model = libraries.load(ckpt)
        found: Checkpoint | None = checkpoints.of_model(model, ckpt)
    else:
        found = None if ckpt is None else checkpoints.read(ckpt, key=ckpt_key, trust_pickle=trust_pickle)
    meta: Mapping[str, Any] = {} if found is None else found.meta
    given = {
        "root": data_root,
        "train_list": train_list,
        "test_list": test_list,
        "image_size": image_size,
        "imbalance": imbalance,
        "imbalance_type": imbalance_type,
        "imbalance_draw": imbalance_draw,
        "seed": data_seed,
        "normalize": normalize,
    }
    counted = counts_of(dataset, class_counts)
    take = partial(taken, loss=loss, task=task, target=target, **counted)
    given = {k: v for k, v in given.items() if v is not None}
    samples = _samples(dataset, split, given, meta, ckpt, take)
    own = _is_own(dataset, given, meta)
    if own and not given.keys() & _LOOKS:
        _warn_of_others(samples, meta)
    samples, held = (samples, {}) if counted else _trained_on(samples, meta, own=own)
    if samples_per_class is not None:
        samples = samples.subsample(samples_per_class, data_seed or 0)
    kind = DTYPES[dtype] if isinstance(dtype, str) else dtype
    network, source = _model(model, samples, found, meta, cosine, kind)
    return Objective.build(
        network,
        samples,
        loss=loss,
        task=task,
        partition=partition,
        classes=classes,
        params=params,
        device=device,
        dtype=kind,
        batch_size=batch_size,
        weight_decay=weight_decay,
        logits_index=logits_index,
        many=many,
        few=few,
        ends=ends,
        source=source | counted | held,
    )


def _is_own(dataset: Any, given: Mapping[str, Any], meta: Mapping[str, Any]) -> bool:
    """Say whether the data are those that a checkpoint states, from wherever they are read."""
    stored = dict(meta.get("dataset", {}))
    named = bool(stored) and (dataset is None or (isinstance(dataset, str) and dataset == stored.get("name")))
    return named and given.keys() <= {"root", "test_list", "seed", *_LOOKS}


def _warn_of_others(samples: Samples, meta: Mapping[str, Any]) -> None:
    """Warn if the training split is not what the run of a checkpoint loaded."""
    trained = meta.get("data_sha256")
    if samples.split == "train" and isinstance(trained, str) and samples.fingerprint != trained:
        log.warning("these samples of %s are not those of the training: images, labels or order differ", samples.name)


def _samples(
    dataset: Any,
    split: str,
    given: dict[str, Any],
    meta: Mapping[str, Any],
    ckpt: str | None,
    take: Callable[..., Samples],
) -> Samples:
    if dataset is None and "dataset" not in meta:
        raise InputError(
            f"{ckpt} does not say which data it belongs to: pass {arg('dataset')}, a name or package.module:callable"
            if ckpt
            else f"there is no data: pass {arg('dataset')}"
        )
    if dataset is not None and not isinstance(dataset, str):
        for name, value in given.items():
            if name != "seed":  # which also draws `samples_per_class`
                option = arg("data_root" if name == "root" else name, value)
                raise InputError(f"{option} is for data sets by name: prepare your own data so, and leave it out")
        return dataset if isinstance(dataset, Samples) else take(dataset, split=split)
    stored = dict(meta.get("dataset", {}))
    known = stored if dataset is None or dataset == stored.get("name") else {"name": dataset}
    if known is stored and not given.keys() & {"imbalance", "imbalance_draw"}:
        given = {k: v for k, v in given.items() if k != "seed"}  # another seed would draw other samples than the run's
    return datasets.load(**{**known, "split": split, **given}, take=take)


def _trained_on(samples: Samples, meta: Mapping[str, Any], *, own: bool) -> tuple[Samples, dict[str, Any]]:
    """Reduce the data set of a run to the samples that it was trained on, and let it state their counts.

    Groups by frequency and losses for long tails then are those of the run. Other data keep their own counts.

    Args:
        samples: the data.
        meta: of the checkpoint; `dataset_counts` are those of its data set, `class_counts` those of its training.
        own: these are the data that the checkpoint states.

    Returns:
        The samples, and for the source of results how the run held some out, where it did.
    """
    trained, counts, training = meta.get("class_counts"), samples.class_counts.tolist(), samples.split == "train"
    if not samples.counts_known or counts != meta.get("dataset_counts") or trained == counts:
        return samples, {}
    if not isinstance(trained, list) or len(trained) != len(counts):
        return samples, {}
    if not all(isinstance(n, int) and 0 <= n <= most for n, most in zip(trained, counts, strict=True)):
        return samples, {}  # no run of this data set
    stated, options = replace(samples, class_counts=np.array(trained, dtype=np.int64)), dict(meta.get("options", {}))
    share, seed = options.get("validation"), options.get("data_seed")
    if not (own or (training and samples.fingerprint == meta.get("data_sha256"))):
        return stated, {}
    if not isinstance(share, float) or not isinstance(seed, int):
        return stated, {}
    return split_validation(samples, share, seed)[0] if training else stated, {HELD_OUT: {"share": share, "seed": seed}}


def _model(
    model: str | nn.Module | None,
    samples: Samples,
    found: Checkpoint | None,
    meta: Mapping[str, Any],
    cosine: bool,
    dtype: torch.dtype,
) -> tuple[nn.Module, dict[str, Any]]:
    n_classes = len(samples.class_names)
    notes: list[str] = []
    name = model if model is not None else meta.get("model")
    if name is None:
        path = "there is no checkpoint" if found is None else f"{found.path} does not say which model it is of"
        raise InputError(f"{path}: pass {arg('model')}, one of {', '.join(models.names())} or package.module:callable")
    if isinstance(name, nn.Module):
        network, label = name, type(name).__qualname__
    else:
        shortcut = None if found is None else models.convolved_shortcut(name, found.state)
        notes = [f"shortcuts are convolutions, called {shortcut!r} (option B)"] if shortcut else []
        network = models.build(
            name,
            n_classes,
            in_channels=samples.in_channels,
            cosine=cosine or bool(meta.get("cosine")),
            scale=meta.get("scale"),
            shortcut=shortcut,
        )
        label = name
    if found is None:
        return network, {"model": label, "classifier": classifiers.described(network, n_classes), "checkpoint": None}
    network = copied(network)
    if dtype == torch.float64:  # before the weights come, of which the file may hold as many digits
        network = converted(network, torch.device("cpu"), dtype)
    stated = meta.get("model")
    try:
        report = weights.load_weights(network, found.state, key=found.key)
    except InputError as error:
        if not isinstance(model, str) or not isinstance(stated, str) or model == stated:
            raise
        raise InputError(f"{found.path} states the model {stated!a:.60}, not {model!r}: {error}") from error
    return network, {
        "model": label,
        "classifier": classifiers.described(network, n_classes),
        "checkpoint": found.path,
        "checkpoint_sha256": found.sha256,
        "checkpoint_key": found.key,
        "checkpoint_prefix": report.prefix,
        "checkpoint_found": dict(found.found),
        "checkpoint_notes": [*found.notes, *notes, *report.notes],
        "method": meta.get("method"),
    }


def counts_of(data: Any, class_counts: Sequence[int] | np.ndarray | None) -> dict[str, Any]:
    """Return the argument `class_counts` of a user's data, for `taken` and for the source of results.

    Args:
        data: see `load_objective`.
        class_counts: see `load_objective`.

    Returns:
        The argument by its name, as a list; nothing for None.

    Raises:
        InputError: the data state their training samples.
    """
    if class_counts is None:
        return {}
    if data is None or isinstance(data, str | Samples):
        raise InputError(
            f"{arg('class_counts')} is for data of your own: data sets by name and Samples state their training "
            "samples, so leave it out"
        )
    return {"class_counts": np.asarray(class_counts).tolist()}


def taken(
    data: Any, *, loss: Any, task: str | None, target: str | int | None, name: str = "dataset", **more: Any
) -> Samples:
    """Convert a user's data to the form that a task needs.

    Args:
        data: see `make_objective`.
        loss: see `make_objective`.
        task: see `make_objective`.
        target: see `make_objective`.
        name: of the data, for messages and results.
        more: see `taking.taken`.

    Returns:
        The samples.

    Raises:
        InputError: there is no such task.
    """
    if task is not None:
        check_choice("task", task, tasks.TASKS)
    if isinstance(target, str) and target.lstrip("-").isdecimal():  # as the command line gives it
        target = int(target)
    named = tasks.of_loss(loss) if isinstance(loss, str) else None
    known = named if task is None else tasks.TASKS[task]
    own = loss == tasks.OWN_LOSS
    return taking.taken(
        data,
        name=name,
        target=target,
        with_target=own,
        causal=own or (known is not None and known.name == "next-token"),
        classes=known.has_classes if known is not None else False if own else None,
        **more,
    )


def fitted(
    model: nn.Module, samples: Samples, *, loss: Any, task: str | None, device: Any, dtype: torch.dtype
) -> tuple[Samples, str | None]:
    """Infer from the model what labels do not show: the number of classes, or that one logit means two classes.

    Args:
        model: see `make_objective`.
        samples: the data, with classes counted by their labels.
        loss: see `make_objective`.
        task: see `make_objective`.
        device: see `make_objective`.
        dtype: of floating-point inputs.

    Returns:
        The samples with all classes, and the task.
    """
    if not samples.class_names or task not in {None, "classification"}:
        return samples, task
    place = devices.choose(device)
    own = converted(copied(model).eval().requires_grad_(False), place, dtype)
    some = samples.taken_by(lambda inputs: arguments(own, inputs)) if isinstance(samples, Records) else samples
    inputs = some.batch(np.arange(min(2, len(some))), place, dtype)[0]
    with failures_named(inputs), differentiable_attention(), torch.no_grad():
        output = call(own, trees.clone(inputs))
    try:
        found: Tensor = outputs.main_tensor(output)
    except InputError:  # several outputs: `Objective.build` finds the logits by the number of classes
        return samples, task
    n, known = found[0].numel() if found.ndim else 0, len(samples.class_names)
    if task is None and loss is None and n == 1 and known <= 2:
        return samples, "binary"
    if found.ndim != 2 or n <= known:
        return samples, task
    counts = np.concatenate([samples.class_counts, np.zeros(n - known, dtype=np.int64)])
    return replace(samples, class_names=tuple(map(str, range(n))), class_counts=counts), task
