"""What the database holds when all is over, and whether that can be true."""

from collections import Counter, defaultdict
from dataclasses import dataclass

import asyncpg

from chaos.journal import Journal, KnownRun, Violation
from chaos.script import FAULTY, SAID, answer
from famulus.v1.message_pb2 import Message
from famulus.v1.run_pb2 import RatingVerdict, Run, RunErrorCode, RunState
from famulus_server.engine import lifecycle
from postgres import EVERYBODY

_TURN_ATTEMPTS = 3
_MODEL_FAILED = {
    RunErrorCode.RUN_ERROR_CODE_RATE_LIMIT_EXCEEDED,
    RunErrorCode.RUN_ERROR_CODE_MODEL_UNAVAILABLE,
    RunErrorCode.RUN_ERROR_CODE_MODEL_TIMEOUT,
    RunErrorCode.RUN_ERROR_CODE_MODEL_PROTOCOL,
}
# Rows that nothing refers to any more.
_ORPHANS = {
    "runs": "SELECT id FROM runs r WHERE NOT EXISTS (SELECT 1 FROM threads t WHERE t.tenant = r.tenant "
    "AND t.id = r.thread_id AND t.deleted_time IS NULL)",
    "messages": "SELECT id FROM messages m WHERE NOT EXISTS (SELECT 1 FROM thread_segments s "
    "WHERE s.tenant = m.tenant AND s.log_id = m.log_id)",
    "thread_segments": "SELECT thread_id FROM thread_segments s WHERE NOT EXISTS (SELECT 1 FROM threads t "
    "WHERE t.tenant = s.tenant AND t.id = s.thread_id AND t.deleted_time IS NULL)",
    **{
        table: f"SELECT run_id FROM {table} x WHERE NOT EXISTS "
        "(SELECT 1 FROM runs r WHERE r.tenant = x.tenant AND r.id = x.run_id)"
        for table in ("run_steps", "run_turns", "queued_messages")
    },
}


@dataclass(frozen=True, slots=True)
class Stored:
    """All that the database holds of threads and runs. `messages` are those of each thread, by sequence."""

    runs: dict[str, Run]
    active: list[str]  # ids of runs whose column says so
    messages: dict[str, list[Message]]
    next_sequences: dict[str, int]  # of threads that are not deleted
    requests: dict[str, str]  # run ids by request ids
    orphans: list[tuple[str, str]]

    def of_run(self, run: Run) -> list[Message]:
        """The messages that a run wrote."""
        return [message for message in self.messages[run.thread_id] if message.run_id == run.id]


async def read_database(database: str) -> Stored:
    """Reads everything."""
    connection = await asyncpg.connect(database, server_settings=EVERYBODY)
    try:
        messages: dict[str, list[Message]] = defaultdict(list)
        for row in await connection.fetch("SELECT log_id, sequence, body FROM messages ORDER BY log_id, sequence"):
            message = Message.FromString(row["body"])
            message.sequence = row["sequence"]
            messages[row["log_id"]].append(message)
        runs = await connection.fetch("SELECT id, active, body FROM runs")
        threads = await connection.fetch("SELECT id, next_sequence FROM threads WHERE deleted_time IS NULL")
        requests = await connection.fetch("SELECT request_id, resource_id FROM request_ids WHERE method = 'CreateRun'")
        orphans = [(table, row[0]) for table, query in _ORPHANS.items() for row in await connection.fetch(query)]
    finally:
        await connection.close()
    return Stored(
        runs={row["id"]: Run.FromString(row["body"]) for row in runs},
        active=[row["id"] for row in runs if row["active"]],
        messages=messages,
        next_sequences={row["id"]: row["next_sequence"] for row in threads},
        requests={row["request_id"]: row["resource_id"] for row in requests},
        orphans=orphans,
    )


async def unfinished(database: str) -> list[str]:
    """The ids of runs that have not ended."""
    connection = await asyncpg.connect(database, server_settings=EVERYBODY)
    try:
        return [row["id"] for row in await connection.fetch("SELECT id FROM runs WHERE state IN (1, 2, 3, 4)")]
    finally:
        await connection.close()


def audit(stored: Stored, journal: Journal) -> None:
    """Notes everything in the database that breaks a promise."""
    for run_id in stored.active:
        journal.violate("a run that ended is still active", run_id, RunState.Name(stored.runs[run_id].state))
    for table, about in stored.orphans:
        journal.violate("an orphan", about, f"in {table}")
    _audit_requests(stored, journal)
    _audit_threads(stored, journal)
    for known in journal.runs.values():
        run = stored.runs.get(known.id)
        if run is None:
            journal.counts["turns"] += 1
            if journal.thread(known.thread_id).asked_to_delete is None:
                journal.violate("an acknowledged run is lost", known.id, f"request {known.request_id}")
            continue
        _audit_run(run, known, stored, journal)


