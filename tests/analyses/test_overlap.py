"""Curvature overlap of parts against dense Hessians and cases that are known by hand."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from cases import CASES, CLASS_SIZES, hessian_by_double_backward, padded
from exact import dense, flat_function
from interruptions import Interrupting
from refusals import refused
from scipy.linalg import subspace_angles
from torch import nn

import landscape as ls
from landscape.analyses import overlap as overlaps
from landscape.cli import main
from landscape.data import datasets
from landscape.data.partition import Partition
from landscape.errors import InputError, StoreError
from landscape.networks import checkpoints
from landscape.objective import jobs
from landscape.objective.objective import Objective

REVERSE = {"steps": 30, "probes": 1, "trace": "probes", "backend": "reverse", "sampling_errors": False}
"""Without the time to trace a network, and without errors over samples."""


def matrices_of(objective, kind="hessian"):
    return [dense(objective, b, kind).numpy() for b in range(len(objective.partition))]


def by_dense_matrices(matrices, vectors):
    """The overlap written out with the (D, D) matrices of all parts."""
    found = np.array([[sum(v @ H @ v for v in V if np.isfinite(v).all()) for H in matrices] for V in vectors])
    return found / np.diag(found)


def along_gradients(matrices, objective):
    """The same for the gradient of each part, by autograd on all of its samples at once."""
    found = [flat_function(objective, p)[1:3] for p in range(len(matrices))]
    rows = [torch.func.grad(loss)(point).numpy() for loss, point in found]
    return np.array([[g @ H @ g / (g @ g) for H in matrices] for g in rows])


@pytest.mark.parametrize(
    ("name", "kind", "backend"),
    [
        ("mlp-tanh", "hessian", "auto"),
        ("mlp-tanh", "hessian", "reverse"),
        ("residual-gelu", "hessian", "reverse"),
        ("mlp-relu", "ggn", "reverse"),
    ],
)
def test_overlap_agrees_with_dense_matrices(name, kind, backend):
    objective = CASES[name].objective()
    spectrum = ls.spectrum(objective, operator=kind, vectors=3, **REVERSE)
    found = ls.overlap(objective, spectrum, backend=backend)
    matrices = matrices_of(objective, kind)
    np.testing.assert_allclose(found.overlap, by_dense_matrices(matrices, spectrum.ritz_vectors), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(np.diag(found.overlap), 1, rtol=1e-12)
    along = along_gradients(matrices, objective)
    np.testing.assert_allclose(found.gradient_curvature, along, rtol=1e-8, atol=1e-10 * np.abs(along).max())
    for matrix in (found.overlap, found.gradient_curvature):
        assert np.abs(matrix - matrix.T).max() > 0.01  # not symmetric: rows and columns are told apart


def test_converged_vectors_hold_the_largest_traces():
    """Fan 1949: no other vectors have more of a part's matrix, and its own have the sum of its largest eigenvalues."""
    objective = CASES["mlp-tanh"].objective()
    size = objective.layout.size
    found = ls.spectrum(objective, vectors=3, overlap=True, **REVERSE | {"steps": size})
    assert found.vectors_converged.all()
    assert (found.overlap <= 1 + 1e-9).all()
    for b in range(3):
        H = dense(objective, b).numpy()
        largest = np.linalg.eigvalsh(H)[-3:].sum()
        for a in range(3):
            V = found.ritz_vectors[a]
            assert found.overlap[a, b] == pytest.approx(np.trace(V @ H @ V.T) / largest, rel=1e-8)


def test_principal_angles_are_those_of_the_singular_values():
    found = ls.spectrum(CASES["mlp-tanh"].objective(), vectors=4, overlap=True, **REVERSE)
    for a in range(3):
        for b in range(3):
            # Orthonormal bases by QR: the witness does not rely on the Ritz vectors' being orthonormal.
            Q, R = (np.linalg.qr(found.ritz_vectors[p].T)[0] for p in (a, b))
            cosines = np.linalg.svd(Q.T @ R, compute_uv=False)
            assert found.subspace_overlap[a, b] == pytest.approx((cosines**2).mean(), rel=1e-9, abs=1e-12)
            degrees = np.degrees(subspace_angles(*(found.ritz_vectors[p].T for p in (a, b)))[::-1])
            np.testing.assert_allclose(found.principal_angles[a, b], degrees, atol=1e-10)


