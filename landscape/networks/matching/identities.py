"""Which positions on the axes of tensors are the same channel: identities, and the equations between them.

Each position on each axis has an identity, a number. Where an axis is flattened together with others, an identity
stands there once for each position of the others, and these are its places: (i, k) is the k-th place of channel i. Two
places are one if their channels are one and k is the same. To find what follows from many such equations is unification
of terms (Robinson 1965); here terms have one branch, so a union-find forest whose edges bear paths is all it takes.
"""

from collections.abc import Sequence

import numpy as np

FIXED = 0
"""The identity of whatever does not move: a pixel, a sample of the batch, a logit."""

Axes = tuple[np.ndarray, ...]
"""For each axis of a tensor, the identities of its positions."""


def still(n: int) -> np.ndarray:
    """Return the identities of n positions that do not move."""
    return np.full(n, FIXED)


class Classes:
    """Relations between identities: which are equal, which are places of another one, which are fixed."""

    def __init__(self, *, cautious: bool = True) -> None:
        """Begin without equations.

        Args:
            cautious: hold what an operation seems to treat unequally. Whether it does may depend on what is fixed by
                later operations, such as the pixels of a kernel that is flattened first; a first round that is not
                cautious finds these.
        """
        self.cautious = cautious
        self._parent = [FIXED]
        self._path: list[tuple[int, ...]] = [()]  # the position of an identity within its parent
        self.operation = ""  # the one whose equations are being added
        self.held: set[str] = set()  # operations that fix the positions of channels

    def new(self, n: int) -> np.ndarray:
        """Make n identities of which nothing is known; a position that is alone on its axis cannot move."""
        if n == 1:
            return still(1)
        first = len(self._parent)
        self._parent += range(first, first + n)
        self._path += [()] * n
        return np.arange(first, first + n)

    def find(self, i: int) -> tuple[int, tuple[int, ...]]:
        """Return the class of an identity, and its place within it: () if it is the whole of it."""
        root = i
        path: tuple[int, ...] = ()
        while self._parent[root] != root:
            root, path = self._parent[root], self._path[root] + path
        if root == FIXED:
            path = ()
        if root != i:
            self._parent[i], self._path[i] = root, path
        return root, path

    def unite(self, first: np.ndarray, second: np.ndarray) -> None:
        """Make identities one, pair by pair."""
        for i, j in zip(first[first != second].tolist(), second[first != second].tolist(), strict=True):
            (r, p), (s, q) = self.find(i), self.find(j)
            while p and q and p[-1] == q[-1]:
                p, q = p[:-1], q[:-1]
            if FIXED in {r, s}:
                self._parent[r] = self._parent[s] = FIXED
            elif (p and q) or (r == s and p != q):  # two different positions cannot be the same one: these are fixed
                self.hold(np.array([r, s]))
            elif r != s and p:
                self._parent[s], self._path[s] = r, p
            elif r != s:
                self._parent[r], self._path[r] = s, q

    def fix(self, *identities: np.ndarray) -> bool:
        """Keep identities from moving, and say whether any of them could."""
        roots = {self.find(i)[0] for ids in identities for i in ids.tolist()} - {FIXED}
        for root in roots:
            self._parent[root] = FIXED
        return bool(roots)

    def hold(self, *identities: np.ndarray, why: str = "") -> None:
        """Keep identities from moving because of the operation; note the operation if they could move before."""
        if self.cautious and self.fix(*identities):
            self.held.add(why or self.operation)

    def unclear(self, n: int) -> np.ndarray:
        """Return the identities of a result that do not follow from those of its operands."""
        return still(n) if self.cautious else self.new(n)

    def fixed(self, ids: np.ndarray) -> np.ndarray:
        """Say of each identity whether it cannot move."""
        return np.array([self.find(i)[0] == FIXED for i in ids.tolist()], dtype=bool)

    def places(self, ids: np.ndarray, n: int) -> np.ndarray:
        """Give each identity n places, one after the other."""
        return ids if n == 1 else np.array([self._place(i, (k,)) for i in ids.tolist() for k in range(n)], dtype=int)

    def merge(self, block: Sequence[np.ndarray]) -> np.ndarray:
        """Join axes to one, on which a moving identity has a place for every position of the other axes."""
        if len(block) == 1:
            return block[0]
        result = np.full([len(ids) for ids in block], FIXED)
        moving = [d for d, ids in enumerate(block) if not self.fixed(ids).all()]
        if len(moving) > 1:
            self.hold(*block)
            return self.unclear(result.size)
        if moving:
            (d,) = moving
            aside = np.moveaxis(result, d, 0)
            aside[:] = self.places(block[d], result.size // len(block[d])).reshape(aside.shape)
        return result.ravel()

    def split(self, ids: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
        """Undo `merge`. Channels that were never merged, such as those that are cut into heads, are held."""
        if len(sizes) == 1:
            return [ids]
        for d, size in enumerate(sizes):
            rows = np.moveaxis(ids.reshape(sizes), d, 0).reshape(size, -1).tolist()
            owners = [self._owner(row) for row in rows]
            if None not in owners:
                return [np.array(owners) if k == d else still(n) for k, n in enumerate(sizes)]
        self.hold(ids)
        return [self.unclear(n) for n in sizes]

    def _owner(self, row: list[int]) -> int | None:
        """Return the identity permutation whose channels these are, in their order."""
        terms = [self.find(i) for i in row]
        root, path = terms[0]
        if set(terms) == {(FIXED, ())}:
            return FIXED
        if terms != [(root, (*path[:-1], k)) for k in range(len(row))]:
            return None
        return self._place(root, path[:-1])

    def _place(self, parent: int, path: tuple[int, ...]) -> int:
        if parent == FIXED:
            return FIXED
        self._parent.append(parent)
        self._path.append(path)
        return len(self._parent) - 1
