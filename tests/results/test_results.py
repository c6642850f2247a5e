"""Results: their axes agree, and joining them loses and invents nothing."""

import dataclasses

import numpy as np
import pytest
from made import PAIRS, example, features, history, spectrum
from refusals import refused
from results_of_all_kinds import series, sharpness

from landscape.cli import compared
from landscape.errors import InputError
from landscape.plots.figures import features as of_features
from landscape.plots.figures import sharpness as of_sharpness
from landscape.results import KINDS, Features, Points, Spectrum, Trajectory, store
from landscape.results.axes import check_axes, concatenate
from landscape.results.groups import partition_of


def test_an_array_that_is_too_short_is_named_with_the_one_that_it_contradicts():
    with refused(InputError, 3, "part", 2):
        spectrum("a", "b", loss=np.zeros(3))


def test_an_array_with_an_axis_too_many_is_refused():
    with refused(InputError, "loss", "part", 2, 1):
        spectrum("a", "b", loss=np.zeros((2, 1)))


def test_axes_of_one_name_agree_across_arrays():
    with refused(InputError, 4, "step", 3):
        spectrum("a", beta=np.zeros((1, 2, 4)))


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (Features, "nearest", -2),
        (Features, "nearest", 99),
        (Trajectory, "mark_run", -2),
        (Trajectory, "mark_run", 99),
        (Spectrum, "gram_part", -1),
        (Spectrum, "gram_part", 99),
        (Spectrum, "gram_sample", -1),
        (Spectrum, "gram_sample", 99),
    ],
)
def test_a_position_that_does_not_exist_is_refused(kind, name, value):
    result = example(kind)
    values = getattr(result, name).copy()
    values.flat[0] = value
    with refused(InputError, name):
        dataclasses.replace(result, **{name: values})
    with refused(InputError, name):
        dataclasses.replace(result, **{name: np.zeros(values.shape)})


def test_minus_one_is_no_neighbour_and_no_run():
    for kind, name in ((Features, "nearest"), (Trajectory, "mark_run")):
        result = example(kind)
        check_axes(dataclasses.replace(result, **{name: np.full_like(getattr(result, name), -1)}))


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("alpha", (1, 0, 2), np.nan),
        ("beta", (1, 0, 2), np.inf),
        ("steps", (1, 0), 0),
        ("steps", (1, 0), 4),
        ("steps", (1, 0), -1),
    ],
)
def test_runs_of_lanczos_that_cannot_be_are_refused(name, place, value):
    values = getattr(spectrum("a", "b"), name).copy()
    values[place] = value
    with refused(InputError, name, "b"):
        spectrum("a", "b", **{name: values})
    with refused(InputError, "steps"):
        spectrum("a", "b", steps=np.full((2, 2), 3.0))


def test_a_part_without_runs_and_coefficients_beyond_a_run_may_be_anything():
    alpha = spectrum("a", "b").alpha.copy()
    alpha[0], alpha[1, :, 2] = np.nan, np.nan
    check_axes(spectrum("a", "b", alpha=alpha, steps=np.array([[0, 0], [2, 2]])))


@pytest.mark.parametrize(
    ("name", "value"),
    [("gram", np.nan), ("gram_sign", np.nan), ("sample_weight", -1.0), ("sample_weight", np.nan)],
)
def test_rows_of_no_finite_products_or_weights_are_refused(name, value):
    result = example(Spectrum)
    values = getattr(result, name).copy()
    values.flat[0] = value
    with refused(InputError, name):
        dataclasses.replace(result, **{name: values})


def test_a_row_of_a_sample_that_its_part_does_not_have_is_refused():
    result = example(Spectrum)
    trace = result.sample_trace.copy()
    trace[result.gram_part[0], result.gram_sample.max() :] = np.nan
    samples = np.full_like(result.gram_sample, result.gram_sample.max())
    with refused(InputError, "gram_sample"):
        dataclasses.replace(result, sample_trace=trace, gram_sample=samples)


def test_only_an_optional_array_may_be_missing():
    check_axes(spectrum("a", ritz_vectors=None))
    with refused(InputError, "loss"):
        spectrum("a", loss=None)


def test_a_part_is_found_by_its_name():
    assert spectrum("a", "b").index("b") == 1
    with refused(InputError, "c"):
        spectrum("a", "b").index("c")


def test_joining_keeps_the_order_and_every_number():
    first, second = spectrum("b"), spectrum("a", "c")
    joined = concatenate([first, second])
    assert joined.parts == ("b", "a", "c")
    for item in dataclasses.fields(Spectrum):
        if item.metadata["axes"] is not None and item.name not in ("parts", *PAIRS):
            pieces = [getattr(first, item.name), getattr(second, item.name)]
            np.testing.assert_array_equal(getattr(joined, item.name), np.concatenate(pieces), item.name)


def test_joining_one_result_gives_its_numbers():
    only = spectrum("a", "b")
    assert concatenate([only]).alpha.tobytes() == only.alpha.tobytes()


