"""Whose random numbers are seen, and what is not initialised for that."""

import torch

from landscape.autodiff import randomness


def test_a_gpu_that_was_not_used_stays_so(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: asked.append(0) or [torch.zeros(4, dtype=torch.uint8)])
    for used in (False, True):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda used=used: used)
        randomness.state()
        assert bool(asked) == used


def test_numbers_that_are_drawn_on_mps_are_seen(monkeypatch):
    state = torch.zeros(4, dtype=torch.uint8)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: state)
    before = randomness.state()
    assert randomness.state() == before
    state += 1
    assert randomness.state() != before
