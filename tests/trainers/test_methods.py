"""Recipes: presets, files and options put together, and what is refused before anything is read."""

import json
import math
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import refused

from landscape.data import datasets
from landscape.errors import InputError
from landscape.results.history import never_begun
from trainers import data, losses, methods, recipes, rules, schedule
from trainers.methods import METHODS, compose
from trainers.recipes import PERTURBATIONS, Recipe

DIGITS = {"dataset": "digits-lt"}


def test_options_win_over_the_file_and_in_it_fields_over_the_method_and_this_over_the_benchmark(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('method = "gsa-gkp"\nbenchmark = "imagenet-lt"\ngroups = 5\nlr = 0.3\n')
    recipe = compose({"lr": 0.2}, config=file)
    assert (recipe.dataset, recipe.epochs, recipe.sharpness) == ("image-list", 90, "gsa")  # benchmark, method
    assert (recipe.groups, recipe.lr) == (5, 0.2)  # 6 in the benchmark, 0.3 in the file
    typed = compose({"lr": 0.2}, config=file, method="sam", benchmark="cifar10-lt")
    assert (typed.sharpness, typed.gkp, typed.dataset, typed.epochs) == ("sam", False, "cifar10", 200)
    assert (typed.groups, typed.lr) == (5, 0.2)


@pytest.fixture
def run_of(tmp_path):
    """The configuration that a run leaves in its folder, all of it decided."""

    def write(**options):
        file = tmp_path / "config.toml"
        file.write_text(recipes.to_toml(recipes.plain(compose(DIGITS | {"augment": "none"} | options))))
        return file

    return write


@pytest.mark.parametrize("name", METHODS)
def test_a_method_typed_wins_over_the_one_of_a_runs_file(name, run_of):
    """As a run by that method would be, but for what the file sets beyond the parts of a method."""
    sam = {"sharpness": "sam", "rho_schedule": "step", "rho_end": 0.5, "adaptive": True, "lr": 0.03, "loss": "focal"}
    found = compose({}, method=name, config=run_of(**sam, loss_options="gamma=1"))
    assert methods.label(found) == name
    kept = found.sharpness == "sam"
    options = {"lr": 0.03, **({n: sam[n] for n in ("rho_schedule", "rho_end", "adaptive")} if kept else {})}
    options |= {"augment": "none", "loss_options": "gamma=1"} if found.loss == "focal" else {}
    assert found == compose(DIGITS | options, method=name)


def test_a_method_typed_keeps_what_the_file_has_for_the_same_loss(run_of):
    found = compose({}, method="ldam-drw-sam", config=run_of(loss="ldam", loss_options="max_margin=0.3"))
    assert (found.loss_options, found.cosine, found.augment) == ("max_margin=0.3", True, "none")


def test_a_preset_typed_wins_over_a_runs_file_and_options_over_it(run_of):
    file = run_of(schedule="multistep", epochs=10, lr=0.03, weight_decay=1e-3)
    found = compose({"weight_decay": 1e-2}, benchmark="cifar10-lt", config=file)
    assert (found.dataset, found.epochs, found.lr, found.weight_decay) == ("cifar10", 200, 0.15, 1e-2)
    assert found.milestones == (160, 180)


@pytest.mark.parametrize(
    ("of_run", "typed", "decided"),
    [
        ({"schedule": "multistep", "epochs": 20}, {"epochs": 400}, {"milestones": (320, 360)}),
        ({"schedule": "multistep", "epochs": 20}, {"epochs": 10}, {"milestones": (8, 9)}),
        ({"loss": "ldam"}, {"loss": "focal"}, {"cosine": False}),
        ({}, {"loss": "ldam"}, {"cosine": True}),
        ({"sharpness": "sam"}, {"dataset": "cifar100"}, {"rho": 0.2, "augment": None}),
        ({"sharpness": "sam", "dataset": "cifar10"}, {"loss": "ldam", "reweight": "drw"}, {"rho": 0.8}),
        ({"sharpness": "sam", "dataset": "cifar10"}, {"reweight": "drw"}, {"rho": 0.5}),
        ({"sharpness": "gsa", "pull_at": "perturbed", "gkp": True}, {"sharpness": "sam"}, {"pull_at": "theta"}),
        ({"loss": "bcl", "dataset": "image-list"}, {"dataset": "cifar10"}, {"loss_options": None}),
        ({"loss": "bcl", "loss_options": "tau=2"}, {"dataset": "cifar10"}, {"loss_options": "tau=2"}),
    ],
)
def test_what_a_run_decided_is_decided_again_for_typed_options(of_run, typed, decided, run_of):
    views = {"augment": "crop,crop,crop"} if of_run.get("loss") == "bcl" else {}
    found = compose(typed, config=run_of(**of_run, **views))
    assert {name: getattr(found, name) for name in decided} == decided
    assert compose({}, config=run_of(**of_run, **views)) == compose(DIGITS | {"augment": "none"} | of_run | views)


def test_a_method_typed_decides_the_radius_of_a_runs_file_again(run_of):
    found = compose({}, method="ldam-drw-sam", config=run_of(dataset="cifar10", sharpness="sam"))
    assert found.rho == compose({"dataset": "cifar10"}, method="ldam-drw-sam").rho


@pytest.mark.parametrize("more", ["", 'dataset = "cifar10"\n'])
def test_what_a_file_sets_for_no_part_in_particular_is_kept(tmp_path, more):
    """The schedule of the data set that the file names has 200 epochs, which are not those of the file."""
    file = tmp_path / "few.toml"
    file.write_text('rho = 0.3\nschedule = "multistep"\nmilestones = [3]\naugment = "none"\n' + more)
    found = compose({"dataset": "cifar10", "epochs": 20}, method="sam", config=file)
    assert (found.rho, found.milestones, found.augment) == (0.3, (3,), "none")


@pytest.mark.parametrize(
    ("own", "model", "cosine"),
    [
        ({"cosine": True}, "resnet20", True),
        ({}, "resnet20", False),
        ({"loss": "ldam"}, "my:model", False),
        ({"loss": "ldam", "model": "my:model"}, "resnet20", True),
    ],
)
def test_a_cosine_classifier_that_was_asked_for_stays_with_another_model(own, model, cosine):
    assert methods.changed(methods.recipe("ce", **own), model=model).cosine is cosine


def test_a_cosine_classifier_that_was_asked_for_is_refused_with_a_model_of_ones_own():
    with refused(InputError, cosine=True):
        methods.changed(methods.recipe("ce", cosine=True), model="my:model")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_benchmarks_data_bring_its_schedule_along(name):
    recipe = compose({"dataset": name})
    assert (recipe.model, recipe.epochs, recipe.batch_size, recipe.lr, recipe.warmup_epochs) == (
        "resnet32", 200, 256, 0.15, 5,
    )  # fmt: skip
    assert (recipe.weight_decay, recipe.milestones) == (5e-4, (160, 180))


@pytest.mark.parametrize(("epochs", "milestones"), [(20, (16, 18)), (5, (4,)), (2, ()), (1, ())])
def test_milestones_follow_a_shorter_run(epochs, milestones):
    assert compose({"dataset": "cifar10", "epochs": epochs, "warmup_epochs": 0}).milestones == milestones


@pytest.mark.parametrize(("epochs", "warmup"), [(200, 5), (5, 5), (2, 2), (1, 1)])
def test_a_warm_up_that_nobody_asked_for_is_no_longer_than_the_run(epochs, warmup):
    assert compose({"dataset": "cifar10", "epochs": epochs}).warmup_epochs == warmup
    if epochs < 5:
        with refused(InputError, warmup_epochs=5):
            compose({"dataset": "cifar10", "epochs": epochs, "warmup_epochs": 5})


@pytest.mark.parametrize(
    ("dataset", "method", "rho"),
    [
        ("cifar10", "sam", 0.1),
        ("cifar100", "sam", 0.2),
        ("cifar10", "ldam-drw-sam", 0.8),
        ("cifar100", "ldam-drw-sam", 0.8),
        ("digits-lt", "sam", 0.05),
    ],
)
def test_sams_radius_is_that_of_the_rows_source(dataset, method, rho, tmp_path):
    found = compose({"dataset": dataset}, method=method)
    assert found.rho == rho
    assert compose({"dataset": dataset, "rho": 7}, method=method).rho == 7
    if method == "sam":
        with_drw = {"cifar10": 0.5, "cifar100": 0.8}.get(dataset, 0.05)
        assert compose({"dataset": dataset, "reweight": "drw"}, method="sam").rho == with_drw
    file = tmp_path / "ce.toml"  # on all that a run of ce had, which had no use for a radius
    file.write_text(recipes.to_toml(recipes.plain(compose({"dataset": dataset}, method="ce"))))
    assert compose({}, method="sam", config=file).rho == compose({"dataset": dataset}, method="sam").rho


def test_bcl_on_large_images_has_the_numbers_of_its_source():
    large = compose({}, method="bcl", benchmark="imagenet-lt")
    assert large.loss_options == "ce_weight=1,contrast_weight=0.35,temperature=0.07,hidden=2048,projected=1024"
    typed = compose({"loss_options": "tau=2, temperature=0.5"}, method="bcl", benchmark="imagenet-lt")
    of_source = {"ce_weight": 1, "contrast_weight": 0.35, "hidden": 2048, "projected": 1024}
    assert losses.options_of(typed.loss_options) == {**of_source, "temperature": 0.5, "tau": 2}
    with refused(InputError, "loss_options"):
        compose({"loss_options": "tau"}, method="bcl", benchmark="imagenet-lt")
    assert compose({"dataset": "cifar10"}, method="bcl").loss_options is None
    assert compose({}, method="ce", benchmark="imagenet-lt").loss_options is None


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_a_recipe_that_knows_its_name(name):
    assert methods.label(compose(DIGITS, method=name)) == name


def test_parts_that_are_no_preset_are_named_by_what_they_are():
    recipe = compose({**DIGITS, "loss": "focal", "reweight": "drw", "gkp": True})
    assert methods.label(recipe) == "focal+drw+gkp"


def test_a_users_own_model_brings_its_own_classifier():
    assert compose({**DIGITS, "loss": "ldam", "model": "my:model"}).cosine is False
    with refused(InputError, cosine=True):
        compose({**DIGITS, "cosine": True, "model": "my:model"})


@pytest.mark.parametrize(("loss", "cosine"), [("ce", False), ("ldam", True), ("bcl", True)])
def test_the_losses_of_angles_bring_a_cosine_classifier(loss, cosine):
    assert compose({**DIGITS, "loss": loss}).cosine is cosine


@pytest.mark.parametrize("root", ['a "b" \\c\u00e9', "\U0001f600 \x7f \x01 \t \\u007f"])
def test_a_recipe_survives_its_file(tmp_path, root):
    file = tmp_path / "config.toml"
    recipe = compose({**DIGITS, "clip": (2e-3, 3e-3), "data_root": root, "lr": 1e-05}, method="gsa-gkp")
    file.write_text(recipes.to_toml({"method": "gsa-gkp"} | recipes.plain(recipe)), encoding="utf-8")
    assert compose({}, config=file) == recipe


def test_a_folder_whose_name_is_no_text_is_refused():
    with refused(InputError, "--data-root", "UTF-8"):
        recipes.to_toml({"data_root": b"a\xff".decode("utf-8", "surrogateescape")})


def test_every_field_has_an_explanation():
    assert all(len(item.metadata["help"]) > 10 for item in fields(Recipe))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = ", "is not TOML"),
        ('epochs = "many"', "epochs must be int, got 'many'"),
        ("gkp = 1", "gkp must be bool, got 1"),
        ("milestones = [1, 2.5]", "milestones must be int, got 2.5"),
        ("epoch = 3", "there is no option 'epoch'; similar: epochs"),
        ('method = "sgd"', "no method 'sgd': choose ce, sam, gsa-gkp"),
        ("method = 3", "method must be str, got 3"),
        ('device = "cpu"', "no option 'device' in a recipe, whose numbers it does not change: pass --device on the"),
        ('preset = "cifar10-lt"', "there is no option 'preset' in a file: it is called benchmark there"),
        ("zzz = 1", "there is no option 'zzz'; landscape train -h lists them all"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_its_name_and_the_cause(text, message, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(InputError) as error:
        compose(DIGITS, config=file)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_missing_is_refused(tmp_path):
    with refused(InputError, "no.toml"):
        compose(DIGITS, config=tmp_path / "no.toml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": ""}, "there is no data: pass dataset or preset"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"epochs": 10**9}, "epochs must be at most 1,000,000"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"lr": 0.0}, "lr must be a positive number, got 0.0"),
        ({"lr": math.nan}, "lr must be a finite number, got nan"),
        ({"lr": 1e39}, "lr must be at most 3.4e+38"),
        ({"weight_decay": -1e300}, "weight_decay must be at most 3.4e+38"),
        ({"rho": 1e300}, "rho must be at most 3.4e+38"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1, got 1.0"),
        ({"momentum": 0.0, "nesterov": True}, "nesterov=True needs a momentum above 0"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative, got -1.0"),
        ({"warmup_epochs": 41}, "warmup_epochs must be from 0 to epochs=40, got 41"),
        ({"seed": -1}, "seeds must not be negative, got -1"),
        ({"loss": "no-such"}, "loss='no-such' is unknown: choose ce, focal, ldam, logit-adjust, vs, balanced, bcl"),
        ({"schedule": "steps"}, "schedule='steps' is unknown: choose cosine, multistep, constant"),
        ({"sharpness": "my.module:sam"}, "sharpness='my.module:sam' is unknown: choose none, sam, gsa"),
        ({"milestones": (3,)}, "milestones need schedule='multistep'"),
        ({"schedule": "multistep", "milestones": (5, 3)}, "milestones must be ascending epochs"),
        ({"schedule": "multistep", "milestones": (5, 40)}, "milestones=(5, 40) lie beyond epochs=40: choose"),
        ({"rho": -0.1}, "rho must not be negative, got -0.1"),
        ({"sharpness": "sam", "rho_schedule": "step", "rho_end": -0.5}, "rho_end must not be negative, got -0.5"),
        ({"sharpness": "sam", "rho_schedule": "step"}, "rho_schedule='step' needs rho_end"),
        ({"sharpness": "sam", "rho_end": 0.5}, "rho_schedule='constant' takes no rho_end"),
        ({"rho_schedule": "linear", "rho_end": 0.5}, "rho_schedule needs sharpness='sam'"),
        ({"adaptive": True}, "adaptive=True needs sharpness='sam', gsa, focal-sam or imbsam"),
        ({"groups": 0}, "groups must be at least 1, got 0"),
        ({"clip": (1.0,)}, "clip must be two numbers in ascending order"),
        ({"clip": (0.0, math.inf)}, "clip must be a finite number, got inf"),
        ({"group_after": 1.0}, "group_after must be a fraction of the run"),
        ({"gkp": True, "epochs": 4}, "epochs=4 with group_after=0.1 ends before there are groups"),
        (
            {"gkp": True, "epochs": 3, "groups": 1},
            "needs 2 epochs after the warm-up of 1 and sees one in 1: raise epochs",
        ),
        ({"gkp": True, "epochs": 20, "statistics_every": 10}, "sees one in 10: raise epochs or lower statistics_every"),
        ({"gkp": True, "statistics_every": 0}, "statistics_every must be at least 1"),
        (
            {"loss": "bcl", "sharpness": "gsa", "first_pass": "decoupled"},
            "first_pass='decoupled' treats each sample alone",
        ),
        ({"loss": "ldam", "cosine": False}, "loss='ldam' needs a cosine classifier"),
        ({"augment": "crop,crop"}, "augment='crop,crop' names 2 views, loss='ce' takes 1"),
        ({"drw_start": 1.0}, "drw_start must be a fraction of the run, at least 0 and below 1, got 1.0"),
        ({"drw_beta": 1.0}, "drw_beta must be at least 0 and below 1, got 1.0"),
        ({"loss_options": "tau=1"}, "loss='ce' has no option tau; its options: none"),
        ({"loss": "vs", "loss_options": "gamma=0.3,beta=1"}, "loss='vs' has no option beta; its options: gamma, tau"),
        ({"loss": "focal", "loss_options": "gamma"}, "loss_options must be such as gamma=0.3,tau=1, got 'gamma'"),
        ({"loss": "focal", "loss_options": "gamma=1,gamma=2"}, "loss_options name gamma twice"),
        ({"loss": "focal", "loss_options": "gamma=-1"}, "gamma of loss='focal' must be a finite number of at least 0"),
        ({"loss": "ldam", "loss_options": "scale=10"}, "scale=10 of loss_options is not that of the classifier of"),
        ({"loss": "bcl", "loss_options": "t=1"}, "no option t; its options: ce_weight, contrast_weight, temperature"),
        ({"loss": "bcl", "loss_options": "hidden=0"}, "hidden of loss='bcl' must be finite and positive, got 0"),
        ({"loss": "bcl", "loss_options": "hidden=1.5"}, "hidden of loss='bcl' must be a whole number, got 1.5"),
        ({"sharpness": "sam", "gkp": True, "pull_at": "perturbed"}, "pull_at='perturbed' needs sharpness='gsa' and"),
        ({"loss": "bcl", "loss_options": "temperature=0"}, "temperature of loss='bcl' must be finite and positive"),
        ({"loss": "my:loss", "loss_options": "t=1"}, "loss='my:loss' accepts no options, got t"),
        ({"sharpness": "cc-sam", "compile": True}, "leave compile=True out"),
        ({"validation": 1.0}, "validation must be at least 0 and below 1, got 1.0"),
    ],
)
def test_an_option_that_does_not_fit_is_named_with_its_value(options, message):
    with pytest.raises(InputError) as error:
        compose(DIGITS | options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan])
