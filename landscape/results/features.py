"""Feature quality and the geometry of class means."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from landscape.results.axes import Counts, Floats, array, scalar
from landscape.results.base import OfPoints

QUALITY = {"paper": "quality", "inverse": "quality_inverse"}
"""Forms of feature quality, and the field of each."""

WITH_ERRORS = (
    "loss", "accuracy", "disagreement", "distance", "variance", "quality", "quality_inverse", "mean_norm", "alignment",
    "within_between", "norm_variation", "angle_deviation", "duality", "mean_disagreement",
)  # fmt: skip
"""Numbers that have a standard error over samples."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Features(OfPoints):
    """How well the features separate each class, at one or several checkpoints, and the geometry of the class means.

    mu_c is the mean feature of class c. mu is the mean of mu_c over the classes, with equal weights whatever their
    numbers of samples. Values are nan for a class without samples; the variance and the quality are nan for a class
    with one sample.
    """

    kind: ClassVar[str] = "features"
    version: ClassVar[int] = 2  # since 2: errors over samples

    parts: tuple[str, ...] = array("part", doc="names of the classes")
    n_samples: Counts = array("part", unit="samples", doc="samples of the class")
    train_counts: Counts = array("part", unit="samples", doc="training samples of the class")
    loss: Floats = array("point", "part", unit="loss", doc="mean loss over the class's samples")
    accuracy: Floats = array("point", "part", doc="share of the class's samples that are classified correctly")

    quality: Floats = array("point", "part", doc="Q = Dis - beta log Var (S19); features have no unit")
    quality_inverse: Floats = array("point", "part", doc="-1 / Dis - log Var, the form of the authors' code")
    distance: Floats = array("point", "part", doc="Dis: distance of mu_c to the nearest other class mean")
    nearest: Counts = array(
        "point", "part", doc="number of that class; -1 where there is none", places="part", least=-1
    )
    variance: Floats = array("point", "part", doc="Var: mean of |a - mu_c|^2 over the class")
    mean_norm: Floats = array("point", "part", doc="|mu_c - mu|")
    mean_cosine: Floats | None = array(
        "point",
        "part",
        "part",
        doc="cosine of mu_c - mu and mu_c' - mu; left out beyond 1,000 classes",
        optional=True,
    )
    alignment: Floats = array("point", "part", doc="cosine of mu_c - mu and the classifier's row c (its mean off)")
    disagreement: Floats = array(
        "point", "part", doc="share of samples that the nearest class mean and the classifier put in different classes"
    )

    within_between: Floats = array(
        "point", doc="NC1: trace(S_W pinv(S_B)) / C, both scatters averaged over the classes of at least two samples"
    )
    norm_variation: Floats = array("point", doc="NC2: standard deviation of |mu_c - mu| over its mean")
    angle_deviation: Floats = array("point", doc="NC2: mean over pairs of |cos + 1 / (C - 1)|")
    duality: Floats = array("point", doc="NC3: |W / |W| - M / |M||, of the centred classifier and class means")
    mean_disagreement: Floats = array("point", doc="NC4: mean over classes of the disagreement")

    loss_stderr: Floats | None = array(
        "point", "part", unit="loss", doc="standard error of loss over samples", optional=True
    )
    accuracy_stderr: Floats | None = array(
        "point", "part", doc="standard error of accuracy over samples", optional=True
    )
    quality_stderr: Floats | None = array("point", "part", doc="standard error of quality over samples", optional=True)
    quality_inverse_stderr: Floats | None = array(
        "point", "part", doc="standard error of quality_inverse over samples", optional=True
    )
    distance_stderr: Floats | None = array(
        "point", "part", doc="standard error of distance over samples", optional=True
    )
    variance_stderr: Floats | None = array(
        "point", "part", doc="standard error of variance over samples", optional=True
    )
    mean_norm_stderr: Floats | None = array(
        "point", "part", doc="standard error of mean_norm over samples", optional=True
    )
    alignment_stderr: Floats | None = array(
        "point", "part", doc="standard error of alignment over samples", optional=True
    )
    disagreement_stderr: Floats | None = array(
        "point", "part", doc="standard error of disagreement over samples", optional=True
    )
    within_between_stderr: Floats | None = array(
        "point", doc="standard error of within_between over samples", optional=True
    )
    norm_variation_stderr: Floats | None = array(
        "point", doc="standard error of norm_variation over samples", optional=True
    )
    angle_deviation_stderr: Floats | None = array(
        "point", doc="standard error of angle_deviation over samples", optional=True
    )
    duality_stderr: Floats | None = array("point", doc="standard error of duality over samples", optional=True)
    mean_disagreement_stderr: Floats | None = array(
        "point", doc="standard error of mean_disagreement over samples", optional=True
    )

    beta: float = scalar(doc="weight of the variance in S19")
    n_features: int = scalar(doc="F, numbers in a feature")

    @property
    def title(self) -> str:
        """The checkpoint, the number of features and the definition of Q."""
        return f"{self.where(-1)}, {self.n_features:,} features, Q = Dis - {self.beta:g} log Var"

    def _chosen(self, chosen: Sequence[int], changes: dict[str, Any]) -> dict[str, Any]:
        """Renumber the nearest class among the chosen ones; -1 if it is not chosen."""
        places = np.full(len(self.parts) + 1, -1)
        places[list(chosen)] = np.arange(len(chosen))
        return changes | {"nearest": places[changes["nearest"]]}
