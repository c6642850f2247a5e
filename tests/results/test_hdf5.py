"""HDF5 files that claim what they do not hold, or that point to other files of the machine."""

import tracemalloc

import h5py
import numpy as np
import pytest
from made import spectrum

from landscape.errors import StoreError
from landscape.results import hdf5, store


@pytest.fixture
def path(tmp_path):
    store.save(tmp_path / "out.h5", spectrum("a", "b"))
    return tmp_path / "out.h5"


def replace(path, key, **options):
    with h5py.File(path, "r+") as file:
        del file[key]
        file.create_dataset(key, **options)


def refusal(path):
    tracemalloc.start()
    try:
        with pytest.raises(StoreError) as caught:
            store.load(path)
        assert tracemalloc.get_traced_memory()[1] < 2**28  # bytes
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


SIZES = {
    "never written": {"shape": (4 * 10**8,), "dtype": "f8", "chunks": (2**20,)},
    "contiguous, never written": {"shape": (4 * 10**8,), "dtype": "f8"},
    "one large chunk": {"shape": (2,), "maxshape": (None,), "dtype": "f8", "chunks": (2**28,)},
    "compressed to nothing": {"data": np.zeros(10**7), "compression": "gzip", "compression_opts": 9},
    "a string of a gigabyte": {"shape": (2,), "dtype": "S1000000000"},
    "many axes": {"shape": (2**12,) * 5, "dtype": "f8", "chunks": (1,) * 5},
}


@pytest.mark.parametrize("what", SIZES)
def test_arrays_that_claim_more_than_the_file_holds_are_refused(path, what):
    replace(path, "loss", **SIZES[what])
    assert "the array loss claims" in refusal(path)


@pytest.mark.parametrize("key", ["loss", "parts"])
def test_arrays_without_a_shape_are_refused(path, key):
    replace(path, key, data=h5py.Empty("f8"))
    assert f":/{key} is empty, without a shape" in refusal(path)


def test_one_long_text_shown_many_times_is_counted_each_time(path):
    """A list of texts is one of references: a hostile file lets many show the same long text."""
    long = "x" * 2**20
    replace(path, "parts", shape=(400,), dtype=h5py.string_dtype())
    with h5py.File(path, "r+") as file:
        file["parts"][0] = long
        place = file["parts"].id.get_offset()
    whole = bytearray(path.read_bytes())
    whole[place : place + 400 * 16] = whole[place : place + 16] * 400
    path.write_bytes(whole)
    assert "the list parts claims" in refusal(path)


def secret(path):
    name = path.with_name("private.bin")
    np.array([0.12345, 0.67891]).tofile(name)
    return name


def external_storage(path, file):
    file.create_dataset("loss", shape=(2,), dtype="f8", external=[(str(secret(path)), 0, 16)])


def external_link(path, file):
    with h5py.File(path.with_name("other.h5"), "w") as other:
        other["loss"] = [0.12345, 0.67891]
    file["loss"] = h5py.ExternalLink("other.h5", "/loss")


def virtual(path, file):
    external_link(path, file)
    del file["loss"]
    layout = h5py.VirtualLayout(shape=(2,), dtype="f8")
    layout[:] = h5py.VirtualSource(str(path.with_name("other.h5")), "loss", shape=(2,))
    file.create_virtual_dataset("loss", layout)


@pytest.mark.parametrize("make", [external_storage, external_link, virtual])
def test_what_lies_in_another_file_is_not_read(path, make):
    with h5py.File(path, "r+") as file:
        del file["loss"]
        make(path, file)
    assert ":/loss lies in another file of this machine, and is not read" in refusal(path)


PROVENANCE = {
    "a list": "[1]",
    "a number": "1",
    "nested": '{"a":' * 400 + "1" + "}" * 400,
    "without an end": "[" * 100_000,
    "a long number": '{"a": ' + "9" * 5000 + "}",
    "twice": '{"a": 1, "a": 2}',
}


@pytest.mark.parametrize("what", PROVENANCE)
def test_provenance_that_is_no_plain_object_is_refused(path, what):
    with h5py.File(path, "r+") as file:
        file.attrs.create("provenance", PROVENANCE[what], dtype=h5py.string_dtype())
    refusal(path)


@pytest.mark.parametrize("value", [h5py.Empty("f8"), [1, 2], np.void(b"abc"), b"\xff"], ids=repr)
@pytest.mark.parametrize("name", ["format", "kind", "version", "provenance", "journal_unit"])
def test_attributes_of_other_kinds_end_in_a_line(path, name, value):
    with h5py.File(path, "r+") as file:
        file.attrs[name] = value
    if name == "journal_unit" and not isinstance(value, str | bytes):
        assert store.load(path).parts == ("a", "b")
    else:
        refusal(path)


@pytest.mark.parametrize(
    ("at", "number", "width"),
    [
        *((8, n, 8) for n in (5000, 2**32, 2**63, 2**64 - 8, 2**64 - 16, 2**64 - 1)),  # more than the heap holds
        (0, 0, 2),  # free space of no size in the middle, over which HDF5 would walk for ever
    ],
)
def test_heaps_of_text_that_claim_what_is_not_there_end_in_a_line(path, at, number, width):
    content = bytearray(path.read_bytes())
    first = content.find(b"GCOL") + 16
    assert first > 16
    if at == 0:
        content[first + 8 : first + 16] = bytes(8)
    content[first + at : first + at + width] = number.to_bytes(width, "little")
    path.write_bytes(content)
    refusal(path)


def test_what_the_file_holds_itself_is_read(path):
    with h5py.File(path, "r+") as file:
        chunked = np.random.default_rng(0).normal(size=1000)
        file.create_dataset("chunked", data=chunked, chunks=(100,), compression="gzip")
        file["soft"] = h5py.SoftLink("/nowhere")
        file.create_dataset("text", data="words")
        assert hdf5.numbers(file, "chunked", path).tolist() == chunked.tolist()
        assert hdf5.text(file, "text", path) == "words"
        with pytest.raises(StoreError, match="must be a dataset"):
            hdf5.numbers(file, "soft", path)
