"""The page that `landscape report` writes: what it says, what it never does, and what it refuses."""

import base64
import dataclasses
import io
import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from made import history
from matplotlib.figure import Figure
from PIL import Image
from results_of_all_kinds import all_kinds, distances, of_checkpoint, series, sharpness, spectrum, trajectory
from scipy.integrate import trapezoid
from surfaces import three_classes, three_lines
from synthetic import bulk, spectrum_of

from landscape.report import curves, figures, open_sources, page
from landscape.report.rows import COLUMNS, columns_of, rows_of
from landscape.results import quadrature, store
from landscape.results.regroup import regroup

NAME = "<script>alert(1)</script>"


class Page(HTMLParser):
    """The elements of a page with their attributes, the text of some, and the rows of the summary."""

    VOID = ("meta", "link", "img", "input", "br")

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.rows, self.texts = [], [], [], {}
        self.feed(text)
        self.close()
        assert self.open == []  # every element is closed

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append((tag, dict(attrs).get("id")))
        if ("table", "summary-table") in self.open:
            if tag == "tr":
                self.rows.append([])
            elif tag in {"td", "th"}:
                self.rows[-1].append([None, ""])
            elif tag == "data":
                self.rows[-1][-1][0] = float(dict(attrs)["value"])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open:
            tag = self.open[-1][0]
            self.texts[tag] = [*self.texts.get(tag, []), data]
        if ("table", "summary-table") in self.open and {"td", "th"} & {tag for tag, _ in self.open}:
            self.rows[-1][-1][1] += data

    def table(self):
        """The summary: (model, split, part) -> heading -> (value, text), empty cells left out."""
        heads, *rows = self.rows
        heads = [text for _, text in heads]
        return {
            tuple(text for _, text in row[:3]): {
                h: tuple(c) for h, c in zip(heads[3:], row[3:], strict=True) if c[0] is not None
            }
            for row in rows
        }

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture
def sources(tmp_path):
    """Save results by the names of their files, and open them as sources of a report."""

    def make(results):
        for name, result in results.items():
            store.save(tmp_path / name, result)
        return open_sources({tmp_path / name: store.load(tmp_path / name) for name in results})

    return make


def test_the_table_has_the_numbers_of_the_files(sources, no_figures):
    results = all_kinds()
    found = Page(page(sources(results))).table()
    headings = {c.key: c.heading for c in COLUMNS}
    spectrum, sharp, plane = (results[f"{name}.h5"] for name in ("spectrum", "sharpness", "surface"))
    sensitivity = results["sensitivity.h5"]
    expected = {
        "trained": spectrum.train_counts, "samples": spectrum.n_samples, "loss": spectrum.loss,
        "accuracy": spectrum.accuracy, "lambda_max": spectrum.lambda_max, "lambda_min": spectrum.lambda_min,
        "trace": spectrum.trace, "negative": spectrum.negative_curvature, "doubling_radius": plane.doubling_radius,
        "plane_rise": plane.worst_rise, "ball_rise": sharp.worst_rise, "noise_rise": sharp.noise_rise,
        "doubling_noise": sharp.doubling_radius,
        "dependence": sensitivity.mean_loss_change[sensitivity.strongest(), np.arange(3)],
    }  # fmt: skip
    for p, part in enumerate(spectrum.parts):
        row = found["a", "train", part]  # of three files, which are of one checkpoint
        assert row.keys() == {headings[key] for key in expected}
        for key, values in expected.items():
            np.testing.assert_equal(row[headings[key]][0], float(values[p]))  # to the bit; nan where there is none
        assert found["b", "train", part]["barrier"][0] == results["line.h5"].barrier[p]
        assert found["c", "train", part]["loss"][0] == results["path.h5"].centre_loss[p]
        assert found["e", "train", part]["gradient norm"][0] == results["gradients.h5"].norm[-1, p]
        assert found["f", "train", part]["feature quality"][0] == results["features.h5"].quality[-1, p]
        assert (
            found["gsa-gkp", "test", part][headings["accuracy"]][0]
            == results["history.h5"].test_accuracy_per_class[-1, p]
        )
    way = headings["way"]
    assert found["d", "train", "class 2"][way][0] == results["distances.h5"].norm[:, 1].mean()
    assert np.isnan(found["d", "train", "class 1"][way][0])  # it has no convergence point
    assert found["g", "train", "class 1"]["lambda_max"][0] == results["series.h5"].lambda_max[-1, 1]
    assert len(found) == 8 * 3


