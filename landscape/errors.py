"""Errors that a user can meet, in five kinds; each message names cause, value and remedy in one line.

The command line prints a `LandscapeError` as one line on stderr and exits with code 2. Any other exception is an error
of this package and is reported as such.

A message names an argument by `arg`: who calls a function reads `steps=0`, who types a command reads `--steps 0`. The
command line says once, by `named_by`, how its options are written; nobody else asks who is reading.
"""

import difflib
import re
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from os import PathLike, fspath
from typing import Any, TypeAlias

Naming: TypeAlias = Callable[..., str]
"""Called with an argument's name and, if its value is to be named too, with that."""

_OF_MEMORY = re.compile(
    r"can('t|not) allocate memory|not enough memory|out of memory|bad_alloc|_ALLOC_FAILED"
    r"|could not create a (primitive(?! descriptor)|memory)",  # oneDNN; a descriptor is refused for other reasons
    re.IGNORECASE,
)
"""In messages of RuntimeErrors, as PyTorch and its libraries for CPUs and GPUs raise them if memory runs out."""
_SHOWN = 20  # names in a message, before it says that there are more
_naming: ContextVar[Naming | None] = ContextVar("naming", default=None)


_LONGEST = 1500  # letters of a message


class LandscapeError(Exception):
    """An error with a message for the user, complete in one line; very long names are shortened."""

    def __str__(self) -> str:
        text = super().__str__()
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


class InputError(LandscapeError):
    """An option, argument, checkpoint or callable that does not fit."""


class DataError(LandscapeError):
    """Samples or labels that cannot be used: missing, empty, out of range, of the wrong shape."""


class StoreError(LandscapeError):
    """A result file or its journal that cannot be read or written."""


class NumericalError(LandscapeError):
    """A value that is not finite, or a quantity that is not defined for this model and loss."""


class RankError(LandscapeError):
    """Another process of the same run that ended before this one, or cannot be reached."""


def is_of_memory(error: BaseException | None) -> bool:
    """Say whether an error, or its cause, is that of an allocator or of a library for which memory has run out."""
    if error is None:
        return False
    names = {kind.__name__ for kind in type(error).__mro__}  # PyTorch's by its name: it may not have been imported
    own = isinstance(error, RuntimeError) and bool(_OF_MEMORY.search(str(error)))
    return own or bool(names & {"MemoryError", "OutOfMemoryError"}) or is_of_memory(error.__cause__)


def one_line(error: BaseException) -> str:
    """Return type and message of another package's error, on one line of at most about 200 characters."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:200]}{'...' if len(words) > 200 else ''}".removesuffix(": ")


def arg(name: str, *value: object) -> str:
    """Name an argument as the user wrote it: as an argument of a function or as an option of a command.

    Args:
        name: the argument's name in the library.
        value: its value, if the text should include it.

    Returns:
        `steps` or `steps=0`; on the command line `--steps` or `--steps 0`.
    """
    naming = _naming.get()
    if naming is not None:
        return naming(name, *value)
    return f"{name}={literal(value[0])}" if value else name


def said(library: str, command_line: str) -> str:
    """Choose between the wordings for the library and for the command line, if the names differ.

    Args:
        library: the text for a caller of functions, such as "surface()".
        command_line: the text for a user of commands, such as "--kind contour".

    Returns:
        One of the two texts.
    """
    return library if _naming.get() is None else command_line


@contextmanager
def named_by(naming: Naming) -> Generator[None, None, None]:
    """Let `arg` name arguments by another rule within the block.

    Args:
        naming: a function with the arguments of `arg`.

    Yields:
        Nothing.
    """
    token = _naming.set(naming)
    try:
        yield
    finally:
        _naming.reset(token)


def literal(value: Any) -> str:
    """Write a value as in Python code.

    Args:
        value: any value; a NumPy number is written as a plain number, a callable by its name.

    Returns:
        Its text.
    """
    if isinstance(value, PathLike):
        return repr(fspath(value))
    if callable(getattr(value, "item", None)) and getattr(value, "ndim", None) == 0:
        value = value.item()
    return getattr(value, "__name__", None) or repr(value)


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Refuse a value that is not among an argument's choices.

    Args:
        name: the argument's name.
        value: the given value.
        choices: the valid values.

    Raises:
        InputError: the value is not among them; the message suggests the most similar choice.
    """
    known = list(choices)
    if value not in known:
        raise InputError(f"{arg(name, value)} is unknown: {nearest(value, known)}choose {', '.join(known)}")


def position(name: object, known: Sequence[object], what: str = "part") -> int:
    """Return the position of a name in a list of names.

    Args:
        name: the given name.
        known: the names.
        what: the kind of thing that has these names.

    Returns:
        Its position.

    Raises:
        InputError: the name is not among them; the message suggests the most similar one.
    """
    if name not in known:
        raise InputError(unknown(name, known, what))
    return known.index(name)


def positions(names: object, known: Sequence[object], what: str = "part") -> list[int]:
    """Return the positions of one name, or of several.

    Args:
        names: a name, or a list of names.
        known: as for `position`.
        what: as for `position`.

    Returns:
        Their positions, in the order of `names`.

    Raises:
        InputError: a name is not among them, or `names` is neither a name nor a list.
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        return [position(names, known, what)]
    return [position(name, known, what) for name in names]


def unknown(name: object, known: Iterable[object], what: str = "part", *, where: str = "", more: str = "") -> str:
    """Return the message for a name that does not exist.

    Args:
        name: the given name; the message says so if it is a number and not a text.
        known: the existing names.
        what: the kind of thing that has these names.
        where: what the name was given for, such as " for --parts".
        more: what else could be given, as the end of the message.

    Returns:
        The message, which suggests the most similar name and lists at most 20.
    """
    names = [str(one) for one in known]
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    listed = f"choose {shown}" if names else f"there are no {what}s"
    near = nearest(name, names) if isinstance(name, str) else "give its name as a text; "
    return f"there is no {what} {name!r}{where}: {near}{listed}{more}"


def nearest(word: object, known: Iterable[str]) -> str:
    """Suggest a name for one that does not exist.

    Args:
        word: the given name.
        known: the existing names.

    Returns:
        "did you mean hessian? ", or an empty text if no name is similar.
    """
    found = difflib.get_close_matches(str(word), list(known), n=1)
    return f"did you mean {found[0]}? " if found else ""