def _audit_requests(stored: Stored, journal: Journal) -> None:
    made = Counter(run.metadata["request"] for run in stored.runs.values())
    for request_id, count in made.items():
        if count > 1:
            journal.violate("one request id, several runs", request_id, str(count))
    for known in journal.runs.values():
        kept = stored.requests.get(known.request_id)
        if kept != known.id:
            journal.violate("a request id is not kept with its run", known.id, f"{known.request_id}: {kept}")


def _audit_threads(stored: Stored, journal: Journal) -> None:
    for thread_id, following in stored.next_sequences.items():
        messages, known = stored.messages[thread_id], journal.thread(thread_id)
        sequences = [message.sequence for message in messages]
        # What a ROLLBACK took out of a thread leaves gaps.
        if not (known.disturbed or known.forked) and sequences != list(range(1, following)):
            journal.violate("sequences of messages have gaps", thread_id, f"{sequences}, next {following}")
        kept = {message.id: _text(message) for message in messages}
        for message_id, text in known.messages.items():
            if kept.get(message_id) != text:
                journal.violate("an acknowledged message is lost", thread_id, f"{message_id}: {text}")
        for text, count in Counter(_text(message) for message in messages if not message.run_id).items():
            if count > 1:
                journal.violate("a message is stored twice", thread_id, f"{count} times {text[:80]}")


def _audit_run(run: Run, known: KnownRun, stored: Stored, journal: Journal) -> None:
    thread = journal.thread(run.thread_id)
    if not known.kind.startswith(FAULTY):
        # One that was broken off is a turn, too.
        journal.counts["turns"] += run.turns + (run.state != lifecycle.COMPLETED)
    written = "".join(map(_text, stored.of_run(run)))
    asked = any(_text(message) == known.said for message in stored.messages[run.thread_id])
    if run.HasField("start_time") and not asked:
        journal.violate("a run's own message is lost", run.id, known.said[:80])
    if run.turn_attempt > _TURN_ATTEMPTS and not _gave_up(run):
        journal.violate("too many attempts at a turn", run.id, str(run.turn_attempt))
    if run.rolled_back and written:
        journal.violate("a run that was rolled back left messages", run.id, written[:80])
    expected = {answer(known.said, known.outputs), *(SAID + text for text in thread.messages.values())}
    match run.state:
        case lifecycle.COMPLETED if known.kind.startswith("truncated"):
            journal.violate("completed, though the model's stream was truncated", run.id, known.kind)
        case lifecycle.COMPLETED if written not in expected and not run.rolled_back:
            journal.violate("a completed run wrote something else", run.id, f"{written[:200]} not {expected}")
        case lifecycle.FAILED if run.error.code == RunErrorCode.RUN_ERROR_CODE_WORKER_LOST:
            journal.counts["worker lost"] += 1
            if run.turn_attempt <= _TURN_ATTEMPTS:
                journal.violate("WORKER_LOST too early", run.id, f"turn attempt {run.turn_attempt}")
        case lifecycle.FAILED if run.error.code in _MODEL_FAILED and known.kind.startswith(FAULTY):
            journal.counts["model failed"] += 1
        case lifecycle.FAILED:
            journal.violate("a run failed", run.id, f"{known.kind}: {str(run.error)!r}")
        case lifecycle.CANCELLED if not (known.may_stop or thread.disturbed):
            journal.violate("a run was cancelled that nobody cancelled", run.id, known.kind)
        case lifecycle.COMPLETED | lifecycle.CANCELLED:
            pass
        case _:
            journal.violate("a run ended otherwise", run.id, RunState.Name(run.state))
    if known.rated and run.rating.verdict != RatingVerdict.RATING_VERDICT_GOOD:
        journal.violate("an acknowledged rating is lost", run.id, str(run.rating))
    for told in known.told_states:
        settled = lifecycle.CANCELLED if told == lifecycle.CANCELLING else told
        if run.state != settled:
            evidence = f"CancelRun said {RunState.Name(told)}, it ended {RunState.Name(run.state)}"
            journal.violate("cancelled and not cancelled", run.id, evidence)


def _gave_up(run: Run) -> bool:
    """Whoever claims a run behind its last attempt only ends it, and may die at that as well."""
    lost = run.error.code == RunErrorCode.RUN_ERROR_CODE_WORKER_LOST
    return lost or run.state in (lifecycle.CANCELLED, lifecycle.EXPIRED)


def _text(message: Message) -> str:
    return "".join(part.text.text for part in message.content)


def shown(violations: list[Violation], most: int = 20) -> str:
    """The violations, a line each."""
    lines = [str(violation)[:1_500] for violation in violations[:most]]
    return "\n".join([*lines, f"... and {len(violations) - most} more"] if len(violations) > most else lines)
