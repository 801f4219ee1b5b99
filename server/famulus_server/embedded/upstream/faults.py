"""Turns an answer into the bytes of one stream, or into what a broken server makes of it."""

from dataclasses import dataclass

import msgspec

from famulus_server.embedded.upstream.answer import Answer
from famulus_server.embedded.upstream.script import Fault
from famulus_server.embedded.upstream.wire import Ending, Event, Mark, Wire

_LONG_LINE = 20_000_000  # bytes
DEFAULT_MESSAGE = "The server had an error while processing your request."
_PLACEHOLDER = "SPOILED"


@dataclass(frozen=True, slots=True)
class Play:
    """Bytes to write, with a pause between the chunks, and what happens then."""

    chunks: tuple[bytes, ...]
    ending: Ending


def render_stream(wire: Wire, answer: Answer, fault: Fault | None, *, first: bool, paced: bool) -> Play:
    """`first` keeps what precedes the first delta in a chunk of its own, `paced` does so with every delta."""
    events, ending = wire.events(answer), Ending.CLOSE
    if fault is not None:
        events, ending = _break(fault, events, wire, answer)
    numbered = "no_sequence_numbers" not in answer.quirks
    chunks = [bytearray()]
    for sequence, event in enumerate(events):
        if event.is_delta and (paced or (first and len(chunks) == 1)):
            chunks.append(bytearray())
        data = wire.encode(event, sequence if numbered else None)
        chunks[-1] += event.spoil(data) if event.spoil else data
    return Play(tuple(bytes(chunk) for chunk in chunks), ending)


def render_body(wire: Wire, answer: Answer, fault: Fault | None) -> Play:
    """An answer in one piece. A fault that needs a stream stops it half way, or makes it unreadable."""
    body = msgspec.json.encode(wire.body(answer))
    half = body[: len(body) // 2]
    match fault.kind if fault else None:
        case "hang" | "pings":
            return Play((half,), Ending.HANG)
        case "reset":
            return Play((half,), Ending.RESET)
        case "disconnect":
            return Play((half,), Ending.CUT)
        case None:
            return Play((body,), Ending.CLOSE)
        case _:
            return Play((half,), Ending.CLOSE)


def _break(fault: Fault, events: list[Event], wire: Wire, answer: Answer) -> tuple[list[Event], Ending]:
    at = _cut_point(events, 1 if fault.after is None else fault.after)
    before, rest = events[:at], events[at:]
    message = fault.message or DEFAULT_MESSAGE
    match fault.kind:
        case "hang":
            return before, Ending.HANG
        case "pings":
            return before, Ending.PINGS
        case "reset":
            return before, Ending.RESET
        case "disconnect":
            return before, Ending.CUT
        case "mid_json":
            rest[0].spoil = _half
            return [*before, rest[0]], Ending.CLOSE
        case "no_completed":
            return [event for event in events if Mark.FINISH not in event.mark], Ending.CLOSE
        case "no_done":
            return [event for event in events if Mark.LAST not in event.mark], Ending.CLOSE
        case "error_event":
            return [*before, wire.error(message, fault.code)], Ending.CLOSE
        case "response_failed":
            return [*before, wire.failed(answer, message, fault.code)], Ending.CLOSE
        case "bad_json" | "bad_utf8" | "lone_surrogate" | "long_line":
            return [*before, _bad_line(fault, wire, answer), *rest], Ending.CLOSE
        case _:  # eof; what replaces the whole answer never comes here
            return before, Ending.CLOSE


def _cut_point(events: list[Event], after: int) -> int:
    """The place behind so many deltas, but always before the finish."""
    seen = 0
    for at, event in enumerate(events):
        if Mark.FINISH in event.mark or (event.is_delta and seen == after):
            return at
        seen += event.is_delta
        if seen == after and event.is_delta:
            return at + 1
    return len(events)


def _bad_line(fault: Fault, wire: Wire, answer: Answer) -> Event:
    if fault.kind == "long_line":
        return wire.text_delta(answer, "x" * (fault.size or _LONG_LINE))
    event = wire.text_delta(answer, _PLACEHOLDER)
    match fault.kind:
        case "bad_json":
            event.spoil = lambda line: _half(line) + b"\n\n"
        case "bad_utf8":
            event.spoil = lambda line: line.replace(_PLACEHOLDER.encode(), b"\xff\xfe")
        case _:
            event.spoil = lambda line: line.replace(_PLACEHOLDER.encode(), rb"\ud800")
    return event


def _half(line: bytes) -> bytes:
    return line.rstrip(b"\n")[: len(line) * 3 // 4]
