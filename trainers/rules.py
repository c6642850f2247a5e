"""The rules for recipes: ranges of fields, and fields that need or exclude each other."""

import math
from collections.abc import Callable, Collection
from dataclasses import fields
from typing import TypeAlias

import numpy as np

from landscape.errors import InputError, arg, check_choice
from landscape.networks.losses import build
from landscape.networks.models import COSINE_SCALE
from trainers import losses
from trainers.recipes import PERTURBATIONS, Recipe, taken
from trainers.schedule import filled, grouping, needed

Rules: TypeAlias = tuple[tuple[bool, str], ...]
"""Conditions that a recipe must fulfil, each with the message for one that does not."""

LARGEST = float(np.finfo(np.float32).max)
"""The largest number that an option may have."""
OWN = ("loss",)
"""Options that also take a name `package.module:callable` beside their choices."""
MOST_EPOCHS = 1_000_000
"""The largest number of epochs, each of which has a place in the schedule and in the history."""


def check(recipe: Recipe) -> None:
    """Raise InputError for the first invalid field, independently of the data.

    Args:
        recipe: all fields set.

    Raises:
        InputError: a value out of its range or of the wrong type, or two that exclude each other.
    """
    for item in fields(recipe):
        value, choices = taken(item.name, getattr(recipe, item.name)), item.metadata["choices"]
        if choices and not (item.name in OWN and ":" in value):
            check_choice(item.name, value, choices)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise InputError(f"{arg(item.name)} must be a finite number, got {number}")
            if isinstance(number, float) and abs(number) > LARGEST:
                raise InputError(f"{arg(item.name)} must be at most {LARGEST:.3g}, as float32 goes no further")
    r, own = recipe, ":" in recipe.model
    for rules in (_of_schedule, _of_perturbation, _of_groups, _of_measures):  # later ones rely on earlier ones
        for fits, message in rules(r):
            if not fits:
                raise InputError(message)
    options = losses.options_of(r.loss_options)
    if r.loss == "bcl":
        losses.bcl_of(options)
    elif options:
        build(r.loss, np.ones(2), **options)
    if r.loss == "ldam" and not own and options.get("scale", COSINE_SCALE) != COSINE_SCALE:
        raise InputError(
            f"scale={options['scale']:g} of {arg('loss_options')} is not that of the classifier of {r.model}, "
            f"{COSINE_SCALE:g}: "
            "leave it out, or choose max_margin"
        )


def _of_schedule(r: Recipe) -> Rules:
    """Return the rules of data and schedule."""
    steps = r.milestones or ()
    return (
        (bool(r.dataset), f"there is no data: pass {arg('dataset')} or {arg('preset')}"),
        (0 <= r.validation < 1, f"{arg('validation')} must be at least 0 and below 1, got {r.validation}"),
        (r.epochs >= 1, f"{arg('epochs')} must be at least 1, got {r.epochs}"),
        (r.epochs <= MOST_EPOCHS, f"{arg('epochs')} must be at most {MOST_EPOCHS:,}"),
        (r.batch_size >= 1, f"{arg('batch_size')} must be at least 1, got {r.batch_size}"),
        (r.lr > 0, f"{arg('lr')} must be a positive number, got {r.lr}"),
        (0 <= r.momentum < 1, f"{arg('momentum')} must be at least 0 and below 1, got {r.momentum}"),
        (r.momentum > 0 or not r.nesterov, f"{arg('nesterov', True)} needs a {arg('momentum')} above 0"),
        (r.weight_decay >= 0, f"{arg('weight_decay')} must not be negative, got {r.weight_decay}"),
        (
            0 <= r.warmup_epochs <= r.epochs,
            f"{arg('warmup_epochs')} must be from 0 to {arg('epochs', r.epochs)}, got {r.warmup_epochs}",
        ),
        (r.seed >= 0 and r.data_seed >= 0, f"seeds must not be negative, got {min(r.seed, r.data_seed)}"),
        (
            all(m >= 1 for m in steps) and sorted(set(steps)) == list(steps),
            f"{arg('milestones')} must be ascending epochs from 1 on, got {steps}",
        ),
        (r.milestones is None or r.schedule == "multistep", f"{arg('milestones')} need {arg('schedule', 'multistep')}"),
        (
            all(m < r.epochs for m in steps),
            f"{arg('milestones', steps)} lie beyond {arg('epochs', r.epochs)}: choose earlier ones",
        ),
        (0 < r.gamma <= 1, f"{arg('gamma')} must be above 0 and at most 1, got {r.gamma}"),
    )


