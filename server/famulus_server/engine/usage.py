"""What runs used: noted with every turn, and summed up for those who ask."""

from datetime import UTC, datetime, timedelta

from famulus.v1.run_pb2 import Run, Usage
from famulus.v1.usage_service_pb2 import UsageRow
from famulus_server.engine import budgets, lifecycle
from famulus_server.engine.policy import Policies, Policy
from famulus_server.errors import InvalidArgument, Violation
from famulus_server.ports import Clock, Store, Transaction, UsageGroup, UsageQuery

_DEFAULT_SPAN = timedelta(days=30)
_LONGEST_SPAN = timedelta(days=366)
_FIRST_MOMENT = datetime.min.replace(tzinfo=UTC)


async def note(
    tx: Transaction, policy: Policy, tenant: str, run: Run, used: Usage | None = None, *, now: datetime
) -> None:
    """Keeps the record of a run up to date, once it is stored: after a turn that used something, and at its end. What
    it used counts for the budgets."""
    if used is not None:
        await budgets.spend(tx, policy, tenant, run.user_id, used.cost_nanos, now=now)
    if used is not None or run.state in lifecycle.FINAL:
        await tx.usages.put(tenant, run)


class UsageDesk:
    """Sums up what runs used."""

    def __init__(self, *, store: Store, policies: Policies, clock: Clock) -> None:
        self._store = store
        self._policies = policies
        self._clock = clock

    @property
    def currency(self) -> str:
        """The unit of all costs."""
        return self._policies.current.currency

    def span(self, start: datetime | None, end: datetime | None) -> tuple[datetime, datetime]:
        """The span of time that is asked for: unless said otherwise it ends now, and is 30 days long. Raises
        InvalidArgument where it is empty, or longer than 366 days."""
        end = end or self._clock.now()
        start = start or end - min(_DEFAULT_SPAN, end - _FIRST_MOMENT)
        if start >= end:
            raise InvalidArgument.fields([Violation("start_time", "must be before end_time")])
        if end - start > _LONGEST_SPAN:
            raise InvalidArgument.fields([Violation("start_time", "must be at most 366 days before end_time")])
        return start, end

    async def page(self, tenant: str, which: UsageQuery, *, after: UsageGroup | None, limit: int) -> list[UsageRow]:
        """Groups of runs, by time, then by user, assistant, model and variant."""
        return await self._store.read(lambda tx: tx.usages.page(tenant, which, after=after, limit=limit))