def test_angles_of_any_size_are_those_that_the_spaces_were_turned_by():
    """Planes of axes 1 and 2, turned towards axes 3 and 4; and another of three axes, of which one is common."""
    turned = np.array([1e-9, 0.7])
    tilted = np.zeros((2, 6))
    tilted[[0, 1], [0, 1]], tilted[[0, 1], [2, 3]] = np.cos(turned), np.sin(turned)
    mixed = np.array([[0.6, 0.8], [-0.8, 0.6]]) @ tilted  # the same plane by other vectors
    # private: spaces of given angles, which no network's eigenvectors have
    found = overlaps._principal_angles([np.eye(6)[:2], mixed, np.eye(6)[[1, 4, 5]]])
    np.testing.assert_allclose(found[0, 1], [*turned, np.nan], rtol=1e-6)
    np.testing.assert_allclose(found[0, 2], [0, np.pi / 2, np.nan], atol=1e-15)
    np.testing.assert_allclose(found[1, 2], [0.7, np.pi / 2, np.nan], rtol=1e-12)
    np.testing.assert_array_equal(found, found.swapaxes(0, 1))
    np.testing.assert_allclose(found[[0, 1], [0, 1], :2], 0, atol=1e-15)


def test_parts_with_the_same_samples_overlap_wholly():
    case = CASES["mlp-tanh"].objective()
    twice = np.concatenate([np.arange(15)] * 2)
    samples = datasets.from_dataset((case.samples.inputs[twice], torch.from_numpy(case.samples.labels[twice])))
    halves = Partition.from_index(np.repeat([0, 1], 15), ["one", "other"])
    objective = Objective.build(
        case.model.requires_grad_(), samples, partition=halves, dtype=torch.float64, device="cpu", batch_size=4
    )
    found = ls.spectrum(objective, vectors=3, overlap=True, **REVERSE)
    for matrix in (found.overlap, found.subspace_overlap):
        np.testing.assert_allclose(matrix, np.ones((2, 2)), rtol=1e-9)
    np.testing.assert_allclose(found.principal_angles, np.zeros((2, 2, 3)), atol=1e-5)
    np.testing.assert_allclose(found.gradient_curvature, found.gradient_curvature[0, 0], rtol=1e-9)


def axes(rows, labels, loss):
    """A network with one output that counts, whose Hessian is the mean of x x^T over a part's rows: diagonal here."""
    model = nn.Linear(4, 2, bias=False)
    samples = datasets.from_dataset((torch.tensor(rows, dtype=torch.float64), torch.tensor(labels)))
    return Objective.build(model, samples, loss=loss, partition="class", dtype=torch.float64, device="cpu")


def parabola(logits, labels):
    return 0.5 * logits[:, 0] ** 2


