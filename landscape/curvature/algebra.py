"""Operators: symmetric matrices, one for each part, that compute products with vectors and can be added and scaled.

    H, G = ls.hessian(objective), ls.ggn(objective)      one matrix for each part: shape (P, D, D)
    H["truck"]                                           the matrix of one part: shape (D, D)
    H["truck"] @ v                                       (D,) -> (D,), (D, K) -> (D, K)
    H @ V                                                (P, D) -> (P, D), (P, D, K) -> (P, D, K); (D,) for all parts
    H - G, 2 * H + 0.1 * G, -H                           operators again
    H["truck"].to_scipy()                                for scipy.sparse.linalg
    H.trace(), H.diagonal(), H.top(5)                    exact if possible, else with an error

An operator with one part is one matrix, whether it was made so or selected by name. Algorithms use `matvec`, whose
argument is a block of vectors for each part, whatever the number of parts.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from landscape.autodiff import devices, distributed
from landscape.autodiff.distributed import ALONE, Team
from landscape.autodiff.wide import wide, zeros
from landscape.curvature import lanczos, pairs, probing, ranges, trace_probes
from landscape.errors import InputError, arg, positions
from landscape.objective.objective import Objective


@dataclass(frozen=True, kw_only=True)
class Exact:
    """Trace and diagonal of each part's matrix without probes, or the reason why these are not available."""

    cost: int  # about as many products
    refusal: Callable[[], str | None]
    trace: Callable[[str], float]  # of a part, by its name
    diagonal: Callable[[str], Tensor]  # (D,) float64
    sampled: Callable[[str, int], tuple[float, float]] | None = None  # (part, seed) -> an estimate and its error


@dataclass(frozen=True, kw_only=True, eq=False)
class Estimate:
    """Numbers of each part's matrix with their errors; without the axis of parts if there is one part."""

    value: NDArray[np.float64]
    stderr: NDArray[np.float64]  # its standard error, or a bound on that; 0 if exact
    exact: bool  # up to rounding


