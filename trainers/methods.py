"""Recipes by name: methods of independent parts (loss, re-weighting, sharpness, preservation), and benchmarks."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from landscape.callables import checked
from landscape.data import datasets
from landscape.errors import InputError, unknown
from trainers.losses import options_of
from trainers.recipes import PERTURBATIONS, Recipe, read, taken
from trainers.rules import check, refuse_idle
from trainers.variants import fields_of

METHODS: dict[str, dict[str, Any]] = {
    "ce": {},
    "sam": {"sharpness": "sam"},
    "gsa-gkp": {"sharpness": "gsa", "gkp": True},
    "gsa": {"sharpness": "gsa"},
    "gkp": {"gkp": True},
    "focal": {"loss": "focal"},
    "focal-sam": {"sharpness": "focal-sam"},
    "imbsam": {"sharpness": "imbsam"},
    "cc-sam": {"sharpness": "cc-sam"},
    "ldam-drw": {"loss": "ldam", "reweight": "drw"},
    "ldam-drw-sam": {"loss": "ldam", "reweight": "drw", "sharpness": "sam"},
    "bcl": {"loss": "bcl"},
    "bcl-gkp": {"loss": "bcl", "gkp": True},
    "bcl-gsa": {"loss": "bcl", "sharpness": "gsa"},
    "bcl-gsa-gkp": {"loss": "bcl", "sharpness": "gsa", "gkp": True},
}
"""The rows of the paper's tables 1, 4 and 5, the columns ce, sam and gsa-gkp of Figure 9, and three related methods."""

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
batch size for the two sets of large images; 256 belongs to the source of the learning rates."""

_RADII = {
    ("cifar10", "ce", "none"): 0.1,
    ("cifar10", "ce", "drw"): 0.5,
    ("cifar10", "ldam", "drw"): 0.8,
    ("cifar100", "ce", "none"): 0.2,
    ("cifar100", "ce", "drw"): 0.8,
    ("cifar100", "ldam", "drw"): 0.8,
}
"""Default of SAM's radius by data, loss and re-weighting: Rangwani et al. 2022, "Escaping saddle points for effective
generalization on class-imbalanced data", and their code. For all others it is 0.05, as in Foret et al. 2021."""

_BCL_OF_LARGE_IMAGES = "ce_weight=1,contrast_weight=0.35,temperature=0.07,hidden=2048,projected=1024"
"""The options of bcl on ImageNet-LT and iNaturalist: Zhu et al. 2022, and their released code."""

_PLAIN: dict[str, Any] = {name: getattr(Recipe(), name) for name in ("loss", "reweight", "sharpness", "gkp")}
_FOLLOWERS: dict[str, set[str]] = {
    "dataset": {"augment", "rho"},
    "loss": {"cosine", "augment", "loss_options", "rho"},
    "reweight": {"rho"},
    "sharpness": {*(field for fields in PERTURBATIONS.values() for field in fields), "pull_at"},
    "epochs": {"milestones"},
}
"""Fields that a file set for its own data, loss, re-weighting, sharpness and length, and that do not fit others."""

OWN = "samples of your own"
"""The data set of a recipe that names none."""


def compose(
    given: Mapping[str, Any],
    *,
    method: str | None = None,
    benchmark: str | None = None,
    config: Path | None = None,
    variant: str | None = None,
) -> Recipe:
    """Combine the sources of a recipe's fields; later entries of the following list override earlier ones.

    The benchmark of the data or the file, the method of the file, the fields of the file, `benchmark`, `method`,
    `variant`, `given`. A method sets its four components, a benchmark its fields; fields of the file that belong to
    something that is replaced are decided again, see `_FOLLOWERS`.

    Args:
        given: fields of `Recipe`.
        method: a name of `METHODS`.
        benchmark: a name of `BENCHMARKS`; None means that of the data set, if it has one.
        config: a TOML file of fields of `Recipe`; it may also name a `method` and a `benchmark`.
        variant: a name of `variants.VARIANTS`.

    Returns:
        The recipe, checked as far as possible without the data.

    Raises:
        InputError: an unknown name, a value of the wrong type, or values that do not fit together.
    """
    stored = {} if config is None else read(config)
    in_file = {name: stored.pop(name, None) for name in ("method", "benchmark")}
    dataset = given.get("dataset") or stored.get("dataset")
    parts = _schedule(in_file["benchmark"] or _benchmark_of(dataset)) | _parts(in_file["method"]) | stored
    chosen = _schedule(benchmark) | _parts(method)
    of_file = _schedule(in_file["benchmark"]) | _parts(in_file["method"]) | stored
    outdated = _outdated(of_file, replace(Recipe(), **{**parts, **chosen, **given}))
    parts = {field: value for field, value in parts.items() if field not in outdated}
    recipe = replace(Recipe(), **{**parts, **chosen, **given})
    named = {**parts, **chosen, **fields_of(variant, recipe), **given}
    recipe = replace(recipe, **named)
    recipe = replace(
        recipe,
        rho=named.get("rho", _radius(recipe)),
        loss_options=_loss_options(recipe),
        cosine=_cosine(recipe.loss, recipe.model) if recipe.cosine is None else recipe.cosine,
        milestones=_milestones(recipe),
    )
    if "warmup_epochs" not in given:
        recipe = replace(recipe, warmup_epochs=min(recipe.warmup_epochs, recipe.epochs))  # one value for a short run
    check(recipe)
    return recipe


