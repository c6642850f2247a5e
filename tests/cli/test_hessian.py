"""What `landscape hessian` prints beside its table: rows and what replaced them, and errors over samples."""

import dataclasses
import re
from types import SimpleNamespace

import numpy as np
import pytest
from cases import CASES, Case, concave, mlp
from fitted import network
from torch import nn

import landscape as ls
from landscape.analyses import samples
from landscape.analyses.options import Options
from landscape.cli import further, hessian, over_samples
from landscape.results.over_samples import of_part
from landscape.results.written import with_error


class Said:
    """A console that keeps what it is told."""

    def __init__(self):
        self.notes, self.rows, self.titles = [], [], []

    def note(self, text):
        self.notes.append(text)

    def table(self, heads, rows, title=""):
        self.rows.append(rows)
        self.titles.append(title)


def said_of_rows(objective, found, **changed):
    console = Said()
    given = found.provenance["options"]
    options = Options(**{item.name: given[item.name] for item in dataclasses.fields(Options)} | changed)
    # private: printed by the command only, after a part that needs thousands of rows
    hessian._by_rows(console, found, objective, options)
    return console.notes


@pytest.mark.parametrize("most", [1, 3])
def test_parts_with_more_rows_than_are_kept_are_named_and_not_taken_for_exact(monkeypatch, most):
    monkeypatch.setattr(samples, "are_worth_it", lambda objective, n, n_rows, *_: n_rows <= most)
    objective = CASES["mlp-tanh"].objective()
    found = ls.spectrum(objective, operator="ggn")
    own = np.isfinite(found.eigenvalue_above)
    notes = said_of_rows(objective, found)
    assert any("nan" in note for note in notes) is False
    assert [f"{own.sum()} of 3 parts" in note for note in notes] == [True, False][2 - len(notes) :]
    assert own.sum() == (most > 1)
    for p, part in enumerate(found.parts):
        assert (part in notes[-1].split(", because")[0].split(": ")[1].split(", ")) == (not own[p])
    assert "320 products" in notes[-1]


def test_more_outputs_than_products_are_the_reason_for_lanczos():
    objective = CASES["mlp-tanh"].objective()
    few = {"steps": 2, "probes": 1}
    found = ls.spectrum(objective, operator="ggn", **few)
    (note,) = said_of_rows(objective, found)
    assert f"{objective.outputs.size} backward passes" in note
    assert said_of_rows(objective, found, method="lanczos") == []


def test_eigenvalues_that_have_not_converged_are_told():
    found, console = ls.spectrum(CASES["mlp-tanh"].objective(), top=4), Said()
    further.warn(console, found, 4)
    assert console.notes == []
    found.ritz_residuals[1, 1:] = found.lambda_max[1]
    found.converged[1] = False
    further.warn(console, found, 4)
    (note,) = console.notes
    told, residuals, remedy = re.split(r"[:;]", note)
    assert re.findall(r"\d+", told) == ["3", "4", found.parts[1]]
    assert f" {found.lambda_max[1]:.2g}," in residuals
    assert set(re.findall(r"--[a-z-]+", remedy)) == {"--tol", "--max-steps"}


def test_eigenvalues_of_few_steps_that_have_not_converged_have_a_star_and_their_residuals():
    found = ls.spectrum(CASES["mlp-tanh"].objective(), steps=3, probes=1, vectors=3)
    console = Said()
    further.show(console, found, 3)
    further.warn(console, found, 3)
    assert not found.ritz_converged[:, 1:].any()
    assert len(console.notes) == 3
    for p, (_, *cells) in enumerate(console.rows[0]):
        assert [cell.split(" (")[0].endswith("*") for cell in cells] == (~found.ritz_converged[p, :3]).tolist()
        for r, cell in enumerate(cells):
            residual, sampling = found.ritz_residuals[p, r], found.ritz_sampling_stderr[p, r]
            by_residual = not sampling >= residual
            assert cell.endswith(" (residual)") == by_residual
            error = float(cell.split(" ± ")[1].split("*")[0].split(" ")[0])
            assert error == pytest.approx(residual if by_residual else sampling, rel=0.5)


def test_without_errors_over_samples_eigenvalues_have_their_residuals():
    found = ls.spectrum(CASES["mlp-tanh"].objective(), steps=3, probes=1, top=3, sampling_errors=False)
    console = Said()
    further.show(console, found, 3)
    assert console.titles == ["largest eigenvalues ± residual"]
    for p, (_, *cells) in enumerate(console.rows[0]):
        for r, cell in enumerate(cells):
            sure = found.ritz_converged[p, r]
            assert cell == with_error(found.ritz_values[p, r], found.ritz_residuals[p, r]) + "*" * (not sure)


def test_the_bound_of_eigenvalues_knows_those_below_too():
    objective = Case(lambda: mlp(nn.Tanh()), loss=concave).objective()
    found = ls.spectrum(objective, operator="ggn", ggn_tol=0.01)
    rounding, below = found.eigenvalue_rounding, found.eigenvalue_below
    larger = np.maximum(found.eigenvalue_above, below)
    for changed, bound in ((found, larger), (dataclasses.replace(found, eigenvalue_above=np.zeros(3)), below)):
        (note,) = said_of_rows(objective, changed)
        assert note.endswith(f"{(bound - rounding).max():.2g}, and rounding, {rounding.max():.2g}")


