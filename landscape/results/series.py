"""Results of one kind along training: every array of the kind with one more axis, the checkpoints in their order.

    series = ls.load("runs/ce/hessian.h5")     a `SpectrumSeries`: lambda_max has axes (checkpoint, part)
    series.at("epoch-0010")                    the `Spectrum` of one checkpoint, as it was computed
    series.stack()                             all of them by their names, in the same form as `concat`

Fields of single samples are left out, because their axis differs between checkpoints.

Gradient descent with learning rate eta is stable on a quadratic loss if lambda_max is below 2 / eta; with Polyak's
momentum beta, below 2 (1 + beta) / eta; with Nesterov's, below 2 (1 + beta) / (eta (1 + 2 beta)). In training with all
data in each step, lambda_max rises to that bound and stays there: the edge of stability.

Source: Cohen, Kaur, Li, Kolter and Talwalkar 2021, "Gradient descent on neural networks typically occurs at the edge of
stability", section 2 and appendix B.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from landscape.errors import InputError, position, unknown
from landscape.results.axes import Floats, array, concatenate, scalar
from landscape.results.base import Result
from landscape.results.sharpness import Sharpness
from landscape.results.spectrum import Spectrum
from landscape.results.stack import Stack
from landscape.results.surface import Surface

AXIS = "checkpoint"
SUFFIX = "-series"
"""Suffix of the names of these kinds."""

_OF_SAMPLES = frozenset({"sample", "image", "gram_row"})  # axes of the fields that a series leaves out
_OF_ALL = frozenset({"n_samples", "train_counts", "xcoordinates", "ycoordinates"})  # the same at every checkpoint
_VARYING = frozenset({"radius", "cosine", "verdict"})  # of a surface: one for each checkpoint

T = TypeVar("T", bound="Series")


def edge(rate: float, momentum: float = 0.0, *, nesterov: bool = False, dampening: float = 0.0) -> float:
    """Return the largest lambda_max at which stochastic gradient descent is stable on a quadratic loss.

    Args:
        rate: the learning rate.
        momentum: PyTorch's; 0 for none.
        nesterov: Nesterov's momentum.
        dampening: PyTorch's; it scales the rate.

    Returns:
        The bound, in units of the loss; nan if the rate is unknown, inf for a rate of zero.

    Source: see the head of this file.
    """
    step = rate * (1 - dampening) if momentum else rate
    if math.isnan(step) or step < 0:
        return math.nan
    return 2 * (1 + momentum) / (step * (1 + 2 * momentum if nesterov else 1.0)) if step else math.inf


def edge_rule(momentum: float, *, nesterov: bool = False) -> str:
    """Return the formula of `edge` as text for a legend."""
    if not momentum:
        return "2 / lr"
    return f"2 (1 + {momentum:g}) / (lr (1 + 2 · {momentum:g}))" if nesterov else f"2 (1 + {momentum:g}) / lr"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Series(Result):
    """Results of one kind at several checkpoints of one network, over the same samples in the same parts."""

    along: ClassVar[str] = AXIS
    of: ClassVar[type[Result]]  # the kind at each checkpoint

    checkpoints: tuple[str, ...] = array(AXIS, doc="names of the checkpoints, in the order of training")
    epoch: Floats = array(AXIS, unit="epochs", doc="epochs of training before each; nan where that is unknown")
    training_step: Floats = array(AXIS, unit="steps", doc="steps of training before each; nan where that is unknown")
    learning_rate: Floats = array(AXIS, doc="learning rate there; nan where that is unknown")
    edge: Floats = array(
        AXIS, unit="loss", doc="largest lambda_max at which the optimizer is stable there; nan if unknown"
    )
    edge_rule: str = scalar(doc="how the edge follows from the learning rate; empty where it is unknown", default="")

    if TYPE_CHECKING:  # the arrays of the kind

        def __getattr__(self, name: str) -> Any: ...

    @property
    def place(self) -> tuple[Floats, str]:
        """The positions of the checkpoints along training, and their unit: "epoch" or "step"."""
        if len(set(self.epoch[~np.isnan(self.epoch)].tolist())) == len(self.epoch):
            return self.epoch, "epoch"
        return self.training_step, "step"

    @property
    def title(self) -> str:
        """The number of checkpoints, their range, and the title of the results."""
        place, unit = self.place
        own = self.at(-1).title
        return f"{len(place)} checkpoints, {unit} {place[0]:.12g} to {place[-1]:.12g}; {own}".removesuffix("; ")

    def at(self, checkpoint: str | int) -> Any:
        """Return the result of one checkpoint.

        Args:
            checkpoint: its name, or its position; -1 is the last.

        Returns:
            The result, of the kind `of`, without the fields of single samples.

        Raises:
            InputError: there is no such checkpoint.
        """
        if isinstance(checkpoint, str):
            checkpoint = position(checkpoint, self.checkpoints, "checkpoint")
        if not -len(self.checkpoints) <= checkpoint < len(self.checkpoints):
            last = len(self.checkpoints) - 1
            raise InputError(f"there is no checkpoint {checkpoint}: choose a name, or a position from 0 to {last}")
        made: dict[str, Any] = {}
        for item in fields(self.of):
            own = self.__dataclass_fields__.get(item.name)
            value = None if own is None else getattr(self, item.name)
            if own is not None and value is not None and (own.metadata["axes"] or ())[:1] == (AXIS,):
                value = value[checkpoint]
                value = value.item() if isinstance(value, np.generic) and not item.metadata["axes"] else value
            made[item.name] = value
        files = list((self.stated("checkpoints", of=dict) or {}).items())
        if len(files) == len(self.checkpoints):
            path, sha256 = files[checkpoint]
            made["provenance"] = {**self.provenance, "checkpoint": path, "checkpoint_sha256": sha256}
        return self.of(**made)

    def position(self, word: str) -> int:
        """Find a checkpoint.

        Args:
            word: its name, or its epoch or step, whichever `place` counts.

        Returns:
            Its position.

        Raises:
            InputError: there is none.
        """
        place, unit = self.place
        for k, name in enumerate(self.checkpoints):
            if word in (name, f"{place[k]:.12g}"):
                return k
        known = [f"{unit} {p:.12g}" for p in place]
        raise InputError(unknown(word, known, "checkpoint", more=f", or a name such as {self.checkpoints[-1]}"))

    @property
    def last(self) -> Any:
        """The result of the last checkpoint, which tables show."""
        return self.at(-1)

    def stack(self) -> Stack[Any]:
        """Return the results of all checkpoints by their names, as figures of several results accept them."""
        return Stack(AXIS, self.checkpoints, [self.at(k) for k in range(len(self.checkpoints))])


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class _Measured(Series):
    """The numbers that only a monitor measures; see `landscape.analyses.monitor`."""

    critical_sharpness: Floats | None = array(
        AXIS,
        "part",
        unit="loss",
        doc="2 / the smallest step along the whole's gradient at which the part's loss rises; inf if any step does, "
        "0 if none up to the limit",
        optional=True,
    )
    alignment: Floats | None = array(
        AXIS, "part", doc="|cosine| of the part's gradient and the whole's sharpest direction", optional=True
    )
    batch_sharpness: Floats | None = array(
        AXIS, unit="loss", doc="curvature of a batch's loss along its gradient, mean over batches", optional=True
    )
    batch_sharpness_stderr: Floats | None = array(
        AXIS, unit="loss", doc="its standard error over batches", optional=True
    )


def _over_checkpoints(of: type[Result], base: type[Series]) -> type[Series]:
    """Make the class of a series: the fields of a kind of result, each with a first axis of checkpoints."""
    declared: list[tuple[str, Any, Any]] = []
    for item in fields(of):
        about = dict(item.metadata)
        axes = about["axes"]
        if item.name in base.__dataclass_fields__ or _OF_SAMPLES & set(axes or ()) or not about.get("joins", True):
            continue
        kind = item.type
        if axes is None and item.name in _VARYING:
            axes, kind = (AXIS,), tuple[str, ...] if kind is str else Floats
        elif axes is not None and item.name not in _OF_ALL and kind != tuple[str, ...]:
            axes = (AXIS, *axes)
        about["axes"] = axes
        declared.append((item.name, kind, field(default=item.default, metadata=about)))
    own = {"kind": f"{of.kind}{SUFFIX}", "version": 1, "of": of, "__doc__": f"{of.__name__} at several checkpoints."}
    options: dict[str, Any] = {"frozen": True, "kw_only": True, "eq": False, "repr": False}
    made: type[Series] = make_dataclass(f"{of.__name__}Series", declared, bases=(base,), namespace=own, **options)
    made.__module__ = __name__
    return made


SpectrumSeries = _over_checkpoints(Spectrum, _Measured)
SharpnessSeries = _over_checkpoints(Sharpness, Series)
SurfaceSeries = _over_checkpoints(Surface, Series)

SERIES: dict[type[Result], type[Series]] = {kind.of: kind for kind in (SpectrumSeries, SharpnessSeries, SurfaceSeries)}
"""Kinds of results that have a series."""


def of_one(result: Result, checkpoint: str, **about: Any) -> Series:
    """Return the series of one checkpoint; `joined` combines several.

    Args:
        result: of a kind in `SERIES`.
        checkpoint: its name.
        about: `epoch`, `training_step`, `learning_rate` and `edge`, numbers or None; `edge_rule`; `provenance`; and
            numbers that only the series has.

    Returns:
        The series.

    Raises:
        InputError: there is no series of this kind of result.
    """
    if type(result) not in SERIES:
        names = ", ".join(kind.kind for kind in SERIES)
        raise InputError(f"a {result.kind} has no series along training: take one of {names}")
    kind = SERIES[type(result)]
    made: dict[str, Any] = {"checkpoints": (checkpoint,), "edge_rule": about.pop("edge_rule", "")}
    made["provenance"] = about.pop("provenance", result.provenance)
    for name in ("epoch", "training_step", "learning_rate", "edge"):
        value = about.pop(name, None)
        made[name] = np.array([math.nan if value is None else float(value)])
    for item in fields(kind):
        axes = item.metadata["axes"] or ()
        if item.name in about:
            made[item.name] = np.asarray(about[item.name])[None] if axes[:1] == (AXIS,) else about[item.name]
        elif item.name not in made and hasattr(result, item.name):
            value = getattr(result, item.name)
            if axes[:1] == (AXIS,) and value is not None:
                value = (value,) if isinstance(value, str) else np.asarray(value)[None]
            made[item.name] = value
    return kind(**made)


def joined(series: Sequence[T]) -> T:
    """Join series along their checkpoints, in the given order.

    Args:
        series: at least one, all of one kind and of the same parts.

    Returns:
        One series.

    Raises:
        InputError: they are of different kinds or of different samples.
    """
    # Checkpoints before the first step have no learning rate and no rule.
    rules = list(dict.fromkeys(one.edge_rule for one in series if one.edge_rule))
    rule = rules[0] if len(rules) == 1 else "the bound of each checkpoint's own optimizer" if rules else ""
    return concatenate([_with_rule(one, rule) for one in series])


def _with_rule(series: T, rule: str) -> T:
    values = {item.name: getattr(series, item.name) for item in fields(series)}
    return type(series)(**values | {"edge_rule": rule})
