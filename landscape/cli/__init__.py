"""The command line `landscape`: its commands, and the place where an error becomes one line.

Each command has one file, which parses, calls and prints. `options` declares commands and shared options, `analysis`
the options of every analysis of a checkpoint; `begin` loads the checkpoint and the data; `opened` reads result files;
`console` is the only place that prints. This room may import every other room. A command is imported when it is called,
so `landscape --help` and `landscape plot` start without torch. Other packages add commands by the entry-point group
"landscape.commands"; this package's own names have priority. Begin with `hessian`.
"""

import _thread
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib import import_module, metadata

import click
import cloup

from landscape.cli import console, naming, started
from landscape.errors import LandscapeError, RankError, is_of_memory, named_by, nearest

PACKAGE = "loss-landscape-per-class"
LOGS = ("landscape", "trainers")
"""Loggers of which -v shows more."""

COMMANDS = {
    "hessian": "Compute spectra of the loss curvature, for each part of the data.",
    "surface1d": "Compute loss and accuracy on a line, and loss barriers.",
    "surface2d": "Compute loss and accuracy on a plane.",
    "trajectory": "Draw paths of training on a plane, over the loss surface.",
    "distances": "Measure distances and barriers between the points to which parts converge.",
    "gradients": "Compare the gradients of parts with the total gradient and each other.",
    "features": "Measure feature quality and neural collapse.",
    "sharpness": "Measure how much the loss rises around a checkpoint.",
    "evaluate": "Print loss and accuracy of each part.",
    "plot": "Draw a figure of a result file.",
    "compare": "Print the numbers of several result files side by side.",
    "report": "Write one HTML page of many results.",
    "export": "Write a result file in another format.",
    "info": "Print what a result file or a checkpoint holds.",
}
"""Each command's name, which is also the name of its module and function, and its line in the help."""

MODULES = {"surface1d": "surface", "surface2d": "surface"}
"""Modules whose name differs from that of their command."""

PLUGIN_HELP = {
    "train": "Train a network; analyses read its checkpoints without further options.",
    "demo": "Train and analyse on a small data set that comes with the package.",
}
"""Lines in the help for known entry points; the line of any other one could only be read by loading it."""

_SECTIONS = {
    "Analyse a checkpoint": (
        "hessian", "surface1d", "surface2d", "trajectory", "distances", "gradients", "features", "sharpness",
        "evaluate",
    ),
    "Show results": ("plot", "compare", "report", "export", "info"),
}  # fmt: skip
_OTHERS = "Train, and commands of other packages"
_SOON = 0.05  # seconds


class Commands(cloup.Group):
    """A group that lists its commands by name and imports only the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return [*COMMANDS, *(name for name in _plugins() if name not in COMMANDS)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a command, or return None if there is none of this name."""
        if cmd_name in COMMANDS:
            module = import_module(f"landscape.cli.{MODULES.get(cmd_name, cmd_name)}")
            command: click.Command = getattr(module, cmd_name)
        elif cmd_name in (plugins := _plugins()):
            command = plugins[cmd_name].load()
        else:
            return None
        if not any("-v" in p.opts for p in command.params):
            command.params.append(verbose := _verbose_option())
            if isinstance(command, cloup.Command):
                command.ungrouped_options.append(verbose)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is called, or suggest one of a similar name."""
        # Those of other packages are looked for last: all packages that are installed are asked.
        is_known = args[0].startswith("-") or args[0] in COMMANDS
        if not is_known and args[0] not in (names := self.list_commands(ctx)):
            meant = nearest(args[0], names).rstrip()
            raise click.UsageError(f"No such command {args[0]!r}{f'; {meant}' if meant else '.'}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands' lines without loading any of them."""
        shown = {name for names in _SECTIONS.values() for name in names}
        others = tuple(name for name in self.list_commands(ctx) if name not in shown)
        for heading, names in {**_SECTIONS, _OTHERS: others}.items():
            with formatter.section(heading):
                formatter.write_dl([(name, COMMANDS.get(name) or _plugin_help(name)) for name in names])

    def invoke(self, ctx: click.Context) -> None:
        """Run the command, and drop what it returns."""
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
        help="Log each step, and show the traceback of an error.",
    )


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"landscape {metadata.version(PACKAGE)}")
        ctx.exit()


