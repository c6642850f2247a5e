"""The journal: it knows what is finished, and OUT is the old result, the new one or not there."""

import os

import numpy as np
import pytest
from made import spectrum
from refusals import refused
from stored import assert_same, one_line, run_python

from landscape.errors import StoreError
from landscape.results.journal import Journal
from landscape.results.store import load, save, write_result

FINGERPRINT = {"steps": 100, "negative_tol": 1e-5, "sha256 of the checkpoint": "ab12"}


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("none/out.h5", "No such file or directory"),
        ("file/out.h5", "Not a directory"),
        ("o" * 300, "File name too long"),
    ],
)
def test_a_place_that_cannot_be_written_is_said_before_anything_is_computed(tmp_path, name, cause):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError) as caught:
        Journal.open(tmp_path / name, FINGERPRINT)
    remedy = "check its folder, or choose another file"
    assert one_line(caught) == f"{tmp_path / name} cannot be written: {cause}; {remedy}"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_said_before_anything_is_computed(tmp_path):
    tmp_path.chmod(0o500)
    with refused(StoreError, "Permission denied"):
        Journal.open(tmp_path / "out.h5", FINGERPRINT)
    tmp_path.chmod(0o700)


@pytest.mark.parametrize("name", ["out.h5", "."])
def test_a_folder_is_no_place_for_a_result(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out.h5").mkdir()
    with pytest.raises(StoreError) as caught:
        Journal.open(name, FINGERPRINT, overwrite=True)
    file = os.path.join("" if name == "." else name, "result.h5")
    assert one_line(caught) == f"{name} is a folder, not a result file: name one, as in out='{file}'"
    assert [p.name for p in tmp_path.rglob("*")] == ["out.h5"]


def test_what_is_neither_file_nor_folder_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "out.h5")
    with refused(StoreError, "out.h5"):
        Journal.open(tmp_path / "out.h5", FINGERPRINT, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out.h5"]


def test_a_link_is_followed(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link.h5").symlink_to(tmp_path / "far" / "out.h5")
    with Journal.open(tmp_path / "link.h5", FINGERPRINT) as journal:
        assert journal.folder == tmp_path / "far" / "out.h5.partial"
        journal.finish(spectrum("a"))
    assert (tmp_path / "link.h5").is_symlink()
    assert load(tmp_path / "far" / "out.h5").parts == ("a",)


def test_a_journal_begun_with_the_same_options_goes_on(tmp_path):
    with Journal.open(tmp_path / "out.h5", FINGERPRINT) as journal:
        journal.write("a", spectrum("a"))
    (tmp_path / "out.h5.partial" / ".landscape-0.tmp").touch()  # a unit that was being written when a kill came
    with Journal.open(tmp_path / "out.h5", FINGERPRINT | {"steps": np.int64(100)}) as journal:
        assert list(journal.folder.glob(".landscape-*")) == []
        assert journal.done() == {"a"}
        assert_same(journal.read("a"), spectrum("a"))


@pytest.mark.parametrize(
    ("now", "difference"),
    [
        (FINGERPRINT | {"steps": 80}, "with steps=100, now with steps=80"),
        (FINGERPRINT | {"negative_tol": 0.1}, "with negative_tol=1e-05, now with negative_tol=0.1"),
        (FINGERPRINT | {"probes": 4}, "without probes, now with probes=4"),
        ({"negative_tol": 1e-5}, "with steps=100, now without steps"),
        (
            FINGERPRINT | {"sha256 of the checkpoint": "cd"},
            "with sha256 of the checkpoint ab12, now with sha256 of the checkpoint cd",
        ),
    ],
)
def test_a_journal_begun_with_other_options_quotes_the_first_that_differs(tmp_path, now, difference):
    with Journal.open(tmp_path / "out.h5", FINGERPRINT) as journal:
        journal.write("a", spectrum("a"))
    with pytest.raises(StoreError) as caught:
        Journal.open(tmp_path / "out.h5", now)
    remedy = "repeat that, or pass overwrite=True, or choose another file"
    assert one_line(caught) == f"{tmp_path}/out.h5.partial was begun {difference}: {remedy}"
    with Journal.open(tmp_path / "out.h5", FINGERPRINT) as journal:
        assert journal.done() == {"a"}  # the refusal has let go of the folder and removed nothing


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (np.linspace(-1, 1, 41).tolist(), "x=np.linspace(-1, 1, 41)"),
        (np.linspace(-0.3, 1, 16).tolist(), "x=np.linspace(-0.3, 1, 16)"),
        ([-1.0, 0.0, 0.5], "x=[-1.0, 0.0, 0.5]"),
        ([0.1, float("inf"), float("nan")], "x=[0.1, inf, nan]"),
        ([1 / 3] * 9, "x=[0.3333333333333333, 0.3333333333333333, 0.3333333333333333 ..."),
    ],
)
def test_a_grid_that_differs_is_quoted_shortly_and_never_cut_within_a_number(tmp_path, x, text):
    with Journal.open(tmp_path / "out.h5", {"x": [0.0, 1.0]}) as journal:
        journal.write("a", spectrum("a"))
    with pytest.raises(StoreError) as caught:
        Journal.open(tmp_path / "out.h5", {"x": x})
    assert f"was begun with x=[0.0, 1.0], now with {text}: repeat" in one_line(caught)