@pytest.mark.parametrize("method", METHODS)
def test_every_number_of_the_optimizer_must_be_finite_and_not_negative(method, value):
    numbers = {"rho", "radius_scale", "average", "sharpness_share", "sharpness_gamma"}
    used = numbers & set(PERTURBATIONS[compose(DIGITS, method=method).sharpness])
    for name in ("lr", "momentum", "weight_decay", *used):
        with refused(InputError, name, value):
            methods.recipe(method, dataset="digits-lt", **{name: value})


def test_a_run_that_is_too_long_is_refused_before_its_epochs_are_gone_through(monkeypatch):
    monkeypatch.setattr(rules, "groups_after", None)
    with refused(InputError, epochs="1,000,000"):
        compose(DIGITS | {"epochs": 10**9, "gkp": True})


@pytest.mark.parametrize("count", range(1, 11))
def test_every_number_of_groups_of_figure_5_is_a_recipe(count):
    assert compose({**DIGITS, "groups": count}, method="gsa-gkp").groups == count


@pytest.mark.parametrize(
    ("method", "option", "needed"),
    [
        ("ce", {"rho": 0.1}, "sharpness='sam', focal-sam or imbsam"),
        ("sam", {"radius_scale": 0.1}, "sharpness='gsa' or cc-sam"),
        ("sam", {"tail_most": 5}, "sharpness='imbsam'"),
        ("imbsam", {"sharpness_gamma": 1.0}, "sharpness='focal-sam'"),
        ("imbsam", {"sharpness_share": 1.0}, "sharpness='focal-sam' or cc-sam"),
        ("gsa", {"preservation": 10.0}, "gkp=True"),
        ("sam", {"groups": 4}, "sharpness='gsa' or gkp=True"),
        ("ce", {"gamma": 0.2}, "schedule='multistep'"),
        ("ce", {"drw_beta": 0.9}, "reweight='drw'"),
        ("sam", {"drw_start": 0.5}, "reweight='drw' or rho_schedule='step'"),
    ],
)
def test_an_option_that_changes_nothing_is_refused(method, option, needed):
    recipe = compose(DIGITS | option, method=method)
    with refused(InputError, needed):
        rules.refuse_idle(recipe, option)


