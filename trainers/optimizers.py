"""The optimizer of a recipe: SGD, alone or within one that perturbs the weights in each step."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.data.datasets import Samples
from landscape.errors import InputError, arg
from trainers.class_sam import ClassSAM, focal_weights, tail_weights
from trainers.gsa import GSA
from trainers.passes import Reduce
from trainers.recipes import Recipe
from trainers.sam import SAM


def optimizer_of(recipe: Recipe, model: nn.Module, train: Samples, reduce: Reduce) -> torch.optim.Optimizer:
    """Make the optimizer of a recipe.

    Args:
        recipe: all fields set.
        model: its parameters that require a gradient are trained.
        train: the training set.
        reduce: sums a tensor over all ranks, in place.

    Returns:
        The optimizer.

    Raises:
        InputError: it would perturb the weights for no class.
    """
    r = recipe
    chosen = [p for p in model.parameters() if p.requires_grad]
    options: dict[str, Any] = {
        "lr": r.lr,
        "momentum": r.momentum,
        "nesterov": r.nesterov,
        "weight_decay": r.weight_decay,
    }
    options_of_both: dict[str, Any] = {"model": model, "reduce": reduce, **options}
    if r.sharpness == "sam":
        return SAM(chosen, torch.optim.SGD, rho=r.rho, adaptive=r.adaptive, **options_of_both)
    if r.sharpness in {"focal-sam", "imbsam"}:
        counts = train.class_counts
        weights = (
            focal_weights(counts, r.sharpness_share, r.sharpness_gamma)
            if r.sharpness == "focal-sam"
            else _of_tail(counts, r.tail_most)
        )
        return ClassSAM(chosen, torch.optim.SGD, weights=weights, rho=r.rho, adaptive=r.adaptive, **options_of_both)
    if r.sharpness == "gsa":
        return GSA(
            chosen,
            torch.optim.SGD,
            counts=[len(train)],
            scale=r.radius_scale,
            direction=r.direction,
            average=r.average,
            perturb=r.perturb,
            first_pass=r.first_pass,
            adaptive=r.adaptive,
            clip=r.clip,
            norm_term=r.norm_term,
            **options_of_both,
        )
    plain = torch.optim.SGD(chosen, **options)
    if r.sharpness != "none":  # CC-SAM perturbs within its loss
        plain.param_groups[0]["radius_scale"] = r.radius_scale
    return plain


def _of_tail(counts: np.ndarray, most: int) -> Tensor:
    """Return the class weights of ImbSAM, which must leave a class to perturb for."""
    rarest = counts[counts > 0].min()
    if rarest > most:
        raise InputError(
            f"{arg('tail_most', most)} perturbs for no class, as the rarest has {rarest} training samples: raise it"
        )
    return tail_weights(counts, most)
