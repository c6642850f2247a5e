"""Checkpoints of any layout, read without running what they hold; and our own, which describe themselves.

A checkpoint is a pickle, and a pickle may call any function. torch's restricted reader builds tensors and plain
containers only; to it we add what training scripts put beside the weights and what cannot act: numpy numbers,
`argparse.Namespace`, `defaultdict`, paths. Everything else is refused by name unless the caller trusts the file.
"""

import argparse
import errno
import hashlib
import math
import os
import pathlib
import pickle
import re
import secrets
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from landscape.errors import InputError, StoreError, arg

FORMAT = "landscape-checkpoint"
VERSION = 1

_AVERAGED = ("ema", "state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict")
_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "net", "state_dict_best", *_AVERAGED)
_DECOUPLED = {"feat_model", "classifier"}  # two networks of one model, in the checkpoints of OLTR and decoupling

_PATHLIB = ("pathlib", "pathlib._local")
_BESIDE = re.compile(r"(.*[_/ ])?(epoch|acc|accuracy|prec|top)[@_]?\d?", re.IGNORECASE)
_LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the number with which torch.save began before torch 1.6
_SHOWN = 6  # names that a message lists


@dataclass(frozen=True)
class Checkpoint:
    """A file that was read."""

    state: dict[str, Tensor]  # name -> tensor on the CPU
    meta: dict[str, Any]  # what the toolkit's own checkpoints say of themselves; empty for any other
    path: str
    sha256: str
    key: str  # where in the file the weights were, such as "state_dict"; "" if they are all there is
    found: dict[str, Any]  # epoch and accuracies that stood beside the weights, finite plain numbers
    notes: tuple[str, ...] = ()  # what a reader of the result should know, in sentences


def read(path: str | os.PathLike[str], *, key: str | None = None, trust_pickle: bool = False) -> Checkpoint:
    """Read the weights from a checkpoint file, whatever its layout.

    Args:
        path: a file of `torch.save` (new or old format), TorchScript or safetensors.
        key: where in the file the weights are, as "a.b"; it may go on into a prefix of their names, as in
            "state_dict.encoder_q". None to look under the usual names.
        trust_pickle: let the file run code where it cannot be read otherwise. Only for files whose maker you trust.

    Returns:
        The weights and what the file says of them.

    Raises:
        InputError: there is no such file, it is no checkpoint, it is damaged, it would run code, or no weights are
            found in it.
    """
    path = os.fspath(path)
    try:
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            content = _content(file, path, trust_pickle)
    except IsADirectoryError:
        raise InputError(f"{path} is a folder: {arg('ckpt')} takes a file in it") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {os.strerror(error.errno or errno.EIO)}") from error
    meta = _meta(content, path)
    start = content if key is None else _walk(content, key, path)
    below, state = _search(start)
    if state is None:
        place = path if key is None else f"{arg('ckpt_key', key)} of {path}"
        raise InputError(
            f"no weights in {place}, which holds {_describe(start)}: say where with {arg('ckpt_key', 'a.b')}"
        )
    where = ".".join(filter(None, (key, below)))
    found = {**_beside(content), **_beside(meta)}
    return Checkpoint(state, meta, path, sha256, where, found, _notes(content, where))


def write(path: str | os.PathLike[str], state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write a checkpoint that describes itself. The file appears under its name only when it is complete.

    Args:
        path: the file; an older one is replaced.
        state: name -> tensor.
        meta: plain JSON values: model, n_classes, dataset (a mapping), normalisation, class_counts, method, epoch.

    Raises:
        InputError: `meta` holds what JSON does not.
        StoreError: the file cannot be written.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "state_dict": {name: _compact(tensor) for name, tensor in state.items()},
        "meta": _plain(meta, "meta"),
    }
    target = os.path.realpath(path)
    unfinished = os.path.join(os.path.dirname(target), f".landscape-{secrets.token_hex(8)}.tmp")
    try:
        try:
            with open(unfinished, "x+b") as file:
                _Watched(file).save(content)
                file.flush()
                os.fsync(file.fileno())  # else a power cut may leave the new name without the new content
            os.replace(unfinished, target)
        except BaseException:
            pathlib.Path(unfinished).unlink(missing_ok=True)
            raise
    except OSError as error:
        cause = os.strerror(error.errno) if error.errno else str(error)
        remedy = "free some space" if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG} else "check its folder"
        raise StoreError(f"checkpoint {os.fspath(path)} cannot be written: {cause}; {remedy}") from error


