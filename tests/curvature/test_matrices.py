"""Matrices that are no network's as operators."""

import numpy as np
import pytest
import scipy.sparse
import torch
from refusals import refused
from scipy.sparse.linalg import LinearOperator, aslinearoperator

import landscape as ls
from landscape.errors import InputError, NumericalError

RNG = np.random.default_rng(0)
A = RNG.normal(size=(6, 6))
A = A + A.T
STACK = np.stack([A, 2 * A @ A])


class Product:
    """A user's class with the least there can be."""

    shape = (6, 6)

    def matvec(self, v):
        assert v.shape == (6,)
        return A @ v


class Tensors:
    """As curvlinops: its dtype is torch's, and it multiplies tensors."""

    shape, dtype, device = (6, 6), torch.float32, torch.device("cpu")

    def __matmul__(self, V):
        assert isinstance(V, torch.Tensor)
        return torch.as_tensor(A, dtype=torch.float32) @ V


@pytest.mark.parametrize(
    ("given", "tolerance"),
    [
        (A, 1e-14),
        (A.tolist(), 1e-14),
        (torch.as_tensor(A), 1e-14),
        (A.astype(np.float32), 1e-6),
        (torch.as_tensor(A).float(), 1e-6),
        (A[None], 1e-14),
        (aslinearoperator(A), 1e-14),
        (LinearOperator((6, 6), matvec=lambda v: A @ v, dtype=float), 1e-14),
        (scipy.sparse.csr_array(A), 1e-14),
        (torch.as_tensor(A).to_sparse(), 1e-14),
        (Product(), 1e-14),
        (Tensors(), 1e-6),
    ],
)
def test_whatever_multiplies_is_an_operator(given, tolerance):
    operator = ls.matrix(given)
    assert (operator.shape, operator.parts) == ((6, 6), ("0",))
    V = RNG.normal(size=(6, 3))
    assert np.abs(operator @ V - A @ V).max() < tolerance * 50
    assert np.abs(operator @ V[:, 0] - A @ V[:, 0]).max() < tolerance * 50
    assert ls.matrix(operator) is operator


def test_a_stack_has_parts_by_number_or_by_name():
    assert ls.matrix(STACK).parts == ("0", "1")
    named = ls.matrix(STACK, parts=["head", "tail"])
    assert named.shape == (2, 6, 6)
    assert np.allclose(named["tail"] @ np.eye(6), STACK[1])


def test_a_mapping_names_its_matrices_of_any_form():
    operator = ls.matrix({"head": Product(), "tail": aslinearoperator(STACK[1]), "third": np.eye(6)})
    V = RNG.normal(size=(3, 6, 2))
    assert np.allclose(operator @ V, np.stack([*STACK, np.eye(6)]) @ V)
    assert np.allclose(operator[["third", "head"]] @ V[:2], np.stack([np.eye(6), A]) @ V[:2])


def test_a_matrix_keeps_what_it_is_called():
    operator = ls.matrix(STACK, name="K-FAC", symbol="K")
    assert (operator["1"].name, operator["1"].symbol) == ("K-FAC", "K")


class Short(Product):
    def matvec(self, v):
        return v[:5]


def asymmetric(size):
    found = np.eye(size)
    found[0, 1] = 0.5
    return found


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (np.zeros((3, 4)), InputError, r"must have shape \(D, D\) or \(P, D, D\), got \(3, 4\)"),
        (np.zeros(4), InputError, "must have shape"),
        (np.zeros((0, 0)), InputError, "must have shape"),
        (aslinearoperator(np.zeros((3, 4))), InputError, r"must have shape \(D, D\), got \(3, 4\)"),
        (asymmetric(4), InputError, r"not symmetric: entries differ by 0.5 of 1; give \(A \+ A.T\)"),
        (aslinearoperator(asymmetric(4)), InputError, "not symmetric"),
        (np.full((2, 2), np.nan), NumericalError, "not finite"),
        (aslinearoperator(np.full((2, 2), np.inf)), NumericalError, "not finite"),
        (np.eye(2) * 1j, InputError, "complex"),
        (aslinearoperator(np.eye(2) * 1j), InputError, "complex"),
        ("matrix", InputError, "a str is no matrix"),
        ([["a"]], InputError, "no array of numbers"),
        ({}, InputError, "there is no matrix"),
        ({"a": np.eye(2), "b": np.eye(3)}, InputError, "all of one size"),
        (Short(), InputError, r"torch.float64 of shape \(5, 2\) of vectors of shape \(6, 2\)"),
    ],
)
def test_what_is_no_symmetric_matrix_is_refused(given, error, words):
    with pytest.raises(error, match=words):
        ls.matrix(given)


def test_names_must_fit():
    for parts in (["a"], ["a", "a"], [0, 1], [b"a", "b"]):
        with refused(InputError, "parts", 2):
            ls.matrix(STACK, parts=parts)
    with refused(InputError, "parts"):
        ls.matrix(STACK, parts="ab")
    with refused(InputError, 0):
        ls.matrix({0: A, 1: A})
    with refused(InputError, "parts", "mapping"):
        ls.matrix({"a": A}, parts=["b"])
    with pytest.raises(InputError, match="an operator has names"):
        ls.matrix({"a": ls.matrix(A)})
