"""One small result of each kind that a report shows, of one checkpoint or of several."""

import dataclasses

import numpy as np
from made import THREE, features, gradients, history
from surfaces import grid, paraboloid, plane_of_two, surface, three_classes, three_lines
from synthetic import classes

from landscape.results import (
    Displacements,
    Distances,
    Overlap,
    Pilots,
    Points,
    RowProducts,
    Sensitivity,
    Sharpness,
    Trajectory,
    Tuned,
)
from landscape.results.regroup import regroup
from landscape.results.series import joined, of_one

PARTS = ("class 0", "class 1", "class 2")


def of_checkpoint(result, name="a", **about):
    """The result as one of the checkpoint `name`, with that name as its method."""
    made = {"checkpoint_sha256": name * 64, "checkpoint": f"runs/{name}/last.pt", "method": name, "split": "train"}
    return dataclasses.replace(result, provenance={**result.provenance, **made, "loss": "ce", **about})


def spectrum(n=3, **options):
    found = classes(n, steps=12, **options)
    counts = np.array([500, 50, 5, *range(4, 4 - n + 3, -1)][:n]) if n > 3 else np.array([500, 50, 5][:n])
    return dataclasses.replace(found, train_counts=counts, n_samples=np.array([9, 5, 1, *[1] * n][:n]))


def trajectory():
    of = grid(np.linspace(-1, 1, 5), np.linspace(-2, 2, 5))
    loss = np.concatenate([paraboloid(of, 0.1 * (p + 1), p + 1.0) for p in range(3)])
    return surface(of, loss, kind=Trajectory, marks=("ce-1", "sam-1", "ce-2", "sam-2"))


def sharpness(parts=PARTS, **changed):
    n = len(parts)
    grows = np.linspace(0.1, 1.0, n)
    fields = {name: grows * k for k, name in enumerate(
        ("loss", "accuracy", "first_order_rise", "worst_rise", "noise_rise", "noise_rise_stderr", "doubling_radius"), 1
    )}  # fmt: skip
    fields |= {"parts": parts, "doubling_radius_spread": 0.1 * grows, "accuracy": grows}
    fields |= {"n_samples": np.array([9, 5, 1])[:n], "train_counts": np.array([500, 50, 5])[:n]}
    fields |= {"rho": 0.05, "adaptive": False, "sigma": 0.1, "draws": 4, "limit": 2.0}
    return Sharpness(**fields | changed)


def sensitivity(n=3, **changed):
    """Along two eigenvectors and two random directions; rarer parts change more."""
    size = np.array([3.0, 1.0, 0.1, -0.1])[:, None] * np.linspace(0.1, 1.0, n)
    fields = {name: np.linspace(0.1, 1.0, n) for name in ("loss", "accuracy")}
    for name, scale in (("loss", 1.0), ("accuracy", -0.1)):
        fields[f"{name}_change"] = scale * np.stack([1.2 * size, 0.8 * size], axis=1)
        fields[f"mean_{name}_change"] = scale * size
        fields[f"{name}_change_stderr"] = np.full((4, 2, n), 0.02)
        fields[f"mean_{name}_change_stderr"] = np.full((4, n), 0.01)
    fields |= {
        "parts": PARTS[:n],
        "n_samples": np.array([9, 5, 1])[:n],
        "train_counts": np.array([500, 50, 5])[:n],
        "directions": ("eigenvector 1", "eigenvector 2", "random 1 (seed 0)", "random 2 (seed 0)"),
        "control": np.array([False, False, True, True]),
        "eigenvalue": np.array([12.5, 3.25, np.nan, np.nan]),
        "eigenvalue_residual": np.array([1e-3, 1e-3, np.nan, np.nan]),
        "sign": np.array([1, -1]),
        "rho": 0.5,
        "of": "all",
    }
    return Sensitivity(**fields | changed)


