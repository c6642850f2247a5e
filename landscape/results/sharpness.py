"""Rise of the loss around a checkpoint."""

from dataclasses import dataclass
from typing import ClassVar

from landscape.results.axes import Counts, Floats, array, scalar
from landscape.results.predicted import Predicted


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Sharpness(Predicted):
    """How much the loss of each part rises around a checkpoint, in all of parameter space."""

    kind: ClassVar[str] = "sharpness"
    version: ClassVar[int] = 2  # since 2: errors over samples
    along: ClassVar[str] = "part"

    n_samples: Counts = array("part", unit="samples", doc="samples in the part")
    train_counts: Counts = array("part", unit="samples", doc="training samples of the part's classes")
    loss: Floats = array("part", unit="loss", doc="mean loss at the checkpoint")
    loss_stderr: Floats | None = array("part", unit="loss", doc="its standard error over samples", optional=True)
    accuracy: Floats | None = array("part", doc="accuracy at the checkpoint; absent without classes", optional=True)
    accuracy_stderr: Floats | None = array("part", doc="its standard error over samples", optional=True)
    first_order_rise: Floats = array(
        "part", unit="loss", doc="rise after one step of length rho along the gradient of the part's loss, as in SAM"
    )
    worst_rise: Floats = array(
        "part", unit="loss", doc="largest rise found within rho by projected gradient ascent: a lower bound"
    )
    noise_rise: Floats = array(
        "part", unit="loss", doc="mean rise under Gaussian noise of both signs, in each filter sigma times its length"
    )
    noise_rise_stderr: Floats = array("part", unit="loss", doc="its standard error over draws; nan for one")
    doubling_radius: Floats = array(
        "part",
        doc="relative size of filter-normalised noise at which the loss has doubled, median over directions; inf "
        "beyond `limit`; nan where a loss on the way is nan, and where the loss at the checkpoint is not positive",
    )
    doubling_radius_spread: Floats = array(
        "part", doc="half the interquartile range over the directions; nan for one, and where it ends beyond `limit`"
    )
    first_order_rise_sampling_stderr: Floats | None = array(
        "part", unit="loss", doc="standard error of first_order_rise over samples", optional=True
    )
    worst_rise_sampling_stderr: Floats | None = array(
        "part",
        unit="loss",
        doc="standard error of worst_rise over samples, at the point that was found; of few samples it is too large",
        optional=True,
    )
    noise_rise_sampling_stderr: Floats | None = array(
        "part", unit="loss", doc="standard error of noise_rise over samples, for these directions", optional=True
    )
    doubling_radius_sampling_stderr: Floats | None = array(
        "part", doc="standard error of doubling_radius over samples, for these directions", optional=True
    )
    rho: float = scalar(doc="radius of the ball: Euclidean, or relative to each weight where adaptive")
    adaptive: bool = scalar(doc="the ball is scaled by |theta| per entry, as in adaptive SAM")
    sigma: float = scalar(doc="size of the noise relative to each filter")
    draws: int = scalar(doc="number of random directions")
    limit: float = scalar(doc="largest relative size of noise that was tried for doubling_radius")

    @property
    def title(self) -> str:
        """The ball and the noise."""
        ball = f"within {'adaptive ' * self.adaptive}rho = {self.rho:g}"
        return f"rise of the loss {ball}, and under noise of {self.sigma:g} of each filter"
