"""Streams whose callers stop being who they were, and waits of theirs."""

import queue
import threading
import time
from collections.abc import Callable, Iterator

import grpc
import msgspec
import pytest
from google.protobuf.duration_pb2 import Duration

from credentials import Signer, bearer
from famulus import FamulusError, FamulusSyncClient
from famulus.v1.assistant_pb2 import Assistant
from famulus.v1.assistant_service_pb2 import EnsureAssistantRequest
from famulus.v1.message_pb2 import Message
from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import RunState
from famulus.v1.run_service_pb2 import (
    CancelRunRequest,
    CreateRunRequest,
    GetRunRequest,
    StreamRunRequest,
    WaitRunRequest,
    WatchRunRequest,
)
from famulus.v1.thread_pb2 import Thread
from famulus_server.identity.settings import AuthSettings, IssuerSettings, KeySettings, hash_of_key
from guarded import Guarded
from serving import Refusal, Stubs, refusal, said

KEY, OTHER = "fam_one", "fam_two"
KEYS = tuple(
    KeySettings(name=name, tenant="acme", roles=("operator",), sha256=hash_of_key(key))
    for name, key in (("one", KEY), ("two", OTHER))
)


@pytest.fixture(scope="module")
def guarded(start: Callable[..., Guarded], issuer: IssuerSettings) -> Guarded:
    return start(AuthSettings(issuers=(issuer,), keys=KEYS))


@pytest.fixture(scope="module")
def stubs(guarded: Guarded) -> Iterator[Stubs]:
    with guarded.calling() as stubs:
        yield stubs


class Following:
    """A stream of a run that hangs after a few words, and how it ended."""

    def __init__(self, stubs: Stubs, token: Callable[[], str], *, cancel_on_disconnect: bool = False) -> None:
        """Each call asks for a token."""
        asking = EnsureAssistantRequest(assistant=Assistant(model="scripted"))
        assistant = stubs.assistants.EnsureAssistant(asking, metadata=bearer(token())).assistant
        messages: list[Message] = [said("hang")]
        create = CreateRunRequest(new_thread=Thread(), assistant_id=assistant.id, additional_messages=messages)
        request = StreamRunRequest(create=create, cancel_on_disconnect=cancel_on_disconnect)
        self._stream = stubs.runs.StreamRun(request, metadata=bearer(token()))
        self.events: list[RunEvent] = []
        self.ended: queue.Queue[Refusal | None] = queue.Queue()
        self._speaking = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        assert self._speaking.wait(20)

    @property
    def run_id(self) -> str:
        return self.events[0].run_state_changed.run.id

    def _read(self) -> None:
        try:
            for response in self._stream:
                self.events.extend(response.events)
                if any(event.HasField("text_delta") for event in self.events):
                    self._speaking.set()
            self.ended.put(None)
        except grpc.RpcError as error:
            self._speaking.set()
            self.ended.put(refusal(error))


