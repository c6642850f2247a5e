"""Several processes that share the samples of a part: the numbers of one process, and an end where one is lost."""

import dataclasses
import json

import numpy as np
import pytest
import ranks
import torch
from refusals import missing

import landscape as ls
from landscape.autodiff import distributed
from landscape.objective import jobs
from landscape.results.features import WITH_ERRORS
from tests import together

NAMES = (
    "hessian",
    "divided",
    "divided-ends",
    "divided-eigen",
    "not-kept",
    "rare",
    "rows",
    "features",
    "gradients",
    "sharpness",
    "plane",
    "trajectory",
    "distances",
    "tuned",
    "sensitivity",
    "series",
    "monitor",
    "gradients-of-one",
    "sharpness-of-one",
    "features-of-three",
    "surface",
    "classes",
    "accuracy",
    "drawn",
)
LOST = ("killed", "hung", "killed-dealt", "hung-dealt", "killed-first")
SCARCE = tuple(
    f"scarce-{name}" for name in ("hessian", "rows", "gradients", "features", "sharpness", "surface", "products")
)
WAYS = ("traced", "exact-trace", "sampled-trace", "empirical", "sum", "batches", "uneven")
DRAWN = ("drawn-surface", "drawn-gradients", "drawn-features", "drawn-sharpness")
OTHERWISE = ("divided-classes", "divided-sums", "only-some", "only-some-of-one", "tails", "seen")
LARGER = (*OTHERWISE, *WAYS, *SCARCE, *DRAWN, "features-errors", "gradients-in-blocks")  # by one and by two processes


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders with results of one process, of two and of four, and with what is left of runs that lose one."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("alone", "all", "few", *LOST, "absent")}
    worlds = {"all": 2, "few": 4} | dict.fromkeys(LOST, 2)
    started = {name: ranks.started(together.work, n, folders[name], name) for name, n in worlds.items()}
    started["absent"] = ranks.started(together.work, 2, folders["absent"], "absent", only=1)
    together.results(folders["alone"])
    for name, processes in started.items():
        processes = processes[::-1] if name == "killed-first" else processes
        processes[0].join(200)
        assert processes[0].exitcode == 0, f"{name}: the first process has not come to its end"
        for process in processes[1:]:
            process.join(1 if name.startswith("hung") else 60)
            process.kill()
            process.join()
    return folders


def said(folder, rank=0):
    """What a process said at its end."""
    return (folder / f"said-{rank}").read_text().splitlines()


@pytest.mark.slow
@pytest.mark.parametrize(("world", "name"), [*(("all", n) for n in (*NAMES, *LARGER)), *(("few", n) for n in NAMES)])
def test_several_processes_give_the_numbers_of_one(runs, world, name):
    assert said(runs[world]) == ["done"]
    ours, theirs = (ls.load(runs[which] / f"{name}.h5") for which in (world, "alone"))
    # Rounding of float64 times some thousand, of sums over few samples; a run's coefficients have its matrix's size.
    alpha = getattr(ours, "alpha", None)
    scale = 1.0 if alpha is None or not alpha.size else np.nanmax(np.abs(alpha))
    for item in dataclasses.fields(ours):
        a, b = getattr(ours, item.name), getattr(theirs, item.name)
        if isinstance(a, np.ndarray) and a.dtype.kind == "f":
            size = max(scale, np.nanmax(np.abs(a), initial=0, where=np.isfinite(a)))
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * size, err_msg=item.name)
        elif item.name != "provenance":
            np.testing.assert_array_equal(a, b, err_msg=item.name)


@pytest.mark.slow
@pytest.mark.parametrize(("world", "size"), [("alone", 1), ("all", 2), ("few", 4)])
def test_a_basis_that_no_process_has_room_for_is_divided(runs, world, size):
    expected = f"divided among {size} processes" if size > 1 else None
    others = ("divided-classes", "divided-sums") if world != "few" else ()  # parts of classes would be dealt
    for name in ("divided", "divided-ends", *others):
        assert ls.load(runs[world] / f"{name}.h5").provenance.get("basis") == expected


