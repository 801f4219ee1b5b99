"""The Responses API: its events as model events."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import msgspec

from famulus.v1.message_pb2 import Annotation, FileCitation, FilePath, UrlCitation
from famulus.v1.run_pb2 import Usage
from famulus_server.errors import ModelProtocolError
from famulus_server.models.failures import from_error_object
from famulus_server.models.output import Json, OutputItem
from famulus_server.models.payload import decode
from famulus_server.models.responses_request import build_responses_request
from famulus_server.models.settings import ModelSettings
from famulus_server.models.streamed import HEADERS
from famulus_server.ports import AnnotationChunk, ModelEvent, ModelRequest, ReasoningChunk, TurnEnded, TurnOutcome

if TYPE_CHECKING:
    from openai import AsyncAPIResponse, AsyncOpenAI


class _Event(msgspec.Struct, gc=False):
    """The fields of all kinds of events that matter. What an event does not have, or a server leaves out, is None."""

    type: str = ""
    delta: str = ""
    output_index: int | None = None
    content_index: int | None = None
    item_id: str | None = None
    item: msgspec.Raw | None = None
    annotation: msgspec.Raw | None = None
    response: msgspec.Raw | None = None
    error: msgspec.Raw | None = None


class _Kind(msgspec.Struct):
    type: str = ""


class _Details(msgspec.Struct):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Incomplete(msgspec.Struct):
    reason: str | None = None


class _Response(msgspec.Struct):
    """What a terminal event says."""

    output: list[Json] | None = None
    usage: _Usage | None = None
    incomplete_details: _Incomplete | None = None
    error: Json | None = None


_EVENT = msgspec.json.Decoder(_Event)
_KIND = msgspec.json.Decoder(_Kind)
_RESPONSE = msgspec.json.Decoder(_Response)
_OBJECT = msgspec.json.Decoder(Json)

# Events without news: what they tell also comes in others, or is for screens only.
_SIGNS_OF_LIFE = (
    "response.created",
    "response.in_progress",
    "response.queued",
    "response.content_part.added",
    "response.output_text.done",
    "response.refusal.done",
    "response.function_call_arguments.done",
    "response.reasoning_",
    "response.code_interpreter_call",
    "response.file_search_call.",
)
_PINGS = {"ping", "keepalive"}


class ResponsesFormat:
    """Speaks the Responses API."""

    def __init__(self, *, settings: ModelSettings) -> None:
        self._settings = settings

    def start(
        self, client: "AsyncOpenAI", request: ModelRequest
    ) -> "AbstractAsyncContextManager[AsyncAPIResponse[Any]]":
        # All goes by `extra_body`: the SDK takes 1 ms per input item to look through what comes as parameters.
        return client.responses.with_streaming_response.create(
            model="", stream=True, extra_body=build_responses_request(request, self._settings), extra_headers=HEADERS
        )

    def reader(self, request: ModelRequest) -> "ResponsesReader":
        return ResponsesReader(max_output_tokens=request.max_output_tokens)


class ResponsesReader:
    """Reads one answer. Tolerates missing indexes, ids, usage, and items that open late or never."""

    def __init__(self, *, max_output_tokens: int | None) -> None:
        """`max_output_tokens` is what was asked for: servers exist that call an answer cut there completed."""
        self.ended = False
        self.progress = 0
        self.ignored = 0
        self._max_output_tokens = max_output_tokens
        self._items: list[OutputItem] = []
        self._by_index: dict[int, OutputItem] = {}
        self._by_id: dict[str, OutputItem] = {}
        self._opened: set[int] = set()  # positions of items whose opening event came
        self._parts_done: dict[int, int] = {}

    def read(self, payloads: Sequence[bytes]) -> list[ModelEvent]:
        events: list[ModelEvent] = []
        for payload in payloads:
            event = self._decode(payload)
            if event is None:
                continue
            self.progress += 1
            # The one hot path: nine of ten events are text.
            if event.type == "response.output_text.delta":
                if event.delta:
                    item = self._find(event, "message")
                    events.append(item.text(self._part(item, event), event.delta))
            else:
                self._read_other(event, events)
                if self.ended:
                    break
        return events

    def finish(self) -> list[ModelEvent]:
        raise ModelProtocolError("the stream ended without its terminal event")
