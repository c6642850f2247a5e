"""Facts about the code of a network that hold for all weights, mainly traced graphs."""

from collections.abc import Callable, Hashable
from typing import Any


class Known:
    """Values stored by a key and by the objects from which they were computed."""

    def __init__(self) -> None:
        self._values: dict[Hashable, tuple[tuple[object, ...], Any]] = {}

    def get(self, key: Hashable, of: tuple[object, ...] = ()) -> Any:
        """Return a value, or None.

        Args:
            key: other values that it depends on.
            of: objects, such as functions, compared by identity.

        Returns:
            The value passed to `put`.
        """
        return self._values.get((key, *map(id, of)), (of, None))[1]

    def put(self, key: Hashable, value: Any, of: tuple[object, ...] = ()) -> None:
        """Store a value.

        Args:
            key: as for `get`.
            value: anything.
            of: as for `get`. They are stored too, so that no other object can get the same identity.
        """
        self._values[key, *map(id, of)] = of, value

    def once(self, key: Hashable, of: tuple[object, ...], test: Callable[[], object]) -> None:
        """Make a test that raises an error if it fails, unless it has passed before; arguments as for `get`."""
        if self.get(key, of) is None:
            test()
            self.put(key, True, of)

    def first(self, key: Hashable) -> bool:
        """Say whether this is called with a key for the first time, as for a remark that one reading suffices for."""
        if self.get(("first", key)):
            return False
        self.put(("first", key), True)
        return True
