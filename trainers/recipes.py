"""What a run does: a recipe, whose fields are declared once, here.

The command line, the file `config.toml` and the checkpoints take their names, types and explanations from them.
"""

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from landscape.data import datasets
from landscape.errors import InputError, arg, unknown
from landscape.networks import losses, models
from landscape.results import disk
from landscape.results.features import QUALITY
from trainers.gsa import DIRECTIONS, FIRST_PASSES

PERTURBATIONS: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "sam": ("rho", "rho_schedule", "rho_end", "adaptive"),
    "gsa": ("radius_scale", "direction", "average", "perturb", "first_pass", "clip", "norm_term", "adaptive"),
    "focal-sam": ("rho", "sharpness_share", "sharpness_gamma", "adaptive"),
    "imbsam": ("rho", "tail_most", "adaptive"),
    "cc-sam": ("radius_scale", "sharpness_share"),
}
"""The ways to perturb the weights in each step, and the fields of a recipe that each way uses."""

HEADINGS = {
    "dataset": "Data",
    "model": "Network",
    "loss": "Loss and method",
    "rho": "SAM",
    "groups": "Groups of classes, GSA and GKP",
    "quality_form": "Feature quality",
    "epochs": "Schedule",
    "bf16": "Speed",
    "snapshot_every": "Measurements",
}
"""The first field under each heading of the help."""

_ELSEWHERE = ("out", "overwrite", "device", "workers", "tensorboard", "monitor", "quiet", "config")
"""Options of the command that are not fields of a recipe."""


