"""What has been found out about the code of a network, and so holds at all weights: graphs, above all."""

from collections.abc import Hashable
from typing import Any


class Known:
    """Values by a key and by the objects that they were made of."""

    def __init__(self) -> None:
        self._values: dict[Hashable, tuple[tuple[object, ...], Any]] = {}

    def get(self, key: Hashable, of: tuple[object, ...] = ()) -> Any:
        """Return a value, or None.

        Args:
            key: what else it depends on.
            of: objects, such as functions, of which the very same count as equal.

        Returns:
            What `put` was given.
        """
        return self._values.get((key, *map(id, of)), (of, None))[1]

    def put(self, key: Hashable, value: Any, of: tuple[object, ...] = ()) -> None:
        """Keep a value.

        Args:
            key: as for `get`.
            value: anything.
            of: as for `get`. They are kept too, so that no other object gets the place in memory that tells them.
        """
        self._values[key, *map(id, of)] = of, value
