"""docs/crash-matrix.md: what holds when something dies at an edge of a run's life, row by row."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from famulus.v1.run_pb2 import RunState
from famulus_server.embedded.upstream import Script, ScriptedUpstream
from famulus_server.embedded.valkey import EmbeddedValkey
from postgres import PostgresServer
from replicas.conftest import OpenReplica
from replicas.crash_points import CrashPoint, Moment, arm
from replicas.crash_stories import STORIES, Client, Told
from replicas.mortal import died, open_mortal
from run_stage import Stage, open_stage, stage_settings
from validator import validate_final, validate_stream

pytestmark = pytest.mark.usefixtures("unhurried")

Play = Callable[..., Awaitable[None]]

# The shortest that there is: a test has to wait for it.
LEASE_SECONDS = 1.0

CREATE, SUBMIT, CANCEL, RATE = "RunDesk._admit", "RunDesk.submit", "RunDesk.cancel", "RunDesk.rate"
CLAIM, EXPIRE = "Worker._claim", "Worker._expire"
SETTLE, START_OVER, RELEASE = "Executor._settle", "Executor._start_over", "Executor._release"
DELETE, FORK = "ThreadDesk.delete", "ThreadDesk.fork"


@dataclass(frozen=True)
class Case:
    """What dies at the transaction number `number` of a writer, in a story, and what holds in the end: the runs' states
    and attempts, how often the model was asked, and what is in the thread."""

    story: str
    writer: str
    ends: str
    asked: int
    texts: str
    number: int = 1


# The process dies in the transaction, with everything written and nothing committed.
BEFORE = {
    "create": Case("answer", CREATE, "COMPLETED 1", 1, "hello|first"),
    "claim": Case("queue", CLAIM, "COMPLETED 1, COMPLETED 1", 2, "hello|first"),
    "end": Case("answer", SETTLE, "COMPLETED 2", 2, "hello|again"),
    "end of a turn": Case("two turns", SETTLE, "COMPLETED 2", 3, "hello|wait|first"),
    "end of the second turn": Case("two turns", SETTLE, "COMPLETED 2", 3, "hello|wait|again", number=2),
    "calls": Case("tools", SETTLE, "COMPLETED 3", 3, "hello|first"),
    "outputs": Case("tools", SUBMIT, "COMPLETED 2", 2, "hello|first"),
    "cancel": Case("cancel", CANCEL, "CANCELLED 2", 1, "hello"),
    "cancelled": Case("cancel", SETTLE, "CANCELLED 2", 1, "hello"),
    "expired at work": Case("expire", SETTLE, "EXPIRED 2", 2, "hello", number=2),
    "start over": Case("start over", START_OVER, "COMPLETED 2", 2, "hello|again"),
    "drain": Case("drain", RELEASE, "COMPLETED 2", 2, "hello|again"),
    "line": Case("line", SETTLE, "COMPLETED 2, COMPLETED 1", 3, "hello|first|then|again"),
    "interrupt": Case("interrupt", CREATE, "CANCELLED 2, COMPLETED 1", 2, "hello|instead|first", number=2),
    "interrupted": Case("interrupt", SETTLE, "CANCELLED 2, COMPLETED 1", 2, "hello|instead|first"),
    "delete": Case("delete", DELETE, "", 1, ""),
}
# The process dies when the transaction is committed, and nobody knows.
AFTER = {
    "create": Case("answer", CREATE, "COMPLETED 2", 1, "hello|first"),
    "claim": Case("queue", CLAIM, "COMPLETED 1, COMPLETED 2", 2, "hello|first"),
    "end": Case("answer", SETTLE, "COMPLETED 1", 1, "hello|first"),
    "incomplete": Case("cut short", SETTLE, "INCOMPLETE 1", 1, "hello|first"),
    "failed": Case("refused", SETTLE, "FAILED 1", 1, "hello"),
    "end of a turn": Case("two turns", SETTLE, "COMPLETED 2", 2, "hello|wait|first"),
    "calls": Case("tools", SETTLE, "COMPLETED 2", 2, "hello|first"),
    "outputs": Case("tools", SUBMIT, "COMPLETED 3", 2, "hello|first"),
    "cancel": Case("cancel", CANCEL, "CANCELLED 2", 1, "hello"),
    "cancel of a waiting run": Case("cancel waiting", CANCEL, "CANCELLED 1", 1, "hello"),
    "cancelled": Case("cancel", SETTLE, "CANCELLED 1", 1, "hello|w1 w2 w3"),
    "expired at work": Case("expire", SETTLE, "EXPIRED 1", 2, "hello|w1 w2 w3", number=2),
    "expired waiting": Case("expire waiting", EXPIRE, "EXPIRED 1", 2, "hello"),
    "start over": Case("start over", START_OVER, "COMPLETED 3", 2, "hello|again"),
    "drain": Case("drain", RELEASE, "COMPLETED 2", 2, "hello|again"),
    "line": Case("line", SETTLE, "COMPLETED 1, COMPLETED 1", 2, "hello|w1 w2 w3 w4 w5 w6|then|first"),
    "interrupt": Case("interrupt", CREATE, "CANCELLED 2, COMPLETED 1", 2, "hello|instead|first", number=2),
    "interrupted": Case("interrupt", SETTLE, "CANCELLED 1, COMPLETED 1", 2, "hello|w1 w2 w3|instead|first"),
    "rolled back": Case("rollback", SETTLE, "CANCELLED 1, COMPLETED 1", 3, "hello|instead|first", number=2),
    "delete": Case("delete", DELETE, "", 1, ""),
}
# The replica that took the call dies when it is committed; the one that executes the run lives and was not told.
BESIDE = {
    "create": Case("answer", CREATE, "COMPLETED 1", 1, "hello|first"),
    "outputs": Case("tools", SUBMIT, "COMPLETED 2", 2, "hello|first"),
    "cancel": Case("cancel", CANCEL, "CANCELLED 1", 1, "hello|w1 w2 w3"),
    "interrupt": Case("interrupt", CREATE, "CANCELLED 1, COMPLETED 1", 2, "hello|w1 w2 w3|instead|first", number=2),
    "delete": Case("delete", DELETE, "", 1, ""),
}
# The replica lives, and loses its connection before COMMIT reaches the server ...
UNSENT = {
    "create": Case("answer", CREATE, "COMPLETED 1", 1, "hello|first"),
    "claim": Case("queue", CLAIM, "COMPLETED 1, COMPLETED 1", 2, "hello|first"),
    "end": Case("answer", SETTLE, "COMPLETED 1", 1, "hello|first"),
    "end of a turn": Case("two turns", SETTLE, "COMPLETED 1", 2, "hello|wait|first"),
    "calls": Case("tools", SETTLE, "COMPLETED 2", 2, "hello|first"),
    "outputs": Case("tools", SUBMIT, "COMPLETED 2", 2, "hello|first"),
    "cancel": Case("cancel", CANCEL, "CANCELLED 1", 1, "hello|w1 w2 w3"),
    "cancelled": Case("cancel", SETTLE, "CANCELLED 1", 1, "hello|w1 w2 w3"),
    "expired in the queue": Case("expire queued", EXPIRE, "COMPLETED 1, EXPIRED 0", 1, "hello|w1 w2 w3 w4 w5 w6"),
    "start over": Case("start over", START_OVER, "COMPLETED 2", 2, "hello|again"),
    "line": Case("line", SETTLE, "COMPLETED 1, COMPLETED 1", 2, "hello|w1 w2 w3 w4 w5 w6|then|first"),
    "interrupt": Case("interrupt", CREATE, "CANCELLED 1, COMPLETED 1", 2, "hello|w1 w2 w3|instead|first", number=2),
    "rolled back": Case("rollback", SETTLE, "CANCELLED 1, COMPLETED 1", 3, "hello|instead|first", number=2),
    "delete": Case("delete", DELETE, "", 1, ""),
    "fork": Case("fork", FORK, "COMPLETED 1", 1, "hello|first"),
    "rate": Case("rate", RATE, "COMPLETED 1", 1, "hello|first"),
}
# ... or behind that, so that the answer is not read.
UNHEARD = UNSENT | {
    "create": Case("answer", CREATE, "COMPLETED 2", 1, "hello|first"),
    "claim": Case("queue", CLAIM, "COMPLETED 1, COMPLETED 2", 2, "hello|first"),
    "end of a turn": Case("two turns", SETTLE, "COMPLETED 2", 2, "hello|wait|first"),
    "outputs": Case("tools", SUBMIT, "COMPLETED 3", 2, "hello|first"),
    "start over": Case("start over", START_OVER, "COMPLETED 3", 2, "hello|again"),
}


def each(cases: Mapping[str, Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases.values(), ids=list(cases))


@pytest.fixture
def play_death(tmp_path: Path, upstream: ScriptedUpstream, shared: dict[str, Any], open_replica: OpenReplica) -> Play:
    """Plays a case on a replica that dies (its process ends with `code`), and goes on with another one. That is there
    from the start, and the one that executes runs, where this happens `beside` it."""

    async def play(case: Case, moment: Moment, *, beside: bool = False, code: int = -signal.SIGKILL) -> None:
        story = STORIES[case.story]
        upstream.replace(Script(scenes=tuple(story.scenes)))
        point = CrashPoint(case.writer, moment, case.number)
        settings = {
            "server": {"role": "api" if beside else "all"},
            "worker": {"slots": story.slots, "lease_seconds": LEASE_SECONDS},
        }
        async with AsyncExitStack() as stack:
            other = await stack.enter_async_context(open_replica()) if beside else None
            doomed, process = await stack.enter_async_context(
                open_mortal(tmp_path / "mortal", upstream, point, **settings, **shared)
            )

            async def move() -> Stage:
                assert await died(process) == code
                return other if other is not None else await stack.enter_async_context(open_replica())

            client = Client(doomed, move, process)
            told = await story.act(client)
            assert client.stage is not doomed
            await check(client, told, case)

    return play


@pytest.fixture
def play_cut(upstream: ScriptedUpstream, open_replica: OpenReplica, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Plays a case on a replica that loses its connection to the database, and lives."""

    async def play(case: Case, moment: Moment) -> None:
        story = STORIES[case.story]
        upstream.replace(Script(scenes=tuple(story.scenes)))
        armed = arm(CrashPoint(case.writer, moment, case.number), monkeypatch.setattr)
        async with open_replica(worker={"slots": story.slots, "lease_seconds": 2 * LEASE_SECONDS}) as stage:

            async def stay() -> Stage:
                return stage

            client = Client(stage, stay)
            told = await story.act(client)
            assert armed.passed
            await check(client, told, case)

    return play