def test_an_interrupt_between_units_says_how_to_go_on_if_anything_is_kept(tmp_path):
    with pytest.raises(KeyboardInterrupt, match=r"^$"), Journal.open(tmp_path / "out.h5", FINGERPRINT):
        raise KeyboardInterrupt
    with refused(KeyboardInterrupt, overwrite=True), Journal.open(tmp_path / "out.h5", FINGERPRINT) as journal:
        journal.write("a", spectrum("a"))
        raise KeyboardInterrupt
    with refused(KeyboardInterrupt, "mine"), Journal.open(tmp_path / "out.h5", FINGERPRINT):
        raise KeyboardInterrupt("mine")


def test_the_number_that_was_stored_for_an_option_that_was_left_out_is_equal_to_none(tmp_path):
    with Journal.open(tmp_path / "out.h5", {"top": 10}) as journal:
        journal.write("a", spectrum("a"))
    with Journal.open(tmp_path / "out.h5", {"top": None}) as journal:
        assert journal.done() == {"a"}
    for other in (3, 11):
        with pytest.raises(StoreError):
            Journal.open(tmp_path / "out.h5", {"top": other})


def test_nan_in_a_fingerprint_is_equal_to_itself(tmp_path):
    with Journal.open(tmp_path / "out.h5", {"tol": np.nan}) as journal:
        journal.write("a", spectrum("a"))
    with Journal.open(tmp_path / "out.h5", {"tol": np.nan}) as journal:
        assert journal.done() == {"a"}


def test_overwrite_begins_anew_and_keeps_the_old_result_until_the_new_is_complete(tmp_path):
    out = tmp_path / "out.h5"
    with Journal.open(out, FINGERPRINT) as journal:
        journal.write("a", spectrum("a"))
    save(out, spectrum("old"))
    with Journal.open(out, {"steps": 80}, overwrite=True) as journal:
        assert journal.done() == set()
        journal.write("a", spectrum("new"))
        assert load(out).parts == ("old",)
        journal.finish(journal.merge(["a"]))
    assert load(out).parts == ("new",)


def test_an_interrupted_overwrite_goes_on_without_overwrite(tmp_path):
    out = tmp_path / "out.h5"
    save(out, spectrum("old"))
    with Journal.open(out, FINGERPRINT, overwrite=True) as journal:
        journal.write("a", spectrum("a"))
    with Journal.open(out, FINGERPRINT) as journal:
        assert journal.done() == {"a"}
        journal.finish(journal.merge(["a"]))
    assert load(out).parts == ("a",)


def test_an_existing_result_is_refused_before_anything_is_computed(tmp_path):
    save(tmp_path / "out.h5", spectrum("old"))
    with refused(StoreError, "out.h5", overwrite=True):
        Journal.open(tmp_path / "out.h5", FINGERPRINT)
    assert [p.name for p in tmp_path.iterdir()] == ["out.h5"]


def test_a_second_process_is_told_who_holds_the_journal(tmp_path):
    with Journal.open(tmp_path / "out.h5", FINGERPRINT):
        found = run_python(OPEN, tmp_path / "out.h5")
    assert f"out.h5.partial is in use by process {os.getpid()} on " in found.stdout
    assert run_python(OPEN, tmp_path / "out.h5").stdout.strip() == "opened"


OPEN = """
import sys
from landscape.errors import StoreError
from landscape.results.journal import Journal
try:
    with Journal.open(sys.argv[1], {}):
        print("opened")
except StoreError as error:
    print(error)
"""


def test_other_ranks_join_the_owner_and_write_beside_it(tmp_path):
    out = tmp_path / "out.h5"
    with pytest.raises(StoreError, match="was not begun by the first process: do all processes share the folder"):
        Journal.open(out, FINGERPRINT, owner=False)
    with Journal.open(out, FINGERPRINT) as owner:
        with Journal.open(out, FINGERPRINT, owner=False) as other:
            other.write("b", spectrum("b"))
            other.finish(spectrum("b"))
        assert not out.exists()
        assert owner.done() == {"b"}
        with refused(StoreError, 80, steps=100):
            Journal.open(out, FINGERPRINT | {"steps": 80}, owner=False)