@pytest.mark.parametrize("method", METHODS)
def test_every_option_of_a_method_is_welcome(method):
    recipe = compose(DIGITS | {"schedule": "multistep"}, method=method)
    idle = []
    for item in fields(Recipe):
        try:
            rules.refuse_idle(recipe, [item.name])
        except InputError:
            idle.append(item.name)
    assert ("rho" in idle) == ("sam" not in method or method == "cc-sam")
    assert ("clip" in idle) == ("gsa" not in method)
    assert ("preservation" in idle) == ("gkp" not in method)
    assert ("groups" in idle) == ("gsa" not in method and "gkp" not in method)
    assert not {"quality_form", "loss", "epochs", "gamma", "seed"} & set(idle)


# Schedules --------------------------------------------------------------------------------------------------------


def test_the_learning_rate_rises_along_a_line_and_falls_along_half_a_cosine():
    found = [schedule.warmup(t, 4) * schedule.cosine(t, 8, 4) for t in range(8)]
    root = math.sqrt(0.5)
    assert found == pytest.approx([0.25, 0.5, 0.75, 1, 1, (1 + root) / 2, 0.5, (1 - root) / 2], abs=1e-15)


def test_a_multistep_schedule_falls_when_a_milestone_begins():
    assert [schedule.multistep(e, (2, 3)) for e in range(5)] == pytest.approx([1, 1, 0.1, 0.01, 0.01])