def test_measures_in_percent_are_drawn_in_percent(sources):
    made = spectrum()
    rows = rows_of(sources({"a.h5": of_checkpoint(made)}))
    drawn = curves.frequency(rows, columns_of(rows))
    names = {measure["key"]: measure["name"] for measure in drawn["measures"]}
    assert [names[key].endswith(" %") for key in ("accuracy", "negative", "lambda_max")] == [True, True, False]
    for p, point in enumerate(drawn["points"]):
        values = point["values"]
        assert values["accuracy"][0] == pytest.approx(100 * made.accuracy[p])
        assert values["negative"] == pytest.approx([
            100 * made.negative_curvature[p],
            100 * made.negative_curvature_stderr[p],
        ])
        assert values["lambda_max"] == [made.lambda_max[p], made.lambda_max_residual[p]]


def test_numbers_without_an_end_are_written_as_a_browser_reads_them(sources, no_figures):
    radii = np.array([np.inf, -np.inf, 2.0])
    text = page(sources({"s.h5": of_checkpoint(three_classes(5, 5, doubling_radius=radii))}))
    assert text.count('<data value="Infinity">') == text.count('<data value="-Infinity">') == 1
    assert 'inf">' not in text


def test_two_spectra_of_one_checkpoint_and_other_data_have_rows_of_their_own(sources, no_figures):
    one = of_checkpoint(spectrum())
    other = of_checkpoint(dataclasses.replace(spectrum(2), operator="ggn"))
    elsewhere = of_checkpoint(sharpness(), split="test")
    found = Page(page(sources({"h.h5": one, "g.h5": other, "s.h5": elsewhere}))).table()
    assert [(model, part) for model, _, part in found] == [
        *(("h", f"class {p}") for p in range(3)),
        *(("g", f"class {p}") for p in range(2)),
        *(("s", f"class {p}") for p in range(3)),
    ]
    assert "trace" not in found["s", "test", "class 0"]


def test_a_series_and_a_result_of_its_last_checkpoint_have_rows_of_their_own(sources, no_figures):
    single = dataclasses.replace(spectrum(), operator="ggn", lambda_max=np.array([7.0, 8.0, 9.0]))
    several = series()
    found = Page(page(sources({"g.h5": of_checkpoint(several), "h.h5": of_checkpoint(single)}))).table()
    assert [(model, part) for model, _, part in found] == [(m, f"class {p}") for m in "gh" for p in range(3)]
    for p in range(3):
        assert found["g", "train", f"class {p}"]["lambda_max"][0] == several.lambda_max[-1, p]
        assert found["h", "train", f"class {p}"]["lambda_max"][0] == single.lambda_max[p]


def test_a_line_shares_the_rows_of_a_plane_and_the_plane_of_a_path_does_not(sources, no_figures):
    radii = dict(zip(("p.h5", "l.h5", "t.h5"), np.arange(9.0).reshape(3, 3), strict=True))
    made = dict(zip(radii, (three_classes(5, 5), three_lines(), trajectory()), strict=True))
    results = {name: of_checkpoint(dataclasses.replace(r, doubling_radius=radii[name])) for name, r in made.items()}
    found = Page(page(sources(results))).table()
    assert len(found) == 6
    row = found["p", "train", "class 2"]
    assert row["barrier"][0] == results["l.h5"].barrier[2]
    assert row["doubling radius in the plane"] == (2.0, "2.000")
    assert row["doubling radius on the line"] == (5.0, "5.000")
    assert found["t", "train", "class 2"]["doubling radius in the plane"] == (8.0, "8.000")


