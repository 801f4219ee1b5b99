"""The judgement at the end of a trial: every stream that anybody saw is compared with the others and the database."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis

from chaos.audit import Stored, audit, read_database, unfinished
from chaos.calls import Calls
from chaos.cluster import LEASE_SECONDS, Cluster
from chaos.journal import Journal, Viewing
from chaos.watching import Watcher
from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import Run, RunState
from famulus.v1.run_service_pb2 import WatchRunRequest
from famulus_server.engine import lifecycle
from famulus_server.engine.packing import events_of, unpack
from validator import validate_final, validate_jumps, validate_stream

# After the last fault: a lease runs out, somebody notices, the run is made again.
_SETTLE_SECONDS = LEASE_SECONDS + 15.0
_READERS = 8
# A removal that Redis could not hear of is not blamed on anybody.
_REDIS_SECONDS = 3.0
# What Redis answers for a key that does not expire.
_FOR_EVER = -1


async def judge(cluster: Cluster, calls: Calls, journal: Journal, *, seed: int) -> None:
    """Notes all violations. Everything must be up again, and the load over."""
    await _settle(cluster, journal)
    stored = await read_database(cluster.database)
    audit(stored, journal)
    # What was seen during the trial is judged as such; what is shown now has to agree with it.
    viewings = list(journal.viewings)
    viewings += await _read_again(stored, calls, journal, random.Random(seed))
    for viewing in viewings:
        _judge_viewing(viewing, stored, journal)
    _compare(viewings, journal)
    await _judge_redis(cluster, stored, journal)


async def _settle(cluster: Cluster, journal: Journal) -> None:
    """Waits for all runs to end."""
    left: list[str] = []
    try:
        async with asyncio.timeout(_SETTLE_SECONDS):
            while left := await unfinished(cluster.database):  # noqa: ASYNC110 - the database tells nobody
                await asyncio.sleep(0.2)
    except TimeoutError:
        for run_id in left:
            journal.violate("a run does not end", run_id, f"{_SETTLE_SECONDS:g} s after the load")


async def _read_again(stored: Stored, calls: Calls, journal: Journal, rng: random.Random) -> list[Viewing]:
    """Every run's log, read from its start at one replica, and from somewhere in it at another."""
    viewings: list[Viewing] = []
    reading = asyncio.Semaphore(_READERS)
    aside = Journal()

    async def read(run: Run) -> None:
        async with reading:
            whole = await _watch(run.id, 0)
            viewings.append(whole)
            if len(whole.events) < 2:
                return
            cut = rng.randrange(len(whole.events) - 1)
            after = whole.events[cut].sequence
            rest = await _watch(run.id, after)
            _compare_rest(whole.events[cut + 1 :], rest.events, after, run.id, journal)

    async def _watch(run_id: str, after: int) -> Viewing:
        watcher = Watcher(calls=calls, journal=aside, rng=rng)
        return await watcher.follow(
            "WatchRun",
            lambda cursor: WatchRunRequest(run_id=run_id, after_sequence=max(after, cursor)),
            Viewing(run_id),
        )

    aside.runs = journal.runs
    ended = [run for run in stored.runs.values() if run.state in lifecycle.FINAL]
    await asyncio.gather(*(read(run) for run in ended))
    journal.violations += aside.violations
    return viewings


def _compare_rest(
    expected: Sequence[RunEvent], rest: Sequence[RunEvent], after: int, run_id: str, journal: Journal
) -> None:
    snapshot = any(event.HasField("snapshot") for event in rest)
    if not snapshot and _kept(rest) != _kept(expected):
        evidence = f"behind {after}: {_sequences(rest)} instead of {_sequences(expected)}"
        journal.violate("a stream is not a suffix of the log", run_id, evidence)
    try:
        validate_stream(rest, after)
        validate_jumps(rest, after)
    except AssertionError as error:
        journal.violate("a resumed stream is not valid", run_id, str(error))


def _kept(events: Sequence[RunEvent]) -> list[RunEvent]:
    """The events without those that a later attempt took back: of these, some replicas may know more than others."""
    kept: list[RunEvent] = []
    for event in events:
        if event.HasField("attempt_started"):
            kept = [one for one in kept if one.sequence <= event.attempt_started.discards_after_sequence]
        kept.append(event)
    return kept


