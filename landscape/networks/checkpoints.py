"""Checkpoints of any layout, read without executing their code; and the package's own, which describe themselves.

A checkpoint is a pickle, and a pickle may call any function. `torch_files` reads the weights and skips objects of other
packages (fastai's learners, mmengine's and Hydra's configurations, whole modules) without importing them. Only if it
finds no weights, and the caller trusts the file, torch's own reader executes the code in the file.
"""

import errno
import hashlib
import math
import os
import pathlib
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from landscape.autodiff import distributed
from landscape.errors import InputError, arg, one_line
from landscape.networks import checkpoint_folders, torch_files
from landscape.results import disk, pickles

FORMAT = "landscape-checkpoint"
VERSION = 1

_AVERAGED = ("ema", "state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict")
_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "net", "state_dict_best", *_AVERAGED)
_OPTIMIZERS = ("optimizer", "optimizer_state_dict", "optimizer_states", "optim", "opt")
_DECOUPLED = {"feat_model", "classifier"}  # two networks of one model, in the checkpoints of OLTR and decoupling

_BESIDE = re.compile(r"(.*[_/ ])?(epoch|step|acc|accuracy|prec|top)[@_]?\d?", re.IGNORECASE)
_OF_MODULES = {"_parameters", "_buffers", "_modules"}  # attributes that every module has
_SAFETENSORS = ".safetensors"
_SHOWN = 6  # names that a message lists
_DEEPEST = 100  # values in values where weights are searched
_LETTERS = 2**22  # letters of the names in a module, of which a small file may hold exponentially many
_LARGEST = 2**63  # length of a number beside the weights


@dataclass(frozen=True)
class Checkpoint:
    """A file that was read."""

    state: dict[str, Tensor]  # name -> tensor on the CPU
    meta: dict[str, Any]  # the toolkit's own metadata; empty for other checkpoints
    path: str
    sha256: str
    key: str  # where in the file the weights were, such as "state_dict"; "" for the whole file
    found: dict[str, Any]  # epoch, step and accuracies beside the weights, finite plain numbers
    optimizer: tuple[dict[str, Any], ...] = ()  # numbers of the optimizer's parameter groups, if the file has its state
    notes: tuple[str, ...] = ()  # notes for a reader of the result, in sentences


def read(path: str | os.PathLike[str], *, key: str | None = None, trust_pickle: bool = False) -> Checkpoint:
    """Read the weights from a checkpoint file, whatever its layout.

    Args:
        path: a file of `torch.save` (new or old format), TorchScript or safetensors; a folder with an index of such
            files, as Hugging Face writes it; or, trusted, a folder of `torch.distributed.checkpoint`.
        key: where in the file the weights are, as "a.b"; it may end with a prefix of their names, as in
            "state_dict.encoder_q". None searches the usual names.
        trust_pickle: allow the file to run code if it cannot be read otherwise. Use it only if you trust the author.

    Returns:
        The weights and the information about them in the file.

    Raises:
        InputError: the file does not exist, is not a checkpoint, is damaged, would run code, or has no weights.
    """
    path = os.fspath(path)
    if "\0" in path:
        raise InputError(f"{path!a:.200} is no name of a file")
    if os.path.isdir(path):
        return _folder(path, key, trust_pickle)
    try:
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            content = _content(file, path, trust_pickle)
            start, below, state = _weights_in(content, key, path)
            if state is None and trust_pickle and not path.endswith(_SAFETENSORS):
                content = _trusted(file, path)
                start, below, state = _weights_in(content, key, path)
    except OSError as error:
        what = f"{path} is a link, and" if os.path.islink(path) else path
        raise InputError(f"{what} cannot be read: {os.strerror(error.errno or errno.EIO)}") from error
    meta = _meta(content, path)
    if state is None:
        place = path if key is None else f"{arg('ckpt_key', key)} of {path}"
        advice = f"say where with {arg('ckpt_key', 'a.b')}"
        if any(isinstance(v, pickles.Foreign) for v in (start, *_entries(start).values())):
            advice += f", or, if they are made by code and you trust its author, add {arg('trust_pickle', True)}"
        raise InputError(f"there are no weights in {place}, which holds {_describe(start)}: {advice}")
    where = ".".join(filter(None, (key, below)))
    found = {**_beside(content), **_beside(meta)}
    return Checkpoint(state, meta, path, sha256, where, found, _optimizer(content), _notes(content, where))