def _option(default: Any, help: str, *, choices: tuple[str, ...] = (), otherwise: str = "") -> Any:
    """Declare a field with its default, help and choices; `otherwise` describes the default in words."""
    return field(default=default, metadata={"help": help, "choices": choices, "otherwise": otherwise})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings that change the numbers of a run. A value of None lets the data or another field decide."""

    dataset: str = _option("", f"Train on this data set: {', '.join(datasets.names())} or package.module:callable.")
    data_root: str | None = _option(None, "Read the data from this folder; digits-lt needs none.")
    train_list: str | None = _option(None, "Read the training images from lines `path label` (image-list).")
    test_list: str | None = _option(None, "Read the test images from lines `path label` (image-list).")
    image_size: int | None = _option(
        None, "Crop the images of image-list and image-folder to squares with this side.", otherwise="224"
    )
    imbalance: float | None = _option(
        None, "Make the data long-tailed: the largest class is this many times as large as the smallest."
    )
    imbalance_type: str = _option("exp", "Choose the shape of the long tail.", choices=tuple(datasets.IMBALANCE))
    imbalance_draw: str = _option(
        "own",
        "Draw the samples of the long tail as this package does, or as the code of LDAM-DRW.",
        choices=tuple(datasets.DRAWS),
    )
    data_seed: int = _option(0, "Seed the choice of samples for --imbalance and --validation.")
    normalize: str | None = _option(
        None, "Normalise images by imagenet, none, or mean,.../std,...", otherwise="the data set's own"
    )
    validation: float = _option(
        0.0, "Hold out this fraction of each class's training samples, and choose best.pt by the accuracy on them."
    )
    augment: str | None = _option(
        None, "Choose how samples are augmented, such as crop-flip.", otherwise="by data and loss"
    )

    model: str = _option("small-resnet", f"Train this network: {', '.join(models.names())} or package.module:callable.")
    cosine: bool | None = _option(
        None, "Give the network a cosine-normalised classifier.", otherwise="with ldam and bcl"
    )

    loss: str = _option("ce", "Minimise this loss.", choices=(*losses.names(), "bcl"))
    loss_options: str | None = _option(
        None, "Set options of the loss, such as gamma=0.3,tau=1.", otherwise="the loss's own"
    )
    reweight: str = _option(
        "none", "Re-weight the classes by their effective number of samples, late in the run.", choices=("none", "drw")
    )
    drw_start: float = _option(
        0.8, "Begin DRW, and change SAM's radius in the step schedule, after this fraction of the run."
    )
    drw_beta: float = _option(0.9999, "Set beta of the effective number of samples (DRW).")
    sharpness: str = _option("none", "Choose how the weights are perturbed in each step.", choices=tuple(PERTURBATIONS))
    gkp: bool = _option(False, "Keep the weights near the groups' convergence points.")

    rho: float = _option(
        0.05,
        "Perturb the weights within this radius (SAM, Focal-SAM, ImbSAM).",
        otherwise="that of the method's paper, or 0.05",
    )
    rho_schedule: str = _option(
        "constant", "Choose how SAM's radius changes over the run.", choices=("constant", "linear", "step")
    )
    rho_end: float | None = _option(None, "End a linear or step schedule with this radius (SAM).")
    sharpness_share: float = _option(
        0.5, "Set the weight of the perturbed loss: lambda of Focal-SAM, the flat share of CC-SAM."
    )
    sharpness_gamma: float = _option(3.0, "Set the power gamma by which rare classes gain weight (Focal-SAM).")
    tail_most: int = _option(100, "Perturb only for classes with at most this many training samples (ImbSAM).")
    adaptive: bool = _option(False, "Scale the perturbation of each parameter by its size (SAM and GSA).")

    groups: int = _option(4, "Make this many groups of classes: the paper's G.")
    radius_scale: float = _option(1e-2, "Scale the radii by this factor: the paper's Z (GSA, CC-SAM).")
    direction: str = _option(
        "specific", "Perturb along this component of a group's gradient (GSA).", choices=DIRECTIONS
    )
    average: float = _option(
        0.9, "Set the decay of the average gradient that is projected out; 0 uses the gradient of the batch (GSA)."
    )
    perturb: str = _option(
        "joint", "Use one second pass for all groups, or one for each group (GSA).", choices=("joint", "per-group")
    )
    first_pass: str = _option(
        "exact",
        "Differentiate each group's loss through the batch statistics, or with them constant, or use one gradient for "
        "all groups (GSA).",
        choices=FIRST_PASSES,
    )
    clip: tuple[float, float] = _option(
        (0.0, 1e-3), "Clip Z rho_g to the interval between these two numbers; 0,1e9 does not change it (GSA)."
    )
    norm_term: bool = _option(False, "Add the norm term of equation 15 (GSA).")

    preservation: float = _option(100.0, "Set the weight of the preservation term: the paper's lambda (GKP).")
    divide_by: str = _option(
        "samples", "Choose what |G^j|, the size of a group, counts (GKP).", choices=("samples", "classes")
    )
    pull_at: str = _option(
        "theta",
        "Compute the gradient of the preservation term at these weights, with GSA (GKP).",
        choices=("theta", "perturbed"),
    )
    fisher_loss: str = _option("run", "Compute the Fisher information of this loss (GKP).", choices=("run", "ce"))
    fisher_samples: int | None = _option(
        None, "Use at most this many samples of a group for its Fisher information (GKP).", otherwise="all"
    )
    alpha_start: float = _option(0.95, "Set the weight of the data term at the start of the run (GKP).")
    alpha_end: float = _option(0.6, "Set the weight of the data term at the end of the run (GKP).")

    group_after: float = _option(0.1, "Group the classes for the first time after this fraction of the run.")
    regroup_every: float = _option(
        0.1,
        "Group the classes again each time this fraction of the run has passed; 0 groups them once, into several.",
    )
    centre: bool = _option(False, "Subtract the mean of the classes' parameters before they are compared.")
    quality_form: str = _option(
        "paper", "Define feature quality by equation S19, or as in the released code.", choices=tuple(QUALITY)
    )
    quality_beta: float = _option(0.5, "Set beta, the weight of the variance in equation S19.")

    epochs: int = _option(200, "Pass over the training set this many times.")
    batch_size: int = _option(64, "Use at most this many samples in a step, over all processes.")
    lr: float = _option(0.1, "Set the learning rate after the warm-up.")
    schedule: str = _option(
        "cosine", "Choose how the learning rate falls.", choices=("cosine", "multistep", "constant")
    )
    milestones: tuple[int, ...] | None = _option(
        None, "Lower the learning rate after these epochs (multistep).", otherwise="80 and 90 % of the run"
    )
    gamma: float = _option(0.1, "Multiply the learning rate by this at each milestone.")
    warmup_epochs: int = _option(1, "Raise the learning rate to --lr over this many epochs.")
    warmup_by: str = _option(
        "step", "Raise the learning rate after each step or each epoch of the warm-up.", choices=("step", "epoch")
    )
    drop_last: bool = _option(False, "Skip the last batch of an epoch if it is not full.")
    momentum: float = _option(0.9, "Set the momentum of SGD.")
    nesterov: bool = _option(False, "Use Nesterov momentum.")
    weight_decay: float = _option(5e-4, "Set the weight decay, which applies to all parameters.")
    seed: int = _option(0, "Seed the initial weights, the order of samples and their augmentation.")

    bf16: bool = _option(False, "Run the forward passes in bfloat16 with torch's autocast.")
    compile: bool = _option(False, "Compile the model with torch.compile.")
    channels_last: bool = _option(False, "Store images and filters in channels-last order.")

    snapshot_every: int = _option(0, "Keep a snapshot every N epochs; 0 keeps none.")
    evaluate_every: int = _option(1, "Measure on the test samples every N epochs, and after the first and the last.")
    statistics_every: int = _option(1, "Measure the features of the training set every N epochs; 0 never does.")
    cosines_every: int = _option(0, "Measure the cosines of class and batch gradients every N epochs; 0 never does.")

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the views of a sample; empty while `augment` is None."""
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
    """Return the fields as values of JSON and TOML, without those that are None."""
    values = {item.name: getattr(recipe, item.name) for item in fields(recipe)}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v is not None}


