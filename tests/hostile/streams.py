"""What a model streams, as bytes, and all that is made of it until it is stored."""

from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import cycle, pairwise
from typing import Any, Literal, get_args

import msgspec

from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import Run
from famulus.v1.tool_pb2 import FunctionTool, Tool
from famulus_server.api.validation.fields import Fields
from famulus_server.embedded.upstream.answer import REQUEST_NUMBER, compose
from famulus_server.embedded.upstream.chat import ChatWire
from famulus_server.embedded.upstream.faults import render_stream
from famulus_server.embedded.upstream.prompt import Prompt
from famulus_server.embedded.upstream.responses import ResponsesWire
from famulus_server.embedded.upstream.script import Quirk, Scene, ToolCall
from famulus_server.embedded.upstream.script import Usage as Tokens
from famulus_server.embedded.upstream.wire import Wire
from famulus_server.engine.packing import Packer, events_of
from famulus_server.engine.turn import TurnRecorder, TurnResult
from famulus_server.errors import ModelError
from famulus_server.models.chat import ChatReader
from famulus_server.models.responses import ResponsesReader
from famulus_server.models.sse import SseDecoder
from famulus_server.models.words import UnknownKinds

Api = Literal["responses", "chat"]
# What becomes of a stream: run events and what is stored, or the error.
Outcome = tuple[list[RunEvent], TurnResult] | type[ModelError]

FUNCTION = "look_up"
_WIRES: dict[Api, Wire] = {"responses": ResponsesWire(), "chat": ChatWire()}
_PROMPT: Any = {"model": "m", "stream": True, "turns": [], "tools": [], "tool_choice": "auto", "max_tokens": None}
_CITATION = {"type": "url_citation", "url": "https://example.com", "title": "t", "start_index": 0, "end_index": 2}
_CALL = ToolCall(name=FUNCTION, arguments={"word": "tea \u2603 \U0001f375"})
_NUMBER = msgspec.json.encode(REQUEST_NUMBER).strip(b'"')
_SCENES = (
    Scene(text="Plain words, \u00fcml\u00e4ut and \U0001f600."),
    Scene(reasoning="Let me think", text="Cited.", annotations=(_CITATION,), phase="final_answer"),
    Scene(refusal="I will not do that."),
    Scene(text="Let me see. ", tool_calls=(_CALL, _CALL)),
    Scene(items=({"type": "web_search_call", "id": "ws_1", "status": "completed"},), text="Found."),
    Scene(text="Cut off", finish="length", usage=Tokens(input=5, cached=3, output=2)),
    *(Scene(text="Odd server.", tool_calls=(_CALL,), quirks=(quirk,)) for quirk in get_args(Quirk)),
)


class _Clock:
    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)


class _Ids:
    """Counts, so that the same stream gives the same ids."""

    def __init__(self) -> None:
        self._last = 0

    def new(self, prefix: str) -> str:
        self._last += 1
        return f"{prefix}_{self._last}"


def good_streams(api: Api) -> list[bytes]:
    """Whole streams, of servers that are odd at most, with each kind of line end."""
    prompt = Prompt(api=api, include_usage=True, include_encrypted=True, whole=True, **_PROMPT)
    streams = []
    for scene, newline in zip(_SCENES, cycle([b"\n", b"\r\n", b"\r"])):
        play = render_stream(_WIRES[api], compose(scene, prompt), None, first=False, paced=False)
        streams.append(b"".join(play.chunks).replace(_NUMBER, b"1").replace(b"\n", newline))
    return streams


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """The data in pieces, cut at these places."""
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[at:to] for at, to in pairwise(edges)]


def read(api: Api, chunks: Iterable[bytes], *, max_line_bytes: int = 1_000_000) -> Outcome:
    """Reads a stream to its end. Raises what no stream may cause: anything but a ModelError, which is returned."""
    unknown = UnknownKinds(model="m")
    reader = (
        ResponsesReader(max_output_tokens=None, unknown=unknown)
        if api == "responses"
        else ChatReader(max_output_tokens=None, done_marker=True, unknown=unknown)
    )
    decoder = SseDecoder(max_line_bytes=max_line_bytes)
    run = Run(id="run_1", thread_id="thread_1", tools=[Tool(function=FunctionTool(name=FUNCTION))])
    run.stream_reasoning = True
    recorder = TurnRecorder(run=run, next_position=1, taken_call_ids=set(), clock=_Clock(), ids=_Ids())
    packer = Packer(last_sequence=0, now=_Clock().now())
    try:
        for chunk in chunks:
            recorder.take(reader.read(decoder.feed(chunk)), packer)
            if reader.ended:
                break
        else:
            recorder.take(reader.finish(), packer)
    except ModelError as error:
        return type(error)
    result = recorder.finish()
    _check(result)
    return events_of(packer.close()), result


def _check(result: TurnResult) -> None:
    """What the rest of the service relies on."""
    msgspec.json.encode(result.items).decode()
    for stored in (*result.messages, *result.steps):
        stored.SerializeToString()
    with Fields() as fields:
        for call in result.open_calls:
            # Else nobody could answer it.
            fields.id("call_id", call.id)
            assert isinstance(msgspec.json.decode(call.function.arguments_json), dict)