def test_the_share_of_the_sharpness_term_falls_from_start_to_end():
    """S20: alpha(0) = 0.95, alpha(T/2) = (0.95 + 0.6) / 2, alpha(T) = 0.6."""
    assert [schedule.mixing(t, 10) for t in (0, 5, 10)] == pytest.approx([0.95, 0.775, 0.6])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("constant", [0.1] * 5), ("linear", [0.1, 0.2, 0.3, 0.4, 0.5]), ("step", [0.1, 0.1, 0.1, 0.1, 0.5])],
)
def test_sams_radius_follows_its_schedule(kind, expected):
    assert [schedule.radius(e, 5, kind, 0.1, 0.5) for e in range(5)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("epochs", "after", "every", "expected"),
    [
        (200, 0.1, 0.1, list(range(20, 200, 20))),
        (10, 0.25, 0.3, [2, 5, 8]),
        (10, 0.5, 0, [5]),
        (3, 0.1, 0.1, [1, 2]),
        (1, 0.0, 0.1, []),
        (10, 0.97, 0.1, []),
    ],
)
def test_classes_are_grouped_after_a_share_of_the_run_and_again_but_never_at_its_end(epochs, after, every, expected):
    assert [e for e in range(1, epochs + 1) if schedule.grouping(e, epochs, after, every)] == expected


