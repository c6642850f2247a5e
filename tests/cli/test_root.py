"""The command line as its users meet it: help, exit codes, and errors in one line on stderr."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from importlib import metadata

import click
import plugin
import pytest
from surfaces import three_classes

from landscape import cli
from landscape.autodiff import threads
from landscape.cli import processes
from landscape.errors import DataError
from landscape.objective.jobs import Interrupted
from landscape.results import store


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install a package that adds commands: their names, and where its entry points say that these are."""

    def install(**commands):
        folder = tmp_path / "site" / "theirs-1.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
        lines = "".join(f"{name} = {place}\n" for name, place in commands.items())
        (folder / "entry_points.txt").write_text(f"[landscape.commands]\n{lines}")
        monkeypatch.syspath_prepend(str(folder.parent))

    return install


@pytest.fixture
def added(installed):
    """Install a package that adds one command, which does what a test says."""

    def add(name, action):
        plugin.does[:] = [action]
        installed(**{name: "plugin:command"})

    yield add
    plugin.does.clear()


@pytest.fixture
def failing(added):
    """Let the command "fail" raise an exception."""

    def arrange(exception):
        def body():
            raise exception

        added("fail", body)

    return arrange


@pytest.mark.parametrize(
    ("exception", "code", "line"),
    [
        (DataError("class 7 has\n no samples"), 2, "landscape: error: class 7 has no samples"),
        (KeyboardInterrupt(), 130, "landscape: error: interrupted"),
        (Interrupted("interrupted: 3 of 9"), 130, "landscape: error: interrupted: 3 of 9"),
        (click.UsageError("no\nsuch thing"), 2, "landscape: error: no such thing"),
        (MemoryError("12 GiB"), 2, "landscape: error: out of memory: lower --batch-size"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA"), 2, "landscape: error: out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "landscape: error: out of memory"),
        (
            EOFError("ended early"),
            1,
            "landscape: error: this is a fault of landscape, not yours: EOFError: ended early",
        ),
        (
            ValueError("a\nb"),
            1,
            "landscape: error: this is a fault of landscape, not yours: ValueError: a b; `landscape -v ...` shows",
        ),
    ],
)
def test_every_error_is_one_line_on_stderr_and_an_exit_code(run, failing, exception, code, line):
    failing(exception)
    found, out, err = run("fail")
    assert (found, out) == (code, "")
    assert [text for text in err if text] == [err[-1]]  # click ends the line of ^C before it
    assert err[-1].startswith(line)


@pytest.mark.parametrize("words", [["-v", "fail"], ["fail", "-v"], ["fail", "--verbose"]])
def test_verbose_shows_the_traceback_before_the_line(run, failing, words):
    failing(ValueError("broken"))
    code, _, err = run(*words)
    assert code == 1
    assert err[0].startswith("Traceback")
    assert err[-1].startswith("landscape: error:")
    assert not logging.getLogger("landscape").isEnabledFor(logging.INFO)  # not for the next command


def test_verbose_shows_the_log_and_without_it_only_warnings(run, added):
    def body():
        logging.getLogger("landscape.room").info("a detail")
        logging.getLogger("landscape.room").warning("a [warning]")

    added("log", body)
    _, out, err = run("log")
    assert out == ""
    assert "a [warning]" in " ".join(err)
    assert "a detail" not in " ".join(err)
    assert "a detail" in " ".join(run("log", "-v")[2])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["plto"], "No such command 'plto'; did you mean plot?"),
        (["hesian"], "did you mean hessian?"),
        (["xyzzy"], "No such command 'xyzzy'. See landscape -h."),
        (["plot"], "Missing argument 'FILES...'. See landscape plot -h."),
        (["plot", "--kind", "pie", "x.h5"], "'pie' is not one of"),
        (["plot", "--kind", "contuor", "x.h5"], "did you mean contour?"),
        (["plot", "--limits", "5", "x.h5"], "as in --limits=-100:100. See landscape plot -h."),
        (["info", "--colour", "x.h5"], "No such option"),
    ],
)
def test_wrong_usage_is_one_line(run, words, line):
    code, out, err = run(*words)
    assert (code, out, len(err)) == (2, "", 1)
    assert line in err[0]


def test_a_reader_that_goes_away_is_no_error(file):
    script = "import sys; from landscape.cli import main; sys.exit(main(sys.argv[1:]))"
    command = f"{sys.executable} -c '{script}' info {file} | head -c 1 >/dev/null; exit ${{PIPESTATUS[0]}}"
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert found.returncode in {0, 1}
    assert found.stderr == ""


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_help_is_shown_however_it_is_asked_for(run, words):
    code, out, err = run(*words)
    assert (code, err) == (0, [])
    assert all(name in out for name in cli.COMMANDS)


