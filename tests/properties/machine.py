"""What all rules of the machine share: counting, picking, and request ids."""

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from famulus.v1 import assistant_service_pb2 as assistants_api
from famulus.v1 import thread_service_pb2 as threads_api
from famulus.v1.assistant_pb2 import Assistant
from famulus.v1.message_pb2 import Message
from famulus.v1.thread_pb2 import Thread
from famulus_server.config import SCRIPTED_MODEL
from properties.driver import ContractDriver
from properties.model import NOT_FOUND, OK, REUSED, STALE, Answers, AssistantRecord, ThreadRecord
from properties.stage import UpstreamThread
from serving import Stubs, said

T = TypeVar("T")

# Draws never depend on what is there, so that an example is the same however fast the server is. A number stands for
# a place in a list, modulo its length.
NUMBER = st.integers(0, 255)
ETAG = st.sampled_from(["", "", "current", "stale"])
# Most calls have no request id; the others share a few.
KEY = st.integers(0, 9)
NO_KEY = 4
# Not 0, which Hypothesis likes.
RARE = 5


@dataclass
class Stage:
    """What all examples share, and what they went through. `complaints` is what the server logged as errors."""

    stubs: Stubs
    upstream: UpstreamThread
    steps: Counter[str] = field(default_factory=Counter)
    scenarios: Counter[str] = field(default_factory=Counter)
    lined_up: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    complaints: list[Any] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))


def step(**strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Any]:
    """A rule of the machine, counted."""

    def decorate(function: Callable[..., None]) -> Any:
        @functools.wraps(function)
        def counted(machine: "Machine", **drawn: Any) -> None:
            machine.stage.steps[function.__name__] += 1
            function(machine, **drawn)

        ruled: Any = rule
        return ruled(**strategies)(counted)

    return decorate


class Machine(RuleBasedStateMachine):
    """One sequence of calls, on resources of its own."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage
        self.driver = ContractDriver(stubs=stage.stubs, upstream=stage.upstream, refusals=stage.refusals)
        self.model = self.driver.model
        self.user = f"user {next(stage.numbers)}"
        self.add_assistant(key=NO_KEY, again=False)
        self.add_thread(count=1, key=NO_KEY, again=False, default=1)

    def fresh(self, what: str) -> str:
        """A text that nobody has used."""
        return f"{what} {next(self.stage.numbers)}."

    def pick(self, records: Sequence[T], which: int) -> T:
        """One that is there, and now and then one that is gone."""
        alive = [record for record in records if not getattr(record, "gone", False)]
        pool = alive if alive and which % 8 != RARE else records
        return pool[which % len(pool)]

    def pick_message(self, thread: ThreadRecord, which: int) -> tuple[Message, bool]:
        """A message of a thread and True; now and then one that is deleted, or never was, and False."""
        if thread.messages and which % 8 != RARE:
            return thread.messages[which % len(thread.messages)], True
        forgotten = [*thread.forgotten, Message(id="msg_unknown")]
        return forgotten[which % len(forgotten)], False

    def pick_etag(self, etag: str, current: str, stale: str = "none") -> str:
        """The etag to send."""
        return {"current": current, "stale": stale}.get(etag, "")

    def answers(self, *, gone: bool, etag: str = "") -> Answers:
        """How a call on one resource must be answered."""
        if gone:
            return (NOT_FOUND,)
        return (STALE,) if etag == "stale" else OK

    def create(
        self,
        method: Any,
        request: Any,
        key: int,
        again: bool,
        *,
        name: str,
        answers: Callable[[], Answers],
        id_of: Callable[[Any], str],
        alive: Callable[[Any, str], bool],
    ) -> Any:
        """The response if something new was made. `again` repeats the request that first had this request id
        (contract 5): it must be answered with what that made, if that is still `alive`."""
        if key >= NO_KEY:
            return self.driver.call(method, request, answers())
        request.request_id = f"{self.user} {key}"
        known = self.model.requests.get((name, request.request_id))
        if known is None:
            response = self.driver.call(method, request, answers())
            if response is not None:
                self.model.requests[name, request.request_id] = request, id_of(response)
            return response
        if not again:
            self.driver.call(method, request, (REUSED,))
            return None
        request, made = known
        response = self.driver.call(method, request, OK if alive(request, made) else (NOT_FOUND,))
        assert response is None or id_of(response) == made, f"repeated, it made another one: {response}"
        return None

    def add_assistant(self, key: int, again: bool) -> None:
        """Creates an assistant."""
        wanted = Assistant(model=SCRIPTED_MODEL, name=self.fresh("Name"), instructions=self.fresh("Instructions"))
        response = self.create(
            self.stage.stubs.assistants.CreateAssistant,
            assistants_api.CreateAssistantRequest(assistant=wanted),
            key,
            again,
            name="CreateAssistant",
            answers=lambda: OK,
            id_of=lambda response: str(response.assistant.id),
            alive=lambda _, assistant_id: self.model.assistant(assistant_id) is not None,
        )
        if response is not None:
            assert response.assistant.version == 1, response
            self.model.assistants.append(AssistantRecord([response.assistant]))

    def add_thread(self, count: int, key: int, again: bool, default: int) -> None:
        """Creates a thread with messages."""
        wanted = Thread(user_id=self.user, title=self.fresh("Title"))
        if default % 2:
            wanted.default_assistant_id = self.pick(self.model.assistants, default).newest.id
        messages = [said(self.fresh("First")) for _ in range(count)]
        response = self.create(
            self.stage.stubs.threads.CreateThread,
            threads_api.CreateThreadRequest(thread=wanted, messages=messages),
            key,
            again,
            name="CreateThread",
            answers=lambda: OK,
            id_of=lambda response: str(response.thread.id),
            alive=lambda _, thread_id: self.model.thread(thread_id) is not None,
        )
        if response is not None:
            self.note_thread(response.thread, messages)

    def note_thread(self, thread: Thread, messages: Sequence[Message]) -> ThreadRecord:
        """A new thread, which must have these messages."""
        record = ThreadRecord(thread)
        self.note_messages(record, messages)
        assert record.last_sequence == thread.last_message_sequence, thread
        self.model.threads.append(record)
        return record

    def note_messages(self, record: ThreadRecord, messages: Sequence[Message]) -> None:
        """Messages that a call has just appended."""
        after = record.last_sequence
        found = self.driver.messages(record.thread.id, after=after)
        appended = [message for message in found if not message.run_id]
        assert [m.content for m in appended] == [m.content for m in messages], f"{found}\nappended: {messages}"
        record.add(appended)