def test_any_name_of_a_unit_is_safe(tmp_path):
    units = ["a/b", "../../etc", "A/B", "", "日" * 300, "a\0b", "\udcff", "*"]
    with Journal.open(tmp_path / "out.h5", FINGERPRINT) as journal:
        for i, unit in enumerate(units):
            journal.write(unit, spectrum(str(i)))
        assert journal.done() == set(units)
        assert journal.merge(units[::-1]).parts == tuple("76543210")
        assert {p.parent for p in tmp_path.rglob("*.h5")} == {journal.folder}


def test_a_damaged_unit_counts_as_not_done(tmp_path):
    with Journal.open(tmp_path / "out.h5", FINGERPRINT) as journal:
        for unit in "abc":
            journal.write(unit, spectrum(unit))
        damaged, empty = sorted(journal.folder.glob("unit-*.h5"))[:2]
        damaged.write_bytes(damaged.read_bytes()[:-1])
        empty.write_bytes(b"")
        (left,) = journal.done()
        for unit in {"a", "b", "c"} - {left}:
            journal.write(unit, spectrum(unit))
        assert journal.done() == {"a", "b", "c"}
        write_result(journal.folder / "unit-0.h5", spectrum("d"), unit=["d"])  # a list is no name of a unit
        assert journal.done() == {"a", "b", "c"}


def test_an_unfinished_unit_cannot_be_merged(tmp_path):
    with Journal.open(tmp_path / "out.h5", FINGERPRINT) as journal:
        journal.write("a", spectrum("a"))
        with refused(StoreError, "b"):
            journal.merge(["a", "b"])


def test_finish_leaves_the_result_alone(tmp_path):
    (tmp_path / "out.h5.partial").mkdir()
    (tmp_path / "out.h5.partial" / ".landscape-0.tmp").touch()  # of a run that was killed
    with Journal.open(tmp_path / "out.h5", FINGERPRINT) as journal:
        journal.write("a", spectrum("a"))
        journal.write("b", spectrum("b"))
        journal.finish(journal.merge(["b", "a"]))
    assert [p.name for p in tmp_path.iterdir()] == ["out.h5"]
    assert load(tmp_path / "out.h5").parts == ("b", "a")


def test_finish_that_fails_keeps_the_journal(tmp_path, full_disk):
    with Journal.open(tmp_path / "out.h5", FINGERPRINT) as journal:
        journal.write("a", spectrum("a"))
        with refused(StoreError, "No space left on device"), full_disk():
            journal.finish(spectrum("a"))
    assert not (tmp_path / "out.h5").exists()
    with Journal.open(tmp_path / "out.h5", FINGERPRINT) as journal:
        assert journal.done() == {"a"}


def test_a_result_that_appears_during_the_run_is_not_replaced(tmp_path):
    with Journal.open(tmp_path / "out.h5", FINGERPRINT) as journal:
        journal.write("a", spectrum("a"))
        save(tmp_path / "out.h5", spectrum("other"))
        with pytest.raises(StoreError, match="appeared during the run: move it away and repeat the command"):
            journal.finish(spectrum("a"))
        assert journal.done() == {"a"}
    assert load(tmp_path / "out.h5").parts == ("other",)


def test_a_journal_without_a_finished_unit_leaves_nothing(tmp_path):
    with Journal.open(tmp_path / "out.h5", FINGERPRINT):
        pass
    assert list(tmp_path.iterdir()) == []


def test_files_of_others_in_the_folder_are_left_alone(tmp_path):
    (tmp_path / "out.h5.partial").mkdir()
    (tmp_path / "out.h5.partial" / "notes.txt").touch()
    with Journal.open(tmp_path / "out.h5", FINGERPRINT, overwrite=True) as journal:
        journal.finish(spectrum("a"))
    assert [p.name for p in (tmp_path / "out.h5.partial").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("damage", ["{", "[]", "[" * 3000, None])
def test_units_whose_options_are_unknown_are_neither_used_nor_removed(tmp_path, damage):
    with Journal.open(tmp_path / "out.h5", FINGERPRINT) as journal:
        journal.write("a", spectrum("a"))
    run = tmp_path / "out.h5.partial" / "run.json"
    run.unlink() if damage is None else run.write_text(damage)
    with refused(StoreError, "run.json", overwrite=True):
        Journal.open(tmp_path / "out.h5", FINGERPRINT)
    assert len(list((tmp_path / "out.h5.partial").glob("unit-*.h5"))) == 1


def test_a_fingerprint_that_json_cannot_hold_is_refused(tmp_path):
    with refused(StoreError, "JSON"):
        Journal.open(tmp_path / "out.h5", {"model": object()})