def test_commands_of_other_packages_are_listed_without_being_loaded(run, installed):
    installed(their_own="not.there:command")
    assert re.search(r"their_own +From theirs\.", run("-h")[1])
    code, _, err = run("their_own")
    assert code == 1
    assert "ModuleNotFoundError" in err[0]


def test_our_commands_win_over_those_of_other_packages(run, installed):
    installed(plot="not.there:command")
    code, out, _ = run("plot", "-h")
    assert code == 0
    assert "Draw a figure" in out


def test_version(run):
    assert run("--version") == (0, f"landscape {metadata.version('loss-landscape-per-class')}\n", [])


def test_help_and_what_shows_results_start_without_torch(tmp_path, file):
    script = (
        "import sys; from landscape.cli import main\n"
        "f, s = sys.argv[1:]\n"
        "for words in (['-h'], ['plot', f], ['compare', f, f], ['export', f, '--to', 'csv'], ['info', f, '--json'],\n"
        "    ['compare', s, s, '--groups', 'head-tail'], *(['export', s, '--to', form] for form in ('vtk', 'npz')),\n"
        "    ['export', s, '--to', 'goldstein']):\n"
        "    assert main(words) == 0, words\n"
        "assert 'torch' not in sys.modules\n"
    )
    store.save(tmp_path / "surface.h5", three_classes())
    command = [sys.executable, "-c", script, str(file), str(tmp_path / "surface.h5")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no device that is always full")
@pytest.mark.parametrize("words", [["--version"], ["--help"]])
def test_output_that_cannot_be_written_is_one_line_and_exit_code_2(words):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "landscape", *words], stdout=full, stderr=subprocess.PIPE, text=True, timeout=200
        )
    assert done.returncode == 2
    assert done.stderr == "landscape: error: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize("cause", [KeyboardInterrupt, click.Abort])
def test_ctrl_c_while_the_message_of_ctrl_c_is_written_changes_nothing(added, monkeypatch, capsys, cause):
    """As torchrun does, which passes a Ctrl-C on to processes that have it from the terminal."""

    def action():
        raise cause

    real = cli.console.error
    monkeypatch.setattr(cli.console, "error", lambda text: (signal.raise_signal(signal.SIGINT), real(text)))
    added("dishes", action)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert cli.main(["dishes"]) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.strip() == "landscape: error: interrupted"


def test_ctrl_c_after_the_message_of_ctrl_c_does_not_change_the_exit_code(tmp_path):
    program = (
        "import signal, sys\n"
        "from landscape import cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def stopped(*given, **options): raise KeyboardInterrupt\n"
        "cli.root.main = stopped\n"
        "code = cli.main()\n"
        "signal.raise_signal(signal.SIGINT)\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stderr) == (130, "landscape: error: interrupted\n")


def test_ctrl_c_in_a_destructor_ends_the_command(added):
    class Last:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    def action():
        Last()  # and Python ignores what a destructor raises
        end = time.monotonic() + 20
        while time.monotonic() < end:
            time.sleep(0.01)

    added("dishes", action)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    hook = sys.unraisablehook
    try:
        assert cli.main(["dishes"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert sys.unraisablehook is hook


# Several processes ---------------------------------------------------------------------------------------------------


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(threads, "cores", lambda: 2)


@pytest.mark.parametrize("words", [["--processes", "2"], ["--processes=2"]])
@pytest.mark.parametrize("line", [["-v", "hessian", "--ckpt", "a b.pt"], ["train", "ce", "-o", "run"]])
def test_a_command_in_several_processes_is_run_by_each(two_cores, monkeypatch, line, words):
    ran = []
    monkeypatch.setattr(processes, "run", lambda command, n: ran.append((command, n)) or 7)
    assert cli.main([*line, *words, "-q"]) == 7
    ((command, n),) = ran
    assert (command[-len(line) - 1 :], n) == ([*line, "-q"], 2)


def test_one_process_is_this_one(run, two_cores):
    code, _, err = run("hessian", "--ckpt", "nowhere.pt", "--processes", "1")
    assert code == 2
    assert "nowhere.pt" in err[-1]


STEP = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": "7"}


@pytest.mark.parametrize(
    ("n", "environment"),
    [
        (0, {}),
        (3, {}),  # of two cores
        (2, {"RANK": "0", "WORLD_SIZE": "2"}),
        (2, STEP),
    ],
)
def test_processes_that_cannot_be_started_are_refused_in_one_line(run, two_cores, monkeypatch, n, environment):
    monkeypatch.setattr(processes, "run", None)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code, _, err = run("hessian", "--ckpt", "a.pt", "--processes", n)
    assert (code, len(err)) == (2, 1)
    assert "--processes" in err[0]


@pytest.mark.parametrize("name", cli.root.list_commands(None))
def test_what_computes_has_threads_and_processes(name):
    options = {word for param in cli.root.get_command(None, name).params for word in param.opts}
    assert ("--threads" in options) == ("--processes" in options)
