"""Variants of a recipe: the choices of the paper, of its authors' code, or of the sources of its rows."""

from typing import Any

from landscape.errors import InputError, said
from trainers.recipes import Recipe

_CIFAR = ("cifar10", "cifar100")
_LDAM: dict[str, Any] = {"lr": 0.1, "batch_size": 128, "weight_decay": 2e-4, "gamma": 0.01, "warmup_by": "epoch"}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {
        "gsa": {
            "average": 0.0,
            "perturb": "per-group",
            "first_pass": "exact",
            "direction": "specific",
            "radius_scale": 1e-2,
            "clip": (0.0, 1e9),
            "adaptive": False,
            "norm_term": True,
        },
        "gkp": {"pull_at": "theta", "fisher_loss": "ce", "divide_by": "samples", "preservation": 100.0},
        "groups": {"quality_form": "paper", "quality_beta": 0.5},
    },
    "released": {
        "gsa": {
            "average": 0.9,
            "perturb": "joint",
            "first_pass": "shared",
            "direction": "difference",
            "radius_scale": 0.1,
            "clip": (2e-3, 3e-3),
            "adaptive": True,
            "norm_term": False,
        },
        "gkp": {"pull_at": "perturbed", "fisher_loss": "run", "divide_by": "samples", "preservation": 100.0},
        "groups": {"quality_form": "inverse"},
        "all": {"warmup_by": "epoch", "drop_last": True},
        "views": {"augment": "autoaugment-released,simclr,simclr"},
    },
    "source": {
        "ce": _LDAM,
        "focal": {**_LDAM, "loss_options": "gamma=1"},
        "ldam": _LDAM,
        "bcl": {"lr": 0.15, "batch_size": 256, "weight_decay": 5e-4, "warmup_by": "epoch"},
    },
}
"""Fields by the component of a recipe to which they belong.

"paper" is "Reframing Long-Tailed Learning via Loss Landscape Geometry" (CVPR 2026) to the letter. "released" is its
code (ChenShengHan100/gkp-gsa), with three exceptions: Q is computed on training samples instead of test samples, groups
are made only when there is a bank, and gradients are squared for samples instead of batches. "source" has the numbers
on long-tailed CIFAR of each row's own paper and code: Cao et al. 2019 for ce, focal and ldam, with or without DRW, and
also Rangwani et al. 2022 for SAM on these; Zhu et al. 2022 for bcl.
"""


def fields_of(variant: str | None, recipe: Recipe) -> dict[str, Any]:
    """Return the fields that a variant sets in a recipe.

    Args:
        variant: a name of `VARIANTS`; None sets nothing.
        recipe: its components and data determine the fields.

    Returns:
        Fields of `Recipe`.

    Raises:
        InputError: there is no such variant, or it sets nothing for this recipe.
    """
    if variant is None:
        return {}
    if variant not in VARIANTS:
        raise InputError(f"{said('variant', '--as')} must be one of {', '.join(VARIANTS)}, got {variant!r}")
    parts = {
        "gsa": recipe.sharpness == "gsa",
        "gkp": recipe.gkp,
        "groups": recipe.grouped,
        "all": recipe.grouped,
        "views": recipe.grouped and recipe.loss == "bcl" and recipe.dataset in _CIFAR,
        recipe.loss: variant == "source" and recipe.dataset in _CIFAR and not recipe.grouped,
    }
    found: dict[str, Any] = {}
    for part, values in VARIANTS[variant].items():
        found |= values if parts.get(part) else {}
    if found.get("pull_at") == "perturbed" and recipe.sharpness != "gsa":
        del found["pull_at"]  # without a perturbation there is only theta
    if not found:
        of = "ce, focal, ldam and bcl on cifar10 and cifar100" if variant == "source" else "recipes with GSA or GKP"
        raise InputError(f"{said('variant', '--as')} {variant} is for {of}: leave it out")
    return found