def distances(runs=2):
    rng = np.random.default_rng(0)
    points, parts = ("class 0", "class 2", "last"), PARTS
    n, m = len(points), len(parts)
    square = {name: rng.random((runs, n, n)) for name in ("euclidean", "cosine", "filter_normalised", "fisher")}
    square["euclidean"] = square["euclidean"] + square["euclidean"].swapaxes(1, 2)
    square["euclidean"][:, range(n), range(n)] = 0
    return Distances(
        runs=tuple(f"seed {k}" for k in range(runs)),
        points=points,
        parts=parts,
        n_samples=np.array([9, 5, 1]),
        train_counts=np.array([500, 50, 5]),
        **square,
        barrier=np.full((runs, n, n, m), np.nan),
        norm=rng.random((runs, n)),
        point_epoch=np.full((runs, n), np.nan),
        loss=rng.random((runs, n, m)),
        accuracy=rng.random((runs, n, m)),
        epoch=np.arange(3.0),
        along_training=rng.random((runs, 3, n)),
        source="memory bank",
        parameters="encoder",
        size=10,
    )


def series():
    """The spectra of two checkpoints of one run."""
    about = {"learning_rate": 0.1, "edge": 20.0, "edge_rule": "2 / lr"}
    return joined([of_one(spectrum(), f"net-{k}", epoch=k, **about) for k in range(2)])


def all_series():
    """Series of each kind that has one, of two checkpoints."""
    about = {"learning_rate": 0.1, "edge": 20.0, "edge_rule": "2 / lr"}
    measured = {
        "critical_sharpness": np.array([1.0, 2.0, np.inf]),
        "batch_sharpness": 3.0,
        "batch_sharpness_stderr": 0.1,
    }
    singles = {"spectrum": (spectrum(), measured), "sharpness": (sharpness(), {}), "line": (three_lines(), {})}
    return {
        f"{name}.h5": of_checkpoint(joined([of_one(one, f"net-{k}", epoch=k, **about, **own) for k in range(2)]), "g")
        for name, (one, own) in singles.items()
    }


def pieces():
    """Results that only runs and comparisons make: units of a run, and what follows for groups."""
    whole = of_checkpoint(spectrum())
    groups = {"many": [0], "few": [1, 2]}
    index, factor = np.array([[0.0, 4.0, np.nan]]), np.array([[1.0, 1.5, np.nan]])
    numbers = {"n_samples": np.array([9, 5, 1]), "loss": np.ones((2, 3)), "accuracy": np.ones((2, 3)) / 2}
    rows = {"gram_part": np.array([0, 1]), "gram_sample": np.array([3, 0]), "gram_sign": np.ones(2)}
    return {
        "traces.h5": regroup(whole, groups=groups),
        "points.h5": Points(parts=PARTS, point=np.array([4, 7]), loss_stderr=np.ones((2, 3)) / 9, **numbers),
        "rows.h5": RowProducts(parts=PARTS, gram=np.eye(2), **rows),
        "pilots.h5": Pilots(parts=PARTS[:1], sample_index=index, factor=factor, uncertainty=np.full(1, 0.3)),
        "plane.h5": plane_of_two(),
        "tuned.h5": Tuned(points=PARTS[:2], theta=np.ones((2, 5)), buffers=np.ones((2, 3))),
        "displacements.h5": Displacements(
            measures=("fisher", "barrier"),
            begin=np.array([0, 1]),
            end=np.array([1, 0]),
            size=np.ones((2, 3)),
            size_stderr=np.ones((2, 3)) / 9,
        ),
        "overlap.h5": Overlap(parts=PARTS, matrices=PARTS[:2], trace=np.ones((2, 3)), along_gradient=np.ones((2, 3))),
    }


def all_kinds():
    """A result of each kind by the name of its file; those of checkpoint a share their rows."""
    return {
        "spectrum.h5": of_checkpoint(spectrum()),
        "sharpness.h5": of_checkpoint(sharpness()),
        "sensitivity.h5": of_checkpoint(sensitivity()),
        "surface.h5": of_checkpoint(three_classes(5, 5)),
        "line.h5": of_checkpoint(three_lines(), "b"),
        "path.h5": of_checkpoint(trajectory(), "c"),
        "distances.h5": of_checkpoint(distances(), "d"),
        "gradients.h5": of_checkpoint(gradients(THREE, [500, 50, 5]), "e"),
        "features.h5": of_checkpoint(features(3), "f"),
        "series.h5": of_checkpoint(series(), "g"),
        "history.h5": history(),
    }
