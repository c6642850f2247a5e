"""Densities broadened by Gaussians, and the axes that figures of densities share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from landscape.errors import InputError, arg, check_choice
from landscape.plots.layout import theme
from landscape.results import Spectrum, quadrature, written
from landscape.results.quadrature import Axis

FLOOR = 1e-7
"""Where the density's logarithmic axis begins; lower where one eigenvalue's share would be below it."""
MOST_PANELS = 24
MOST_POINTS = 8192  # columns of a map


@dataclass(frozen=True, kw_only=True)
class View:
    """What all panels have in common."""

    axis: Axis
    linear: float  # scale of the symlog axis
    width: float  # of the Gaussians, in units of the axis
    low: float  # ends of the axis, in units of the axis
    high: float
    floor: float  # lowest density that is shown
    nodes: tuple[float, float]  # smallest and largest node, in units of the axis
    of_loss: bool  # the eigenvalues have the unit of a loss, and not that of a matrix of its own

    @property
    def limits(self) -> tuple[float, float]:
        """Ends of the axis as eigenvalues."""
        ends = np.array([self.low, self.high])
        low, high = quadrature.symlog_inverse(ends, self.linear) if self.axis == "symlog" else ends
        return float(low), float(high)


def steps_of(spectrum: Spectrum) -> int:
    """Return the Lanczos steps for named widths; all eigenvalues resolve at least as much as the default steps."""
    return 80 if spectrum.alpha is None else spectrum.alpha.shape[2] or 80


def broaden(
    spectrum: Spectrum,
    chosen: Sequence[int],
    width: str | float,
    axis: Axis,
    linear: float,
    limits: tuple[float, float] | None = None,
    *,
    common: bool = False,
    known: float | None = None,
) -> tuple[list[quadrature.Density], View]:
    """Return the densities of some parts at one width, or at a `known` one; `common`: on the same, even points."""
    check_choice("axis", axis, quadrature.AXES)
    if not linear > 0:
        raise InputError(f"the linear range of the symlog axis must be positive, got {linear}")
    found = [quadrature.of_part(spectrum, p) for p in chosen]
    nodes = np.concatenate([n[np.isfinite(n)] for n, _ in found])
    centres = quadrature.symlog(nodes, linear) if axis == "symlog" else nodes
    low, high = float(centres.min()), float(centres.max())
    sigma = quadrature.width_of(width, low, high, steps_of(spectrum)) if known is None else known
    margin = max(6 * sigma, 0.05 * (high - low))
    ends = (low - margin, high + margin) if limits is None else _ends(limits, axis, linear)
    one_eigenvalue = 1 / (math.sqrt(2 * math.pi) * sigma * spectrum.size)
    view = View(
        axis=axis,
        linear=linear,
        width=sigma,
        low=ends[0],
        high=ends[1],
        floor=min(FLOOR, 0.1 * one_eigenvalue),
        nodes=(low, high),
        of_loss=bool(np.isfinite(spectrum.n_samples).any()),
    )
    grid = None
    if common:
        n_points = max(512, math.ceil((view.high - view.low) / (sigma / 4)))
        if n_points > MOST_POINTS:
            least = (view.high - view.low) * 4 / MOST_POINTS
            raise InputError(
                f"{arg('width', float(f'{sigma:.3g}'))} is too narrow for a map of {len(chosen)} parts: "
                f"take at least {least:.1g}, or at most {MOST_PANELS} parts"
            )
        grid = np.linspace(view.low, view.high, n_points)
        grid = quadrature.symlog_inverse(grid, linear) if axis == "symlog" else grid
    return [quadrature.density(n, w, width=sigma, axis=axis, grid=grid, linear=linear) for n, w in found], view


def _ends(limits: tuple[float, float], axis: Axis, linear: float) -> tuple[float, float]:
    """Return limits in units of the axis."""
    low, high = limits
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"the axis of the eigenvalues cannot go from {low:g} to {high:g}")
    low, high = quadrature.symlog(np.array(limits), linear) if axis == "symlog" else limits
    return float(low), float(high)


def labels(view: View) -> tuple[str, str]:
    """Return the labels of both axes."""
    eigenvalue = r"eigenvalue $\lambda$" + " (units of the loss)" * view.of_loss
    beyond = _beyond(view)
    if view.axis == "linear":
        return eigenvalue + beyond, r"density per unit of $\lambda$"
    share = r"|\lambda|" if view.linear == 1 else rf"|\lambda| / {view.linear:g}"
    scale = rf" on $s = \mathrm{{sign}}(\lambda)\,\log_{{10}}(1 + {share})$"
    return eigenvalue + scale + beyond, r"density per unit of $s$"


def _beyond(view: View) -> str:
    """Return text about the eigenvalues outside the axis."""
    ends = np.array(view.nodes)
    low, high = quadrature.symlog_inverse(ends, view.linear) if view.axis == "symlog" else ends
    found = [f"down to {written.number(low)}"] * (view.nodes[0] < view.low)
    found += [f"up to {written.number(high)}"] * (view.nodes[1] > view.high)
    return ("\nbeyond the axis: " + " and ".join(found)).replace("-", "\N{MINUS SIGN}") if found else ""


def scale(ax: Axes, view: View, curves: Sequence[quadrature.Density]) -> None:
    """Set the scales and limits of both axes, so that all curves and the text in the corner fit."""
    scale_x(ax, view)
    peak = max(float((c.mean + np.nan_to_num(c.spread)).max()) for c in curves)
    ax.set_yscale("log")
    ax.set_ylim(view.floor, peak * (peak / view.floor) ** 0.4)  # room for the corner's text


def scale_x(ax: Axes, view: View) -> None:
    """Set the scale and limits of the axis of eigenvalues."""
    if view.axis == "symlog":
        theme.symlog_scale(ax, *view.limits, view.linear)
    else:
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=theme.STEPS))
    ax.set_xlim(view.limits)
