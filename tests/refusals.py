"""Errors that are expected: of which kind, and what they name, in whatever words."""

import re
from collections.abc import Generator
from contextlib import contextmanager

import pytest

from landscape.errors import literal


@contextmanager
def refused(
    kind: type[BaseException], /, *named: object, **arguments: object
) -> Generator[pytest.ExceptionInfo[BaseException], None, None]:
    """Expect an error in one line that names what it is about and what helps.

    Args:
        kind: of the error.
        named: files, parts, options and numbers that stand in the message.
        arguments: those of the function that is called, with the values that the message tells.

    Yields:
        What pytest knows of the error.
    """
    with pytest.raises(kind) as caught:
        yield caught
    line = str(caught.value)
    assert "\n" not in line
    left = missing(line, *named, *arguments)
    left += [f"{k}={v!r}" for k, v in arguments.items() if not any(names(line, t) for t in (str(v), literal(v)))]
    assert not left, f"{left} not named in: {line}"


def missing(line: str, *named: object) -> list[str]:
    """Return those things that do not stand in a line."""
    return [str(thing) for thing in named if not names(line, str(thing))]


def names(line: str, thing: str) -> bool:
    """Say whether something stands in a line as a whole: 5 does not in 0.5, nor cat in category."""
    before = r"(?<![\w.])" if thing[:1].isdigit() else r"(?<!\w)" if thing[:1].isalpha() else ""
    after = r"(?!\w|\.\d)" if thing[-1:].isalnum() else ""
    return re.search(before + re.escape(thing) + after, line) is not None
