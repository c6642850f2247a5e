"""Operators from any matrices: dense ones, SciPy's operators, and any object with a shape and a product.

Everything that the toolkit does with an operator (quadrature, error bars, figures, files) works for them too.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.autodiff.wide import wide
from landscape.callables import checked
from landscape.curvature import ranges
from landscape.curvature.algebra import Exact, Operator
from landscape.errors import InputError, NumericalError

_ASYMMETRY = 1e-3  # of the products' lengths; a product in float32, or by iteration, is at least this accurate
_FORM = "give (D, D), (P, D, D), a mapping of names to matrices, or an object with shape (D, D) and matvec or @"


@checked
def matrix(matrices: Any, *, parts: Sequence[str] | None = None, name: str = "matrix", symbol: str = "A") -> Operator:
    """Make an operator from symmetric matrices, so that `spectrum` and other functions accept them.

    Args:
        matrices: a tensor or an array, (D, D) or (P, D, D); a SciPy LinearOperator or sparse matrix; any object with
            `shape` (D, D) and a `matvec` or `@` that accepts columns of NumPy arrays, or of tensors if its `dtype` is
            torch's; or a mapping of the parts' names, which are texts, to such matrices, all of one size.
        parts: names of the matrices; None means "0", "1", ... A mapping has its own names.
        name: name of the matrix in tables and files.
        symbol: its symbol in figures.

    Returns:
        The operator. An operator is returned unchanged.

    Raises:
        InputError: an object that cannot multiply, another shape, numbers that are not real, or an asymmetric matrix.
        NumericalError: an entry or a product is not finite.
    """
    if isinstance(matrices, Operator):
        return matrices
    if isinstance(matrices, Mapping):
        if parts is not None:
            raise InputError("the mapping names the parts of its matrices: leave parts out")
        if any(isinstance(one, Operator) for one in matrices.values()):
            raise InputError("an operator has names for its parts already: leave the mapping out, or join the results")
        return _joined([matrix(one, parts=[part], name=name, symbol=symbol) for part, one in matrices.items()])
    dense = _dense(matrices)
    if dense is not None:
        names = _names(parts, len(dense))
        return _of_dense(dense, names, name, symbol)
    return _of_product(matrices, _names(parts, 1)[0], name, symbol)


def _names(parts: Sequence[str] | None, n: int) -> tuple[str, ...]:
    names = tuple(map(str, range(n))) if parts is None else tuple(parts)
    if isinstance(parts, str) or len(names) != n or len(set(names)) < n or not all(isinstance(p, str) for p in names):
        raise InputError(f"parts need names, {n} different texts, got {parts!r}")
    return names


def _dense(matrices: Any) -> Tensor | None:
    """Return explicit matrices as (P, D, D), or None for objects that only have products."""
    if isinstance(matrices, Tensor) and matrices.layout == torch.strided:
        found = matrices.detach()
    elif isinstance(matrices, (np.ndarray, list, tuple)):
        try:
            found = torch.tensor(np.asarray(matrices))
        except (TypeError, ValueError) as error:
            raise InputError(f"the matrix is no array of numbers: {_FORM}") from error
    else:
        return None
    if found.is_complex():
        raise InputError("the matrix is complex: it must be real and symmetric")
    found = found if found.is_floating_point() else wide(found)
    found = found[None] if found.ndim == 2 else found
    if found.ndim != 3 or found.shape[1] != found.shape[2] or not found.numel():
        raise InputError(f"matrices must have shape (D, D) or (P, D, D), got {tuple(np.shape(matrices))}")
    if found.dtype not in (torch.float32, torch.float64):
        found = found.float()
    if not torch.isfinite(found).all():
        raise NumericalError("an entry of the matrix is not finite")
    largest, off = found.abs().max().item(), (found - found.mT).abs().max().item()
    if off > 1e3 * torch.finfo(found.dtype).eps * largest:
        raise InputError(
            f"the matrix is not symmetric: entries differ by {off:.3g} of {largest:.3g}; give (A + A.T) / 2"
        )
    return found


def _of_dense(matrices: Tensor, parts: tuple[str, ...], name: str, symbol: str) -> Operator:
    diagonals = dict(zip(parts, wide(matrices.diagonal(dim1=1, dim2=2)), strict=True))
    return Operator(
        matvec=lambda V: V @ matrices.mT,
        parts=parts,
        size=matrices.shape[1],
        dtype=matrices.dtype,
        device=matrices.device,
        restrict=lambda some: _of_dense(matrices[list(some)], tuple(parts[p] for p in some), name, symbol),
        exact=Exact(
            cost=0,
            refusal=lambda: None,
            trace=lambda part: float(diagonals[part].sum()),
            diagonal=lambda part: diagonals[part],
        ),
        source=lambda: {"matrix_sha256": hashlib.sha256(matrices.cpu().numpy().tobytes()).hexdigest()},
        name=name,
        symbol=symbol,
    )


def _of_product(subject: Any, part: str, name: str, symbol: str) -> Operator:
    """Wrap an object with a shape and a product."""
    shape = tuple(getattr(subject, "shape", ()))
    multiply = getattr(subject, "matmat", None) or getattr(subject, "__matmul__", None)
    single = getattr(subject, "matvec", None)
    if multiply is None and single is not None:
        multiply = partial(_column_by_column, single)
    if not shape or multiply is None:
        raise InputError(f"a {type(subject).__name__} is no matrix: {_FORM}")
    if len(shape) != 2 or shape[0] != shape[1] or not shape[0]:
        raise InputError(f"the matrix must have shape (D, D), got {shape}")
    size, given = int(shape[0]), getattr(subject, "dtype", None)
    takes_tensors = isinstance(given, torch.dtype)
    if takes_tensors:
        dtype = given if given in (torch.float32, torch.float64) else torch.float32
    else:
        dtype = torch.float32 if given is not None and np.dtype(given) == np.float32 else torch.float64
    if given.is_complex if isinstance(given, torch.dtype) else given is not None and np.dtype(given).kind == "c":
        raise InputError("the matrix is complex: it must be real and symmetric")
    device = torch.device(getattr(subject, "device", None) or "cpu") if takes_tensors else torch.device("cpu")

    def columns(vectors: Tensor) -> Tensor:
        own: Any = vectors if takes_tensors else vectors.numpy()
        with np.errstate(all="ignore"):  # values that are not finite are reported below
            found = multiply(own)
        product = found if isinstance(found, Tensor) else torch.from_numpy(np.array(found))
        if product.shape != vectors.shape or product.is_complex():
            raise InputError(
                f"the matrix made {product.dtype} of shape {tuple(product.shape)} of vectors of shape "
                f"{tuple(vectors.shape)}: it must return real vectors of the same shape"
            )
        if not torch.isfinite(product).all():
            raise NumericalError(f"a product with the {name} {part} is not finite")
        return product.to(device, dtype)

    def matvec(V: Tensor) -> Tensor:
        return columns(V[0].mT.contiguous()).mT[None]

    _refuse_asymmetric(columns, size, dtype, device)
    unknown = "its entries are not known, only its products are"

    def unavailable(part: str) -> Any:
        raise InputError(f"trace and diagonal of {part} cannot be computed without probes: {unknown}")

    operator = Operator(
        matvec=matvec,
        parts=(part,),
        size=size,
        dtype=dtype,
        device=device,
        restrict=lambda parts: operator,
        exact=Exact(cost=0, refusal=lambda: unknown, trace=unavailable, diagonal=unavailable),
        name=name,
        symbol=symbol,
    )
    return operator


def _column_by_column(multiply: Callable[[Any], Any], vectors: Any) -> Any:
    """Multiply the columns of (D, K) one by one."""
    found = [multiply(vectors[:, k]) for k in range(vectors.shape[1])]
    return torch.stack(found, 1) if isinstance(vectors, Tensor) else np.stack(found, 1)


def _refuse_asymmetric(
    columns: Callable[[Tensor], Tensor], size: int, dtype: torch.dtype, device: torch.device
) -> None:
    """Compare u . A v with v . A u for two Gaussian vectors; with Rademacher vectors they may agree by chance."""
    vectors = torch.randn(size, 2, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    products = columns(vectors)
    ranges.refuse(products.T)  # before squares vanish or overflow
    products = wide(products)
    across = wide(vectors).T @ products
    off, length = (across[0, 1] - across[1, 0]).abs().item(), products.norm().item()
    if off > _ASYMMETRY * length:
        raise InputError(
            f"the matrix is not symmetric: u.Av and v.Au differ by {off:.3g} for products of length {length:.3g}; "
            "give (A + A^T) / 2"
        )


def _joined(operators: Sequence[Operator]) -> Operator:
    """Join operators of one part each into one operator with all parts."""
    if not operators:
        raise InputError(f"there is no matrix: {_FORM}")
    first = operators[0]
    for other in operators:
        if len(other.parts) != 1 or (other.size, other.dtype, other.device) != (first.size, first.dtype, first.device):
            raise InputError("the matrices of a mapping must be (D, D), all of one size, dtype and device")
    by_part = {operator.parts[0]: operator for operator in operators}

    @cache
    def refusal() -> str | None:
        return next(filter(None, (operator.exact.refusal() for operator in operators)), None)

    def source() -> Mapping[str, Any] | None:
        sources = {part: operator.source() for part, operator in by_part.items()}
        return None if None in sources.values() else {"matrices": sources}

    return Operator(
        matvec=lambda V: torch.cat([operator.matvec(v[None]) for operator, v in zip(operators, V, strict=True)]),
        parts=tuple(by_part),
        size=first.size,
        dtype=first.dtype,
        device=first.device,
        restrict=lambda some: _joined([operators[p] for p in some]),
        exact=Exact(
            cost=sum(operator.exact.cost for operator in operators),
            refusal=refusal,
            trace=lambda part: by_part[part].exact.trace(part),
            diagonal=lambda part: by_part[part].exact.diagonal(part),
        ),
        cached=all(operator.cached for operator in operators),
        name=first.name,
        symbol=first.symbol,
        source=source,
    )