class _Watched:
    """A file that keeps the error of its writing, as torch raises another one over it while it closes its archive."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: OSError | None = None
        self.flush = file.flush

    def write(self, piece: Any) -> int:
        try:
            return self._file.write(piece)
        except OSError as error:
            self._error = error
            raise

    def save(self, content: Any) -> None:
        try:
            torch.save(content, self)  # type: ignore[arg-type]  # of a file it takes `write` and `flush`
        except RuntimeError:
            if self._error is None:
                raise
            raise self._error from None


def _compact(tensor: Tensor) -> Tensor:
    """Detach; copy a view of something larger, all of which torch.save would write."""
    tensor = tensor.detach().cpu()
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


def _plain(value: Any, where: str) -> Any:
    if value is None or type(value) in {bool, int, str} or (type(value) is float and math.isfinite(value)):
        return value
    if isinstance(value, list | tuple):
        return [_plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, Mapping) and all(type(k) is str for k in value):
        return {k: _plain(v, f"{where}[{k!r}]") for k, v in value.items()}
    shown = ascii(value)
    raise InputError(
        f"{where} is {shown:.60} of type {type(value).__name__}: a checkpoint's meta holds JSON values only"
    )


def _content(file: BinaryIO, path: str, trust: bool) -> Any:
    """Return the object that the file holds; refuse what is no checkpoint by what it begins with."""
    head = file.read(64)
    file.seek(0)
    if not head:
        raise InputError(f"{path} is empty: was its writing or copying cut off?")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{path} is a Git LFS pointer, not the weights: fetch them with git lfs pull")
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        raise InputError(
            f"{path} is a result file (HDF5), not a checkpoint: {arg('ckpt')} takes the weights of a network"
        )
    if path.endswith(".safetensors"):
        try:
            return safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, ValueError) as error:
            raise InputError(f"{path} is cut short, damaged or no safetensors file: {_line(error)}") from error
    if head.startswith(b"PK\x03\x04"):
        try:
            names = [pathlib.PurePosixPath(name).name for name in zipfile.ZipFile(file).namelist()]
        except Exception as error:  # damaged bytes raise anything
            raise InputError(f"{path} is cut short or damaged: {_line(error)}") from error
        if "constants.pkl" in names:
            return _scripted(file, path, trust)
        if "data.pkl" not in names:
            raise InputError(f"{path} is a zip archive, but not of torch.save: {arg('ckpt')} takes a checkpoint")
    elif _LEGACY_MAGIC not in head:
        raise InputError(f"{path} is no checkpoint: torch.save and safetensors begin otherwise than {head[:12]!r}")
    return _unpickled(file, path, trust)


def _scripted(file: BinaryIO, path: str, trust: bool) -> Any:
    if not trust:
        raise InputError(
            f"{path} is a TorchScript archive, which holds code beside its weights: if you trust its maker, "
            f"add {arg('trust_pickle', True)}"
        )
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of TorchScript at each use
        try:
            return torch.jit.load(file, map_location="cpu")  # type: ignore[no-untyped-call]
        except Exception as error:  # the file may hold anything; the traceback stays attached
            raise InputError(f"{path} cannot be read as TorchScript: {_line(error)}") from error


def _unpickled(file: BinaryIO, path: str, trust: bool) -> Any:
    """Read with torch's restricted reader, and with the full one only if that one refused and the file is trusted."""
    try:
        return _load(file, weights_only=True)
    except pickle.UnpicklingError as error:
        if not trust:
            refused = _refused(file, error)
            reason = f"it calls {', '.join(refused)}" if refused else "its pickle does more than hold tensors"
            raise InputError(
                f"{path} may run code when it is read: {reason}; if you trust its maker, add "
                f"{arg('trust_pickle', True)}"
            ) from error
    except Exception as error:  # damaged bytes raise anything, from EOFError to KeyError
        raise InputError(f"{path} is cut short or damaged: {_line(error)}") from error
    try:
        return _load(file, weights_only=False)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"{path} needs code that cannot be imported ({_line(error)}): put its folder on PYTHONPATH"
        ) from error
    except Exception as error:  # a pickle runs its maker's code
        raise InputError(f"{path} cannot be read: {_line(error)}") from error


