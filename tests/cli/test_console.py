"""The console: text, JSON and progress, and where each goes."""

import json
import re

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


HEADS = ["part", "lambda_max ± residual", "± samples", "trace ± estimate", "± samples", "H - G"]
ROWS = [
    ["head", "0.4206 ± 5e-06", "0.05992", "0.900 ± 0.011", "0.1416", "-0.001766 to 0.02911"],
    ["[red]tail", "3.595 ± 5e-05", "1.333", "8.967", "2.932", "-0.3401 to 0.2010"],
]


def printed(monkeypatch, capsys, columns, *table, **options):
    """The lines of a table on a terminal, without its colours."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    Console().table(*table, **options)
    return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()


@pytest.mark.parametrize(("columns", "blocks"), [(60, 3), (66, 2), (80, 2), (88, 2), (89, 1), (100, 1), (200, 1)])
def test_a_terminal_never_divides_a_number_nor_parts_it_from_its_error(monkeypatch, capsys, columns, blocks):
    lines = printed(monkeypatch, capsys, columns, HEADS, ROWS, title="hessian")
    assert max(map(len, lines)) <= columns
    assert lines[0].split() == ["hessian"]
    assert sum("hessian" in line for line in lines) == 1
    for row in ROWS:
        own = [line for line in lines if line.strip().startswith(row[0])]
        assert [cell for line in own for cell in re.split(r"  +", line.strip())[1:]] == row[1:]
        assert any(row[1] in line and row[2] in line for line in own)
        assert any(row[3] in line and row[4] in line for line in own)
    assert len([line for line in lines if "─" in line]) == blocks


def test_long_names_and_texts_are_divided_instead(monkeypatch, capsys):
    rows = [["q" * 70, "1.5", "a text of many words that are divided between lines"], ["y", "2.5", "short"]]
    lines = printed(monkeypatch, capsys, 60, ["name", "number", "what it is"], rows, align="lrl")
    assert max(map(len, lines)) <= 60
    assert sum(line.count("q") for line in lines) == 70
    assert [word for word in rows[0][2].split() if any(word in line for line in lines)] == rows[0][2].split()
    assert printed(monkeypatch, capsys, 60, ["name", "number"], [])[1].split() == ["name", "number"]
    rows = [["a_name_of_26_letters_or_so", "6.916 ± 3e-04", "0.5"]]
    lines = printed(monkeypatch, capsys, 40, ["part", "lambda_max ± residual", "± samples"], rows)
    assert max(map(len, lines)) <= 40
    assert any("6.916 ± 3e-04" in line and "0.5" in line for line in lines)


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
