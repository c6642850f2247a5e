"""The loop: finished units are not computed again, whatever ended the run; ranks share units without overlap."""

import shutil
import signal
from pathlib import Path

import pytest
import torch.distributed as dist
from fresh import Program
from made import spectrum
from ranks import variables
from refusals import missing, refused

from landscape.autodiff import dealing, distributed
from landscape.errors import InputError, NumericalError, RankError, StoreError
from landscape.objective import jobs
from landscape.results.journal import Journal
from landscape.results.store import load

UNITS = ("b", "a", "c/d", "e")


class Compute:
    """Computes units and remembers which; fails at one of them."""

    def __init__(self, fail_at: str | None = None, error: type[BaseException] = NumericalError) -> None:
        self.asked: list[str] = []
        self.fail_at = fail_at
        self.error = error

    def __call__(self, unit, report):
        self.asked.append(unit)
        if unit == self.fail_at:
            raise self.error(f"{unit} has no loss")
        return spectrum(unit)


def test_all_units_are_joined_in_their_order(tmp_path):
    with Journal.open(tmp_path / "out.h5", {}) as journal:
        joined = jobs.run(UNITS, Compute(), journal)
    assert joined.parts == UNITS
    assert joined.alpha.tobytes() == jobs.run(UNITS, Compute()).alpha.tobytes()


def test_finished_units_are_not_computed_again(tmp_path):
    with Journal.open(tmp_path / "out.h5", {}) as journal:
        journal.write("a", spectrum("a", seed=7))
        compute = Compute()
        joined = jobs.run(UNITS, compute, journal)
    assert compute.asked == ["b", "c/d", "e"]
    assert joined.parts == UNITS
    assert joined.alpha[1].tobytes() == spectrum("a", seed=7).alpha[0].tobytes()


def test_progress_counts_units_that_were_finished_before(tmp_path):
    told = []
    with Journal.open(tmp_path / "out.h5", {}) as journal:
        journal.write("a", spectrum("a"))
        jobs.run(UNITS, Compute(), journal, lambda *step: told.append(step))
    assert told == [(1, 4, "b"), (2, 4, "c/d"), (3, 4, "e"), (4, 4, "")]


def test_progress_without_a_journal_counts_from_zero():
    told = []
    jobs.run(("a", "b"), Compute(), progress=lambda *step: told.append(step))
    assert told == [(0, 2, "a"), (1, 2, "b"), (2, 2, "")]


def test_an_error_in_a_unit_leaves_those_before_it_safe(tmp_path):
    with (
        Journal.open(tmp_path / "out.h5", {}) as journal,
        refused(NumericalError, "c/d"),
    ):
        jobs.run(UNITS, Compute(fail_at="c/d"), journal)
    with Journal.open(tmp_path / "out.h5", {}) as journal:
        assert journal.done() == {"b", "a"}


def test_an_interrupt_says_what_is_kept_and_how_to_go_on(tmp_path):
    with Journal.open(tmp_path / "out.h5", {}) as journal:
        journal.write("e", spectrum("e"))
        with pytest.raises(jobs.Interrupted) as caught:
            jobs.run(UNITS, Compute("a", KeyboardInterrupt), journal)
    expected = "2 of 4 units are finished; repeat the command, without overwrite=True, to go on from there"
    assert str(caught.value) == f"interrupted: {expected}"


def test_an_interrupt_with_nothing_finished_promises_nothing(tmp_path):
    with Journal.open(tmp_path / "out.h5", {}) as journal, pytest.raises(jobs.Interrupted) as caught:
        jobs.run(UNITS, Compute("b", KeyboardInterrupt), journal)
    assert str(caught.value) == "interrupted: 0 of 4 units are finished; nothing is kept"
    with pytest.raises(jobs.Interrupted) as caught:
        jobs.run(UNITS, Compute("a", KeyboardInterrupt))
    assert str(caught.value) == "interrupted: 1 of 4 units were finished; nothing is kept"


def test_an_interrupt_says_that_earlier_pieces_are_kept(tmp_path):
    with Journal.open(tmp_path / "out.h5", {}) as journal:
        jobs.run(UNITS, Compute(), journal.within("first"))
        with refused(jobs.Interrupted, 0, 4, overwrite=True):
            jobs.run(UNITS, Compute("b", KeyboardInterrupt), journal.within("second"))


