"""Runs in SQL: the row is also the queue entry, and carries the lease."""

from collections.abc import Collection, Sequence
from datetime import datetime

import msgspec

from famulus.v1.error_reason_pb2 import ErrorReason
from famulus.v1.message_pb2 import Message
from famulus.v1.run_pb2 import Run, RunState
from famulus_server.engine import lifecycle
from famulus_server.errors import FailedPrecondition, LeaseLost, NotFound
from famulus_server.ports import Claimed, Cursor, Lease, RunFilter
from famulus_server.store.columns import before, etag, micros, stamp_micros, timestamp
from famulus_server.store.session import Row, RunAgain, Session


class SqlRuns:
    """See `ports.Runs`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def insert(self, tenant: str, run: Run, *, lease: Lease | None, line: int | None = None) -> None:
        run.etag = etag(1)
        owner, lease_expiry = self._lease(lease)
        owned = run.state in lifecycle.OWNED
        inserted = await self._session.run(
            "runs_insert",
            tenant,
            run.id,
            run.thread_id,
            run.assistant_id,
            run.state,
            run.state in lifecycle.ACTIVE and line is None,
            stamp_micros(run.create_time),
            _expire_time(run),
            run.attempt,
            owner if owned else None,
            # An owned run that nobody holds would never be found again: let its lease have run out.
            (lease_expiry or 0) if owned else None,
            line,
            run.SerializeToString(),
        )
        if not inserted:
            active = await self.active(tenant, run.thread_id)
            refused = FailedPrecondition(
                ErrorReason.ERROR_REASON_THREAD_HAS_ACTIVE_RUN,
                "the thread has an active run",
                metadata={"run_id": active.id if active else ""},
            )
            # Where it has ended at this moment, there is room now.
            raise refused if active else RunAgain(refused)

    async def get(self, tenant: str, run_id: str, *, lock: bool = False) -> Run:
        row = await self._session.one("runs_get", tenant, run_id, lock=lock)
        if row is None:
            raise NotFound("run", run_id)
        return _run(row)

    async def page(self, tenant: str, which: RunFilter, *, after: Cursor | None, limit: int) -> list[Run]:
        bounds = (*before(after), _mask(which.states or RunState.values()), limit)
        if which.thread_id:
            rows = await self._session.all("runs_page_of_thread", tenant, *bounds, which.thread_id, which.assistant_id)
        elif which.assistant_id:
            rows = await self._session.all("runs_page_of_assistant", tenant, *bounds, which.assistant_id)
        else:
            rows = await self._session.all("runs_page", tenant, *bounds)
        return [_run(row) for row in rows]

    async def ids(self, tenant: str, thread_id: str) -> list[str]:
        return [run_id for (run_id,) in await self._session.all("runs_ids_of_thread", tenant, thread_id)]

    async def replace(self, tenant: str, run: Run, *, attempt: int, lease: Lease | None = None) -> None:
        row = await self._session.one(
            "runs_replace",
            tenant,
            run.id,
            attempt,
            run.state,
            run.state in lifecycle.ACTIVE,
            _expire_time(run),
            run.attempt,
            run.state in lifecycle.OWNED,
            *self._lease(lease),
            run.SerializeToString(),
        )
        if row is None:
            raise LeaseLost(f"{run.id} is gone or past attempt {attempt}")
        run.etag = etag(row[0])

    async def claim(self, lease: Lease, *, limit: int) -> list[Claimed]:
        now = self._session.now()
        claimed, changes = [], []
        for tenant, version, body, state in await self._session.all("runs_claimable", micros(now), limit, lock=True):
            run = Run.FromString(body)
            if state == lifecycle.QUEUED:
                run.state = lifecycle.IN_PROGRESS
                run.last_sequence += 1
                if not run.HasField("start_time"):
                    run.start_time.CopyFrom(timestamp(micros(now)))
            run.attempt += 1
            run.turn_attempt += 1
            owned = (run.state, run.attempt, *self._lease(lease))
            changes.append((tenant, run.id, *owned, run.SerializeToString()))
            run.etag = etag(version + 1)
            claimed.append(Claimed(tenant, run, taken_over=state != lifecycle.QUEUED))
        if changes:
            await self._session.run_many("runs_claim", changes)
        return claimed

    async def is_claimable(self) -> bool:
        return bool(await self._session.all("runs_claimable", micros(self._session.now()), 1))

    async def renew(self, lease: Lease, run_ids: Collection[str]) -> set[str]:
        named = msgspec.json.encode(list(run_ids)).decode()
        return {run_id for (run_id,) in await self._session.all("runs_renew", *self._lease(lease), named)}

    async def stopping(self, owner: str) -> set[str]:
        return {run_id for (run_id,) in await self._session.all("runs_stopping", owner)}

    async def versions(self, keys: Collection[tuple[str, str]]) -> dict[tuple[str, str], str]:
        named = msgspec.json.encode(list(keys)).decode()
        rows = await self._session.all("runs_versions", named)
        return {(tenant, run_id): etag(version) for tenant, run_id, version in rows}

    async def active(self, tenant: str, thread_id: str) -> Run | None:
        row = await self._session.one("runs_active", tenant, thread_id, lock=True)
        return None if row is None else _run(row)

    async def in_line(self, tenant: str, thread_id: str, *, upto: int) -> list[Run]:
        rows = await self._session.all("runs_in_line", tenant, thread_id, upto, lock=True)
        return [_run(row) for row in rows]

    async def promote(self, tenant: str, thread_id: str) -> Run | None:
        row = await self._session.one("runs_promote", tenant, thread_id)
        return None if row is None else _run(row)

    async def keep_messages(self, tenant: str, run_id: str, messages: Sequence[Message]) -> None:
        rows = [(tenant, run_id, place, message.SerializeToString()) for place, message in enumerate(messages)]
        await self._session.run_many("queued_messages_put", rows)

    async def take_messages(self, tenant: str, run_id: str) -> list[Message]:
        rows = await self._session.all("queued_messages_of_run", tenant, run_id)
        if rows:
            await self._session.run("queued_messages_delete", tenant, run_id)
        return [Message.FromString(body) for (body,) in rows]

    async def take_deleted(self, before: datetime, *, limit: int) -> list[str]:
        rows = await self._session.all("deleted_runs_take", micros(before), limit)
        return [run_id for (run_id,) in rows]

    async def due(self, now: datetime, *, limit: int) -> list[tuple[str, str]]:
        return [(tenant, run_id) for tenant, run_id in await self._session.all("runs_due", micros(now), limit)]

    def _lease(self, lease: Lease | None) -> tuple[str | None, int | None]:
        """The owner, and the end of the lease by the database's clock."""
        if lease is None:
            return None, None
        return lease.owner, micros(self._session.now()) + round(lease.seconds * 1_000_000)


def _expire_time(run: Run) -> int | None:
    return stamp_micros(run.expire_time) if run.HasField("expire_time") else None


def _mask(states: Sequence["RunState.ValueType"]) -> int:
    mask = 0
    for state in states:
        mask |= 1 << state
    return mask


def _run(row: Row) -> Run:
    version, body = row
    run = Run.FromString(body)
    run.etag = etag(version)
    return run
