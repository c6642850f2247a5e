"""Users' own callables are found by name, and what is wrong with a name is said in one line."""

import sys
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from refusals import refused

from landscape import callables
from landscape.callables import resolve
from landscape.errors import DataError, InputError, StoreError
from landscape.networks import losses


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with modules of the user's, and nothing of it left on the path afterwards."""
    (tmp_path / "users_code.py").write_text("class Nets:\n    @staticmethod\n    def small(): return 7\nwidth = 3\n")
    (tmp_path / "users_broken.py").write_text("raise RuntimeError('two\\nlines')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("users_code", None)


@pytest.mark.usefixtures("folder")
def test_a_callable_of_the_current_folder_is_found():
    assert resolve("users_code:Nets.small", "model")() == 7


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("users_code", ("model", "users_code", "package.module")),
        (":small", ("form",)),
        ("./users_code.py:Nets", ("form",)),
        ("users_cod:Nets", ("users_cod", "ModuleNotFoundError")),
        ("users_broken:net", ("users_broken", "RuntimeError")),
        ("users_code:large", ("users_code", "large")),
        ("users_code:Nets.large", ("large",)),
        ("users_code:width", ("model", "users_code:width")),
    ],
)
def test_a_name_that_leads_nowhere_is_refused_in_one_line(spec, message):
    with refused(InputError, *message) as caught:
        resolve(spec, "model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [ValueError("two\nlines"), KeyError("x"), StopIteration()])
def test_what_a_users_code_raises_is_said_in_one_line_and_stays_attached(error):
    with (
        pytest.raises(DataError, match="the loss of mine: ") as caught,
        callables.failures_of(lambda: "the loss of mine", DataError),
    ):
        raise error
    assert caught.value.__cause__ is error
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"the loss of mine: {type(error).__name__}")


@pytest.mark.parametrize(
    "error", [StoreError("full"), MemoryError(), torch.OutOfMemoryError(), RuntimeError("can't allocate memory: 9 GB")]
)
def test_messages_and_errors_of_memory_pass_as_they_are(error):
    with pytest.raises(type(error)) as caught, callables.failures_of(lambda: "the loss of mine"):
        raise error
    assert caught.value is error


def test_a_maker_of_a_loss_that_fails_is_named(folder):
    (folder / "users_loss.py").write_text("def focal(gamma):\n    raise ValueError('no gamma')\n")
    with pytest.raises(InputError) as caught:
        losses.own("users_loss:focal(gamma=2)")
    assert "users_loss:focal(gamma=2)" in str(caught.value)
    assert "no gamma" in str(caught.value)


@callables.checked
def public(
    size: int,
    *,
    share: float = 0.5,
    kind: Literal["a", "bc"] | None = None,
    names: str | Sequence[str] = (),
    place: str | PathLike[str] = ".",
    switch: bool = False,
    free: Any = None,
    many: Sequence[str] = (),
    columns: Literal[1, 2] = 1,
) -> int:
    return size


@pytest.mark.parametrize(
    "given",
    [
        {"share": 1},
        {"share": np.float32(0.5)},
        {"kind": "bc"},
        {"kind": None},
        {"names": ["x"]},
        {"names": "x"},
        {"place": Path("x")},
        {"switch": np.True_},
        {"free": object()},
    ],
)
def test_arguments_of_the_annotated_types_are_taken(given):
    assert public(np.int64(3), **given) == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": "3"}, "size must be a whole number, got str '3'"),
        ({"size": 3.0}, "size must be a whole number, got float 3.0"),
        ({"size": True}, "size must be a whole number, got bool True"),
        ({"size": None}, "size must be a whole number, got NoneType None"),
        ({"size": 3, "share": "1"}, "share must be a number, got str '1'"),
        ({"size": 3, "kind": "b"}, "kind='b' is unknown: did you mean bc? choose a, bc"),
        ({"size": 3, "kind": 1}, "kind must be 'a', 'bc' or None, got int 1"),
        ({"size": 3, "names": 1}, "names must be a string or a list, got int 1"),
        ({"size": 3, "place": [1] * 50}, "place must be a string or a path, got list"),
        ({"size": 3, "many": "abc"}, "many must be a list, got str 'abc'"),
        ({"size": 3, "columns": True}, "columns must be 1, 2, got bool True"),
        ({"size": 3, "switch": "yes"}, "switch must be True or False, got str 'yes'"),
    ],
)
def test_an_argument_of_another_type_is_refused_by_its_name(given, message):
    with pytest.raises(InputError) as caught:
        public(**given)
    assert str(caught.value) == message


def test_a_misspelt_argument_fails_in_pythons_own_words():
    with refused(TypeError, "public", "sise"):
        public(sise=3)
