"""Runs of convergence points, for their distances."""

import numpy as np
import torch
from cases import CASES

from landscape.analyses.between import Run
from landscape.objective import points
from landscape.objective.points import Point


def run_of(objective, name="run", seeds=(1, 2)):
    """Return a run whose convergence points of parts 0 and 2 are the networks of two seeds."""
    others = [points.origin(CASES["residual-relu"].objective(seed=s)) for s in seeds]
    start = points.origin(objective)
    snapshots = [
        (Point(torch.lerp(start.theta, others[0].theta, t), start.buffers), e) for e, t in ((0.0, 0.0), (5.0, 0.5))
    ]
    named = {"0": (others[0], 3.0), "2": (others[1], 7.0), "final": (start, np.nan)}
    return Run(
        name=name, points=named, start=points.origin(CASES["residual-relu"].objective(seed=9)), snapshots=snapshots
    )
