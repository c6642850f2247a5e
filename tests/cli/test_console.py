"""The console: text, JSON and progress, and where each goes."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from synthetic import spectrum_of

from landscape import cli
from landscape.cli import console
from landscape.cli.console import Console, error, strict_json


def test_strict_json_has_no_nan_and_no_numpy():
    value = {"a": np.array([1.0, np.nan]), 2: (np.int64(3), np.bool_(True)), "b": float("inf"), "c": {"d"}}
    assert json.loads(strict_json(value)) == {"a": [1.0, None], "2": [3, True], "b": None, "c": ["d"]}


@pytest.mark.parametrize(("options", "spoken"), [({}, True), ({"quiet": True}, False), ({"json": True}, False)])
def test_text_is_printed_unless_quiet_or_json(capsys, options, spoken):
    console = Console(**options)
    console.say("result")
    console.note("remark")
    console.table(["name", "number"], [["[red]", "1"]])
    out, err = capsys.readouterr()
    assert ("result" in out) == ("[red]" in out) == ("remark" in err) == spoken
    console.json([1])
    assert json.loads(capsys.readouterr().out) == [1]


@pytest.mark.parametrize(
    ("terminal", "options", "shown"), [(True, {}, True), (False, {}, False), (True, {"json": True}, False)]
)
def test_progress_is_shown_on_a_terminal_only(capsys, monkeypatch, terminal, options, shown):
    monkeypatch.setenv("FORCE_COLOR" if terminal else "NO_COLOR", "1")
    with Console(**options).progress() as progress:
        progress(0, 4, "truck [1]")
        progress(1.5, 4, "frog [2]")
    out, err = capsys.readouterr()
    assert out == ""
    assert ("frog [2]" in err and " 38%" in err) == shown
    assert shown or err == ""


def test_a_log_has_a_line_of_progress_after_a_minute_and_then_every_minute():
    said, now = [], [0.0]
    # private: with a clock of the test's
    progress = console._lines(said.append, clock=lambda: now[0])
    for seconds, done, text in (
        (0, 0, ""), (59, 0.5, ""), (61, 1, ""), (90, 1.5, "truck"), (150, 2, "truck"), (7350, 3, "truck"),
    ):  # fmt: skip
        now[0] = seconds
        progress(done, 4, text)
    assert said == [
        "25 % of 4, 61 s, about 3 min left",
        "50 % of 4, 2.5 min, about 2.5 min left: truck",
        "75 % of 4, 2 h, about 41 min left: truck",
    ]


def test_what_an_earlier_call_has_done_does_not_count_as_work_of_this_one():
    said, now = [], [0.0]
    progress = console._lines(said.append, clock=lambda: now[0])  # private: as above
    for seconds, done in ((10, 76), (70, 77), (140, 78)):
        now[0] = seconds
        progress(done, 100, "")
    assert said == ["77 % of 100, 70 s, about 23 min left", "78 % of 100, 2.3 min, about 24 min left"]


def test_error_is_one_line(capsys):
    error("a\n  b\tc")
    assert capsys.readouterr().err == "landscape: error: a b c\n"


def test_commands_also_run_inside_clicks_own_runner(file):
    assert CliRunner().invoke(cli.root, ["info", str(file)]).exit_code == 0


def test_a_spectrum_of_zeros_can_be_shown(run, save):
    file = save("zero.h5", spectrum_of({"zero": np.zeros(5)}, steps=3))
    assert run("plot", file)[0] == 0
    assert "0 / 0" in run("compare", file)[1]