def test_directions_of_one_part_may_be_sharp_for_another_and_not_the_other_way_round():
    """Curvature (4, 0, 0, 0) against (1, 0, 9, 0): the first axis is the tail's second, the third is not the head's."""
    root2 = 2**0.5
    objective = axes([[2.0, 0, 0, 0], [root2, 0, 0, 0], [0, 0, 3 * root2, 0]], [0, 1, 1], parabola)
    found = ls.spectrum(objective, vectors=1, overlap=True, **REVERSE)
    np.testing.assert_allclose(found.overlap, [[1, 1 / 9], [0, 1]], atol=1e-12)
    np.testing.assert_allclose(found.subspace_overlap, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(found.principal_angles[:, :, 0], [[0, 90], [90, 0]], atol=1e-5)


def test_a_part_without_positive_curvature_has_no_share():
    def saddle(logits, labels):
        return (0.5 - labels) * logits[:, 0] ** 2

    objective = axes([[2.0, 0, 0, 0], [3.0, 0, 0, 0]], [0, 1], saddle)
    found = ls.spectrum(objective, vectors=1, overlap=True, **REVERSE)
    assert found.overlap[0, 0] == pytest.approx(1)
    assert found.overlap[1, 0] == pytest.approx(0, abs=1e-9)
    assert np.isnan(found.overlap[:, 1]).all()


def test_a_part_without_a_gradient_has_no_direction_but_may_bend_along_others():
    """The loss of the second class is lowest at these weights, and has the curvature x x^T."""

    def lowest_for_the_second(logits, labels):
        return torch.where(labels == 0, logits[:, 0] ** 2, 0.5 * (logits[:, 0] - logits[:, 0].detach()) ** 2)

    objective = axes([[1.0, 0, 0, 0], [1.0, 2, 0, 0]], [0, 1], lowest_for_the_second)
    found = ls.spectrum(objective, vectors=1, overlap=True, **REVERSE).gradient_curvature
    assert np.isnan(found[1]).all()
    np.testing.assert_allclose(found[0], [2, 1], rtol=1e-9)  # along the first axis


def test_negative_curvature_along_anothers_directions_has_its_sign():
    def mixed(logits, labels):
        return torch.where(labels == 0, logits[:, 0] ** 2, logits[:, 1] ** 2 - 0.5 * logits[:, 0] ** 2)

    objective = axes([[1.0, 0, 0, 0], [1.0, 0, 0, 0]], [0, 1], mixed)
    found = ls.spectrum(objective, vectors=1, overlap=True, **REVERSE)
    np.testing.assert_allclose(found.overlap, [[1, -0.5], [0, 1]], atol=1e-9)


def test_a_part_with_fewer_vectors_than_asked_for_uses_those_it_has():
    """One sample and a parabola: one eigenvalue beside zero, so two Lanczos steps and two vectors."""
    objective = axes([[2.0, 0, 0, 0], [1.0, 0, 1, 0], [0, 2, 0, 0], [0, 0, 0, 3]], [0, 1, 1, 1], parabola)
    found = ls.spectrum(objective, vectors=3, overlap=True, **REVERSE)
    assert np.isnan(found.ritz_vectors[0, 2]).all()
    assert np.isfinite(found.ritz_vectors[1]).all()
    assert found.ritz_residuals.shape == (2, 10)
    np.testing.assert_allclose(found.overlap, by_dense_matrices(matrices_of(objective), found.ritz_vectors), atol=1e-10)
    V, W = found.ritz_vectors[0, :2], found.ritz_vectors[1]
    assert found.subspace_overlap[0, 1] == pytest.approx(((V @ W.T) ** 2).sum() / 2)
    assert np.isnan(found.principal_angles[0]).tolist() == [[False, False, True]] * 2
    assert np.isfinite(found.principal_angles[1, 1]).all()
    assert found.vectors_converged.all()


def test_vectors_that_have_not_converged_are_told_even_beyond_top():
    objective = CASES["mlp-tanh"].objective()
    few = ls.spectrum(objective, vectors=4, top=1, overlap=True, **REVERSE | {"steps": 5})
    assert few.ritz_residuals.shape == (3, 4)
    assert not few.vectors_converged.any()
    many = ls.spectrum(objective, vectors=4, top=1, **REVERSE | {"steps": 60})
    assert many.vectors_converged.all()
    first = dataclasses.replace(few, ritz_vectors=few.ritz_vectors[:, :0])
    assert first.vectors_converged.all()


def test_matrices_are_those_of_all_samples_whatever_the_vectors_were_found_with():
    objective = CASES["mlp-tanh"].objective()
    found = ls.spectrum(objective, vectors=2, samples=4, overlap=True, **REVERSE)
    assert (found.n_used < found.n_samples).any()
    np.testing.assert_allclose(
        found.overlap, by_dense_matrices(matrices_of(objective), found.ritz_vectors), rtol=1e-8, atol=1e-10
    )


def test_batch_size_changes_nothing():
    spectrum = ls.spectrum(CASES["mlp-tanh"].objective(), vectors=2, overlap=True, **REVERSE)
    for batch_size in (1, 7, 1000):
        found = ls.overlap(CASES["mlp-tanh"].objective(batch_size=batch_size), spectrum, backend="reverse")
        for name in ("overlap", "gradient_curvature"):
            np.testing.assert_allclose(getattr(found, name), getattr(spectrum, name), rtol=1e-9, atol=1e-12)


def test_float32_gives_the_float64_numbers():
    both = [
        ls.spectrum(CASES["mlp-tanh"].objective(dtype=d), vectors=2, overlap=True, **REVERSE)
        for d in (torch.float32, torch.float64)
    ]
    np.testing.assert_allclose(both[0].overlap, both[1].overlap, atol=1e-3)
    np.testing.assert_allclose(both[0].subspace_overlap, both[1].subspace_overlap, atol=1e-3)
    np.testing.assert_allclose(both[0].gradient_curvature, both[1].gradient_curvature, rtol=1e-4, atol=1e-5)


# Files and refusals ---------------------------------------------------------------------------------------------------


def test_the_second_stage_is_resumed_and_may_be_asked_for_later(tmp_path):
    objective, out = CASES["mlp-tanh"].objective(), tmp_path / "o.h5"
    options = REVERSE | {"vectors": 2, "sampling_errors": True, "steps": 8}
    expected = ls.spectrum(objective, **options, overlap=True)
    with refused(jobs.Interrupted, 2, 3):
        ls.spectrum(objective, **options, out=out, progress=Interrupting(2))
    with refused(jobs.Interrupted, 1, 3):  # the third part, products of rows, and of the second stage the first
        ls.spectrum(objective, **options, overlap=True, out=out, progress=Interrupting(3))
    with refused(StoreError, 3, vectors=2):
        ls.spectrum(objective, **options | {"vectors": 3}, overlap=True, out=out)
    missing = Interrupting()
    found = ls.spectrum(objective, **options, overlap=True, out=out, progress=missing)
    assert len(missing.units) == 2
    for result in (found, ls.load(out)):
        for name in ("overlap", "subspace_overlap", "principal_angles", "gradient_curvature", "ritz_vectors"):
            np.testing.assert_array_equal(getattr(result, name), getattr(expected, name))


def test_stored_vectors_serve_later(tmp_path):
    objective = CASES["mlp-tanh"].objective()
    ls.spectrum(objective, vectors=2, out=tmp_path / "v.h5", **REVERSE)
    stored = ls.load(tmp_path / "v.h5")
    assert stored.overlap is None
    found = ls.overlap(objective, stored, backend="reverse")
    assert found.overlap.shape == (3, 3)
    assert found.alpha is stored.alpha


def test_vectors_of_another_objective_are_refused():
    case = CASES["mlp-tanh"]
    found = ls.spectrum(case.objective(), vectors=1, **REVERSE)
    with refused(InputError, "sha256"):
        ls.overlap(case.objective(seed=1), found)
    with refused(InputError, 0.0, 0.1):
        ls.overlap(case.objective(weight_decay=0.1), found)
    with refused(InputError, 113, 0, 1, 2):
        ls.overlap(case.objective(classes="0,1"), found)
    with refused(InputError, 95, 0, 1, 2):
        ls.overlap(case.objective(params="1"), found)


def test_nothing_to_compare_is_refused_before_anything_is_computed():
    case, told = CASES["mlp-tanh"], []
    with refused(InputError, overlap=True):
        ls.spectrum(case.objective(), overlap=True, progress=lambda *given: told.append(given))
    with refused(InputError, overlap=True):
        ls.spectrum(
            case.objective(partition="all"), vectors=2, overlap=True, progress=lambda *given: told.append(given)
        )
    assert told == []


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "myoverlap.py").write_text(
        "import torch\n"
        "def net(): return torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))\n"
        "def data(split):\n"
        "    inputs = torch.randn(15, 6, generator=torch.Generator().manual_seed(0))\n"
        "    return torch.utils.data.TensorDataset(inputs, torch.tensor([0] * 9 + [1] * 5 + [2]))\n"
    )
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    checkpoints.write("net.pt", net.state_dict(), {})
    return tmp_path