async def check(client: Client, told: Told, case: Case) -> None:
    """The store, the streams and the model's bill tell what the case says."""
    stage = client.stage
    ends = []
    for one in told.runs:
        run = await stage.get(one.id)
        seen = client.seen[run.id]
        validate_stream(seen)
        written = await stage.messages(run.thread_id, run.id)
        if run.rolled_back:
            # What it had told to be stored is gone.
            assert written == []
        else:
            validate_final(seen, run, written)
        ends.append(f"{RunState.Name(run.state).removeprefix('RUN_STATE_')} {run.attempt}")
    assert ", ".join(ends) == case.ends
    assert len(stage.upstream.requests) == case.asked
    if told.runs:
        assert "|".join(await stage.texts(told.thread_id)) == case.texts
        assert await stage.active_run(told.thread_id) == ""
    else:
        with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
            await stage.texts(told.thread_id)


@each(BEFORE)
async def test_replica_that_dies_before_a_commit_has_done_nothing(case: Case, play_death: Play) -> None:
    await play_death(case, Moment.BEFORE)


@each(AFTER)
async def test_replica_that_dies_after_a_commit_has_done_it(case: Case, play_death: Play) -> None:
    await play_death(case, Moment.AFTER)


@each(BESIDE)
async def test_worker_finds_by_itself_what_a_replica_stored_that_died_before_it_told(
    case: Case, play_death: Play
) -> None:
    await play_death(case, Moment.AFTER, beside=True)


