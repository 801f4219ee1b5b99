"""Rules about assistants, threads and messages."""

from hypothesis import strategies as st

from famulus.v1 import assistant_service_pb2 as assistants_api
from famulus.v1 import thread_service_pb2 as threads_api
from famulus.v1.assistant_pb2 import Assistant
from famulus.v1.message_pb2 import Message
from famulus.v1.thread_pb2 import Thread
from famulus_server.config import SCRIPTED_MODEL
from properties.machine import ETAG, KEY, NUMBER, Machine, step
from properties.model import NOT_FOUND, OK, AssistantRecord, ThreadRecord
from serving import said

# What is deleted is lost for the rest of the sequence.
MOSTLY_STALE = st.sampled_from(["", "current", "stale", "stale", "stale"])


class AssistantRules(Machine):
    """Assistants and their versions."""

    @step(key=KEY, again=st.booleans())
    def create_assistant(self, key: int, again: bool) -> None:
        self.add_assistant(key, again)

    @step(which=st.integers(0, 2))
    def ensure_assistant(self, which: int) -> None:
        name = f"{self.user} {which}"
        known = self.model.ensured(name)
        request = assistants_api.EnsureAssistantRequest(assistant=Assistant(model=SCRIPTED_MODEL, name=name))
        response = self.driver.call(self.stage.stubs.assistants.EnsureAssistant, request)
        assert response.created == (known is None), response
        if known is None:
            self.model.assistants.append(AssistantRecord([response.assistant], ensured=name))
        else:
            assert response.assistant == known.newest, response

    @step(which=NUMBER, etag=ETAG, changes=st.booleans())
    def update_assistant(self, which: int, etag: str, changes: bool) -> None:
        record = self.pick(self.model.assistants, which)
        old = record.newest
        new = self.fresh("Instructions") if changes else old.instructions
        stale = record.versions[-2].etag if len(record.versions) > 1 else "none"
        wanted = Assistant(id=old.id, instructions=new, etag=self.pick_etag(etag, old.etag, stale))
        request = assistants_api.UpdateAssistantRequest(assistant=wanted)
        request.update_mask.paths.append("instructions")
        answers = self.answers(gone=record.gone, etag=etag)
        response = self.driver.call(self.stage.stubs.assistants.UpdateAssistant, request, answers)
        if response is None:
            return
        if not changes:
            assert response.assistant == old, "an update that changes nothing made a version"
            return
        assert response.assistant.version == old.version + 1, response
        assert response.assistant.etag != old.etag, response
        assert response.assistant.instructions == new, response
        record.versions.append(response.assistant)
        record.ensured = ""

    @step(which=NUMBER, etag=MOSTLY_STALE)
    def delete_assistant(self, which: int, etag: str) -> None:
        record = self.pick(self.model.assistants, which)
        given = self.pick_etag(etag, record.newest.etag, "none")
        request = assistants_api.DeleteAssistantRequest(assistant_id=record.newest.id, etag=given)
        answers = self.answers(gone=record.gone, etag=etag)
        if self.driver.call(self.stage.stubs.assistants.DeleteAssistant, request, answers) is not None:
            record.gone = True

    @step(which=NUMBER, version=st.integers(0, 3), size=st.integers(1, 3))
    def read_assistants(self, which: int, version: int, size: int) -> None:
        stub, record = self.stage.stubs.assistants, self.pick(self.model.assistants, which)
        found = not record.gone and version <= len(record.versions)
        request = assistants_api.GetAssistantRequest(assistant_id=record.newest.id, version=version)
        response = self.driver.call(stub.GetAssistant, request, OK if found else (NOT_FOUND,))
        assert response is None or response.assistant == record.versions[version - 1]
        listed = self.driver.page_through(
            stub.ListAssistants, assistants_api.ListAssistantsRequest(), "assistants", size
        )
        assert listed == [a.newest for a in reversed(self.model.assistants) if not a.gone]
        if not record.gone:
            versions = assistants_api.ListAssistantVersionsRequest(assistant_id=record.newest.id)
            listed = self.driver.page_through(stub.ListAssistantVersions, versions, "assistants", size)
            assert listed == record.versions[::-1]