@pytest.mark.slow
@pytest.mark.parametrize("world", ["alone", "all", "few"])
def test_a_basis_that_all_processes_together_have_no_room_for_is_not_kept(runs, world):
    assert ls.load(runs[world] / "not-kept.h5").provenance["basis"].startswith("not kept")


@pytest.mark.slow
def test_features_have_the_same_errors_if_each_process_has_room_for_its_own_samples_only(runs):
    alone, apart = ls.load(runs["alone"] / "features-errors.h5"), ls.load(runs["all"] / "features-apart.h5")
    assert ls.load(runs["alone"] / "features-apart.h5").quality_stderr is None  # so they were not all kept
    assert (alone.quality_stderr > 0).all()
    for name in WITH_ERRORS:
        ours, theirs = (getattr(found, f"{name}_stderr") for found in (apart, alone))
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.slow
def test_draws_are_some_of_the_samples_in_each_process(runs):
    """Or the numbers above would be those of all."""
    for world in ("all", "few"):
        assert ls.load(runs[world] / "drawn.h5").n_used.tolist() == [30, 30]
        pilots = ls.load(runs[world] / "accuracy.h5").n_used
        assert pilots[0] < 0.7 * 400
        assert pilots[1] == 40


@pytest.mark.slow
@pytest.mark.parametrize("name", SCARCE)
def test_where_one_process_runs_out_of_memory_all_begin_the_part_again_with_fewer_samples(runs, name):
    used = [ls.load(runs[world] / f"{name}.h5").provenance["batch_size"] for world in ("alone", "all")]
    assert used == [8, 2]


@pytest.mark.slow
@pytest.mark.parametrize("ending", LOST)
def test_a_lost_process_ends_the_others_in_one_line_and_leaves_what_is_finished(runs, ending):
    folder, last = runs[ending], said(runs[ending], rank=int(ending == "killed-first"))[-1]
    assert last.startswith("RankError: another process of this run has ended, or does not answer; its own message")
    assert "What is finished is kept: repeat the command to go on from there" in last
    kept = json.loads((folder / f"{ending}.h5.partial" / "run.json").read_text())["fingerprint"]
    with jobs.open_journal(folder / f"{ending}.h5", kept) as journal:
        done = journal.done()
    assert done < {"0", "1", "2"}
    assert len(done) == 2 if ending.endswith("dealt") else "0" in done  # the others' pieces, or those before


@pytest.mark.slow
def test_a_slow_process_is_waited_for(runs):
    assert ls.load(runs["killed"] / "slow.h5").parts == ("0", "1", "2")


@pytest.mark.slow
def test_processes_that_would_compute_different_numbers_are_refused_on_all(runs):
    data, steps, *_ = said(runs["killed"])
    assert data.startswith("the processes do not compute the same: data_sha256 is ")
    assert steps == (
        "the processes do not compute the same: steps is 7 in process 0 and 8 in process 1; start all with the same "
        "command on the same files"
    )


@pytest.mark.slow
def test_a_process_that_never_starts_is_given_up(runs):
    assert said(runs["absent"])[-1].startswith("RankError: another process of this run has ended, or does not answer")


@pytest.mark.slow
def test_a_processs_own_fault_is_not_said_to_be_anothers_and_other_steps_than_the_others_are_refused(runs):
    fault, step, _ = said(runs["killed"])[2:]
    assert fault.startswith("RuntimeError: Invalid scalar type")
    assert step.startswith("RankError: the processes do not take the same step: this one is at 'total' with 2 numbers")