@dataclass(frozen=True, kw_only=True, eq=False)
class Eigenpairs:
    """The k largest eigenvalues of each part's matrix; without the axis of parts if there is one part.

    If a matrix has fewer than k distinct eigenvalues, the missing ones are nan. For a multiple eigenvalue one vector is
    found.
    """

    values: NDArray[np.float64]  # (P, k), descending
    residuals: NDArray[np.float64]  # (P, k), an eigenvalue lies within this distance of the value
    vectors: NDArray[np.float64] = field(repr=False)  # (P, D, k), unit vectors in columns


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Operator:
    """A symmetric matrix for each of P parts, defined by its products with blocks of vectors."""

    matvec: Callable[[Tensor], Tensor]  # (P, K, D) -> (P, K, D)
    parts: tuple[str, ...]
    size: int  # D
    dtype: torch.dtype
    device: torch.device
    restrict: Callable[[Sequence[int]], "Operator"]  # the same matrices for some of the parts
    exact: Exact
    cached: bool = True  # a product costs the same alone as in a block, since all that can be kept is kept
    keeps: int = 0  # bytes that its products keep at most
    name: str = "matrix"  # in tables and files
    symbol: str = "A"  # in figures
    terms: tuple[tuple[float, "Operator"], ...] = ()  # of a sum: factors and operators that are none
    objective: Objective | None = None  # that the matrices are of, if of one: its data and losses go with a spectrum
    source: Callable[[], Mapping[str, Any] | None] = lambda: None  # all that makes the numbers, if that is known
    team: Team = ALONE  # the processes that make each product together
    share: Callable[[], "Operator"] | None = None  # makes `shared`; None where each process makes all of a product

    # NumPy then leaves `array * operator` and `number * operator` to this class.
    __array_ufunc__ = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(D, D) for one part, (P, D, D) for several."""
        square = (self.size, self.size)
        return square if len(self.parts) == 1 else (len(self.parts), *square)

    def __repr__(self) -> str:
        shown = ", ".join(self.parts[:3]) + (", ..." if len(self.parts) > 3 else "")
        return f"<{self.name} of {shown}: {self.shape}, {str(self.dtype).removeprefix('torch.')} on {self.device}>"

    def shared(self) -> "Operator":
        """Return the operator whose products all ranks compute together; this operator if they work separately."""
        return self if self.share is None or distributed.team() == self.team else self.share()

    def __getitem__(self, parts: str | Sequence[str]) -> "Operator":
        """Return the matrix of one part by its name, or those of several."""
        return self.restrict(positions(parts, self.parts))

    @overload
    def __matmul__(self, vectors: Tensor) -> Tensor: ...

    @overload
    def __matmul__(self, vectors: NDArray[Any]) -> NDArray[Any]: ...

    def __matmul__(self, vectors: Tensor | NDArray[Any]) -> Tensor | NDArray[Any]:
        """Multiply by vectors in columns, see the docstring of this module; a tensor gives a tensor, an array an array.

        Args:
            vectors: (D,) or (D, K) for one part; (P, D) or (P, D, K) for several, or (D,) for the same vector in all.

        Returns:
            The products in the same shape, (P, D) for a vector for all parts, computed in the operator's dtype.

        Raises:
            InputError: another shape, or numbers that are not real.
            NumericalError: a product is not finite.
        """
        given = _tensor(vectors)
        block = self._block(given)
        found = self.matvec(block.to(self.device, self.dtype))
        single = given.ndim == 1 or (given.ndim == 2 and len(self.parts) > 1)
        found = found[:, 0] if single else found.mT
        found = (found[0] if given.ndim < 3 and len(self.parts) == 1 else found).to(given.device)
        return found if isinstance(vectors, Tensor) else found.numpy()

    def _block(self, given: Tensor) -> Tensor:
        """Return vectors as (P, K, D)."""
        n_parts, size = len(self.parts), self.size
        if given.ndim == 1 and given.shape == (size,):
            return given.expand(n_parts, 1, size)
        if given.ndim == 2 and n_parts == 1 and given.shape[0] == size:
            return given.T[None]
        if given.ndim == 2 and n_parts > 1 and given.shape == (n_parts, size):
            return given[:, None]
        if given.ndim == 3 and given.shape[:2] == (n_parts, size):
            return given.mT
        shapes = f"({size},) or ({size}, K)" if n_parts == 1 else f"({n_parts}, {size}) or ({n_parts}, {size}, K)"
        turned = given.ndim == 2 and n_parts == 1 and given.shape[1] == size
        advice = "vectors stand in columns: transpose them" if turned else f"choose a part, as in H[{self.parts[0]!r}]"
        raise InputError(
            f"vectors for an operator of shape {self.shape} must have shape {shapes}, got {tuple(given.shape)}"
            + (f"; {advice}" if turned or n_parts > 1 else "")
        )

    def __add__(self, other: "Operator") -> "Operator":
        return _combined((1.0, self), (1.0, other)) if isinstance(other, Operator) else NotImplemented

    def __sub__(self, other: "Operator") -> "Operator":
        return _combined((1.0, self), (-1.0, other)) if isinstance(other, Operator) else NotImplemented

    def __mul__(self, factor: float) -> "Operator":
        if not isinstance(factor, (int, float, np.integer, np.floating)) or isinstance(factor, bool):
            return NotImplemented
        if not math.isfinite(factor):
            raise InputError(f"an operator cannot be multiplied by {factor}")
        return _combined((float(factor), self))

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> "Operator":
        if divisor == 0:
            raise InputError("an operator cannot be divided by 0")
        return self * (1 / divisor)

    def __neg__(self) -> "Operator":
        return _combined((-1.0, self))

    @devices.full_precision()
    def trace(self, *, steps: int = 30, probes: int = 4, seed: int = 0) -> Estimate:
        """Return the trace of each part's matrix: exact if possible, else estimated by deflated probes (probing.py).

        Args:
            steps: products for each probe, if probes are needed; they find the eigenvectors for deflation.
            probes: number of probes; the error falls with its square root.
            seed: of the probes.

        Returns:
            Values and errors, () for one part, (P,) for several.

        Raises:
            InputError: no steps or no probes.
            NumericalError: a product is not finite.
        """
        if self.exact.refusal() is None:
            found = [(self.exact.trace(part), 0.0) for part in self.parts]
        else:
            if probes < 1:
                raise InputError(f"{arg('probes')} must be at least 1, got {probes}")
            plan = probing.Plan(steps=steps, probes=probes, seed=seed)
            found = [probing.run(self[part], plan, lambda share: None).trace for part in self.parts]
        value, error = np.array(found).T
        return Estimate(value=self._stacked(value), stderr=self._stacked(error), exact=self.exact.refusal() is None)

    @devices.full_precision()
    def diagonal(self, *, probes: int = 100, seed: int = 0) -> Estimate:
        """Return the diagonal of each part's matrix: exact if possible, else the mean of z * Hz over probes z.

        Args:
            probes: number of probes, if these are needed, with one product each; the error of an entry comes from the
                other entries of its row.
            seed: of the probes.

        Returns:
            Values and errors, (D,) for one part, (P, D) for several.

        Raises:
            InputError: too few probes to estimate their spread.
            NumericalError: a product is not finite.

        Source: Bekas, Kokiopoulou and Saad 2007, "An estimator for the diagonal of a matrix".
        """
        if self.exact.refusal() is None:
            value = torch.stack([self.exact.diagonal(part) for part in self.parts]).cpu().numpy()
            return Estimate(value=self._stacked(value), stderr=self._stacked(np.zeros_like(value)), exact=True)
        if probes < trace_probes.PILOT:
            raise InputError(
                f"{arg('probes')} must be at least {trace_probes.PILOT} to estimate their spread, got {probes}"
            )
        total, squares = zeros((2, len(self.parts), self.size), self.device)
        for number in range(probes):
            z = lanczos.probe(self.size, seed=seed, number=number, stream="diagonal").to(self.device, self.dtype)
            product = self.matvec(z.expand(len(self.parts), 1, -1))[:, 0]
            ranges.refuse(product, self)  # errors come from squares
            sample = wide(z * product)
            total += sample
            squares += sample**2
        mean = total / probes
        error = ((squares / probes - mean**2).clamp(min=0) / (probes - 1)).sqrt()
        return Estimate(value=self._stacked(mean.cpu().numpy()), stderr=self._stacked(error.cpu().numpy()), exact=False)

    @devices.full_precision()
    def top(
        self,
        k: int = 1,
        *,
        tol: float = 1e-3,
        max_steps: int = 320,
        seed: int = 0,
        memory_bytes: int | None = None,
    ) -> Eigenpairs:
        """Return the largest eigenvalues of each part's matrix and their vectors, by Lanczos from one random vector.

        Args:
            k: number of eigenvalues.
            tol: take steps until each of their residuals is at most this fraction of lambda_max.
            max_steps: the largest number of products; the residuals then show whether `tol` was reached.
            seed: of the vector.
            memory_bytes: bytes that this process may use in all, of the GPU's memory if it computes on one; None means
                four fifths of the free memory. If a Lanczos basis does not fit, a restarted run needs fewer vectors.

        Returns:
            Values, residual bounds and vectors.

        Raises:
            InputError: k, tol or max_steps out of range, or too few vectors fit into memory.
            NumericalError: a product is not finite.
        """
        if not 1 <= k <= self.size:
            raise InputError(f"{arg('k')} must lie between 1 and {self.size}, got {k}")
        if not 0 < tol < 1:
            raise InputError(f"{arg('tol')} must be between 0 and 1, got {tol:g}")
        if max_steps < k:
            raise InputError(f"{arg('max_steps')} must be at least {arg('k', k)}, got {max_steps}")
        shape = (len(self.parts), k)
        values, residuals = np.full(shape, np.nan), np.full(shape, np.nan)
        vectors = np.full((len(self.parts), self.size, k), np.nan)
        for p, part in enumerate(self.parts):
            z = lanczos.probe(self.size, seed=seed, number=0, stream="top").to(self.device, self.dtype)
            given: dict[str, Any] = {"steps": min(max_steps, 2 * k + 8), "max_steps": max_steps}
            found = pairs.largest(self[part], z, k, tol=tol, memory_bytes=memory_bytes, **given)
            n = len(found[0])
            values[p, :n], residuals[p, :n] = found[:2]
            vectors[p, :, :n] = wide(found[2]).cpu().numpy().T
        return Eigenpairs(
            values=self._stacked(values), residuals=self._stacked(residuals), vectors=self._stacked(vectors)
        )

    def _stacked(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return numbers of all parts, (P, ...), without the first axis if there is one part."""
        return values if len(self.parts) > 1 else np.asarray(values[0])

    def to_scipy(self) -> LinearOperator:
        """Return the matrix of the only part as a SciPy operator, for `scipy.sparse.linalg`.

        Returns:
            A LinearOperator (D, D) of the same dtype.

        Raises:
            InputError: there are several parts.
        """
        if len(self.parts) > 1:
            raise InputError(
                f"SciPy takes one matrix, these are {len(self.parts)}: choose a part, as in H[{self.parts[0]!r}]"
            )

        def columns(vectors: NDArray[Any]) -> NDArray[Any]:
            return self @ vectors

        def one(vector: NDArray[Any]) -> NDArray[Any]:
            return self @ vector.reshape(-1)  # SciPy gives (D,) or (D, 1)

        dtype = torch.empty(0, dtype=self.dtype).numpy().dtype
        return LinearOperator(self.shape, matvec=one, rmatvec=one, matmat=columns, rmatmat=columns, dtype=dtype)


