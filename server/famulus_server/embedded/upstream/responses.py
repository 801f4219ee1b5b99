"""Writes answers as the Responses API does."""

from collections.abc import Iterator
from typing import Any

import msgspec

from famulus_server.embedded.upstream.answer import REQUEST_NUMBER, Answer
from famulus_server.embedded.upstream.wire import CREATED, Event, Json, Mark, drop_keys, hasten

_INDEXES = frozenset({"output_index", "content_index", "summary_index", "annotation_index"})
_REASONS = {"length": "max_output_tokens", "content_filter": "content_filter"}
_MESSAGE_ID = f"msg_{REQUEST_NUMBER}"


class ResponsesWire:
    def body(self, answer: Answer) -> Json:
        return _response(answer, _status(answer), _items(answer))

    def events(self, answer: Answer) -> list[Event]:
        started = _response(answer, "in_progress", [])
        events = [
            Event({"type": "response.created", "response": started}),
            Event({"type": "response.in_progress", "response": started}),
        ]
        if "unknown_event" in answer.quirks:
            events.append(Event({"type": "response.hologram.projected", "hologram": {"depth": 3}}))
        for index, item in enumerate(_items(answer)):
            steps = list(_item_events(answer, item, index))
            if "delta_first" in answer.quirks:
                hasten(steps)
            events += steps
        body = self.body(answer)
        events.append(Event({"type": f"response.{body['status']}", "response": body}, Mark.FINISH | Mark.LAST))
        if "no_indexes" in answer.quirks:
            for event in events:
                event.data = drop_keys(event.data, _INDEXES)
        return events

    def text_delta(self, answer: Answer, text: str) -> Event:
        before = len(answer.items_json) + bool(answer.reasoning)
        at = {"item_id": _MESSAGE_ID, "output_index": before, "content_index": 0}
        return Event({"type": "response.output_text.delta", **at, "delta": text, "logprobs": []}, Mark.DELTA)

    def error(self, message: str, code: str | None) -> Event:
        return Event({"type": "error", "code": code or "server_error", "message": message, "param": None})

    def failed(self, answer: Answer, message: str, code: str | None) -> Event:
        error = {"code": code or "server_error", "message": message}
        response = _response(answer, "failed", []) | {"error": error, "usage": None}
        return Event({"type": "response.failed", "response": response})

    def encode(self, event: Event, sequence: int | None) -> bytes:
        if isinstance(event.data, str):
            return event.data.encode()
        data = event.data if sequence is None else event.data | {"sequence_number": sequence}
        return b"event: %b\ndata: %b\n\n" % (event.data["type"].encode(), msgspec.json.encode(data))


def _status(answer: Answer) -> str:
    return "completed" if answer.finish == "stop" or "says_completed" in answer.quirks else "incomplete"


def _response(answer: Answer, status: str, output: list[Json]) -> Json:
    ended = status in {"completed", "incomplete"}
    details = {"reason": _REASONS[answer.finish]} if status == "incomplete" else None
    return {
        "id": f"resp_{REQUEST_NUMBER}",
        "object": "response",
        "created_at": CREATED,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": details,
        "instructions": None,
        "max_output_tokens": None,
        "metadata": {},
        "model": answer.model,
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": False,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": _usage(answer) if ended and "no_usage" not in answer.quirks else None,
        "user": None,
    }


def _usage(answer: Answer) -> Json:
    tokens = answer.tokens
    return {
        "input_tokens": tokens.input,
        "input_tokens_details": {"cached_tokens": tokens.cached, "cache_write_tokens": 0},
        "output_tokens": tokens.output,
        "output_tokens_details": {"reasoning_tokens": tokens.reasoning},
        "total_tokens": tokens.input + tokens.output,
    }


