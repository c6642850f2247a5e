"""Results of every kind with chosen or random numbers, without a network."""

import dataclasses
from typing import get_args

import numpy as np

from landscape.results import Features, Gradients, History, Spectrum, store

LENGTHS = {"probe": 2, "step": 3, "rank": 2, "trace_probe": 4, "vector": 2, "angle": 2, "parameter": 5}
LENGTHS |= {"sample": 6, "row": 4, "gram_row": 0, "image": 3, "height": 2, "width": 3, "channel": 1}


PAIRS = (
    "overlap", "subspace_overlap", "principal_angles", "gradient_curvature", "gram", "gram_part", "gram_sample",
    "gram_sign",
)  # fmt: skip
"""Fields of a whole result only."""


SCALARS = {int: 5, float: 0.25, str: "hessian"}


def _drawn(rng, name, shape):
    """Random numbers; no error among them is below zero."""
    numbers = rng.normal(size=shape)
    return np.abs(numbers) if name.endswith(store.ERRORS) else numbers


def spectrum(*parts: str, seed: int = 0, lengths: dict[str, int] | None = None, **values) -> Spectrum:
    """A spectrum with random numbers in every array, whatever the fields are, and the values that are given."""
    rng = np.random.default_rng([seed, *"".join(parts).encode()])
    lengths = LENGTHS | {"part": len(parts)} | (lengths or {})
    numbers = {}
    for item in dataclasses.fields(Spectrum):
        axes = item.metadata["axes"]
        if axes is not None:
            numbers[item.name] = _drawn(rng, item.name, [lengths[axis] for axis in axes])
        elif item.type in SCALARS:
            numbers[item.name] = SCALARS[item.type]
    numbers["parts"] = parts
    numbers |= dict.fromkeys(PAIRS)
    numbers["steps"] = np.full((len(parts), lengths["probe"]), lengths["step"])
    return Spectrum(**(numbers | values))


def example(kind, *, n=3, seed=0):
    """A result of any kind with random numbers; every axis has a length of its own."""
    rng = np.random.default_rng(seed)
    lengths: dict[str, int] = {}
    values = {}
    for item in dataclasses.fields(kind):
        axes = item.metadata["axes"]
        if axes is not None:
            shape = [lengths.setdefault(axis, n + len(lengths)) for axis in axes]
            words = tuple[str, ...] in (item.type, *get_args(item.type))
            names = tuple(f"{item.name} {i}" for i in range(shape[0]))
            values[item.name] = names if words else _drawn(rng, item.name, shape)
            if item.metadata.get("places"):
                values[item.name] = rng.integers(lengths[item.metadata["places"]], size=shape)
        elif item.name != "provenance":
            values[item.name] = {int: 5, float: 0.25, str: "text", bool: True}[item.type]
    if kind is Spectrum:  # whose numbers must be possible ones
        values["steps"] = np.full(values["steps"].shape, lengths["step"])
        values["sample_weight"] = np.abs(values["sample_weight"])
    return kind(**values)


def features(n_classes=4, n_points=1, **changed):
    """Classes of which the last is the most frequent."""
    rng = np.random.default_rng(0)
    names = ("loss", "accuracy", "distance", "variance", "mean_norm", "alignment", "disagreement")
    fields = {name: rng.random((n_points, n_classes)) for name in (*names, "quality", "quality_inverse")}
    numbers = ("within_between", "norm_variation", "angle_deviation", "duality", "mean_disagreement")
    fields |= {name: rng.random(n_points) for name in numbers}
    cosine = rng.uniform(-0.5, 0.5, (n_points, n_classes, n_classes))
    fields |= {
        "points": tuple(f"epoch-{10 * k:04d}" for k in range(n_points)),
        "epoch": 10.0 * np.arange(n_points),
        "parts": tuple(f"class {c}" for c in range(n_classes)),
        "n_samples": np.arange(n_classes) + 5,
        "train_counts": np.arange(n_classes) + 5,
        "nearest": np.zeros((n_points, n_classes), dtype=np.int64),
        "mean_cosine": (cosine + cosine.swapaxes(1, 2)) / 2 + np.eye(n_classes),
        "beta": 0.5,
        "n_features": 3,
        "provenance": {"method": "ce", "model": "net", "split": "train", "data": {"name": "cifar10"}},
    }
    return Features(**fields | changed)


