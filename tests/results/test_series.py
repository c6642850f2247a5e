"""Results along training: one file with an axis of checkpoints, the single results in it, and the edge of stability."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from refusals import refused
from results_of_all_kinds import sharpness, spectrum
from surfaces import three_lines

import landscape as ls
from landscape.errors import InputError
from landscape.results import KINDS, Series, columns
from landscape.results.foreign import interop
from landscape.results.series import SERIES, edge, edge_rule, joined, of_one

SINGLE = {"spectrum": spectrum, "sharpness": sharpness, "surface": three_lines}


def scaled(result, factor):
    """A result whose floats of each part are `factor` times as large."""
    changed = {
        f.name: factor * getattr(result, f.name)
        for f in fields(result)
        if (f.metadata["axes"] or ())[:1] == ("part",) and np.asarray(getattr(result, f.name)).dtype.kind == "f"
    }
    return replace(result, **changed)


def along(kind, n=3, **about):
    own = [scaled(SINGLE[kind](), k + 1) for k in range(n)]
    about = {"learning_rate": 0.1, "edge": 20.0, "edge_rule": "2 / lr", **about}
    return joined([of_one(one, f"net-{k}", epoch=5 * k, **about) for k, one in enumerate(own)]), own


def same(a, b):
    if isinstance(b, np.ndarray | float):
        return type(a) is type(b) and np.array_equal(a, b, equal_nan=True)
    return a == b


@pytest.mark.parametrize("kind", SINGLE)
def test_a_series_gives_back_each_single_result_to_the_bit_also_from_its_file(kind, tmp_path):
    series, own = along(kind)
    ls.save(tmp_path / "series.h5", series)
    for found in (series, ls.load(tmp_path / "series.h5")):
        assert found.kind == f"{kind}-series"
        assert found.kind in KINDS
        for k, single in enumerate(own):
            for other in (found.at(k), found.at(f"net-{k}"), found.stack()[f"net-{k}"]):
                assert type(other) is type(single)
                for f in fields(single):
                    stored = f.name in type(found).__dataclass_fields__
                    if f.name != "provenance":
                        assert same(getattr(other, f.name), getattr(single, f.name) if stored else None), f.name
    assert found.last.parts == own[-1].parts
    assert found.place[0].tolist() == [0, 5, 10]
    with refused(InputError, "net-9", "net-0", "net-1", "net-2"):
        found.at("net-9")
    with refused(InputError, "checkpoint", 3):
        found.at(3)


def test_parts_of_a_series_are_chosen_at_every_checkpoint():
    series, own = along("spectrum")
    part = series.parts[1]
    assert series[part].lambda_max.shape == (3, 1)
    assert series[part].at(2).lambda_max[0] == own[2].lambda_max[1]
    assert columns.table(series)[1][1][0] == part


def test_what_belongs_to_single_samples_is_left_out():
    for kind in SERIES.values():
        for f in fields(kind):
            assert not {"sample", "image", "gram_row"} & set(f.metadata["axes"] or ()), f.name


def test_a_series_in_a_table_has_a_row_for_each_part_at_each_checkpoint(tmp_path):
    series, own = along("spectrum")
    names, rows = interop.part_table(series)
    assert names[:2] == ["checkpoint", "epoch"]
    assert len(rows) == 9
    row = dict(zip(names, rows[5], strict=True))
    assert (row["checkpoint"], row["epoch"], row["part"]) == ("net-1", 5.0, "class 2")
    assert row["lambda_max"] == own[1].lambda_max[2]
    assert row["n_samples"] == 1
    frame = series.to_dataframe()
    assert frame.loc[("net-2", "class 0"), "trace"] == own[2].trace[0]
    interop.to_csv(series, tmp_path / "a.csv")
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 10


def test_series_stand_side_by_side_and_become_one_data_set():
    pytest.importorskip("xarray")
    series, own = along("spectrum")
    whole = ls.concat({"ce": series, "sam": along("spectrum")[0]}).to_xarray()
    assert whole.lambda_max.dims == ("method", "checkpoint", "part")
    chosen = whole.lambda_max.sel({"method": "sam", "checkpoint": "net-1", "part": "class 1"})
    np.testing.assert_array_equal(chosen, own[1].lambda_max[1])


def test_series_of_other_parts_or_kinds_do_not_join():
    one = of_one(spectrum(), "a", epoch=0)
    with refused(InputError, "parts"):
        joined([one, of_one(spectrum()["class 0"], "b", epoch=1)])
    with pytest.raises(InputError, match="a history has no series along training"):
        of_one(ls.History.__new__(ls.History), "a")


def test_a_rule_is_kept_where_some_checkpoints_know_none_and_no_rule_stands_for_two():
    one = of_one(spectrum(), "a", epoch=0)
    two = of_one(spectrum(), "b", epoch=1, edge=20, edge_rule="2 / lr")
    assert joined([one, two]).edge_rule == "2 / lr"
    assert np.isnan(joined([one, two]).edge[0])
    assert "each checkpoint" in joined([two, of_one(spectrum(), "c", epoch=2, edge_rule="other")]).edge_rule


@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.0},
        {"momentum": 0.9},
        {"momentum": 0.5, "nesterov": True},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.6, "dampening": 0.5},
    ],
)
def test_the_edge_is_where_pytorch_s_own_optimizer_begins_to_diverge_on_a_parabola(options):
    bound = edge(0.1, **options)
    for factor, is_stable in ((0.97, True), (1.03, False)):
        x = torch.ones(1, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([x], lr=0.1, **options)
        for _ in range(400):
            x.grad = factor * bound * x.detach()
            optimizer.step()
        assert (abs(x.item()) < 1) == is_stable, (factor, x.item())


def test_the_edge_without_a_rate_is_unknown_and_its_rule_is_said():
    assert np.isnan(edge(np.nan))
    assert edge(0.0) == np.inf
    assert edge(0.1, dampening=0.5) == 20  # PyTorch's dampening acts on the momentum alone
    assert edge_rule(0) == "2 / lr"
    assert edge_rule(0.9) == "2 (1 + 0.9) / lr"
    assert edge_rule(0.9, nesterov=True) == "2 (1 + 0.9) / (lr (1 + 2 · 0.9))"
    assert issubclass(KINDS["spectrum-series"], Series)


def test_steps_of_seven_digits_are_written_whole_and_found():
    steps = (1_234_567, 1_234_568)
    made = [of_one(spectrum(), f"net-{k}", training_step=step) for k, step in enumerate(steps)]
    series = joined(made)
    assert [series.position(str(step)) for step in steps] == [0, 1]
    assert series.title.startswith("2 checkpoints, step 1234567 to 1234568")
    with refused(InputError, "step 1234567", "step 1234568"):
        series.position("7")