def test_a_bound_that_is_rounding_asks_for_another_dtype_and_not_for_more_rows():
    found = ls.spectrum(CASES["mlp-tanh"].objective(), operator="ggn")
    found = dataclasses.replace(found, converged=np.array([False, True, True]))
    for share, named in ((0.9, {"--dtype"}), (0.1, {"--ggn-tol"})):
        console = Said()
        # private: printed by the command only, below its table
        hessian._doubts(console, dataclasses.replace(found, eigenvalue_rounding=share * found.lambda_max_residual))
        assert set(re.findall(r"--[a-z-]+", console.notes[0])) == named


def test_a_trace_that_is_rough_names_the_remedy_unless_one_was_asked_for():
    found = CASES["mlp-tanh"].objective()
    found = dataclasses.replace(
        ls.spectrum(found, trace="probes"),
        trace=np.array([10.0, -1.0, 2.0]),
        trace_stderr=np.array([2.4, 0.3, 1.0]),
        trace_sampling_stderr=np.array([np.nan, np.nan, 1.1]),
        largest_at_most=None,
    )
    options = found.provenance["options"]
    for given, notes in (({}, 1), ({"trace_tol": 0.1}, 0), ({"accuracy": 0.1}, 0)):
        console = Said()
        # private: as above
        hessian._doubts(console, dataclasses.replace(found, provenance={"options": options | given}))
        rough = [note for note in console.notes if note.startswith(f"the trace of {found.parts[1]} is an estimate")]
        assert len(rough) == notes


def test_parts_that_were_drawn_are_marked_in_the_table_of_errors_over_samples():
    found = ls.spectrum(CASES["mlp-tanh"].objective(), operator="ggn")
    drawn = dataclasses.replace(found, n_used=found.n_samples - np.array([1, 0, 0]))
    rows, titles = [], []
    for one in (found, drawn):
        console = Said()
        over_samples.show(console, one)
        rows.append([row[0].split()[:2] for row in console.rows[0]])
        titles += console.titles
    assert [["0", "(draw)"] in of for of in rows] == [False, True]
    assert [row[1:] == ["(draw)"] for row in rows[1]] == [True, False, False]
    assert titles[1] == titles[0] + over_samples.OF_DRAW


def test_the_errors_that_remain_have_digits_however_small_they_are():
    found = ls.spectrum(CASES["mlp-tanh"].objective(), operator="ggn", accuracy=1e-9)
    found = dataclasses.replace(found, lambda_max_error=2e-9 * found.lambda_max, trace_error=0.123 * found.trace)
    console = Said()
    hessian._reached(console, found)  # private: printed by the command only, below its table
    assert [re.findall(r"(\S+)%", note) for note in console.notes] == [["2e-07", "12.3", "1e-07"]] * 3


def test_a_number_without_an_error_that_remains_is_exact():
    found = ls.spectrum(CASES["mlp-tanh"].objective(), operator="ggn", accuracy=1e-9)
    console = Said()
    hessian._reached(console, dataclasses.replace(found, trace_error=np.zeros(3)))  # private: as above
    assert [re.findall(r"trace (\S+)", note) for note in console.notes] == [["exact"]] * 3


@pytest.mark.parametrize(("tol", "named"), [(None, {"--accuracy"}), (1e-9, {"--tol", "--max-steps"})])
def test_what_set_the_tolerance_is_named_where_lambda_max_has_not_converged(tol, named):
    found = ls.spectrum(CASES["mlp-tanh"].objective(), accuracy=0.9, tol=tol)
    console = Said()
    # private: printed by the command only, below its table
    hessian._doubts(console, dataclasses.replace(found, converged=np.array([False, True, True])))
    assert set(re.findall(r"--[a-z-]+", console.notes[0])) == named


def test_parts_of_whose_uncertainty_few_samples_have_most_are_named_unless_they_have_no_interval():
    found, told = ls.spectrum(network(sizes=(60, 5)), operator="ggn"), []
    for few in (False, True):
        uncertainty = np.where(np.isfinite(found.sample_uncertainty), 1.0, np.nan)
        uncertainty[:, 1:] *= 1e-4 if few else 1
        one, console = dataclasses.replace(found, sample_uncertainty=uncertainty), Said()
        over_samples.show(console, one)
        assert [of_part(one, p).of_few for p in range(2)] == [few, False]
        told.append({note for note in console.notes if "few samples have" in note})
    assert [len(notes) for notes in told] == [0, 1]
    assert "of 0:" in told[1].pop()


def test_no_interval_is_made_up():
    console = SimpleNamespace(note=lambda text: None, table=lambda heads, rows, title: found.extend(rows))
    found = []
    over_samples.show(console, ls.spectrum(CASES["mlp-tanh"].objective(), operator="ggn"))
    assert [row[3].endswith("(?)") for row in found] == [True] * 3  # fewer than 25 samples


def test_eigenvalues_whose_vectors_are_stored_are_printed_with_their_errors():
    found = ls.spectrum(CASES["mlp-tanh"].objective(), vectors=2)
    console = Said()
    further.show(console, found, 2)
    assert console.titles == ["largest eigenvalues ± samples"]
    for p, (part, *cells) in enumerate(console.rows[0]):
        errors = found.ritz_sampling_stderr[p, :2]
        assert part == found.parts[p]
        for cell, value, error in zip(cells, found.ritz_values[p], errors, strict=False):
            shown, beside = cell.split(" ± ")
            assert float(shown) == pytest.approx(
                value, abs=max(error, 0.02 * value) if error == error else 0.02 * value
            )
            assert (beside == "?") == bool(np.isnan(error))
