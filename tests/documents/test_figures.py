"""The gallery shows what the committed result files give."""

import json
import runpy
from pathlib import Path

import pytest

FIGURES = Path(__file__).resolve().parents[2] / "figures"


@pytest.fixture(scope="module")
def gallery():
    return runpy.run_path(str(FIGURES / "make.py"))


def test_the_gallery_shows_what_the_files_give_and_every_picture_is_there(gallery):
    gallery["check"](json.loads((FIGURES / "shown.json").read_text(encoding="utf-8")))


def test_a_figure_that_shows_something_else_is_named_with_what_changed(gallery):
    before = {"overlap": ["another line"], "a figure that is no more": ["a line"]}
    draw = dict(gallery["figures"]())["overlap"]
    gallery["check"].__globals__["figures"] = lambda: iter([("overlap", draw)])
    with pytest.raises(SystemExit) as stopped:
        gallery["check"](before)
    _, *wrong = str(stopped.value).splitlines()
    assert [line.split(":")[0] for line in wrong][:2] == [
        "a figure that is no more",
        "a figure that is no more-light.png is missing",
    ]
    assert "overlap: 'another line' before" in wrong[-1]


def test_result_files_of_the_gallery_are_small():
    sizes = {path.name: path.stat().st_size for path in (FIGURES / "data").glob("*.h5")}
    assert sizes
    assert max(sizes.values()) < 500_000, sizes
