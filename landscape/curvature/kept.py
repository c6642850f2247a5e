"""Products stored on the disk, so that an interrupted part continues after its last product.

If Lanczos and the probes are repeated on the same machine with the same threads, their vectors are bitwise the same. So
a product is identified by its vector: a record of the file has the SHA-256 of the vector and of all that determines the
matrix, the product, and the SHA-256 of both. A product in the file is read; for any other vector, even one that differs
only by rounding, the product is computed. Truncated or damaged records are ignored.

If several ranks compute a product together, the first one writes it, and they read it only if all of them can.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.autodiff.distributed import Team
from landscape.curvature.algebra import Operator

log = logging.getLogger(__name__)

LEAST_SECONDS = 1.0
"""Products that take less are not worth the disk."""
MOST_BYTES = 8 * 10**9
"""Of one part."""
_DIGEST = 32
_HEAD = _DIGEST + 8  # of the vector, and the length of the product in bytes


def kept(operator: Operator, path: Path | None, fingerprint: Mapping[str, Any] | None) -> Operator:
    """Store an operator's products in a file, and read those that the file already has.

    Args:
        operator: any; processes that compute their products together share the file.
        path: path of the file; None stores nothing.
        fingerprint: all that determines the matrix, as JSON values; None stores nothing.

    Returns:
        An operator with the same products.
    """
    if path is None or fingerprint is None:
        return operator
    about = json.dumps(dict(fingerprint), sort_keys=True, default=str) + "\0".join(operator.parts)
    return replace(operator, matvec=_Kept(operator.matvec, path, about.encode(), operator.team))


class _Kept:
    """A product that stores its results in a file, and reads those that an earlier run has stored."""

    def __init__(self, matvec: Callable[[Tensor], Tensor], path: Path, about: bytes, team: Team) -> None:
        self._matvec, self._path, self._team = matvec, path, team
        self._about = hashlib.sha256(about).digest()
        self._places: dict[bytes, tuple[int, int]] | None = None  # of a vector, where its product is and how long
        self._end = 0

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return the products, (P, K, D)."""
        if self._places is None:
            self._places = self._scan()
        values = vectors.detach().to("cpu").contiguous().numpy()
        key = hashlib.sha256(self._about + str((values.dtype, values.shape)).encode() + values.tobytes()).digest()
        found = self._read(key, values)
        if self._team.total_of(float(found is not None)) == self._team.size and found is not None:
            return torch.from_numpy(found).to(vectors)
        began = time.monotonic()
        product = self._matvec(vectors)
        if self._team.rank == 0 and time.monotonic() - began >= LEAST_SECONDS:
            self._write(key, product.detach().to("cpu").contiguous().numpy().tobytes())
        return product

    def _scan(self) -> dict[bytes, tuple[int, int]]:
        """Find the records of the file; bytes after the last complete one will be overwritten."""
        places: dict[bytes, tuple[int, int]] = {}
        try:
            with open(self._path, "rb") as file:
                size = self._path.stat().st_size
                while len(head := file.read(_HEAD)) == _HEAD:
                    length, begin = int.from_bytes(head[_DIGEST:], "little"), file.tell()
                    if begin + length + _DIGEST > size:
                        break
                    places[head[:_DIGEST]] = begin, length
                    self._end = file.seek(begin + length + _DIGEST)
        except FileNotFoundError:
            pass
        if places:
            log.info("%s holds %d products of a run that was cut", self._path, len(places))
        return places

    def _read(self, key: bytes, like: np.ndarray) -> np.ndarray | None:
        if self._places is None or key not in self._places:
            return None
        begin, length = self._places[key]
        try:
            with open(self._path, "rb") as file:
                file.seek(begin)
                content, digest = file.read(length), file.read(_DIGEST)
        except OSError:
            return None
        if length != like.nbytes or hashlib.sha256(key + content).digest() != digest:
            return None
        return np.frombuffer(content, dtype=like.dtype).reshape(like.shape).copy()

    def _write(self, key: bytes, content: bytes) -> None:
        record = key + len(content).to_bytes(8, "little") + content + hashlib.sha256(key + content).digest()
        if self._places is None or self._end + len(record) > MOST_BYTES:
            return
        try:
            with open(self._path, "r+b" if self._path.exists() else "w+b") as file:
                file.seek(self._end)
                file.write(record)
                file.truncate()
        except OSError as error:  # the file only saves time; a full disk must not end the run
            log.warning("products are not kept any more, as %s cannot be written: %s", self._path, error.strerror)
            self._end = MOST_BYTES
            return
        self._places[key] = self._end + _HEAD, len(content)
        self._end += len(record)
