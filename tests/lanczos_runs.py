"""Lanczos runs on known matrices."""

import dataclasses

import torch

from landscape.analyses import spectrum as spectra
from landscape.curvature.matrices import matrix


def runs_on(symmetric, *, probes, steps, seed, trace_tol=None):
    options = spectra.Options(
        operator="hessian", steps=steps, probes=probes, seed=seed, distribution="rademacher", top=1, vectors=0,
        tol=None, max_steps=None, trace="probes", trace_tol=trace_tol, negative_tol=1e-3, residual_mass=None,
    )  # fmt: skip
    # Probes in lock-step, see the test above: the same numbers in less time, since products are not what costs here.
    operator = dataclasses.replace(matrix(torch.as_tensor(symmetric)[None]), cached=False)
    return spectra._runs(operator, options, lambda share: None, None)
