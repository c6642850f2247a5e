"""Every public function names the argument whose type does not fit, and takes what the types allow."""

import inspect
import typing
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import results_of_all_kinds
import torch
from cases import CASES
from refusals import refused

import landscape as ls
import trainers
from landscape.callables import _fits  # private: which hint takes what is said there alone
from trainers import losses, methods

LOOSE = {
    "landscape.analyses.spectrum.spectrum": "subject",
    "landscape.curvature.matrices.matrix": "matrices",
    "landscape.objective.loading.load_objective": "dataset",
    "landscape.objective.from_data.make_objective": "data",
}
"""Arguments that take almost anything, and say themselves what they cannot use."""


def functions():
    """The public functions, and constructors of trainers."""
    for name in sorted(set(ls.__all__) - {"plots", "directions", "distributed"}):
        found = getattr(ls, name)
        if not inspect.isclass(found):
            yield found
    for module in (ls.plots, ls.directions, losses):
        for name, found in vars(module).items():
            own = inspect.isfunction(found) and found.__module__.startswith(module.__name__)
            if own and not name.startswith("_"):
                yield found
    for found in (trainers.GKP, trainers.GSA, trainers.SAM, trainers.Memory, trainers.train, trainers.recipe, ls.Stack):
        yield found.__init__ if inspect.isclass(found) else found
    for kind, names in {
        ls.Objective: "build at part alone",
        ls.Partition: "whole from_index from_values by_quantiles by_class by_groups by_frequency select coarsen",
        ls.Samples: "batch select subsample",
        trainers.GSA: "step gradients regroup",
        trainers.SAM: "step gradients",
        trainers.Memory: "update",
    }.items():
        yield from (inspect.getattr_static(kind, name) for name in names.split())


def unbound(found):
    return getattr(found, "__func__", found)


def arguments():
    for found in {id(unbound(f)): unbound(f) for f in functions()}.values():
        hints = typing.get_type_hints(inspect.unwrap(found))
        for name, parameter in inspect.signature(found).parameters.items():
            if name not in {"self", "cls"} and parameter.kind not in {parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL}:
                where = f"{found.__module__}.{found.__qualname__}"
                if LOOSE.get(where) != name:
                    yield pytest.param(found, name, hints, id=f"{where}-{name}")


@pytest.fixture(scope="module")
def values():
    """Something of every type that a required argument has."""
    objective = CASES["mlp-tanh"].objective()
    made = [
        objective,
        objective.samples,
        objective.partition,
        objective.model,
        *results_of_all_kinds.all_kinds().values(),
    ]
    along = ls.directions.random(objective, 2)
    made += [along, ls.directions.to_plane(objective, along, {}), methods.recipe("ce"), lambda *_: None]
    made += [plt.figure(), plt.gca(), "filter", "biasbn"]
    made += [torch.optim.SGD, "x", 1, {}, Path("x"), torch.zeros(2), np.zeros(2), ["x"], None, 0.5, True]
    yield made
    plt.close("all")


@pytest.mark.parametrize(("function", "name", "hints"), list(arguments()))
def test_an_argument_of_another_type_is_named(function, name, hints, values):
    given = {}
    for other, parameter in inspect.signature(function).parameters.items():
        required = parameter.default is parameter.empty
        if required and other != name and parameter.kind not in {parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL}:
            given[other] = next(v for v in values if other in {"self", "cls"} or _fits(v, hints.get(other, typing.Any)))
    wrong = type("Wrong", (), {})()
    assert not _fits(wrong, hints[name]), f"{name} takes anything"
    with pytest.raises(ls.InputError, match=name):
        function(**given, **{name: wrong})


def test_what_takes_almost_anything_names_what_it_cannot_use():
    wrong = type("Wrong", (), {})()
    model = torch.nn.Linear(2, 2)
    for function, given in {
        ls.spectrum: {"subject": wrong},
        ls.matrix: {"matrices": wrong},
        ls.load_objective: {"model": model, "dataset": wrong},
        ls.make_objective: {"model": model, "data": wrong, "loss": "ce"},
    }.items():
        with pytest.raises(ls.LandscapeError, match="Wrong"):
            function(**given)


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "float64", "device": "cpu", "classes": "2"},
        {"dtype": torch.float64, "device": torch.device("cpu"), "classes": [2]},
        {"classes": ["2"], "dtype": torch.float64, "partition": Path("groups.json")},
        {"dtype": "float64", "partition": {"2": [2], "others": [0, 1]}, "classes": ("2",)},
    ],
    ids=str,
)
def test_a_choice_may_be_a_name_or_the_thing_itself(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("groups.json").write_text('{"2": [2], "others": [0, 1]}')
    torch.manual_seed(0)
    data = torch.randn(9, 4), torch.arange(9) % 3
    found = ls.load_objective(model=torch.nn.Linear(4, 3), dataset=data, **{"partition": "class", **options})
    assert (found.dtype, found.device, found.partition.names) == (torch.float64, torch.device("cpu"), ("2",))
    assert found.counts.tolist() == [3]


@pytest.mark.parametrize("option", [{"normalize": "imagenet"}, {"imbalance": 10.0}, {"data_root": "data"}])
def test_an_option_of_data_sets_by_name_is_refused_with_data_of_ones_own(option):
    data = torch.randn(9, 4), torch.arange(9) % 3
    with refused(ls.InputError, **option):
        ls.load_objective(model=torch.nn.Linear(4, 3), dataset=data, **option)


@pytest.mark.parametrize("function", [ls.surface1d, ls.surface2d])
def test_a_surface_without_points_is_refused(function):
    with refused(ls.InputError, n=0):
        function(CASES["mlp-tanh"].objective(), n=0)


@pytest.mark.parametrize("form", [str, Path])
def test_a_file_may_be_a_text_or_a_path(form, tmp_path):
    spectrum = results_of_all_kinds.all_kinds()["spectrum.h5"]
    file, figure = form(tmp_path / "a.h5"), form(tmp_path / "a.png")
    ls.save(file, spectrum)
    assert ls.load(file, ls.Spectrum).parts == ls.load([file])[0].parts == spectrum.parts
    ls.plots.write(ls.plots.densities(spectrum), figure)
    assert Path(figure).stat().st_size > 1000
