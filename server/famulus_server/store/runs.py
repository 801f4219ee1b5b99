"""Runs in SQL: the row is also the queue entry, and carries the lease."""

from collections.abc import Collection, Sequence
from datetime import datetime

import msgspec

from famulus.v1.error_reason_pb2 import ErrorReason
from famulus.v1.run_pb2 import Run, RunState
from famulus_server.engine import lifecycle
from famulus_server.errors import FailedPrecondition, LeaseLost, NotFound
from famulus_server.ports import Claimed, Cursor, Lease, RunFilter
from famulus_server.store.columns import before, etag, micros, stamp_micros, timestamp
from famulus_server.store.session import Row, Session


class SqlRuns:
    """See `ports.Runs`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def insert(self, tenant: str, run: Run, *, lease: Lease | None) -> None:
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
            run.state in lifecycle.ACTIVE,
            stamp_micros(run.create_time),
            _expire_time(run),
            run.attempt,
            owner if owned else None,
            # An owned run that nobody holds would never be found again: let its lease have run out.
            (lease_expiry or 0) if owned else None,
            run.SerializeToString(),
        )
        if not inserted:
            row = await self._session.one("runs_active", tenant, run.thread_id)
            raise FailedPrecondition(
                ErrorReason.ERROR_REASON_THREAD_HAS_ACTIVE_RUN,
                "the thread has an active run",
                metadata={"run_id": row[0] if row else ""},
            )

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
        claimed = []
        for tenant, body, state in await self._session.all("runs_claimable", micros(now), limit, lock=True):
            run = Run.FromString(body)
            if state == lifecycle.QUEUED:
                run.state = lifecycle.IN_PROGRESS
                run.last_sequence += 1
                if not run.HasField("start_time"):
                    run.start_time.CopyFrom(timestamp(micros(now)))
            run.attempt += 1
            run.turn_attempt += 1
            await self.replace(tenant, run, attempt=run.attempt - 1, lease=lease)
            claimed.append(Claimed(tenant, run, taken_over=state != lifecycle.QUEUED))
        return claimed

    async def is_claimable(self) -> bool:
        return bool(await self._session.all("runs_claimable", micros(self._session.now()), 1))

    async def renew(self, lease: Lease, run_ids: Collection[str]) -> set[str]:
        named = msgspec.json.encode(list(run_ids)).decode()
        return {run_id for (run_id,) in await self._session.all("runs_renew", *self._lease(lease), named)}

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
