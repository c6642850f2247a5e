"""Ranks that are done wait for the others without writing to the file that all share."""

import torch.distributed as dist

from landscape.autodiff import distributed


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
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "world", lambda: 3)
    monkeypatch.setattr(dist, "barrier", lambda async_op: work)
    monkeypatch.setattr(distributed.time, "sleep", lambda seconds: None)
    # private: what `deal` waits with when all indices are drawn
    distributed._Beat(store).wait_for_all()
    assert work.looks > 200
    assert sorted(store.asked) == ["alive-0", "alive-2"]  # each record would make the file longer
