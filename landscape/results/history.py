"""The history of a training, epoch by epoch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from landscape.errors import arg
from landscape.results import inference
from landscape.results.axes import Counts, Floats, array, scalar
from landscape.results.base import Result

LITTLE = 0.01
"""If GKP's pull is always below this share of the gradient, a message says that GKP did little."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class History(Result):
    """The history of a training, with a row for each finished epoch; nan if an epoch did not measure a quantity.

    Feature quality is that of the network with re-estimated batch-norm statistics, as in the memory bank.

    `train_loss` and `train_accuracy` are sums over the steps of the epoch: each sample was evaluated with the weights
    of its own step, augmented and in training mode. All other numbers are computed with the weights at the end of the
    epoch, in eval mode and without augmentation.
    """

    kind: ClassVar[str] = "history"
    version: ClassVar[int] = 1
    along: ClassVar[str] = "epoch"

    parts: tuple[str, ...] = array("part", doc="names of the classes")
    train_counts: Counts = array("part", unit="samples", doc="samples of the class that were trained on")
    test_counts: Counts = array("part", unit="samples", doc="test samples of the class")

    epoch: Floats = array("epoch", unit="epochs", doc="epochs done, from 1")
    seconds: Floats = array("epoch", unit="s", doc="wall time of the epoch with its evaluation")
    learning_rate: Floats = array("epoch", doc="of the epoch's last step")
    train_loss: Floats = array("epoch", unit="loss", doc="mean of the method's loss over the training samples")
    train_accuracy: Floats = array("epoch", doc="share of the training samples classified correctly")
    test_loss: Floats = array("epoch", unit="loss", doc="mean cross-entropy over the test samples")
    test_loss_stderr: Floats | None = array(
        "epoch", unit="loss", doc="its standard error over the test samples", optional=True
    )
    test_accuracy: Floats = array("epoch", doc="share of the test samples classified correctly")
    validation_accuracy: Floats = array("epoch", doc="mean over classes of the accuracy on held-out training samples")

    test_loss_per_class: Floats = array("epoch", "part", unit="loss", doc="mean cross-entropy on test samples")
    test_loss_per_class_stderr: Floats | None = array(
        "epoch", "part", unit="loss", doc="its standard error over these samples", optional=True
    )
    test_accuracy_per_class: Floats = array("epoch", "part", doc="accuracy on the class's test samples")
    eval_loss_per_class: Floats = array("epoch", "part", unit="loss", doc="mean cross-entropy on training samples")
    eval_loss_per_class_stderr: Floats | None = array(
        "epoch", "part", unit="loss", doc="its standard error over these samples", optional=True
    )
    eval_accuracy_per_class: Floats = array("epoch", "part", doc="accuracy on the class's training samples")
    quality: Floats = array("epoch", "part", doc="feature quality Q on the training samples")
    distance: Floats = array("epoch", "part", doc="distance of the class mean to the nearest other, Dis")
    variance: Floats = array("epoch", "part", doc="mean squared distance of features to their class mean, Var")
    gradient_cosine: Floats = array("epoch", "part", doc="cosine of class and batch gradient, mean over batches")
    bank_epoch: Floats = array("epoch", "part", unit="epochs", doc="epoch of the class's snapshot in the memory bank")
    group: Counts = array("epoch", "part", doc="number of the class's group")

    n_banked: Floats | None = array("epoch", unit="epochs", doc="distinct epochs in the memory bank", optional=True)
    n_groups: Counts | None = array("epoch", doc="groups of classes after the epoch", optional=True)
    pull_share: Floats | None = array(
        "epoch", doc="|pull of GKP| / (|pull of GKP| + |gradient of the data|), mean over steps", optional=True
    )
    clipped_share: Floats | None = array(
        "epoch", doc="share of GSA's radii that a bound of clip has set", optional=True
    )

    method: str = scalar(doc="name of the recipe")

    @property
    def test_accuracy_stderr(self) -> np.ndarray:
        """Standard errors of `test_accuracy` over the test samples, one for each epoch."""
        return inference.share_stderr(self.test_accuracy, float(self.test_counts.sum()))

    @property
    def test_accuracy_per_class_stderr(self) -> np.ndarray:
        """Standard errors of `test_accuracy_per_class`, (epochs, P)."""
        each = zip(self.test_accuracy_per_class.T, self.test_counts, strict=True)
        return np.stack([inference.share_stderr(accuracy, float(n)) for accuracy, n in each], axis=1)

    @property
    def idle(self) -> tuple[str, ...]:
        """Sentences about components of the method that had no effect in this run."""
        recipe = self.stated("recipe", of=dict) or {}
        return (*never_begun(recipe), *self._idle_with_groups(recipe))

    def _idle_with_groups(self, recipe: Mapping[str, Any]) -> tuple[str, ...]:
        """Return those about GSA and GKP; none for a run without groups."""
        gsa, gkp = recipe.get("sharpness") == "gsa", bool(recipe.get("gkp"))
        if not (gsa or gkp) or self.n_groups is None or not len(self.n_groups):
            return ()
        found = []
        if not self.n_groups[-1] > 1:
            found.append(
                "all classes are in one group at the end: GSA has no direction of a group's own, and GKP no other "
                "group to preserve"
            )
        most = 1.0 if self.pull_share is None else float(np.nanmax(self.pull_share, initial=0.0))
        alpha = recipe.get("alpha_end")
        alpha = alpha if isinstance(alpha, int | float) else 1.0
        left = f"; alpha still weighed the data's loss, by {alpha:g} at the end" if alpha < 1 else ""
        if gkp and most == 0:
            found.append(f"GKP did nothing: the share of its pull in the gradient was 0 in all epochs{left}")
        elif gkp and most < LITTLE:
            found.append(f"GKP did little: the share of its pull in the gradient was {100 * most:.2g} % at most{left}")
        if gsa and self.clipped_share is not None and np.nanmin(self.clipped_share, initial=np.inf) == 1:
            found.append(f"{arg('clip')} set the radii of GSA in all epochs: equation 13 decided none of them")
        return tuple(found)


def never_begun(recipe: Mapping[str, Any]) -> tuple[str, ...]:
    """Return sentences about components of a recipe that would begin only after its last epoch.

    Args:
        recipe: the fields of a recipe by their names, or some of them.

    Returns:
        The sentences.
    """
    start, epochs = recipe.get("drw_start"), recipe.get("epochs")
    if not isinstance(start, int | float) or not isinstance(epochs, int) or start * epochs - 1e-9 <= epochs - 1:
        return ()
    late = {
        "deferred re-weighting": recipe.get("reweight") == "drw",
        "the second radius of the perturbation": recipe.get("rho_schedule") == "step",
    }
    share = f"{arg('drw_start', start)} of {arg('epochs', epochs)}"
    return tuple(
        f"{what} never begins: {share} is later than the beginning of the last epoch"
        for what, there in late.items()
        if there
    )
