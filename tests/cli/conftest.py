"""Fixtures of the command line's tests: how a command is run, and files for it to read."""

import dataclasses
import functools

import pytest
from matplotlib.figure import Figure
from synthetic import classes

from landscape import cli, plots
from landscape.results import store


@pytest.fixture
def run(capsys):
    """Run a command line; return its exit code, stdout and the lines of stderr."""

    def run(*words):
        code = cli.main([str(w) for w in words])
        out, err = capsys.readouterr()
        return code, out, err.splitlines()

    return run


@pytest.fixture
def asked(monkeypatch):
    """What figures of one result, or of several, are asked for: it, the parts and the options. Nothing is drawn."""
    found = []

    def in_place_of(figure):
        @functools.wraps(figure)  # with its arguments, which are options of the command
        def draw(result, parts, **options):
            found.append((result, parts, options))
            return Figure()

        return draw

    of_one = {of: {k: in_place_of(draw) for k, draw in kinds.items()} for of, kinds in plots.KIND_FIGURES.items()}
    of_several = {
        of: {k: dataclasses.replace(figure, draw=in_place_of(figure.draw)) for k, figure in kinds.items()}
        for of, kinds in plots.SEVERAL_FIGURES.items()
    }
    monkeypatch.setattr(plots, "KIND_FIGURES", of_one)
    monkeypatch.setattr(plots, "SEVERAL_FIGURES", of_several)
    return found


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "spectrum.h5"
    store.save(path, classes(3, steps=8))
    return path


@pytest.fixture
def save(tmp_path):
    def save(name, spectrum=None, **changes):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        store.save(path, dataclasses.replace(spectrum or classes(3, steps=8), **changes))
        return path

    return save
