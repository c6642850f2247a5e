"""Small files as other programs write them."""

import h5py
import numpy as np


def goldstein(path, x, y=None, *, splits=("train",), loss=None, left=(), **extra):
    """A surface as tomgoldstein/loss-landscape fills it: declared (nx, ny), walked along a mesh of (ny, nx)."""
    shape = (len(x),) if y is None else (len(x), len(y))
    mesh = (np.asarray(x),) if y is None else tuple(m.ravel() for m in np.meshgrid(x, y))
    loss = loss or (lambda x, y=0.0: 0.5 + x**2 + 3 * y**2)
    with h5py.File(path, "w") as root:
        root["dir_file"] = extra.pop("dir_file", "")
        root["xcoordinates"] = np.asarray(x, dtype=float)
        if y is not None:
            root["ycoordinates"] = np.asarray(y, dtype=float)
        for split in splits:
            losses, accuracies = -np.ones(shape), -np.ones(shape)
            for i, at in enumerate(zip(*mesh, strict=True)):
                if i not in left:
                    losses.ravel()[i] = loss(*at)
                    accuracies.ravel()[i] = 100 / (1 + loss(*at))
            root[f"{split}_loss"], root[f"{split}_acc"] = losses, accuracies
        for name, values in extra.items():
            root[name] = values
    return path


def directions(path, *axes, **extra):
    """A direction file: a group for each axis, a dataset for each tensor."""
    with h5py.File(path, "w") as root:
        for name, tensors in zip(("xdirection", "ydirection"), axes, strict=False):
            for i, tensor in enumerate(tensors):
                root.create_dataset(f"{name}/{i}", data=tensor)
        for name, values in extra.items():
            root[name] = values
    return path


def tensors_of(length, seed=0, shapes=((2, 3), (3,), ())):
    """Random tensors whose length, single numbers apart, is the one asked for."""
    rng = np.random.default_rng(seed)
    found = [rng.normal(size=shape) for shape in shapes]
    size = np.sqrt(sum((a**2).sum() for a in found if a.ndim))
    return [a * (length / size) if a.ndim else a for a in found]


def plane_npz(path, nx=4, ny=4, **changes):
    """plane.npz: Z[i, j] at alphas[i], betas[j]; the grid in lengths, here of a triangle of sides 3 and 2."""
    alphas, betas = np.linspace(-0.2, 1.2, nx), np.linspace(-0.2, 1.2, ny)
    points = np.stack(np.meshgrid(alphas * 3.0, betas * 2.0, indexing="ij"), axis=-1)
    nll = 0.1 + points[..., 0] ** 2 + 2 * points[..., 1]
    arrays = {
        "ts": np.linspace(0, 1, 3),
        "bend_coordinates": np.array([[0.0, 0], [1.5, 2], [3, 0]]),
        "curve_coordinates": np.array([[0.0, 0], [1.5, 1], [3, 0]]),
        "alphas": alphas,
        "betas": betas,
        "grid": points,
        "tr_loss": nll + 7,  # with the penalty on the weights
        "tr_nll": nll,
        "tr_acc": 100 / (1 + points[..., 0] ** 2),
        "tr_err": 100 - 100 / (1 + points[..., 0] ** 2),
        "te_nll": 2 * nll,
        "te_acc": 50 + 0 * nll,
    }
    np.savez(path, **{k: v for k, v in (arrays | changes).items() if v is not None})
    return path
