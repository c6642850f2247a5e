"""What a run does: a recipe of independent parts (loss, re-weighting, sharpness, preservation), and presets of it.

A recipe's fields are declared once, here: the command line, the file `config.toml` and the checkpoints take their
names, types and explanations from them.
"""

import json
import math
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from landscape.errors import InputError
from trainers.schedule import grouping


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
    reweight: str = _option(
        "none", "drw: from 80 % of the run on, classes weigh by effective number.", choices=("none", "drw")
    )
    sharpness: str = _option("none", "Perturbation of each step.", choices=("none", "sam", "gsa"))
    gkp: bool = _option(False, "Keep the groups' convergence points.")

    rho: float = _option(0.05, "SAM: radius.")
    rho_schedule: str = _option("constant", "SAM: radius over the run.", choices=("constant", "linear", "step"))
    rho_end: float | None = _option(None, "SAM: radius at the end of a linear or step schedule.")
    adaptive: bool = _option(False, "SAM and GSA: scale the perturbation of each parameter by its size.")

    groups: int = _option(4, "GSA and GKP: G, groups of classes.")
    radius_scale: float = _option(1e-2, "GSA: Z, the scale of the radii.")
    direction: str = _option("specific", "GSA: part of the group's gradient.", choices=("specific", "projected"))
    average: float = _option(0.9, "GSA: decay of the average gradient that is projected off; 0: the batch's.")
    perturb: str = _option("joint", "GSA: one second pass or one a group.", choices=("joint", "per-group"))
    first_pass: str = _option(
        "exact", "GSA: gradients of groups through the batch statistics, or past them.", choices=("exact", "decoupled")
    )
    clip: tuple[float, float] = _option((0.0, 1e-3), "GSA: smallest and largest Z rho_g; 0,1e9 leaves it as it is.")
    norm_term: bool = _option(False, "GSA: add the norm term of equation 15.")

    preservation: float = _option(100.0, "GKP: lambda.")
    divide_by: str = _option("samples", "GKP: what |G^j| counts.", choices=("samples", "classes"))
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
    momentum: float = _option(0.9, "Of the gradient.")
    nesterov: bool = _option(False, "Look ahead along the momentum.")
    weight_decay: float = _option(5e-4, "Of all parameters.")
    seed: int = _option(0, "Of the first weights, the order of samples and their augmentation.")

    bf16: bool = _option(False, "Forward passes in bfloat16 where torch's autocast does so.")
    compile: bool = _option(False, "Compile the model with torch.compile.")
    channels_last: bool = _option(False, "Images and filters in channels-last order.")

    snapshot_every: int = _option(0, "Epochs between the snapshots of the trajectory; 0: none.")
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


METHODS: dict[str, dict[str, Any]] = {
    "ce": {},
    "sam": {"sharpness": "sam"},
    "gsa-gkp": {"sharpness": "gsa", "gkp": True},
    "gsa": {"sharpness": "gsa"},
    "gkp": {"gkp": True},
    "focal": {"loss": "focal"},
    "ldam-drw": {"loss": "ldam", "reweight": "drw"},
    "ldam-drw-sam": {"loss": "ldam", "reweight": "drw", "sharpness": "sam"},
    "bcl": {"loss": "bcl"},
    "bcl-gkp": {"loss": "bcl", "gkp": True},
    "bcl-gsa": {"loss": "bcl", "sharpness": "gsa"},
    "bcl-gsa-gkp": {"loss": "bcl", "sharpness": "gsa", "gkp": True},
}
"""The rows of the paper's tables 1, 4 and 5, and Figure 9's columns ce, sam and gsa-gkp."""

_CIFAR: dict[str, Any] = {
    "model": "resnet32",
    "epochs": 200,
    "batch_size": 256,
    "lr": 0.15,
    "warmup_epochs": 5,
    "schedule": "multistep",
    "weight_decay": 5e-4,
    "cosines_every": 10,
}
BENCHMARKS: dict[str, dict[str, Any]] = {
    "digits-lt": {"dataset": "digits-lt", "model": "small-resnet", "epochs": 40, "batch_size": 32},
    "cifar10-lt": {"dataset": "cifar10", **_CIFAR},
    "cifar100-lt": {"dataset": "cifar100", **_CIFAR},
    "imagenet-lt": {
        "dataset": "image-list",
        "model": "resnet50",
        "epochs": 90,
        "batch_size": 256,
        "lr": 0.1,
        "warmup_epochs": 0,
        "weight_decay": 5e-4,
        "groups": 6,
    },
    "inaturalist2018": {
        "dataset": "image-list",
        "model": "resnet50",
        "epochs": 100,
        "batch_size": 256,
        "lr": 0.2,
        "warmup_epochs": 0,
        "weight_decay": 1e-4,
    },
}
"""Schedules of the paper's four benchmarks (section S7) and of the data that come with the package. The paper gives no
batch size for the two sets of large images; 256 is that of the learning rates' origin."""