def of_model(model: nn.Module, path: str) -> Checkpoint:
    """Return the weights of a model that was made from a folder, as if a checkpoint had been read.

    Args:
        model: with its weights.
        path: the folder.

    Returns:
        The weights.
    """
    own = {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor) and not n.endswith("_extra_state")}
    state = {name: t.detach() for name, t in own.items()}
    return Checkpoint(state, {}, path, digest_of(state), "", {})


def _folder(path: str, key: str | None, trust: bool) -> Checkpoint:
    """Read the weights of a folder: in several files with an index, in one beside its configuration, or in shards."""
    files = checkpoint_folders.weight_files(path)
    if files:
        parts = [read(file, key=key, trust_pickle=trust) for file in files]
        state = {name: tensor for part in parts for name, tensor in part.state.items()}
    elif checkpoint_folders.is_sharded(path) and trust:
        state = _search(distributed.read_shards(path))[1] or {}
    else:
        raise InputError(checkpoint_folders.described(path))
    if not state:
        raise InputError(f"there are no weights in {path}: say where with {arg('ckpt_key', 'a.b')}")
    return Checkpoint(state, {}, path, digest_of(state), key or "", _trainer_state(path))


def _trainer_state(folder: str) -> dict[str, Any]:
    """Return epoch and step of a checkpoint of Hugging Face's Trainer, as it writes them beside the weights."""
    path = pathlib.Path(folder) / "trainer_state.json"
    return _beside(disk.read_json(path, InputError)) if path.is_file() else {}


def digest_of(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors and their names."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write(path: str | os.PathLike[str], state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write a checkpoint that describes itself. The file gets its name only when it is complete.

    Args:
        path: the file; an existing one is replaced.
        state: name -> tensor.
        meta: plain JSON values: model, n_classes, dataset (a mapping), normalisation, class_counts, method, epoch.

    Raises:
        InputError: `meta` has values that JSON cannot represent.
        StoreError: the file cannot be written.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "state_dict": {name: _compact(tensor) for name, tensor in state.items()},
        "meta": _plain(meta, "meta"),
    }
    target = pathlib.Path(path)
    with disk.writing(target):
        disk.write_aside(target, lambda file: _Watched(file).save(content))


class _Watched:
    """A file that records its first write error, because torch raises another one when it closes its archive."""

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
            torch.save(content, self)  # type: ignore[arg-type]  # it only calls `write` and `flush`
        except RuntimeError:
            if self._error is None:
                raise
            raise self._error from None


def _compact(tensor: Tensor) -> Tensor:
    """Detach; copy a view of a larger tensor, which torch.save would write completely."""
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
        f"{where} is {shown:.60} of type {type(value).__name__}: a checkpoint's meta may contain only JSON values"
    )


def _content(file: BinaryIO, path: str, trust: bool) -> Any:
    """Return the object that the file holds; refuse other files by their first bytes."""
    head = file.read(64)
    file.seek(0)
    if not head:
        raise InputError(f"{path} is empty: was it written or copied completely?")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{path} is a Git LFS pointer, not the weights: fetch them with git lfs pull")
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        raise InputError(
            f"{path} is a result file (HDF5), not a checkpoint: set {arg('ckpt')} to a file with a network's weights"
        )
    if path.endswith(_SAFETENSORS):
        try:
            return safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise InputError(f"{path} is truncated, damaged or not a safetensors file: {one_line(error)}") from error
    try:
        if torch_files.LEGACY_HEAD in head:
            return torch_files.read_legacy(file)
        if not head.startswith(b"PK\x03\x04"):
            raise InputError(
                f"{path} is not a checkpoint: no file of torch.save or safetensors begins with {head[:12]!r}"
            )
        names = [pathlib.PurePosixPath(name).name for name in zipfile.ZipFile(file).namelist()]
        if "constants.pkl" in names:
            return _scripted(file, path, trust)
        if "data.pkl" not in names:
            raise InputError(f"{path} is a zip archive, but not of torch.save: set {arg('ckpt')} to a checkpoint")
        return torch_files.read_zip(file)
    except (ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        if trust and isinstance(error, pickles.PickleError):
            return _trusted(file, path)
        raise InputError(f"{path} is truncated or damaged: {one_line(error)}") from error


def _scripted(file: BinaryIO, path: str, trust: bool) -> Any:
    if not trust:
        raise InputError(
            f"{path} is a TorchScript archive, which contains code besides the weights: if you trust its author, "
            f"add {arg('trust_pickle', True)}"
        )
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of TorchScript at each use
        try:
            return torch.jit.load(file, map_location="cpu")  # type: ignore[no-untyped-call]
        except Exception as error:  # the file may hold anything; the traceback stays attached
            raise InputError(f"{path} cannot be read as TorchScript: {one_line(error)}") from error


def _trusted(file: BinaryIO, path: str) -> Any:
    """Let torch build the objects of the file, which runs the code in it."""
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about other pickle protocols, and then reads them or raises
            return torch.load(file, map_location="cpu", weights_only=False)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"{path} needs code that cannot be imported ({one_line(error)}): put its folder on PYTHONPATH"
        ) from error
    except Exception as error:  # a pickle runs its author's code
        raise InputError(f"{path} is truncated or damaged: {one_line(error)}") from error


