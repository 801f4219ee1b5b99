"""Everything that is stored of one user, page by page."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from google.protobuf.message import Message as ProtoMessage

from famulus.v1.message_pb2 import Message
from famulus.v1.run_pb2 import Run
from famulus.v1.run_step_pb2 import RunStep
from famulus.v1.thread_pb2 import Thread
from famulus.v1.usage_service_pb2 import UsageBucket, UsageDimension, UsageRow
from famulus.v1.user_data_service_pb2 import ExportSummary
from famulus_server.errors import NotFound
from famulus_server.ports import Clock, Cursor, RunFilter, Store, UsageGroup, UsageQuery

_THREADS = 100
_BATCH = 50
_FIRST_MOMENT = datetime(1970, 1, 1, tzinfo=UTC)
_DIMENSIONS = (
    UsageDimension.USAGE_DIMENSION_ASSISTANT,
    UsageDimension.USAGE_DIMENSION_MODEL,
    UsageDimension.USAGE_DIMENSION_VARIANT,
)

T = TypeVar("T")


class Export:
    """Reads what the API shows of a user's threads, a page at a time: memory is bounded, whatever there is."""

    def __init__(self, *, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def of_user(self, tenant: str, user_id: str) -> AsyncIterator[ProtoMessage]:
        """The threads of a user, each with what is in it behind it, then the usage, at last the summary. Threads that
        are deleted meanwhile end where they are."""
        summary = ExportSummary()
        async for thread_id in self._threads(tenant, user_id):
            async for resource in self._thread(tenant, thread_id):
                _count(summary, resource)
                yield resource
        async for row in self._usage(tenant, user_id):
            _count(summary, row)
            yield row
        yield summary

    async def _threads(self, tenant: str, user_id: str) -> AsyncIterator[str]:
        last = ""
        while found := await self._store.read(
            lambda tx: tx.threads.of_user(tenant, user_id, after=last, limit=_THREADS)  # noqa: B023 - awaited
        ):
            for thread_id, is_deleted in found:
                if not is_deleted:
                    yield thread_id
            last, _ = found[-1]

    async def _thread(self, tenant: str, thread_id: str) -> AsyncIterator[ProtoMessage]:
        try:
            yield await self._store.read(lambda tx: tx.threads.get(tenant, thread_id))
        except NotFound:
            return

        def messages(last: Message | None) -> Awaitable[Sequence[Message]]:
            after = last.sequence if last else 0
            return self._store.read(lambda tx: tx.messages.page(tenant, thread_id, after_sequence=after, limit=_BATCH))

        def runs(last: Run | None) -> Awaitable[Sequence[Run]]:
            after = Cursor(last.create_time.ToMicroseconds(), last.id) if last else None
            which = RunFilter(thread_id=thread_id)
            return self._store.read(lambda tx: tx.runs.page(tenant, which, after=after, limit=_BATCH))

        async for message in _all(messages):
            yield message
        async for run in _all(runs):
            yield run
            async for step in self._steps(tenant, run.id):
                yield step

    def _steps(self, tenant: str, run_id: str) -> AsyncIterator[RunStep]:
        def steps(last: RunStep | None) -> Awaitable[Sequence[RunStep]]:
            after = last.position if last else 0
            return self._store.read(lambda tx: tx.steps.page(tenant, run_id, after_position=after, limit=_BATCH))

        return _all(steps)

    def _usage(self, tenant: str, user_id: str) -> AsyncIterator[UsageRow]:
        which = UsageQuery(
            start=_FIRST_MOMENT,
            end=self._clock.now(),
            group_by=_DIMENSIONS,
            bucket=UsageBucket.USAGE_BUCKET_DAY,
            user_id=user_id,
        )

        def rows(last: UsageRow | None) -> Awaitable[Sequence[UsageRow]]:
            after = _group(last) if last else None
            return self._store.read(lambda tx: tx.usages.page(tenant, which, after=after, limit=_BATCH))

        return _all(rows)


async def _all(page: Callable[[T | None], Awaitable[Sequence[T]]]) -> AsyncIterator[T]:
    """The items of all pages; each page is asked for with the last item before it."""
    last: T | None = None
    while found := await page(last):
        for item in found:
            yield item
        last = found[-1]


def _group(row: UsageRow) -> UsageGroup:
    return UsageGroup(
        span_start=row.bucket_time.ToMicroseconds(),
        assistant_id=row.assistant_id,
        model=row.model,
        variant=row.variant,
    )


def _count(summary: ExportSummary, resource: ProtoMessage) -> None:
    match resource:
        case Thread():
            summary.threads += 1
        case Message():
            summary.messages += 1
        case Run():
            summary.runs += 1
        case RunStep():
            summary.run_steps += 1
        case UsageRow():
            summary.usage_rows += 1
