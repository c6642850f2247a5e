"""Files of any kind: claims before memory, text in UTF-8, and writing of which no half remains."""

import errno
import fcntl
import os
import resource
import stat
from contextlib import nullcontext

import pytest
from refusals import refused

from landscape.errors import DataError, InputError, StoreError
from landscape.results import disk


@pytest.mark.parametrize(
    ("n_bytes", "held", "fits"),
    [
        (disk.SMALL, 0, True),
        (disk.SMALL + 1, 0, False),
        (100 * 10**7, 10**7, True),
        (100 * 10**7 + 1, 10**7, False),
        (2**70, None, False),
    ],
)
def test_a_claim_is_compared_with_what_is_held_and_with_memory(n_bytes, held, fits):
    if fits:
        disk.claim(n_bytes, "it", held=held, budget=2**40)
    else:
        with pytest.raises(disk.ClaimError, match=r"^it "):
            disk.claim(n_bytes, "it", held=held, budget=2**40)


def test_what_is_not_compressed_may_claim_its_bytes_only():
    disk.claim(10, "it", held=10, ratio=1)
    with refused(disk.ClaimError, 11, 10):
        disk.claim(11, "it", held=10, ratio=1)


def test_memory_is_bounded_by_the_process_own_limit():
    of_machine, (soft, hard) = disk.memory(), resource.getrlimit(resource.RLIMIT_AS)
    own = of_machine - of_machine // 8
    resource.setrlimit(resource.RLIMIT_AS, (own, hard))
    try:
        assert disk.memory() == own
        disk.claim(own // 2, "it")
        with refused(disk.ClaimError, "it", "memory"):
            disk.claim(own // 2 + 1, "it")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize("mark", [b"", MARK], ids=["plain", "marked"])
def test_text_is_read_with_and_without_its_mark(tmp_path, mark):
    path = tmp_path / "file"
    path.write_bytes(mark + "ä\r\nb".encode())
    assert disk.read_text(path, DataError) == "ä\r\nb"
    path.write_bytes(mark + b'{"a": [1]}')
    assert disk.read_json(path, DataError) == {"a": [1]}
    path.write_bytes(mark + b"a = 1")
    assert disk.read_toml(path, DataError) == {"a": 1}


TEXTS = {
    "latin 1": (b"a\nb\ncaf\xe9", r"line 3, is not UTF-8 \(byte 0xe9\)"),
    "utf 16": ("a\n".encode("utf-16"), "line 1, holds a NUL byte"),
    "nul": (b"a\nb\0c", "line 2, holds a NUL byte"),
    "surrogate": (b"\xed\xa0\x80", "is not UTF-8"),
}


@pytest.mark.parametrize("what", TEXTS)
@pytest.mark.parametrize("read", [disk.read_text, disk.read_json, disk.read_toml])
def test_what_is_no_text_is_refused_with_file_and_line(tmp_path, what, read):
    content, message = TEXTS[what]
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DataError, match=f"file, {message}" if "line" in message else message):
        read(tmp_path / "file", DataError)


def test_what_cannot_be_opened_says_why(tmp_path):
    with pytest.raises(InputError, match="none cannot be read: No such file"):
        disk.read_text(tmp_path / "none", InputError)
    with refused(InputError, "Is a directory"):
        disk.read_text(tmp_path, InputError)
    with refused(InputError, "embedded null byte"):
        disk.read_text("a\0b", InputError)
    (tmp_path / "file").touch()
    os.truncate(tmp_path / "file", disk.memory() // 8 + 1)  # it takes no room on the disk
    with refused(InputError, "file", "memory"):
        disk.read_text(tmp_path / "file", InputError)


DEEP = {
    "lists": "[" * 3000 + "]" * 3000,
    "lists without an end": "[" * 100_000,
    "objects": '{"a":' * 3000 + "1" + "}" * 3000,
    "65 levels": "[" * 66 + "]" * 66,
    "digits": "[" + "9" * 5000 + "]",
    "a name twice": '{"a": 1, "b": {"c": 1, "c": 2}}',
    "cut": '{"a": ',
}


@pytest.mark.parametrize("what", DEEP)
def test_json_beyond_reason_is_refused_in_a_line(tmp_path, what):
    path = tmp_path / "groups.json"
    path.write_text(DEEP[what])
    with refused(InputError, "groups.json", "JSON") as caught:
        disk.read_json(path, InputError)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000,
        "a = " + "[" * 100 + "]" * 100,
        ".".join(["a"] * 2000) + " = 1",
        "a = " + "9" * 5000,
        "a = {b = " * 3000,
        "= 1",
    ],
    ids=["open", "nested", "dotted", "digits", "tables", "no name"],
)
def test_toml_beyond_reason_is_refused_in_a_line(tmp_path, text):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with refused(InputError, "recipe.toml", "TOML") as caught:
        disk.read_toml(path, InputError)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["a\0b", "a\ud800", "\udfff"])
def test_names_that_hdf5_cannot_hold_are_refused(name):
    with pytest.raises(InputError, match=r"the name of a part .* holds NUL or half a surrogate pair"):
        disk.check_name(name, "the name of a part", InputError)
    disk.check_name("ä😀\n", "the name of a part", InputError)


# Writing ---------------------------------------------------------------------------------------------------------


def test_a_file_that_is_written_is_locked_until_it_has_its_name(tmp_path):
    seen = []

    def fill(file):
        file.write(b"half")
        file.flush()
        disk.clear_unfinished(tmp_path)
        seen.extend(p.name for p in tmp_path.iterdir())

    disk.write_aside(tmp_path / "out", fill)
    assert len(seen) == 1
    assert seen[0].startswith(disk.ASIDE)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_killed_processes_left_goes_at_the_next_writing(tmp_path):
    for name in (f"{disk.ASIDE}1.tmp", f"{disk.ASIDE}2.tmp", f"{disk.ASIDE}empty.tmp", "mine.tmp"):
        (tmp_path / name).write_bytes(b"" if "empty" in name else b"begun")
    with open(tmp_path / f"{disk.ASIDE}2.tmp", "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        disk.write_aside(tmp_path / "out", lambda file: file.write(b"whole"))
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == [f"{disk.ASIDE}2.tmp", f"{disk.ASIDE}empty.tmp", "mine.tmp", "out"]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, full_disk, call):
    path = tmp_path / "out"
    path.write_bytes(b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    room = nullcontext() if call == "write" else full_disk(call)
    with refused(StoreError, "No space left on device"), room, disk.writing(path):
        disk.write_aside(path, full if call == "write" else lambda file: file.write(b"new"))
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert path.read_bytes() == b"old"


def test_a_folder_that_cannot_be_synced_is_said_and_the_file_is_there(tmp_path, monkeypatch, caplog):
    real = os.fsync

    def full(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    path = tmp_path / "out"
    disk.write_aside(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert "out is written, but a power cut may undo it" in caplog.text
    assert "No space left on device" in caplog.text


def test_links_in_a_loop_are_said_in_a_line(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    wrong = refused(StoreError, "Too many levels of symbolic links")
    with wrong, disk.writing(tmp_path / "a"):
        disk.write_aside(tmp_path / "a", lambda file: file.write(b"new"))
    assert (tmp_path / "a").is_symlink()
