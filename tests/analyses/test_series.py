"""An analysis at every checkpoint of a run: the numbers of single runs, parts that overlap, and resuming."""

import dataclasses

import numpy as np
import pytest
import torch
from interruptions import Interrupting
from refusals import refused
from torch import nn

import landscape as ls
from landscape.analyses import directions
from landscape.errors import InputError, StoreError
from landscape.objective.jobs import Interrupted
from landscape.objective.objective import Objective

X = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0] * 20 + [1] * 8 + [2] * 2)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three checkpoints of a training by SGD, with the state of the optimizer."""
    folder = tmp_path_factory.mktemp("run")
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25, momentum=0.5)
    for epoch in range(3):
        beside = {"optimizer": optimizer.state_dict(), "epoch": 10 * epoch}
        torch.save({"model": model.state_dict(), **beside}, folder / f"net-{epoch}.pt")
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(X), Y).backward()
            optimizer.step()
    return folder


def objective(parts="class"):
    return ls.make_objective(network(), (X, Y), parts=parts, dtype="float64")


def at(run, k, parts="class"):
    model = network()
    model.load_state_dict(torch.load(run / f"net-{k}.pt", weights_only=True)["model"])
    return ls.make_objective(model, (X, Y), parts=parts, dtype="float64")


QUICK = {"steps": 6, "probes": 2, "trace": "probes", "backend": "reverse"}
PLAIN = QUICK | {"steps": 3, "probes": 1, "sampling_errors": False}
ANALYSES = {
    "spectrum": (ls.spectrum, QUICK),
    "sharpness": (ls.sharpness, {"draws": 2, "ascent_steps": 2}),
    "surface1d": (ls.surface1d, {"n": 3}),
}


@pytest.fixture(scope="module")
def spectra(run):
    return ls.series(ls.spectrum, objective(), str(run), with_parts=["all"], **QUICK)


def equal(series, k, single, parts):
    own = series.at(k)[parts]
    for f in dataclasses.fields(own):
        value, other = getattr(own, f.name), getattr(single, f.name)
        if f.name != "provenance" and value is not None:
            assert np.array_equal(
                value, other, equal_nan=isinstance(value, np.ndarray) and value.dtype.kind == "f"
            ) or (value != value and other != other), f.name


def test_the_spectra_of_a_series_are_those_of_single_runs_bit_for_bit(run, spectra):
    assert spectra.parts == ("all", "0", "1", "2")
    assert spectra.epoch.tolist() == [0, 10, 20]
    assert spectra.n_samples.tolist() == [30, 20, 8, 2]
    for k in (0, 2):
        equal(spectra, k, ls.spectrum(at(run, k), **QUICK), ["0", "1", "2"])
    equal(spectra, 1, ls.spectrum(at(run, 1, "all"), **QUICK), ["all"])


@pytest.mark.parametrize("name", ["sharpness", "surface1d"])
def test_other_analyses_along_training_have_the_numbers_of_single_runs(run, name):
    analysis, options = ANALYSES[name]
    series = ls.series(analysis, objective(), [run / "net-0.pt", run / "net-2.pt"], **options)
    equal(series, 1, analysis(at(run, 2), **options), ["0", "1", "2"])


def hessian_of(here, rows):
    """The dense Hessian of the mean loss over some samples, by torch.func."""
    theta = here.layout.flat(list(here.theta))
    return torch.func.hessian(lambda t: here.losses(here.layout.tensors(t), X[rows], Y[rows]).mean())(theta)


def test_lambda_max_and_trace_are_those_of_the_dense_hessian(run, spectra):
    for k in (0, 2):
        here = at(run, k, "all")
        for p, rows in enumerate([slice(None), Y == 0, Y == 1, Y == 2]):
            H = hessian_of(here, rows)
            off = abs(spectra.lambda_max[k, p] - float(torch.linalg.eigvalsh(H)[-1]))
            assert off <= spectra.lambda_max_residual[k, p] + 1e-9
            assert abs(spectra.trace[k, p] - float(H.trace())) <= 6 * spectra.trace_stderr[k, p] + 1e-9


def test_the_edge_of_stability_is_known_from_the_optimizer(spectra):
    np.testing.assert_allclose(spectra.learning_rate, 0.25)
    np.testing.assert_allclose(spectra.edge, 2 * 1.5 / 0.25)
    assert spectra.edge_rule == "2 (1 + 0.5) / lr"


def test_the_weights_of_the_objective_take_no_part_and_stay(run, spectra):
    mine = objective()
    before = {name: t.clone() for name, t in mine.model.state_dict().items()}
    again = ls.series(ls.spectrum, mine, run / "net-1.pt", **QUICK)
    np.testing.assert_array_equal(again.lambda_max[0], spectra.lambda_max[1, 1:])
    assert all(torch.equal(t, before[name]) for name, t in mine.model.state_dict().items())


def test_an_unfinished_series_of_another_method_is_not_continued(run, tmp_path):
    """Also if the checkpoints state the method of their training, which has the same name."""
    mine = dataclasses.replace(objective(), source={**objective().source, "method": "ce"})
    out, options = tmp_path / "series.h5", {"operator": "ggn", "method": "lanczos", **PLAIN}
    with pytest.raises(KeyboardInterrupt):
        ls.series(ls.spectrum, mine, str(run), out=out, **options, progress=Interrupting(2))
    with refused(StoreError, "rows", method="lanczos"):
        ls.series(ls.spectrum, mine, str(run), out=out, **options | {"method": "rows"})


def test_an_interrupted_series_says_at_which_checkpoint(run, tmp_path):
    def stop(found):
        if found.epoch.tolist() == [10]:
            raise KeyboardInterrupt

    given = {"draws": 1, "ascent_steps": 1, "finished": stop}
    with refused(Interrupted, 2, 3, overwrite=True):
        ls.series(ls.sharpness, objective(), run, out=tmp_path / "a.h5", **given)
    with refused(Interrupted, 2, 3, "nothing"):
        ls.series(ls.sharpness, objective(), run, **given)


def test_an_interrupted_series_goes_on_within_its_checkpoint(run, spectra, tmp_path, monkeypatch):
    computed, real = [], ls.curvature_operator

    def counted(own: Objective, *args, **options):
        if len(computed) == 3:
            raise KeyboardInterrupt
        computed.append(own)
        return real(own, *args, **options)

    out, mine, some = tmp_path / "series.h5", objective(), [run / "net-0.pt", run / "net-1.pt"]
    options = {"with_parts": ["all"], "out": out, **QUICK, "sampling_errors": False}
    monkeypatch.setattr("landscape.analyses.spectrum_parts.curvature_operator", counted)
    with pytest.raises(KeyboardInterrupt):
        ls.series(ls.spectrum, mine, some, **options)
    assert not out.exists()
    with refused(StoreError, 7, steps=6):
        ls.series(ls.spectrum, mine, some, **options | {"steps": 7})
    with pytest.raises(StoreError, match="was begun with the weights of"):
        ls.series(ls.spectrum, mine, str(run), **options)
    monkeypatch.setattr(
        "landscape.analyses.spectrum_parts.curvature_operator", lambda *a, **o: (computed.append(a), real(*a, **o))[1]
    )
    found = ls.series(ls.spectrum, mine, some, **options)
    assert len(computed) == 4  # two groups at each of two checkpoints, each once
    np.testing.assert_array_equal(found.lambda_max, spectra.lambda_max[:2])
    np.testing.assert_array_equal(ls.load(out).trace, spectra.trace[:2])
    assert not out.with_name("series.h5.partial").exists()


def test_what_cannot_be_a_series_is_refused_before_anything_is_computed(run, monkeypatch):
    monkeypatch.setattr("landscape.analyses.series.together", None)
    mine = objective()
    for match, analysis, options in (
        ("gradients and features", ls.gradients, {}),
        ("0 is a part already", ls.spectrum, {"with_parts": ["0"]}),
        ("names a group twice", ls.spectrum, {"with_parts": ["all", "all"]}),
        ("compares the parts with each other", ls.spectrum, {"with_parts": ["all"], "overlap": True}),
        ("follow from its classes by regroup", ls.surface1d, {"with_parts": ["all"]}),
    ):
        with pytest.raises(InputError, match=match):
            ls.series(analysis, mine, str(run), **options)
    torch.save({"weight": torch.ones(3)}, run.parent / "other.pt")
    with refused(InputError, "other.pt"):
        ls.series(ls.spectrum, mine, [(run.parent / "other.pt", 1)])


@pytest.mark.parametrize("name", ["spectrum", "surface1d"])
def test_an_extended_file_is_that_of_a_run_on_all_checkpoints_bit_for_bit(run, tmp_path, name, monkeypatch):
    analysis, options = ANALYSES[name]
    if name == "spectrum":
        options = PLAIN  # of each number the same holds, and numbers over samples take the time of all others
    given = {**options, "with_parts": ["all"] if name == "spectrum" else []}
    files, done = [run / f"net-{k}.pt" for k in range(3)], []

    def counted(own, **more):
        done.append(own)
        if len(done) == stop:
            raise KeyboardInterrupt
        return analysis(own, **more)

    counted.__name__, stop = name, 0
    out, whole = tmp_path / "some.h5", ls.series(counted, objective(), files, **given)
    each = len(done) // 3
    ls.series(counted, objective(), [files[0], files[2]], out=out, **given)
    with pytest.raises(StoreError, match="exists"):
        ls.series(counted, objective(), files, out=out, **given)
    done.clear()
    stop = each  # within the new checkpoint; what it has finished is not done again
    with pytest.raises(KeyboardInterrupt):
        ls.series(counted, objective(), files, out=out, extend=True, **given)
    assert ls.load(out).epoch.tolist() == [0, 20]
    done.clear()
    stop = 0
    found = ls.series(counted, objective(), files, out=out, extend=True, **given)
    assert len(done) == each
    for series in (found, ls.load(out)):
        assert list(series.provenance["checkpoints"]) == [str(f) for f in files]
        for f in dataclasses.fields(series):
            value, other = getattr(series, f.name), getattr(whole, f.name)
            if f.name != "provenance" and isinstance(value, np.ndarray):
                np.testing.assert_array_equal(value, other, err_msg=f.name)
    assert not list(tmp_path.glob("*.partial"))


def test_a_file_of_drawn_samples_is_extended_with_the_same_draw_only(run, tmp_path):
    files, given = [run / f"net-{k}.pt" for k in range(2)], {"draws": 1, "ascent_steps": 1}
    first, other = (ls.draw_samples(at(run, k), 4) for k in (1, 2))
    whole = ls.series(ls.sharpness, first, files, **given)
    ls.series(ls.sharpness, first, files[:1], out=tmp_path / "a.h5", **given)
    with refused(StoreError, "draws"):
        ls.series(ls.sharpness, other, files, out=tmp_path / "a.h5", extend=True, **given)
    found = ls.series(ls.sharpness, first, files, out=tmp_path / "a.h5", extend=True, **given)
    np.testing.assert_array_equal(found.noise_rise, whole.noise_rise)


def test_a_file_of_earlier_versions_is_extended_where_no_number_of_eigenvalues_is_requested(run, tmp_path):
    files, out = [run / f"net-{k}.pt" for k in range(2)], tmp_path / "a.h5"
    first = ls.series(ls.spectrum, objective(), files[:1], **PLAIN)
    about = dict(first.provenance)
    about["options"] = about["options"] | {"top": 10}  # which they stored for an option that was left out
    ls.save(out, dataclasses.replace(first, provenance=about))
    with refused(StoreError, "overwrite"):
        ls.series(ls.spectrum, objective(), files, out=out, extend=True, top=3, **PLAIN)
    ls.series(ls.spectrum, objective(), files, out=out, extend=True, top=None, **PLAIN)
    assert ls.load(out).epoch.tolist() == [0, 10]


def test_a_file_of_other_options_or_data_is_not_extended(run, tmp_path):
    out = tmp_path / "a.h5"
    given = {"draws": 1, "ascent_steps": 1}
    ls.series(ls.sharpness, objective(), [run / "net-0.pt"], out=out, **given)
    with pytest.raises(StoreError, match=r"a.h5 was made with draws 1, now it is 2"):
        ls.series(ls.sharpness, objective(), run, out=out, extend=True, **given | {"draws": 2})
    with pytest.raises(StoreError, match="was made with partition"):
        ls.series(ls.sharpness, objective("all"), run, out=out, extend=True, **given)
    single = ls.make_objective(network(), (X, Y), parts="class", dtype="float32")
    with pytest.raises(StoreError, match="was made with dtype"):
        ls.series(ls.sharpness, single, run, out=out, extend=True, **given)
    ls.save(tmp_path / "b.h5", ls.spectrum(np.eye(2), steps=1, probes=1))
    with pytest.raises(StoreError, match="is a spectrum and no series"):
        ls.series(ls.sharpness, objective(), run, out=tmp_path / "b.h5", extend=True, **given)
    for files in ({}, ["net-0.pt"], None):
        before = ls.load(out)
        ls.save(
            out, dataclasses.replace(before, provenance={**before.provenance, "checkpoints": files}), overwrite=True
        )
        with pytest.raises(StoreError, match="from which files"):
            ls.series(ls.sharpness, objective(), run, out=out, extend=True, **given)


def test_a_group_with_too_many_rows_is_beside_parts_by_rows(run):
    objective_, rows = objective(), 45  # of 60 of all samples, and of 40 of class 0
    options = {"operator": "ggn", "ggn_tol": 0.0, **QUICK, "cache_bytes": rows * 8 * max(objective_.layout.sizes)}
    found = ls.series(ls.spectrum, objective_, str(run), with_parts=["all"], **options)
    for own in map(found.at, range(3)):
        assert [own.ran(p) for p in range(4)] == [True, False, False, False]
        assert own.has_density


def test_lines_along_the_eigenvectors_of_each_checkpoint_are_joined(run, tmp_path):
    def along_eigenvector(here, **options):
        return ls.surface1d(here, directions.eigen(here, ["all"], 1), n=3, **options)

    found = ls.series(along_eigenvector, objective(), str(run / "net-[02].pt"), out=tmp_path / "lines.h5")
    assert found.axes == ("eigenvector 1 of all",)
    for k, stage in enumerate((0, 2)):
        own = along_eigenvector(at(run, stage))
        assert own.axes != found.axes  # it has the eigenvalue
        np.testing.assert_allclose(found.at(k).loss, own.loss, rtol=1e-9)
    longer = ls.series(along_eigenvector, objective(), str(run / "net-[02].pt"), out=tmp_path / "lines.h5", extend=True)
    np.testing.assert_array_equal(longer.loss, found.loss)
