"""The Responses API: its events as model events."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import msgspec

from famulus_server.errors import ModelProtocolError
from famulus_server.models.failures import from_error_object
from famulus_server.models.output import Json, OutputItem
from famulus_server.models.payload import decode
from famulus_server.models.responses_events import COUNT, EVENT, KIND, RESPONSE, Event, Response, read_annotation
from famulus_server.models.responses_request import build_count_request, build_responses_request
from famulus_server.models.settings import ModelSettings
from famulus_server.models.streamed import HEADERS, headers_of
from famulus_server.models.words import UnknownKinds, read_name
from famulus_server.ports import AnnotationChunk, ModelEvent, ModelRequest, ReasoningChunk, TurnEnded, TurnOutcome

if TYPE_CHECKING:
    from openai import AsyncAPIResponse

    from famulus_server.models.client import Client

_PINGS = {"ping", "keepalive"}
# Known and of no interest: what they tell also comes in other events, or is for screens only.
_UNREAD = (
    "response.created",
    "response.in_progress",
    "response.queued",
    "response.content_part.",
    "response.output_text.",
    "response.refusal.",
    "response.function_call_arguments.",
    "response.reasoning",
    "response.code_interpreter_call",
    "response.file_search_call",
)
_READ = {
    "error",
    "response.output_text.delta",
    "response.refusal.delta",
    "response.function_call_arguments.delta",
    "response.output_item.added",
    "response.output_item.done",
    "response.completed",
    "response.incomplete",
    "response.failed",
}


class ResponsesFormat:
    """Speaks the Responses API."""

    def __init__(self, *, settings: ModelSettings) -> None:
        self._settings = settings
        self._unknown = UnknownKinds(model=settings.name)

    def start(self, client: "Client", request: ModelRequest) -> "AbstractAsyncContextManager[AsyncAPIResponse[Any]]":
        body = msgspec.json.encode(build_responses_request(request, self._settings))
        return client.turn("/responses", body, headers_of(request))

    def reader(self, request: ModelRequest) -> "ResponsesReader":
        return ResponsesReader(max_output_tokens=request.max_output_tokens, unknown=self._unknown)

    async def count(self, client: "Client", request: ModelRequest) -> int | None:
        body = build_count_request(request, self._settings)
        answer = await client.responses.input_tokens.with_raw_response.count(extra_body=body, extra_headers=HEADERS)
        try:
            return decode(COUNT, answer.content).input_tokens
        except msgspec.ValidationError as error:
            raise ModelProtocolError(f"malformed count: {error}") from error


class ResponsesReader:
    """Reads one answer. Tolerates missing indexes, ids and usage, and items that open late or never."""

    def __init__(self, *, max_output_tokens: int | None, unknown: UnknownKinds) -> None:
        """`max_output_tokens` is what was asked for: there are servers that call an answer cut there completed."""
        self.ended = False
        self.progress = 0
        self._max_output_tokens = max_output_tokens
        self._unknown = unknown
        self._items: list[OutputItem] = []
        self._by_index: dict[int | None, OutputItem] = {}
        self._by_id: dict[str | None, OutputItem] = {}
        self._reasoned = False

    def read(self, payloads: Sequence[bytes]) -> list[ModelEvent]:
        events: list[ModelEvent] = []
        for payload in payloads:
            try:
                event = EVENT.decode(payload)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                event = self._decode_odd(payload)
            # The hot path: nine events of ten are text.
            if event.type == "response.output_text.delta":
                self.progress += 1
                if event.delta:
                    item = self._by_index.get(event.output_index) or self._find(event, "message")
                    part = item.next_part if event.content_index is None else event.content_index
                    events.append(item.text(part, event.delta))
            elif event.type not in _PINGS:
                self.progress += 1
                events += self._read_other(event)
                if self.ended:
                    break
        return events

    def finish(self) -> list[ModelEvent]:
        raise ModelProtocolError("the stream ended without its terminal event")

    def _decode_odd(self, payload: bytes) -> Event:
        """An event that is not as it should be, as far as it can be understood. Raises ModelProtocolError."""
        try:
            return decode(EVENT, payload)
        except msgspec.ValidationError as error:
            try:
                kind = decode(KIND, payload).type
            except msgspec.ValidationError:
                kind = ""
            if kind in _READ:
                raise ModelProtocolError(f"malformed event {kind}: {error}") from error
            return Event(type=kind)

    def _read_other(self, event: Event) -> Sequence[ModelEvent]:
        match event.type:
            case "response.function_call_arguments.delta":
                return self._find(event, "function_call").more_arguments(event.delta)
            case "response.reasoning_summary_text.delta" | "response.reasoning_text.delta" if event.delta:
                self._reasoned = True
                return [ReasoningChunk(event.delta)]
            case "response.reasoning_summary_part.added" if self._reasoned:
                return [ReasoningChunk("\n\n")]
            case "response.refusal.delta" if event.delta:
                item = self._find(event, "message")
                return [item.refusal(_part(item, event), event.delta)]
            case "response.content_part.done" if event.content_index is None:
                self._find(event, "message").next_part += 1
            case "response.output_text.annotation.added":
                return self._annotate(event)
            case "response.output_item.added":
                return self._open(event)
            case "response.output_item.done":
                return self._close(event)
            case "response.completed" | "response.incomplete" | "response.failed":
                return self._end(event)
            case kind:
                if kind == "error" or event.error:
                    raise from_error_object(event.error or {"code": event.code, "message": event.message})
                if not kind.startswith(_UNREAD):
                    self._unknown.note(kind)
        return ()

    def _annotate(self, event: Event) -> Sequence[ModelEvent]:
        note = event.annotation or {}
        annotation = read_annotation(note)
        if annotation is None:
            self._unknown.note(note.get("type"))
            return ()
        item = self._find(event, "message")
        return [AnnotationChunk(item.position, _part(item, event), annotation)]

    def _open(self, event: Event) -> Sequence[ModelEvent]:
        opening, kind, item_id = _read_item(event)
        item = self._known(event.output_index, item_id, kind)
        if item is None or item.opening is not None or item.whole is not None or item.kind != kind:
            item = self._add(kind)
        self._register(item, event.output_index, item_id)
        item.opening = opening
        return _identify(item, opening)

    def _close(self, event: Event) -> Sequence[ModelEvent]:
        whole, kind, item_id = _read_item(event)
        item = self._known(event.output_index, item_id, kind)
        if item is None or item.whole is not None or item.kind != kind:
            item = self._add(kind)
        self._register(item, event.output_index, item_id)
        return item.finish(whole)

    def _find(self, event: Event, kind: str) -> OutputItem:
        """The item that a fragment belongs to; a new one where none was announced."""
        item = self._known(event.output_index, event.item_id, kind)
        if item is None or item.kind != kind:
            item = self._add(kind)
            self._register(item, event.output_index, event.item_id)
        return item

    def _known(self, index: int | None, item_id: str | None, kind: str) -> OutputItem | None:
        # Indexes first: gateways exist that make up another id for each event.
        item = self._by_index.get(index) or self._by_id.get(item_id)
        if item is None and index is None:
            unfinished = (item for item in reversed(self._items) if item.kind == kind and item.whole is None)
            item = next((item for item in unfinished if not (item_id and item.id)), None)
        return item

    def _add(self, kind: str) -> OutputItem:
        item = OutputItem(len(self._items), kind)
        self._items.append(item)
        return item

    def _register(self, item: OutputItem, index: int | None, item_id: str | None) -> None:
        if index is not None:
            self._by_index[index] = item
        if item_id:
            self._by_id[item_id] = item
            item.id = item.id or item_id

    def _end(self, event: Event) -> list[ModelEvent]:
        try:
            response = decode(RESPONSE, event.response) or Response()
        except msgspec.ValidationError as error:
            raise ModelProtocolError(f"malformed event {event.type}: {error}") from error
        if event.type == "response.failed":
            raise from_error_object(response.error or {})
        events: list[ModelEvent] = []
        if not self._items:  # a server that streams nothing but the end
            for item in response.output or ():
                events += self._close(Event(item=item))
        for call in self._items:
            if call.kind == "function_call" and not call.announced:
                events += call.announce()
        outcome = self._outcome(event.type, response)
        status = "completed" if outcome is TurnOutcome.COMPLETED else "incomplete"
        self.ended = True
        usage = response.usage.to_proto() if response.usage else None
        items = [item.to_json(status=status) for item in self._items]
        ended = TurnEnded(outcome, items, usage, read_name(response.id), read_name(response.model))
        return [*events, ended]

    def _outcome(self, kind: str, response: Response) -> TurnOutcome:
        details = response.incomplete_details
        if details is not None and details.reason == "content_filter":
            return TurnOutcome.CONTENT_FILTER
        written, limit = response.usage.output_tokens if response.usage else 0, self._max_output_tokens
        cut = kind == "response.incomplete" or (limit is not None and written >= limit)
        return TurnOutcome.MAX_TOKENS if cut else TurnOutcome.COMPLETED


def _part(item: OutputItem, event: Event) -> int:
    return item.next_part if event.content_index is None else event.content_index


def _read_item(event: Event) -> tuple[Json, str, str | None]:
    """The item of an event, its kind, and its id where it has one."""
    item = event.item or {}
    kind, item_id = item.get("type"), item.get("id")
    if not isinstance(kind, str):
        raise ModelProtocolError(f"an item without type in {event.type}")
    return item, kind, item_id if isinstance(item_id, str) and item_id else None


def _identify(item: OutputItem, opening: Json) -> Sequence[ModelEvent]:
    if item.kind != "function_call":
        return ()
    call_id, name = opening.get("call_id"), opening.get("name")
    return item.identify(call_id if isinstance(call_id, str) else "", name if isinstance(name, str) else "")