def _meta(content: Any, path: str) -> dict[str, Any]:
    stated = content.get("format") if isinstance(content, Mapping) else None
    if not isinstance(stated, str) or stated != FORMAT:
        return {}
    version, meta = content.get("version"), content.get("meta")
    if isinstance(version, int) and version > VERSION:
        raise InputError(
            f"{path} was written by a newer landscape (checkpoint {version}, this one reads up to {VERSION}): "
            "update your checkout by git pull"
        )
    if version != VERSION or not isinstance(meta, dict):
        raise InputError(f"{path} is marked as a {FORMAT} but has no version and meta: it is damaged")
    return meta


def _weights_in(content: Any, key: str | None, path: str) -> tuple[Any, str, dict[str, Tensor] | None]:
    """Return the start of the search, the values it went through, and the weights if it found any."""
    start = content if key is None else _walk(content, key, path)
    return start, *_search(start)


def _entries(value: Any) -> dict[str, Any]:
    """Return the named values in a value: entries of a mapping or a sequence, attributes of an object."""
    if isinstance(value, Mapping):
        return {str(k): v for k, v in value.items() if isinstance(k, str) or (type(k) is int and abs(k) < _LARGEST)}
    if isinstance(value, list | tuple):
        return {str(i): v for i, v in enumerate(value)}
    if isinstance(value, pickles.Foreign):
        return _entries(value.items or (value.state if isinstance(value.state, dict) else value.elements))
    return {}


def _weights(value: Any, *, halves: bool = True) -> dict[str, Tensor] | None:
    """Return name -> tensor if the value is such a mapping, a module, or the two halves of a decoupled model."""
    if isinstance(value, nn.Module):
        return _weights(value.state_dict())
    if isinstance(value, pickles.Foreign) and isinstance(value.state, dict) and value.state.keys() >= _OF_MODULES:
        return _weights(_of_module(value))
    if not isinstance(value, Mapping | pickles.Foreign):
        return None
    entries = {k: v for k, v in _entries(value).items() if not k.endswith("_extra_state")}
    if halves and set(entries) == _DECOUPLED:
        first, second = (_weights(entries[name], halves=False) for name in sorted(_DECOUPLED, reverse=True))
        return first | second if first and second and not first.keys() & second.keys() else None
    if not entries or not all(isinstance(t, Tensor) for t in entries.values()):
        return None
    return {k: t.detach() for k, t in entries.items()}


def _of_module(module: Any) -> dict[str, Any]:
    """Return the state of a module that was saved whole, as its `state_dict` would, without its code."""
    found, ahead, room = dict[str, Any](), [("", module)], _LETTERS
    while ahead:
        prefix, module = ahead.pop()
        state = module.state if isinstance(module, pickles.Foreign) and isinstance(module.state, dict) else {}
        if not state.keys() >= _OF_MODULES:
            return {prefix: module}  # not a tensor: the module is refused
        own = {**_entries(state["_parameters"]), **_entries(state["_buffers"])}
        passing = state.get("_non_persistent_buffers_set")
        own = {n: t for n, t in own.items() if t is not None and not (isinstance(passing, set) and n in passing)}
        children = {name: child for name, child in _entries(state["_modules"]).items() if child is not None}
        room -= sum(len(prefix) + len(name) + 1 for name in (*own, *children))
        if room < 0:
            return {prefix: module}
        found |= {f"{prefix}{name}": tensor for name, tensor in own.items()}
        ahead += [(f"{prefix}{name}.", child) for name, child in reversed(children.items())]
    return found


