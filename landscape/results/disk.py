"""Reading and writing files of any kind: reads have size limits, and a write is complete or has no effect.

One rule holds for every file that is read, whoever made it. The size that it claims (numbers of an array, pixels of an
image, entries of a pickle, labels) is compared with the size that its bytes allow and with a memory budget BEFORE
memory is allocated: `claim`. Text is UTF-8, with or without a byte-order mark: `read_text`, `read_json`, `read_toml`.

A file is never changed in place. It is written beside its final path, synced and renamed, so that after a kill or on a
full disk there is either the old file or the new one. The writing process holds a lock on the unfinished file, which
the system releases when the process ends. An unfinished file without a lock therefore comes from a killed process, and
the next writer removes it.
"""

import errno
import fcntl
import json
import logging
import os
import resource
import secrets
import tomllib
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from landscape.errors import LandscapeError, StoreError, arg

log = logging.getLogger(__name__)

ASIDE = ".landscape-"
"""Prefix of the names of unfinished files."""

SMALL = 2**26
"""Bytes that any file may claim, whatever its own size."""

RATIO = 100
"""A larger file may claim this many times its own bytes; deflate compresses real numbers and images far less."""

_DEEPEST = 64  # levels of JSON and TOML; Python's own readers and printers end at some hundreds


class ClaimError(ValueError):
    """A file claims more data than its bytes allow, or than fits into memory."""


