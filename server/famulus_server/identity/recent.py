"""What was found out lately, so that it need not be found out for each call."""

from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """A bounded memory; what was asked for longest ago goes first."""

    def __init__(self, *, most: int) -> None:
        self._most = most
        self._found: OrderedDict[bytes, T] = OrderedDict()

    def get(self, key: bytes) -> T | None:
        """What is remembered under the key. Keys are hashes: credentials themselves are never kept."""
        found = self._found.get(key)
        if found is not None:
            self._found.move_to_end(key)
        return found

    def keep(self, key: bytes, value: T) -> None:
        """Remembers it, in place of what was there."""
        self._found[key] = value
        self._found.move_to_end(key)
        if len(self._found) > self._most:
            self._found.popitem(last=False)
