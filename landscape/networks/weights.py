"""Loads weights of any origin into a model: names are matched one by one; mismatches are explained, not skipped."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor, nn

from landscape.errors import InputError, NumericalError, arg
from landscape.networks import overflow
from landscape.networks.models import NormedLinear

_EXTRAS = {"n_averaged", "total_ops", "total_params"}  # counters of AveragedModel and thop among the weights
_SHOWN = 3  # number of names of each kind in a message
_WRAPPER = re.compile(r"(?<=\.)(?:module|_orig_mod)\.")


@dataclass(frozen=True)
class LoadReport:
    """How names and values of a checkpoint were changed to fit the model."""

    prefix: str  # stripped from every name, such as "module."
    notes: tuple[str, ...]  # sentences for the provenance


def load_weights(model: nn.Module, state: Mapping[str, Tensor], *, key: str = "") -> LoadReport:
    """Copy weights into a model, all of them or none.

    Names must match one by one, with six exceptions. Leading components common to all names ("module.", "_orig_mod.")
    are removed if more names then match; these two are also removed in the middle of names. A classifier with another
    name ("fc" instead of "linear") is accepted if it is the only remaining layer on both sides. The weight of a linear
    classifier without bias is transposed for a `NormedLinear`; the reverse is refused, because a linear layer would not
    normalise. A tensor that has two names in the model may have one in the checkpoint, as safetensors writes it.
    `num_batches_tracked` may be missing: only training with cumulative averages reads it. Counters that programs store
    among the weights, such as `n_averaged` of an averaged model, are ignored.

    Args:
        model: the network; its parameters keep their dtype and device.
        state: name -> tensor.
        key: the position of the weights in their file, for messages.

    Returns:
        The prefix that was removed, and the other changes.

    Raises:
        InputError: names or shapes do not match; the model is left as it was.
        NumericalError: a weight is not finite, or its square overflows float64; the model is left as it was.
    """
    own = tensors_of(model)
    known = {name.rpartition(".")[2] for name in own}
    extras = {name for name in state if name.rpartition(".")[2] in _EXTRAS - known}
    state = {name: t for name, t in state.items() if name not in extras}
    prefix = _prefix(state, own)
    given = _unwrapped({name.removeprefix(prefix): t for name, t in state.items()}, own)
    head = _head(model)
    ignored = f"{_list('ignored, which are no weights', sorted(extras))}" if extras else ""
    changes_of_names = (_rename(given, own, head), _transpose(given, own, head), _share(given, own))
    notes = [note for note in (ignored, *changes_of_names) if note]
    missing, unexpected = _unmatched(given, own)
    misshapen = [n for n, t in given.items() if n in own and t.shape != own[n].shape]
    if missing or unexpected or misshapen:
        shapes = [f"{n} {tuple(given[n].shape)} for {tuple(own[n].shape)}" for n in misshapen]
        listed = (_list("missing", missing), _list("unexpected", unexpected), _list("of another shape", shapes))
        cause = _cause(given, own, head, missing, unexpected, f"{key}.{prefix}".removeprefix("."))
        raise InputError(f"the checkpoint does not fit the model: {', '.join(filter(None, listed))}; {cause}")
    converted = {name: _converted(name, t, own[name].dtype) for name, t in given.items()}
    for name, _ in model.named_parameters():  # not buffers: a mask may hold the largest number there is
        overflow.refuse_huge(name, converted[name])
    kinds = {(t.dtype, own[n].dtype) for n, t in given.items() if t.dtype != own[n].dtype}
    changes = {(old, new) for old, new in kinds if torch.promote_types(old, new) != new or new != torch.float64}
    notes += sorted(f"weights converted from {old} to {new}" for old, new in changes)
    model.load_state_dict(converted, strict=False)  # names are compared above; a checkpoint holds no other state
    return LoadReport(prefix=prefix, notes=tuple(notes))


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the `state_dict` of a model without what modules keep by `get_extra_state`."""
    state = model.state_dict()
    return {n: t for n, t in state.items() if isinstance(t, Tensor) and not n.endswith("_extra_state")}


@dataclass(frozen=True)
class _Head:
    """The last layer of a network that ends in a linear layer or a cosine classifier."""

    name: str
    n_features: int
    n_classes: int
    cosine: bool

    def key(self, entry: str) -> str:
        return f"{self.name}.{entry}" if self.name else entry


def _head(model: nn.Module) -> _Head | None:
    head = None
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            head = _Head(name, module.in_features, module.out_features, cosine=False)
        elif isinstance(module, NormedLinear):
            n_features, n_classes = module.weight.shape
            head = _Head(name, n_features, n_classes, cosine=True)
    return head