def _search(content: Any, seen: set[int] | None = None, depth: int = 0) -> tuple[str, dict[str, Tensor] | None]:
    """Look for weights under the usual names, then one level below these, then in the whole file."""
    seen = set() if seen is None else seen  # by identity: a value of a pickle may hold itself, or another many times
    if id(content) in seen or depth > _DEEPEST:
        return "", None
    seen.add(id(content))
    deeper = partial(_search, seen=seen, depth=depth + 1)
    entries = _entries(content)
    if isinstance(content, list | tuple):
        holding = {name: found for name, value in entries.items() if (found := deeper(value))[1] is not None}
        if len(holding) == 1:  # as from `torch.save((model.state_dict(), epoch), path)`
            [(name, (below, state))] = holding.items()
            return ".".join(filter(None, (name, below))), state
        return "", None
    for name in (name for name in _KEYS if name in entries):
        below, state = deeper(entries[name])
        if state is not None:
            return ".".join(filter(None, (name, below))), state
    return "", _weights(content)


def _walk(content: Any, key: str, path: str) -> Any:
    value, rest = content, key
    while rest:
        entries = _entries(value)
        if not entries:
            raise InputError(
                f"{arg('ckpt_key', key)} does not exist in {path}: before {rest!r} there is {_describe(value)}"
            )
        heads = [rest[:i] for i in range(len(rest), 0, -1) if i == len(rest) or rest[i] == "."]
        head = next((h for h in heads if h in entries), None)
        if head is None:
            whole = _weights(value) or entries
            below = {k.removeprefix(f"{rest}."): v for k, v in whole.items() if k.startswith(f"{rest}.")}
            if not below:
                raise InputError(f"{arg('ckpt_key', key)} does not exist in {path}: no {rest!r} in {_describe(value)}")
            return below
        value, rest = entries[head], rest[len(head) + 1 :]
    return value


def _describe(value: Any) -> str:
    entries = _entries(value)
    if not entries:
        return "nothing" if isinstance(value, Mapping | list | tuple) else f"one {_kind(value)}"
    shown = [f"{k[:60]!a} ({_kind(v)})" for k, v in islice(entries.items(), _SHOWN)]
    return ", ".join([*shown, *(["..."] if len(entries) > _SHOWN else [])])


def _kind(value: Any) -> str:
    return ascii(value.name)[1:-1] if isinstance(value, pickles.Foreign | pickles.Global) else type(value).__name__


def _beside(content: Any) -> dict[str, Any]:
    numbers = {k: _number(v) for k, v in _entries(content).items() if _BESIDE.fullmatch(k)}
    return {k: v for k, v in numbers.items() if v is not None}


def _optimizer(content: Any) -> tuple[dict[str, Any], ...]:
    """Return the plain numbers of an optimizer's parameter groups, from its `state_dict` beside the weights."""
    entries = _entries(content)
    some = next((entries[name] for name in _OPTIMIZERS if name in entries), None)
    some = some[0] if isinstance(some, list | tuple) and len(some) == 1 else some  # Lightning keeps a list
    groups = _entries(some).get("param_groups")
    if not isinstance(groups, list | tuple):
        return ()
    numbers = ({k: _number(v) for k, v in _entries(group).items()} for group in groups)
    return tuple({k: v for k, v in group.items() if v is not None} for group in numbers)


def _number(value: Any) -> int | float | None:
    if isinstance(value, Tensor):
        value = value.item() if value.numel() == 1 else None
    if isinstance(value, np.generic | np.ndarray):  # of a file that was trusted
        value = value.item() if value.size == 1 else None
    return value if isinstance(value, int | float) and abs(value) < _LARGEST and math.isfinite(value) else None


def _notes(content: Any, key: str) -> tuple[str, ...]:
    entries = _entries(content)
    taken = key.split(".")[0]
    others = [n for n in _KEYS if n != taken and n in entries and _search(entries[n])[1] is not None]
    averaged = [f"the weights of {key!r} are an average over training"] if taken in _AVERAGED else []
    kinds = {n: "an average over training" if n in _AVERAGED else "others" for n in others}
    return (*averaged, *(f"weights taken from {key!r}; {n!r} holds {kind}" for n, kind in kinds.items()))