def assert_expired(told: Refusal | None, following: Following) -> None:
    assert told is not None
    assert (told.code, told.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_EXPIRED")
    assert told.metadata == {"last_sequence": str(following.events[-1].sequence)}


def settings(issuer: IssuerSettings, *keys: KeySettings) -> AuthSettings:
    return AuthSettings(issuers=(issuer,), keys=keys)


def test_stream_ends_when_its_token_does_and_goes_on_with_a_fresh_one(
    start: Callable[..., Guarded], issuer: IssuerSettings, signer: Signer
) -> None:
    exact = msgspec.structs.replace(issuer, leeway=0.0)
    with start(AuthSettings(issuers=(exact,))).calling() as stubs:
        following = Following(stubs, lambda: signer.token(exp=time.time() + 3), cancel_on_disconnect=True)
        assert_expired(following.ended.get(timeout=20), following)
        fresh = bearer(signer.token())
        run = stubs.runs.GetRun(GetRunRequest(run_id=following.run_id), metadata=fresh).run
        # The server let go of the stream: the caller did not go away.
        assert run.state == RunState.RUN_STATE_IN_PROGRESS
        again = WatchRunRequest(run_id=run.id, after_sequence=following.events[-1].sequence)
        rest = stubs.runs.WatchRun(again, metadata=fresh)
        stubs.runs.CancelRun(CancelRunRequest(run_id=run.id), metadata=fresh)
        events = [event for response in rest for event in response.events]
        assert events[0].sequence == following.events[-1].sequence + 1
        assert events[-1].run_state_changed.run.state == RunState.RUN_STATE_CANCELLED


def test_wait_ends_when_its_token_does(start: Callable[..., Guarded], issuer: IssuerSettings, signer: Signer) -> None:
    exact = msgspec.structs.replace(issuer, leeway=0.0)
    with start(AuthSettings(issuers=(exact,))).calling() as stubs:
        fresh = bearer(signer.token())
        run_id = Following(stubs, signer.token).run_id
        with pytest.raises(grpc.RpcError) as caught:
            stubs.runs.WaitRun(WaitRunRequest(run_id=run_id), metadata=bearer(signer.token(exp=time.time() + 1)))
        assert refusal(caught.value).reason == "CREDENTIALS_EXPIRED"
        stubs.runs.CancelRun(CancelRunRequest(run_id=run_id), metadata=fresh)


def test_key_that_was_removed_ends_its_streams_and_no_others(
    guarded: Guarded, stubs: Stubs, issuer: IssuerSettings, signer: Signer
) -> None:
    guarded.admit(settings(issuer, *KEYS))
    gone, kept, token = (Following(stubs, shown) for shown in (lambda: KEY, lambda: OTHER, signer.token))
    guarded.admit(settings(issuer, KEYS[1]))
    assert_expired(gone.ended.get(timeout=20), gone)
    with pytest.raises(grpc.RpcError) as caught:
        stubs.runs.GetRun(GetRunRequest(run_id=gone.run_id), metadata=bearer(KEY))
    assert refusal(caught.value).reason == "UNAUTHENTICATED"
    for following in (gone, kept, token):
        stubs.runs.CancelRun(CancelRunRequest(run_id=following.run_id), metadata=bearer(OTHER))
    for following in (kept, token):
        assert following.ended.get(timeout=20) is None
        assert following.events[-1].run_state_changed.run.state == RunState.RUN_STATE_CANCELLED


def test_key_that_became_another_tenants_ends_its_streams(
    guarded: Guarded, stubs: Stubs, issuer: IssuerSettings
) -> None:
    guarded.admit(settings(issuer, *KEYS))
    following = Following(stubs, lambda: KEY)
    moved = KeySettings(name="one", tenant="other", roles=("operator",), sha256=hash_of_key(KEY))
    guarded.admit(settings(issuer, moved, KEYS[1]))
    assert_expired(following.ended.get(timeout=20), following)
    stubs.runs.CancelRun(CancelRunRequest(run_id=following.run_id), metadata=bearer(OTHER))


def test_issuer_that_was_removed_ends_the_streams_of_its_tokens(
    guarded: Guarded, stubs: Stubs, issuer: IssuerSettings, signer: Signer
) -> None:
    guarded.admit(settings(issuer, *KEYS))
    following = Following(stubs, signer.token)
    guarded.admit(AuthSettings(keys=KEYS))
    assert_expired(following.ended.get(timeout=20), following)
    stubs.runs.CancelRun(CancelRunRequest(run_id=following.run_id), metadata=bearer(OTHER))


def test_client_goes_on_with_a_fresh_token_and_misses_nothing(
    start: Callable[..., Guarded], issuer: IssuerSettings, signer: Signer
) -> None:
    guarded = start(AuthSettings(issuers=(msgspec.structs.replace(issuer, leeway=0.0),)))
    shown: list[str] = []

    def token() -> str:
        # The second call is the stream.
        shown.append(signer.token(exp=time.time() + (2 if len(shown) == 1 else 600)))
        return shown[-1]

    with FamulusSyncClient(guarded.address, credentials=grpc.local_channel_credentials(), token=token) as client:
        asking = EnsureAssistantRequest(assistant=Assistant(model="scripted"))
        assistant = client.assistants.EnsureAssistant(asking).assistant
        create = CreateRunRequest(
            new_thread=Thread(), assistant_id=assistant.id, additional_messages=[said("hang")], ttl=Duration(seconds=4)
        )
        with client.stream_run(create) as stream:
            events = list(stream)
    assert shown[2:]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert events[-1].run_state_changed.run.state == RunState.RUN_STATE_EXPIRED


def test_client_without_a_fresh_token_is_told_that_it_is_not_known(
    start: Callable[..., Guarded], issuer: IssuerSettings, signer: Signer
) -> None:
    guarded = start(AuthSettings(issuers=(msgspec.structs.replace(issuer, leeway=0.0),)))
    made: list[str] = []

    def token() -> str:
        # From the second call on, the stream, it is the same.
        if len(made) < 2:
            made.append(signer.token(exp=time.time() + 2))
        return made[-1]

    with FamulusSyncClient(guarded.address, credentials=grpc.local_channel_credentials(), token=token) as client:
        asking = EnsureAssistantRequest(assistant=Assistant(model="scripted"))
        assistant = client.assistants.EnsureAssistant(asking).assistant
        create = CreateRunRequest(new_thread=Thread(), assistant_id=assistant.id, additional_messages=[said("hang")])
        with client.stream_run(create) as stream, pytest.raises(FamulusError) as caught:
            list(stream)
    assert caught.value.reason_name == "UNAUTHENTICATED"
