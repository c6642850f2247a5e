"""Groups and weights of a finished surface: the whole is the weighted sum, and what is not linear is taken anew."""

import dataclasses
import json

import numpy as np
import pytest
from cases import CASES
from exact import dense
from refusals import refused
from surfaces import grid, paraboloid, surface, three_classes, three_lines

from landscape.analyses.spectrum import spectrum
from landscape.errors import InputError
from landscape.results import Trajectory
from landscape.results.grid import barrier, summary
from landscape.results.regroup import grid_of, regroup
from trainers import losses

COUNTS = np.array([9.0, 5.0, 1.0])  # samples of the fixtures' classes
TRAINED = np.array([500.0, 50.0, 5.0])


def test_natural_weights_give_the_mean_over_samples():
    """Losses of single samples, of classes of 9, 5 and 1: the mean of all is the whole's."""
    rng = np.random.default_rng(0)
    of = grid(np.linspace(-1, 1, 5), np.linspace(-1, 1, 4))
    samples = [rng.random((int(n), 4, 5)) for n in COUNTS]
    correct = [rng.random((int(n), 4, 5)) < 0.5 for n in COUNTS]
    per_class = surface(
        of,
        np.stack([s.mean(axis=0) for s in samples]),
        accuracy=np.stack([c.mean(axis=0) for c in correct]),
        centre_loss=np.array([s[:, 0, 0].mean() for s in samples]),
    )
    whole = regroup(per_class, "all")
    np.testing.assert_allclose(whole.loss[0], np.concatenate(samples).mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(whole.accuracy[0], np.concatenate(correct).mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(whole.centre_loss[0], np.concatenate(samples)[:, 0, 0].mean(), rtol=1e-14)
    assert whole.parts == ("all",)
    assert (whole.n_samples[0], whole.train_counts[0]) == (15, 555)


def test_the_trace_of_a_weighted_loss_is_that_of_its_own_hessian(tmp_path):
    """Against the dense Hessian of the weighted loss."""
    objective = CASES["mlp-relu"].objective()
    found = spectrum(objective, steps=3, probes=1, trace="exact")
    weights = {"0": 1.0, "1": 0.0, "2": 3.0}
    (tmp_path / "w.json").write_text(json.dumps(weights))
    H = [dense(objective, p) for p in range(3)]
    n = objective.counts
    expected = {
        "natural": sum(n[p] * H[p] for p in range(3)) / n.sum(),
        "balanced": sum(H) / 3,
        str(tmp_path / "w.json"): (H[0] + 3 * H[2]) / 4,
    }
    for name, matrix in expected.items():
        mixed = regroup(found, "all", name)
        assert mixed.trace[0] == pytest.approx(matrix.trace().item(), rel=1e-9)
        assert mixed.trace_stderr[0] == 0
    assert mixed.provenance["regrouped"]["weights"] == weights
    ends = regroup(found, {"rest": [1, 2], "first": ["0"]})
    rest = (n[1] * H[1] + n[2] * H[2]) / (n[1] + n[2])
    np.testing.assert_allclose(ends.trace, [rest.trace().item(), H[0].trace().item()], rtol=1e-9)
    assert ends.n_samples.tolist() == [n[1] + n[2], n[0]]


def test_the_error_of_a_mixed_trace_is_at_most_that_of_errors_that_go_together():
    objective = CASES["mlp-tanh"].objective()
    found = spectrum(objective, steps=4, probes=5, trace="probes")
    mixed = regroup(found, "all", "balanced")
    assert mixed.trace_stderr[0] == pytest.approx(found.trace_stderr.mean())
    together = found.trace_samples.mean(0)  # the parts share their probes
    assert together.std(ddof=1) / np.sqrt(np.isfinite(together).sum()) <= mixed.trace_stderr[0] * (1 + 1e-9)


def drw(train_counts, beta):
    """Transcription of the weights of Cao et al.'s deferred re-weighting, for one sample of each class."""
    effective_num = 1.0 - np.power(beta, train_counts)
    per_cls_weights = (1.0 - beta) / np.array(effective_num)
    return per_cls_weights / np.sum(per_cls_weights) * len(train_counts)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("natural", COUNTS),
        ("balanced", np.ones(3)),
        ("training", TRAINED),
        ("drw", TRAINED * drw(TRAINED, 0.9999)),
        ({"class 0": 0.0, "class 1": 2.0, "class 2": 6.0}, np.array([0.0, 2.0, 6.0])),
    ],
)
def test_every_weighting_is_a_weighted_mean_of_loss_accuracy_centre_and_marks(weights, expected):
    per_class = three_classes(marks=("a", "b"))
    found = regroup(per_class, "all", weights)
    shares = expected / expected.sum()
    for name, axis in (("loss", 0), ("accuracy", 0), ("centre_loss", 0), ("mark_loss", 1), ("mark_accuracy", 1)):
        mean = np.average(getattr(per_class, name), axis=axis, weights=shares)
        np.testing.assert_allclose(np.take(getattr(found, name), 0, axis=axis), mean, rtol=1e-13, err_msg=name)