class ThreadRules(Machine):
    """Threads and messages; what deleting a thread does to runs is here, too."""

    @step(count=st.integers(0, 3), key=KEY, again=st.booleans(), default=NUMBER)
    def create_thread(self, count: int, key: int, again: bool, default: int) -> None:
        self.add_thread(count, key, again, default)

    @step(which=NUMBER, etag=ETAG)
    def update_thread(self, which: int, etag: str) -> None:
        record = self.pick(self.model.threads, which)
        old = record.thread
        wanted = Thread(id=old.id, title=self.fresh("Title"))
        wanted.etag = self.pick_etag(etag, old.etag, record.old_etag or "none")
        answers = self.answers(gone=record.gone, etag=etag)
        request = threads_api.UpdateThreadRequest(thread=wanted)
        response = self.driver.call(self.stage.stubs.threads.UpdateThread, request, answers)
        if response is not None:
            assert response.thread.title == wanted.title, response
            assert response.thread.etag != old.etag, response
            record.thread, record.old_etag = response.thread, old.etag

    @step(which=NUMBER, key=KEY, again=st.booleans())
    def append_message(self, which: int, key: int, again: bool) -> None:
        record = self.pick(self.model.threads, which)
        request = threads_api.CreateMessageRequest(thread_id=record.thread.id, message=said(self.fresh("Message")))

        def alive(request: threads_api.CreateMessageRequest, message_id: str) -> bool:
            thread = self.model.thread(request.thread_id)
            return thread is not None and any(message.id == message_id for message in thread.messages)

        response = self.create(
            self.stage.stubs.threads.CreateMessage,
            request,
            key,
            again,
            name="CreateMessage",
            answers=lambda: self.answers(gone=record.gone),
            id_of=lambda response: str(response.message.id),
            alive=alive,
        )
        if response is not None:
            assert response.message.sequence > record.last_sequence, response
            assert response.message.content == request.message.content, response
            record.add([response.message])

    @step(which=NUMBER, message=NUMBER, etag=ETAG)
    def update_message(self, which: int, message: int, etag: str) -> None:
        record = self.pick(self.model.threads, which)
        old, known = self.pick_message(record, message)
        wanted = Message(id=old.id, metadata={"mark": self.fresh("mark")})
        wanted.etag = self.pick_etag(etag, old.etag, "none")
        request = threads_api.UpdateMessageRequest(thread_id=record.thread.id, message=wanted)
        answers = self.answers(gone=record.gone or not known, etag=etag)
        response = self.driver.call(self.stage.stubs.threads.UpdateMessage, request, answers)
        if response is not None:
            assert response.message.etag != old.etag, response
            expected = Message()
            expected.CopyFrom(old)
            expected.etag = response.message.etag
            expected.metadata.clear()
            expected.metadata.update(wanted.metadata)
            assert response.message == expected, response
            record.messages[record.messages.index(old)] = expected

    @step(which=NUMBER, message=NUMBER)
    def delete_message(self, which: int, message: int) -> None:
        record = self.pick(self.model.threads, which)
        old, known = self.pick_message(record, message)
        request = threads_api.DeleteMessageRequest(thread_id=record.thread.id, message_id=old.id)
        answers = self.answers(gone=record.gone or not known)
        if self.driver.call(self.stage.stubs.threads.DeleteMessage, request, answers) is not None:
            record.remove(old)
            get = threads_api.GetMessageRequest(thread_id=record.thread.id, message_id=old.id)
            self.driver.call(self.stage.stubs.threads.GetMessage, get, (NOT_FOUND,))

    @step(which=NUMBER, message=NUMBER, key=KEY, again=st.booleans())
    def fork_thread(self, which: int, message: int, key: int, again: bool) -> None:
        origin = self.pick(self.model.threads, which)
        last, known = self.pick_message(origin, message)
        request = threads_api.ForkThreadRequest(thread_id=origin.thread.id, thread=Thread(title=self.fresh("Fork")))
        if message % 3:
            request.message_id = last.id
        response = self.create(
            self.stage.stubs.threads.ForkThread,
            request,
            key,
            again,
            name="ForkThread",
            answers=lambda: self.answers(gone=origin.gone or bool(request.message_id and not known)),
            id_of=lambda response: str(response.thread.id),
            alive=lambda _, thread_id: self.model.thread(thread_id) is not None,
        )
        if response is None:
            return
        fork = response.thread
        upto = last.sequence if request.message_id else fork.forked_from.message_sequence
        assert fork.forked_from.thread_id == origin.thread.id, fork
        assert fork.forked_from.message_sequence == upto == fork.last_message_sequence, fork
        assert upto >= origin.last_sequence or request.message_id, fork
        assert (fork.user_id, fork.title) == (self.user, request.thread.title), fork
        assert fork.default_assistant_id == origin.thread.default_assistant_id, fork
        record = ThreadRecord(fork, last_sequence=upto)
        found = self.driver.messages(fork.id)
        # What a run was writing just then may be in the fork or not.
        shared = [shared_with(message, fork.id) for message in origin.messages if message.sequence <= upto]
        ids = {message.id for message in shared}
        certain = [message for message in found if message.id in ids or not self.model.uncertain(origin, message)]
        assert certain == shared, f"{found}\nshared: {shared}"
        record.add(found)
        self.model.threads.append(record)

    @step(which=NUMBER, etag=MOSTLY_STALE)
    def delete_thread(self, which: int, etag: str) -> None:
        record = self.pick(self.model.threads, which)
        given = self.pick_etag(etag, record.thread.etag, record.old_etag or "none")
        request = threads_api.DeleteThreadRequest(thread_id=record.thread.id, etag=given)
        answers = self.answers(gone=record.gone, etag=etag)
        if self.driver.call(self.stage.stubs.threads.DeleteThread, request, answers) is not None:
            record.gone = True
            self.driver.check_gone(record)

    @step(which=NUMBER, size=st.integers(1, 4), after=NUMBER, descending=st.booleans())
    def read_thread(self, which: int, size: int, after: int, descending: bool) -> None:
        record = self.pick(self.model.threads, which)
        if record.gone:
            self.driver.check_gone(record)
            return
        self.driver.check_thread(record)
        after = after % (record.last_sequence + 1) if after % 2 else 0
        self.driver.check_messages(record, size=size, after=after, descending=descending)
        for message in record.messages[-2:]:
            request = threads_api.GetMessageRequest(thread_id=record.thread.id, message_id=message.id)
            response = self.driver.call(self.stage.stubs.threads.GetMessage, request)
            assert response.message == message, f"{response}\nexpected: {message}"

    @step(size=st.integers(1, 4))
    def list_threads(self, size: int) -> None:
        # What a run writes meanwhile is activity, and moves its thread from page to page.
        for run in self.model.runs:
            self.driver.settle(run)
        request = threads_api.ListThreadsRequest(user_id=self.user)
        found = self.driver.page_through(self.stage.stubs.threads.ListThreads, request, "threads", size)
        expected = [record.thread.id for record in self.model.threads if not record.gone]
        assert sorted(thread.id for thread in found) == sorted(expected), found
        places = [(thread.last_activity_time.ToMicroseconds(), thread.id) for thread in found]
        assert places == sorted(places, reverse=True), f"not by latest activity: {found}"


def shared_with(message: Message, thread_id: str) -> Message:
    """A message as a fork shows it."""
    shared = Message()
    shared.CopyFrom(message)
    shared.thread_id = thread_id
    return shared