_OF_DATASET = {"digits-lt": "digits-lt", "cifar10": "cifar10-lt", "cifar100": "cifar100-lt"}


def compose(
    given: Mapping[str, Any], *, method: str | None = None, benchmark: str | None = None, config: Path | None = None
) -> Recipe:
    """Put a recipe together; what comes later in this list wins: benchmark, method, configuration file, `given`.

    Args:
        given: fields of `Recipe`.
        method: a name of `METHODS`.
        benchmark: a name of `BENCHMARKS`; None takes the one that the data set belongs to, if any.
        config: a TOML file of fields of `Recipe`; it may also name a `method` and a `benchmark`.

    Returns:
        The recipe, checked as far as it can be without the data.

    Raises:
        InputError: an unknown name, a value of the wrong type, or values that do not fit together.
    """
    stored = {} if config is None else read(config)
    method = method or stored.pop("method", None)
    benchmark = benchmark or stored.pop("benchmark", None)
    stored.pop("method", None), stored.pop("benchmark", None)
    dataset = given.get("dataset") or stored.get("dataset")
    name = benchmark or _OF_DATASET.get(str(dataset))
    parts = {**_named(BENCHMARKS, "preset", name), **_named(METHODS, "method", method)}
    recipe = replace(Recipe(), **{**parts, **stored, **given})
    recipe = replace(
        recipe,
        cosine=recipe.loss in {"ldam", "bcl"} if recipe.cosine is None else recipe.cosine,
        milestones=_milestones(recipe),
    )
    check(recipe)
    return recipe


def label(recipe: Recipe) -> str:
    """Return the method that a recipe's parts make, or these parts joined by "+" where no method has them."""
    parts = {"loss": recipe.loss, "reweight": recipe.reweight, "sharpness": recipe.sharpness, "gkp": recipe.gkp}
    plain_parts = {name: getattr(Recipe(), name) for name in parts}
    for name, changes in METHODS.items():
        if plain_parts | changes == parts:
            return name
    chosen = (recipe.loss, recipe.reweight, recipe.sharpness, "gkp" if recipe.gkp else "none")
    return "+".join(word for word in chosen if word != "none")


def _named(table: Mapping[str, dict[str, Any]], what: str, name: str | None) -> dict[str, Any]:
    if name is None:
        return {}
    if name not in table:
        raise InputError(f"no {what} {name!r}; choose from {', '.join(table)}")
    return table[name]


def _milestones(recipe: Recipe) -> tuple[int, ...] | None:
    if recipe.schedule != "multistep" or recipe.milestones is not None:
        return recipe.milestones
    shares = {math.ceil(0.8 * recipe.epochs), math.ceil(0.9 * recipe.epochs)}  # 160 and 180 of 200
    return tuple(sorted(m for m in shares if m < recipe.epochs))  # of a run of a few epochs, one or none


