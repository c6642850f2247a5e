"""Which matrix each number is of, where that of a number differs from that of another: against dense matrices."""

import csv
import dataclasses
import json
from functools import cache

import numpy as np
import pytest
from cases import CASES
from exact import dense
from synthetic import classes

import landscape as ls
from landscape.analyses import pooled
from landscape.curvature.kinds import KINDS
from landscape.results import columns
from landscape.results.foreign import interop, tidy
from landscape.results.pool import decay_of, overlap, pool

OPERATORS = ("hessian", "ggn", "fisher", "empirical-fisher")


@cache
def computed(operator, decay=0.0, left_out=0.05, name="mlp-relu"):
    objective = CASES[name].objective(weight_decay=decay)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pooled, "LEFT_OUT", (left_out,))
        return objective, ls.spectrum(objective, operator=operator, trace="exact")


def of_both(objective, kind, decay=0.0):
    """The dense matrix of the mean loss of the first and the last part, with weight decay."""
    shares = objective.counts[[0, 2]] / objective.counts[[0, 2]].sum()
    matrix = sum(share * dense(objective, p, kind).numpy() for share, p in zip(shares, (0, 2), strict=True))
    return matrix + decay * np.eye(len(matrix))


def both(found):
    return ls.regroup(found, {"both": [found.parts[0], found.parts[2]]})


def tidy_rows(found):
    return [dict(zip(tidy.COLUMNS, row, strict=True)) for row in tidy.rows({"a.h5": found})]


def test_kinds_without_decay_are_those_to_which_it_adds_nothing():
    found = dataclasses.replace(classes(1, steps=3), provenance={"weight_decay": 0.5})
    for name, kind in KINDS.items():
        assert (decay_of(dataclasses.replace(found, operator=name)) > 0) is kind.decays


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_numbers_of_groups_are_those_of_the_matrices_that_they_name(operator, decay):
    objective, found = computed(operator, decay)
    joined, added = both(found), 0.0 if operator == "empirical-fisher" else decay
    assert decay_of(found) == added
    assert (joined.operator, joined.lambda_max_matrix) == (operator, "ggn" if operator == "hessian" else operator)
    assert joined.trace[0] == pytest.approx(of_both(objective, operator, added).trace(), rel=1e-9)
    of_rows = of_both(objective, joined.lambda_max_matrix, added)
    off = np.linalg.eigvalsh(of_rows)[-1] - joined.lambda_max[0]
    assert 0 < joined.lambda_max_above[0] < 0.06 * (np.trace(of_rows) - added * found.size)
    assert -1e-12 <= off <= joined.lambda_max_above[0] + 1e-12
    if operator == "hessian":  # the matrices can be told apart
        other = np.linalg.eigvalsh(of_both(objective, "hessian", added))[-1]
        assert not -1e-3 <= other - joined.lambda_max[0] <= joined.lambda_max_above[0]


@pytest.mark.parametrize(("operator", "letters"), [("hessian", "HG"), ("ggn", "GG"), ("fisher", ("fisher", "fisher"))])
def test_every_export_of_groups_names_the_matrix_of_each_number(operator, letters, tmp_path):
    joined = both(computed(operator)[1])
    of_rows = "ggn" if operator == "hessian" else operator
    rows = {row["quantity"]: row for row in tidy_rows(joined)}
    assert (rows["trace"]["matrix"], rows["trace"]["exactness"]) == (operator, "exact")
    assert (rows["lambda_max"]["matrix"], rows["lambda_max"]["exactness"]) == (of_rows, "bounded")
    assert rows["lambda_max_sampling_stderr"]["matrix"] == of_rows
    assert rows["trace_sampling_stderr"]["matrix"] == operator
    about = {"operator": operator, "lambda_max_matrix": of_rows}
    document = json.loads(interop.to_json(joined))
    assert about == {name: document[name] for name in about}
    assert about == {name: joined.to_xarray().attrs[name] for name in about}
    assert about == joined.to_dataframe().attrs == joined.to_dataframe(long=True).attrs
    interop.to_csv(joined, tmp_path / "g.csv")
    (row,) = csv.DictReader((tmp_path / "g.csv").read_text().splitlines())
    assert about == {name: row[name] for name in about}
    heads = columns.table(joined)[0]
    assert [h.split(" ±")[0] for h in heads if " of " in h] == [
        f"{name} of {of}" for name, of in zip(("trace", "lambda_max"), letters, strict=True)
    ]


def test_an_export_of_a_spectrum_names_its_matrix(tmp_path):
    found = computed("ggn")[1]
    interop.to_csv(found, tmp_path / "s.csv")
    table = csv.DictReader((tmp_path / "s.csv").read_text().splitlines())
    assert [row["operator"] for row in table] == ["ggn"] * len(found.parts)
    assert found.to_dataframe().attrs == {"operator": "ggn"}
    assert {row["matrix"] for row in tidy_rows(found)} == {"ggn"}


def test_groups_of_an_earlier_version_have_the_matrix_of_their_rows():
    joined = both(computed("hessian")[1])
    values = {item.name: getattr(joined, item.name) for item in dataclasses.fields(joined)}
    del values["lambda_max_matrix"]
    assert ls.Traces(**values).lambda_max_matrix == "ggn"


@pytest.mark.parametrize(("above", "exactness"), [(0.0, "exact"), (0.1, "bounded"), (np.nan, "")])
def test_a_number_of_groups_is_exact_or_bounded_or_of_unknown_error(above, exactness):
    joined = dataclasses.replace(both(computed("ggn")[1]), lambda_max_above=np.array([above]))
    (row,) = [row for row in tidy_rows(joined) if row["quantity"] == "lambda_max"]
    assert (row["of_error"], row["exactness"]) == ("rows left out", exactness)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_overlap_by_rows_has_the_weight_decay_of_that_by_products(decay):
    objective, found = computed("ggn", decay, left_out=1e-9, name="residual-relu")
    parts = range(len(found.parts))
    matrices = [dense(objective, p, "ggn").numpy() + decay * np.eye(found.size) for p in parts]
    for vectors in (1, 2):
        V = [np.linalg.eigh(M)[1][:, -vectors:] for M in matrices]
        traces = np.array([[np.trace(V[a].T @ matrices[b] @ V[a]) for b in parts] for a in parts])
        np.testing.assert_allclose(overlap(found, vectors=vectors), traces / traces.diagonal(), atol=1e-6)


def test_negative_rows_that_are_left_out_are_added_for_any_weights():
    """As many times as the weights of a part's samples are its own ones, at most."""
    found = computed("ggn")[1]
    plain = dataclasses.replace(found, eigenvalue_below=None)
    below = dataclasses.replace(found, eigenvalue_below=np.array([0.2, np.nan, 0.5]))
    for shares in ((1.0, 0.0), (0.25, 0.75)):
        one, other = (pool(s, (0, 2)) for s in (plain, below))
        weights = shares[0] * one.of(0) + shares[1] * one.of(1)
        added = shares[0] * 0.2 + shares[1] * 0.5
        assert other.left_out(weights) == pytest.approx(one.left_out(weights) + added)
    first = np.flatnonzero(one.part == 0)[0]
    weights = np.where(np.arange(len(one.part)) == first, 1.0, 0.0)
    assert other.left_out(weights) == pytest.approx(one.left_out(weights) + 0.2 / one.weights[first])
