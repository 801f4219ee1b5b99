"""Chat Completions: its chunks as model events."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import msgspec

from famulus.v1.run_pb2 import Usage
from famulus_server.errors import ModelProtocolError
from famulus_server.models.chat_request import build_chat_request
from famulus_server.models.failures import from_error_object
from famulus_server.models.output import Json, OutputItem
from famulus_server.models.payload import decode
from famulus_server.models.settings import ModelSettings
from famulus_server.models.streamed import headers_of
from famulus_server.models.usage import believe
from famulus_server.models.words import UnknownKinds
from famulus_server.ports import ModelEvent, ModelRequest, ReasoningChunk, TurnEnded, TurnOutcome

if TYPE_CHECKING:
    from openai import AsyncAPIResponse

    from famulus_server.models.client import Client

_DONE = b"[DONE]"
_OUTCOMES = {
    "stop": TurnOutcome.COMPLETED,
    "tool_calls": TurnOutcome.COMPLETED,
    "function_call": TurnOutcome.COMPLETED,
    "length": TurnOutcome.MAX_TOKENS,
    "content_filter": TurnOutcome.CONTENT_FILTER,
}


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # the same by another name
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None

    def to_proto(self) -> Usage:
        read, written = self.prompt_tokens_details or _Details(), self.completion_tokens_details or _Details()
        return believe(
            prompt=self.prompt_tokens,
            completion=self.completion_tokens,
            total=self.total_tokens,
            cached=read.cached_tokens,
            reasoning=written.reasoning_tokens,
        )


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Json | str | None = None
    kind: Any = msgspec.field(default=None, name="object")


_CHUNK = msgspec.json.Decoder(_Chunk)


class ChatFormat:
    """Speaks Chat Completions."""

    def __init__(self, *, settings: ModelSettings) -> None:
        self._settings = settings
        self._unknown = UnknownKinds(model=settings.name)

    def start(self, client: "Client", request: ModelRequest) -> "AbstractAsyncContextManager[AsyncAPIResponse[Any]]":
        body = msgspec.json.encode(build_chat_request(request, self._settings))
        return client.turn("/chat/completions", body, headers_of(request))

    def reader(self, request: ModelRequest) -> "ChatReader":
        return ChatReader(
            max_output_tokens=request.max_output_tokens,
            done_marker=self._settings.done_marker,
            unknown=self._unknown,
        )

    async def count(self, *_: object) -> None:
        return None  # this API has no endpoint for it


class ChatReader:
    """Reads one answer. It is complete when a finish reason came and then `[DONE]`.

    Tolerates calls without index or id, and arguments that come before the call's name.
    """

    def __init__(self, *, max_output_tokens: int | None, done_marker: bool, unknown: UnknownKinds) -> None:
        """`max_output_tokens` is what was asked for: there are servers that call an answer cut there finished.
        Without `done_marker` a clean end of the stream is as good as `[DONE]`."""
        self.ended = False
        self.progress = 0
        self._max_output_tokens = max_output_tokens
        self._done_marker = done_marker
        self._unknown = unknown
        self._items: list[OutputItem] = []
        self._message: OutputItem | None = None
        self._parts: dict[str, int] = {}
        self._calls: dict[int, OutputItem] = {}
        self._outcome: TurnOutcome | None = None
        self._usage: _Usage | None = None

    def read(self, payloads: Sequence[bytes]) -> list[ModelEvent]:
        events: list[ModelEvent] = []
        for payload in payloads:
            if payload == _DONE:
                return events + self._end()
            chunk = self._decode(payload)
            if chunk.error:
                raise from_error_object(chunk.error if isinstance(chunk.error, dict) else {"message": chunk.error})
            if chunk.usage is not None:
                self._usage = chunk.usage
            if chunk.choices or chunk.usage:
                self.progress += 1
            else:
                self._unknown.note(chunk.kind)
            if chunk.choices:
                choice = chunk.choices[0]  # never more than one is asked for
                if choice.delta is not None:
                    self._read_delta(choice.delta, events)
                if choice.finish_reason is not None:
                    self._outcome = _OUTCOMES.get(choice.finish_reason)
        return events

    def finish(self) -> list[ModelEvent]:
        if self._done_marker:
            raise ModelProtocolError("the stream ended without [DONE]")
        return self._end()

    def _decode(self, payload: bytes) -> _Chunk:
        try:
            return decode(_CHUNK, payload)
        except msgspec.ValidationError as error:
            raise ModelProtocolError(f"malformed chunk: {error}") from error

    def _read_delta(self, delta: _Delta, events: list[ModelEvent]) -> None:
        # The hot path first: nine chunks of ten are text.
        if delta.content:
            events.append(self._own_message().text(self._part("text"), delta.content))
        if delta.refusal:
            events.append(self._own_message().refusal(self._part("refusal"), delta.refusal))
        reasoning = delta.reasoning_content or delta.reasoning
        if reasoning:
            events.append(ReasoningChunk(reasoning))
        for call in delta.tool_calls or ():
            events += self._read_call(call)

    def _own_message(self) -> OutputItem:
        if self._message is None:
            self._message = self._add("message")
        return self._message

    def _part(self, kind: str) -> int:
        return self._parts.setdefault(kind, len(self._parts))

    def _read_call(self, call: _Call) -> Sequence[ModelEvent]:
        function = call.function or _Function()
        item = self._find_call(call, function)
        events = item.identify(call.id or "", function.name or "")
        return [*events, *item.more_arguments(function.arguments)] if function.arguments else events

    def _find_call(self, call: _Call, function: _Function) -> OutputItem:
        """The call that a fragment belongs to. Without index, a name starts a new one; an index with another id than
        before does, too: gateways exist that number all calls 0."""
        if call.index is not None:
            item = self._calls.get(call.index)
            another = item is None or bool(call.id and item.call_id and call.id != item.call_id)
        else:
            item = self._items[-1] if self._items and self._items[-1] is not self._message else None
            another = item is None or bool(function.name and item.name)
        if item is None or another:
            item = self._add("function_call")
        if call.index is not None:
            self._calls[call.index] = item
        return item

    def _add(self, kind: str) -> OutputItem:
        item = OutputItem(len(self._items), kind)
        self._items.append(item)
        return item

    def _end(self) -> list[ModelEvent]:
        outcome = self._outcome
        if outcome is None:
            raise ModelProtocolError("the stream ended without a finish reason")
        limit, usage = self._max_output_tokens, self._usage
        if outcome is TurnOutcome.COMPLETED and usage and limit is not None and usage.completion_tokens >= limit:
            outcome = TurnOutcome.MAX_TOKENS
        events: list[ModelEvent] = []
        for call in self._items:
            if call.kind == "function_call" and not call.announced:
                events += call.announce()
        status = "completed" if outcome is TurnOutcome.COMPLETED else "incomplete"
        self.ended = True
        items = [item.to_json(status=status) for item in self._items]
        return [*events, TurnEnded(outcome, items, usage.to_proto() if usage else None)]
