"""The limits as one replica can keep them by itself: to its share of what all replicas may use together."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from famulus_server.coordination.buckets import (
    LONGEST_PAUSE,
    LONGEST_WAIT_FOR_RUNS,
    SETTLED_SECONDS,
    Name,
    name_of,
    price_of,
    to_microseconds,
    to_seconds,
)
from famulus_server.ports import Demand, Limit, Refused

T = TypeVar("T")

# So many things are noted before those that mean nothing any more are looked for.
_ROOM = 1_000


class LocalLimiter:
    """See `ports.Limiter`. `share` tells how many replicas share the limits; `clock` counts seconds.

    A smaller share makes each thing taken cost more time, and leaves a bucket's capacity, which is a time, as it is. So
    what is owed is the same for all replicas: it can be remembered as Redis has found it, and told.
    """

    def __init__(self, *, share: Callable[[], int], clock: Callable[[], float] = time.monotonic) -> None:
        self._share = share
        self._clock = clock
        # When all of a bucket will have come back.
        self._full_at: dict[Name, int] = {}
        # When each holder's place is free again, and when pauses end.
        self._holders: dict[Name, dict[str, int]] = {}
        self._paused_until: dict[Name, int] = {}
        self._settled_until: dict[str, int] = {}
        # By their keys, what was taken here at several times its price: until when it may be settled, and how many.
        self._taken: dict[str, tuple[int, int]] = {}
        self._room = _ROOM

    async def take(
        self, demands: Sequence[Demand], *, holder: str = "", seconds: float = 0.0, key: str = ""
    ) -> Refused | None:
        now, share = self._now(), self._share()
        refused: Refused | None = None
        full_at: dict[Name, int] = {}
        for demand in demands:
            name = name_of(demand.limit)
            if demand.limit.quantity == "runs":
                wait = self._wait_for_place(demand.limit, holder, now)
            else:
                cost = price_of(demand.limit, demand.amount) * share
                capacity = price_of(demand.limit, demand.limit.most)
                before = full_at.get(name, max(self._full_at.get(name, 0), now))
                full_at[name] = before + cost
                wait = max(before + min(cost, capacity) - capacity, self._paused_until.get(name, 0)) - now
            if wait > 0 and (refused is None or wait > to_microseconds(refused.retry_after)):
                refused = Refused(demand.limit, to_seconds(wait))
        if refused is None:
            self._full_at |= full_at
            if key and share > 1:
                self._taken[key] = now + to_microseconds(SETTLED_SECONDS), share
            self._make_room(now, noted=len(full_at) + 1)
            self.hold([demand.limit for demand in demands], holder=holder, seconds=seconds)
        return refused

    def settle(self, demands: Sequence[Demand], *, key: str, used: int, holder: str = "") -> None:
        if holder:
            self.release([demand.limit for demand in demands], holder=holder)
        now = self._now()
        if self._settled_until.get(key, 0) > now:
            return
        self._settled_until[key] = now + to_microseconds(SETTLED_SECONDS)
        # At the price at which it was taken: what Redis has charged is not given back several times.
        _, share = self._taken.pop(key, (0, 1))
        for demand in demands:
            if demand.limit.quantity == "tokens":
                name = name_of(demand.limit)
                change = price_of(demand.limit, used) - price_of(demand.limit, demand.amount)
                self._full_at[name] = max(self._full_at.get(name, 0), now) + change * share
        self._make_room(now, noted=1 + len(demands))

    def release(self, limits: Sequence[Limit], *, holder: str) -> None:
        for limit in limits:
            holders = self._holders.get(name_of(limit), {})
            holders.pop(holder, None)
            if not holders:
                self._holders.pop(name_of(limit), None)

    async def observe(self, limit: Limit, *, left: int) -> None:
        now, name = self._now(), name_of(limit)
        owed = price_of(limit, limit.most) - price_of(limit, left)
        self._full_at[name] = max(self._full_at.get(name, 0), now + owed)
        self._make_room(now, noted=1)

    async def pause(self, limits: Sequence[Limit], *, seconds: float) -> None:
        now = self._now()
        until = now + to_microseconds(min(LONGEST_PAUSE, seconds))
        for limit in limits:
            name = name_of(limit)
            self._paused_until[name] = max(self._paused_until.get(name, 0), until)
        self._make_room(now, noted=len(limits))

    def holds(self, limit: Limit, holder: str) -> bool:
        """Whether the holder has a place."""
        return self._holders.get(name_of(limit), {}).get(holder, 0) > self._now()

    def hold(self, limits: Sequence[Limit], *, holder: str, seconds: float) -> None:
        """The holder has a place in each of these that limit runs, as somebody else has found."""
        now = self._now()
        expiry = now + to_microseconds(seconds)
        for limit in limits:
            if limit.quantity == "runs":
                holders = self._holders.setdefault(name_of(limit), {})
                holders[holder] = max(holders.get(holder, 0), expiry)
        self._make_room(now, noted=len(limits))

    def remember(self, debts: Mapping[Name, int]) -> None:
        """In how many microseconds buckets will be full, as somebody else has found."""
        now = self._now()
        for name, debt in debts.items():
            self._full_at[name] = now + debt
        self._make_room(now, noted=len(debts))

    def debts(self) -> Iterator[tuple[Name, int]]:
        """In how many microseconds each bucket will be full that is not."""
        now = self._now()
        return ((name, full_at - now) for name, full_at in list(self._full_at.items()) if full_at > now)

    def _wait_for_place(self, limit: Limit, holder: str, now: int) -> int:
        name = name_of(limit)
        holders = self._holders.get(name, {})
        if self.holds(limit, holder):
            return 0
        wait = self._paused_until.get(name, 0) - now
        taken = [expiry for expiry in holders.values() if expiry > now]
        if len(taken) < max(1, limit.most // self._share()):
            return wait
        return max(wait, min(LONGEST_WAIT_FOR_RUNS, min(taken) - now))

    def _make_room(self, now: int, *, noted: int) -> None:
        """Forgets what means nothing any more, once in a while: when so much has been noted that it may be half."""
        self._room -= noted
        if self._room > 0:
            return
        self._full_at = _later(self._full_at, now)
        self._paused_until = _later(self._paused_until, now)
        self._settled_until = _later(self._settled_until, now)
        self._taken = {key: taken for key, taken in self._taken.items() if taken[0] > now}
        holders = {name: _later(holders, now) for name, holders in self._holders.items()}
        self._holders = {name: some for name, some in holders.items() if some}
        self._room = self._size() + _ROOM

    def _size(self) -> int:
        known = len(self._full_at) + len(self._paused_until) + len(self._settled_until) + len(self._taken)
        return known + sum(map(len, self._holders.values()))

    def _now(self) -> int:
        return round(self._clock() * 1_000_000)


def _later(times: Mapping[T, int], now: int) -> dict[T, int]:
    return {key: moment for key, moment in times.items() if moment > now}
