"""The data keys that this process has unwrapped lately."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, Literal, TypeVar

from famulus_server.ports import DataKey, Vault

K = TypeVar("K")
V = TypeVar("V")

Scope = Literal["tenant", "thread"]

# Whatever happened to a key elsewhere is noticed here after this time, at the latest.
KEPT_SECONDS = 600.0
_MOST = 10_000


class KeyCache:
    """Of several stores on one database; any thread may use it. Holds what was committed, and nothing else.

    `scope` says what has a key of its own. `now` counts seconds.
    """

    def __init__(self, *, vault: Vault, scope: Scope, now: Callable[[], float] = time.monotonic) -> None:
        self.vault = vault
        self.scope = scope
        # By (tenant, key id): what opens. By (tenant, scope): what seals. Keys of the first may be retired.
        self.by_id = Recent[tuple[str, str], DataKey](now=now)
        self.in_use = Recent[tuple[str, str], DataKey](now=now)
        # The threads of runs, which never change.
        self.threads = Recent[tuple[str, str], str](now=now)


class Recent(Generic[K, V]):
    """What was put lately: so many at most, and each for some time from when it was put."""

    def __init__(self, *, now: Callable[[], float], most: int = _MOST, seconds: float = KEPT_SECONDS) -> None:
        self._now = now
        self._most = most
        self._seconds = seconds
        self._items: OrderedDict[K, tuple[float, V]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        """It, if it is still there."""
        with self._lock:
            until, value = self._items.get(key, (0.0, None))
            if value is None or self._now() >= until:
                self._items.pop(key, None)
                return None
            self._items.move_to_end(key)
            return value

    def put(self, key: K, value: V) -> None:
        """Keeps it from now on."""
        with self._lock:
            self._items[key] = (self._now() + self._seconds, value)
            self._items.move_to_end(key)
            if len(self._items) > self._most:
                self._items.popitem(last=False)

    def drop(self, key: K) -> None:
        """Forgets it."""
        with self._lock:
            self._items.pop(key, None)

    def clear(self) -> None:
        """Forgets all."""
        with self._lock:
            self._items.clear()
