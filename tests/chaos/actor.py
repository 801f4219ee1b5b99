"""What one user can do: each verb is a call that is repeated until it is answered, and noted in the journal."""

import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

import grpc

from chaos.calls import FAULTS_OF_OURS, Calls
from chaos.journal import Journal, KnownRun, KnownThread, Viewing
from chaos.script import TOOLS, answer, question
from chaos.watching import Watcher
from famulus import FamulusError
from famulus.v1.error_reason_pb2 import ErrorReason
from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import RatingVerdict, Run, RunRating, RunState
from famulus.v1.run_service_pb2 import (
    BusyPolicy,
    CancelRunRequest,
    CreateRunRequest,
    GetRunRequest,
    RateRunRequest,
    StreamRunRequest,
    SubmitToolOutputsRequest,
    ToolOverride,
    WatchRunRequest,
)
from famulus.v1.thread_pb2 import Thread
from famulus.v1.thread_service_pb2 import (
    CreateMessageRequest,
    CreateThreadRequest,
    DeleteThreadRequest,
    ForkThreadRequest,
)
from famulus.v1.tool_pb2 import ToolOutput
from serving import said

REJECT = BusyPolicy.BUSY_POLICY_REJECT
_BUSY = ErrorReason.ERROR_REASON_THREAD_HAS_ACTIVE_RUN
# What answers of a run, or of outputs, may say once the run went another way.
_TOO_LATE = {
    ErrorReason.ERROR_REASON_RUN_NOT_WAITING,
    ErrorReason.ERROR_REASON_RUN_EXPIRED,
    ErrorReason.ERROR_REASON_TOOL_OUTPUT_CONFLICT,
}