async def test_model_turns_under_way_run_again_before_the_first_word_and_behind_it(play_death: Play) -> None:
    case = Case("under way", "the client", "COMPLETED 2, COMPLETED 2", 4, "hello|again")
    await play_death(case, Moment.BEFORE)


async def test_turn_that_ends_while_the_database_is_away_is_stored_once_it_is_back(
    tmp_path: Path, upstream: ScriptedUpstream, valkey: EmbeddedValkey
) -> None:
    redis_url = await valkey.start()
    with PostgresServer() as server:
        settings = stage_settings(
            tmp_path / "replica", upstream.base_url, redis_url=redis_url, database_url=server.create_database()
        )
        async with open_stage(settings, upstream, STORIES["cancel"].scenes) as stage:
            run = await stage.start()
            await stage.until_text(run.id, " w3")
            server.kill()
            (await stage.request()).released.set()
            await stage.request_ended()
            await asyncio.to_thread(server.start)
            story = await stage.tell(run.id)
            assert (story.run.state, story.text) == (RunState.RUN_STATE_COMPLETED, "w1 w2 w3 w4 w5 w6")
            assert (story.run.attempt, len(upstream.requests)) == (1, 1)
    await valkey.close()


@pytest.mark.parametrize("moment", [Moment.UNSENT, Moment.UNHEARD])
async def test_lease_that_perhaps_was_not_given_back_runs_out(moment: Moment, play_death: Play) -> None:
    await play_death(Case("drain", RELEASE, "COMPLETED 2", 2, "hello|again"), moment, code=0)


@each(UNSENT)
async def test_commit_that_the_database_never_got_is_repeated(case: Case, play_cut: Play) -> None:
    await play_cut(case, Moment.UNSENT)


@each(UNHEARD)
async def test_commit_whose_answer_is_lost_counts_once(case: Case, play_cut: Play) -> None:
    await play_cut(case, Moment.UNHEARD)
