"""The rise of a part's loss within a ball around the checkpoint: after one step of SAM, and the largest that is found.

The ball is |T^-1 e| <= rho, with T = I, or diag |theta| for an adaptive ball; positions u in it stand for theta + T u.

Standard errors over samples follow, to first order, from the contribution of each sample. For the largest rise it is
the sample's rise at the same point, because moving that point has no effect of first order (Danskin); for SAM's step
it also contains the effect of the sample's gradient on the point.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.analyses.part_losses import PartLosses
from landscape.autodiff.wide import wide
from landscape.curvature.lanczos import probe
from landscape.curvature.places import dots
from landscape.objective import points


@dataclass(frozen=True)
class Rise:
    """A rise of the loss and its standard error over samples."""

    rise: float
    stderr: float


def rises_within(
    own: PartLosses, *, rho: float, adaptive: bool, ascent_steps: int, seed: int, report: Callable[[float], None]
) -> tuple[Rise, Rise]:
    """Return the first-order rise of one part and the largest rise that was found.

    Args:
        own: the losses of the part.
        rho: radius of the ball.
        adaptive: scale the ball by |theta|.
        ascent_steps: gradient steps of the search for the largest rise.
        seed: of the direction in which the search begins if the gradient is zero.
        report: called with the finished fraction.

    Returns:
        Both rises; nan if the gradient is not finite.
    """
    theta, objective = own.theta, own.objective
    scale = theta.abs() if adaptive else torch.ones_like(theta)

    def at(u: Tensor) -> tuple[float, Tensor]:
        """Return the rise at theta + T u and its gradient with respect to u."""
        loss, g = points.gradient(objective, theta + scale * u, own.part)
        return loss - centre, scale * g

    centre, g = points.gradient(objective, theta, own.part)
    slope = scale * g
    if not math.isfinite(length := float(wide(slope).norm())):
        return Rise(math.nan, math.nan), Rise(math.nan, math.nan)
    begun = own.losses(theta)
    if length > 0:
        unit = slope / length
        first, worst, where = ascend(at, rho * unit, rho=rho, steps=ascent_steps, report=report)
        # u = rho s / |s| turns with s, the part's slope: another gradient of a sample moves the rise by its product
        # with rho / |s| (1 - s s^T / |s|^2) of the slope at u.
        moved = at(rho * unit)[1]
        turned = rho / length * scale * (moved - float(dots(unit[None], moved[None])) * unit)
        each = own.losses(theta + rho * scale * unit) - begun + own.slopes(turned)
        found = Rise(first, own.stderr(each))
    else:  # SAM's step is zero here, but the loss may have curvature: begin in an arbitrary direction
        z = probe(len(theta), seed=seed, number=0, distribution="gaussian", stream="ascent").to(theta)
        _, worst, where = ascend(at, rho * z / float(wide(z).norm()), rho=rho, steps=ascent_steps, report=report)
        found = Rise(0.0, math.nan)
    return found, Rise(worst, math.nan if where is None else own.stderr(own.losses(theta + scale * where) - begun))


def ascend(
    at: Callable[[Tensor], tuple[float, Tensor]],
    u: Tensor,
    *,
    rho: float,
    steps: int,
    report: Callable[[float], None],
) -> tuple[float, float, Tensor | None]:
    """Search for the largest rise in a ball by projected gradient ascent.

    Steps grow while they succeed. Long steps turn u into the gradient's direction, as in power iteration, which always
    raises a convex function; if that fails, short steps ascend.

    Args:
        at: a position in the ball -> the rise there, and its gradient.
        u: where the search begins, (D,).
        rho: radius of the ball.
        steps: the largest number of gradient steps.
        report: called with the finished fraction.

    Returns:
        The rise at u; the largest rise that was found, at least 0, or nan; and its position, None for the centre.
    """
    rise, slope = at(u)
    first, largest, step = rise, max(rise, 0.0), math.nan
    where = u if rise > 0 else None
    for number in range(steps):
        if not 0 < (length := float(wide(slope).norm())) < math.inf:
            break
        report((1 + number) / (1 + steps))
        step = rho / length if math.isnan(step) else step
        tried = u + step * slope
        tried *= rho / max(rho, float(wide(tried).norm()))
        found, found_slope = at(tried)
        largest, where = (found, tried) if found > largest else (largest, where)
        if found > rise:
            u, rise, slope, step = tried, found, found_slope, 2 * step
        elif math.isnan(found):
            return first, math.nan, tried
        else:
            step /= 4
    return (first, math.nan, u) if math.isnan(first) else (first, largest, where)
