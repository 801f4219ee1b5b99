"""Stories of runs as a stubborn client tells them: whatever dies under it, it repeats the call that was cut off, under
the same request id, resumes the stream that broke, and goes on."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration

from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import RatingVerdict, Run, RunRating, RunState
from famulus.v1.run_service_pb2 import (
    BusyPolicy,
    CreateRunRequest,
    RateRunRequest,
    SubmitToolOutputsRequest,
    WatchRunRequest,
)
from famulus.v1.thread_pb2 import Thread
from famulus.v1.thread_service_pb2 import DeleteThreadRequest, ForkThreadRequest, ListThreadsRequest
from famulus_server.embedded.upstream import Fault, Match, Scene, ToolCall
from run_stage import TOOLS, Stage
from serving import said

T = TypeVar("T")
Wanted = Callable[[RunEvent], bool]


class Client:
    """Calls one replica until that is gone, and then the one that `move` gives."""

    def __init__(self, stage: Stage, move: Callable[[], Awaitable[Stage]], process: BaseProcess | None = None) -> None:
        self.stage = stage
        self.process = process
        self.seen: dict[str, list[RunEvent]] = {}
        self._move = move
        self._moving = asyncio.Lock()

    async def call(self, act: Callable[[Stage], Awaitable[T]]) -> T:
        """What the call answers, here or there."""
        stage = self.stage
        try:
            return await act(stage)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
        async with self._moving:
            if self.stage is stage:
                self.stage = await self._move()
        return await act(self.stage)

    async def assistant(self) -> str:
        return (await self.call(lambda stage: stage.assistant(tools=TOOLS))).id

    async def thread(self) -> str:
        return (await self.call(lambda stage: stage.thread())).id

    async def start(self, text: str, **fields: Any) -> Run:
        """Creates a run; its text is its request id, too."""
        request = CreateRunRequest(request_id=text, additional_messages=[said(text)], **fields)
        run = (await self.call(lambda stage: stage.runs.CreateRun(request))).run
        self.seen.setdefault(run.id, [])
        return run

    async def submit(self, run_id: str, output: str) -> None:
        """Answers the one open call of a run."""
        [call] = (await self.call(lambda stage: stage.get(run_id))).required_action.tool_calls
        request = SubmitToolOutputsRequest(run_id=run_id, request_id=output)
        request.tool_outputs.add(call_id=call.id, output=output)
        await self.call(lambda stage: stage.runs.SubmitToolOutputs(request))

    async def follow(self, run_id: str, wanted: Wanted = lambda _: False) -> None:
        """Watches a run behind what was seen of it, up to a wanted event or to its end."""
        seen = self.seen[run_id]

        async def watch(stage: Stage) -> None:
            after = seen[-1].sequence if seen else 0
            call = stage.runs.WatchRun(WatchRunRequest(run_id=run_id, after_sequence=after))
            async for response in call:
                seen.extend(response.events)
                if any(map(wanted, response.events)):
                    call.cancel()
                    return

        await self.call(watch)

    async def follow_all(self, *runs: Run) -> None:
        await asyncio.gather(*(self.follow(run.id) for run in runs))


@dataclass(frozen=True)
class Told:
    """What a story was about."""

    thread_id: str
    runs: Sequence[Run] = ()


@dataclass(frozen=True)
class Story:
    """What a client does, the model's part in it, and how many runs a replica executes at once."""

    act: Callable[[Client], Awaitable[Told]]
    scenes: Sequence[Scene]
    slots: int = 8


def is_text(event: RunEvent) -> bool:
    return event.text_delta.text == " w3"


def needs_action(event: RunEvent) -> bool:
    run = event.snapshot.run if event.HasField("snapshot") else event.run_state_changed.run
    return run.state == RunState.RUN_STATE_REQUIRES_ACTION


async def _answer(client: Client) -> Told:
    run = await client.start("hello", new_thread=Thread(), assistant_id=await client.assistant())
    await client.follow(run.id)
    await client.call(lambda stage: _count_threads(stage, 1))
    return Told(run.thread_id, [run])


async def _queue(client: Client) -> Told:
    """The second run waits until the first gives its slot away."""
    assistant, thread = await client.assistant(), await client.thread()
    first = await client.start("first", new_thread=Thread(), assistant_id=assistant)
    await client.follow(first.id, is_text)
    second = await client.start("hello", thread_id=thread, assistant_id=assistant)
    (await client.stage.request()).released.set()
    await client.follow_all(first, second)
    return Told(thread, [first, second])