def _load(file: BinaryIO, *, weights_only: bool) -> Any:
    file.seek(0)
    with warnings.catch_warnings(), _inert_allowed():
        warnings.simplefilter("ignore")  # torch warns of other pickle protocols, then reads them or raises
        return torch.load(file, map_location="cpu", weights_only=weights_only)


def _inert_allowed() -> AbstractContextManager[None]:
    """Return a context in which a pickle may call, besides torch's own, what builds values and does nothing else.

    Each under all names that it has had: numpy 2 and Python 3.13 moved modules, and files of either are about.
    """
    numpy_calls: dict[str, Any] = {"_reconstruct": np.empty(0).__reduce__()[0], "scalar": np.float64(0).__reduce__()[0]}
    dtypes = [type(np.dtype(code)) for code in "?bhilqBHILQefdgFDGSUmM"]  # fixed sizes, no references to objects
    named: dict[str, Any] = {
        **{f"numpy.{core}.multiarray.{n}": f for n, f in numpy_calls.items() for core in ("core", "_core")},
        # Paths become pure ones, which cannot touch the disk; thus Windows' paths can be read elsewhere, too.
        **{f"{m}.{n}": pathlib.PurePosixPath for m in _PATHLIB for n in ("PosixPath", "PurePosixPath")},
        **{f"{m}.{n}": pathlib.PureWindowsPath for m in _PATHLIB for n in ("WindowsPath", "PureWindowsPath")},
        # torch fills plain dictionaries only. What made the missing items of a defaultdict is not needed to read it.
        "collections.defaultdict": _plain_dict,
        **{f"builtins.{kind}": _factory for kind in ("bool", "dict", "float", "int", "list", "str", "tuple")},
    }
    allowed: list[Any] = [np.ndarray, np.dtype, *dtypes, argparse.Namespace, *((f, name) for name, f in named.items())]
    known = torch.serialization.get_safe_globals()  # the caller's own, which must still be there afterwards
    context: AbstractContextManager[None] = torch.serialization.safe_globals([g for g in allowed if g not in known])
    return context


def _plain_dict(*_: Any) -> dict[Any, Any]:
    return {}


def _factory() -> None:
    """Stand where a type was the default factory of a `defaultdict`; nobody calls it."""


