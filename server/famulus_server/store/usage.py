"""What runs used, and what was spent, in SQL."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import msgspec

from famulus.v1.run_pb2 import Run, Usage
from famulus.v1.usage_service_pb2 import UsageBucket, UsageDimension, UsageRow
from famulus_server.ports import Account, UsageGroup, UsageQuery
from famulus_server.store.columns import micros, stamp_micros, timestamp
from famulus_server.store.session import Row, Session

_HOUR = 3_600_000_000
_SPANS: Mapping["UsageBucket.ValueType", int] = MappingProxyType(
    {
        UsageBucket.USAGE_BUCKET_UNSPECIFIED: 0,
        UsageBucket.USAGE_BUCKET_HOUR: _HOUR,
        UsageBucket.USAGE_BUCKET_DAY: 24 * _HOUR,
    }
)
_DIMENSIONS = (
    UsageDimension.USAGE_DIMENSION_USER,
    UsageDimension.USAGE_DIMENSION_ASSISTANT,
    UsageDimension.USAGE_DIMENSION_MODEL,
    UsageDimension.USAGE_DIMENSION_VARIANT,
)
# Before all that there are.
_FIRST = UsageGroup(span_start=-1)


class SqlUsages:
    """See `ports.Usages`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def put(self, tenant: str, run: Run) -> None:
        used = run.usage
        row = (
            tenant,
            run.id,
            stamp_micros(run.create_time),
            run.user_id,
            run.assistant_id,
            run.model,
            run.variant,
            run.state,
            run.rating.verdict,
            run.degraded,
            used.prompt_tokens,
            used.completion_tokens,
            used.total_tokens,
            used.cached_prompt_tokens,
            used.reasoning_tokens,
            used.estimated,
            used.cost_nanos,
        )
        await self._session.post("usage_put", [row])

    async def page(self, tenant: str, which: UsageQuery, *, after: UsageGroup | None, limit: int) -> list[UsageRow]:
        behind = after or _FIRST
        rows = await self._session.all(
            "usage_page",
            tenant,
            micros(which.start),
            micros(which.end),
            _SPANS[which.bucket],
            *(dimension in which.group_by for dimension in _DIMENSIONS),
            which.user_id,
            which.assistant_id,
            which.model,
            which.variant,
            behind.span_start,
            behind.user_id,
            behind.assistant_id,
            behind.model,
            behind.variant,
            limit,
        )
        return [_row(row) for row in rows]

    async def spend(self, tenant: str, accounts: Sequence[Account], cost_nanos: int) -> None:
        rows = [(tenant, account.user_id, micros(account.period_start), cost_nanos) for account in accounts]
        await self._session.post("spending_add", rows)

    async def spent(self, tenant: str, accounts: Sequence[Account]) -> list[int]:
        costs = await self._spent(tenant, accounts)
        if new := [account for place, account in enumerate(accounts) if place not in costs]:
            await self.spend(tenant, new, 0)
            costs = await self._spent(tenant, accounts)
        return [costs.get(place, 0) for place in range(len(accounts))]

    async def anonymize(self, tenant: str, user_id: str, *, limit: int) -> int:
        found = await self._session.run("usage_anonymize", tenant, user_id, limit)
        if found < limit:
            await self._session.run("spending_delete_of_user", tenant, user_id)
        return found

    async def _spent(self, tenant: str, accounts: Sequence[Account]) -> Mapping[int, int]:
        """By the places of those accounts that there are."""
        asked = [(place, account.user_id, micros(account.period_start)) for place, account in enumerate(accounts)]
        rows = await self._session.all("spending_get", tenant, msgspec.json.encode(asked).decode())
        return {row[0]: row[1] for row in rows}


def _row(row: Row) -> UsageRow:
    span, user_id, assistant_id, model, variant, runs, ended, cancelled, successful, good, bad, degraded, *used = row
    prompt, completion, total, cached, reasoning, estimated, cost_nanos = used
    made = UsageRow(
        bucket_time=timestamp(span) if span else None,
        user_id=user_id,
        assistant_id=assistant_id,
        model=model,
        variant=variant,
        runs=runs,
        ended_runs=ended,
        successful_runs=successful,
        good_runs=good,
        bad_runs=bad,
        degraded_runs=degraded,
        usage=Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=total,
            cached_prompt_tokens=cached,
            reasoning_tokens=reasoning,
            estimated=estimated > 0,
            cost_nanos=cost_nanos,
        ),
    )
    if ended > cancelled:
        made.success_rate = successful / (ended - cancelled)
    return made
