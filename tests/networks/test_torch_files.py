"""Files of torch.save: every type and view against torch's own reader, and files that claim what they do not hold."""

import io
import struct
import zipfile

import numpy as np
import pytest
import torch
from refusals import refused

from landscape.networks import torch_files
from landscape.results import disk
from landscape.results.pickles import Foreign, PickleError

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.uint16,
]  # fmt: skip


def read(content, legacy, tmp_path):
    path = tmp_path / "a.pt"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with open(path, "rb") as file:
        return (torch_files.read_legacy if legacy else torch_files.read_zip)(file)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_each_type_are_read_as_they_were(dtype, legacy, tmp_path):
    if legacy and dtype in DTYPES[-2:]:
        pytest.skip("the old format has no such type")
    whole = torch.arange(24).to(torch.float32).to(dtype)
    views = {
        "whole": whole,
        "turned": whole.view(4, 6).T,
        "strided": whole.view(4, 6)[1:, ::2],
        "scalar": whole[5],
        "empty": whole[:0],
        "expanded": whole[3].expand(2, 3),
        "parameter": torch.nn.Parameter(whole.clone(), requires_grad=False),
    }
    found = read(views, legacy, tmp_path)
    assert found.keys() == views.keys()
    for name, tensor in views.items():
        assert found[name].dtype == dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name].to(torch.complex128), tensor.detach().to(torch.complex128))
    assert found["whole"].data_ptr() == found["turned"].data_ptr()  # views of one storage, as they were


class Tagged(torch.Tensor):
    pass


def test_tensors_of_other_classes_are_plain_ones(tmp_path):
    found = read([torch.ones(2).as_subclass(Tagged)], False, tmp_path)
    assert type(found[0]) is torch.Tensor
    assert found[0].tolist() == [1, 1]


@pytest.mark.parametrize("kind", ["?", *"bhilqBHILQefd"])
def test_numbers_of_numpy_are_pythons(kind, tmp_path):
    value = np.array(1).astype(kind)[()]
    found = read([value, value.astype(value.dtype.newbyteorder())[()]], False, tmp_path)
    assert found == [value.item()] * 2
    assert type(found[0]) is type(value.item())


def test_other_things_of_numpy_stay_what_the_pickle_holds(tmp_path):
    found = read([np.arange(3), np.str_("cat"), np.array([{}])], False, tmp_path)
    assert all(isinstance(value, Foreign) for value in found)


# Pickles by hand -------------------------------------------------------------------------------------------------


def number(n):
    return b"I%d\n" % n


def sizes(*values):
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(numel, kind=b"torch\nFloatStorage"):
    return b"((X\x07\x00\x00\x00storagec" + kind + b"\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + number(numel) + b"tQ"


def view(offset=0, shape=(1,), stride=(1,), numel=4, kind=b"torch\nFloatStorage"):
    held = storage(numel, kind)[1:]
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + held + number(offset) + sizes(*shape) + sizes(*stride) + b"\x89NtR"


def archive(pickled, storage_bytes=16, **options):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as out:
        out.writestr("a/data.pkl", b"\x80\x02" + pickled + b".")
        out.writestr("a/data/0", struct.pack("<4f", 1, 2, 3, 4)[:storage_bytes].ljust(storage_bytes, b"\0"))
    return buffer


def test_a_pickle_by_hand_is_read():
    assert torch_files.read_zip(archive(view(1, (3,)))).tolist() == [2, 3, 4]


HOSTILE = {
    "beyond the end": view(0, (5,)),
    "offset beyond the end": view(4, (1,)),
    "a stride beyond the end": view(0, (2,), (4,)),
    "a negative offset": view(-1, (1,)),
    "a negative stride": view(3, (2,), (-1,)),
    "a negative size": view(0, (-1,)),
    "a size of 2^63": view(0, (2**63,)),
    "sizes whose product wraps": view(0, (2**33, 2**33), (0, 0)),
    "65 axes": view(0, (1,) * 65, (1,) * 65),
    "more sizes than strides": view(0, (1, 1)),
    "storage of another size": view(numel=5),
    "storage of an unknown class": view(kind=b"os\nFloatStorage"),
    "storage of an unknown type": view(kind=b"torch\nQInt8Storage"),
    "no storage": b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00)\x85)\x85\x89NtR",
    "a number of too few bytes": (
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(X\x02\x00\x00\x00f8\x89\x88tR"
        b"c_codecs\nencode\n(X\x02\x00\x00\x00abX\x06\x00\x00\x00latin1tRtR"
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_claims_beyond_the_file_are_refused(what):
    with pytest.raises((PickleError, disk.ClaimError)):
        torch_files.read_zip(archive(HOSTILE[what]))


@pytest.mark.parametrize("place", [b"X\x01\x00\x00\x000", b"ctorch\nFloatStorage\n"])
def test_lists_that_share_their_halves_name_no_storage(place):
    """Sixty levels of pairs of one thing, as key or type of a storage: its text would take 2^60 steps."""
    with pytest.raises(PickleError):
        torch_files.read_zip(archive(view().replace(place, b"]" + b"2\x86" * 60, 1)))


def test_a_subclass_that_a_function_makes_is_no_tensor():
    pickled = b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\ncos\nsystem\n)}tR"
    assert isinstance(torch_files.read_zip(archive(pickled)), Foreign)