root = Commands(
    "landscape",
    help="Measure the geometry of a neural network's loss, for each class and group of classes.",
    epilog="\b\nExamples:\n  landscape demo\n  landscape hessian --ckpt run/last.pt --per-class",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
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
        args: the words after "landscape"; None means those of the process.

    Returns:
        The exit code: 0 for success; 1 for a fault of this package or a closed output pipe; 2 for an error that the
        user can correct; 130 for an interruption.
    """
    words = list(sys.argv[1:] if args is None else args)
    started.watch()
    with _logging(), _interruptible(), named_by(naming.as_option), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.*", FutureWarning)  # by PyTorch 2.15 of its own forward mode
        try:
            code = root.main(words or ["--help"], prog_name="landscape", standalone_mode=False, obj=words)
            if sys.stdout is not None:  # as in a process that was started with a closed one
                sys.stdout.flush()
        except BrokenPipeError:
            _let_go_of_stdout()
            return 1
        except click.Abort as stop:
            # click raises Abort both for Ctrl-C and for an EOFError, such as from a file that ends too early.
            cause = stop.__cause__
            cause = cause if isinstance(cause, EOFError | KeyboardInterrupt) else KeyboardInterrupt()
            with _ending(cause, of_process=args is None):
                return _report(cause)
        except (KeyboardInterrupt, Exception) as error:
            with _ending(error, of_process=args is None):
                return _report(error)
    return int(code or 0)


@contextmanager
def _ending(error: BaseException, *, of_process: bool) -> Generator[None, None, None]:
    """Ignore Ctrl-C once it has ended the command: a launcher of several processes passes it on to each once more.

    Args:
        error: that ends the command.
        of_process: the process ends with it, so that Ctrl-C is ignored to the end.
    """
    if not isinstance(error, KeyboardInterrupt) or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        if not of_process and before is not None:  # None: not set by Python, which cannot set it again
            signal.signal(signal.SIGINT, before)


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
        return started.LOST if isinstance(error, RankError) and started.STARTED in os.environ else 2
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        message = error.format_message()
        stop = "" if message.endswith((".", "?")) else "."
        console.error(f"{message}{stop} See {context.command_path} -h." if context else message)
        return 2
    if isinstance(error, OSError) and error.errno:
        _give_up_lost_output()
        place = f"{error.filename} cannot be read or written" if error.filename else "the output cannot be written"
        console.error(f"{place}: {os.strerror(error.errno)}")
        return 2
    if is_of_memory(error):
        advice = "lower --batch-size, --cache or --steps, or use another --device"
        console.error(f"out of memory: {advice} ({text:.200})")
        return 2
    where = "`landscape -v ...` shows the traceback"
    console.error(f"this is a fault of landscape, not yours: {type(error).__name__}: {text}; {where}")
    return 1


@contextmanager
def _logging() -> Generator[None, None, None]:
    """Show warnings, and with -v each step, while the command runs."""
    handler = console.log_handler()
    logging.getLogger().addHandler(handler)
    levels = {name: logging.getLogger(name).level for name in LOGS}
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def _interruptible() -> Generator[None, None, None]:
    """Interrupt the command once more after a Ctrl-C that came where Python ignores errors, as in a destructor."""
    before, timers = sys.unraisablehook, list[threading.Timer]()

    def hook(ignored: "sys.UnraisableHookArgs") -> None:
        if not issubclass(ignored.exc_type, KeyboardInterrupt):
            before(ignored)
            return
        timers.append(timer := threading.Timer(_SOON, _thread.interrupt_main))  # when Python has left this place
        timer.daemon = True
        timer.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
        for timer in timers:
            timer.cancel()


def _give_up_lost_output() -> None:
    """Discard output that cannot be written, for example on a full disk."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        _let_go_of_stdout()


def _let_go_of_stdout() -> None:
    """Keep the interpreter from writing to the closed pipe again when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
