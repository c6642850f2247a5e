"""Read pickles without running them: data are returned as data, everything else as an inert placeholder.

A pickle is a program for a small stack machine, and Python's own reader lets it import any module and call any
function. This reader imports and calls nothing that the pickle names. It builds numbers, strings, lists, tuples,
dictionaries and sets; a class or function becomes a `Global`, which is only its name; an object of a class becomes a
`Foreign` with the content of the pickle. A caller may define the objects of some names by functions, whose arguments
are not trusted.

So pickles with objects of packages that are not installed can be read, and no pickle runs code.
"""

import pickletools
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from landscape.results import disk

_EACH = 256  # bytes of memory that an entry of a pickle takes at most, besides its text
_OFTEN = 2**16  # entries between two checks of the budget


class PickleError(ValueError):
    """A pickle that is damaged, or of an unsupported kind."""


@dataclass(frozen=True)
class Global:
    """The name of a class or function; nothing was imported."""

    name: str  # with its module, as "collections.OrderedDict"


@dataclass(eq=False)
class Foreign:
    """Placeholder for an object of an unknown class, with its content."""

    name: str  # of its class, or of the function that would have made it
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)  # of a mapping
    elements: list[Any] = field(default_factory=list)  # of a sequence or set


Known = Mapping[str, Callable[..., Any]]
"""Functions that make the objects of some names; their arguments come from the file and may be hostile."""


def load(file: BinaryIO, known: Known | None = None, persistent: Callable[[Any], Any] | None = None) -> Any:
    """Read one pickle.

    Args:
        file: a binary file at its beginning; afterwards its position is after the pickle. `read` must not allocate
            memory for more bytes than the file has; `io.BytesIO` and `mmap` do not.
        known: functions that make objects of some names, besides plain data; others become `Foreign`.
        persistent: returns objects outside the pickle for their identifiers; None refuses them.

    Returns:
        The content of the pickle.

    Raises:
        PickleError: it is damaged, or of an unsupported kind.
        ClaimError: its content needs more memory than is available.
    """
    try:
        return _Machine({**_PLAIN, **(known or {})}, persistent).run(file)
    except (disk.ClaimError, PickleError):
        raise
    except (ValueError, LookupError, TypeError, ArithmeticError, AttributeError, RecursionError) as error:
        raise PickleError(f"its pickle is damaged ({error!s:.100})") from error


def _mapping(*arguments: Any) -> dict[Any, Any]:
    """Make a dictionary from the arguments of `OrderedDict` and similar classes: nothing, a mapping, or pairs."""
    source = arguments[0] if arguments else {}
    if len(arguments) > 1 or not isinstance(source, dict | list | tuple):
        raise PickleError("a mapping is made of something else than pairs")
    pairs = source.items() if isinstance(source, dict) else source
    return {_key(key): value for key, value in pairs}


def _set(*arguments: Any) -> set[Any]:
    source = arguments[0] if arguments else []
    if len(arguments) > 1 or not isinstance(source, list | tuple):
        raise PickleError("a set is made of something else than a list")
    return set(map(_key, source))


def _encoded(text: Any = "", *_: Any) -> bytes:
    """Return bytes that are written as text to a pickle of an old protocol, as Python 3 does."""
    if not isinstance(text, str | bytes):
        raise PickleError("bytes are made of something else than text")
    return text.encode("latin1") if isinstance(text, str) else text


def _object(kind: Any = None, *_: Any) -> Foreign:
    """Return the placeholder of an object that a pickle of an old protocol makes with `copyreg._reconstructor`."""
    return Foreign(kind.name if isinstance(kind, Global) else "object")


def _key(value: Any) -> Any:
    """Return a valid key. Hashing deeply nested tuples with shared elements would take exponential time."""
    inner = value if isinstance(value, tuple) else (value,)
    if any(isinstance(v, tuple | frozenset) for v in inner):
        return Foreign("tuple", (value,))
    return value


