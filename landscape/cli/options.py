"""How a command is declared: its help, kinds of values, and options that all sorts of commands share.

Names that can be chosen are read from the registry that defines them; no list of names is typed here.
"""

import inspect
import math
import re
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, TypeAlias, TypeVar

import click
import cloup
from click.core import ParameterSource

from landscape.errors import InputError, arg, nearest
from landscape.results.grouping import ENDS, FEW, MANY

F = TypeVar("F", bound=Callable[..., Any])
Decorator: TypeAlias = Callable[[F], F]

OWN = "package.module:callable"
"""How a user names a function of their own."""

CALLED = "package.module:callable(width=16)"
"""How a user names a function of their own and its arguments."""


_HYPHEN = "\N{NON-BREAKING HYPHEN}"


class _Formatter(cloup.HelpFormatter):
    """Writes help whose lines end at spaces only, so that a name such as gsa-gkp stays whole and can be copied."""

    def write_text(self, text: str, *args: Any, **options: Any) -> None:
        """Write a paragraph."""
        super().write_text(text.replace("-", _HYPHEN), *args, **options)

    def write_dl(self, rows: Iterable[tuple[str, Any]], *args: Any, **options: Any) -> None:
        """Write names and their descriptions."""
        whole = [(name, text.replace("-", _HYPHEN) if isinstance(text, str) else text) for name, text in rows]
        super().write_dl(whole, *args, **options)

    def getvalue(self) -> str:
        """Return all that was written, with plain hyphens."""
        return super().getvalue().replace(_HYPHEN, "-")


BEFORE = "before"
"""Key of `click.Context.meta` for functions that a `Command` calls when all options are read, before it begins."""


class _Context(cloup.Context):
    formatter_class = _Formatter


class Command(cloup.Command):
    """A command that refuses an option that is given twice; click would silently use the last one."""

    context_class = _Context

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read a command line as click does."""
        order = [] if ctx.resilient_parsing else self.make_parser(ctx).parse_args(args=list(args))[2]
        for param in order:
            once = isinstance(param, click.Option) and not (param.multiple or param.is_flag or param.count)
            if once and order.count(param) > 1:
                raise click.UsageError(f"{param.opts[0]} is given {order.count(param)} times: give it once.", ctx)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, after what options have put off until all options are read."""
        for act in ctx.meta.get(BEFORE, ()):
            act()
        return super().invoke(ctx)


def command(*examples: str, kind: type[cloup.Command] = Command) -> Callable[[Callable[..., Any]], cloup.Command]:
    """Return a decorator that makes a command of a function; its docstring, up to "Raises:", is the help.

    Args:
        examples: command lines that end the help.
        kind: class of the command.

    Returns:
        The decorator.
    """

    def make(function: Callable[..., Any]) -> cloup.Command:
        text = inspect.cleandoc(function.__doc__ or "").partition("\n\nRaises:")[0]
        epilog = "\n".join(["\b", "Examples:", *(f"  {example}" for example in examples)])
        # Set for each command, not only for the group: a command may be called by itself.
        context = {"help_option_names": ["-h", "--help"]}
        return cloup.command(cls=kind, help=text, epilog=epilog, context_settings=context)(function)

    return make


class _Option(cloup.Option):
    """An option that may describe its default in words."""

    def get_help_extra(self, ctx: click.Context) -> Any:
        """Return the text in brackets after the help; click would put a default in words into parentheses."""
        extra = super().get_help_extra(ctx)
        if isinstance(self.show_default, str):
            extra["default"] = self.show_default
        return extra


def option(*names: str, **attributes: Any) -> Decorator[Any]:
    """Declare an option, as `click.option` does.

    Args:
        names: such as "-o", "--out"; the last may be the name of the argument.
        attributes: as for click; `show_default` may be text that describes the default.

    Returns:
        The decorator.
    """
    decorator: Decorator[Any] = cloup.option(*names, cls=_Option, **attributes)
    return decorator


def listed(names: Iterable[str], *more: str) -> str:
    """Return names as a list in a sentence: "a, b or c"."""
    *first, last = [*names, *more]
    return f"{', '.join(first)} or {last}" if first else last


