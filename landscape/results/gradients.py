"""Gradients of parts, compared with the whole gradient and with each other."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from landscape.results.axes import Counts, Floats, array, scalar
from landscape.results.base import OfPoints

CLEAR = 4
"""A gradient has a direction if it is longer than so many times its rounding."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Gradients(OfPoints):
    """Gradients of every part's loss at one or several checkpoints, compared with the whole gradient and each other.

    With g_p the gradient of part p's mean loss and g that of all samples in parts: h_p = g_p - (<g_p, g> / |g|^2) g.
    Gradients are exact over the data, or means over random batches; a batch without samples of a part does not count
    for the part. Numbers over batches have a standard error over batches. A gradient of at most `CLEAR` times its
    rounding has no direction: it has a norm, but no cosine and no components.
    """

    kind: ClassVar[str] = "gradients"
    version: ClassVar[int] = 4  # since 2: errors over samples; since 3: of layers too; since 4: rounding

    parts: tuple[str, ...] = array("part", doc="names of the parts of the data")
    n_samples: Counts = array("part", unit="samples", doc="samples in the part")
    train_counts: Counts = array("part", unit="samples", doc="training samples of the part's classes")
    loss: Floats = array(
        "point", "part", unit="loss", doc="mean loss over the part's samples, or over those in the batches"
    )

    norm: Floats = array("point", "part", unit="loss", doc="|g_p|")
    norm_stderr: Floats = array("point", "part", unit="loss", doc="standard error over batches; 0 where exact")
    whole_norm: Floats = array("point", unit="loss", doc="|g|")
    whole_norm_stderr: Floats = array("point", unit="loss", doc="its standard error over batches")
    cosine: Floats = array("point", "part", doc="cosine of g_p and g; nan where one of them is zero or only rounding")
    cosine_stderr: Floats = array("point", "part", doc="standard error over batches; 0 where exact")
    projected: Floats = array("point", "part", unit="loss", doc="<g_p, g> / |g|, the part along g, with its sign")
    projected_stderr: Floats = array("point", "part", unit="loss", doc="its standard error over batches")
    specific: Floats = array(
        "point", "part", unit="loss", doc="|h_p|, the group-specific part (equation 12); 0 below rounding"
    )
    specific_stderr: Floats = array("point", "part", unit="loss", doc="its standard error over batches")
    radius: Floats = array(
        "point", "part", doc="rho_p of equation 13; nan for a part of one sample, or where h_p is zero"
    )
    radius_stderr: Floats = array("point", "part", doc="its standard error over batches")
    contribution: Floats = array(
        "point", "part", doc="share_p <g_p, g> / |g|^2: the part's share of g, which all add up to; 0 in other batches"
    )
    contribution_stderr: Floats = array("point", "part", doc="its standard error over batches")
    between: Floats = array("point", "part", "part", doc="cosine of g_p and g_q")
    between_stderr: Floats = array("point", "part", "part", doc="standard error over batches; 0 where exact")
    conflict: Floats = array(
        "point", "part", "part", doc="share of batches with a negative cosine of g_p and g_q; 0 or 1 where exact"
    )
    loss_sampling_stderr: Floats | None = array(
        "point", "part", unit="loss", doc="standard error of loss over samples, for exact gradients", optional=True
    )
    norm_sampling_stderr: Floats | None = array(
        "point", "part", unit="loss", doc="standard error of an exact norm over samples", optional=True
    )
    whole_norm_sampling_stderr: Floats | None = array(
        "point", unit="loss", doc="standard error of the whole's exact norm over samples", optional=True
    )
    cosine_sampling_stderr: Floats | None = array(
        "point", "part", doc="standard error of an exact cosine over samples", optional=True
    )
    projected_sampling_stderr: Floats | None = array(
        "point", "part", unit="loss", doc="standard error of an exact projected over samples", optional=True
    )
    specific_sampling_stderr: Floats | None = array(
        "point", "part", unit="loss", doc="standard error of an exact specific over samples", optional=True
    )
    radius_sampling_stderr: Floats | None = array(
        "point", "part", doc="standard error of an exact radius over samples", optional=True
    )
    contribution_sampling_stderr: Floats | None = array(
        "point", "part", doc="standard error of an exact contribution over samples, shares given", optional=True
    )
    between_sampling_stderr: Floats | None = array(
        "point", "part", "part", doc="standard error of an exact cosine of g_p and g_q over samples", optional=True
    )
    layers: tuple[str, ...] | None = array(
        "layer", doc="modules that hold the parameters, in the network's order", optional=True
    )
    layer_whole_norm: Floats | None = array("point", "layer", unit="loss", doc="|g| within the layer", optional=True)
    layer_whole_norm_stderr: Floats | None = array(
        "point", "layer", unit="loss", doc="its standard error over batches", optional=True
    )
    layer_norm: Floats | None = array(
        "point", "layer", "part", unit="loss", doc="|g_p| within the layer", optional=True
    )
    layer_norm_stderr: Floats | None = array(
        "point", "layer", "part", unit="loss", doc="its standard error over batches", optional=True
    )
    layer_cosine: Floats | None = array(
        "point",
        "layer",
        "part",
        doc="cosine of g_p and g within the layer; nan where one of them is zero or only rounding",
        optional=True,
    )
    layer_cosine_stderr: Floats | None = array(
        "point", "layer", "part", doc="its standard error over batches", optional=True
    )
    layer_contribution: Floats | None = array(
        "point",
        "layer",
        "part",
        doc="share_p <g_p, g> / |g|^2 within the layer, which adds up to 1 there",
        optional=True,
    )
    layer_contribution_stderr: Floats | None = array(
        "point", "layer", "part", doc="its standard error over batches", optional=True
    )
    layer_norm_sampling_stderr: Floats | None = array(
        "point", "layer", "part", unit="loss", doc="standard error of an exact norm over samples", optional=True
    )
    layer_cosine_sampling_stderr: Floats | None = array(
        "point", "layer", "part", doc="standard error of an exact cosine over samples", optional=True
    )
    layer_contribution_sampling_stderr: Floats | None = array(
        "point",
        "layer",
        "part",
        doc="standard error of an exact contribution over samples, shares given",
        optional=True,
    )
    layer_whole_norm_sampling_stderr: Floats | None = array(
        "point", "layer", unit="loss", doc="standard error of the whole's exact norm over samples", optional=True
    )
    norm_rounding: Floats | None = array(
        "point", "part", unit="loss", doc="how much of |g_p| may be rounding, measured; nan if unknown", optional=True
    )
    whole_norm_rounding: Floats | None = array(
        "point", unit="loss", doc="how much of |g| may be rounding", optional=True
    )
    layer_norm_rounding: Floats | None = array(
        "point", "layer", "part", unit="loss", doc="how much of |g_p| within the layer may be rounding", optional=True
    )
    layer_whole_norm_rounding: Floats | None = array(
        "point", "layer", unit="loss", doc="how much of |g| within the layer may be rounding", optional=True
    )
    theta_norm: Floats = array("point", doc="Euclidean length of the parameters")
    batches: Counts = array("point", "part", doc="batches that hold the part; 0 where exact")

    size: int = scalar(unit="parameters", doc="number of parameters")
    batch_size: int = scalar(unit="samples", doc="samples of a batch at most; 0 where exact")

    def only_rounding(self, norm: str) -> np.ndarray:
        """Say which norms may be nothing but rounding, so that their gradients have no direction.

        Args:
            norm: the field, such as "norm" or "layer_whole_norm".

        Returns:
            A truth value for each; false if the rounding is zero or unknown.
        """
        rounding = getattr(self, f"{norm}_rounding")
        values: np.ndarray = getattr(self, norm)
        if rounding is None:
            return np.full(values.shape, False)
        found: np.ndarray = (values <= CLEAR * rounding) & (rounding > 0)
        return found

    @property
    def title(self) -> str:
        """The checkpoint, the number of parameters and the kind of average."""
        how = f"means over batches of {self.batch_size:,}" if self.batch_size else "exact"
        mark = " (rounding)" if self.only_rounding("whole_norm")[-1] else ""
        about = f"{self.where(-1)}, gradients by {self.size:,} parameters, {how}"
        return f"{about}; |g| = {self.whole_norm[-1]:.4g}{mark}"