def test_deferred_weights_are_those_that_the_training_loss_has():
    """The weighted cross-entropy of a batch that holds every training sample, by the trainer's own function."""
    import torch

    counts = np.array([7, 3, 1])
    rng = np.random.default_rng(1)
    values = rng.random(counts.sum())
    labels = torch.from_numpy(np.repeat(np.arange(3), counts))
    weights = losses.effective_number_weights(counts)
    loss = losses.reweighted(lambda logits, labels: torch.from_numpy(values), weights)(torch.zeros(11, 3), labels)
    of = grid([0.0])
    means = np.array([values[labels == c].mean() for c in range(3)])
    found = regroup(surface(of, means[:, None, None], train_counts=counts), "all", "drw")
    assert found.loss[0, 0, 0] == pytest.approx(float(loss.mean()), rel=1e-12)


def test_beta_leads_from_the_training_distribution_to_balance():
    per_class = three_classes()

    def whole(weights, **options):
        return regroup(per_class, "all", weights, **options).loss

    np.testing.assert_allclose(whole("drw", beta=0.0), whole("training"), rtol=1e-12)
    np.testing.assert_allclose(whole("drw", beta=1 - 1e-9), whole("balanced"), rtol=1e-5)
    with refused(InputError, "beta", 1):
        whole("drw", beta=1.0)


def test_a_barrier_is_that_of_the_groups_own_line_and_no_mean_of_barriers():
    lines = three_lines()
    found = regroup(lines, {"two": ["class 1", "class 2"]}, "balanced")
    own = barrier(lines.xcoordinates, lines.loss[1:].mean(axis=0))
    np.testing.assert_array_equal(found.barrier, own)
    assert found.barrier[0] < 0.9 * lines.barrier[1:].mean()


def test_all_that_follows_from_the_losses_is_that_of_the_groups_own_losses():
    per_class = three_classes(nx=21, ny=21)
    found = regroup(per_class, "all", "training")
    expected = summary(
        grid_of(per_class),
        parts=["all"],
        loss=found.loss,
        centre_loss=found.centre_loss,
        radius=per_class.radius,
        batch_norm="keep",
    )
    for name, value in expected.items():
        np.testing.assert_array_equal(getattr(found, name), value)
    # Three paraboloids about one centre: their mean is one too, c + k r^2.
    shares = TRAINED / TRAINED.sum()
    lowest, curvature = shares @ [0.1, 0.2, 0.3], shares @ [1, 2, 3]
    assert found.lowest_loss == pytest.approx([lowest])
    assert found.doubling_radius == pytest.approx([np.sqrt(lowest / curvature)], abs=0.1)
    assert found.worst_rise == pytest.approx([curvature * per_class.radius**2], abs=0.2)