@pytest.mark.parametrize(
    ("n", "warmup", "every", "banked"),
    [(4, 1, 1, [2, 3, 4, 5]), (2, 5, 2, [6, 8]), (1, 5, 5, [10]), (3, 0, 1, [1, 2, 3]), (2, 3, 2, [4, 6])],
)
def test_the_bank_fills_from_the_end_of_the_warm_up_on(n, warmup, every, banked):
    assert [e for e in range(1, banked[-1] + 1) if schedule.banking(e, warmup, every)] == banked
    assert schedule.filled(n, warmup, every) == banked[-1]
    assert [e for e in range(1, 40) if schedule.grouping(e, 40, 0.0, 0, schedule.filled(n, warmup, every))] == [
        banked[-1]
    ]


def test_deferred_re_weighting_begins_at_epoch_160_of_200():
    assert schedule.deferred(200) == 160
    assert [schedule.deferred(20, start) for start in (0.0, 0.55, 0.51)] == [0, 11, 11]
    assert [schedule.radius(e, 4, "step", 0.1, 0.5, 0.5) for e in range(4)] == [0.1, 0.1, 0.5, 0.5]


@pytest.mark.parametrize("start", [0.0, 0.5, 0.55, 0.75, 0.8, 0.95])
def test_what_begins_after_the_last_epoch_is_said_to_never_begin(start):
    for epochs in range(1, 30):
        some = {"epochs": epochs, "drw_start": start}
        never = schedule.deferred(epochs, start) >= epochs
        assert len(never_begun({**some, "reweight": "drw", "rho_schedule": "constant"})) == never
        assert len(never_begun({**some, "reweight": "drw", "rho_schedule": "step"})) == 2 * never
        assert never_begun({**some, "reweight": "none", "rho_schedule": "linear"}) == ()
    assert never_begun({}) == ()