def test_models_have_the_shortest_names_that_differ(tmp_path):
    def names(results):
        for name, result in results.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            store.save(tmp_path / name, result, overwrite=True)
        return [source.model for source in open_sources({tmp_path / name: r for name, r in results.items()})]

    ce, sam = of_checkpoint(spectrum(), "ce"), of_checkpoint(spectrum(), "sam")
    assert names({"x.h5": ce, "y.h5": sam}) == ["ce", "sam"]
    again = of_checkpoint(spectrum(), "c2", method="ce")
    assert names({"x.h5": ce, "y.h5": again}) == ["ce/last", "c2/last"]
    runs = {"x.h5": ce, "y.h5": again, "one/history.h5": history(), "two/history.h5": history()}
    assert names(runs) == ["ce/last", "c2/last", "one/history", "two/history"]
    assert names({"x.h5": ce, "y.h5": ce}) == ["x", "y"]
    assert names({"x.h5": sharpness(), "y.h5": spectrum()}) == ["x", "y"]  # of which nothing is known


def test_what_a_number_does_not_tell_is_said(sources, no_figures):
    one = dataclasses.replace(spectrum(probes=1), converged=np.array([True, False, True]))
    plane = three_classes(5, 5, doubling_radius=np.array([np.nan, np.inf, 2.0]), train_counts=np.full(3, np.nan))
    found = Page(page(sources({"a.h5": of_checkpoint(one), "b.h5": of_checkpoint(plane, "b")}))).table()
    assert [found["a", "train", f"class {p}"]["lambda_max"][1].endswith("*") for p in range(3)] == [False, True, False]
    assert found["a", "train", "class 0"]["trace"][1].endswith("± ?")
    row = found["b", "train", "class 0"]
    assert row["doubling radius in the plane"][1] == "unknown"
    assert found["b", "train", "class 1"]["doubling radius in the plane"][1] == "none"
    assert row["training samples"][1] == "unknown"


@pytest.fixture
def quick_pictures(monkeypatch):
    """Draw figures, but do not turn them into pixels."""
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **how: file.write(b"a picture"))


def test_every_kind_has_its_figures(sources, quick_pictures):
    text = page(sources(all_kinds()), "All kinds")
    found = Page(text)
    pictures = found.all("img")
    possible = {words for of_kind in figures.SHOWN.values() for words in of_kind.values()}
    drawn = {words for words in possible for i in pictures if i["alt"].startswith(f"{words}: ")}
    left_out = {
        *(figures.SHOWN["spectrum"][kind] for kind in ("overlap", "gradients", "subspaces", "images", "summary")),
        figures.SHOWN["gradients"]["epochs"], figures.SHOWN["history"]["cosines"],
    }  # fmt: skip
    assert possible - drawn == left_out
    assert "gsa-gkp did not measure gradient cosines" in "".join(found.texts["li"])  # and says why
    assert len(text.encode()) < 5.5e6  # of which plotly has 4.8
    assert {tag for tag, _ in found.elements} >= {"header", "nav", "main", "footer", "h1", "h2", "h3"}
    ids = [attrs["id"] for _, attrs in found.elements if "id" in attrs]
    assert len(set(ids)) == len(ids)
    assert {a["href"][1:] for a in found.all("a")} <= set(ids)
    assert found.all("html") == [{"lang": "en"}]
    assert "Euclidean distance" in "".join(found.texts["caption"])  # the maps in numbers


def test_a_picture_is_a_small_webp_of_the_size_that_it_says(sources):
    (source,) = sources({"a.h5": trajectory()})
    picture = figures.pictures(source.result)[0][0]
    kind, content = picture.uri.split(";base64,")
    assert kind == "data:image/webp"
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert image.width / image.height == pytest.approx(picture.width / picture.height, rel=0.01)
    assert len(content) < 2e5  # so that with plotly 25 of them fit in ten million


