"""The number of threads: as asked, as the environment says, or the fastest by a clock that the tests hold."""

import pytest
import torch

from landscape.autodiff import threads


@pytest.fixture(autouse=True)
def _given_back(monkeypatch):
    before = torch.get_num_threads()
    for name in threads.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    yield
    torch.set_num_threads(before)


class Machine:
    """A clock, and work that takes as many seconds as a table says for the number of threads in force."""

    def __init__(self, seconds):
        self.seconds, self.now, self.tried = seconds, 0.0, []

    def work(self):
        self.tried.append(torch.get_num_threads())
        self.now += self.seconds[torch.get_num_threads()]

    def clock(self):
        return self.now


@pytest.mark.parametrize(
    ("seconds", "most", "expected", "tried"),
    [
        ({1: 8, 2: 4, 4: 2, 8: 1}, 8, 8, {1, 2, 4, 8}),
        ({1: 8, 2: 4, 3: 3}, 3, 3, {1, 2, 3}),
        ({1: 1, 2: 30}, 8, 1, {1, 2}),  # threads that wait for each other: four are not tried
        ({1: 1, 2: 0.95}, 8, 1, {1, 2}),  # a gain that is noise
        ({1: 8, 2: 4, 4: 4}, 64, 2, {1, 2, 4}),
        ({1: 1}, 1, 1, {1}),
    ],
)
def test_the_fastest_number_is_taken(seconds, most, expected, tried):
    machine = Machine(seconds)
    assert threads.fastest(machine.work, most, machine.clock) == expected
    assert set(machine.tried) == tried


def test_what_is_asked_for_wins_over_environment_and_measurement(monkeypatch):
    machine = Machine({1: 1, 2: 1})
    assert threads.settle(machine.work, 2) == 2
    assert not machine.tried
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert threads.settle(machine.work, None) == 2  # PyTorch has read the variable before
    assert not machine.tried
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads.settle(machine.work, None, measure=False) == 2
    assert not machine.tried
    assert threads.settle(machine.work, None) in {1, 2}
    assert machine.tried


@pytest.mark.parametrize(
    ("cores", "n_parts", "processes"), [(8, 10, "4"), (8, 3, "3"), (8, 1, None), (3, 10, None), (4, 10, "2")]
)
def test_idle_cores_are_told_where_processes_could_divide_the_work(cores, n_parts, processes, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda process: range(cores), raising=False)
    torch.set_num_threads(2)
    threads.tell_idle(n_parts)
    told = [line.split("processes=")[1].split()[0] for line in caplog.messages]
    assert told == [processes] * bool(processes)


def test_a_number_that_nothing_chose_is_told_with_what_sets_it(caplog):
    caplog.set_level("INFO")
    threads.settle(lambda: None, None, measure=False)
    (line,) = caplog.messages
    assert all(word in line for word in (str(torch.get_num_threads()), "threads", "OMP_NUM_THREADS"))