def test_data_that_several_benchmarks_share_bring_no_schedule():
    assert compose({"dataset": "image-list"}).epochs == Recipe().epochs


@pytest.mark.parametrize(
    ("mirrors", "loss", "views"),
    [
        (True, "ce", "crop-flip"),
        (False, "ce", "crop"),
        (True, "bcl", "autoaugment,simclr,simclr"),
        (False, "bcl", "crop,crop,crop"),
    ],
)
def test_images_that_mean_something_else_mirrored_are_not_turned_round(monkeypatch, mirrors, loss, views):
    """Where nothing is said of views, small colour images are mirrored, but not those of digits."""
    images = torch.arange(4 * 3 * 8 * 8, dtype=torch.uint8).reshape(4, 3, 8, 8)
    samples = datasets.from_dataset((images, torch.tensor([0, 1, 0, 1])))
    samples = replace(samples, mean=(0.5,) * 3, std=(0.5,) * 3)
    monkeypatch.setitem(datasets.DATASETS, "numbers", datasets.Source(read=None, mirrors=mirrors))
    recipe, _ = data.fitted(Recipe(dataset="numbers", model="resnet20", loss=loss), samples, samples)
    assert recipe.augment == views


@pytest.mark.parametrize(
    "field", [{"epochs": "3"}, {"epochs": 3.5}, {"lr": "0.1"}, {"gkp": 1}, {"milestones": ("a",)}, {"model": None}]
)
def test_a_field_of_another_type_is_refused_by_its_name(field):
    with refused(InputError, *field):
        methods.recipe("ce", **field)


def test_a_misspelt_field_is_refused_with_the_nearest():
    with refused(InputError, "'epoch'", "did you mean epochs?"):
        methods.recipe("ce", epoch=3)


def test_a_field_may_be_a_path_a_list_or_a_number_of_numpy():
    given = {"data_root": Path("data"), "milestones": [1, 2], "lr": np.float32(0.5), "epochs": np.int64(3)}
    made = methods.recipe("ce", dataset="cifar10", schedule="multistep", warmup_epochs=0, **given)
    assert (made.data_root, made.milestones, made.lr, made.epochs) == ("data", (1, 2), 0.5, 3)
    assert json.loads(json.dumps(asdict(made)))
