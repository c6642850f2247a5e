"""Products on the disk: a run that was cut takes them up, and never takes that of another vector or matrix."""

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator

import landscape as ls
from landscape.curvature import kept
from landscape.curvature.matrices import matrix

SIZE = 40


@pytest.fixture
def quick():
    """A symmetric matrix known by its products, and how often it was multiplied."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((SIZE, SIZE))
    a = a + a.T
    calls = []

    def product(x):
        calls.append(1)
        return a @ x

    return matrix(LinearOperator((SIZE, SIZE), matvec=product, dtype=np.float64)), calls, a


@pytest.fixture
def counted(quick, monkeypatch):
    """The same, where every product is kept, however little time it took."""
    monkeypatch.setattr(kept, "LEAST_SECONDS", 0.0)
    return quick


def vectors(n):
    return torch.randn(1, n, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(n))


def test_what_was_multiplied_is_read_and_anything_else_multiplied(counted, tmp_path):
    operator, calls, a = counted
    path, about = tmp_path / "work.bin", {"loss": "ce"}
    first = kept.kept(operator, path, about)
    made = [first.matvec(vectors(n)) for n in (1, 2, 3)]
    before = len(calls)
    again = kept.kept(operator, path, about)
    for n, product in zip((1, 2, 3), made, strict=True):
        assert torch.equal(again.matvec(vectors(n)), product)
        np.testing.assert_allclose(product[0].numpy(), vectors(n)[0].numpy() @ a, rtol=1e-12, atol=1e-12)
    assert len(calls) == before
    almost = vectors(1)
    almost[0, 0, 0] = np.nextafter(almost[0, 0, 0].item(), 9)
    again.matvec(almost)
    assert len(calls) > before
    for other in ({"loss": "focal"}, about | {"seed": 1}):
        before = len(calls)
        kept.kept(operator, path, other).matvec(vectors(1))
        assert len(calls) > before


def test_a_record_that_was_cut_or_damaged_is_made_again_and_the_others_stay(counted, tmp_path):
    operator, calls, _ = counted
    path = tmp_path / "work.bin"
    made = [kept.kept(operator, path, {}).matvec(vectors(n)) for n in (1, 1)]  # the second reads
    one = path.stat().st_size
    kept.kept(operator, path, {}).matvec(vectors(2))
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    before = len(calls)
    cut = kept.kept(operator, path, {})
    assert torch.equal(cut.matvec(vectors(1)), made[0])
    assert len(calls) == before
    cut.matvec(vectors(2))
    assert len(calls) > before
    assert path.read_bytes() == whole
    damaged = bytearray(whole)
    damaged[one // 2] ^= 1
    path.write_bytes(bytes(damaged))
    before = len(calls)
    assert torch.equal(kept.kept(operator, path, {}).matvec(vectors(1)), made[0])
    assert len(calls) > before


def test_products_that_take_no_time_are_not_kept(quick, tmp_path):
    kept.kept(quick[0], tmp_path / "work.bin", {}).matvec(vectors(1))
    assert not (tmp_path / "work.bin").exists()


def test_of_too_many_products_the_first_are_kept(counted, tmp_path, monkeypatch):
    operator, _, _ = counted
    path = tmp_path / "work.bin"
    monkeypatch.setattr(kept, "MOST_BYTES", 2 * SIZE * 8)
    for n in (1, 2, 3):
        kept.kept(operator, path, {}).matvec(vectors(n))
    assert path.stat().st_size < 2 * SIZE * 8


@pytest.mark.parametrize("options", [{"steps": 12, "probes": 3}, {"density": False}])
def test_a_part_that_was_cut_goes_on_after_its_last_product(counted, tmp_path, options):
    operator, calls, _ = counted
    options = {"fingerprint": "a", "trace": "probes", **options}
    whole = ls.spectrum(operator, out=tmp_path / "whole.h5", **options)
    calls.clear()  # with what checks the matrix, once
    ls.spectrum(operator, **options)
    needed = len(calls)
    assert not list(tmp_path.glob("*.partial"))

    def cut(done, total, text):
        if done > 0.4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="go on from there"):
        ls.spectrum(operator, out=tmp_path / "cut.h5", progress=cut, **options)
    taken = len(calls) - needed
    assert 2 <= taken < needed
    found = ls.spectrum(operator, out=tmp_path / "cut.h5", **options)
    assert len(calls) == 2 * needed  # none was made twice
    assert not list(tmp_path.glob("*.partial"))
    for name in ("lambda_max", "trace", "trace_stderr", "alpha", "beta", "ritz_values"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))


def test_other_options_begin_anew_where_nothing_is_finished(counted, tmp_path):
    operator, _, _ = counted

    def cut(done, total, text):
        if done > 0.2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ls.spectrum(operator, out=tmp_path / "a.h5", steps=12, probes=3, fingerprint="a", progress=cut)
    assert list((tmp_path / "a.h5.partial").glob("work-*.bin"))
    found = ls.spectrum(operator, out=tmp_path / "a.h5", steps=8, probes=1, fingerprint="a")
    assert found.alpha.shape == (1, 1, 8)
    assert not (tmp_path / "a.h5.partial").exists()