SUB_ARRAYS = [("f2", (2,)), ("u1", (8,)), ("f8", (0,)), ("V8", (0, 2)), ("O", ()), ("f16", ())]


@pytest.mark.parametrize(("code", "shape"), SUB_ARRAYS)
def test_types_of_numpy_that_hold_more_than_a_number_are_not_made(code, shape):
    dims = b"(" + b"".join(b"K" + bytes([n]) for n in shape) + b"t"
    kind = b"cnumpy\ndtype\n((X" + struct.pack("<I", len(code)) + code.encode() + dims + b"ttR"
    content = b"c_codecs\nencode\n(X\x10\x00\x00\x00" + b"A" * 16 + b"X\x06\x00\x00\x00latin1tR"
    found = torch_files.read_zip(archive(b"cnumpy._core.multiarray\nscalar\n(" + kind + content + b"tR"))
    assert isinstance(found, Foreign)


def test_arrays_of_objects_are_not_made_from_bytes():
    kind = b"cnumpy\ndtype\n(X\x01\x00\x00\x00O\x89\x88tR"
    content = b"c_codecs\nencode\n(X\x08\x00\x00\x00AAAAAAAAX\x06\x00\x00\x00latin1tR"
    found = torch_files.read_zip(archive(b"cnumpy\nndarray\n((K\x01t" + kind + content + b"tR"))
    assert found.name == "numpy.ndarray"


def test_a_flipped_bit_in_a_tensor_is_noticed():
    whole = bytearray(archive(view(0, (4,))).getvalue())
    whole[whole.index(struct.pack("<4f", 1, 2, 3, 4)) + 5] ^= 1
    with pytest.raises(PickleError, match="CRC"):
        torch_files.read_zip(io.BytesIO(whole))


def test_compressed_members_may_not_unfold_to_more_than_the_file():
    bomb = archive(view(numel=2**20), 2**22, compression=zipfile.ZIP_DEFLATED)
    with refused(disk.ClaimError, "4.19 MB"):
        torch_files.read_zip(bomb)


def test_one_member_under_many_names_counts_each_time():
    """Entries of the directory that share one member's bytes: each is a storage of its own."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        out.writestr("a/data/0", bytes(2**12))
        held = out.filelist[0]
        for key in range(1, 10):
            again = zipfile.ZipInfo(f"a/data/{key}")
            again.header_offset, again.file_size, again.compress_size, again.CRC = 0, 2**12, 2**12, held.CRC
            out.filelist.append(again)
            out.NameToInfo[again.filename] = again
        views = b"".join(
            view(numel=2**10).replace(b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x00%d" % key) for key in range(10)
        )
        out.writestr("a/data.pkl", b"\x80\x02(" + views + b"t.")
    with pytest.raises((PickleError, disk.ClaimError)):
        torch_files.read_zip(buffer)


def test_the_old_format_is_bounded_by_its_file(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.ones(300)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    assert whole.count(struct.pack("<H", 300)) == 3  # numbers in the storage, the tensor's size, and before the bytes
    path.write_bytes(whole.replace(b"M\x2c\x01", b"M\xff\xff"))
    with refused(disk.ClaimError, "262 kB"), open(path, "rb") as file:
        torch_files.read_legacy(file)


def test_views_of_storages_of_the_oldest_files_are_read(tmp_path):
    """Before torch 0.4 a storage could be a view of another: its place stands at the end of its name."""
    path = tmp_path / "a.pt"
    torch.save([torch.arange(4.0)[1:3].clone()], path, _use_new_zipfile_serialization=False)
    pickled = b"\x80\x02" + view(0, (2,)).replace(b"tQ", b"(X\x01\x00\x00\x001K\x01K\x02ttQ", 1) + b"."
    head = path.read_bytes().split(b"\x80\x02]", 1)[0]
    path.write_bytes(head + pickled + b"\x80\x02]X\x01\x00\x00\x000a." + struct.pack("<q4f", 4, 1, 2, 3, 4))
    with open(path, "rb") as file:
        assert torch_files.read_legacy(file).tolist() == [2, 3]
