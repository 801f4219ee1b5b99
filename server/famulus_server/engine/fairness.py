"""Whose run a worker starts next (docs/adr/0016): within a tenant the more urgent one, between tenants each in turn.

Within a tenant runs wait in the order of a time that is fixed when they are created: a class of less urgent runs stands
as far behind as its delay says. So whoever has waited for that long goes before urgent runs that come now.
"""

from collections import deque
from collections.abc import Mapping
from datetime import datetime, timedelta
from types import MappingProxyType

from famulus.v1.run_pb2 import RunPriority
from famulus_server.engine.policy import Policies
from famulus_server.ports import Backlog

_DELAYS: Mapping["RunPriority.ValueType", int] = MappingProxyType(
    {
        RunPriority.RUN_PRIORITY_INTERACTIVE: 0,
        RunPriority.RUN_PRIORITY_DEFAULT: 5,
        RunPriority.RUN_PRIORITY_BATCH: 60,
    }
)


def delay(priority: "RunPriority.ValueType") -> int:
    """By how many seconds a run of this priority stands behind an urgent one that was created at the same time."""
    return _DELAYS[priority or RunPriority.RUN_PRIORITY_DEFAULT]


def pace(backlog: Backlog) -> float:
    """Seconds from one start of the tenant's runs to the next, as it has been of late. Where there was none,
    as if there had been one."""
    return backlog.seconds / max(backlog.starts, 1)


def estimated_start(backlog: Backlog, now: datetime) -> datetime:
    """When a worker will start on a run that is queued now. A guess: nobody knows how long runs will take, who else
    will want to run, and how urgently."""
    return now + timedelta(seconds=(backlog.ahead + 1) * pace(backlog))


class Turns:
    """Deficit round robin: each tenant whose runs wait has its turn, in which as many of them start as its weight says.

    A run costs 1, so nobody has ever saved up for one: all that is kept is how much is left of the turn that is on. It
    ends early when its tenant has nothing waiting. Each worker keeps its own turns, and counts only what it starts.
    """

    def __init__(self, *, policies: Policies) -> None:
        self._policies = policies
        self._tenant = ""
        self._left = 0

    @property
    def tenant(self) -> str:
        """Whose turn it is, or was last: ask for tenants from here on. '' before the first turn."""
        return self._tenant

    def share(self, waiting: Mapping[str, int], places: int) -> dict[str, int]:
        """How many runs of whom start now, in so many places. `waiting` has how many wait of each tenant, at least one,
        in the order of their turns: from `tenant` on, and round."""
        shares: dict[str, int] = {}
        round_of = deque(waiting)
        if round_of and round_of[0] == self._tenant and not self._left:
            # Had its turn.
            round_of.rotate(-1)
        while places and round_of:
            tenant = round_of.popleft()
            if tenant != self._tenant or not self._left:
                self._tenant, self._left = tenant, self._policies.current.tier(tenant).weight
            before = shares.get(tenant, 0)
            starting = min(self._left, places, waiting[tenant] - before)
            shares[tenant] = before + starting
            places -= starting
            self._left -= starting
            if shares[tenant] < waiting[tenant]:
                round_of.append(tenant)
            elif places:
                self._left = 0
        return shares