def _tensor(vectors: Tensor | NDArray[Any]) -> Tensor:
    try:
        found = vectors if isinstance(vectors, Tensor) else torch.from_numpy(np.ascontiguousarray(vectors))
    except TypeError as error:
        raise InputError(f"vectors must be a tensor or an array of numbers, got {type(vectors).__name__}") from error
    if found.is_complex():
        raise InputError("vectors must be real: multiply real and imaginary part one by one")
    return found


def _combined(*terms: tuple[float, Operator]) -> Operator:
    """Return the sum of operators, each times its factor; operators that are sums are expanded."""
    terms = tuple((outer * inner, one) for outer, given in terms for inner, one in given.terms or ((1.0, given),))
    first = terms[0][1]
    for _, other in terms[1:]:
        for what in ("parts", "size", "dtype", "device"):
            ours, theirs = getattr(first, what), getattr(other, what)
            if ours != theirs:
                raise InputError(f"operators of different {what} do not add up: {ours} and {theirs}")

    def total(of: Callable[[Operator], Any]) -> Any:
        return sum((factor * of(operator) for factor, operator in terms[1:]), start=terms[0][0] * of(first))

    def source() -> Mapping[str, Any] | None:
        sources = [operator.source() for _, operator in terms]
        known = all(one is not None for one in sources)
        return {"sum": [[factor, one] for (factor, _), one in zip(terms, sources, strict=True)]} if known else None

    objectives = {id(operator.objective): operator.objective for _, operator in terms}
    return Operator(
        matvec=lambda V: total(lambda operator: operator.matvec(V)),
        parts=first.parts,
        size=first.size,
        dtype=first.dtype,
        device=first.device,
        restrict=lambda parts: _combined(*((factor, operator.restrict(parts)) for factor, operator in terms)),
        exact=Exact(
            cost=sum(operator.exact.cost for _, operator in terms),
            refusal=lambda: next(filter(None, (operator.exact.refusal() for _, operator in terms)), None),
            trace=lambda part: float(total(lambda operator: operator.exact.trace(part))),
            diagonal=lambda part: total(lambda operator: operator.exact.diagonal(part)),
        ),
        cached=all(operator.cached for _, operator in terms),
        keeps=sum(operator.keeps for _, operator in terms),
        team=max((operator.team for _, operator in terms), key=lambda team: team.size),
        share=lambda: _combined(*((factor, operator.shared()) for factor, operator in terms)),
        terms=terms,
        name=_written([(factor, operator.name) for factor, operator in terms]),
        symbol=_written([(factor, operator.symbol) for factor, operator in terms]),
        objective=first.objective if len(objectives) == 1 else None,
        source=source,
    )


def _written(terms: Sequence[tuple[float, str]]) -> str:
    """Write a sum, such as "2 H - G"."""
    text = ""
    for factor, name in terms:
        sign = ("-" if factor < 0 else "") if not text else (" - " if factor < 0 else " + ")
        text += sign + ("" if abs(factor) == 1 else f"{abs(factor):g} ") + name
    return text
