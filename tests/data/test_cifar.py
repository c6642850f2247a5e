"""CIFAR: what is read is what the official files hold, whoever wrote them; nothing in them is run."""

import bz2
import gzip
import io
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest
from refusals import refused

from landscape.data.cifar import RELEASES
from landscape.data.datasets import load
from landscape.errors import DataError
from landscape.results import disk

PAPER_COUNTS = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]  # section 7 of the paper


def python2_pickle(content):
    """Write a dict as Python 2 with an old numpy did: byte strings, protocol 2, numpy.core.multiarray."""

    def text(value):
        return b"U" + bytes([len(value)]) + value

    def number(value):
        return b"J" + struct.pack("<i", value)

    out = b"\x80\x02}("
    for key, value in content.items():
        out += text(key.encode())
        if isinstance(value, np.ndarray):
            out += (
                b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + number(0) + b"\x85" + text(b"b") + b"tR"
            )
            out += b"(K\x01(" + b"".join(number(n) for n in value.shape) + b"t"
            out += b"cnumpy\ndtype\n(" + text(b"u1") + b"K\x00K\x01tR(K\x03" + text(b"|") + b"NNN"
            out += number(-1) + number(-1) + b"K\x00tb\x89T" + struct.pack("<i", value.nbytes) + value.tobytes() + b"tb"
        else:
            out += b"](" + b"".join(text(v) if isinstance(v, bytes) else number(v) for v in value) + b"e"
    return out + b"u."


def python3_pickle(content):
    return pickle.dumps({k.encode(): v for k, v in content.items()}, protocol=2)


def cifar_files(name, dump=python3_pickle, counts=(6, 3)):
    """A data set of two classes in the official layout: file name -> content."""
    layout = RELEASES[name]
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], counts)
    files = {layout.meta: dump({layout.class_names: [b"cat", b"dog"]})}
    for parts, of_split in ((layout.train, labels), (layout.test, np.array([1, 0, 1]))):
        for part, chunk in zip(parts, np.array_split(of_split, len(parts)), strict=True):
            pixels = rng.integers(0, 256, (len(chunk), 3072), dtype=np.uint8)
            files[part] = dump({"data": pixels, layout.labels: chunk.tolist()})
    return files


@pytest.fixture
def write(tmp_path):
    """Write the files of a set below a root of its own."""

    def written(name, files):
        folder = tmp_path / RELEASES[name].folder
        folder.mkdir(exist_ok=True)
        for file, content in files.items():
            (folder / file).write_bytes(content)
        return tmp_path

    return written


@pytest.mark.parametrize("dump", [python2_pickle, python3_pickle])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_batches_of_either_python_are_read_in_order(write, name, dump):
    files = cifar_files(name, dump)
    root = write(name, files)
    samples = load(name, root=root)
    parts = [pickle.loads(cifar_files(name)[f], encoding="bytes") for f in RELEASES[name].train]
    pixels = np.concatenate([part[b"data"] for part in parts])
    np.testing.assert_array_equal(samples.inputs.numpy().reshape(9, 3072), pixels)
    assert samples.labels.tolist() == [0] * 6 + [1] * 3
    assert samples.class_names == ("cat", "dog")
    assert samples.labels.dtype == np.int64


def test_the_test_split_knows_the_training_counts(write):
    samples = load("cifar10", root=write("cifar10", cifar_files("cifar10")), split="test")
    assert len(samples) == 3
    assert samples.class_counts.tolist() == [6, 3]


def test_folder_root_and_archive_hold_the_same_samples(write, tmp_path):
    files = cifar_files("cifar10")
    unpacked = load("cifar10", root=write("cifar10", files))
    inside = load("cifar10", root=tmp_path / "cifar-10-batches-py")
    archived = tmp_path / "archived"
    archived.mkdir()
    with tarfile.open(archived / "cifar-10-python.tar.gz", "w:gz") as archive:
        for file, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{file}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert load("cifar10", root=archived).fingerprint == inside.fingerprint == unpacked.fingerprint
    packed = archived / "cifar-10-python.tar.gz"
    packed.write_bytes(gzip.decompress(packed.read_bytes()))  # as some browsers leave it
    assert load("cifar10", root=archived).fingerprint == inside.fingerprint


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("was-here",)


