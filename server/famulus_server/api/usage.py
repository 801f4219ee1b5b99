"""UsageService."""

from datetime import UTC, datetime
from functools import partial

import msgspec
from google.protobuf.timestamp_pb2 import Timestamp

from famulus.v1.usage_service_pb2 import QueryUsageRequest, QueryUsageResponse, UsageRow
from famulus.v1.usage_service_pb2_grpc import UsageServiceServicer
from famulus_server.api.calls import current_tenant
from famulus_server.api.pages import Pages
from famulus_server.api.validation import usage as validation
from famulus_server.engine.usage import UsageDesk
from famulus_server.ports import Cursor, UsageGroup, UsageQuery

_DEFAULT_SIZE = 100
_MAX_SIZE = 1_000


class UsageServicer(UsageServiceServicer):
    """What runs used."""

    def __init__(self, *, usage: UsageDesk, pages: Pages) -> None:
        self._usage = usage
        self._pages = pages

    async def QueryUsage(self, request: QueryUsageRequest, _: object) -> QueryUsageResponse:
        validation.check_query(request)
        tenant = current_tenant()
        page = self._pages.of(tenant, request, default_size=_DEFAULT_SIZE, max_size=_MAX_SIZE)
        start = _moment(request.start_time) if request.HasField("start_time") else None
        end = _moment(request.end_time) if request.HasField("end_time") else None
        # "Now" is when the first page was asked for: the groups must not move between pages.
        start, end = self._usage.span(start, _end(page.after) if page.after else end)
        which = UsageQuery(
            start=start,
            end=end,
            group_by=tuple(request.group_by),
            bucket=request.bucket,
            user_id=request.user_id,
            assistant_id=request.assistant_id,
            model=request.model,
            variant=request.variant,
        )
        after = msgspec.json.decode(page.after.id, type=UsageGroup) if page.after else None
        found = await self._usage.page(tenant, which, after=after, limit=page.limit)
        shown, token = page.close(found, partial(_behind, end))
        return QueryUsageResponse(rows=shown, next_page_token=token, currency=self._usage.currency)


def _moment(time: Timestamp) -> datetime:
    return time.ToDatetime(tzinfo=UTC)


def _end(after: Cursor) -> datetime:
    return _moment(Timestamp(seconds=after.number // 1_000_000, nanos=after.number % 1_000_000 * 1_000))


def _behind(end: datetime, row: UsageRow) -> Cursor:
    """Where to go on: the end of the span that is asked for, and the last group shown."""
    stamp = Timestamp()
    stamp.FromDatetime(end)
    group = UsageGroup(
        span_start=row.bucket_time.ToMicroseconds(),
        user_id=row.user_id,
        assistant_id=row.assistant_id,
        model=row.model,
        variant=row.variant,
    )
    return Cursor(stamp.ToMicroseconds(), msgspec.json.encode(group).decode())