COMMAND = [
    "hessian", "--ckpt", "net.pt", "--model", "myoverlap:net", "--dataset", "myoverlap:data", "--probes", "1",
    "--backend", "reverse",
]  # fmt: skip


def test_the_command_prints_the_overlap_and_keeps_it(here, capsys):
    assert main([*COMMAND, "--per-class", "--vectors", "2", "--overlap"]) == 0
    out, err = capsys.readouterr()
    found = ls.load("net.hessian.h5")
    assert found.n_samples.tolist() == list(CLASS_SIZES)
    rows = out[out.index("directions of \\") :].splitlines()
    assert rows[0].split()[-3:] == ["0", "1", "2"]
    printed = [[float(v) for v in row.split()[1:]] for row in rows[2:5]]
    np.testing.assert_allclose(printed, found.overlap, atol=6e-4)
    rows = out[out.index("gradient of \\ curvature") :].splitlines()
    printed = [[float(v) for v in row.split()[1:]] for row in rows[2:5]]
    np.testing.assert_allclose(printed, found.gradient_curvature, rtol=6e-3)
    rows = out[out.index("directions of \\ directions of") :].splitlines()
    printed = [[float(v) for v in row.split()[1:]] for row in rows[2:5]]
    np.testing.assert_allclose(printed, found.principal_angles[:, :, 0], atol=0.06)
    assert found.provenance["classifier"] == "linear"
    assert "converged" not in err
    assert "landscape plot net.hessian.h5 [--kind overlap]" in out
    for kind in ("overlap", "gradients", "subspaces"):
        assert main(["plot", "net.hessian.h5", "--kind", kind]) == 0
        assert (here / f"net.hessian.{kind}.png").stat().st_size > 10_000
    assert main(["export", "net.hessian.h5", "--to", "json"]) == 0
    exported = json.loads((here / "net.hessian.json").read_text())
    np.testing.assert_allclose(exported["arrays"]["overlap"]["values"], found.overlap)