@pytest.mark.parametrize(("units", "found"), [((), "none"), (("a", "b", "a"), "'a', 'b', 'a'")])
def test_units_must_differ(units, found):
    with refused(InputError, found):
        jobs.run(units, Compute())


def test_alone_there_is_one_rank_and_it_draws_everything(tmp_path):
    distributed.start()
    distributed.barrier()
    assert (distributed.rank(), distributed.world(), distributed.is_main()) == (0, 1, True)
    assert list(dealing.deal(3, tmp_path)) == [0, 1, 2]
    distributed.stop()


# Other processes. Each runs this command: four units, "out" as its folder; what it computes goes into a log.

COMMAND = """
import os, signal, sys, time
from landscape.autodiff import distributed
from landscape.objective import jobs
from made import spectrum

folder, ending = sys.argv[1:]

def compute(unit, report):
    with open(f"{folder}/log", "a") as log:
        log.write(f"{distributed.rank()} {unit}\\n")
    if unit == "c/d" and ending == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if unit == "c/d" and ending == "wait":
        print("waiting", flush=True)
        time.sleep(60)
    if unit == "b" and (ending == "starve" or (ending == "scarce" and not os.path.exists(f"{folder}/failed"))):
        open(f"{folder}/failed", "w").close()
        raise MemoryError("no memory for b")
    if ending == "leave":  # the main rank is interrupted at its first unit, the other finishes its own after that
        print("waiting", flush=True)
        time.sleep(60 if distributed.is_main() else 0)
        while not os.path.exists(f"{folder}/left"):
            time.sleep(0.01)
    if unit == "b" and ending == "share":  # the rank that draws the first unit does so until the others are done
        while sum(1 for _ in open(f"{folder}/log")) < 4:
            time.sleep(0.01)
    return spectrum(unit)

def merge_late(journal, units):
    time.sleep(0.3)
    return merge(journal, units)

distributed.start()
some = {"costs": [1] * 4, "too_large": lambda units: jobs.Large(["a"], {"b": [1], "e": [0]})}
if not distributed.is_main():  # the owner must not remove the journal before the others have read it
    merge, jobs.Journal.merge = jobs.Journal.merge, merge_late
with jobs.open_journal(f"{folder}/out.h5", {"steps": 3}) as journal:
    try:
        result = jobs.run(["b", "a", "c/d", "e"], compute, journal, **some if ending == "some" else {})
    except KeyboardInterrupt as error:
        sys.exit(str(error))
    journal.finish(result)
print(",".join(result.parts))
distributed.stop()
"""


def assert_goes_on_with_the_third_unit(folder: Path) -> None:
    compute = Compute()
    with jobs.open_journal(folder / "out.h5", {"steps": 3}) as journal:
        journal.finish(jobs.run(UNITS, compute, journal))
    assert compute.asked == ["c/d", "e"]
    assert load(folder / "out.h5").parts == UNITS
    assert not (folder / "out.h5.partial").exists()


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    code, _, _ = Program(COMMAND, tmp_path, "kill").ended()
    assert code == -signal.SIGKILL
    assert_goes_on_with_the_third_unit(tmp_path)


def test_ctrl_c_keeps_what_is_finished(tmp_path):
    process = Program(COMMAND, tmp_path, "wait")
    assert process.said("waiting"), process.errors
    process.send(signal.SIGINT)
    code, _, errors = process.ended()
    expected = "2 of 4 units are finished; repeat the command, without overwrite=True, to go on from there"
    assert (code, errors) == (1, f"interrupted: {expected}")
    assert_goes_on_with_the_third_unit(tmp_path)


def ranks(folder: Path, ending: str) -> list[tuple[int, str, str]]:
    processes = [Program(COMMAND, folder, ending, env=own) for own in variables()]
    return [process.ended() for process in processes]


def test_two_ranks_compute_each_unit_once_and_the_free_one_takes_more(tmp_path):
    for code, output, errors in ranks(tmp_path, "share"):
        assert (code, output) == (0, "b,a,c/d,e"), errors
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(unit for _, unit in lines) == sorted(UNITS)
    (slow,) = [rank for rank, unit in lines if unit == "b"]
    assert [unit for rank, unit in lines if rank == slow] == ["b"]
    assert load(tmp_path / "out.h5").parts == UNITS
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log", "out.h5"]


