"""Runs in SQL: the row is also the queue entry, and carries the lease."""

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

import msgspec

from famulus.v1.error_reason_pb2 import ErrorReason
from famulus.v1.message_pb2 import Message
from famulus.v1.run_pb2 import Run, RunState
from famulus_server.engine import fairness, lifecycle
from famulus_server.engine.fields import copy_of
from famulus_server.errors import FailedPrecondition, LeaseLost, NotFound
from famulus_server.ports import Backlog, Claimed, Cursor, Lease, Queue, RunFilter, Waiting
from famulus_server.store.bodies import SqlBodies
from famulus_server.store.columns import before, etag, micros, stamp_micros, timestamp
from famulus_server.store.errors import BodyUnreadable
from famulus_server.store.session import Row, RunAgain, Session

_log = logging.getLogger(__name__)

# How fast a tenant's runs are started is seen from its last minute, or from its last so many.
_PACE_MICROS = 60_000_000
_PACE_STARTS = 100


class SqlRuns:
    """See `ports.Runs`."""

    def __init__(self, session: Session, bodies: SqlBodies) -> None:
        self._session = session
        self._bodies = bodies

    async def insert(self, tenant: str, run: Run, *, lease: Lease | None, line: int | None = None) -> None:
        run.etag = etag(1)
        self._bodies.note_run(tenant, run.id, run.thread_id)
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
            _queue_time(run),
            stamp_micros(run.start_time) if run.HasField("start_time") else None,
            await self._seal(tenant, run),
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
        [run] = await self._runs(tenant, [row])
        return run

    async def page(self, tenant: str, which: RunFilter, *, after: Cursor | None, limit: int) -> list[Run]:
        bounds = (*before(after), _mask(which.states or RunState.values()), limit)
        if which.thread_id:
            rows = await self._session.all("runs_page_of_thread", tenant, *bounds, which.thread_id, which.assistant_id)
        elif which.assistant_id:
            rows = await self._session.all("runs_page_of_assistant", tenant, *bounds, which.assistant_id)
        else:
            rows = await self._session.all("runs_page", tenant, *bounds)
        return await self._runs(tenant, rows)

    async def outlines(self, tenant: str, thread_id: str) -> list[Run]:
        return [
            Run(id=run_id, thread_id=thread_id, user_id=user_id, assistant_id=assistant_id, state=state)
            for run_id, assistant_id, state, user_id in await self._session.all("runs_outlines", tenant, thread_id)
        ]

    async def hold(self, tenant: str, known: Run, now: datetime, *, messages: int = 0) -> tuple[Run, int]:
        row = await self._session.one("runs_lock", tenant, known.thread_id, micros(now), messages, known.id, lock=True)
        if row is None:
            raise NotFound("thread", known.thread_id)
        next_sequence, version = row
        if version is None:
            raise NotFound("run", known.id)
        # Every change of a run counts its version up.
        run = copy_of(known) if known.etag == etag(version) else await self.get(tenant, known.id)
        return run, next_sequence - messages

    async def replace(
        self, tenant: str, run: Run, *, attempt: int, lease: Lease | None = None, wake_time: datetime | None = None
    ) -> bool:
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
            None if wake_time is None else micros(wake_time),
            await self._seal(tenant, run),
            ahead=True,
        )
        if row is None:
            raise LeaseLost(f"{run.id} is gone or past attempt {attempt}")
        version, others_wait = row
        run.etag = etag(version)
        return bool(others_wait)

    async def queue(self, *, first: str, limit: int) -> Queue:
        rows = await self._session.all("runs_queue", first, limit, micros(self._session.now()))
        found = {kind: number for kind, _, number in rows if kind != "waiting"}
        waiting = {tenant: number for kind, tenant, number in rows if kind == "waiting"}
        return Queue(abandoned=found["abandoned"], parked=found["parked"], waiting=waiting)

    async def claim(self, lease: Lease, shares: Mapping[str, int]) -> list[Claimed]:
        now = timestamp(micros(self._session.now()))
        wanted = msgspec.json.encode(list(shares.items())).decode()
        most = max(shares.values(), default=0)
        claimed, taken, rows = [], Counter[str](), []
        for row in await self._session.all("runs_first", wanted, most, lock=True):
            taken[row[0]] += 1
            # SQLite does not know how many are wanted of each.
            if taken[row[0]] <= shares[row[0]]:
                rows.append(row)
        for tenant, run, version in await self._waiting(rows):
            run.state = lifecycle.IN_PROGRESS
            run.last_sequence += 1
            run.ClearField("estimated_start_time")
            if not run.HasField("start_time"):
                run.start_time.CopyFrom(now)
            claimed.append((Claimed(tenant, run, taken_over=False), version))
        return await self._own(lease, claimed)

    async def take_over(self, lease: Lease, *, limit: int) -> list[Claimed]:
        rows = await self._session.all("runs_abandoned", micros(self._session.now()), limit, lock=True)
        waiting = await self._waiting(rows)
        found = [(Claimed(tenant, run, taken_over=True), version) for tenant, run, version in waiting]
        return await self._own(lease, found)

    async def _own(self, lease: Lease, found: Sequence[tuple[Claimed, int]]) -> list[Claimed]:
        """Gives locked runs, with the versions of their rows, to an owner."""
        owner, changes = self._lease(lease), []
        for one, version in found:
            run = one.run
            run.attempt += 1
            run.turn_attempt += 1
            started = stamp_micros(run.start_time) if run.HasField("start_time") else None
            self._bodies.note_run(one.tenant, run.id, run.thread_id)
            body = await self._seal(one.tenant, run)
            changes.append((one.tenant, run.id, run.state, run.attempt, *owner, started, body))
            run.etag = etag(version + 1)
        if changes:
            await self._session.run_many("runs_claim", changes)
        return [one for one, _ in found]

    async def wake(self, *, limit: int) -> int:
        return await self._session.run("runs_wake", micros(self._session.now()), limit)

    async def backlog(self, tenant: str, run: Run, *, limit: int) -> Backlog:
        now = micros(self._session.now())
        seen = (tenant, _queue_time(run), limit, now - _PACE_MICROS, _PACE_STARTS)
        [(queued, ahead, starts, first)] = await self._session.all("runs_backlog", *seen)
        # Of more than so many only the last are looked at.
        taken = now - first if starts == _PACE_STARTS else _PACE_MICROS
        return Backlog(queued=queued, ahead=ahead, starts=starts, seconds=taken / 1_000_000)

    async def waiting(self, *, limit: int) -> Waiting:
        [(runs, oldest)] = await self._session.all("runs_count_waiting", limit)
        waited = 0 if oldest is None else micros(self._session.now()) - oldest
        return Waiting(runs=runs, oldest_seconds=max(0, waited) / 1_000_000)

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
        found = await self._runs(tenant, [] if row is None else [row])
        return found[0] if found else None

    async def in_line(self, tenant: str, thread_id: str, *, upto: int) -> list[Run]:
        rows = await self._session.all("runs_in_line", tenant, thread_id, upto, lock=True)
        return await self._runs(tenant, rows)

    async def promote(self, tenant: str, thread_id: str) -> Run | None:
        row = await self._session.one("runs_promote", tenant, thread_id)
        found = await self._runs(tenant, [] if row is None else [row])
        return found[0] if found else None

    async def keep_messages(self, tenant: str, run_id: str, messages: Sequence[Message]) -> None:
        rows = []
        for place, message in enumerate(messages):
            plain = message.SerializeToString()
            body = await self._bodies.seal_of_run("queued_messages", tenant, run_id, place, plain)
            rows.append((tenant, run_id, place, body))
        await self._session.run_many("queued_messages_put", rows)

    async def take_messages(self, tenant: str, run_id: str) -> list[Message]:
        rows = await self._session.all("queued_messages_of_run", tenant, run_id)
        if rows:
            await self._session.run("queued_messages_delete", tenant, run_id)
        found = [(tenant, (run_id, place), body) for place, body in rows]
        return [Message.FromString(body) for body in await self._bodies.open("queued_messages", found)]

    async def take_deleted(self, before: datetime, *, limit: int) -> list[tuple[str, str, str]]:
        rows = await self._session.all("deleted_runs_take", micros(before), limit)
        return [(tenant, thread_id, run_id) for tenant, thread_id, run_id in rows]

    async def deleted_since(self, tenant: str, since: datetime, *, after: str, limit: int) -> list[tuple[str, str]]:
        rows = await self._session.all("deleted_runs_since", tenant, micros(since), after, limit)
        return [(thread_id, run_id) for thread_id, run_id in rows]

    async def due(self, now: datetime, *, limit: int) -> list[tuple[str, str]]:
        return [(tenant, run_id) for tenant, run_id in await self._session.all("runs_due", micros(now), limit)]

    async def _seal(self, tenant: str, run: Run) -> bytes:
        return await self._bodies.seal("runs", tenant, (run.id,), run.SerializeToString(), thread_id=run.thread_id)

    async def _runs(self, tenant: str, rows: Sequence[Row]) -> list[Run]:
        bodies = await self._bodies.open("runs", [(tenant, (run_id,), body) for run_id, _, body in rows])
        return [_run(version, body) for (_, version, _), body in zip(rows, bodies, strict=True)]

    async def _waiting(self, rows: Sequence[Row]) -> list[tuple[str, Run, int]]:
        """Runs of several tenants, each with its tenant, and the version of its row. One that cannot be opened stays
        where it is: the others must not wait for it."""
        try:
            bodies = await self._bodies.open("runs", [(tenant, (run_id,), body) for tenant, run_id, _, body in rows])
        except BodyUnreadable as error:
            if len(rows) == 1:
                _log.error("a run is not executed: %s", error)
                return []
            return [one for row in rows for one in await self._waiting([row])]
        return [(row[0], Run.FromString(body), row[2]) for row, body in zip(rows, bodies, strict=True)]

    def _lease(self, lease: Lease | None) -> tuple[str | None, int | None]:
        """The owner, and the end of the lease by the database's clock."""
        if lease is None:
            return None, None
        return lease.owner, micros(self._session.now()) + round(lease.seconds * 1_000_000)


def _expire_time(run: Run) -> int | None:
    return stamp_micros(run.expire_time) if run.HasField("expire_time") else None


def _queue_time(run: Run) -> int:
    return stamp_micros(run.create_time) + fairness.delay(run.priority) * 1_000_000


def _mask(states: Sequence["RunState.ValueType"]) -> int:
    mask = 0
    for state in states:
        mask |= 1 << state
    return mask


def _run(version: int, body: bytes) -> Run:
    run = Run.FromString(body)
    run.etag = etag(version)
    return run