def test_the_document_holds_the_overlap_and_the_note_says_what_has_not_converged(here, capsys):
    options = ["--per-class", "--vectors", "2", "--overlap", "--steps", "4"]
    assert main([*COMMAND, *options, "-o", "a.h5"]) == 0
    assert "the directions of 0, 1, 2 have not all converged: raise --steps" in capsys.readouterr().err
    assert main([*COMMAND, *options, "-o", "b.h5", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    found = ls.load("b.h5")
    for name in ("overlap", "principal_angles", "gradient_curvature"):
        np.testing.assert_allclose(document[name], getattr(found, name))
    assert document["vectors_converged"] == [False] * 3
    assert [part["ritz_converged"] for part in document["parts"]] == found.ritz_converged.tolist()
    assert not found.ritz_converged[:, 1].any()
    assert main([*COMMAND, "-o", "c.h5", "--json", "--steps", "2"]) == 0
    assert "overlap" not in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--per-class"], "keep some, as with --vectors 5"), (["--vectors", "2"], "another --partition")],
)
def test_nothing_to_compare_is_one_line_and_leaves_nothing(here, capsys, options, words):
    assert main([*COMMAND, "--overlap", *options]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(words)
    assert not list(here.glob("*.h5*"))
    assert main(["plot", "net.hessian.h5"]) == 2


def test_a_figure_of_an_overlap_that_was_not_computed_is_refused(here, capsys):
    assert main([*COMMAND, "--per-class", "--steps", "2", "-q"]) == 0
    assert main(["plot", "net.hessian.h5", "--kind", "overlap"]) == 2
    assert "compute the spectrum with --vectors 5 and --overlap" in capsys.readouterr().err


@pytest.mark.parametrize("batch_size", [2, 5, 18])
def test_overlap_holds_where_later_parts_have_padding_and_the_first_has_none(batch_size):
    """By traced products; a part has batches of one size, batches of two, and one batch."""
    objective = padded(batch_size)
    matrices = [hessian_by_double_backward(objective, p).numpy() for p in range(3)]
    # So many steps that vectors have converged.
    found = ls.spectrum(objective, steps=45, probes=1, vectors=3, overlap=True, trace="probes", sampling_errors=False)
    vectors = [np.linalg.eigh(H)[1].T[::-1][:3] for H in matrices]
    np.testing.assert_allclose(found.overlap, by_dense_matrices(matrices, vectors), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found.lambda_max, [np.linalg.eigvalsh(H)[-1] for H in matrices], rtol=1e-9)