def _refused(file: BinaryIO, error: Exception) -> list[str]:
    """Name the functions and classes for which the restricted reader has refused a file."""
    named = set(re.findall(r"GLOBAL (\S+) (?:was not|whose)", str(error)))
    file.seek(0)
    try:
        with _inert_allowed():
            named.update(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except (ValueError, pickle.UnpicklingError, EOFError):
        pass  # the old format and other protocols cannot be listed: the one in the message must do
    shown = [ascii(name)[1:-1] for name in sorted(named)]
    return [*shown[:_SHOWN], *(["..."] if len(shown) > _SHOWN else [])]


def _meta(content: Any, path: str) -> dict[str, Any]:
    stated = content.get("format") if isinstance(content, Mapping) else None
    if not isinstance(stated, str) or stated != FORMAT:
        return {}
    version, meta = content.get("version"), content.get("meta")
    if isinstance(version, int) and version > VERSION:
        raise InputError(
            f"{path} was written by a newer landscape (checkpoint {version}, this one reads up to {VERSION}): "
            "upgrade with pip install -U loss-landscape-per-class"
        )
    if version != VERSION or not isinstance(meta, dict):
        raise InputError(f"{path} says it is a {FORMAT} but has no version and meta: it is damaged")
    return meta


def _weights(value: Any) -> dict[str, Tensor] | None:
    """Return name -> tensor if the value is that, a module, or the two halves of a decoupled model."""
    if isinstance(value, nn.Module):
        return _weights(value.state_dict())
    if not isinstance(value, Mapping) or not value or not all(isinstance(k, str) for k in value):
        return None
    if set(value) == _DECOUPLED:
        halves = [_weights(value[name]) for name in sorted(_DECOUPLED, reverse=True)]
        if halves[0] and halves[1] and not halves[0].keys() & halves[1].keys():
            return halves[0] | halves[1]
        return None
    if not all(isinstance(t, Tensor) for t in value.values()):
        return None
    return {k: t.detach() for k, t in value.items()}


def _search(content: Any) -> tuple[str, dict[str, Tensor] | None]:
    """Look for weights under the usual names, then in the names below them, then in the whole."""
    if isinstance(content, Mapping):
        for name in (name for name in _KEYS if name in content):
            below, state = _search(content[name])
            if state is not None:
                return ".".join(filter(None, (name, below))), state
    return "", _weights(content)


def _walk(content: Any, key: str, path: str) -> Any:
    value, rest = content, key
    while rest:
        if not isinstance(value, Mapping):
            raise InputError(
                f"{arg('ckpt_key', key)} leads nowhere in {path}: before {rest!r} stands {_describe(value)}"
            )
        heads = [rest[:i] for i in range(len(rest), 0, -1) if i == len(rest) or rest[i] == "."]
        head = next((h for h in heads if h in value), None)
        if head is None:
            below = {k.removeprefix(f"{rest}."): v for k, v in value.items() if str(k).startswith(f"{rest}.")}
            if not below:
                raise InputError(f"{arg('ckpt_key', key)} leads nowhere in {path}: no {rest!r} in {_describe(value)}")
            return below
        value, rest = value[head], rest[len(head) + 1 :]
    return value


def _describe(value: Any) -> str:
    if not isinstance(value, Mapping):
        return f"one {type(value).__name__}"
    if not value:
        return "nothing"
    shown = [f"{k!a} ({type(v).__name__})" for k, v in list(value.items())[:_SHOWN]]
    return ", ".join([*shown, *(["..."] if len(value) > _SHOWN else [])])


def _beside(content: Any) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        return {}
    numbers = {k: _number(v) for k, v in content.items() if isinstance(k, str) and _BESIDE.fullmatch(k)}
    return {k: v for k, v in numbers.items() if v is not None}


def _number(value: Any) -> int | float | None:
    if isinstance(value, Tensor | np.generic | np.ndarray):
        if math.prod(value.shape) != 1:
            return None
        value = value.item()
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _notes(content: Any, key: str) -> tuple[str, ...]:
    if not isinstance(content, Mapping):
        return ()
    taken = key.split(".")[0]
    others = [n for n in _KEYS if n != taken and n in content and _search(content[n])[1] is not None]
    averaged = [f"the weights of {key!r} are an average over training"] if taken in _AVERAGED else []
    kinds = {n: "an average over training" if n in _AVERAGED else "others" for n in others}
    return (*averaged, *(f"weights taken from {key!r}; {n!r} holds {kind}" for n, kind in kinds.items()))


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".removesuffix(": ")