def gradients(rows, counts, *, epochs=(3.0,), stderr=0.0, batch_size=0, **changed):
    """The result of vectors g_p, (P, D), the same at each epoch, by a network whose first layer has one parameter."""
    rows, counts = np.asarray(rows, dtype=float), np.asarray(counts)
    shares = counts / counts.sum()
    g = shares @ rows
    norm, along = np.linalg.norm(rows, axis=1), rows @ g / np.linalg.norm(g)
    with np.errstate(invalid="ignore"):
        cosine = along / norm
        between = rows @ rows.T / np.outer(norm, norm)
    n_parts, n_points = len(counts), len(epochs)
    one = {
        "loss": np.ones(n_parts),
        "norm": norm,
        "cosine": cosine,
        "projected": along,
        "specific": np.sqrt(np.maximum(norm**2 - along**2, 0)),
        "radius": np.full(n_parts, 0.25),
        "contribution": shares * along / np.linalg.norm(g),
        "between": between,
    }
    fields = {name: np.stack([value] * n_points) for name, value in one.items()}
    inside = [(rows[:, at], g[at]) for at in (slice(1), slice(1, None))]
    with np.errstate(invalid="ignore"):
        of_layers = {
            "norm": [np.linalg.norm(own, axis=1) for own, _ in inside],
            "cosine": [own @ h / np.linalg.norm(own, axis=1) / np.linalg.norm(h) for own, h in inside],
            "contribution": [shares * (own @ h) / (h @ h) for own, h in inside],
            "whole_norm": [np.linalg.norm(h) for _, h in inside],
        }
    fields |= {f"layer_{name}": np.stack([value] * n_points) for name, value in of_layers.items()}
    fields |= {f"{n}_stderr": np.full(fields[n].shape, stderr) for n in fields if n != "loss"}
    fields |= {
        "points": tuple(f"epoch-{e:g}" for e in epochs),
        "epoch": np.array(epochs, dtype=float),
        "parts": tuple(f"class {p}" for p in range(n_parts)),
        "layers": ("conv", "fc"),
        "n_samples": counts,
        "train_counts": counts,
        "whole_norm": np.full(n_points, np.linalg.norm(g)),
        "whole_norm_stderr": np.zeros(n_points),
        "conflict": (fields["between"] < 0).astype(float),
        "theta_norm": np.ones(n_points),
        "batches": np.zeros((n_points, n_parts), dtype=int),
        "size": rows.shape[1],
        "batch_size": batch_size,
        "provenance": {"method": "ce"},
    }
    return Gradients(**fields | changed)


THREE = [[1.0, 0, 0], [0, 2, 0], [-1, -1, 1]]


def many(n, **options):
    rng = np.random.default_rng(0)
    return gradients(rng.normal(size=(n, 8)) + 0.2, np.arange(n) + 5, **options)


def history(n_classes=3, epochs=4, **changed):
    rng = np.random.default_rng(0)
    of_test = ("test_loss", "test_loss_stderr", "test_accuracy")
    single = ("seconds", "learning_rate", "train_loss", "train_accuracy", *of_test)
    per_class = (
        "test_loss_per_class", "test_loss_per_class_stderr", "test_accuracy_per_class", "eval_loss_per_class",
        "eval_loss_per_class_stderr", "eval_accuracy_per_class", "quality",
        "distance", "variance", "bank_epoch", "group",
    )  # fmt: skip
    fields = {name: rng.random(epochs) for name in single} | {
        name: rng.random((epochs, n_classes)) for name in per_class
    }
    fields |= {
        "parts": tuple(f"class {c}" for c in range(n_classes)),
        "train_counts": np.arange(n_classes) + 5,  # the last is the most frequent
        "test_counts": np.full(n_classes, 10),
        "epoch": np.arange(1, epochs + 1),
        "validation_accuracy": np.full(epochs, np.nan),
        "gradient_cosine": np.full((epochs, n_classes), np.nan),
        "n_banked": np.arange(epochs, dtype=float),
        "n_groups": np.arange(epochs, dtype=float),
        "pull_share": rng.random(epochs),
        "clipped_share": rng.random(epochs),
        "method": "gsa-gkp",
    }
    return History(**fields | changed)