def _judge_viewing(viewing: Viewing, stored: Stored, journal: Journal) -> None:
    try:
        validate_stream(viewing.events, complete=viewing.ended)
        validate_jumps(viewing.events)
    except AssertionError as error:
        seen = _sequences(viewing.events[-40:])
        journal.violate("a stream is not valid", viewing.run_id, f"{error}\njoins {viewing.joins}\nends {seen}")
    _judge_tombstone(viewing, journal)
    run = stored.runs.get(viewing.run_id)
    if run is None or not viewing.ended or not viewing.events:
        return
    last = viewing.events[-1]
    told = last.snapshot.run if last.HasField("snapshot") else last.run_state_changed.run
    if (told.state, last.sequence) != (run.state, run.last_sequence):
        evidence = f"told {RunState.Name(told.state)} at {last.sequence}, "
        evidence += f"stored {RunState.Name(run.state)} at {run.last_sequence}; joins {viewing.joins}"
        journal.violate("a stream's end is not the run's", viewing.run_id, evidence)
        return
    try:
        # What a ROLLBACK removed was told before.
        if not run.rolled_back:
            validate_final(viewing.events, run, stored.of_run(run))
    except AssertionError as error:
        journal.violate("a stream tells otherwise than what is stored", viewing.run_id, str(error))


def _judge_tombstone(viewing: Viewing, journal: Journal) -> None:
    """Nothing happens in a run whose thread is gone. A lease after that its worker knows, unless it was frozen."""
    known = journal.runs.get(viewing.run_id)
    deleted = journal.thread(known.thread_id).deleted if known else None
    if deleted is None or not viewing.events:
        return
    last = viewing.events[-1].event_time.ToMicroseconds() / 1e6
    if last > deleted + LEASE_SECONDS and not journal.faulty_between(deleted, last, ("freeze",)):
        evidence = f"{last - deleted:.1f} s after: {_sequences(viewing.events[-1:])}"
        journal.violate("an event after the tombstone", viewing.run_id, evidence)


def _compare(viewings: Sequence[Viewing], journal: Journal) -> None:
    """All watchers of a run saw the same event at the same place. Counts what was taken over on the way."""
    logs: dict[str, dict[int, RunEvent]] = {}
    for viewing in viewings:
        log = logs.setdefault(viewing.run_id, {})
        for event in viewing.events:
            if event.HasField("snapshot"):
                journal.counts["snapshots"] += 1
            elif log.setdefault(event.sequence, event) != event:
                evidence = f"{str(event)[:300]} and {str(log[event.sequence])[:300]}".replace("\n", " ")
                journal.violate("two events at one place", viewing.run_id, evidence)
    for run_id, log in logs.items():
        jumps = [event for event in log.values() if event.HasField("attempt_started") and event.sequence >> 32]
        journal.counts["takeovers"] += len([event for event in jumps if event.sequence & 0xFFFFFFFF == 1])
        attempts = [event.attempt_started.attempt for event in sorted(jumps, key=lambda event: event.sequence)]
        if attempts != sorted(set(attempts)):
            journal.violate("attempts are out of order", run_id, str(attempts))


async def _judge_redis(cluster: Cluster, stored: Stored, journal: Journal) -> None:
    """Nothing is left of runs whose thread is gone, except, for a while, an empty stream that refuses late writers."""
    redis: Redis = Redis.from_url(cluster.valkey.url)
    try:
        for known in journal.runs.values():
            deleted = journal.thread(known.thread_id).deleted
            if known.id in stored.runs or deleted is None:
                continue
            if await redis.ttl(_key(known.id)) == _FOR_EVER:
                journal.violate("a stream is kept for ever", known.id, await _left(redis, known.id, deleted))
            if not await redis.xlen(_key(known.id)):
                continue
            asked = journal.thread(known.thread_id).asked_to_delete or deleted
            # Where nobody heard that the deletion was committed, a worker drops the events a minute later.
            faults = ("valkey", "replica kill", "postgres")
            if journal.faulty_between(asked - _REDIS_SECONDS, deleted + _REDIS_SECONDS, faults):
                journal.counts["events left in Redis by faults"] += 1
            else:
                journal.violate(
                    "events of a deleted thread are left in Redis", known.id, await _left(redis, known.id, deleted)
                )
    finally:
        await redis.aclose()


async def _left(redis: Redis, run_id: str, deleted: float) -> str:
    entries: Any = await redis.xrange(_key(run_id))
    events = events_of(unpack(fields[b"e"]) for _, fields in entries)
    late = events[-1].event_time.ToMicroseconds() / 1e6 - deleted if events else 0.0
    return f"{len(events)} events, the last {late:+.2f} s behind the deletion: {_sequences(events)}"


def _key(run_id: str) -> str:
    return f"famulus:{{{run_id}}}:events"


def _sequences(events: Sequence[RunEvent]) -> str:
    return " ".join(f"{event.sequence}:{event.WhichOneof('event')}" for event in events)[:600]