def test_groups_by_name_count_and_end():
    per_class = three_classes()
    assert regroup(per_class, "class").parts == per_class.parts
    np.testing.assert_array_equal(regroup(per_class, "class", "drw").loss, per_class.loss)
    assert regroup(per_class, "head-tail").parts == ("head", "tail")
    np.testing.assert_array_equal(regroup(per_class, "head-tail").loss, per_class.loss[[0, 2]])
    assert regroup(per_class, "many-medium-few").parts == ("many", "medium", "few")
    found = regroup(per_class, "many-medium-few", many=499, few=51)
    assert found.parts == ("many", "few")
    assert found.n_samples.tolist() == [9, 6]
    borders = regroup(per_class, "many-medium-few", many=500, few=5)  # "more than", and "fewer than"
    assert borders.provenance["regrouped"]["groups"] == {"medium": ["class 0", "class 1", "class 2"]}
    with refused(InputError, 2, 1, 3):
        regroup(per_class, "head-tail", ends=2)
    with refused(InputError, 101, few=102, many=100):
        regroup(per_class, "many-medium-few", few=102)


def test_a_part_may_be_in_several_groups_and_members_are_names_or_classes(tmp_path):
    about = {"partition": {"class 0": [7], "class 1": [3], "class 2": [5]}}
    per_class = three_classes(provenance=about)
    groups = {"all": [7, 3, 5], "tail": ["class 2"], "mixed": ["class 0", 5]}
    path = tmp_path / "groups.json"
    path.write_text(json.dumps(groups))
    for spec in (groups, str(path)):
        found = regroup(per_class, spec, "balanced")
        assert found.parts == ("all", "tail", "mixed")
        np.testing.assert_allclose(found.loss[2], per_class.loss[[0, 2]].mean(axis=0), rtol=1e-14)
        assert found.provenance["partition"] == {"all": [7, 3, 5], "tail": [5], "mixed": [7, 5]}
        assert found.provenance["regrouped"]["groups"]["mixed"] == ["class 0", "class 2"]
    with refused(InputError, "x", 0, 1, 2):
        regroup(per_class, {"x": [0]})  # a position, where numbers are those of classes
    unsaid = three_classes(provenance={})
    np.testing.assert_array_equal(regroup(unsaid, {"x": [1]}).loss[0], unsaid.loss[1])


def test_a_trajectory_stays_a_trajectory():
    path = three_classes(kind=Trajectory, marks=("a", "b", "c"))
    found = regroup(path, "head-tail")
    assert isinstance(found, Trajectory)
    assert found.runs == path.runs
    np.testing.assert_array_equal(found.mark_loss, path.mark_loss[:, [0, 2]])


def test_holes_and_points_left_out_stay_so():
    computed = np.ones((7, 9), dtype=bool)
    computed[2, 2] = False
    of = grid(np.linspace(-1, 1, 9), np.linspace(-2, 2, 7), computed=computed)
    loss = np.concatenate([paraboloid(of)] * 3)
    loss[1, 0, 0] = np.nan
    loss[2, 0, 1] = np.inf
    found = regroup(surface(of, loss), {"all": [0, 1, 2], "sound": [0, 2]})
    assert np.isnan(found.loss[:, 2, 2]).all()
    np.testing.assert_array_equal(np.isnan(found.loss[:, 0, 0]), [True, False])
    np.testing.assert_array_equal(found.loss[:, 0, 1], [np.inf, np.inf])
    assert found.computed is not None
    assert not found.computed[2, 2]


def test_a_class_without_samples_takes_part_in_no_group():
    per_class = three_classes()
    loss = per_class.loss.copy()
    loss[2] = np.nan
    empty = dataclasses.replace(per_class, n_samples=np.array([9, 5, 0]), loss=loss)
    for weights in ("natural", "balanced", "training", "drw"):
        assert np.isfinite(regroup(empty, "all", weights).loss).all()
    with refused(InputError, "tail"):
        regroup(empty, "head-tail")


