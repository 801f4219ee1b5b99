"""Writes answers as Chat Completions does. Output items, annotations and phases have no place in this format."""

from typing import Any

import msgspec

from famulus_server.embedded.upstream.answer import REQUEST_NUMBER, Answer
from famulus_server.embedded.upstream.wire import CREATED, Event, Json, Mark, drop_keys, error_object, hasten

_INDEX = frozenset({"index"})


class ChatWire:
    def body(self, answer: Answer) -> Json:
        message: Json = {
            "role": "assistant",
            "content": "".join(answer.text) if answer.text else None,
            "refusal": "".join(answer.refusal) or None,
        }
        if answer.reasoning:
            message["reasoning_content"] = "".join(answer.reasoning)
        if answer.calls:
            message["tool_calls"] = [_call(call.id, call.name, "".join(call.arguments)) for call in answer.calls]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(answer)}
        usage = {} if "no_usage" in answer.quirks else {"usage": _usage(answer)}
        return {**_envelope(answer, "chat.completion"), "choices": [choice], **usage}

    def events(self, answer: Answer) -> list[Event]:
        chunk = _Chunks(answer)
        events = [chunk({"role": "assistant", "content": "", "refusal": None})]
        events += [chunk({"reasoning_content": delta}, mark=Mark.DELTA) for delta in answer.reasoning]
        events += [chunk({"content": delta}, mark=Mark.DELTA) for delta in answer.text]
        events += [chunk({"refusal": delta}, mark=Mark.DELTA) for delta in answer.refusal]
        for index, call in enumerate(answer.calls):
            events.append(chunk({"tool_calls": [{"index": index, **_call(call.id, call.name, "")}]}))
            for piece in call.arguments:
                arguments = {"index": index, "function": {"arguments": piece}}
                events.append(chunk({"tool_calls": [arguments]}, mark=Mark.DELTA))
        events.append(chunk({}, finish=_finish(answer), mark=Mark.FINISH))
        if answer.include_usage and "no_usage" not in answer.quirks:
            total = {**_envelope(answer, "chat.completion.chunk"), "choices": [], "usage": _usage(answer)}
            events.append(Event(total))
        if "unknown_event" in answer.quirks:
            events.insert(1, Event({"object": "hologram.projected", "choices": [], "hologram": {"depth": 3}}))
        if "delta_first" in answer.quirks:
            hasten(events)
        if "no_indexes" in answer.quirks:
            for event in events:
                event.data = drop_keys(event.data, _INDEX)
        return [*events, Event("data: [DONE]\n\n", Mark.LAST)]

    def text_delta(self, answer: Answer, text: str) -> Event:
        return _Chunks(answer)({"content": text}, mark=Mark.DELTA)

    def error(self, message: str, code: str | None) -> Event:
        return Event(error_object(500, message, code))

    def failed(self, answer: Answer, message: str, code: str | None) -> Event:  # noqa: ARG002 - an error is all it has
        return self.error(message, code)

    def encode(self, event: Event, sequence: int | None) -> bytes:  # noqa: ARG002 - chunks carry no numbers
        if isinstance(event.data, str):
            return event.data.encode()
        return b"data: %b\n\n" % msgspec.json.encode(event.data)


class _Chunks:
    """Makes the chunks of one answer."""

    def __init__(self, answer: Answer) -> None:
        self._envelope = _envelope(answer, "chat.completion.chunk")
        # The real service says null in every chunk where the usage comes in one of its own.
        self._usage: Json = {"usage": None} if answer.include_usage and "no_usage" not in answer.quirks else {}

    def __call__(self, delta: Json, *, finish: str | None = None, mark: Mark = Mark.PLAIN) -> Event:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return Event({**self._envelope, "choices": [choice], **self._usage}, mark)


def _envelope(answer: Answer, kind: str) -> Json:
    identity = f"chatcmpl-{REQUEST_NUMBER}"
    return {"id": identity, "object": kind, "created": CREATED, "model": answer.model, "service_tier": "default"}


def _call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _finish(answer: Answer) -> str:
    if answer.finish != "stop" and "says_completed" not in answer.quirks:
        return answer.finish
    return "tool_calls" if answer.calls else "stop"


def _usage(answer: Answer) -> Json:
    tokens = answer.tokens
    return {
        "prompt_tokens": tokens.input,
        "completion_tokens": tokens.output,
        "total_tokens": tokens.input + tokens.output,
        "prompt_tokens_details": {"cached_tokens": tokens.cached, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": tokens.reasoning, "audio_tokens": 0},
    }
