"""One attempt at a run where things happen that no socket can be made to do at the right moment."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace

import pytest

from contract.samples import TENANT, MovableClock, add_messages, add_run, add_thread, claim_runs, run
from famulus.v1.message_pb2 import MessageState
from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import Run, RunErrorCode, RunState
from famulus_server.engine import lifecycle
from famulus_server.engine.asking import Asking
from famulus_server.engine.clock import TimeOrderedIds
from famulus_server.engine.control import Control, Interruption
from famulus_server.engine.executor import Executor
from famulus_server.engine.feed import Feed, RunLog
from famulus_server.engine.packing import events_of
from famulus_server.engine.policy import Policies
from famulus_server.engine.pseudonyms import Pseudonyms
from famulus_server.engine.routing import Router
from famulus_server.errors import ModelProtocolError
from famulus_server.ports import (
    Claimed,
    Lease,
    ModelCard,
    ModelEvent,
    ModelRequest,
    ReasoningChunk,
    Remembered,
    Store,
    TextChunk,
    Transaction,
    TurnEnded,
    TurnOutcome,
)
from unit.engine.alone import NoEventLog, NoLimiter, NoThreadCache, ledger, run_metrics
from validator import validate_stream

LEASE = Lease(owner="me", seconds=15)
Part = Callable[[], Awaitable[None]]


class StagedModels:
    """One model, which says a word each turn and then does what the next part says; without parts it ends well."""

    def __init__(self, *parts: Part) -> None:
        self._parts = list(parts)
        self.turns = 0

    def card(self, name: str) -> ModelCard | None:
        return ModelCard(name=name, context_window=8_192, max_output_tokens=None, built_in_tools=True)

    def open(self, name: str) -> "StagedModels":
        return self

    def rests(self, name: str) -> float:
        return 0.0

    async def stream(self, request: ModelRequest) -> AsyncGenerator[list[ModelEvent], None]:
        self.turns += 1
        yield [TextChunk(0, 0, "word")]
        if self._parts:
            await self._parts.pop(0)()
        item = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "word"}]}
        yield [TurnEnded(TurnOutcome.COMPLETED, [item], None)]

    async def count(self, request: ModelRequest) -> int | None:
        return None


@pytest.fixture
def feed() -> Feed:
    made = Feed(event_log=NoEventLog())
    # Whoever stores a run publishes so before it is executed, and that opens its log.
    made.open("run_1", 1)
    return made


async def claim(store: Store, **fields: object) -> Claimed:
    await add_thread(store, "thread_1", "hello")
    await add_run(store, run(**fields))  # type: ignore[arg-type]
    [claimed] = await claim_runs(store, LEASE, limit=1)
    return claimed


def executor(store: Store, feed: Feed, models: StagedModels, clock: MovableClock) -> Executor:
    policies = Policies()
    router = Router(models=models, policies=policies)
    return Executor(
        store=store,
        thread_cache=NoThreadCache(),
        feed=feed,
        ledger=ledger(store, feed),
        router=router,
        asking=Asking(
            router=router,
            limiter=NoLimiter(),
            policies=policies,
            pseudonyms=Pseudonyms(key=b"k"),
            metrics=run_metrics(),
        ),
        policies=policies,
        metrics=run_metrics(),
        lease=LEASE,
        clock=clock,
        ids=TimeOrderedIds(clock=clock),
    )


async def stored(store: Store) -> Run:
    return await store.read(lambda tx: tx.runs.get(TENANT, "run_1"))


async def ask_to_cancel(store: Store) -> None:
    """As another replica does: this worker is not told."""
    asked = await stored(store)
    asked.state = lifecycle.CANCELLING
    await store.write(lambda tx: tx.runs.replace(TENANT, asked, attempt=asked.attempt))


def told(feed: Feed) -> list[RunEvent]:
    log = feed.find("run_1")
    assert log is not None
    return events_of(log.all())


async def test_cancel_that_meets_the_end_of_the_turn_wins_and_is_told_once(
    store: Store, feed: Feed, clock: MovableClock
) -> None:
    claimed = await claim(store)
    models = StagedModels(lambda: ask_to_cancel(store))
    await executor(store, feed, models, clock).execute(claimed, Control())
    assert (await stored(store)).state == RunState.RUN_STATE_CANCELLED
    states = [event.run_state_changed.run.state for event in told(feed) if event.HasField("run_state_changed")]
    assert states == [RunState.RUN_STATE_CANCELLING, RunState.RUN_STATE_CANCELLED]
    [kept] = await store.read(lambda tx: tx.messages.page(TENANT, "thread_1", run_id="run_1", limit=10))
    assert kept.state == MessageState.MESSAGE_STATE_INCOMPLETE
    assert kept.content[0].text.text == "word"


async def test_cancel_that_meets_a_broken_turn_ends_the_run_without_asking_the_model_again(
    store: Store, feed: Feed, clock: MovableClock
) -> None:
    async def cancelled_and_broken() -> None:
        await ask_to_cancel(store)
        raise ModelProtocolError("cut")

    claimed = await claim(store)
    models = StagedModels(cancelled_and_broken)
    await executor(store, feed, models, clock).execute(claimed, Control())
    assert (await stored(store)).state == RunState.RUN_STATE_CANCELLED
    assert models.turns == 1


@pytest.mark.parametrize("why", [Interruption.DRAIN, Interruption.LEASE_LOST])
async def test_interrupted_execution_ends_and_writes_nothing_of_the_turn(
    store: Store, feed: Feed, clock: MovableClock, why: Interruption
) -> None:
    control = Control()

    async def interrupted() -> None:
        control.interrupt(why)
        await asyncio.sleep(10)

    claimed = await claim(store)
    models = StagedModels(interrupted)
    await executor(store, feed, models, clock).execute(claimed, control)
    left = await stored(store)
    assert (left.state, left.attempt) == (RunState.RUN_STATE_IN_PROGRESS, 1)
    assert await store.read(lambda tx: tx.messages.page(TENANT, "thread_1", run_id="run_1", limit=10)) == []
    again = await claim_runs(store, LEASE, limit=1)
    # Given back at once, or left until the lease runs out.
    assert len(again) == (1 if why is Interruption.DRAIN else 0)


async def test_worker_that_lost_the_run_writes_and_tells_nothing_more(
    store: Store, feed: Feed, clock: MovableClock
) -> None:
    async def taken_over() -> None:
        clock.advance(LEASE.seconds + 1)
        [other] = await claim_runs(store, Lease(owner="other", seconds=15), limit=1)
        assert other.taken_over

    claimed = await claim(store)
    await executor(store, feed, StagedModels(taken_over), clock).execute(claimed, Control())
    left = await stored(store)
    assert (left.state, left.attempt) == (RunState.RUN_STATE_IN_PROGRESS, 2)
    assert [event.WhichOneof("event") for event in told(feed)][-1] == "text_delta"
    assert await store.read(lambda tx: tx.messages.page(TENANT, "thread_1", run_id="run_1", limit=10)) == []


async def test_deleted_run_is_dropped_in_silence(store: Store, feed: Feed, clock: MovableClock) -> None:
    async def deleted() -> None:
        await store.write(lambda tx: tx.threads.bury(TENANT, "thread_1", clock.now()))
        feed.drop("run_1")

    claimed = await claim(store)
    await executor(store, feed, StagedModels(deleted), clock).execute(claimed, Control())
    assert feed.find("run_1") is None


async def test_fault_of_ours_fails_the_run_and_shows_no_words_of_the_exception(
    store: Store, feed: Feed, clock: MovableClock
) -> None:
    async def fault() -> None:
        raise ZeroDivisionError("secret")

    claimed = await claim(store)
    await executor(store, feed, StagedModels(fault), clock).execute(claimed, Control())
    failed = await stored(store)
    assert (failed.state, failed.error.code) == (RunState.RUN_STATE_FAILED, RunErrorCode.RUN_ERROR_CODE_SERVER_ERROR)
    assert "secret" not in failed.error.message
    assert "ZeroDivision" not in failed.error.message
    assert told(feed)[-1].run_state_changed.run.state == RunState.RUN_STATE_FAILED


async def test_execution_tells_a_valid_story(store: Store, feed: Feed, clock: MovableClock) -> None:
    claimed = await claim(store)
    await executor(store, feed, StagedModels(), clock).execute(claimed, Control())
    events = told(feed)
    validate_stream(events, events[0].sequence - 1)


async def test_last_words_are_shown_before_the_end_is_stored(
    store: Store, feed: Feed, clock: MovableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    log, write = feed.find("run_1"), store.write
    assert log is not None

    async def watch(log: RunLog) -> None:
        await log.wait()
        order.append("shown")

    async def storing(unit: Callable[[Transaction], Awaitable[object]]) -> object:
        order.append("stored")
        return await write(unit)

    claimed = await claim(store)
    monkeypatch.setattr(store, "write", storing)
    watching = asyncio.create_task(watch(log))
    await asyncio.sleep(0)
    await executor(store, feed, StagedModels(), clock).execute(claimed, Control())
    await watching
    assert order == ["shown", "stored"]


async def test_turn_that_breaks_after_hidden_reasoning_is_started_over(
    store: Store, feed: Feed, clock: MovableClock
) -> None:
    class Thinking(StagedModels):
        async def stream(self, request: ModelRequest) -> AsyncGenerator[list[ModelEvent], None]:
            if not self.turns:
                self.turns += 1
                yield [ReasoningChunk("hm")]
                raise ModelProtocolError("cut")
            async for events in super().stream(request):
                yield events

    claimed = await claim(store)
    await executor(store, feed, Thinking(), clock).execute(claimed, Control())
    done = await stored(store)
    assert (done.state, done.attempt) == (RunState.RUN_STATE_COMPLETED, 2)
    assert [event.WhichOneof("event") for event in told(feed)].count("attempt_started") == 1


async def test_turn_that_starts_over_sees_what_was_said_meanwhile(
    store: Store, feed: Feed, clock: MovableClock
) -> None:
    requests: list[ModelRequest] = []

    class Listening(StagedModels):
        async def stream(self, request: ModelRequest) -> AsyncGenerator[list[ModelEvent], None]:
            requests.append(request)
            async for events in super().stream(request):
                yield events

    async def broken() -> None:
        await add_messages(store, "thread_1", "and also")
        raise ModelProtocolError("cut")

    claimed = await claim(store)
    # As of a run that was made together with its thread.
    held = await store.read(lambda tx: tx.messages.page(TENANT, "thread_1", limit=10))
    claimed = replace(claimed, thread=Remembered(revision=0, floor=0, upto=len(held), messages=held))
    await executor(store, feed, Listening(broken), clock).execute(claimed, Control())
    assert [len(request.items) for request in requests] == [1, 2]


async def test_cost_of_turns_that_were_broken_off_is_estimated(store: Store, feed: Feed, clock: MovableClock) -> None:
    control = Control()

    async def broken() -> None:
        raise ModelProtocolError("cut")

    async def interrupted() -> None:
        await ask_to_cancel(store)
        control.interrupt(Interruption.CANCEL)
        await asyncio.sleep(10)

    claimed = await claim(store)
    await executor(store, feed, StagedModels(broken, interrupted), clock).execute(claimed, control)
    usage = (await stored(store)).usage
    assert usage.estimated
    # "word", twice.
    assert usage.completion_tokens == 4
    assert usage.prompt_tokens > 0


async def test_what_comes_behind_a_deletion_leaves_no_log(store: Store, feed: Feed, clock: MovableClock) -> None:
    claimed = await claim(store)
    await store.write(lambda tx: tx.threads.bury(TENANT, "thread_1", clock.now()))
    feed.drop("run_1")
    taken_over = Claimed(claimed.tenant, claimed.run, taken_over=True)
    await executor(store, feed, StagedModels(), clock).execute(taken_over, Control())
    assert feed.find("run_1") is None


async def test_run_on_which_too_many_workers_died_ends_before_anything_of_it_is_read(
    store: Store, feed: Feed, clock: MovableClock
) -> None:
    claimed = await claim(store)
    claimed.run.turns, claimed.run.turn_attempt = 1, 4
    models = StagedModels()
    await executor(store, feed, models, clock).execute(claimed, Control())
    assert (await stored(store)).error.code == RunErrorCode.RUN_ERROR_CODE_WORKER_LOST
    assert models.turns == 0