def test_a_batch_that_wants_to_run_code_is_refused_and_does_not(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = write("cifar10", cifar_files("cifar10") | {"data_batch_2": pickle.dumps({b"data": Malicious()})})
    with refused(DataError, "data_batch_2", "CIFAR", "labels"):
        load("cifar10", root=root)
    assert not (tmp_path / "was-here").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"garbage", ("data_batch_1", "CIFAR")),
        (pickle.dumps([1, 2], protocol=2), ("data_batch_1", "CIFAR", "labels")),
        (python3_pickle({"labels": [0], "data": np.zeros((1, 3072), dtype=np.float32)}), ("pixels",)),
        (python3_pickle({"labels": [0], "data": [0]}), ("data",)),
        (
            python3_pickle({"labels": [0, 1], "data": np.zeros((1, 3072), dtype=np.uint8)}),
            (2,),
        ),
        (python3_pickle({"labels": [0, 2], "data": np.zeros((2, 3072), dtype=np.uint8)}), (1, 2)),
        (python3_pickle({"labels": [0.5], "data": np.zeros((1, 3072), dtype=np.uint8)}), ("integers",)),
        (python2_pickle({"labels": [0], "data": np.zeros((1, 3072), dtype=np.uint8)})[:-200], ("CIFAR",)),
    ],
)
def test_a_broken_batch_is_refused_in_one_line(write, content, message):
    with refused(DataError, *message) as caught:
        load("cifar10", root=write("cifar10", cifar_files("cifar10") | {"data_batch_1": content}))
    assert "\n" not in str(caught.value)


def test_a_missing_batch_is_named(write):
    files = cifar_files("cifar10")
    root = write("cifar10", files)
    (root / "cifar-10-batches-py" / "data_batch_3").unlink()
    with refused(DataError, "cifar-10-batches-py", "data_batch_3", "cifar-10-python.tar.gz"):
        load("cifar10", root=root)


def test_a_broken_archive_is_refused(tmp_path):
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(b"\x1f\x8bnot an archive")
    with refused(DataError, "cifar-100-python.tar.gz"):
        load("cifar100", root=tmp_path)


def test_missing_data_are_looked_for_by_name_and_place(tmp_path):
    with refused(DataError, "data_root", "cifar-10-batches-py"):
        load("cifar10")
    with refused(DataError, "data_root"):
        load("cifar10", root=tmp_path / "none")
    with refused(DataError, "cifar-10-batches-py", "batches.meta", "cifar-10", tmp_path):
        load("cifar10", root=tmp_path)


def test_a_long_tail_is_cut_from_the_training_split_only(write):
    root = write("cifar10", cifar_files("cifar10", counts=(6, 6)))
    train, test = (load("cifar10", root=root, imbalance=3, split=split) for split in ("train", "test"))
    assert np.bincount(train.labels).tolist() == [6, 2]
    assert len(test) == 3
    assert train.class_counts.tolist() == test.class_counts.tolist() == [6, 2]


def test_data_that_have_the_long_tail_asked_for_pass_unchanged(write):
    root = write("cifar10", cifar_files("cifar10", counts=(6, 3)))
    assert load("cifar10", root=root, imbalance=2).fingerprint == load("cifar10", root=root).fingerprint


@pytest.mark.parametrize("split", ["train", "test"])
def test_too_few_samples_for_a_long_tail_name_class_and_counts(write, split):
    root = write("cifar10", cifar_files("cifar10", counts=(6, 3)))
    message = r"class 1 \(dog\) has 3 training samples, imbalance=1.5 needs 4: leave out imbalance"
    with pytest.raises(DataError, match=message):
        load("cifar10", root=root, imbalance=1.5, split=split)


@pytest.mark.slow
def test_the_real_cifar10_long_tail_has_the_counts_of_the_literature(cifar_root):
    train, test = load("cifar10", root=cifar_root), load("cifar10", root=cifar_root, split="test")
    assert np.bincount(train.labels).tolist() == PAPER_COUNTS
    assert len(train) == 12406
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert test.class_counts.tolist() == PAPER_COUNTS
    assert train.class_names[:2] == ("airplane", "automobile")
    assert load("cifar10", root=cifar_root, imbalance=100).fingerprint == train.fingerprint
    inputs, _ = test.batch(np.arange(0, 10000, 10))
    # normalised pixels have a mean near 0 and a spread near 1 (the stds are means over images: 0.2 against 0.25)
    assert inputs.mean().abs() < 0.05
    assert 1.1 < inputs.std() < 1.4