def test_a_class_that_was_not_trained_has_no_weight_where_training_counts():
    untrained = three_classes(train_counts=np.array([500, 50, 0]))
    for weights in ("training", "drw"):
        two = regroup(untrained, {"two": [0, 1]}, weights).loss
        np.testing.assert_allclose(regroup(untrained, "all", weights).loss, two, rtol=1e-14)
    with refused(InputError, "x"):
        regroup(three_classes(train_counts=np.array([500, 0, 0])), {"x": [1, 2]}, "training")


def test_counts_that_are_unknown_are_asked_for_only_where_they_matter():
    unknown = three_classes(n_samples=np.full(3, np.nan), train_counts=np.full(3, np.nan))
    np.testing.assert_allclose(regroup(unknown, "all", "balanced").loss[0], unknown.loss.mean(axis=0), rtol=1e-14)
    np.testing.assert_array_equal(regroup(unknown, {"one": ["class 1"]}).loss[0], unknown.loss[1])
    with refused(InputError, "natural", "samples", weights="balanced"):
        regroup(unknown, "all")
    with pytest.raises(InputError, match="training weights need the training samples of each class"):
        regroup(unknown, "all", "training")
    with refused(InputError, "many-medium-few"):
        regroup(unknown, "many-medium-few")


def test_what_goes_by_class_refuses_parts_of_several_classes():
    groups = regroup(three_classes(), {"a": [0, 1], "b": [2]})
    assert regroup(groups, "all").loss == pytest.approx(regroup(three_classes(), "all").loss)
    for call in (lambda: regroup(groups, "many-medium-few"), lambda: regroup(groups, "all", "drw")):
        with refused(InputError, "'a'", 2, partition="class"):
            call()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "must hold an object, with the weights by name"),
        ('{"class 0": "1"}', "must hold {"),
        ('{"class 0": true}', "must hold {"),
        ('{"class 0": 1, "class 0": 2}', "'class 0' is there twice"),
        ('{"class 0": 1}', "the part 'class 1': give 0"),
    ],
)
def test_a_file_of_weights_that_is_none_is_refused(tmp_path, text, message):
    (tmp_path / "w.json").write_text(text)
    with pytest.raises(InputError) as refused:
        regroup(three_classes(), "all", str(tmp_path / "w.json"))
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("groups", "weights", "named"),
    [
        ("thirds", "natural", ["groups", "'thirds'", "all, class, head-tail, many-medium-few", ".json"]),
        ({}, "natural", ["groups"]),
        ({"x": []}, "natural", ["group 'x'"]),
        ({"x": ["cat"]}, "natural", ["group 'x'", "'cat'", "class 0, class 1"]),
        ({"x": [True]}, "natural", ["group 'x'", True]),
        ({"x": [-1]}, "natural", ["group 'x'", "-1"]),
        ({"x": [1, "class 1"]}, "natural", ["group 'x'", "'class 1'", "twice"]),
        ("all", "equal", ["weights='equal'", "natural, balanced, training, drw"]),
        ("all", {"class 0": 1.0}, ["weights", "'class 1'", "0"]),
        ("all", {"cat": 1.0}, ["weights", "'cat'"]),
        ("all", {"class 0": -1.0}, ["'class 0'", "-1.0"]),
        ("all", {"class 0": np.nan}, ["'class 0'", "nan"]),
        ("all", {"class 0": 10**400}, ["'class 0'"]),
        ("all", dict.fromkeys(("class 0", "class 1", "class 2"), 1e308), ["'class 0'"]),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(groups, weights, named):
    with refused(InputError, *named):
        regroup(three_classes(), groups, weights)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", ("JSON",)),
        ("[1]", ("hold",)),
        ('{"a": 1}', ("hold",)),
        ('{"a": [0], "a": [1]}', ("'a'",)),
    ],
)
def test_files_of_groups_that_cannot_be_used_are_refused(tmp_path, text, line):
    path = tmp_path / "groups.json"
    path.write_text(text)
    with refused(InputError, *line):
        regroup(three_classes(), str(path))
    with pytest.raises(InputError, match="cannot be read: No such file"):
        regroup(three_classes(), str(tmp_path / "none.json"))
