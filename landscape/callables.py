"""Callables of users: their names and the errors if they fail; and functions that check their arguments.

A notebook gives what its user typed: `steps="40"` shall fail at once and by name, not deep inside. The annotations
of a function are the one place that says what an argument may be; editors, type checkers and `checked` read them.
"""

import ast
import functools
import importlib
import inspect
import numbers
import os
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from landscape.errors import InputError, LandscapeError, arg, check_choice, is_of_memory, one_line

P = ParamSpec("P")
T = TypeVar("T")

_WORDS: dict[Any, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a string",
    os.PathLike: "a path",
    type(None): "None",
    type: "a class",
    Mapping: "a mapping",
    Sequence: "a list",
    Callable: "a function",
}


@contextmanager
def failures_of(
    what: Callable[[], str], refused: type[LandscapeError] = InputError, remedy: str = ""
) -> Generator[None, None, None]:
    """Raise errors of a user's code inside the block as an error of one line; the traceback stays attached.

    Errors of this package and errors of memory are passed on unchanged; after the latter, the caller may use smaller
    batches.

    Args:
        what: returns the name of the code, such as "the model"; called only after a failure.
        refused: the type of the new error.
        remedy: the end of the line.

    Yields:
        Nothing.

    Raises:
        LandscapeError: of the type `refused`.
        MemoryError: raised in the block.
    """
    try:
        yield
    except LandscapeError:
        raise
    except Exception as error:  # the user's code may raise anything
        if is_of_memory(error):
            raise
        raise refused(f"{what()}: {one_line(error)}{remedy}") from error


def resolve(spec: str, what: str) -> Callable[..., Any]:
    """Import a callable by its name; modules in the current folder are found too.

    Args:
        spec: "package.module:callable"; the part after the colon may have dots.
        what: the argument that the name stands for, such as "model", for messages.

    Returns:
        The callable.

    Raises:
        InputError: the text is not such a name, the module cannot be imported, or the object is not a callable.
    """
    module_name, _, path = spec.partition(":")
    if not all(word.isidentifier() for text in (module_name, path) for word in text.split(".")):
        raise InputError(f"{arg(what, spec)} is not of the form package.module:callable")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does; console scripts leave the current folder out
    with failures_of(lambda: f"{arg(what, spec)}: cannot import {module_name} from {here}"):
        found: Any = importlib.import_module(module_name)
    for name in path.split("."):
        if not hasattr(found, name):
            raise InputError(f"{arg(what, spec)}: {getattr(found, '__name__', module_name)} has no {name!r}")
        found = getattr(found, name)
    if not callable(found):
        raise InputError(f"{arg(what, spec)} is not a callable but {type(found).__name__}")
    return found  # type: ignore[no-any-return]  # callable() does not tell mypy the arguments


def resolve_call(spec: str, what: str) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Import a callable by its name, which may be followed by arguments; the text is not evaluated as code.

    Args:
        spec: "package.module:callable" or "package.module:callable(3, width=16)"; arguments are plain Python values:
            numbers, strings, None, True and False, and lists, tuples, sets and dicts of them.
        what: as for `resolve`.

    Returns:
        The callable, and positional and named arguments for it.

    Raises:
        InputError: as for `resolve`, or an argument is not a plain value.
    """
    name, bracket, _ = spec.partition("(")
    if not bracket:
        return resolve(spec, what), (), {}
    args, kwargs = arguments(spec, what)
    return resolve(name.strip(), what), args, kwargs


def arguments(spec: str, what: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Read the arguments of a call in a text; see `resolve_call`."""
    refused = InputError(
        f"{arg(what, spec)}: arguments in parentheses must be plain values, as in mymodel:ResNet(18, width=16)"
    )
    try:
        call = ast.parse(f"f{spec[spec.index('(') :]}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise refused
        found = tuple(ast.literal_eval(value) for value in call.args)
        named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise refused from None
    if None in named:  # of **options
        raise refused
    return found, {str(name): value for name, value in named.items()}


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Make a public function check the types of its arguments by its annotations before it begins.

    Args:
        function: any function; the check covers classes, `Literal`, unions, and the outer type of collections.

    Returns:
        The function; it raises InputError for an argument of another type and names the argument.
    """
    signature = inspect.signature(function)
    hints: dict[str, Any] = {}

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if not hints:
            hints.update(get_type_hints(function))  # at the first call, when all that they name is loaded
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            given = {}  # the call below fails in Python's own words, with the function's name
        for name, value in given.items():
            if name in hints:
                _check(name, value, hints[name])
        return function(*args, **kwargs)

    return call


def _check(name: str, value: object, hint: Any) -> None:
    if _fits(value, hint):
        return
    choices = [choice for option in _options(hint) if get_origin(option) is Literal for choice in get_args(option)]
    if choices and isinstance(value, str) and not any(option in {Any, str} for option in _options(hint)):
        check_choice(name, value, choices)
    wanted = " or ".join(dict.fromkeys(_word(option) for option in _options(hint)))
    kind = type(value).__name__
    raise InputError(f"{arg(name)} must be {wanted}, got {kind}{f' {value!r}' if len(repr(value)) <= 40 else ''}")


def _options(hint: Any) -> Iterator[Any]:
    """Return the members of a union, or a hint that is none."""
    if get_origin(hint) in {Union, UnionType}:
        for option in get_args(hint):
            yield from _options(option)
    else:
        yield hint


def _fits(value: object, hint: Any) -> bool:
    options = list(_options(hint))
    if len(options) > 1:
        return any(_fits(value, option) for option in options)
    kind = get_origin(hint) or hint
    if kind is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(hint))
    if kind is Any or not isinstance(kind, type):  # or a type variable
        return True
    if kind in {int, float}:
        number = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool)
    if kind is bool:
        return isinstance(value, bool | np.bool_)
    if kind is Sequence and isinstance(value, np.ndarray):
        return True
    return isinstance(value, kind) and not (isinstance(value, str) and hint is not str and kind is not str)


def _word(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return ", ".join(map(repr, get_args(hint)))
    kind = get_origin(hint) or hint
    return _WORDS.get(kind) or str(getattr(kind, "__name__", kind))
