"""What a run does: a recipe, whose fields are declared once, here.

The command line, the file `config.toml` and the checkpoints take their names, types and explanations from them.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from landscape.errors import InputError
from landscape.results import disk
from trainers.gsa import DIRECTIONS, FIRST_PASSES

_ELSEWHERE = ("out", "overwrite", "device", "workers", "tensorboard", "quiet", "config")
"""Options of the command that are none of a recipe."""


def _option(default: Any, help: str, *, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that changes the numbers of a run. None stands for what the data or another field decides."""

    dataset: str = _option("", "digits-lt, cifar10, cifar100, image-list, ... or package.module:callable.")
    data_root: str | None = _option(None, "Folder of the data; digits-lt needs none.")
    train_list: str | None = _option(None, "Of image-list: lines of `path label`.")
    test_list: str | None = _option(None, "Of image-list: lines of `path label`.")
    image_size: int | None = _option(None, "Side of the images of lists and folders.  [default: 224]")
    imbalance: float | None = _option(None, "Largest over smallest class: makes the long tail.")
    imbalance_type: str = _option("exp", "Shape of the long tail.", choices=("exp", "step"))
    data_seed: int = _option(0, "Of the long tail and of --validation.")
    normalize: str | None = _option(None, "imagenet, none, or m,m,m/s,s,s.  [default: the data set's own]")
    validation: float = _option(0.0, "Share of each class's training samples held out, by which best.pt is chosen.")
    augment: str | None = _option(None, "Views of a sample, such as crop-flip.  [default: by data and loss]")

    model: str = _option("small-resnet", "resnet32, ... or package.module:callable.")
    cosine: bool | None = _option(None, "A cosine-normalised classifier.  [default: with ldam and bcl]")

    loss: str = _option(
        "ce", "What is minimised.", choices=("ce", "focal", "ldam", "logit-adjust", "balanced", "vs", "bcl")
    )
    loss_options: str | None = _option(None, "Of the loss, such as gamma=0.3,tau=1.  [default: the loss's own]")
    reweight: str = _option("none", "drw: late in the run, classes weigh by effective number.", choices=("none", "drw"))
    drw_start: float = _option(0.8, "DRW, and SAM's step schedule: share of the run after which it begins.")
    drw_beta: float = _option(0.9999, "DRW: beta of the effective number of samples.")
    sharpness: str = _option("none", "Perturbation of each step.", choices=("none", "sam", "gsa"))
    gkp: bool = _option(False, "Keep the groups' convergence points.")

    rho: float = _option(0.05, "SAM: radius.  [default: that of the row's source]")
    rho_schedule: str = _option("constant", "SAM: radius over the run.", choices=("constant", "linear", "step"))
    rho_end: float | None = _option(None, "SAM: radius at the end of a linear or step schedule.")
    adaptive: bool = _option(False, "SAM and GSA: scale the perturbation of each parameter by its size.")

    groups: int = _option(4, "GSA and GKP: G, groups of classes.")
    radius_scale: float = _option(1e-2, "GSA: Z, the scale of the radii.")
    direction: str = _option("specific", "GSA: part of the group's gradient.", choices=DIRECTIONS)
    average: float = _option(0.9, "GSA: decay of the average gradient that is projected off; 0: the batch's.")
    perturb: str = _option("joint", "GSA: one second pass or one a group.", choices=("joint", "per-group"))
    first_pass: str = _option(
        "exact",
        "GSA: gradients of groups through the batch statistics, past them, or one for all.",
        choices=FIRST_PASSES,
    )
    clip: tuple[float, float] = _option((0.0, 1e-3), "GSA: smallest and largest Z rho_g; 0,1e9 leaves it as it is.")
    norm_term: bool = _option(False, "GSA: add the norm term of equation 15.")

    preservation: float = _option(100.0, "GKP: lambda.")
    divide_by: str = _option("samples", "GKP: what |G^j| counts.", choices=("samples", "classes"))
    pull_at: str = _option("theta", "GKP: where its gradient is taken, with GSA.", choices=("theta", "perturbed"))
    fisher_loss: str = _option("run", "GKP: the loss of the Fisher information.", choices=("run", "ce"))
    fisher_samples: int | None = _option(
        None, "GKP: at most so many samples of a group for its Fisher.  [default: all]"
    )
    alpha_start: float = _option(0.95, "GKP: weight of the data term at the start.")
    alpha_end: float = _option(0.6, "GKP: weight of the data term at the end.")

    group_after: float = _option(0.1, "GSA and GKP: share of the run before the first grouping.")
    regroup_every: float = _option(0.1, "GSA and GKP: share of the run between groupings; 0: never again.")
    centre: bool = _option(False, "GSA and GKP: centre the classes' parameters before comparing them.")
    quality_form: str = _option("paper", "Feature quality: S19, or the released code's.", choices=("paper", "inverse"))
    quality_beta: float = _option(0.5, "Feature quality: weight of the variance in S19.")

    epochs: int = _option(200, "Passes over the training set.")
    batch_size: int = _option(64, "Samples of one step, at most, over all ranks.")
    lr: float = _option(0.1, "Learning rate after the warm-up.")
    schedule: str = _option("cosine", "Fall of the learning rate.", choices=("cosine", "multistep", "constant"))
    milestones: tuple[int, ...] | None = _option(
        None, "Epochs of a multistep schedule.  [default: 80 and 90 % of the run]"
    )
    gamma: float = _option(0.1, "Factor at each milestone.")
    warmup_epochs: int = _option(1, "Over which the learning rate rises to --lr.")
    warmup_by: str = _option("step", "The warm-up rises with each step or epoch.", choices=("step", "epoch"))
    drop_last: bool = _option(False, "Leave out an epoch's last batch where it is not full.")
    momentum: float = _option(0.9, "Of the gradient.")
    nesterov: bool = _option(False, "Look ahead along the momentum.")
    weight_decay: float = _option(5e-4, "Of all parameters.")
    seed: int = _option(0, "Of the first weights, the order of samples and their augmentation.")

    bf16: bool = _option(False, "Forward passes in bfloat16 where torch's autocast does so.")
    compile: bool = _option(False, "Compile the model with torch.compile.")
    channels_last: bool = _option(False, "Images and filters in channels-last order.")

    snapshot_every: int = _option(0, "Epochs between the snapshots of the trajectory; 0: none.")
    evaluate_every: int = _option(1, "Epochs between measurements on test samples; first and last are measured.")
    statistics_every: int = _option(1, "Epochs between the class statistics of the training set; 0: never.")
    cosines_every: int = _option(0, "Epochs between the cosines of class and batch gradients; 0: never.")

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the views of a sample; empty while `augment` is open."""
        return tuple(self.augment.split(",")) if self.augment else ()

    @property
    def grouped(self) -> bool:
        """Say whether classes are grouped."""
        return self.gkp or self.sharpness == "gsa"


def flag(name: str) -> str:
    """Return the option of the command line that sets a field."""
    return f"--{name.replace('_', '-')}"


def first_difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the first field in which two plain recipes differ, with both values, or None."""
    for name in {**a, **b}:
        if a.get(name) != b.get(name):
            return name, a.get(name), b.get(name)
    return None


