"""What can go wrong for a user, in four kinds; each message names cause, value and remedy in one line.

The command line turns a `LandscapeError` into one line on stderr and exit code 2. Any other exception is a
fault of this package and is reported as such.
"""


class LandscapeError(Exception):
    """An error whose message is meant for the user, complete in one line."""


class InputError(LandscapeError):
    """An option, argument, checkpoint or callable that does not fit."""


class DataError(LandscapeError):
    """Samples or labels that cannot be used: missing, empty, out of range, of the wrong shape."""


class StoreError(LandscapeError):
    """A result file or its journal that cannot be read or written."""


class NumericalError(LandscapeError):
    """A value that is not finite, or a quantity that is not defined for this model and loss."""


def one_line(error: BaseException) -> str:
    """Return the kind and the words of an error of other code, on one line of at most some 200 letters."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:200]}{'...' if len(words) > 200 else ''}".removesuffix(": ")