def to_toml(values: Mapping[str, Any]) -> str:
    """Write plain fields as TOML.

    Args:
        values: numbers, strings and lists of them by the names of fields; all are written as in JSON.

    Returns:
        One line for each field.

    Raises:
        InputError: a string, such as the name of a folder, is no text.
    """
    for name, value in values.items():
        if isinstance(value, str) and value.encode("utf-8", "replace").decode() != value:
            raise InputError(f"{flag(name)} {value!a} is no text in UTF-8: rename it")
    # Without JSON's escapes: those of characters beyond U+FFFF are no TOML. U+007F must be escaped in TOML only.
    lines = (f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items())
    return "".join(lines).replace("\x7f", "\\u007f")


def read(path: Path) -> dict[str, Any]:
    """Read fields from a TOML file.

    Args:
        path: the file.

    Returns:
        The fields that it sets, and `method` and `benchmark` if it names them.

    Raises:
        InputError: the file cannot be read, or sets something that is no field of a recipe.
    """
    values = disk.read_toml(path, InputError)
    known = {item.name: item.type for item in fields(Recipe)} | dict.fromkeys(("method", "benchmark"), str)
    for name, value in values.items():
        if name not in known:
            raise InputError(f"{arg('config', path)}: there is no option {name!r}{_instead(name, known)}")
        values[name] = _typed(f"{arg('config', path)}: {name}", value, known[name])
    return values


def taken(name: str, value: Any) -> Any:
    """Return a value of a field as a recipe stores it.

    Args:
        name: of the field.
        value: may also be a path for a string, a list for a tuple, or a number of NumPy.

    Returns:
        The value.

    Raises:
        InputError: no field has this name, or the value is of another type.
    """
    known = {item.name: item.type for item in fields(Recipe)}
    if name not in known:
        raise InputError(unknown(name, known, "field", where=" of a recipe"))
    if value is None and type(None) in getattr(known[name], "__args__", ()):
        return None
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, np.generic):
        value = value.item()
    return _typed(arg(name), list(value) if isinstance(value, tuple) else value, known[name])


def _instead(name: str, known: Collection[str]) -> str:
    """Say what to write instead of a name that is no field of a recipe."""
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