def _of_perturbation(r: Recipe) -> Rules:
    """Return the rules of SAM and its variants."""
    return (
        (r.rho >= 0, f"{arg('rho')} must not be negative, got {r.rho}"),
        ((r.rho_end or 0) >= 0, f"{arg('rho_end')} must not be negative, got {r.rho_end}"),
        (
            (r.rho_end is None) == (r.rho_schedule == "constant"),
            f"{arg('rho_schedule', r.rho_schedule)} {'needs' if r.rho_end is None else 'takes no'} {arg('rho_end')}",
        ),
        (
            r.sharpness == "sam" or r.rho_schedule == "constant",
            f"{arg('rho_schedule')} needs {arg('sharpness', 'sam')}",
        ),
        (
            "adaptive" in PERTURBATIONS.get(r.sharpness, ()) or not r.adaptive,
            f"{arg('adaptive', True)} needs {_perturbing('adaptive')}",
        ),
        (
            0 <= r.sharpness_share <= 1,
            f"{arg('sharpness_share')} must be from 0 to 1, got {r.sharpness_share}",
        ),
        (r.sharpness_gamma >= 0, f"{arg('sharpness_gamma')} must not be negative, got {r.sharpness_gamma}"),
        (r.tail_most >= 1, f"{arg('tail_most')} must be at least 1, got {r.tail_most}"),
        (
            r.sharpness != "cc-sam" or r.reweight == "none",
            f"{arg('sharpness', 'cc-sam')} takes the losses of each class by itself, which {arg('reweight', 'drw')} "
            "does not: leave one out",
        ),
        (
            r.sharpness != "cc-sam" or not r.compile,
            f"{arg('sharpness', 'cc-sam')} has several backward passes in each step, for which a compiled graph is not "
            f"made: leave {arg('compile', True)} out",
        ),
        (
            r.sharpness != "cc-sam" or r.loss != "bcl",
            f"{arg('sharpness', 'cc-sam')} perturbs the classifier, whose weights bcl makes prototypes of: choose "
            f"another {arg('loss')}",
        ),
    )


def _of_groups(r: Recipe) -> Rules:
    """Return the rules of groups, GSA and GKP."""
    remedy = f" or lower {arg('statistics_every')}" if r.statistics_every > 1 else ""
    return (
        (r.groups >= 1, f"{arg('groups')} must be at least 1, got {r.groups}"),
        (0 <= r.average < 1, f"{arg('average')} must be at least 0 and below 1, got {r.average}"),
        (r.radius_scale >= 0, f"{arg('radius_scale')} must not be negative, got {r.radius_scale}"),
        (
            len(r.clip) == 2 and 0 <= r.clip[0] <= r.clip[1],
            f"{arg('clip')} must be two numbers in ascending order, got {r.clip}",
        ),
        (r.preservation >= 0, f"{arg('preservation')} must not be negative, got {r.preservation}"),
        (
            0 <= r.alpha_end <= 1 and 0 <= r.alpha_start <= 1,
            f"{arg('alpha_start')} and {arg('alpha_end')} must be from 0 to 1, got {r.alpha_start} and {r.alpha_end}",
        ),
        (
            0 <= r.group_after < 1,
            f"{arg('group_after')} must be a fraction of the run, at least 0 and below 1, got {r.group_after}",
        ),
        (
            0 <= r.regroup_every <= 1,
            f"{arg('regroup_every')} must be a fraction of the run, from 0 to 1, got {r.regroup_every}",
        ),
        (
            not r.grouped or r.statistics_every < 1 or any(map(groups_after(r), range(r.epochs))),
            f"{arg('epochs', r.epochs)} with {arg('group_after', r.group_after)} ends before there are groups, as the "
            f"memory bank needs {needed(r.groups)} epochs after the warm-up of {r.warmup_epochs} and sees one in "
            f"{r.statistics_every}: raise {arg('epochs')}{remedy}",
        ),
        (
            r.fisher_samples is None or r.fisher_samples >= 1,
            f"{arg('fisher_samples')} must be at least 1, got {r.fisher_samples}",
        ),
    )


