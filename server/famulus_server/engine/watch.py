"""Watching a run: what follows a sequence, without gap or duplicate, until the terminal event (contract 11-14)."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC

from famulus.v1 import error_reason_pb2 as reasons
from famulus.v1.message_pb2 import Message
from famulus.v1.run_event_pb2 import RunEvent, Snapshot
from famulus.v1.run_pb2 import Run
from famulus.v1.run_step_pb2 import RunStep
from famulus_server.engine import lifecycle
from famulus_server.engine.clock import timestamp
from famulus_server.engine.feed import Feed, RunLog
from famulus_server.engine.follower import Follower
from famulus_server.engine.messages import messages_of
from famulus_server.engine.packing import fitting, fresh, pack
from famulus_server.engine.timer import Timer
from famulus_server.errors import NotFound, OutOfRange
from famulus_server.ports import Clock, EventBatch, EventLog, Store, Transaction

# One response: small enough to stay under gRPC's 4 MiB, large enough to make an event cheap.
_MAX_BYTES = 256 * 1024
# What the EventLog is asked for at a time.
_MAX_BATCHES = 64
# How often a Snapshot looks whether log and store fit together; after that it shows what is stored.
_FIT_TRIES = 100
_FIT_SECONDS = 0.005
# How long after the end of a run its last events may be about to be written, and how often they are looked for.
_WRITTEN_SECONDS = 0.5
_LOOK_SECONDS = 0.02
# How often a watcher looks who has to wait for facts.
_LOST_SECONDS = 1.0


class Watch:
    """Streams the events of runs."""

    def __init__(
        self,
        *,
        store: Store,
        feed: Feed,
        follower: Follower,
        event_log: EventLog,
        clock: Clock,
        heartbeat_seconds: float = 15.0,
    ) -> None:
        """A stream is empty for at most `heartbeat_seconds`."""
        self._store = store
        self._feed = feed
        self._follower = follower
        self._event_log = event_log
        self._clock = clock
        self._heartbeat_seconds = heartbeat_seconds

    async def watch(
        self, tenant: str, run_id: str, after_sequence: int, *, known: Run | None = None
    ) -> AsyncGenerator[Sequence[EventBatch], None]:
        """Events behind a sequence, as they come; none is a heartbeat. Ends after the terminal event. Who has the run
        from the store, as a moment ago, saves it another look.

        Raises NotFound (also when the thread is deleted meanwhile) and OutOfRange.
        """
        log = self._feed.find(run_id)
        # Without a log here, what happened since that moment would never be told.
        run = known if known and log else await self._store.read(lambda tx: tx.runs.get(tenant, run_id))
        log, cursor = self._feed.find(run_id), after_sequence
        if run.state in lifecycle.FINAL and not (log and (log.users or log.ended)):
            # It ended, and is no longer in memory.
            _check_end(cursor, run.last_sequence)
            while cursor < run.last_sequence:
                batches = await self._told(run, cursor) or await self._snapshot(tenant, run_id, None)
                cursor = batches[-1].last
                yield batches
            return
        async with self._follower.following(tenant, run) as log:
            with contextlib.closing(Timer(self._heartbeat_seconds)) as timer:
                while True:
                    batches = await self._next(tenant, run_id, log, cursor)
                    if batches:
                        cursor = batches[-1].last
                        yield batches
                        timer.allow(self._heartbeat_seconds)
                    elif log.deleted:
                        raise NotFound("run", run_id, reason=reasons.ERROR_REASON_THREAD_DELETED)
                    elif log.ended and cursor >= log.last_sequence:
                        _check_end(cursor, log.last_sequence)
                        return
                    elif not await self._changes(log, cursor, timer):
                        yield ()
                        timer.allow(self._heartbeat_seconds)

    async def _next(self, tenant: str, run_id: str, log: RunLog, cursor: int) -> Sequence[EventBatch]:
        """What follows a sequence as far as it is known here."""
        batches = log.after(cursor, max_bytes=_MAX_BYTES)
        if batches is not None or log.deleted:
            return batches or ()
        batches = await self._behind(run_id, cursor)
        if not batches:
            # Of a run that is executed elsewhere only what is stored can be shown: perhaps that is older.
            batches = fresh(await self._snapshot(tenant, run_id, log), cursor)
        return batches

    async def _told(self, run: Run, cursor: int) -> Sequence[EventBatch]:
        """What the EventLog has behind a sequence of a run that has ended."""
        loop = asyncio.get_running_loop()
        age = self._clock.now() - run.end_time.ToDatetime(UTC)
        give_up_at = loop.time() + _WRITTEN_SECONDS - max(0.0, age.total_seconds())
        while True:
            batches = await self._behind(run.id, cursor)
            if batches or loop.time() >= give_up_at:
                return batches
            await asyncio.sleep(_LOOK_SECONDS)

    async def _behind(self, run_id: str, cursor: int) -> Sequence[EventBatch]:
        """What the EventLog has right behind a sequence, as far as it goes without a gap."""
        whole: list[EventBatch] = []
        for batch in fresh(await self._event_log.read(run_id, after_sequence=cursor, limit=_MAX_BATCHES), cursor):
            if batch.follows > cursor:
                break
            whole.append(batch)
            cursor = batch.last
        return fitting(whole, _MAX_BYTES)

    async def _snapshot(self, tenant: str, run_id: str, log: RunLog | None) -> Sequence[EventBatch]:
        """The run as of now, the turn under way included."""

        async def read(tx: Transaction) -> tuple[Run, list[RunStep], list[Message]]:
            run = await tx.runs.get(tenant, run_id)
            steps = await tx.steps.page(tenant, run_id)
            return run, steps, await messages_of(tx, tenant, run)

        run, steps, messages = await self._store.read(read)
        sequence = run.last_sequence
        for _ in range(_FIT_TRIES):
            if log is None or log.ended or not log.owned:
                break
            if log.stored_sequence == run.last_sequence:
                # Nothing is awaited between here and the end: draft and sequence belong together.
                draft = log.draft()
                steps, messages, sequence = steps + draft.steps, messages + draft.messages, log.last_sequence
                break
            # Between a commit and its facts the log and the store do not fit: the facts are about to come.
            await asyncio.sleep(_FIT_SECONDS)
            run, steps, messages = await self._store.read(read)
            sequence = run.last_sequence
        if run.state == lifecycle.CANCELLING:
            # Its worker tells so together with the end: as of this sequence the run is at work.
            run.state = lifecycle.IN_PROGRESS
        event = RunEvent(sequence=sequence, snapshot=Snapshot(run=run, steps=steps, messages=messages))
        event.event_time.CopyFrom(timestamp(self._clock.now()))
        return pack([event])

    async def _changes(self, log: RunLog, cursor: int, timer: Timer) -> bool:
        """Waits for the log to change; False once it is time for a heartbeat."""
        if not (log.reaches(cursor) or log.deleted):
            # What follows is lost, and each delta only adds to what lies behind it: facts will help.
            left = timer.left
            await asyncio.sleep(min(_LOST_SECONDS, left))
            return left > _LOST_SECONDS
        try:
            with timer:
                await log.wait()
        except TimeoutError:
            return False
        return True


def _check_end(cursor: int, last_sequence: int) -> None:
    if cursor > last_sequence:
        raise OutOfRange(
            reasons.ERROR_REASON_SEQUENCE_OUT_OF_RANGE,
            "the run ended before this sequence",
            metadata={"last_sequence": str(last_sequence)},
        )
