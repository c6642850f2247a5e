"""Ranks that are done wait for the others while these give signs of life, and do not fill the file that all share."""

from collections import Counter

import pytest
import torch.distributed as dist

from landscape.autodiff import dealing, distributed


class Store:
    """Counts how often each number is asked for."""

    def __init__(self):
        self.asked = []

    def add(self, key, number):
        self.asked.append(key)
        return number


class Work:
    """A barrier that all have reached after 200 looks at it."""

    looks = 0

    def is_completed(self):
        self.looks += 1
        return self.looks > 200

    def wait(self):
        pass


def test_a_waiting_rank_seldom_reads_the_heartbeats_of_the_others(monkeypatch):
    store, work = Store(), Work()
    monkeypatch.setattr(dealing, "rank", lambda: 1)
    monkeypatch.setattr(dealing, "world", lambda: 3)
    monkeypatch.setattr(dealing, "group", lambda timeout: None)
    monkeypatch.setattr(dist, "barrier", lambda group, async_op: work)
    monkeypatch.setattr(dealing.time, "sleep", lambda seconds: None)
    # private: what `deal` waits with when all indices are drawn
    dealing._Beat(store).wait_for_all()
    assert work.looks > 200
    assert sorted(store.asked) == ["alive-0", "alive-2"]  # each record would make the file longer


@pytest.mark.parametrize("works", [True, False])
def test_a_rank_that_works_for_longer_than_the_silence_is_waited_for_and_one_that_hangs_is_not(works, monkeypatch):
    counts, now, asking = Counter(), [0.0], [1]

    class Shared:
        def add(self, key, number):
            counts[key] += number
            return counts[key]

    class Barrier:
        def is_completed(self):
            return now[0] > 3 * dealing.SILENCE.total_seconds()

        def wait(self):
            pass

    monkeypatch.setattr(dealing, "rank", lambda: asking[0])
    monkeypatch.setattr(dealing, "world", lambda: 2)
    monkeypatch.setattr(dealing, "group", lambda timeout: None)
    monkeypatch.setattr(dist, "barrier", lambda group, async_op: Barrier())
    monkeypatch.setattr(dealing.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(dealing.atexit, "register", lambda function: None)
    # private: as above; `alive` calls that of the rank
    other, waiting = (dealing._Beat(Shared()) for _ in range(2))

    def passed(seconds):
        now[0] += 30
        if works:
            asking[0] = 0
            other()
            asking[0] = 1

    monkeypatch.setattr(dealing.time, "sleep", passed)
    if works:
        waiting.wait_for_all()
        assert counts["alive-0"] > 100
        return
    with pytest.raises(distributed.RankError):
        waiting.wait_for_all()
    assert now[0] < 1.1 * dealing.SILENCE.total_seconds()
    distributed.abandoned.clear()
