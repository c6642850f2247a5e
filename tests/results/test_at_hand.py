"""Results in a notebook: they show themselves, give their parts, and become frames and data sets of others."""

import dataclasses
import html.parser
import subprocess
import sys

import numpy as np
import pytest
import results_of_all_kinds
import xarray as xr
from refusals import refused
from results_of_all_kinds import all_kinds, of_checkpoint, sharpness, spectrum
from synthetic import classes

import landscape as ls
from landscape.errors import InputError
from landscape.results import KINDS, columns, store, tables
from landscape.results.axes import distinct
from landscape.results.written import number, with_error

RESULTS = all_kinds()
EACH = pytest.mark.parametrize("result", RESULTS.values(), ids=RESULTS.keys())


class Cells(html.parser.HTMLParser):
    """The cells of a table, row by row."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.open = [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        self.open = tag in {"td", "th"}
        if self.open:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.open = False

    def handle_data(self, data):
        if self.open:
            self.rows[-1][-1] += data


@EACH
def test_a_notebook_shows_the_table_of_the_command_line(result):
    heads, rows = columns.table(result)
    assert Cells(result._repr_html_()).rows == [heads, *rows]
    assert heads[0] == "part"
    assert [row[0] for row in rows] == list(result.parts)


@EACH
def test_a_repr_fits_ten_lines_and_names_first_and_last_parts(result):
    lines = repr(result).splitlines()
    assert len(lines) <= 10
    assert lines[0].startswith(type(result).__name__)
    assert lines[-1].startswith(result.parts[-1])


def test_a_repr_of_many_parts_leaves_out_those_in_the_middle():
    lines = repr(spectrum(40)).splitlines()
    assert len(lines) == 9
    assert [line.split("  ")[0] for line in lines[3:]] == [
        "class 0",
        "class 1",
        "class 2",
        "...",
        "class 38",
        "class 39",
    ]


@pytest.mark.parametrize("n", range(5, 13))
def test_a_repr_fits_ten_lines_for_any_number_of_parts(n):
    lines = repr(spectrum(n)).splitlines()
    assert len(lines) == 3 + min(n, 6)


def test_a_table_shows_the_last_epoch_stars_what_is_not_sure_and_leaves_out_what_is_of_the_summary_alone():
    history = RESULTS["history.h5"]
    heads, rows = columns.table(history)
    shown = [row[heads.index("test loss ± samples")] for row in rows]
    errors = history.test_loss_per_class_stderr[-1]
    assert shown == [*map(with_error, history.test_loss_per_class[-1], errors)]
    before, rows = columns.table(dataclasses.replace(history, test_loss_per_class_stderr=None))
    assert [row[before.index("test loss")] for row in rows] == [*map(number, history.test_loss_per_class[-1])]
    assert "in training" not in heads
    heads, rows = columns.table(dataclasses.replace(spectrum(), converged=np.array([True, False, True])))
    assert [row[heads.index("lambda_max ± residual")].endswith("*") for row in rows] == [False, True, False]


def cells(result, head):
    heads, rows = columns.table(result)
    (place,) = (i for i, heading in enumerate(heads) if heading.startswith(head))
    return [row[place] for row in rows]


def test_cells_that_are_made_of_several_numbers_by_hand():
    distances = RESULTS["distances.h5"]
    way = cells(distances, "way to the convergence point")
    for p, part in enumerate(distances.parts):
        if part not in distances.points:
            assert way[p] == "-"
            continue
        a, b = distances.norm[:, distances.points.index(part)]
        assert way[p] == with_error((a + b) / 2, abs(a - b) / np.sqrt(2))
    shares = dataclasses.replace(spectrum(), negative_curvature=np.array([0.25, 0.5, np.nan]))
    shares = dataclasses.replace(shares, negative_curvature_stderr=np.array([0.02, 0.0, np.nan]))
    assert cells(shares, "negative") == ["25.0 ± 2", "50.0", "-"]
    conflict = np.array([[[1.0, 0.5, 0.0], [0.5, 1.0, np.nan], [0.0, np.nan, 1.0]]])
    seen = dataclasses.replace(RESULTS["gradients.h5"], conflict=conflict)
    assert cells(dataclasses.replace(seen, batch_size=32), "conflicts") == ["25 %", "50 %", "0 %"]
    assert cells(dataclasses.replace(seen, batch_size=0, conflict=np.ceil(conflict)), "conflicts") == [
        "1 of 2",
        "1 of 1",
        "0 of 1",
    ]


def test_axes_of_equal_names_have_positions():
    assert RESULTS["surface.h5"].axes == ("random", "random")
    assert "axis" not in RESULTS["surface.h5"].to_xarray().coords


def test_names_are_text_and_no_markup():
    named = dataclasses.replace(sharpness(), parts=("<b>", "a&b", "c"))
    assert "<b>" not in named._repr_html_()
    assert [row[0] for row in Cells(named._repr_html_()).rows[1:]] == ["<b>", "a&b", "c"]


@EACH
def test_a_part_by_its_name_is_a_result_with_its_numbers_alone(result):
    name = result.parts[-1]
    one = result[name]
    assert type(one) is type(result)
    assert one.parts == (name,)
    for item in dataclasses.fields(result):
        value, axes = getattr(result, item.name), item.metadata["axes"]
        if value is None or axes is None or isinstance(value, tuple) or item.name == "nearest":
            continue
        for place, axis in enumerate(axes):
            value = value.take([len(result.parts) - 1], axis=place) if axis == "part" else value
        np.testing.assert_array_equal(getattr(one, item.name), value)
    assert result[[*reversed(result.parts)]].parts == result.parts[::-1]
    assert list(result) == list(result.parts)


def test_the_nearest_class_keeps_its_name_in_a_choice_of_classes():
    features = RESULTS["features.h5"]
    names = [features.parts[n] for n in features.nearest[-1]]
    turned = features[["class 2", "class 0"]]
    expected = [{"class 2": 0, "class 0": 1}.get(names[p], -1) for p in (2, 0)]
    assert turned.nearest[-1].tolist() == expected
    assert names[1] == "class 0"
    assert features["class 1"].nearest[-1].tolist() == [-1]
    alone = dataclasses.replace(features, nearest=np.full_like(features.nearest, -1))
    assert alone[["class 2", "class 0"]].nearest[-1].tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("class1", ["'class1'", "did you mean class 1?", "class 0, class 1, class 2"]),
        ("truck", ["'truck'", "class 0, class 1, class 2"]),
        (0, [0, "class 0, class 1, class 2"]),
        ([0], [0, "class 0, class 1, class 2"]),
        ([], ["a list of names"]),
    ],
)
def test_an_unknown_part_is_refused_with_the_nearest(name, named):
    with refused(InputError, *named):
        spectrum()[name]


@EACH
def test_a_wide_frame_has_a_row_for_each_part(result):
    frame = result.to_dataframe()
    series = isinstance(result, ls.Series)
    n, names = len(result.parts), list(result.parts)
    assert list(frame.index) == ([(place, p) for place in result.checkpoints for p in names] if series else names)
    for name in frame.columns:
        values = np.asarray(getattr(result, name))
        if series and values.ndim == 1:  # the same at every checkpoint, or of a checkpoint and all of its parts
            values = np.tile(values, len(frame) // n) if len(values) == n else np.repeat(values, n)
        np.testing.assert_array_equal(frame[name], values.reshape(len(frame)))


def test_a_long_frame_has_a_row_for_each_number():
    found = RESULTS["gradients.h5"]
    frame = found.to_dataframe(long=True)
    chosen = frame[(frame.field == "between") & (frame.part == "class 1") & (frame.part_2 == "class 2")]
    assert chosen.value.tolist() == found.between[:, 1, 2].tolist()
    assert len(frame[frame.field == "norm"]) == found.norm.size


@EACH
def test_a_data_set_has_the_arrays_under_the_names_of_their_axes(result):
    found = result.to_xarray()
    assert found.part.values.tolist() == list(result.parts)
    for item in dataclasses.fields(result):
        value, axes = getattr(result, item.name), item.metadata["axes"]
        if axes and value is not None and item.name in found:
            assert list(found[item.name].dims) == distinct(axes)
            np.testing.assert_array_equal(found[item.name], value)
            assert found[item.name].attrs == {"units": item.metadata["unit"], "long_name": item.metadata["doc"]}
    assert found.attrs["kind"] == result.kind


@EACH
def test_xarray_opens_a_file_with_the_same_named_axes(result, tmp_path):
    store.save(tmp_path / "result.h5", result)
    expected = result.to_xarray()
    with xr.open_dataset(tmp_path / "result.h5", engine="h5netcdf") as found:
        assert dict(found.sizes) == dict(expected.sizes)
        assert set(found.coords) == set(expected.coords)
        for name in expected.variables:
            assert found[name].dims == expected[name].dims
            np.testing.assert_array_equal(found[name], expected[name])
    again = store.load(tmp_path / "result.h5")
    assert repr(again) == repr(result)


def test_an_axis_without_names_takes_no_room_in_a_file(tmp_path):
    plane = results_of_all_kinds.three_classes(3, 3)
    size = 100_000
    found = KINDS["plane"](
        axes=("a",), directions=np.zeros((1, size), dtype=np.float32), buffer_directions=np.zeros((1, 0)),
        origin=np.zeros(size, dtype=np.float32), buffer_origin=np.zeros(0), unit_length=np.ones(1),
        explained=np.full(1, np.nan), tensors=("w",), sizes=np.array([size]), cosine=np.nan, normalisation="none",
        ignored="none",
    )  # fmt: skip
    store.save(tmp_path / "plane.h5", found)
    assert (tmp_path / "plane.h5").stat().st_size < 8 * size + 30_000
    assert repr(found).splitlines()[0].startswith("Plane (axis: 1, parameter: 100,000")
    assert found._repr_html_().startswith("<pre>")
    assert plane.parts


def test_results_side_by_side_have_an_axis_more():
    two = ls.concat([of_checkpoint(spectrum(), "ce"), of_checkpoint(spectrum(2), "sam")])
    assert list(two) == ["ce", "sam"]
    assert two["sam"].parts == ("class 0", "class 1")
    found = two.to_xarray()
    assert found.lambda_max.dims == ("method", "part")
    np.testing.assert_array_equal(found.lambda_max.sel({"method": "ce"}), two["ce"].lambda_max)
    np.testing.assert_array_equal(found.lambda_max.sel({"method": "sam"}), [*two["sam"].lambda_max, np.nan])
    frame = two.to_dataframe()
    assert frame.index.names == ["method", "part"]
    assert frame.loc["sam", "class 1"].trace == two["sam"].trace[1]
    long = two.to_dataframe(long=True)
    assert set(long.method) == {"ce", "sam"}
    assert "class 1" in two._repr_html_()
    assert repr(two) == "2 results of the kind Spectrum along 'method': ce, sam"


def test_runs_of_other_lengths_are_filled_up_with_nan():
    found = ls.concat([classes(2, steps=8), classes(2, steps=12)], "run", ["short", "long"]).to_xarray()
    assert found.sizes["step"] == 12
    short = found.alpha.sel(run="short")
    assert np.isnan(short[..., 8:]).all()
    assert np.isfinite(short[..., :8]).all()


def test_numbers_along_a_new_axis_stay_numbers():
    seeds = ls.concat([sharpness(), sharpness()], along="seed", names=[3, 1])
    assert seeds.to_xarray().seed.values.tolist() == [3, 1]
    assert seeds[1] is seeds["1"]
    assert ls.concat({"a": sharpness(), "b": sharpness()}, along="run").labels == ("a", "b")


@EACH
def test_results_of_every_kind_stand_side_by_side(result):
    found = ls.concat([result, result], along="who", names=["x", "y"]).to_xarray()
    assert found.sizes["who"] == 2
    for name in result.to_xarray().data_vars:
        assert found[name].dims[0] == "who"


def test_figures_of_several_results_take_them_as_they_are():
    two = ls.concat([spectrum(), spectrum()], names=["CE", "SAM"])
    figure = ls.plots.density_grid(two, ("class 0",))
    assert [ax.get_title().split("\n")[0] for ax in figure.axes] == ["CE: class 0", "SAM: class 0"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([],), "results must be at least one result, got list"),
        (([spectrum(), sharpness()],), "a spectrum and a sharpness cannot be combined: give results of one kind"),
        (([spectrum(), spectrum()],), "the provenance of a result does not say its method: pass names"),
        (([spectrum()], "part"), "along='part' is already an axis of a spectrum: choose another name"),
        (([spectrum()] * 2, "seed", ["a"]), "names must be 2 names that differ, got a"),
        (([spectrum()] * 2, "seed", [1, "1"]), "names must be 2 names that differ, got 1, 1"),
    ],
)
def test_what_does_not_stand_side_by_side_is_refused(given, message):
    with pytest.raises(InputError) as caught:
        ls.concat(*given)
    assert str(caught.value) == message
    with refused(InputError, "sam"):
        ls.concat([spectrum()], "seed", ["ce"])["sam"]


def test_several_files_are_read_at_once_and_of_the_kind_that_is_expected(tmp_path):
    files = [tmp_path / "a.h5", tmp_path / "b.h5"]
    for file, result in zip(files, (spectrum(), sharpness()), strict=True):
        ls.save(file, result)
    assert [type(r).__name__ for r in ls.load(files)] == ["Spectrum", "Sharpness"]
    assert ls.load(files[0], ls.Spectrum).parts == ls.load(str(files[0])).parts
    with refused(ls.StoreError, "b.h5"):
        ls.load(files, ls.Spectrum)


def test_without_xarray_the_package_is_named():
    program = (
        "import sys; sys.modules['xarray'] = None; sys.path.append('tests'); import landscape as ls\n"
        "from results_of_all_kinds import spectrum\n"
        "try: spectrum().to_xarray()\n"
        "except ls.InputError as error: assert 'pip install xarray' in str(error)\n"
        "else: raise SystemExit(1)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_every_column_is_of_a_field_and_its_error():
    for kind, table in tables.TABLES.items():
        of_kind = KINDS["surface" if kind == "line" else kind]
        declared = of_kind.__dataclass_fields__
        for column in table:
            for name in filter(None, (column.field, column.error, column.sure)):
                if name == column.error and name not in declared:  # it follows from other fields
                    assert isinstance(getattr(of_kind, name), property), (kind, name)
                else:
                    assert "part" in declared[name].metadata["axes"] or column.values, (kind, name)
        assert len({c.key or c.field for c in table if c.summary}) == sum(bool(c.summary) for c in table)