async def _under_way(client: Client) -> Told:
    """The replica is killed while one run waits for its first word, and another is in the middle of a text."""
    assistant, thread = await client.assistant(), await client.thread()
    silent = await client.start("silence", new_thread=Thread(), assistant_id=assistant)
    await client.stage.request()
    run = await client.start("hello", thread_id=thread, assistant_id=assistant)
    await client.follow(run.id, is_text)
    assert client.process is not None
    client.process.kill()
    await client.follow_all(run, silent)
    return Told(thread, [run, silent])


async def _tools(client: Client, *, ttl: int = 600) -> Told:
    thread = await client.thread()
    fields = {"thread_id": thread, "assistant_id": await client.assistant(), "ttl": Duration(seconds=ttl)}
    run = await client.start("hello", **fields)
    await client.follow(run.id, needs_action)
    return Told(thread, [run])


async def _submit(client: Client) -> Told:
    told = await _tools(client)
    await client.submit(told.runs[0].id, "noon")
    await client.follow_all(*told.runs)
    return told


async def _cancel_waiting(client: Client) -> Told:
    told = await _tools(client)
    await client.call(lambda stage: stage.cancel(told.runs[0].id))
    await client.follow_all(*told.runs)
    return told


async def _warm_up(client: Client) -> None:
    """Asks the model something: what comes next has little time, and must not lose it to a replica that starts."""
    warm = await client.start("warm up", new_thread=Thread(), assistant_id=await client.assistant())
    await client.follow(warm.id)


async def _expire_waiting(client: Client) -> Told:
    await _warm_up(client)
    told = await _tools(client, ttl=3)
    await client.follow_all(*told.runs)
    return told


async def _half(client: Client, **fields: Any) -> Told:
    """A run in the middle of a text, which the model holds back."""
    thread = await client.thread()
    run = await client.start("hello", thread_id=thread, assistant_id=await client.assistant(), **fields)
    await client.follow(run.id, is_text)
    return Told(thread, [run])


async def _cancel(client: Client) -> Told:
    told = await _half(client)
    await client.call(lambda stage: stage.cancel(told.runs[0].id))
    await client.follow_all(*told.runs)
    assert (await client.stage.request_ended()).outcome == "disconnected"
    return told


async def _expire(client: Client) -> Told:
    await _warm_up(client)
    told = await _half(client, ttl=Duration(seconds=3))
    await client.follow_all(*told.runs)
    return told


async def _expire_queued(client: Client) -> Told:
    """The second run waits for a slot, and too long."""
    told = await _half(client)
    thread, assistant = await client.thread(), await client.assistant()
    late = await client.start("late", thread_id=thread, assistant_id=assistant, ttl=Duration(seconds=1))
    await client.follow(late.id)
    (await client.stage.request()).released.set()
    await client.follow_all(*told.runs)
    return Told(told.thread_id, [*told.runs, late])


async def _drain(client: Client) -> Told:
    told = await _half(client)
    assert client.process is not None
    client.process.terminate()
    await client.follow_all(*told.runs)
    return told


async def _plain(client: Client) -> Told:
    thread = await client.thread()
    run = await client.start("hello", thread_id=thread, assistant_id=await client.assistant())
    await client.follow(run.id)
    return Told(thread, [run])


async def _line(client: Client) -> Told:
    told = await _half(client)
    assistant = await client.assistant()
    enqueue = BusyPolicy.BUSY_POLICY_ENQUEUE
    second = await client.start("then", thread_id=told.thread_id, assistant_id=assistant, busy_policy=enqueue)
    (await client.stage.request()).released.set()
    await client.follow_all(*told.runs, second)
    return Told(told.thread_id, [*told.runs, second])


async def _interrupt(client: Client, policy: "BusyPolicy.ValueType" = BusyPolicy.BUSY_POLICY_INTERRUPT) -> Told:
    told = await _half(client)
    assistant = await client.assistant()
    second = await client.start("instead", thread_id=told.thread_id, assistant_id=assistant, busy_policy=policy)
    await client.follow_all(*told.runs, second)
    return Told(told.thread_id, [*told.runs, second])