def refuse_typed(names: Iterable[str], why: str) -> None:
    """Refuse options that were typed and would be ignored; defaults and a configuration file may have them.

    Args:
        names: arguments of the running command, of which it need not have all.
        why: what the options are for, as the rest of a sentence.

    Raises:
        InputError: one was typed.
    """
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            value = context.params.get(name)
            raise InputError(f"{arg(name, value) if isinstance(value, bool) else arg(name)} {why}")


class Choice(click.Choice[str]):
    """A choice among names that suggests the nearest one for a name that is not among them."""

    def __init__(self, choices: Iterable[str], *, own: bool = False) -> None:
        """Choose among names; with `own`, `package.module:callable` may stand for one of the user's."""
        super().__init__(list(choices))
        self._own = own

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Take a name, or fail as click does, with a suggestion."""
        try:
            return value if self._own and ":" in value else super().convert(value, param, ctx)
        except click.BadParameter as error:
            if near := nearest(value, map(str, self.choices)):
                self.fail(f"{error.message} {near}".rstrip(), param, ctx)
            raise


class _Number(click.FloatRange):
    """A range of numbers that excludes nan."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Take a number, or fail as click does."""
        number = super().convert(value, param, ctx)
        return self.fail("nan is not a number.", param, ctx) if math.isnan(number) else number


class _Memory(click.ParamType[int]):
    """An amount of memory, as 20GB, 1.5GiB or 500MB; a number alone is in GB."""

    name = "memory"
    units: ClassVar[dict[str, float]] = {"": 1e9, "MB": 1e6, "GB": 1e9, "TB": 1e12, "MIB": 2**20, "GIB": 2**30}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return bytes, or fail as click does."""
        found = re.fullmatch(r"([0-9.]+) *([a-z]*)", str(value).strip(), re.IGNORECASE)
        try:
            number = float(found[1]) * self.units[found[2].upper()] if found else math.nan
        except (KeyError, ValueError):
            number = math.nan
        if not 0 < number < 2**60:
            self.fail(f"{value!r} is no amount of memory: write 20GB, 1.5GiB or 500MB.", param, ctx)
        return int(number)


MEMORY = _Memory()
COUNT = click.IntRange(min=1)
THREADS = click.IntRange(1, 1024)  # OpenMP ends the process where it cannot have so many as it is asked for
POSITIVE, SIZE, FRACTION = _Number(min=0, min_open=True), _Number(min=0), _Number(0, 1, min_open=True, max_open=True)


def limiting(of: str) -> Decorator[Any]:
    """Return the option --memory; `of` says what happens if it is too little."""
    return option(
        "--memory",
        type=MEMORY,
        metavar="SIZE",
        help=f"Use at most this much memory in each process, such as 20GB; on a GPU, of its memory. {of}",
        show_default="four fifths of the free memory",
    )


EIGENVECTORS_WITHIN = limiting("If a Lanczos basis for eigenvectors does not fit, a restarted run needs fewer vectors.")
"""--memory of commands that use eigenvectors."""


def seeding(of: str) -> Decorator[Any]:
    """Return the option --seed; `of` says what it seeds."""
    kind = click.IntRange(min=0)
    return option("--seed", type=kind, default=0, show_default=True, metavar="N", help=f"Seed {of}.")


READING = (
    option(
        "--ckpt-key",
        metavar="A.B",
        help="Read the weights from this key of the checkpoint.",
        show_default="found automatically",
    ),
    option(
        "--trust-pickle",
        is_flag=True,
        help="Let the checkpoint run code while it is read. Use it only for files that you made.",
    ),
)
"""How a checkpoint is read."""

DRY_RUN = option(
    "--dry-run",
    is_flag=True,
    help="Only estimate and print how much time, memory and disk space the command would need.",
)
JSON = option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")
OVERWRITE = option("--overwrite", is_flag=True, help="Replace an existing file.")

BY_COUNT = (
    option(
        "--many",
        default=MANY,
        show_default=True,
        metavar="N",
        help="Call classes with more than N training samples 'many'.",
    ),
    option(
        "--few",
        default=FEW,
        show_default=True,
        metavar="N",
        help="Call classes with fewer than N training samples 'few'.",
    ),
    option(
        "--ends",
        default=ENDS,
        show_default=True,
        metavar="N",
        help="Put the N most frequent classes into 'head', and the N rarest into 'tail'.",
    ),
)
"""How classes are put into groups by their numbers of training samples."""