@checked
def recipe(method: str, *, preset: str | None = None, variant: str | None = None, **fields: Any) -> Recipe:
    """Return the recipe of a method, as `landscape train` would make it.

        recipe("gsa-gkp", dataset="digits-lt", epochs=20, seed=1)

    Args:
        method: a name of `METHODS`.
        preset: a name of `BENCHMARKS`; None means that of the data set, if it has one.
        variant: "paper", "released" or "source": the source of open choices; see `variants`.
        fields: of `Recipe`; the names of the options of `landscape train` with _ instead of -.

    Returns:
        The recipe. Without a data set it is for `train` with your own samples.

    Raises:
        InputError: an unknown name, or values that do not fit together.
    """
    fields = {name: taken(name, value) for name, value in fields.items()}
    made = compose(
        {"dataset": OWN, **fields} if preset is None else fields, method=method, benchmark=preset, variant=variant
    )
    refuse_idle(made, fields)
    return made


def changed(recipe: Recipe, *, model: str) -> Recipe:
    """Return a recipe for another model; the classifier is decided again if the recipe has its default one.

    Args:
        recipe: of another model.
        model: name of this one.

    Returns:
        The recipe.

    Raises:
        InputError: the model does not fit the recipe.
    """
    own = recipe.cosine not in {None, _cosine(recipe.loss, recipe.model)}
    made = replace(recipe, model=model, cosine=recipe.cosine if own else _cosine(recipe.loss, model))
    check(made)
    return made


def _outdated(of_file: Mapping[str, Any], recipe: Recipe) -> set[str]:
    """Return the fields of a file that belong to a part of it, such as its loss, which a recipe has replaced."""
    replaced = [name for name in _FOLLOWERS if name in of_file and of_file[name] != getattr(recipe, name)]
    found = {field for name in replaced for field in _FOLLOWERS[name]}
    if "dataset" in replaced and recipe.loss == "bcl" and _of_files(of_file["dataset"]) != _of_files(recipe.dataset):
        found.add("loss_options")
    return found


def _loss_options(recipe: Recipe) -> str | None:
    """Return the options of the loss; those of bcl on large images replace only what is not given."""
    given = recipe.loss_options
    if recipe.loss != "bcl" or not _of_files(recipe.dataset):
        return given or None
    options_of(given)  # refuses what is no list of options
    words = [word for text in (_BCL_OF_LARGE_IMAGES, given) if text for word in text.split(",")]
    return ",".join({word.partition("=")[0].strip(): word.strip() for word in words}.values())


def _radius(recipe: Recipe) -> float:
    return _RADII.get((recipe.dataset, recipe.loss, recipe.reweight), 0.05) if recipe.sharpness == "sam" else 0.05


def _cosine(loss: str, model: str) -> bool:
    return loss in {"ldam", "bcl"} and ":" not in model


def label(recipe: Recipe) -> str:
    """Return the name of the method with a recipe's components, or the components joined by "+" if there is none."""
    parts = {name: getattr(recipe, name) for name in _PLAIN}
    for name, changes in METHODS.items():
        if _PLAIN | changes == parts:
            return name
    chosen = (recipe.loss, recipe.reweight, recipe.sharpness, "gkp" if recipe.gkp else "none")
    return "+".join(word for word in chosen if word != "none")


def _schedule(name: str | None) -> dict[str, Any]:
    return _named(BENCHMARKS, "preset", name)


def _parts(name: str | None) -> dict[str, Any]:
    """Return the four components of a method, including the plain ones, of which ce consists."""
    return _PLAIN | _named(METHODS, "method", name) if name else {}


def _benchmark_of(dataset: Any) -> str | None:
    """Return the benchmark of a data set; None if there is none, or several, as for `image-list`."""
    found = [name for name, fields in BENCHMARKS.items() if fields["dataset"] == dataset]
    return found[0] if len(found) == 1 else None


def _named(table: Mapping[str, dict[str, Any]], what: str, name: str | None) -> dict[str, Any]:
    if name is None:
        return {}
    if name not in table:
        raise InputError(unknown(name, table, what))
    return table[name]


def _milestones(recipe: Recipe) -> tuple[int, ...] | None:
    if recipe.schedule != "multistep" or recipe.milestones is not None:
        return recipe.milestones
    shares = {math.ceil(0.8 * recipe.epochs), math.ceil(0.9 * recipe.epochs)}  # 160 and 180 of 200
    return tuple(sorted(m for m in shares if m < recipe.epochs))  # one or none for a run of a few epochs


def _of_files(dataset: str) -> bool:
    """Say whether a data set is read from image files, which are usually large."""
    return dataset in datasets.DATASETS and "image_size" in datasets.DATASETS[dataset].takes