class Actor:
    """A user in the middle of one story."""

    def __init__(self, *, name: str, calls: Calls, journal: Journal, rng: random.Random, assistant_id: str) -> None:
        """`name` is unique: all request ids and texts of the story begin with it."""
        self.name = name
        self.rng = rng
        self.runs: list[KnownRun] = []
        self._calls = calls
        self._journal = journal
        self._assistant_id = assistant_id
        self._count = 0

    async def open_thread(self) -> KnownThread:
        """A new thread."""
        request = CreateThreadRequest(request_id=self.token())
        response = await self._calls.send("CreateThread", request, self.rng)
        return self._journal.thread(response.thread.id)

    def wish(
        self, kind: str, thread: KnownThread | None = None, policy: "BusyPolicy.ValueType" = REJECT
    ) -> CreateRunRequest:
        """A request for a run: on a new thread, unless one is given."""
        token = self.token()
        request = CreateRunRequest(
            request_id=token,
            assistant_id=self._assistant_id,
            additional_messages=[said(question(kind, token))],
            metadata={"request": token, "kind": kind},
            busy_policy=policy,
            tools=ToolOverride(tools=TOOLS if "weather" in kind else ()),
        )
        if thread is None:
            request.new_thread.CopyFrom(Thread())
        else:
            request.thread_id = thread.id
        return request

    async def start(self, request: CreateRunRequest, *, first: int | None = None) -> KnownRun | None:
        """Creates the run. None where its thread is busy, or was deleted meanwhile."""
        try:
            response = await self._calls.send("CreateRun", request, self.rng, first=first)
        except FamulusError as error:
            if error.reason == _BUSY and request.busy_policy == REJECT:
                self._journal.counts["rejected"] += 1
                return None
            self._forgive_deletion(error, request.thread_id)
            return None
        return self.know(response.run, request)

    def know(self, run: Run, request: CreateRunRequest) -> KnownRun:
        """Notes a run that was acknowledged; the same request must always name the same one."""
        known = self._journal.runs.get(run.id)
        if known is None:
            known = KnownRun(
                id=run.id,
                thread_id=run.thread_id,
                request_id=request.request_id,
                kind=request.metadata["kind"],
                said=request.additional_messages[0].content[0].text.text,
            )
            self._journal.runs[run.id] = known
            self._journal.thread(run.thread_id)
            self.runs.append(known)
        if known.request_id != request.request_id:
            self._journal.violate("two request ids, one run", run.id, f"{known.request_id} and {request.request_id}")
        return known

    async def look(self, run: KnownRun) -> Run | None:
        """The run as it is now, from any replica. None where its thread was deleted."""
        try:
            return (await self._calls.send("GetRun", GetRunRequest(run_id=run.id), self.rng)).run  # type: ignore[no-any-return]
        except FamulusError as error:
            self._forgive_deletion(error, run.thread_id)
            return None

    async def watch(
        self,
        run: KnownRun,
        viewing: Viewing | None = None,
        *,
        cuts: float = 0.0,
        pause: float = 0.0,
        until: Callable[[RunEvent], bool] | None = None,
    ) -> Viewing:
        """Watches to the end, or until an event that is looked for."""
        return await self._watcher(cuts, pause).follow(
            "WatchRun",
            lambda after: WatchRunRequest(run_id=run.id, after_sequence=after),
            viewing or Viewing(run.id),
            until=until,
        )

    async def stream(self, request: CreateRunRequest, *, cuts: float) -> Viewing:
        """Starts a run and watches it in one call, which is also how it resumes."""
        viewing = Viewing()
        await self._watcher(cuts, 0.0).follow(
            "StreamRun", lambda after: StreamRunRequest(create=request, after_sequence=after), viewing
        )
        first = viewing.events[0]
        self.know(first.run_state_changed.run if first.HasField("run_state_changed") else first.snapshot.run, request)
        return viewing

    async def converse(self, request: CreateRunRequest, outputs: Mapping[str, str]) -> None:
        """Starts a run and follows it with our own client, which must not let its user notice anything. `outputs` are
        those of tools, by their names."""
        viewing = Viewing()
        self._journal.viewings.append(viewing)

        def tool(name: str) -> Callable[[], Awaitable[str]]:
            async def run() -> str:
                return outputs[name]

            return run

        stream = self._calls.client.stream_run(request, tools={name: tool(name) for name in outputs})
        try:
            async with stream:
                async for event in stream:
                    viewing.run_id = stream.view.run_id
                    viewing.events.append(event)
            viewing.ended = True
        except FamulusError as error:
            what = f"{error.code.name} {error.reason_name}"
            self._journal.violate("an error is visible through the client", what, f"{viewing.run_id}: {error}")
            return
        run = self.know(stream.view.result().run, request)
        run.outputs = dict(outputs)
        if stream.view.result().run.state == RunState.RUN_STATE_COMPLETED:
            expected = answer(run.said, run.outputs)
            if stream.view.text != expected:
                self._journal.violate("the client shows another text", run.id, f"{stream.view.text} not {expected}")

    async def fork(self, thread: KnownThread, request_id: str) -> KnownThread:
        """Forks the thread; asked for several times at once, it is one fork."""
        request = ForkThreadRequest(thread_id=thread.id, request_id=request_id)
        fork = self._journal.thread((await self._calls.send("ForkThread", request, self.rng)).thread.id)
        fork.forked = True
        return fork

    async def rate(self, run: KnownRun) -> None:
        """Rates a run that has ended."""
        rating = RunRating(verdict=RatingVerdict.RATING_VERDICT_GOOD)
        request = RateRunRequest(run_id=run.id, rating=rating, request_id=self.token())
        await self._calls.send("RateRun", request, self.rng)
        run.rated = True

    async def cancel(self, run: KnownRun) -> None:
        """Asks the run to stop."""
        run.may_stop = True
        try:
            response = await self._calls.send("CancelRun", CancelRunRequest(run_id=run.id), self.rng)
        except FamulusError as error:
            self._forgive_deletion(error, run.thread_id)
        else:
            run.told_states.append(response.run.state)

    async def submit(self, run: KnownRun, outputs: Sequence[tuple[str, str]], *, first: int | None = None) -> None:
        """Submits outputs of calls, given by their ids."""
        request = SubmitToolOutputsRequest(
            run_id=run.id,
            tool_outputs=[ToolOutput(call_id=call_id, output=output) for call_id, output in outputs],
            request_id=f"{run.request_id}-outputs",
        )
        try:
            await self._calls.send("SubmitToolOutputs", request, self.rng, first=first)
        except FamulusError as error:
            if not (run.may_stop and error.reason in _TOO_LATE):
                self._forgive_deletion(error, run.thread_id)

    async def say(self, thread: KnownThread, text: str) -> None:
        """Appends a message."""
        request = CreateMessageRequest(thread_id=thread.id, message=said(text), request_id=self.token())
        try:
            message = (await self._calls.send("CreateMessage", request, self.rng)).message
        except FamulusError as error:
            self._forgive_deletion(error, thread.id)
            return
        if thread.messages.setdefault(message.id, text) != text:
            self._journal.violate("two messages, one id", thread.id, f"{message.id}: {text}")

    async def delete(self, thread: KnownThread) -> None:
        """Deletes the thread. Repeated after a lost answer, the call may find it gone."""
        thread.asked_to_delete = thread.asked_to_delete or time.time()
        try:
            await self._calls.send("DeleteThread", DeleteThreadRequest(thread_id=thread.id), self.rng)
        except FamulusError as error:
            self._forgive_deletion(error, thread.id)
        thread.deleted = time.time()

    def check_one(self, request_id: str, ids: set[str]) -> None:
        """All answers to one request must name one resource."""
        if len(ids) > 1:
            self._journal.violate("one request id, several resources", request_id, str(ids))

    async def check_gone(self, run: KnownRun) -> None:
        """After the deletion was acknowledged, every replica must say that there is no such run."""
        viewing = await self.watch(run)
        if not viewing.gone:
            self._journal.violate("a run of a deleted thread is shown", run.id, f"{len(viewing.events)} events")

    def thread_of(self, run: KnownRun) -> KnownThread:
        """Where the run works."""
        return self._journal.thread(run.thread_id)

    def pick(self) -> int:
        """The number of a replica."""
        return self._calls.pick(self.rng)

    def _watcher(self, cuts: float, pause: float) -> Watcher:
        rng = random.Random(self.rng.random())
        return Watcher(calls=self._calls, journal=self._journal, rng=rng, cuts=cuts, pause=pause)

    def token(self) -> str:
        """A request id, or another word that nobody else says."""
        self._count += 1
        return f"{self.name}.{self._count}"

    def _forgive_deletion(self, error: FamulusError, thread_id: str) -> None:
        gone = error.code is grpc.StatusCode.NOT_FOUND and self._journal.thread(thread_id).asked_to_delete is not None
        if not gone and error.code not in FAULTS_OF_OURS:
            self._journal.violate("an unexpected refusal", thread_id, str(error))