def memory() -> int:
    """Return the bytes of memory that this process may use: the machine's, or its own limit if that is lower."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return physical if limit == resource.RLIM_INFINITY else min(limit, physical)


def claim(n_bytes: int, what: str, *, held: int | None = None, ratio: int = RATIO, budget: int | None = None) -> None:
    """Check a size that a file claims, before memory is taken for it.

    Args:
        n_bytes: the claimed size.
        what: description for the message, such as "its array loss".
        held: bytes that the file has for it; None if these do not limit the size.
        ratio: the largest ratio of the claimed size to `held`, beyond `SMALL`; 1 if nothing is compressed.
        budget: the largest size; None means half of `memory()`.

    Raises:
        ClaimError: the size is too large.
    """
    budget = memory() // 2 if budget is None else budget
    if held is not None and n_bytes > (held if ratio == 1 else max(SMALL, ratio * held)):
        raise ClaimError(f"{what} claims {_size(n_bytes)}, for which the file holds {_size(held)}")
    if n_bytes > budget:
        raise ClaimError(f"{what} takes {_size(n_bytes)} of memory, more than the {_size(budget)} allowed here")


def _size(n_bytes: int) -> str:
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if n_bytes >= 10**power:
            return f"{n_bytes / 10**power:,.3g} {unit}" if n_bytes < 10**15 else "over a million GB"
    return f"{n_bytes} bytes"


def check_name(name: str, what: str, error: type[LandscapeError]) -> None:
    """Refuse a name that cannot be stored in a text or HDF5 file, before anything is computed for it.

    Args:
        name: such as that of a group of classes.
        what: description for the message, such as "the name of a part".
        error: class of the error.

    Raises:
        LandscapeError: `error`, if the name contains NUL or half a surrogate pair.
    """
    if "\0" in name or any("\ud800" <= c <= "\udfff" for c in name):
        raise error(f"{what} {name!a:.60} holds NUL or half a surrogate pair, which HDF5 text cannot: rename it")


# Text ------------------------------------------------------------------------------------------------------------


def read_text(path: str | Path, error: type[LandscapeError]) -> str:
    """Read a text file in UTF-8, without its byte-order mark if it has one.

    Args:
        path: the file.
        error: what to raise.

    Returns:
        The text.

    Raises:
        LandscapeError: `error`, where the file cannot be read or is not text.
    """
    try:
        with open(path, "rb") as file:
            claim(os.fstat(file.fileno()).st_size, "the file", budget=memory() // 8)  # parsed text needs more memory
            content = file.read()
    except ValueError as cause:  # a claim, or NUL in the path
        raise error(f"{path!s:.200} cannot be read: {cause}".replace("\0", "\\0")) from cause
    except OSError as cause:
        raise error(f"{path} cannot be read: {cause.strerror}") from cause
    line = content.count(b"\n", 0, content.find(b"\0")) + 1
    if b"\0" in content:
        raise error(f"{path}, line {line}, holds a NUL byte: save the file as UTF-8 text")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        line = content.count(b"\n", 0, cause.start) + 1
        raise error(f"{path}, line {line}, is not UTF-8 (byte {content[cause.start]:#x}): save it as UTF-8") from cause


def read_json(path: str | Path, error: type[LandscapeError]) -> Any:
    """Read a JSON file in which no name occurs twice in an object.

    Args:
        path: the file.
        error: what to raise.

    Returns:
        Its content.

    Raises:
        LandscapeError: `error`, where the file cannot be read or is not JSON.
    """
    text = read_text(path, error)
    try:
        return parse_json(text)
    except ValueError as cause:
        raise error(f"{path} cannot be read as JSON: {cause}") from cause


def parse_json(text: str) -> Any:
    """Return the content of JSON text; ValueError if it is invalid, repeats a name, or is nested too deeply."""
    return _parsed(lambda: json.loads(text, object_pairs_hook=_distinct))


def read_toml(path: str | Path, error: type[LandscapeError]) -> dict[str, Any]:
    """Read a TOML file.

    Args:
        path: the file.
        error: what to raise.

    Returns:
        Its content.

    Raises:
        LandscapeError: `error`, where the file cannot be read or is not TOML.
    """
    text = read_text(path, error)
    try:
        found: dict[str, Any] = _parsed(lambda: tomllib.loads(text))
    except ValueError as cause:
        raise error(f"{path} is not TOML: {cause}") from cause
    return found


def _parsed(parse: Callable[[], Any]) -> Any:
    try:
        value = parse()
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except ValueError as error:
        if "integer string conversion" in str(error):
            raise ValueError("a number in it has thousands of digits") from None
        raise
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            v for of in level for v in (of.values() if isinstance(of, dict) else of if isinstance(of, list) else ())
        ]
        if not level:
            return value
    raise ValueError(f"it is nested deeper than {_DEEPEST} levels")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for name, count in Counter(name for name, _ in pairs).items():
        if count > 1:
            raise ValueError(f"{name!r} is there twice")
    return dict(pairs)


# Writing ---------------------------------------------------------------------------------------------------------


@contextmanager
def writing(path: Path) -> Generator[None, None, None]:
    """Turn an OSError inside the block into a StoreError that names the file, the cause and the remedy."""
    try:
        yield
    except OSError as error:
        cause = os.strerror(error.errno) if error.errno else str(error)
        full = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
        remedy = "free some space" if full else "check its folder"
        raise StoreError(f"{path} cannot be written: {cause}; {remedy}, or choose another file") from error


def refuse_taken(path: Path, *, overwrite: bool, signature: bytes | None = None) -> None:
    """Raise StoreError if a file must not be written here.

    Args:
        path: the file.
        overwrite: an existing file may be replaced if it is of the same kind as the new one.
        signature: the first bytes of files of that kind, b"" for text; None does not check the kind.

    Raises:
        StoreError: the file exists and may not be replaced; it is of another kind (a typing error must not delete a
            checkpoint); or the path is not a file.
        OSError: an error of the system, such as for links in a loop.
    """
    try:
        os.stat(path)
    except FileNotFoundError:
        return
    except ValueError as error:  # NUL, or half a surrogate pair
        raise StoreError(f"{os.fspath(path)!a:.200} is no name of a file: choose another file") from error
    if not overwrite:
        raise StoreError(f"{path} exists: pass {arg('overwrite', True)} to replace it, or choose another file")
    if not path.is_file():  # root's rename would even replace a device
        raise StoreError(f"{path} is {'a folder' if path.is_dir() else 'not a file'}: choose another file")
    if signature is None or not path.stat().st_size:
        return
    with open(path, "rb") as file:
        head = file.read(512)
    if not head.startswith(signature) or (not signature and b"\0" in head):
        raise StoreError(f"{path} is a file of another kind and is kept: choose another file, or remove it")


def stamp(path: Path) -> tuple[int, int, int] | None:
    """Return what changes whenever a file is written anew: its number, time and size; None if there is no file."""
    try:
        found = path.stat()
    except (FileNotFoundError, ValueError):
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def write_aside(path: Path, fill: Callable[[BinaryIO], object], *, aside: Path | None = None) -> None:
    """Write a file completely or not at all; an existing file is replaced. A link is followed.

    Args:
        path: the file.
        fill: writes the content to the binary file that is its argument.
        aside: path of the unfinished file, on the file system of `path`; None means beside it.

    Raises:
        StoreError: the path is not a file.
        OSError: an error of the system.
    """
    refuse_taken(path, overwrite=True)
    path = Path(os.path.realpath(path))
    folder = aside or path.parent
    clear_unfinished(folder)
    unfinished = folder / f"{ASIDE}{secrets.token_hex(8)}.tmp"
    try:
        with open(unfinished, "x+b") as file:
            with suppress(OSError):  # without locks, as on some network file systems, files of killed processes remain
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fill(file)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the new name without the new content
            os.replace(unfinished, path)  # still locked, so that no process considers it abandoned
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    _sync_name(path)


def clear_unfinished(folder: Path) -> None:
    """Remove the unfinished files of killed processes from a folder; files that are being written are kept.

    Args:
        folder: the folder; it need not exist.
    """
    for path in folder.glob(f"{ASIDE}*.tmp"):
        with suppress(OSError), open(path, "r+b") as file:  # NFS locks only what is open for writing
            if os.fstat(file.fileno()).st_size:  # an empty one may be new, and not be locked yet
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def _sync_name(path: Path) -> None:
    """Sync the folder of a complete file under its final name; if that fails, the file exists nevertheless."""
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder: the rename is the strongest guarantee that they have.
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            cause = os.strerror(error.errno) if error.errno else error
            log.warning("%s is written, but a power cut may undo it: its folder cannot be synced: %s", path, cause)
    finally:
        os.close(descriptor)