def test_a_page_asks_nothing_of_a_network(sources, no_figures):
    text = page(sources({"a.h5": spectrum(), "b.h5": three_classes(5, 5)}))
    found = Page(text)
    for tag, attrs in found.elements:
        for name in {"src", "href", "srcset", "action", "data", "poster"} & set(attrs):
            assert attrs[name].startswith(("#", "data:")), (tag, attrs)
    (policy,) = [m["content"] for m in found.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    (style,) = found.texts["style"]
    assert "url(" not in style
    assert "@import" not in style


def test_a_class_may_be_called_what_it_likes(sources, no_figures):
    parts = (NAME, "{{ 7 * 7 }}", " a & b  </script>")
    results = {
        "s.h5": of_checkpoint(dataclasses.replace(spectrum(), parts=parts), NAME[:4]),
        "p.h5": of_checkpoint(three_classes(5, 5, parts=parts, verdict=NAME)),
        "d.h5": of_checkpoint(dataclasses.replace(distances(), points=parts)),
    }
    text = page(sources(results), NAME)
    found = Page(text)
    assert [part for _, _, part in found.table()][:3] == list(parts)
    assert found.texts["h1"] == [NAME]
    scripts = [attrs for attrs in found.all("script")]
    assert scripts == [{"type": "application/json", "id": "data"}, {}, {}, {}, {}]  # plotly's and three of ours
    data = json.loads(found.texts["script"][0])
    assert data["densities"]["parts"] == list(parts)
    values = [attrs.get("value") for attrs in found.all("option")]
    assert set(parts) <= set(values)
    assert NAME not in text


def test_the_same_files_give_the_same_page(sources, quick_pictures):
    made = sources({"a.h5": sharpness()})
    assert page(made) == page(made)


def test_provenance_is_there_in_full(sources, no_figures):
    options = {"seed": 3, "radii": [0.1, 0.2], "nothing": None, "empty": {}}
    (source,) = made = sources({"a.h5": of_checkpoint(sharpness(), options=options)})
    found = Page(page(made))
    terms = found.texts["dt"]
    assert {"SHA-256 of the file", "rho", "checkpoint_sha256", "options", "seed", "radii", "nothing"} <= set(terms)
    values = "\n".join(found.texts["dd"])
    assert source.sha256 in values
    assert "[0.1, 0.2]" in values
    assert values.count("none") == 2


def test_the_script_gets_the_losses_of_planes_with_holes_and_of_no_others(sources):
    plane = three_classes(5, 5)
    loss = plane.loss.copy()
    loss[1, 2, 3], loss[1, 0, 0] = np.inf, np.nan
    made = sources({
        "a.h5": dataclasses.replace(plane, loss=loss),
        "b.h5": three_lines(),
        "c.h5": dataclasses.replace(plane, loss=np.full((3, 5, 5), np.nan)),
        "d.h5": trajectory(),
    })
    found = curves.surfaces(made)
    assert [s["name"] for s in found["surfaces"]] == ["a (surface)", "d (trajectory)"]
    first, second = found["surfaces"]
    assert first["loss"][1][2][3] is None
    assert first["loss"][1][0][0] is None
    np.testing.assert_allclose(first["loss"][2], plane.loss[2], rtol=1e-5)
    assert [m["names"] for m in second["marks"]] == [["ce-1", "ce-2"], ["sam-1", "sam-2"]]
    assert second["marks"][0]["path"]
    lowest = min(np.nanmin(loss), made[3].result.loss.min())
    assert found["scale"]["low"] <= lowest


def test_many_parts_of_a_plane_are_joined(sources):
    from surfaces import grid, paraboloid, surface

    of = grid(np.linspace(-1, 1, 3), np.linspace(-1, 1, 3))
    loss = np.concatenate([paraboloid(of, 1.0, p + 1.0) for p in range(30)])
    counts = np.arange(30) * 10 + 1
    found = curves.surfaces(sources({"a.h5": surface(of, loss, n_samples=counts, train_counts=counts)}))["surfaces"][0]
    assert [name.split(" (")[0] for name in found["parts"]] == ["many", "medium", "few"]
    assert "30 parts joined" in found["joining"]


@pytest.mark.parametrize("axis", quadrature.AXES)
@pytest.mark.parametrize("width", [1e-3, 0.02, 0.5])
def test_the_page_broadens_as_the_package_does(sources, axis, width):
    """Nodes in the page have nine digits: of the range R they miss by 5e-10 R, a share of a width of 1e-3 R or more.

    Ten widths away a Gaussian then misses by 10 * 5e-7 of itself.
    """
    if shutil.which("node") is None:
        pytest.skip("no node here to run the page's script: apt-get install nodejs")
    matrices = {"bulk": bulk(40.0), "few": np.repeat([-1.0, 0.0, 3.0], [2, 195, 3])}
    found = spectrum_of(matrices, probes=3, steps=15)  # of "few" a run has 3 steps
    data = curves.densities(sources({"a.h5": found}))
    script = (resources.files("landscape.report") / "page" / "density.js").read_text()
    nodes = [quadrature.nodes_and_weights(found.alpha[p], found.beta[p], found.steps[p]) for p in range(2)]
    places = np.concatenate([quadrature.symlog(n) if axis == "symlog" else n for n, _ in nodes])
    low, high = float(np.nanmin(places)), float(np.nanmax(places))
    sigma = width * (high - low)
    call = f"""
        const parts = {json.dumps(data["spectra"][0]["parts"])};
        const made = Object.values(parts).map((p) => density(p, {sigma!r}, "{axis}", 1, [{low!r}, {high!r}]));
        const plain = ({{ positions, mean, spread }}) => [positions, mean, spread].map((a) => Array.from(a));
        console.log(JSON.stringify(made.map(plain)));
    """
    words = ["node", "-e", script + call]
    printed = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    for (positions, mean, spread), (n, w) in zip(printed, nodes, strict=True):
        positions = np.array(positions)
        assert (np.diff(positions) > 0).all()
        grid = quadrature.symlog_inverse(positions) if axis == "symlog" else positions
        expected = quadrature.density(n, w, width=sigma, axis=axis, grid=grid)
        peak = expected.mean.max()
        np.testing.assert_allclose(mean, expected.mean, rtol=1e-5, atol=1e-12 * peak)
        np.testing.assert_allclose(spread, expected.spread, rtol=1e-5, atol=1e-7 * peak)
        assert trapezoid(mean, positions) == pytest.approx(1, abs=1e-6)


def test_one_probe_has_no_spread(sources):
    if shutil.which("node") is None:
        pytest.skip("no node here to run the page's script: apt-get install nodejs")
    script = (resources.files("landscape.report") / "page" / "density.js").read_text()
    call = (
        'console.log(density({nodes: [[0, 1]], weights: [[0.5, 0.5]]}, 0.1, "linear", 1, [0, 1]).spread.every(isNaN))'
    )
    assert subprocess.run(["node", "-e", script + call], check=True, capture_output=True, text=True).stdout == "true\n"


def test_a_spectrum_without_a_density_is_left_out_of_the_chart_only(sources, no_figures):
    ends = {"alpha": None, "beta": None, "steps": None}
    whole, none = spectrum(), dataclasses.replace(spectrum(), **ends)
    some = dataclasses.replace(none, eigenvalues=np.ones((3, 2)), eigenvalue_rest=np.array([0.1, np.nan, 0.1]))
    given = sources({"a.h5": whole, "b.h5": none, "c.h5": some})
    drawn = curves.densities(given)
    assert [list(of["parts"]) for of in drawn["spectra"]] == [list(whole.parts), [whole.parts[0], whole.parts[2]]]
    assert len(Page(page(given)).table()) > 0
    without = sources({"d.h5": none})
    assert curves.densities(without) is None
    found = Page(page(without))
    assert "part" not in {attrs["id"] for attrs in found.all("select")}
    assert any("--density" in text for text in found.texts["p"])


def test_parts_of_one_name_but_other_classes_have_rows_and_curves_of_their_own(sources, no_figures):
    parts = {"parts": ("head", "middle", "tail")}

    def made(result, **partition):
        found = of_checkpoint(dataclasses.replace(result, **parts))
        about = {} if not partition else {"partition": partition}
        return dataclasses.replace(found, provenance=found.provenance | about)

    one = made(spectrum(), head=[0], middle=[1, 2], tail=[3])
    other = made(sharpness(), head=[3], middle=[2, 1], tail=[0])
    unknown = made(three_classes(5, 5))
    given = sources({"a.h5": one, "b.h5": other, "c.h5": unknown})
    found = rows_of(given)
    assert [row.part for row in found] == [
        "head (class 0)", "middle", "tail (class 3)", "head (class 3)", "tail (class 0)",
    ]  # fmt: skip
    for row, holds in zip(found, [True, True, True, False, False], strict=True):
        assert ("lambda_max" in row.cells) is holds
        assert ("ball_rise" in row.cells) is (row.part == "middle" or not holds)
    assert list(curves.densities(given)["spectra"][0]["parts"]) == ["head (class 0)", "middle", "tail (class 3)"]


def test_a_surface_with_weights_of_ones_own_has_its_figures(sources, quick_pictures):
    """And rows of its own: its losses are those of other mixtures of the classes."""
    found = of_checkpoint(three_classes(5, 5))
    own = regroup(found, "class", dict(zip(found.parts, (1.0, 2.0, 3.0), strict=True)))
    whole = regroup(found, "all", dict(zip(found.parts, (1.0, 2.0, 3.0), strict=True)))
    made = sources({"own.h5": own, "natural.h5": regroup(found, "all"), "own-all.h5": whole})
    rows = Page(page(made)).table()
    assert rows["natural", "train", "all"]["loss"][0] != rows["own-all", "train", "all"]["loss"][0]


@pytest.mark.parametrize("other", [{"params": "3.*"}, {"loss": "focal"}, {"data_sha256": "b"}, {"split": "test"}])
def test_numbers_of_another_block_loss_or_data_stand_in_rows_of_their_own(sources, no_figures, other):
    """Under the name of their own first file: a row that mixes them has a number that nobody computed."""

    def made(result, **about):
        found = of_checkpoint(result)
        return dataclasses.replace(found, provenance={**found.provenance, "params": "all trainable", **about})

    whole, block, ball = made(spectrum()), made(spectrum(), **other), made(sharpness(), **other)
    found = Page(page(sources({"whole.h5": whole, "block.h5": block, "ball.h5": ball}))).table()
    rises = {name for (name, *_), cells in found.items() if "worst rise in the ball" in cells}
    assert rises == {"block"}
    alone = Page(page(sources({"w.h5": whole, "b.h5": ball}))).table()
    assert {name for (name, *_), cells in alone.items() if "worst rise in the ball" in cells} == {"b"}
    assert {name for (name, *_), cells in alone.items() if "trace" in cells} == {"w"}


def test_a_report_needs_no_torch():
    program = "import sys, landscape.report, landscape.cli.report; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.slow
def test_a_page_of_a_typical_run_is_small_enough_to_be_mailed():
    """Some thirty figures are drawn of spectra, a surface, paths, distances, gradients and features."""
    files = [
        Path(__file__).resolve().parents[2] / "figures" / "data" / f"digits.{k}.h5"
        for k in ("ce.classes", "ce.surface")
    ]
    text = page(open_sources({file: store.load(file) for file in files}))
    pictures = [len(image["src"]) for image in Page(text).all("img")]
    assert len(pictures) >= 4
    assert max(pictures) < 400_000
    assert len(text.encode()) - sum(pictures) < 6e6  # with the script that turns surfaces