def _prefix(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Return the leading components of all names that must be removed so that most names match."""
    paths = [name.split(".")[:-1] for name in state]
    common = [words[0] for words in takewhile(lambda words: len(set(words)) == 1, zip(*paths, strict=False))]
    prefixes = ["".join(f"{word}." for word in common[:n]) for n in range(len(common) + 1)]
    return max(prefixes, key=lambda p: sum(name.removeprefix(p) in own for name in state))  # the shortest of equals


def _unwrapped(given: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the components that DataParallel and torch.compile insert for a submodule, as in features.module.0."""
    bare = {n if n in own else _WRAPPER.sub("", n): t for n, t in given.items()}
    return bare if len(bare) == len(given) else given


def _share(given: dict[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Assign a tensor that the model has under several names to all of these names."""
    names: dict[tuple[int, torch.Size], list[str]] = {}
    for name, tensor in own.items():
        if tensor.numel():
            names.setdefault((tensor.data_ptr(), tensor.shape), []).append(name)
    found = []
    for group in names.values():
        first, *others = [n for n in group if n in given] or [""]
        for name in others:
            if not torch.equal(given[name], given[first]):
                raise InputError(
                    f"{first} and {name} are one tensor in the model, but differ in the checkpoint: "
                    f"is this the right {arg('model')}?"
                )
        absent = [n for n in group if n not in given] if first else []
        given.update(dict.fromkeys(absent, given[first]) if absent else {})
        found += [f"{name} taken from {first!r}, with which it is shared" for name in absent]
    return "; ".join(found)


def _unmatched(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    missing = [n for n in own if n not in given and not n.endswith("num_batches_tracked")]
    return missing, [n for n in given if n not in own]


def _rename(given: dict[str, Tensor], own: Mapping[str, Tensor], head: _Head | None) -> str:
    """Rename the only unused layer to the only missing layer, if that is the head."""
    missing, unexpected = _unmatched(given, own)
    layers = {n.rpartition(".")[0] for n in unexpected}
    if head is None or len(layers) != 1 or {n.rpartition(".")[0] for n in missing} != {head.name}:
        return ""
    names = {n: head.key(n.rpartition(".")[2]) for n in unexpected}
    if not set(names.values()) <= {head.key("weight"), head.key("bias")} - given.keys():
        return ""
    for old, new in names.items():
        given[new] = given.pop(old)
    return f"classifier {layers.pop()!r} of the checkpoint taken as {head.name!r}"


def _transpose(given: dict[str, Tensor], own: Mapping[str, Tensor], head: _Head | None) -> str:
    if head is None or not head.cosine:
        return ""
    name = head.key("weight")
    # The shape of a square weight is ambiguous: it is treated as that of a cosine classifier.
    if name not in given or given[name].shape == own[name].shape or given[name].shape != own[name].T.shape:
        return ""
    given[name] = given[name].T
    return f"{name} transposed from (classes, features) to (features, classes)"


def _list(kind: str, found: list[str]) -> str:
    if not found:
        return ""
    more = ", ..." if len(found) > _SHOWN else ""
    return f"{len(found)} {kind} ({', '.join(ascii(n)[1:-1] for n in found[:_SHOWN])}{more})"


def _cause(
    given: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    head: _Head | None,
    missing: list[str],
    unexpected: list[str],
    where: str,
) -> str:
    """Return the most likely cause, and a remedy; the names of the weights begin after `where`."""
    below = Counter(n[: i + 1] for n in given for i, letter in enumerate(n) if letter == "." and n[i + 1 :] in own)
    part, count = below.most_common(1)[0] if below else ("", 0)
    if count > sum(n in own for n in given):
        return (
            f"{count} of the model's {len(own)} entries are under {part!r}: pass "
            f"{arg('ckpt_key', f'{where}{part}'.removesuffix('.'))}"
        )
    shortcuts = re.compile(r"\.(downsample|shortcut)\.")
    if any(map(shortcuts.search, unexpected)):
        return (
            f"it has weights in its shortcuts (option B), the model has none (option A): pass your own {arg('model')}"
        )
    if any(map(shortcuts.search, missing)):
        return (
            f"its shortcuts have no weights (option A), the model's have (option B): is this the right {arg('model')}?"
        )
    theirs, ours = _blocks(given), _blocks(own)
    if theirs and ours and theirs != ours:
        return f"layer1 has {theirs} blocks in the checkpoint, {ours} in the model: is this the right {arg('model')}?"
    first = next((n for n, t in own.items() if t.ndim == 4 and n in given and given[n].ndim == 4), None)
    if first is not None and given[first].shape[1] != own[first].shape[1]:
        return (
            f"{first} has {given[first].shape[1]} input channels in the checkpoint, the data set has "
            f"{own[first].shape[1]}: is this the right {arg('dataset')}?"
        )
    return _cause_in_head(given, head) or f"is this the right {arg('model')}?"


def _blocks(state: Mapping[str, Tensor]) -> int:
    return len({n.split(".")[1] for n in state if n.startswith("layer1.")})


def _cause_in_head(given: Mapping[str, Tensor], head: _Head | None) -> str:
    weight = None if head is None else given.get(head.key("weight"))
    if head is None or weight is None or weight.ndim != 2:
        return ""
    has_bias = head.key("bias") in given
    if head.cosine and has_bias:
        return f"its classifier has a bias, so it is a plain linear layer: leave out {arg('cosine', True)}"
    as_linear, as_cosine = weight.shape[1] == head.n_features, weight.shape[0] == head.n_features
    if not head.cosine and not has_bias and (as_linear or as_cosine):
        return f"its last layer has no bias and looks like a cosine classifier: pass {arg('cosine', True)}"
    if not as_linear and not as_cosine:
        return f"its last layer has another number of features than the model's: is this the right {arg('model')}?"
    n_classes = weight.shape[1 if as_cosine and not as_linear else 0]
    if n_classes == head.n_classes:
        return ""
    return (
        f"the checkpoint has {n_classes} classes in its last layer, the data set {head.n_classes}: "
        f"is this the right {arg('dataset')}?"
    )


def _converted(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not dtype.is_floating_point:
        return tensor.to(dtype)
    if not tensor.is_floating_point():
        raise InputError(f"{name} is {tensor.dtype} in the checkpoint, {dtype} in the model: is it quantised?")
    result = tensor.to(dtype)
    n_bad = int((~torch.isfinite(result)).sum())
    if n_bad:
        why, remedy = "are not finite", "did the training diverge?"
        if torch.isfinite(tensor).all():
            why = f"overflow in {dtype}"
            remedy = f"try {arg('dtype', 'float64')}" if float(tensor.abs().max()) <= overflow.LARGEST else remedy
        raise NumericalError(f"{n_bad} of the {tensor.numel()} values of {name} {why}: {remedy}")
    return result
