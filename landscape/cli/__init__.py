"""`landscape`: its commands, loaded when they are called, and the boundary where errors become one line.

Nothing here imports what a command needs: `landscape --help` and `landscape plot` start without torch. Further
commands come from the entry-point group "landscape.commands"; a name of this package's own wins.
"""

import logging
import os
import re
import sys
import traceback
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib import import_module, metadata

import click

from landscape.cli import console, naming
from landscape.errors import LandscapeError, named_by

PACKAGE = "loss-landscape-per-class"
LOGS = ("landscape", "trainers")
"""Loggers of which -v shows more."""

COMMANDS = {
    "hessian": ("landscape.cli.hessian:hessian", "Spectra of the loss curvature, per part of the data."),
    "surface1d": (
        "landscape.cli.surface:surface1d",
        "Loss and accuracy on a line, per part; loss barriers.",
    ),
    "surface2d": ("landscape.cli.surface:surface2d", "Loss and accuracy on a plane, per part."),
    "trajectory": ("landscape.cli.trajectory:trajectory", "Paths of training on a plane, with the surface under them."),
    "distances": ("landscape.cli.distances:distances", "Where parts converge, and how far apart that is."),
    "gradients": ("landscape.cli.gradients:gradients", "Gradients of parts against the whole and each other."),
    "features": ("landscape.cli.features:features", "Feature quality and the geometry of class means."),
    "sharpness": ("landscape.cli.sharpness:sharpness", "Rise of the loss around a checkpoint, per part."),
    "info": ("landscape.cli.inspect:info", "What a result file or a checkpoint holds."),
    "plot": ("landscape.cli.show:plot", "Draw a figure of a result file."),
    "compare": ("landscape.cli.show:compare", "Compare result files, side by side."),
    "report": ("landscape.cli.report:report", "Results of any kinds as one page to read and to turn."),
    "export": ("landscape.cli.show:export", "Write a result file in another format."),
}
"""Name: where the command is, as module:attribute, and its line in the help."""

PLUGIN_HELP = {
    "train": "Train a network by ce, sam, gsa-gkp, ... into checkpoints that describe themselves.",
    "demo": "Train and analyse on a small data set that comes with the package.",
}
"""Lines in the help for entry points that are known; those of others would have to be loaded."""


class Commands(click.Group):
    """A group that knows its commands by name and loads the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return [*COMMANDS, *(name for name in _plugins() if name not in COMMANDS)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a command, or return None if there is none of this name."""
        if cmd_name in COMMANDS:
            module, attribute = COMMANDS[cmd_name][0].split(":")
            command: click.Command = getattr(import_module(module), attribute)
        elif cmd_name in (plugins := _plugins()):
            command = plugins[cmd_name].load()
        else:
            return None
        command.help = re.split(r"\n\s*Raises:", command.help or "")[0]  # the rest is for readers of the code
        if not any("-v" in p.opts for p in command.params):
            command.params.append(_verbose_option())
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands' lines without loading any of them."""
        lines = {
            name: COMMANDS[name][1] if name in COMMANDS else _plugin_help(name) for name in self.list_commands(ctx)
        }
        with formatter.section("Commands"):
            formatter.write_dl(list(lines.items()))

    def invoke(self, ctx: click.Context) -> None:
        """Run the command; what it returns is of no concern to the shell."""
        super().invoke(ctx)


def _plugins() -> dict[str, metadata.EntryPoint]:
    found = metadata.entry_points(group="landscape.commands")
    return {entry.name: entry for entry in sorted(found, key=lambda e: e.name)}


def _plugin_help(name: str) -> str:
    if name in PLUGIN_HELP:
        return PLUGIN_HELP[name]
    distribution = _plugins()[name].dist
    return f"From {distribution.name}." if distribution else ""


def _be_verbose(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        for name in LOGS:
            logging.getLogger(name).setLevel(logging.INFO)


def _verbose_option() -> click.Option:
    return click.Option(
        ["-v", "--verbose"],
        is_flag=True,
        expose_value=False,
        callback=_be_verbose,
        help="Log what is done; show tracebacks.",
    )


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"landscape {metadata.version(PACKAGE)}")
        ctx.exit()


root = Commands(
    "landscape",
    help="The geometry of a neural network's loss, per class and per group of classes.",
    context_settings={"help_option_names": ["-h", "--help"]},
    params=[
        _verbose_option(),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_version,
            help="Show the version.",
        ),
    ],
)


def main(args: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        args: the words after "landscape"; None takes those of the process.

    Returns:
        The exit code: 0; 1 for a fault of this package or a reader that went away; 2 for an error that the user can
        mend; 130 when interrupted.
    """
    words = list(sys.argv[1:] if args is None else args)
    with _logging(), named_by(naming.as_option):
        try:
            code = root.main(words or ["--help"], prog_name="landscape", standalone_mode=False)
            sys.stdout.flush()
        except BrokenPipeError:
            _let_go_of_stdout()
            return 1
        except click.Abort as stop:
            # click makes one thing of the two: Ctrl-C, and a file that ends too early.
            cause = stop.__cause__
            return _report(cause if isinstance(cause, EOFError | KeyboardInterrupt) else KeyboardInterrupt())
        except (KeyboardInterrupt, Exception) as error:
            return _report(error)
    return int(code or 0)


def _report(error: BaseException) -> int:
    """Print one line about an error and return the exit code."""
    if logging.getLogger(LOGS[0]).isEnabledFor(logging.INFO):
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    text = str(error)
    if isinstance(error, KeyboardInterrupt):
        console.error(text or "interrupted")
        return 130
    if isinstance(error, LandscapeError):
        console.error(text)
        return 2
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        advice = f" See {context.command_path} -h." if context else ""
        console.error(error.format_message() + advice)
        return 2
    if _is_out_of_memory(error):
        advice = "lower --batch-size or --cache or --steps, or take another --device"
        console.error(f"out of memory: {advice} ({text:.200})")
        return 2
    where = "`landscape -v ...` shows the traceback"
    console.error(f"this is a fault of landscape, not yours: {type(error).__name__}: {text}; {where}")
    return 1


def _is_out_of_memory(error: BaseException) -> bool:
    """Know torch's error by its name or words, since torch may not have been imported."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "can't allocate memory" in str(error)


@contextmanager
def _logging() -> Generator[None, None, None]:
    """Show warnings, and with -v what is done, as long as the command runs."""
    handler = console.log_handler()
    logging.getLogger().addHandler(handler)
    levels = {name: logging.getLogger(name).level for name in LOGS}
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _let_go_of_stdout() -> None:
    """Keep the interpreter from a second attempt at the lost pipe when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