def plain(recipe: Recipe) -> dict[str, Any]:
    """Return the fields as JSON and TOML know them, without those that are None."""
    values = {item.name: getattr(recipe, item.name) for item in fields(recipe)}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v is not None}


def to_toml(values: Mapping[str, Any]) -> str:
    """Write plain fields as TOML; strings, numbers and lists of them are written as in JSON."""
    return "".join(f"{name} = {json.dumps(value, ensure_ascii=True)}\n" for name, value in values.items())


def read(path: Path) -> dict[str, Any]:
    """Read fields from a TOML file.

    Args:
        path: the file.

    Returns:
        The fields that it sets, and `method` and `benchmark` if it names them.

    Raises:
        InputError: the file cannot be read, or holds what a recipe has not.
    """
    values = disk.read_toml(path, InputError)
    known = {item.name: item.type for item in fields(Recipe)} | dict.fromkeys(("method", "benchmark"), str)
    for name, value in values.items():
        if name not in known:
            raise InputError(f"--config {path}: there is no option {name!r}{_instead(name, known)}")
        values[name] = _typed(f"--config {path}: {name}", value, known[name])
    return values


def _instead(name: str, known: Collection[str]) -> str:
    """Say what to write instead of a name that a recipe has not."""
    if name == "preset":
        return " in a file: it is called benchmark there"
    if name in _ELSEWHERE:
        return f" in a recipe, whose numbers it does not change: pass {flag(name)} on the command line"
    close = ", ".join(k for k in known if k.startswith(name[:3]))
    return f"; similar: {close}" if close else "; landscape train -h lists them all"


def _typed(where: str, value: Any, kind: Any) -> Any:
    kinds = set(kind.__args__) if hasattr(kind, "__args__") and not hasattr(kind, "__origin__") else {kind}
    for one in kinds - {type(None)}:
        origin = getattr(one, "__origin__", one)
        if origin is float and type(value) in {int, float}:
            return float(value)
        if origin is tuple and isinstance(value, list):
            return tuple(_typed(where, v, one.__args__[0]) for v in value)
        if type(value) is origin:
            return value
    names = " or ".join(getattr(k, "__name__", str(k)) for k in kinds - {type(None)})
    raise InputError(f"{where} must be {names}, got {value!r}")
