"""From a checkpoint to an objective, for Python and the command line: the same call, the same checks."""

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from landscape.callables import checked
from landscape.data import datasets
from landscape.data.datasets import Samples
from landscape.data.partition import Partition
from landscape.errors import InputError, arg
from landscape.networks import checkpoints, classifiers, models, weights
from landscape.networks.checkpoints import Checkpoint
from landscape.networks.copies import converted, copied
from landscape.objective.objective import Loss, Objective

File: TypeAlias = str | PathLike[str]
Split: TypeAlias = Literal["train", "test"]
Imbalance: TypeAlias = Literal["exp", "step"]
DtypeName: TypeAlias = Literal["float32", "float64"]

DTYPES = {"float32": torch.float32, "float64": torch.float64}


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
    data_seed: int | None = None,
    normalize: str | None = None,
    samples_per_class: int | None = None,
    loss: str | Loss | None = None,
    partition: str | PathLike[str] | Partition | Mapping[str, Sequence[int]] = "all",
    classes: str | Sequence[str | int] | None = None,
    params: str | None = None,
    device: str | torch.device | None = None,
    dtype: DtypeName | torch.dtype = "float32",
    batch_size: int = 128,
    weight_decay: float = 0.0,
    logits_index: int | None = None,
    many: int = 100,
    few: int = 20,
    ends: int = 1,
    cosine: bool = False,
    ckpt_key: str | None = None,
    trust_pickle: bool = False,
) -> Objective:
    """Read a checkpoint, build its model and its data, and join them into an objective.

    A checkpoint that `landscape train` wrote says which model and data it belongs to. For any other, `model` and
    `dataset` must be given. Whatever is given wins over what the checkpoint says.

    Args:
        ckpt: the file; None where `model` is a trained module already.
        model: a name of `models.names()`, `package.module:callable`, or a module (the weights of `ckpt`, if
            given, are loaded into a copy).
        dataset: a name of `datasets.names()`, `package.module:callable`, a map-style data set of (input, label), or
            a pair of tensors.
        data_root: folder of the data.
        train_list: training list of "image-list", lines of `path label`.
        test_list: test list of "image-list".
        image_size: side of the images of lists and folders.
        split: "train" or "test".
        imbalance: ratio of the largest to the smallest class; makes the long-tailed subset.
        imbalance_type: "exp" or "step".
        data_seed: of the long-tailed subset.
        normalize: "imagenet", "none", or "m,m,m/s,s,s"; None for the data set's own.
        samples_per_class: analyse at most so many samples of each class, drawn with `data_seed`.
        loss: see `Objective.build`; None for the cross-entropy.
        partition: see `Objective.build`.
        classes: see `Objective.build`.
        params: see `Objective.build`.
        device: see `Objective.build`.
        dtype: "float32" or "float64", or PyTorch's type of that name.
        batch_size: see `Objective.build`.
        weight_decay: see `Objective.build`.
        logits_index: see `Objective.build`.
        many: see `Objective.build`.
        few: see `Objective.build`.
        ends: see `Objective.build`.
        cosine: the model's classifier is cosine-normalised.
        ckpt_key: where in the file the weights are, as "a.b"; None to find them.
        trust_pickle: let the file run code when it is read. Only for files that you made.

    Returns:
        The objective; its `source` says where everything came from.

    Raises:
        InputError: something is missing or does not fit.
        DataError: the data cannot be found or used.
    """
    ckpt = None if ckpt is None else fspath(ckpt)
    if samples_per_class is not None and samples_per_class < 1:
        raise InputError(f"{arg('samples_per_class')} must be at least 1, got {samples_per_class}")
    found = None if ckpt is None else checkpoints.read(ckpt, key=ckpt_key, trust_pickle=trust_pickle)
    meta: Mapping[str, Any] = {} if found is None else found.meta
    given = {
        "root": data_root,
        "train_list": train_list,
        "test_list": test_list,
        "image_size": image_size,
        "imbalance": imbalance,
        "imbalance_type": imbalance_type,
        "seed": data_seed,
        "normalize": normalize,
    }
    samples = _samples(dataset, split, {k: v for k, v in given.items() if v is not None}, meta, ckpt)
    if samples_per_class is not None:
        samples = samples.subsample(samples_per_class, data_seed or 0)
    kind = DTYPES[dtype] if isinstance(dtype, str) else dtype
    network, source = _model(model, samples, found, meta, cosine, kind)
    return Objective.build(
        network,
        samples,
        loss=loss or "ce",
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
        source=source,
    )


def _samples(dataset: Any, split: str, given: dict[str, Any], meta: Mapping[str, Any], ckpt: str | None) -> Samples:
    if dataset is None and "dataset" not in meta:
        raise InputError(
            f"{ckpt} does not say which data it belongs to: pass {arg('dataset')}, a name or package.module:callable"
            if ckpt
            else f"there is no data: pass {arg('dataset')}"
        )
    if isinstance(dataset, Samples):
        return dataset
    if dataset is not None and not isinstance(dataset, str):
        return datasets.from_dataset(dataset, split=split)
    stored = dict(meta.get("dataset", {}))
    known = stored if dataset is None or dataset == stored.get("name") else {"name": dataset}
    return datasets.load(**{**known, "split": split, **given})


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
        in_channels = samples.inputs.shape[1] if samples.inputs is not None and samples.inputs.ndim == 4 else None
        shortcut = None if found is None else models.convolved_shortcut(name, found.state)
        notes = [f"shortcuts are convolutions, called {shortcut!r} (option B)"] if shortcut else []
        network = models.build(
            name,
            n_classes,
            in_channels=in_channels,
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
    report = weights.load_weights(network, found.state, key=found.key)
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