NO_TEXT = "is no text in UTF-8"
META = {
    "a class name in Latin-1": (
        pickle.dumps({b"label_names": [b"caf\xe9", b"dog"]}, protocol=2),
        "is no text in UTF-8",
    ),
    "a class name that is a list": (pickle.dumps({"label_names": [["cat"], "dog"]}, protocol=2), NO_TEXT),
    "a far memo entry": (b"\x80\x02}r\x00\xc2\xeb\x0b.", "it has no 'label_names'"),
}


@pytest.mark.parametrize("what", META)
def test_a_damaged_list_of_classes_is_refused(write, what):
    content, message = META[what]
    with pytest.raises(DataError, match=message):
        load("cifar10", root=write("cifar10", cifar_files("cifar10") | {"batches.meta": content}))


def archive(path, members):
    with tarfile.open(path, "w:gz") as out:
        for name, content in members.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                out.addfile(member)
            else:
                member.size = len(content)
                out.addfile(member, io.BytesIO(content))


def test_a_link_to_nowhere_in_an_archive_is_a_file_that_lacks(tmp_path):
    archive(tmp_path / "cifar-10-python.tar.gz", cifar_files("cifar10") | {"data_batch_3": "nowhere"})
    with refused(DataError, "cifar-10-batches-py", "data_batch_3"):
        load("cifar10", root=tmp_path)


def test_an_archive_that_unfolds_to_far_more_than_itself_is_refused(tmp_path):
    archive(tmp_path / "cifar-10-python.tar.gz", {"zeros": bytes(2**27)} | cifar_files("cifar10"))
    with refused(DataError, "ClaimError", "134 MB"):
        load("cifar10", root=tmp_path)


@pytest.mark.parametrize("place", [0.3, 0.5, 0.7])
def test_a_flipped_byte_in_an_archive_is_said_in_a_line(tmp_path, place):
    path = tmp_path / "cifar-10-python.tar.gz"
    archive(path, cifar_files("cifar10"))
    whole = bytearray(path.read_bytes())
    whole[int(place * len(whole))] ^= 0x55
    path.write_bytes(whole)
    with pytest.raises(DataError) as caught:
        load("cifar10", root=tmp_path)
    assert "\n" not in str(caught.value)


def with_headers(path, kind, size, count=1):
    """An archive that begins with headers which describe the next member: a long name, or entries of pax."""
    archive(path, cifar_files("cifar10"))
    header = tarfile.TarInfo("long")
    header.type, header.size = kind, size
    begin = (header.tobuf(tarfile.GNU_FORMAT) + bytes(-(-size // 512) * 512)) * count
    path.write_bytes(gzip.compress(begin + gzip.decompress(path.read_bytes()), 1))


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_header_that_unfolds_to_far_more_than_the_archive_is_refused(tmp_path, kind):
    with_headers(tmp_path / "cifar-10-python.tar.gz", kind, 2**27)
    with refused(DataError, "ClaimError", "134 MB"):
        load("cifar10", root=tmp_path)


def test_thousands_of_headers_one_after_the_other_are_passed_over(tmp_path):
    with_headers(tmp_path / "cifar-10-python.tar.gz", tarfile.XHDTYPE, 0, 3000)
    assert len(load("cifar10", root=tmp_path)) == 9


def test_a_member_of_negative_size_is_refused(tmp_path):
    with_headers(tmp_path / "cifar-10-python.tar.gz", tarfile.REGTYPE, -1)
    with refused(DataError, "HeaderError"):
        load("cifar10", root=tmp_path)


def test_an_archive_of_another_compression_is_refused(tmp_path):
    path = tmp_path / "cifar-10-python.tar.gz"
    archive(path, cifar_files("cifar10"))
    path.write_bytes(bz2.compress(gzip.decompress(path.read_bytes())))
    with refused(DataError, "cifar-10-python.tar.gz"):
        load("cifar10", root=tmp_path)


def test_a_pixel_that_was_changed_in_an_archive_is_noticed(tmp_path):
    path = tmp_path / "cifar-10-python.tar.gz"
    archive(path, cifar_files("cifar10"))
    whole = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), 0))
    whole[whole.index(b"data_batch_1") + 2048] ^= 1
    path.write_bytes(whole)
    with refused(DataError, "CRC"):
        load("cifar10", root=tmp_path)


def test_a_file_larger_than_memory_is_refused_before_it_is_read(write, monkeypatch):
    monkeypatch.setattr(disk, "memory", lambda: 2**26)
    root = write("cifar10", cifar_files("cifar10"))
    os.truncate(root / "cifar-10-batches-py" / "data_batch_1", 2**26)  # the end is a hole
    with refused(DataError, "ClaimError", "cifar-10-batches-py"):
        load("cifar10", root=root)
