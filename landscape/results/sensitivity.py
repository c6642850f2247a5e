"""Change of the loss along directions: which classes depend on which directions."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from landscape.results.axes import Bools, Counts, Floats, array, scalar
from landscape.results.predicted import Predicted


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Sensitivity(Predicted):
    """Change of each part's loss and accuracy along eigenvectors of a Hessian, and along random directions.

    All steps have the same length, with both signs. Errors are those of paired differences for each sample: the loss of
    a sample at the end of the step minus its loss at the checkpoint.
    """

    kind: ClassVar[str] = "sensitivity"
    version: ClassVar[int] = 1
    along: ClassVar[str] = "direction"

    n_samples: Counts = array("part", unit="samples", doc="samples in the part")
    train_counts: Counts = array("part", unit="samples", doc="training samples of the part's classes")
    loss: Floats = array("part", unit="loss", doc="mean loss at the checkpoint")
    loss_stderr: Floats | None = array("part", unit="loss", doc="its standard error over samples", optional=True)
    accuracy: Floats | None = array("part", doc="accuracy at the checkpoint; absent without classes", optional=True)
    accuracy_stderr: Floats | None = array("part", doc="its standard error over samples", optional=True)

    directions: tuple[str, ...] = array("direction", doc="description of each direction")
    control: Bools = array("direction", doc="true for a random direction, which is a control")
    eigenvalue: Floats = array("direction", unit="loss", doc="Ritz value of an eigenvector; nan for random directions")
    eigenvalue_residual: Floats = array("direction", unit="loss", doc="an eigenvalue lies within this distance of it")
    sign: Counts = array("sign", doc="1 or -1: the sign of an eigenvector is arbitrary")
    loss_change: Floats = array(
        "direction", "sign", "part", unit="loss", doc="loss at the end of the step minus that at the checkpoint"
    )
    loss_change_stderr: Floats = array("direction", "sign", "part", unit="loss", doc="its standard error over samples")
    mean_loss_change: Floats = array("direction", "part", unit="loss", doc="mean of the change over both signs")
    mean_loss_change_stderr: Floats = array("direction", "part", unit="loss", doc="its standard error over samples")
    accuracy_change: Floats | None = array(
        "direction", "sign", "part", doc="accuracy at the end of the step minus that at the checkpoint", optional=True
    )
    accuracy_change_stderr: Floats | None = array(
        "direction", "sign", "part", doc="its standard error over samples", optional=True
    )
    mean_accuracy_change: Floats | None = array(
        "direction", "part", doc="mean of the change over both signs", optional=True
    )
    mean_accuracy_change_stderr: Floats | None = array(
        "direction", "part", doc="its standard error over samples", optional=True
    )
    rho: float = scalar(doc="Euclidean length of each step")
    of: str = scalar(doc="the part whose Hessian's eigenvectors are walked along, or the group, such as all")

    @property
    def title(self) -> str:
        """The directions and the length of the steps."""
        n = int((~self.control).sum())
        return f"{n} eigenvectors of {self.of}, {len(self.control) - n} random directions; steps of length {self.rho:g}"

    def of_control(self, values: Floats) -> tuple[Floats, Floats]:
        """Return the mean over the random directions, and their standard deviation.

        Args:
            values: (direction, part), such as `mean_loss_change`.

        Returns:
            (P,) each; the second is nan for fewer than two directions.
        """
        drawn = values[self.control]
        spread = drawn.std(axis=0, ddof=1) if len(drawn) > 1 else np.full(values.shape[1], np.nan)
        return drawn.mean(axis=0) if len(drawn) else np.full(values.shape[1], np.nan), spread

    def strongest(self) -> Counts:
        """Return for each part the eigenvector along which its loss changes most, by position, (P,)."""
        size = np.where(self.control[:, None], -1.0, np.nan_to_num(np.abs(self.mean_loss_change), nan=-1.0))
        return np.asarray(size.argmax(axis=0))
