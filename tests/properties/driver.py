"""Calls the server, compares its answers with the model's, and looks closely at every run that has come to a stop."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import grpc

from famulus.v1.message_pb2 import Message, MessageState
from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import RunState
from famulus.v1.run_service_pb2 import (
    GetRunRequest,
    ListRunStepsRequest,
    WaitRunRequest,
    WatchRunRequest,
    WatchRunResponse,
)
from famulus.v1.run_step_pb2 import RunStep, RunStepState
from famulus.v1.thread_service_pb2 import GetThreadRequest, ListMessagesRequest, ListOrder
from famulus_server.engine.lifecycle import CANCELLED, FINAL, IN_PROGRESS, INCOMPLETE, REQUIRES_ACTION
from properties.model import NOT_FOUND, OK, Answers, ContractModel, Refused, RunRecord, ThreadRecord
from properties.stage import PATIENCE, UpstreamThread, Watcher
from serving import Stubs, refusal
from validator import text_of, validate_final, validate_stream

_OUT_OF_RANGE = Refused(grpc.StatusCode.OUT_OF_RANGE, "SEQUENCE_OUT_OF_RANGE")
_DELETED = Refused(grpc.StatusCode.NOT_FOUND, "THREAD_DELETED")
_MOMENT = 5_000  # microseconds


class ContractDriver:
    """The server and the model, side by side."""

    def __init__(self, *, stubs: Stubs, upstream: UpstreamThread, refusals: Counter[str]) -> None:
        """`refusals` counts the reasons that were met."""
        self.stubs = stubs
        self.upstream = upstream
        self.refusals = refusals
        self.model = ContractModel()

    def call(self, method: Any, request: Any, answers: Answers = OK) -> Any:
        """The response, or None where the call was refused: as one of `answers` says, in any case."""
        response, error = None, None
        try:
            response = method(request, timeout=PATIENCE)
        except grpc.RpcError as raised:
            error = raised
        if error is not None:
            told = refusal(error)
            self.refusals[told.reason] += 1
            assert _is_one_of(error, answers), f"{request}\nrefused: {told}\nexpected: {answers}"
            return None
        assert None in answers, f"{request}\nanswered: {response}\nexpected: {answers}"
        return response

    def page_through(self, method: Any, request: Any, name: str, size: int) -> list[Any]:
        """All items of a list, read in pages of this size; all but the last page must be full."""
        items: list[Any] = []
        request.page_size = size
        while True:
            response = self.call(method, request)
            page = getattr(response, name)
            items += page
            if not response.next_page_token:
                return items
            assert len(page) == size, f"a page of {len(page)} items, and more follow"
            request.page_token = response.next_page_token

    def messages(self, thread_id: str, *, after: int = 0) -> list[Message]:
        """The messages of a thread behind a sequence, oldest first."""
        order = ListOrder.LIST_ORDER_ASCENDING
        request = ListMessagesRequest(thread_id=thread_id, order=order, after_sequence=after)
        return self.page_through(self.stubs.threads.ListMessages, request, "messages", 100)

    def check_thread(self, thread: ThreadRecord) -> None:
        """The thread is the model's, and its messages were activity."""
        request = GetThreadRequest(thread_id=thread.thread.id)
        found = self.call(self.stubs.threads.GetThread, request).thread
        for name in ("id", "etag", "user_id", "title", "default_assistant_id", "forked_from", "create_time"):
            assert getattr(found, name) == getattr(thread.thread, name), f"{name}: {found}\nexpected: {thread.thread}"
        for message in thread.messages:
            added = message.create_time.ToMicroseconds()
            shared = message.sequence <= thread.thread.forked_from.message_sequence
            if not (shared or message.run_id):
                # A thread's first messages are a moment younger than the thread.
                assert found.last_activity_time.ToMicroseconds() >= added - _MOMENT, f"{message} is newer than {found}"
        active = self.model.active_run(thread)
        if active is not None and active.active is None:
            possible = [run.id for run in (*self.model.going_on(thread), *thread.line)]
            assert found.active_run_id in ("", *possible), found
            assert found.last_message_sequence >= thread.last_sequence, found
        else:
            assert found.active_run_id == (active.id if active is not None else ""), found
            # A run that goes on to wait for outputs may write before that.
            writing = active is not None and active.state is None
            assert found.last_message_sequence == thread.last_sequence or writing, found

    def check_messages(
        self, thread: ThreadRecord, *, size: int = 100, after: int = 0, descending: bool = False
    ) -> None:
        """The messages of a thread are those of the model, but for those that runs are about to write."""
        order = ListOrder.LIST_ORDER_DESCENDING if descending else ListOrder.LIST_ORDER_ASCENDING
        request = ListMessagesRequest(thread_id=thread.thread.id, order=order, after_sequence=after)
        found = self.page_through(self.stubs.threads.ListMessages, request, "messages", size)
        ids = {message.id for message in thread.messages}
        known = [message for message in found if message.id in ids or not self.model.uncertain(thread, message)]
        expected = [message for message in thread.messages if message.sequence > after]
        assert known == (expected[::-1] if descending else expected), f"{known}\nexpected: {expected}"

    def watch(self, run: RunRecord, after_sequence: int) -> Watcher:
        """Starts to watch a run."""
        request = WatchRunRequest(run_id=run.id, after_sequence=after_sequence)
        watcher = Watcher(self.stubs.runs.WatchRun(request, timeout=PATIENCE * 3), after_sequence)
        run.watchers.append(watcher)
        return watcher

    def events_behind(self, run: RunRecord, after_sequence: int, answers: Answers = OK) -> list[RunEvent]:
        """The events of a run that has ended."""
        request = WatchRunRequest(run_id=run.id, after_sequence=after_sequence)
        responses = self.call(self._watch_to_the_end, request, answers)
        return [event for response in responses or () for event in response.events]

    def check_resumed(self, run: RunRecord, after_sequence: int) -> None:
        """What a watch of a run that has ended shows is a suffix of its log (contract 12)."""
        whole = self.events_behind(run, 0)
        answers = OK if after_sequence <= whole[-1].sequence else (_OUT_OF_RANGE,)
        resumed = self.events_behind(run, after_sequence, answers)
        assert resumed == _suffix(whole, after_sequence), f"resumed after {after_sequence}"

    def settle(self, run: RunRecord) -> None:
        """Waits until a run has come to a stop, and checks what it did. One that is held back stays at work, and those
        behind it stay in line."""
        while run.in_line and not run.gone:
            active = self.model.active_run(run.thread)
            assert active is not None, "a run in line on an idle thread"
            if active.state is not None:
                return
            self.settle(active)
        if run.gone or run.state is not None:
            return
        response = self.call(self.stubs.runs.WaitRun, WaitRunRequest(run_id=run.id))
        state = RunState.Name(response.run.state)
        assert response.run.state in run.next_stops, f"{run.scenario_name} came to {state}:\n{response.run}"
        run.state, run.run = response.run.state, response.run
        assert dict(run.run.metadata) == run.metadata, run.run
        assert run.run.rolled_back in run.rollbacks, run.run
        if run.run.rolled_back:
            assert run.state == CANCELLED, run.run
            assert not response.messages, response.messages
            run.thread.remove_written(run.id)
            run.messages = []
        known = {message.id for message in run.messages}
        new = [message for message in response.messages if message.id not in known]
        run.messages += new
        run.thread.add(new)
        self._check_steps(run)
        if run.state == REQUIRES_ACTION:
            _check_calls(run)
        elif run.state in FINAL:
            self._check_end(run)
            self._advance(run.thread)

    def settle_thread(self, thread: ThreadRecord) -> None:
        """Waits until nothing on a thread goes on by itself."""
        while (active := self.model.active_run(thread)) is not None and active.state is None:
            self.settle(active)

    def _advance(self, thread: ThreadRecord) -> None:
        """A run has ended: the next in line starts, and its messages have joined the thread, once and in order."""
        run = self.model.advance(thread)
        if run is None:
            return
        found = self.messages(thread.thread.id)
        joined = [message for message in found if any(message.content == kept.content for kept in run.kept)]
        assert [message.content for message in joined] == [kept.content for kept in run.kept], f"{found}\n{run.kept}"
        written = [message.sequence for message in thread.messages if message.run_id]
        assert not joined or joined[-1].sequence > max(written, default=0), f"joined too early: {joined}"
        thread.add(joined)
        run.kept = []
        if run.state is not None:
            self._wait_for_start(run)

    def _wait_for_start(self, run: RunRecord) -> None:
        watching = self.stubs.runs.WatchRun(WatchRunRequest(run_id=run.id, after_sequence=1), timeout=PATIENCE)
        started = next(iter(watching)).events[0].run_state_changed.run
        watching.cancel()
        assert started.state == IN_PROGRESS, started

    def check_gone(self, thread: ThreadRecord) -> None:
        """A thread was deleted: nothing of it is left, its streams have ended, its upstream calls are closed
        (contract 24)."""
        self.call(self.stubs.threads.GetThread, GetThreadRequest(thread_id=thread.thread.id), (NOT_FOUND,))
        self.call(self.stubs.threads.ListMessages, ListMessagesRequest(thread_id=thread.thread.id), (NOT_FOUND,))
        for run in self.model.runs:
            if run.thread is thread:
                self._check_run_gone(run)

    def _check_run_gone(self, run: RunRecord) -> None:
        self.call(self.stubs.runs.GetRun, GetRunRequest(run_id=run.id), (NOT_FOUND,))
        self.events_behind(run, 0, (NOT_FOUND,))
        for watcher in run.watchers:
            watcher.wait()
            # The run may have ended just before.
            validate_stream(watcher.events, watcher.after_sequence, complete=watcher.error is None)
            if watcher.error is not None:
                # A watch that was not yet under way found nothing.
                answers = (_DELETED,) if watcher.events else (_DELETED, NOT_FOUND, _OUT_OF_RANGE)
                assert _is_one_of(watcher.error, answers), refusal(watcher.error)
        self.upstream.wait_for_end(run.number)

    def _watch_to_the_end(self, request: WatchRunRequest, *, timeout: float) -> list[WatchRunResponse]:
        return list(self.stubs.runs.WatchRun(request, timeout=timeout))

    def _check_steps(self, run: RunRecord) -> None:
        request = ListRunStepsRequest(run_id=run.id)
        steps: list[RunStep] = self.page_through(self.stubs.runs.ListRunSteps, request, "steps", 2)
        assert [step.position for step in steps] == list(range(1, len(steps) + 1)), steps
        going_on = [step for step in steps if step.state == RunStepState.RUN_STEP_STATE_IN_PROGRESS]
        assert bool(going_on) == (run.state == REQUIRES_ACTION), steps
        written = [step.message_creation.message_id for step in steps if step.HasField("message_creation")]
        if run.run.rolled_back:
            return
        assert written == [message.id for message in run.messages], f"{steps}\n{run.messages}"

    def _check_end(self, run: RunRecord) -> None:
        events = self.events_behind(run, 0)
        validate_stream(events)
        if not run.run.rolled_back:
            validate_final(events, run.run, run.messages)
        for watcher in run.watchers:
            watcher.wait()
            assert watcher.events == _suffix(events, watcher.after_sequence), "the live stream was not the log"
            if watcher.after_sequence > events[-1].sequence:
                assert _is_one_of(watcher.error, (_OUT_OF_RANGE,)), watcher.error
            else:
                assert watcher.error is None, refusal(watcher.error)
        run.watchers.clear()
        last = events[-1].sequence
        middle = events[len(events) // 2].sequence
        for after in (middle, last - 1, last):
            assert self.events_behind(run, after) == _suffix(events, after), f"resumed after {after}"
        self.events_behind(run, last + 1, (_OUT_OF_RANGE,))
        self.upstream.wait_for_end(run.number)
        _check_outcome(run, events)


def _check_calls(run: RunRecord) -> None:
    wanted = 2 if run.scenario_name == "calls" else 1
    assert len(run.open_calls) == len(set(run.open_calls)) == wanted, run.run
    assert not set(run.open_calls) & set(run.answered), "a call of an earlier turn is open again"


def _check_outcome(run: RunRecord, events: Sequence[RunEvent]) -> None:
    """The run did what its scenario says, or was cancelled on the way."""
    scenario, stored = run.scenario, run.run
    texts = [_text(message) for message in run.messages]
    assert text_of(events) == "".join(texts) or stored.rolled_back
    assert stored.usage.total_tokens == stored.usage.prompt_tokens + stored.usage.completion_tokens, stored.usage
    assert stored.HasField("end_time"), stored
    assert not stored.HasField("required_action"), stored
    if run.state == CANCELLED:
        whole = None if scenario.quotes or scenario.error else "".join(scenario.texts)
        assert whole is None or whole.startswith("".join(texts)), f"{texts} is no beginning of {whole!r}"
        return
    assert stored.error.code == scenario.error, stored
    seen = {event.WhichOneof("event") for event in events}
    # On a machine that stands still, a Snapshot may stand for some of them.
    assert "snapshot" in seen or set(scenario.events) <= seen, (
        f"{run.scenario_name} without {set(scenario.events) - seen}"
    )
    partial = MessageState.MESSAGE_STATE_INCOMPLETE if run.scenario_name == "long" else None
    assert all(m.state == (partial or MessageState.MESSAGE_STATE_COMPLETED) for m in run.messages), run.messages
    assert bool(stored.incomplete_reason) == (run.state == INCOMPLETE), stored
    if scenario.quotes:
        assert texts[:-1] == list(scenario.texts), texts
        assert texts[-1].startswith("It is "), texts
        latest = run.answered.values() if run.scenario_name != "rounds" else list(run.answered.values())[-1:]
        missing = [output.output for output in latest if output.output not in texts[-1]]
        assert not missing, f"{texts[-1]!r} does not quote {missing}"
    else:
        assert texts == list(scenario.texts), texts


def _suffix(events: Sequence[RunEvent], after_sequence: int) -> list[RunEvent]:
    return [event for event in events if event.sequence > after_sequence]


def _is_one_of(error: Any, answers: Answers) -> bool:
    told = refusal(error)
    return any(
        answer is not None
        and (told.code, told.reason) == (answer.code, answer.reason)
        and dict(answer.metadata).items() <= told.metadata.items()
        for answer in answers
    )


def _text(message: Message) -> str:
    return "".join(part.text.text for part in message.content)