@pytest.mark.slow
def test_where_one_process_runs_out_of_memory_within_an_attempt_all_begin_again_or_all_end(runs):
    first, last = ((runs["killed"] / f"starved-{rank}").read_text().splitlines() for rank in range(2))
    assert first[0] == last[0] == "2 samples"
    assert first[1].startswith("RankError: another process of this run has no memory for the fewest samples that can")
    assert last[1].startswith("OutOfMemoryError: none beside 1 samples")
    assert first[2] == last[2]
    assert first[2].startswith("InputError: ")
    assert "memory_bytes" in first[2]
    assert first[3] == last[3]
    assert first[3].startswith("InputError: ")
    assert not missing(first[3], "9", "process 1", "memory_bytes")


# The rule by which parts are shared or dealt -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("costs", "ranks", "expected"),
    [
        ([5], 1, 0),  # alone there is nobody to share with
        ([5], 2, 1),  # one part
        ([5, 5], 2, 0),  # as many as ranks
        ([5, 5, 5], 2, 1),  # 5 / 1.6 + 5 is less than 10, and less than 15 / 1.6
        ([100, 1, 1, 1, 1], 4, 1),  # 100 / 3.2 + 1
        ([4] * 40, 4, 0),
        ([], 4, 0),
    ],
)
def test_the_largest_parts_are_shared_where_all_are_done_sooner(costs, ranks, expected):
    assert jobs.n_shared(costs, ranks) == expected


def test_parts_that_need_the_memory_of_all_are_shared_first():
    costs = {"a": 5, "b": 9, "c": 9, "d": 5}
    assert jobs.shared_first(costs, jobs.Large(), 2) == (["b", "c", "a", "d"], 0)  # 14, less than 9 / 1.6 + 10
    assert jobs.shared_first(costs, jobs.Large(["c"]), 2) == (["c", "b", "a", "d"], 1)
    assert jobs.shared_first(costs, jobs.Large(["d"]), 2) == (["d", "b", "c", "a"], 1)
    assert jobs.shared_first(costs, jobs.Large(list(costs)), 2)[1] == 4
    assert jobs.shared_first({"a": 5}, jobs.Large(["a"]), 2) == (["a"], 1)


def test_parts_that_only_some_processes_have_the_memory_for_are_not_shared():
    costs = {"a": 5, "b": 9, "c": 9, "d": 5}
    assert jobs.shared_first(costs, jobs.Large(["d"], {"b": [0]}), 2) == (["d", "c", "a", "b"], 3)
    assert jobs.shared_first({"a": 5}, jobs.Large(of_some={"a": [1]}), 2) == (["a"], 0)


def test_shares_are_all_and_differ_by_one_at_most():
    for n in (0, 1, 3, 4, 17):
        own = [range(n)[distributed.Team(rank, 4).share(n)] for rank in range(4)]
        assert [i for some in own for i in some] == list(range(n))
        assert max(map(len, own)) == distributed.Team(0, 4).largest(n)
        assert max(map(len, own)) - min(map(len, own)) <= 1


def test_a_decision_is_the_first_processs(monkeypatch):
    def broadcast(tensor, source, group):
        assert (source, group) == (0, "the team's")
        tensor[:] = 1

    def all_reduce(tensor, group):
        """Add what the first process brings: the same step, and ones where it has few numbers."""
        tensor[1:3] *= 2
        tensor[3:] += 1

    monkeypatch.setattr(distributed, "group", lambda: "the team's")
    monkeypatch.setattr(distributed.dist, "all_reduce", all_reduce)
    monkeypatch.setattr(distributed.dist, "broadcast", broadcast)
    for n in (2, 200):
        own = np.arange(n)
        assert distributed.Team(1, 2).agreed(own).tolist() == [1] * n
        assert own.tolist() == list(range(n))


def test_alone_a_team_changes_nothing():
    t = torch.arange(3.0)
    with distributed.together():
        team = distributed.team()
        assert team == distributed.ALONE
        assert team.total(t) is t
        assert team.gathered(t) is t
        assert team.total_of(2.0) == 2
