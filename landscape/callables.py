"""Users' own code, named on the command line as `package.module:callable`."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from landscape.errors import InputError, arg, one_line


def resolve(spec: str, what: str) -> Callable[..., Any]:
    """Import a callable by its name; modules in the current folder are found too.

    Args:
        spec: "package.module:callable"; the part behind the colon may have dots.
        what: the argument that the name stands for, such as "model", for messages.

    Returns:
        The callable.

    Raises:
        InputError: the text is no such name, the module cannot be imported, or what it names is not a callable.
    """
    module_name, _, path = spec.partition(":")
    if not all(word.isidentifier() for text in (module_name, path) for word in text.split(".")):
        raise InputError(f"{arg(what, spec)} is not of the form package.module:callable")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does; console scripts leave the current folder out
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # the user's module may raise anything; the traceback stays attached
        raise InputError(f"--{what} {spec}: cannot import {module_name} from {here}: {one_line(error)}") from error
    for name in path.split("."):
        if not hasattr(found, name):
            raise InputError(f"{arg(what, spec)}: {getattr(found, '__name__', module_name)} has no {name!r}")
        found = getattr(found, name)
    if not callable(found):
        raise InputError(f"{arg(what, spec)} is not a callable but {type(found).__name__}")
    return found  # type: ignore[no-any-return]  # callable() does not tell mypy the arguments
