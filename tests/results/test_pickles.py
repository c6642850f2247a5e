"""Pickles: the reader against Python's own on data, and what it makes of programs that are no data."""

import argparse
import collections
import io
import os
import pickle
import sys
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from landscape.results import disk, pickles
from landscape.results.pickles import Foreign, Global, PickleError

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.tuples(inner, inner)
        | st.lists(inner, max_size=5).map(tuple)
        | st.frozensets(st.integers() | st.text())
        | st.sets(st.integers())
    ),
    max_leaves=20,
)


def read(content, known=None, persistent=None):
    return pickles.load(io.BytesIO(content), known, persistent)


@settings(max_examples=60, deadline=None)
@given(PLAIN, st.integers(2, pickle.HIGHEST_PROTOCOL))
def test_data_are_read_as_python_reads_them(value, protocol):
    content = pickle.dumps(value, protocol)
    assert read(content) == value
    assert type(read(content)) is type(value)


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_older_protocols_are_read_as_python_reads_them(protocol):
    value = {"a": [1, 2.5, None, True, -(2**70), "ä", b"\xff"], "b": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4))}
    assert read(pickle.dumps(value, protocol)) == value


def test_what_refers_to_itself_stays_so():
    value = [1]
    value.append(value)
    found = read(pickle.dumps(value))
    assert found[1] is found


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_objects_become_names_and_what_the_pickle_holds_of_them(protocol):
    found = read(pickle.dumps([argparse.Namespace(lr=0.1), argparse.Namespace, collections.deque([1, 2])], protocol))
    assert isinstance(found[0], Foreign)
    assert found[0].state == {"lr": 0.1}
    assert found[1] == Global("argparse.Namespace")
    assert found[2].name == "collections.deque"


def test_nothing_is_imported_and_nothing_is_called(tmp_path):
    class Calls:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    before = set(sys.modules)
    found = read(pickle.dumps([Calls(), 1]))
    assert found[0].arguments == (str(tmp_path / "made"),)
    assert read(b"cno_such.module\nf\n(S'x'\ntR.").name == "no_such.module.f"
    assert not list(tmp_path.iterdir())
    assert set(sys.modules) == before


HOSTILE = {
    "a string is called": b"S'x'\n(tR.",
    "a number is called": b"K\x01)R.",
    "a stand-in is called": b"cos\nsystem\n)R)R.",
    "arguments are no tuple": b"cos\nsystem\n]R.",
    "appending to a tuple": b")K\x01a.",
    "appending to a class": b"cos\nsystem\nK\x01a.",
    "an entry of a list": b"]K\x01K\x02s.",
    "an odd number of entries": b"}(K\x01u.",
    "adding to a list": b"](K\x01\x90.",
    "a list as a key": b"}]K\x01s.",
    "nothing to take": b"0.",
    "no mark": b"t.",
    "unknown memo": b"h\x07.",
    "a class without a name": b"\x80\x04K\x01K\x02\x93.",
    "an extension": b"\x82\x01.",
    "out of band": b"\x97.",
    "outside, refused": b"K\x01Q.",
    "no end": b"K\x01",
    "no code": b"\xff.",
    "text of four thousand million bytes": b"X\xff\xff\xff\xffab.",
    "bytes of 2^62": b"\x8e" + (2**62).to_bytes(8, "little") + b"ab.",
    "a mapping of a number": b"ccollections\nOrderedDict\nK\x01\x85R.",
    "a mapping of three": b"ccollections\nOrderedDict\n]]]\x87R.",
    "bytes of a list": b"c_codecs\nencode\n]\x85R.",
    "bytes of letters beyond one byte": b"c_codecs\nencode\nX\x02\x00\x00\x00\xc5\x81\x85R.",
    "an integer of many digits": b"I" + b"9" * 5000 + b"\n.",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_programs_that_are_no_data_are_refused(what):
    with pytest.raises(PickleError):
        read(HOSTILE[what])


def test_a_far_memo_entry_takes_no_memory():
    tracemalloc.start()
    assert read(b"\x80\x02}r\x00\xc2\xeb\x0b.") == {}
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_tuples_that_share_their_halves_are_no_keys_that_take_for_ever():
    """Sixty levels of pairs of one thing: its hash would take 2^60 steps."""
    nested = b")" + b"2\x86" * 60
    found = read(b"}" + nested + b"K\x01s.")
    assert [type(key) for key in found] == [Foreign]
    assert isinstance(read(b"(" + nested + b"\x91."), frozenset)


def test_a_pickle_that_holds_more_than_memory_is_refused_while_it_is_read(monkeypatch):
    monkeypatch.setattr(disk, "memory", lambda: 2**26)
    with pytest.raises(disk.ClaimError, match="its pickle takes"):
        read(b"(" + b"\x8f" * 2**19 + b"l.")


LONG = b"X\x00\x00\x10\x00" + b"a" * 2**20
MANY = b"(" + b"K\x01" * 2**13 + b"l"
COPIED = {
    "text": (LONG, b"c_codecs\nencode\n"),
    "a list": (MANY, b"c__builtin__\nset\n"),
    "pairs": (
        b"(" + b"".join(b"M" + n.to_bytes(2, "little") + b"N" for n in range(2**13)) + b"d",
        b"ccollections\nOrderedDict\n",
    ),
    "what a caller's function takes": (MANY, b"cmy\nThing\n"),
}


@pytest.mark.parametrize("what", COPIED)
def test_what_a_function_copies_again_and_again_counts_each_time(monkeypatch, what):
    """A value and a function in the memo: each call takes six bytes of the file."""
    monkeypatch.setattr(disk, "memory", lambda: 2**26)
    value, function = COPIED[what]
    calls = b"h\x01h\x00\x85Ra"
    known = {"my.Thing": list}
    assert len(read(value + b"q\x00" + function + b"q\x01]" + calls * 3 + b".", known)) == 3
    with pytest.raises(disk.ClaimError, match="its pickle takes"):
        read(value + b"q\x00" + function + b"q\x01]" + calls * 40 + b".", known)


def test_long_names_that_are_joined_again_and_again_count_each_time(monkeypatch):
    monkeypatch.setattr(disk, "memory", lambda: 2**26)
    with pytest.raises(disk.ClaimError, match="its pickle takes"):
        read(LONG + b"q\x00]" + b"h\x00h\x00\x93a" * 40 + b".")


def test_known_names_stand_for_what_the_caller_says():
    assert read(b"cmy\nThing\nK\x05\x85R.", {"my.Thing": lambda n: n + 1}) == 6
    assert read(b"K\x05Q.", persistent=lambda key: ("outside", key)) == ("outside", 5)