def test_units_that_only_some_ranks_have_the_memory_for_are_dealt_to_these(tmp_path):
    for code, output, errors in ranks(tmp_path, "some"):
        assert (code, output) == (0, "b,a,c/d,e"), errors
    lines = (tmp_path / "log").read_text().splitlines()
    assert [sorted(line for line in lines if line[2:] == unit) for unit in "bae"] == [["1 b"], ["0 a", "1 a"], ["0 e"]]
    assert len(lines) == 6  # a single unit that any can compute is shared


def test_a_unit_for_which_a_rank_has_no_memory_is_computed_by_another(tmp_path):
    for code, output, errors in ranks(tmp_path, "scarce"):
        assert (code, output) == (0, "b,a,c/d,e"), errors
    lines = (tmp_path / "log").read_text().splitlines()
    assert sorted(line for line in lines if line[2:] == "b") == ["0 b", "1 b"]
    assert len(lines) == 5
    assert load(tmp_path / "out.h5").parts == UNITS


def test_a_unit_for_which_no_rank_has_memory_ends_all_and_the_others_are_kept(tmp_path):
    said = ranks(tmp_path, "starve")
    assert [code for code, _, _ in said] == [1, 1]
    assert sorted(errors.splitlines()[-1].partition(":")[0] for _, _, errors in said) == [
        "MemoryError",
        f"{RankError.__module__}.{RankError.__name__}",
    ]
    compute = Compute()
    with jobs.open_journal(tmp_path / "out.h5", {"steps": 3}) as journal:
        journal.finish(jobs.run(UNITS, compute, journal))
    assert compute.asked == ["b"]


def test_an_interrupted_main_rank_leaves_the_folder_to_the_others(tmp_path):
    main, other = (Program(COMMAND, tmp_path, "leave", env=own) for own in variables())
    assert main.said("waiting"), main.errors
    assert other.said("waiting"), other.errors
    main.send(signal.SIGINT)
    code, _, errors = main.ended()
    assert code == 1
    assert not missing(errors, "interrupted", 0, 4, "overwrite=True")
    (tmp_path / "left").touch()
    code, _, errors = other.ended()
    assert code == 1
    assert RankError.__name__ in errors.splitlines()[-1]
    finished = [line[2:] for line in (tmp_path / "log").read_text().splitlines() if line[0] == "1"]
    compute = Compute()
    with jobs.open_journal(tmp_path / "out.h5", {"steps": 3}) as journal:
        journal.finish(jobs.run(UNITS, compute, journal))
    assert finished
    assert compute.asked == [unit for unit in UNITS if unit not in finished]
    assert not (tmp_path / "out.h5.partial").exists()


def test_a_rank_whose_folder_the_main_one_has_removed_has_lost_that_rank(tmp_path, monkeypatch):
    with Journal.open(tmp_path / "out.h5", {}) as journal:

        def compute(unit, report):
            monkeypatch.setattr(distributed, "world", lambda: 2)
            shutil.rmtree(journal.folder)
            return spectrum(unit)

        with refused(RankError):
            jobs.run(UNITS, compute, journal)
        monkeypatch.undo()


def test_all_ranks_end_when_the_main_one_cannot_open_the_journal(tmp_path):
    (tmp_path / "out.h5").touch()
    for code, _, errors in ranks(tmp_path, "share"):
        assert code == 1
        assert StoreError.__name__ in errors.splitlines()[-1], errors
    assert not (tmp_path / "log").exists()


DEALT = """
import sys
from pathlib import Path
from landscape.autodiff import dealing, distributed
from landscape.errors import InputError
from landscape.objective import jobs

distributed.start()
print("drawn", *dealing.deal(4, Path(sys.argv[1])))  # a slow rank may draw nothing
try:
    jobs.run(["a", "b"], lambda unit, report: None)
except InputError as error:
    print(error)
distributed.stop()
"""


def test_the_count_of_a_killed_run_does_not_leave_units_out_and_ranks_need_a_journal(tmp_path):
    counter = tmp_path / ".landscape-next"
    killed = dist.FileStore(str(counter), 2)
    killed.add("next", 3)
    assert counter.stat().st_size > 0
    processes = [Program(DEALT, tmp_path, env=own) for own in variables()]
    said = [process.ended() for process in processes]
    assert [code for code, _, _ in said] == [0, 0], said
    drawn, refusals = zip(*(output.split("\n") for _, output, _ in said), strict=True)
    assert sorted(" ".join(drawn).split()) == ["0", "1", "2", "3", "drawn", "drawn"]
    for line in refusals:
        with refused(InputError, "journal", "out", 2):
            raise InputError(line)