class _Machine:
    """The stack machine of pickle, which calls only functions that this reader knows."""

    def __init__(self, known: Known, persistent: Callable[[Any], Any] | None) -> None:
        self._known = known
        self._persistent = persistent
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []  # the stacks below
        self._memo: dict[int, Any] = {}
        self._claimed = 0  # bytes

    def run(self, file: BinaryIO) -> Any:
        actions: dict[str, Callable[[Any], None]] = {
            name.removeprefix("op_").upper(): getattr(self, name) for name in dir(self) if name.startswith("op_")
        }
        for n, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if n and n % _OFTEN == 0:
                self._claim(_OFTEN * _EACH)
            name = opcode.name
            if name == "STOP":
                return self._stack.pop()
            if name in _PUSHES:
                self._stack.append(argument)
            elif name in actions:
                actions[name](argument)
            elif name not in _NOTHING:
                raise PickleError(f"its pickle has the entry {name}, which no file of data needs")
        raise PickleError("its pickle has no end")

    def _claim(self, n_bytes: int) -> None:
        self._claimed += n_bytes
        disk.claim(self._claimed, "its pickle")

    def _push(self, value: Any) -> None:
        self._stack.append(value)  # looked up after the value was made, because that may replace the stack

    def _to_mark(self) -> list[Any]:
        above, self._stack = self._stack, self._marks.pop()
        return above

    def _call(self, made_by: Any, arguments: Any) -> Any:
        if not isinstance(made_by, Global) or not isinstance(arguments, tuple):
            raise PickleError("it calls what is no function")
        known = self._known.get(made_by.name)
        if known is None:
            return Foreign(made_by.name, arguments)
        self._claim(sum(map(_copied, arguments)))  # a function may copy them, and the memo repeats them in few bytes
        return known(*arguments)

    def op_mark(self, _: Any) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def op_pop(self, _: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._to_mark()

    def op_pop_mark(self, _: Any) -> None:
        self._to_mark()

    def op_dup(self, _: Any) -> None:
        self._push(self._stack[-1])

    # Values

    def op_none(self, _: Any) -> None:
        self._push(None)

    def op_newtrue(self, _: Any) -> None:
        self._push(True)

    def op_newfalse(self, _: Any) -> None:
        self._push(False)

    def op_empty_list(self, _: Any) -> None:
        self._push([])

    def op_empty_tuple(self, _: Any) -> None:
        self._push(())

    def op_empty_dict(self, _: Any) -> None:
        self._push({})

    def op_empty_set(self, _: Any) -> None:
        self._push(set())

    def op_list(self, _: Any) -> None:
        self._push(self._to_mark())

    def op_tuple(self, _: Any) -> None:
        self._push(tuple(self._to_mark()))

    def op_tuple1(self, _: Any) -> None:
        self._last(1)

    def op_tuple2(self, _: Any) -> None:
        self._last(2)

    def op_tuple3(self, _: Any) -> None:
        self._last(3)

    def _last(self, n: int) -> None:
        if len(self._stack) < n:
            raise PickleError("a tuple has too few entries")
        self._stack[-n:] = [tuple(self._stack[-n:])]

    def op_dict(self, _: Any) -> None:
        above = self._to_mark()
        self._push(_mapping(_pairs(above)))

    def op_frozenset(self, _: Any) -> None:
        self._push(frozenset(map(_key, self._to_mark())))

    # Into containers

    def op_append(self, _: Any) -> None:
        self._extend([self._stack.pop()])

    def op_appends(self, _: Any) -> None:
        self._extend(self._to_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        elements = target.elements if isinstance(target, Foreign) else target
        if not isinstance(elements, list):
            raise PickleError("it appends to what is no list")
        elements += values

    def op_setitem(self, _: Any) -> None:
        value = self._stack.pop()
        self._update([(self._stack.pop(), value)])

    def op_setitems(self, _: Any) -> None:
        self._update(_pairs(self._to_mark()))

    def _update(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        target = self._stack[-1]
        items = target.items if isinstance(target, Foreign) else target
        if not isinstance(items, dict):
            raise PickleError("it sets entries of what is no mapping")
        items.update({_key(key): value for key, value in pairs})

    def op_additems(self, _: Any) -> None:
        values = self._to_mark()
        target = self._stack[-1]
        if isinstance(target, Foreign):
            target.elements += values
        elif isinstance(target, set):
            target.update(map(_key, values))
        else:
            raise PickleError("it adds to what is no set")

    # The memo

    def op_put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    op_binput = op_long_binput = op_put

    def op_memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def op_get(self, index: int) -> None:
        self._push(self._memo[index])

    op_binget = op_long_binget = op_get

    # Objects

    def op_global(self, name: str) -> None:
        self._push(Global(name.replace(" ", ".", 1)))

    def op_stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise PickleError("the name of a class is no text")
        self._claim(_copied(name) + _copied(module))
        self._push(Global(f"{module}.{name}"))

    def op_reduce(self, _: Any) -> None:
        arguments = self._stack.pop()
        self._push(self._call(self._stack.pop(), arguments))

    op_newobj = op_reduce

    def op_newobj_ex(self, _: Any) -> None:
        self._stack.pop()  # keyword arguments
        self.op_reduce(None)

    def op_inst(self, name: str) -> None:
        self._push(self._call(Global(name.replace(" ", ".", 1)), tuple(self._to_mark())))

    def op_obj(self, _: Any) -> None:
        made_by, *arguments = self._to_mark()
        self._push(self._call(made_by, tuple(arguments)))

    def op_build(self, _: Any) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if isinstance(target, Foreign):  # known objects are complete when their functions return
            target.state = state

    def op_persid(self, identifier: Any) -> None:
        if self._persistent is None:
            raise PickleError("it names objects outside of itself")
        self._push(self._persistent(identifier))

    def op_binpersid(self, _: Any) -> None:
        self.op_persid(self._stack.pop())


def _copied(value: Any) -> int:
    """Return the bytes that a copy of a value takes, without those of its entries."""
    if isinstance(value, str | bytes):
        return sys.getsizeof(value)
    return _EACH * len(value) if isinstance(value, list | tuple | dict | set | frozenset) else 0


def _pairs(values: list[Any]) -> list[tuple[Any, Any]]:
    return list(zip(values[::2], values[1::2], strict=True))


_PLAIN: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "collections.defaultdict": lambda *_: {},  # the factory of missing items is not needed for existing items
    "_codecs.encode": _encoded,
    **{f"{module}.set": _set for module in ("builtins", "__builtin__")},
    **{f"{module}.frozenset": lambda *a: frozenset(_set(*a)) for module in ("builtins", "__builtin__")},
    **{f"{module}.{kind}": _encoded for module in ("builtins", "__builtin__") for kind in ("bytes", "bytearray")},
    **{f"{module}._reconstructor": _object for module in ("copyreg", "copy_reg")},
}
"""Data that every reader accepts, including the form in pickles of old protocols."""

_PUSHES = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8",
})  # fmt: skip
_NOTHING = frozenset({"PROTO", "FRAME"})
