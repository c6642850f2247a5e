"""Recipes: presets, files and options put together, and what is refused before anything is read."""

import math
from dataclasses import fields

import pytest

from landscape.errors import InputError
from trainers import methods, schedule
from trainers.methods import METHODS, Recipe, compose

DIGITS = {"dataset": "digits-lt"}


def test_options_win_over_the_file_the_file_over_the_method_and_the_method_over_the_benchmark(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('method = "gsa-gkp"\nbenchmark = "imagenet-lt"\ngroups = 5\nlr = 0.3\n')
    recipe = compose({"lr": 0.2}, config=file)
    assert (recipe.dataset, recipe.epochs, recipe.sharpness) == ("image-list", 90, "gsa")  # benchmark, method
    assert (recipe.groups, recipe.lr) == (5, 0.2)  # 6 in the benchmark, 0.3 in the file
    assert compose({}, config=file, method="sam").sharpness == "sam"


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


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_a_recipe_that_knows_its_name(name):
    assert methods.label(compose(DIGITS, method=name)) == name


def test_parts_that_are_no_preset_are_named_by_what_they_are():
    recipe = compose({**DIGITS, "loss": "focal", "reweight": "drw", "gkp": True})
    assert methods.label(recipe) == "focal+drw+gkp"


@pytest.mark.parametrize(("loss", "cosine"), [("ce", False), ("ldam", True), ("bcl", True)])
def test_the_losses_of_angles_bring_a_cosine_classifier(loss, cosine):
    assert compose({**DIGITS, "loss": loss}).cosine is cosine


def test_a_recipe_survives_its_file(tmp_path):
    file = tmp_path / "config.toml"
    recipe = compose({**DIGITS, "clip": (2e-3, 3e-3), "data_root": 'a "b" \\c\u00e9', "lr": 1e-05}, method="gsa-gkp")
    file.write_text(methods.to_toml({"method": "gsa-gkp"} | methods.plain(recipe)))
    assert compose({}, config=file) == recipe


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
        ('method = "sgd"', "no method 'sgd'; choose from ce, sam, gsa-gkp"),
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
    with pytest.raises(InputError, match=r"no.toml cannot be read: No such file"):
        compose(DIGITS, config=tmp_path / "no.toml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": ""}, "there is no data: pass --dataset NAME or --preset NAME"),
        ({"epochs": 0}, "--epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "--batch-size must be at least 1, got 0"),
        ({"lr": 0.0}, "--lr must be a positive number, got 0.0"),
        ({"lr": math.nan}, "--lr must be a finite number, got nan"),
        ({"momentum": 1.0}, "--momentum must be at least 0 and below 1, got 1.0"),
        ({"momentum": 0.0, "nesterov": True}, "--nesterov needs a --momentum above 0"),
        ({"weight_decay": -1.0}, "--weight-decay must not be negative, got -1.0"),
        ({"warmup_epochs": 41}, "--warmup-epochs must be from 0 to --epochs 40, got 41"),
        ({"seed": -1}, "seeds must not be negative, got -1"),
        ({"loss": "no-such"}, "--loss must be one of ce, focal, ldam, logit-adjust, balanced, vs, bcl, got 'no-such'"),
        ({"schedule": "steps"}, "--schedule must be one of cosine, multistep, constant, got 'steps'"),
        ({"sharpness": "my.module:sam"}, "--sharpness must be one of none, sam, gsa, got 'my.module:sam'"),
        ({"milestones": (3,)}, "--milestones need --schedule multistep"),
        ({"schedule": "multistep", "milestones": (5, 3)}, "--milestones must be ascending epochs"),
        ({"schedule": "multistep", "milestones": (5, 40)}, "--milestones (5, 40) lie beyond --epochs 40: choose"),
        ({"rho": -0.1}, "--rho and --rho-end must not be negative"),
        ({"sharpness": "sam", "rho_schedule": "step"}, "--rho-schedule step needs --rho-end"),
        ({"sharpness": "sam", "rho_end": 0.5}, "--rho-schedule constant takes no --rho-end"),
        ({"rho_schedule": "linear", "rho_end": 0.5}, "--rho-schedule needs --sharpness sam"),
        ({"adaptive": True}, "--adaptive needs --sharpness sam or gsa"),
        ({"groups": 0}, "--groups must be at least 1, got 0"),
        ({"clip": (1.0,)}, "--clip must be two numbers in ascending order"),
        ({"clip": (0.0, math.inf)}, "--clip must be a finite number, got inf"),
        ({"group_after": 1.0}, "--group-after is a share of the run"),
        ({"gkp": True, "epochs": 1}, "--epochs 1 with --group-after 0.1 ends before there are groups"),
        ({"gkp": True, "statistics_every": 0}, "--statistics-every must be at least 1"),
        ({"loss": "bcl", "sharpness": "gsa", "first_pass": "decoupled"}, "--first-pass decoupled takes samples one by"),
        ({"loss": "ldam", "cosine": False}, "--loss ldam needs a cosine classifier"),
        ({"augment": "crop,crop"}, "--augment crop,crop names 2 views, --loss ce takes 1"),
        ({"validation": 1.0}, "--validation must be at least 0 and below 1, got 1.0"),
    ],
)
def test_an_option_that_does_not_fit_is_named_with_its_value(options, message):
    with pytest.raises(InputError) as error:
        compose(DIGITS | options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("count", range(1, 11))
def test_every_number_of_groups_of_figure_5_is_a_recipe(count):
    assert compose({**DIGITS, "groups": count}, method="gsa-gkp").groups == count


@pytest.mark.parametrize(
    ("method", "option", "needed"),
    [
        ("ce", {"rho": 0.1}, "--sharpness sam"),
        ("sam", {"radius_scale": 0.1}, "--sharpness gsa"),
        ("gsa", {"preservation": 10.0}, "--gkp"),
        ("sam", {"groups": 4}, "--sharpness gsa or --gkp"),
        ("ce", {"gamma": 0.2}, "--schedule multistep"),
    ],
)
def test_an_option_that_changes_nothing_is_refused(method, option, needed):
    recipe = compose(DIGITS | option, method=method)
    with pytest.raises(InputError, match=f"changes nothing without {needed}: add that, or leave it out"):
        methods.refuse_idle(recipe, option)


@pytest.mark.parametrize("method", METHODS)
def test_every_option_of_a_method_is_welcome(method):
    recipe = compose(DIGITS | {"schedule": "multistep"}, method=method)
    idle = []
    for item in fields(Recipe):
        try:
            methods.refuse_idle(recipe, [item.name])
        except InputError:
            idle.append(item.name)
    assert ("rho" in idle) == ("sam" not in method)
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


def test_deferred_re_weighting_begins_at_epoch_160_of_200():
    assert schedule.deferred(200) == 160
