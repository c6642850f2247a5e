"""Surfaces that are known in closed form, without a network: paraboloids in skewed coordinates."""

import numpy as np

from landscape.results import Plane, Surface, Trajectory
from landscape.results.grid import summary
from landscape.results.mesh import Grid

UNITS, COSINE = np.array([2.0, 0.5]), 0.6


def squared_distance(x, y, units=UNITS, cosine=COSINE):
    """Squared Euclidean length of x d1 + y d2, by the Gram matrix written out."""
    return (x * units[0]) ** 2 + 2 * x * y * units[0] * units[1] * cosine + (y * units[1]) ** 2


def grid(x, y=None, *, units=None, cosine=COSINE, computed=None):
    line = y is None
    y = np.zeros(1) if line else np.asarray(y, dtype=float)
    return Grid(
        xcoordinates=np.asarray(x, dtype=float),
        ycoordinates=y,
        unit_length=np.asarray(UNITS[:1] if line else UNITS) if units is None else np.asarray(units, dtype=float),
        cosine=np.nan if line else cosine,
        computed=np.ones((len(y), len(x)), dtype=bool) if computed is None else computed,
    )


def paraboloid(of, lowest=0.3, curvature=1.0):
    """The loss `lowest + curvature r^2` on a grid, (1, ny, nx)."""
    x, y = np.meshgrid(of.xcoordinates, of.ycoordinates)
    if len(of.unit_length) == 1:
        return (lowest + curvature * (x * of.unit_length[0]) ** 2)[None]
    return (lowest + curvature * squared_distance(x, y, of.unit_length, of.cosine))[None]


def surface(of, loss, *, centre_loss=None, parts=None, kind=Surface, marks=(), radius=0.5, between=False, **about):
    """A surface with these losses, (P, ny, nx); accuracies go as exp(-loss), and marks lie on the diagonal."""
    n_parts, n_axes, n_marks = len(loss), len(of.unit_length), len(marks)
    parts = parts or tuple(f"class {p}" for p in range(n_parts))
    centre_loss = of.at_centre(loss) if centre_loss is None else centre_loss
    along = np.linspace(-0.5, 0.5, n_marks)
    fields = {
        "parts": parts,
        "n_samples": np.array([9, 5, 1, 40][:n_parts]),
        "train_counts": np.array([500, 50, 5, 20][:n_parts]),
        "xcoordinates": of.xcoordinates,
        "ycoordinates": of.ycoordinates,
        "loss": np.where(of.computed, loss, np.nan),
        "accuracy": np.where(of.computed, np.exp(-loss), np.nan),
        "computed": of.computed,
        "centre_loss": centre_loss,
        "centre_accuracy": np.exp(-centre_loss),
        "axes": ("random", "random")[:n_axes],
        "unit_length": of.unit_length,
        "explained": np.full(n_axes, np.nan),
        "marks": tuple(marks),
        "mark_position": np.stack([along] * n_axes, axis=1),
        "mark_distance": np.linspace(0, 1, n_marks),
        "mark_loss": np.arange(1.0, 1 + n_marks * n_parts).reshape(n_marks, n_parts),
        "mark_accuracy": np.linspace(0, 1, n_marks * n_parts).reshape(n_marks, n_parts),
        "cosine": of.cosine,
        "batch_norm": "keep",
        "provenance": {"split": "train", "loss": "ce", "partition": {name: [p] for p, name in enumerate(parts)}},
    } | summary(of, parts=parts, loss=loss, centre_loss=centre_loss, radius=radius, batch_norm="keep", between=between)
    if kind is Trajectory:
        fields |= {
            "runs": ("ce", "sam"),
            "mark_run": np.arange(n_marks) % 2,
            "mark_epoch": np.arange(float(n_marks)),
        }
    return kind(**fields | about)


def three_classes(nx=9, ny=7, **about):
    """Paraboloids of three classes, whose curvature and lowest loss grow towards the rarest."""
    of = grid(np.linspace(-1, 1, nx), np.linspace(-2, 2, ny))
    loss = np.concatenate([paraboloid(of, 0.1 * (p + 1), p + 1.0) for p in range(3)])
    return surface(of, loss, **about)


def three_lines(n=41, **about):
    """Losses of three classes on the line between two networks, whose barriers are 0, 1 and 2 at different places."""
    of = grid(np.linspace(-0.5, 1.5, n))
    t = of.xcoordinates
    bump = np.stack([0 * t, np.exp(-(((t - 0.3) / 0.1) ** 2)), 2 * np.exp(-(((t - 0.7) / 0.1) ** 2))])
    return surface(of, (1 + 0.5 * t + bump)[:, None], between=True, **about)


def plane_of_two():
    return Plane(
        axes=("random", "random"),
        directions=np.eye(2, 3),
        buffer_directions=np.zeros((2, 0)),
        origin=np.arange(3.0),
        buffer_origin=np.zeros(0),
        unit_length=np.ones(2),
        explained=np.full(2, np.nan),
        tensors=("w",),
        sizes=np.array([3]),
        cosine=0.0,
        normalisation="none",
        ignored="none",
    )