def check(recipe: Recipe) -> None:
    """Raise InputError for the first field that does not fit, whatever the data are.

    Args:
        recipe: all fields set.

    Raises:
        InputError: a value out of its range, or two that exclude each other.
    """
    for item in fields(recipe):
        value, choices = getattr(recipe, item.name), item.metadata["choices"]
        if choices and value not in choices and not (item.name == "loss" and ":" in value):
            raise InputError(f"{flag(item.name)} must be one of {', '.join(choices)}, got {value!r}")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise InputError(f"{flag(item.name)} must be a finite number, got {number}")
    r = recipe
    steps = r.milestones or ()
    rules = (
        (bool(r.dataset), "there is no data: pass --dataset NAME or --preset NAME"),
        (0 <= r.validation < 1, f"--validation must be at least 0 and below 1, got {r.validation}"),
        (r.epochs >= 1, f"--epochs must be at least 1, got {r.epochs}"),
        (r.batch_size >= 1, f"--batch-size must be at least 1, got {r.batch_size}"),
        (r.lr > 0, f"--lr must be a positive number, got {r.lr}"),
        (0 <= r.momentum < 1, f"--momentum must be at least 0 and below 1, got {r.momentum}"),
        (r.momentum > 0 or not r.nesterov, "--nesterov needs a --momentum above 0"),
        (r.weight_decay >= 0, f"--weight-decay must not be negative, got {r.weight_decay}"),
        (
            0 <= r.warmup_epochs <= r.epochs,
            f"--warmup-epochs must be from 0 to --epochs {r.epochs}, got {r.warmup_epochs}",
        ),
        (r.seed >= 0 and r.data_seed >= 0, f"seeds must not be negative, got {min(r.seed, r.data_seed)}"),
        (
            all(m >= 1 for m in steps) and sorted(set(steps)) == list(steps),
            f"--milestones must be ascending epochs from 1 on, got {steps}",
        ),
        (r.milestones is None or r.schedule == "multistep", "--milestones need --schedule multistep"),
        (all(m < r.epochs for m in steps), f"--milestones {steps} lie beyond --epochs {r.epochs}: choose earlier ones"),
        (0 < r.gamma <= 1, f"--gamma must be above 0 and at most 1, got {r.gamma}"),
        (r.rho >= 0 and (r.rho_end or 0) >= 0, "--rho and --rho-end must not be negative"),
        (
            (r.rho_end is None) == (r.rho_schedule == "constant"),
            f"--rho-schedule {r.rho_schedule} {'needs' if r.rho_end is None else 'takes no'} --rho-end",
        ),
        (r.sharpness == "sam" or r.rho_schedule == "constant", "--rho-schedule needs --sharpness sam"),
        (r.sharpness != "none" or not r.adaptive, "--adaptive needs --sharpness sam or gsa"),
        (r.groups >= 1, f"--groups must be at least 1, got {r.groups}"),
        (0 <= r.average < 1, f"--average must be at least 0 and below 1, got {r.average}"),
        (r.radius_scale >= 0, f"--radius-scale must not be negative, got {r.radius_scale}"),
        (
            len(r.clip) == 2 and 0 <= r.clip[0] <= r.clip[1],
            f"--clip must be two numbers in ascending order, got {r.clip}",
        ),
        (r.preservation >= 0, f"--preservation must not be negative, got {r.preservation}"),
        (
            0 <= r.alpha_end <= 1 and 0 <= r.alpha_start <= 1,
            f"--alpha-start and --alpha-end must be from 0 to 1, got {r.alpha_start} and {r.alpha_end}",
        ),
        (0 <= r.group_after < 1, f"--group-after is a share of the run, from 0 to below 1, got {r.group_after}"),
        (0 <= r.regroup_every <= 1, f"--regroup-every is a share of the run, from 0 to 1, got {r.regroup_every}"),
        (
            not r.grouped or any(grouping(e, r.epochs, r.group_after, r.regroup_every) for e in range(r.epochs)),
            f"--epochs {r.epochs} with --group-after {r.group_after} ends before there are groups: raise --epochs",
        ),
        (
            r.fisher_samples is None or r.fisher_samples >= 1,
            f"--fisher-samples must be at least 1, got {r.fisher_samples}",
        ),
        (
            min(r.snapshot_every, r.statistics_every, r.cosines_every) >= 0,
            "--snapshot-every, --statistics-every and --cosines-every must not be negative",
        ),
        (
            r.statistics_every >= 1 or not r.grouped,
            "groups are made by the classes' feature quality: --statistics-every must be at least 1",
        ),
        (
            r.loss != "bcl" or r.first_pass == "exact",
            "--first-pass decoupled takes samples one by one, which the contrastive loss of bcl couples: use exact",
        ),
        (
            not r.compile or r.first_pass == "exact",
            "--compile may not see what --first-pass decoupled changes in batch norm: leave one out",
        ),
        (r.cosine is True or r.loss not in {"ldam", "bcl"}, f"--loss {r.loss} needs a cosine classifier: --cosine"),
        (
            not r.augment or len(r.views) == (3 if r.loss == "bcl" else 1),
            f"--augment {r.augment} names {len(r.views)} views, --loss {r.loss} takes {3 if r.loss == 'bcl' else 1}",
        ),
    )
    for fits, message in rules:
        if not fits:
            raise InputError(message)


def refuse_idle(recipe: Recipe, given: Collection[str]) -> None:
    """Raise InputError for the first option that changes nothing, as its part of the recipe is not there.

    Args:
        recipe: as `compose` made it.
        given: fields that the user has set.

    Raises:
        InputError: a field is of a part that the recipe lacks.
    """
    r = recipe
    parts = (
        (r.sharpness == "sam", "--sharpness sam", "rho rho_schedule rho_end"),
        (
            r.sharpness == "gsa",
            "--sharpness gsa",
            "radius_scale direction average perturb first_pass clip norm_term",
        ),
        (r.gkp, "--gkp", "preservation divide_by fisher_samples alpha_start alpha_end"),
        (r.grouped, "--sharpness gsa or --gkp", "groups group_after regroup_every centre"),
        (r.schedule == "multistep", "--schedule multistep", "gamma"),
    )
    for there, needed, names in parts:
        for name in names.split():
            if name in given and not there:
                raise InputError(f"{flag(name)} changes nothing without {needed}: add that, or leave it out")


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
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--config {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path} is not TOML: {error}") from error
    known = {item.name: item for item in fields(Recipe)}
    for name, value in values.items():
        if name in {"method", "benchmark"} and isinstance(value, str):
            continue
        if name not in known:
            close = ", ".join(k for k in known if k.startswith(name[:3])) or "see landscape train -h"
            raise InputError(f"--config {path}: there is no option {name!r}; similar: {close}")
        values[name] = _typed(f"--config {path}: {name}", value, known[name].type)
    return values


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