async def _rollback(client: Client) -> Told:
    return await _interrupt(client, BusyPolicy.BUSY_POLICY_ROLLBACK)


async def _delete(client: Client) -> Told:
    told = await _half(client)
    for ask in (lambda stage: _deleted(stage, told.thread_id), lambda stage: _gone(stage, told.runs[0].id)):
        await client.call(ask)
    assert (await client.stage.request_ended()).outcome == "disconnected"
    return Told(told.thread_id)


async def _fork(client: Client) -> Told:
    told = await _plain(client)
    request = ForkThreadRequest(thread_id=told.thread_id, request_id="fork")
    made = (await client.call(lambda stage: stage.threads.ForkThread(request))).thread
    assert await client.call(lambda stage: stage.texts(made.id)) == ["hello", "first"]
    await client.call(lambda stage: _count_threads(stage, 2))
    return told


async def _rate(client: Client) -> Told:
    told = await _plain(client)
    rating = RunRating(verdict=RatingVerdict.RATING_VERDICT_GOOD)
    request = RateRunRequest(run_id=told.runs[0].id, rating=rating, request_id="rate")
    rated = (await client.call(lambda stage: stage.runs.RateRun(request))).run
    assert rated.rating.verdict == rating.verdict
    return told


async def _count_threads(stage: Stage, count: int) -> None:
    assert len((await stage.threads.ListThreads(ListThreadsRequest())).threads) == count


async def _deleted(stage: Stage, thread_id: str) -> None:
    """A deletion that was cut off, and finds nothing the second time, was done."""
    try:
        await stage.threads.DeleteThread(DeleteThreadRequest(thread_id=thread_id))
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise


async def _gone(stage: Stage, run_id: str) -> None:
    for asked in (stage.get(run_id), stage.watch(run_id)):
        try:
            await asked
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
        else:
            raise AssertionError("the run is still there")


_FIRST = (Scene(times=1, text="first"), Scene(text="again"))
_BAD_CALL = Scene(
    match=Match(user_contains="hello", tool_outputs=False), text="wait", tool_calls=(ToolCall(name="no"),)
)
_TIME_CALLED = Scene(match=Match(tool_outputs=False), tool_calls=(ToolCall(name="get_time"),))
_HALF = Scene(times=1, deltas=6, hold_after=3)
_WARM = Scene(match=Match(user_contains="warm up"), text="warm")
_AGAIN = Scene(text="again")
_BROKEN = Scene(times=1, deltas=4, fault=Fault(kind="eof", after=2))
_REFUSED = Scene(fault=Fault(kind="status", status=400))
_SILENT = Scene(times=1, match=Match(user_contains="silence"), fault=Fault(kind="hang_before_response"))

STORIES = {
    "answer": Story(_answer, _FIRST),
    "cut short": Story(_plain, (Scene(times=1, text="first", finish="length"), _AGAIN)),
    "refused": Story(_plain, (_REFUSED,)),
    "queue": Story(_queue, (_HALF, *_FIRST), slots=1),
    "under way": Story(_under_way, (_SILENT, _HALF, _AGAIN)),
    "two turns": Story(_plain, (_BAD_CALL, *_FIRST)),
    "tools": Story(_submit, (_TIME_CALLED, *_FIRST)),
    "cancel": Story(_cancel, (_HALF, _AGAIN)),
    "cancel waiting": Story(_cancel_waiting, (_TIME_CALLED, *_FIRST)),
    "expire": Story(_expire, (_WARM, _HALF, _AGAIN)),
    "expire queued": Story(_expire_queued, (_HALF, _AGAIN), slots=1),
    "expire waiting": Story(_expire_waiting, (_WARM, _TIME_CALLED, *_FIRST)),
    "start over": Story(_plain, (_BROKEN, _AGAIN)),
    "drain": Story(_drain, (_HALF, _AGAIN)),
    "line": Story(_line, (_HALF, *_FIRST)),
    "interrupt": Story(_interrupt, (_HALF, *_FIRST)),
    "rollback": Story(_rollback, (_BAD_CALL, _HALF, *_FIRST)),
    "delete": Story(_delete, (_HALF, _AGAIN)),
    "fork": Story(_fork, _FIRST),
    "rate": Story(_rate, _FIRST),
}