def _items(answer: Answer) -> list[Json]:
    """The output items in their final form; the last one is incomplete where the answer was cut."""
    items: list[Json] = []
    if answer.reasoning:
        summary = {"type": "summary_text", "text": "".join(answer.reasoning)}
        secret = {"encrypted_content": f"encrypted-{REQUEST_NUMBER}"} if answer.encrypted else {}
        items.append({"type": "reasoning", "id": f"rs_{REQUEST_NUMBER}", "summary": [summary], **secret})
    for number, item_json in enumerate(answer.items_json, start=1):
        items.append({"id": f"item_{REQUEST_NUMBER}_{number}", **msgspec.json.decode(item_json)})
    if answer.has_message:
        items.append(_message(answer))
    for number, call in enumerate(answer.calls, start=1):
        item_id, arguments = f"fc_{REQUEST_NUMBER}_{number}", "".join(call.arguments)
        identity = {"type": "function_call", "id": item_id, "call_id": call.id, "name": call.name}
        items.append({**identity, "arguments": arguments, "status": "completed"})
    if items and "status" in items[-1]:
        items[-1]["status"] = _status(answer)
    return items


def _message(answer: Answer) -> Json:
    parts: list[Json] = []
    if answer.text or not answer.refusal:
        notes = [msgspec.json.decode(annotation) for annotation in answer.annotations_json]
        text = "".join(answer.text)
        parts.append({"type": "output_text", "text": text, "annotations": notes, "logprobs": []})
    if answer.refusal:
        parts.append({"type": "refusal", "refusal": "".join(answer.refusal)})
    phase = {"phase": answer.phase} if answer.phase else {}
    base = {"type": "message", "id": _MESSAGE_ID, "role": "assistant", "status": "completed"}
    return {**base, "content": parts, **phase}


def _item_events(answer: Answer, item: Json, index: int) -> Iterator[Event]:
    at = {"item_id": item["id"], "output_index": index}
    opened = {"output_index": index, "item": _opened(item)}
    yield Event({"type": "response.output_item.added", **opened})
    match item["type"]:
        case "reasoning" if "summary" in item and item["id"].startswith("rs_"):
            yield from _reasoning_events(answer, item, at)
        case "message" if item["id"] == _MESSAGE_ID:
            for number, part in enumerate(item["content"]):
                yield from _part_events(answer, part, {**at, "content_index": number})
        case "function_call" if "call_id" in item:
            call = answer.calls[int(item["id"].rpartition("_")[2]) - 1]
            name = "response.function_call_arguments"
            for piece in call.arguments:
                yield Event({"type": f"{name}.delta", **at, "delta": piece}, Mark.DELTA)
            yield Event({"type": f"{name}.done", **at, "name": call.name, "arguments": item["arguments"]})
    yield Event({"type": "response.output_item.done", "output_index": index, "item": item})


def _opened(item: Json) -> Json:
    """The item as it is announced, before any of it was written."""
    empty: dict[str, Any] = {"status": "in_progress", "content": [], "arguments": "", "summary": []}
    kept = {key: value for key, value in item.items() if key != "encrypted_content"}
    return kept | {key: value for key, value in empty.items() if key in item}


def _reasoning_events(answer: Answer, item: Json, at: Json) -> Iterator[Event]:
    name, at = "response.reasoning_summary", {**at, "summary_index": 0}
    part = item["summary"][0]
    yield Event({"type": f"{name}_part.added", **at, "part": {**part, "text": ""}})
    for delta in answer.reasoning:
        yield Event({"type": f"{name}_text.delta", **at, "delta": delta}, Mark.DELTA)
    yield Event({"type": f"{name}_text.done", **at, "text": part["text"]})
    yield Event({"type": f"{name}_part.done", **at, "part": part})


def _part_events(answer: Answer, part: Json, at: Json) -> Iterator[Event]:
    extra: Json = {}
    if part["type"] == "refusal":
        name, deltas, kept = "response.refusal", answer.refusal, "refusal"
        empty = {**part, "refusal": ""}
    else:
        name, deltas, kept = "response.output_text", answer.text, "text"
        empty, extra = {**part, "text": "", "annotations": []}, {"logprobs": []}
    yield Event({"type": "response.content_part.added", **at, "part": empty})
    for delta in deltas:
        yield Event({"type": f"{name}.delta", **at, "delta": delta, **extra}, Mark.DELTA)
    for number, note in enumerate(part.get("annotations", ())):
        added = {"annotation_index": number, "annotation": note}
        yield Event({"type": "response.output_text.annotation.added", **at, **added})
    yield Event({"type": f"{name}.done", **at, kept: part[kept], **extra})
    yield Event({"type": "response.content_part.done", **at, "part": part})
