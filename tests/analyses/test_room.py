"""The memory that a spectrum may use: for rows, for what products keep, and for the basis."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from interruptions import Interrupting
from refusals import refused

import landscape as ls
from landscape.analyses import row_numbers, spectrum_parts
from landscape.analyses.options import Options, ggn_tol_for
from landscape.analyses.room import RoomOnce, is_ample, needs_all, trial_of
from landscape.autodiff import memory
from landscape.autodiff.distributed import Team
from landscape.curvature.algebra import Operator
from landscape.curvature.matrices import matrix
from landscape.errors import InputError
from tests.cases import CASES

ENTRY = 8  # bytes of a number
DEFAULTS = {
    name: parameter.default for name, parameter in inspect.signature(ls.spectrum).parameters.items()
    if name in Options.__dataclass_fields__
} | {"ggn_tol": ggn_tol_for(None)}  # fmt: skip


def objective(**options):
    return CASES["mlp-tanh"].objective(**options)


def with_room_for(monkeypatch, vectors, *, of=sum):
    """Let so many vectors fit into memory, with the entries of all parameters or of some; return the bytes of one."""
    entry = of(objective().layout.sizes) * ENTRY
    monkeypatch.setattr(memory, "room", lambda device, limit: vectors * entry)
    return entry


def test_each_part_has_the_room_that_its_own_products_and_rows_leave(monkeypatch):
    monkeypatch.setattr(memory, "room", lambda device, limit: 1000 * 5 * ENTRY)
    room = RoomOnce(None)
    tail, head = (replace(matrix(torch.eye(5, dtype=torch.float64)), keeps=n * 5 * ENTRY) for n in (10, 300))
    assert room(tail, 100 * 5 * ENTRY).on_device == 990  # measured beside these rows
    assert room(tail).on_device == 1090
    assert room(head, 200 * 5 * ENTRY).on_device == 600


def test_a_part_smaller_than_a_batch_does_not_show_what_products_need(monkeypatch):
    tried = []

    class Seen(RoomOnce):
        def __call__(self, operator, rows=0, trial=None):
            tried.append(trial.parts[0])
            return super().__call__(operator, rows, trial)

    monkeypatch.setattr(spectrum_parts, "RoomOnce", Seen)
    ls.spectrum(objective(), steps=3, probes=1, backend="reverse")  # 9, 5 and 1 samples in batches of 4
    assert tried == ["0", "1", "1"]


def test_rows_kept_of_other_parts_take_no_room_that_vectors_need(monkeypatch, tmp_path):
    asked = {}

    class Seen(RoomOnce):
        def __call__(self, operator, rows=0, trial=None):
            asked[operator.parts[0]] = rows
            return super().__call__(operator, rows, trial)

    monkeypatch.setattr(spectrum_parts, "RoomOnce", Seen)
    with_room_for(monkeypatch, 45)  # for no basis
    given = {"steps": 30, "probes": 1, "vectors": 0, "backend": "reverse"}
    mine = objective(batch_size=9)
    at_once, rows = ls.spectrum(mine, **given), dict(asked)
    with pytest.raises(KeyboardInterrupt):
        ls.spectrum(mine, **given, out=tmp_path / "out.h5", progress=Interrupting(1))
    asked.clear()
    later = ls.spectrum(mine, **given, out=tmp_path / "out.h5")
    assert asked == {name: rows[name] for name in "12"}  # without those of the first part
    np.testing.assert_array_equal(later.alpha, at_once.alpha)


def test_rows_are_as_many_as_fit_into_memory(monkeypatch, caplog):
    subject = objective(partition="all")
    options = {"operator": "ggn", "steps": 4, "probes": 1, "ggn_tol": 0.0, "memory_bytes": 1}
    by_rows = ls.spectrum(subject, **options | {"memory_bytes": None})
    n_rows = np.isfinite(by_rows.eigenvalues).sum()
    assert 20 < n_rows <= 30  # two of each of 15 samples, less those of length zero
    with_room_for(monkeypatch, 3 * 30, of=max)  # of the largest tensor; those of all parameters need not fit
    assert ls.spectrum(subject, **options).eigenvalues.shape == by_rows.eigenvalues.shape
    caplog.clear()
    entry = with_room_for(monkeypatch, 3 * 28, of=max)
    found = ls.spectrum(subject, **options)
    assert found.eigenvalues is None or not np.isfinite(found.eigenvalues).any()
    assert "28" in caplog.text
    np.testing.assert_allclose(found.lambda_max, by_rows.lambda_max, rtol=0.2)
    with refused(InputError, "memory_bytes", "28", method="lanczos"):
        ls.spectrum(subject, **options | {"method": "rows", "steps": None, "probes": None})
    with refused(InputError, "cache_bytes", "27", method="lanczos"):
        ls.spectrum(subject, **options | {"method": "rows", "cache_bytes": 27 * entry, "steps": None, "probes": None})


def test_rows_of_a_part_are_three_times_in_memory_at_most(monkeypatch):
    entry = with_room_for(monkeypatch, 3 * 7 + 2)
    assert row_numbers.row_bytes(torch.device("cpu"), 10**9, None) // entry == 7
    assert row_numbers.row_bytes(torch.device("cpu"), 5 * entry, None) == 5 * entry


@pytest.mark.parametrize(
    ("given", "fit", "beside", "expected"),
    [
        ({}, 12 + 96, 0, False),  # a run for both ends, alone
        ({}, 12 + 95, 0, True),
        ({}, 12 + 48, 0, True),
        ({}, 12 + 47, 0, False),  # a restarted run, alone or together
        ({"steps": 30, "probes": 2}, 14 + 48 + 2 + 31, 0, False),
        ({"steps": 30, "probes": 2}, 14 + 48 + 2 + 30, 0, True),
        ({"steps": 30, "probes": 2}, 14 + 41 + 4, 8, True),  # of which each process needs half together
        ({"steps": 30, "probes": 2}, 14 + 40 + 4, 8, False),
        ({"steps": 30, "probes": 2}, 8 + 3 + 8, 0, False),
        ({"steps": 30, "probes": 2}, 8 + 3 + 7, 0, True),  # alone not even restarts
        ({"steps": 30, "probes": 2}, 8 + 5, 0, False),  # nor together
    ],
)
def test_a_part_is_shared_where_one_process_has_too_little_memory_for_its_vectors(given, fit, beside, expected):
    options, entry = Options(**DEFAULTS | given), 4 * 1000
    free = np.array([fit * entry, 0])

    def bytes_beside(team):
        return beside * entry // team.size

    assert needs_all(options, 1000, entry, free, bytes_beside, Team(0, 2)) == expected
    if not beside and expected:
        assert not is_ample(options, 1000, entry, free, 0)


def test_the_trial_is_the_smallest_part_that_fills_a_batch():
    assert trial_of([9, 5, 1], 4) == 1
    assert trial_of([9, 5, 1], 8) == 0
    assert trial_of([2, 3, 1], 8) == 1


def test_a_part_without_room_is_refused_before_another_is_computed(monkeypatch):
    entry = with_room_for(monkeypatch, 19 + 5)
    real = Operator.__getitem__

    def hungry(operator, name):
        return replace(real(operator, name), keeps=6 * entry if name == "1" else 0)

    monkeypatch.setattr(Operator, "__getitem__", hungry)
    done = []
    for given in ({}, {"memory_bytes": 1}):
        with refused(InputError, "1", 18, 19, memory_bytes=""):
            ls.spectrum(
                objective(), steps=30, probes=1, sampling_errors=False, trace="probes", finished=done.append, **given
            )
    assert not done