def _of_measures(r: Recipe) -> Rules:
    """Return the rules of measurements and of combinations."""
    own = ":" in r.model
    return (
        (r.evaluate_every >= 1, f"{arg('evaluate_every')} must be at least 1, got {r.evaluate_every}"),
        (
            min(r.snapshot_every, r.statistics_every, r.cosines_every) >= 0,
            f"{arg('snapshot_every')}, {arg('statistics_every')} and {arg('cosines_every')} must not be negative",
        ),
        (
            r.statistics_every >= 1 or not r.grouped,
            f"groups are made by the classes' feature quality: {arg('statistics_every')} must be at least 1",
        ),
        (
            r.loss != "bcl" or r.first_pass != "decoupled",
            f"{arg('first_pass', 'decoupled')} treats each sample alone, which the contrastive loss of bcl does "
            "not: use exact",
        ),
        (
            r.cosine is True or r.loss not in {"ldam", "bcl"} or own,
            f"{arg('loss', r.loss)} needs a cosine classifier: {arg('cosine', True)}",
        ),
        (
            not r.cosine or not own,
            f"{arg('cosine', True)} is for the models of this package, {r.model} brings its own classifier: leave "
            "it out, and end the model with landscape.networks.models.NormedLinear(features, classes)",
        ),
        (
            r.pull_at == "theta" or (r.sharpness == "gsa" and r.perturb == "joint"),
            f"{arg('pull_at', 'perturbed')} needs {arg('sharpness', 'gsa')} and {arg('perturb', 'joint')}: otherwise "
            "there is no single perturbation",
        ),
        (
            0 <= r.drw_start < 1,
            f"{arg('drw_start')} must be a fraction of the run, at least 0 and below 1, got {r.drw_start}",
        ),
        (0 <= r.drw_beta < 1, f"{arg('drw_beta')} must be at least 0 and below 1, got {r.drw_beta}"),
        (
            not r.augment or len(r.views) == (3 if r.loss == "bcl" else 1),
            f"{arg('augment', r.augment)} names {len(r.views)} views, {arg('loss', r.loss)} takes "
            f"{3 if r.loss == 'bcl' else 1}",
        ),
    )


def groups_after(recipe: Recipe) -> Callable[[int], bool]:
    """Return a function that says for each epoch whether classes are grouped after it.

    The bank must contain several epochs by then.

    Args:
        recipe: of a run with groups.

    Returns:
        Function of the epoch, from 1, with a boolean result.
    """
    r = recipe
    ready = filled(needed(r.groups), r.warmup_epochs, r.statistics_every)
    return lambda epoch: grouping(epoch, r.epochs, r.group_after, r.regroup_every, ready)


def refuse_idle(recipe: Recipe, given: Collection[str]) -> None:
    """Raise InputError for the first option without effect, because the recipe lacks the component to which it belongs.

    Args:
        recipe: from `compose`.
        given: fields that the user has set.

    Raises:
        InputError: a field belongs to a component that the recipe lacks.
    """
    r = recipe
    of_sharpness = dict.fromkeys(name for names in PERTURBATIONS.values() for name in names)
    parts = (
        *((name in PERTURBATIONS[r.sharpness], _perturbing(name), name) for name in of_sharpness),
        (r.gkp, arg("gkp", True), "preservation divide_by pull_at fisher_loss fisher_samples alpha_start alpha_end"),
        (r.grouped, f"{arg('sharpness', 'gsa')} or {arg('gkp', True)}", "groups group_after regroup_every centre"),
        (r.reweight == "drw", arg("reweight", "drw"), "drw_beta"),
        (
            r.reweight == "drw" or r.rho_schedule == "step",
            f"{arg('reweight', 'drw')} or {arg('rho_schedule', 'step')}",
            "drw_start",
        ),
        (r.schedule == "multistep", arg("schedule", "multistep"), "gamma"),
    )
    for there, part, names in parts:
        for name in names.split():
            if name in given and not there:
                raise InputError(f"{arg(name)} changes nothing without {part}: add that, or leave it out")


def _perturbing(field: str) -> str:
    """Name the ways to perturb the weights that use a field."""
    first, *others = (name for name, used in PERTURBATIONS.items() if field in used)
    *middle, last = (arg("sharpness", first), *others)
    return f"{', '.join(middle)} or {last}" if middle else last