def test_shorter_runs_are_filled_up_with_nan_at_their_end():
    short, long = spectrum("a", lengths={"step": 2}), spectrum("b", lengths={"step": 4})
    joined = concatenate([short, long])
    assert joined.alpha.shape == (2, 2, 4)
    np.testing.assert_array_equal(joined.alpha[0, :, :2], short.alpha[0])
    assert np.isnan(joined.alpha[0, :, 2:]).all()
    assert not np.isnan(joined.alpha[1]).any()
    assert joined.steps.tolist() == [[2, 2], [4, 4]]


def test_integers_are_not_filled_up():
    with refused(InputError, "steps"):
        concatenate([spectrum("a"), spectrum("b", lengths={"probe": 3})])


def test_results_of_different_settings_do_not_join():
    with refused(InputError, 0.25):
        concatenate([spectrum("a"), spectrum("b", tol=0.5)])


def test_a_scalar_without_a_value_agrees_with_itself_only():
    assert np.isnan(concatenate([spectrum("a", tol=np.nan), spectrum("b", tol=np.nan)]).tol)
    for tols in ([np.nan, 0.5], [0.5, np.nan]):
        with refused(InputError, tols[0]):
            concatenate([spectrum("a", tol=tols[0]), spectrum("b", tol=tols[1])])


class Torus(Spectrum):
    kind = "torus"


def test_results_of_different_kinds_do_not_join():
    torus = Torus(**vars(spectrum("b")))
    with refused(InputError, "spectrum", "torus"):
        concatenate([spectrum("a"), torus])
    assert concatenate([torus, torus]).parts == ("b", "b")


def test_what_a_result_does_not_have_is_nan_or_zero_beside_others():
    runs = ("alpha", "beta", "steps", "probe_norm2", "trace_samples", "negative_mass")
    known, without = spectrum("a"), spectrum("b", "c", **dict.fromkeys(runs))
    assert all(getattr(concatenate([without, without]), name) is None for name in runs)
    for joined, place in ((concatenate([known, without]), 0), (concatenate([without, known]), 2)):
        others = [p for p in range(3) if p != place]
        for name in runs:
            np.testing.assert_array_equal(getattr(joined, name)[place], getattr(known, name)[0])
            left = getattr(joined, name)[others]
            assert (left == 0).all() if name == "steps" else np.isnan(left).all()
        assert [joined.ran(p) for p in range(3)] == [p == place for p in range(3)]


def test_the_provenance_is_the_first_ones():
    joined = concatenate([spectrum("a", provenance={"seed": 1}), spectrum("b", provenance={"seed": 2})])
    assert joined.provenance == {"seed": 1}


def test_nothing_to_join_is_an_error():
    with refused(InputError, "results"):
        concatenate([])


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_kind_comes_back_from_its_file(kind, tmp_path):
    result = example(kind)
    store.save(tmp_path / "r.h5", result)
    back = store.load(tmp_path / "r.h5")
    assert type(back) is kind
    for item in dataclasses.fields(kind):
        value, found = getattr(result, item.name), getattr(back, item.name)
        assert type(found) is type(value)
        np.testing.assert_array_equal(found, value, item.name)


def test_arrays_without_the_joined_axis_must_agree():
    first, other = (example(Points, seed=s) for s in (0, 1))
    assert concatenate([first, first]).loss.shape == (2 * len(first.point), len(first.parts))
    with refused(InputError, "n_samples"):
        concatenate([first, other])


def test_an_array_over_pairs_does_not_join():
    with refused(InputError, "part"):
        concatenate([spectrum("a", overlap=np.ones((1, 1))), spectrum("b", overlap=np.ones((1, 1)))])


ODD = [5, "x", [1, [2]], {"name": [3], "alpha_end": "x", "with_parts": 5, "a": 7}, None, True, np.inf]


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_an_entry_of_provenance_of_another_class_is_as_one_that_is_missing(odd):
    about = dict.fromkeys(("options", "checkpoints", "partition", "recipe", "data", "classifier", "n_classes"), odd)

    def made(result):
        return dataclasses.replace(result, provenance=about)

    assert made(history()).idle == ()
    assert partition_of(made(spectrum("a"))) is None
    assert made(series()).at(0).parts == series().parts
    # private: the lines under a figure, which need no drawing
    assert "samples" not in of_sharpness._about(made(sharpness())) + of_features._about(made(features()))
    looks = compared.COMPARISONS["sharpness"].looks
    assert isinstance(looks["ascent steps"](made(sharpness())), str)
    pair = [made(spectrum("a")), dataclasses.replace(spectrum("a"), provenance={"classifier": [[1]]})]
    assert len(compared._classifiers(["one", "other"], pair)) == (odd is not None)


def test_what_a_provenance_states_is_found_inside_it():
    found = spectrum("a", provenance={"data": {"name": "toy"}, "amp": True})
    assert found.stated("data", "name", of=str) == "toy"
    assert found.stated("amp", of=bool) is True
    assert found.stated("amp", of=int) is None
    assert found.stated("data", "name", "first", of=str) is None
