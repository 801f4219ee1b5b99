"""Streams that no well-behaved server sends, but some do."""

from typing import Any

import msgspec
import pytest

from famulus.v1.message_pb2 import Annotation, FileCitation, UrlCitation
from famulus_server.errors import ModelProtocolError, ModelRejectedRequest, ModelUnavailable
from famulus_server.models.chat import ChatReader
from famulus_server.models.responses import ResponsesReader
from famulus_server.models.words import UnknownKinds
from famulus_server.ports import (
    AnnotationChunk,
    CallChunk,
    ModelEvent,
    ReasoningChunk,
    TextChunk,
    TurnEnded,
    TurnOutcome,
)

Json = dict[str, Any]
UNKNOWN = UnknownKinds(model="m")
CALL = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "f", "arguments": '{"a":1}'}
MESSAGE = {"type": "message", "id": "msg_1", "role": "assistant", "content": [{"type": "output_text", "text": "hi"}]}


def responses(*events: Json) -> list[ModelEvent]:
    return ResponsesReader(max_output_tokens=None, unknown=UNKNOWN).read(
        [msgspec.json.encode(event) for event in events]
    )


def chat(*deltas: Json, finish: str | None = "stop", **settings: Any) -> list[ModelEvent]:
    reader = ChatReader(**{"max_output_tokens": None, "done_marker": True, "unknown": UNKNOWN} | settings)
    chunks = [{"choices": [{"delta": delta}]} for delta in deltas]
    payloads = [
        msgspec.json.encode(chunk) for chunk in [*chunks, {"choices": [{"delta": {}, "finish_reason": finish}]}]
    ]
    return reader.read([*payloads, b"[DONE]"])


def event(kind: str, **fields: Any) -> Json:
    return {"type": f"response.{kind}", **fields}


def completed(**response: Any) -> Json:
    return event("completed", response={"status": "completed", **response})


def end_of(events: list[ModelEvent]) -> TurnEnded:
    assert isinstance(events[-1], TurnEnded)
    return events[-1]


def test_whole_answer_in_the_terminal_event_alone() -> None:
    events = responses(completed(output=[MESSAGE, CALL]))
    assert events[:3] == [TextChunk(0, 0, "hi"), CallChunk(1, "call_1", "f", ""), CallChunk(1, "", "", '{"a":1}')]
    assert end_of(events).items == [MESSAGE, CALL]


def test_items_that_are_never_finished_are_put_together() -> None:
    events = responses(
        event("output_text.delta", item_id="m", delta="hi"),
        event("output_item.added", item={**CALL, "arguments": ""}),
        event("function_call_arguments.delta", item_id="fc_1", delta='{"a":1}'),
        completed(),
    )
    message, call = end_of(events).items
    assert message["content"] == [{"type": "output_text", "text": "hi", "annotations": []}]
    assert (call["call_id"], call["name"], call["arguments"]) == ("call_1", "f", '{"a":1}')
    assert end_of(events).usage is None


def test_ids_that_change_with_every_event_do_not_matter_where_indexes_are_told() -> None:
    events = responses(
        event("output_item.added", output_index=0, item={**MESSAGE, "id": "x1", "content": []}),
        event("output_text.delta", output_index=0, item_id="x2", delta="hi"),
        event("output_item.done", output_index=0, item={**MESSAGE, "id": "x3"}),
        completed(),
    )
    assert events[:-1] == [TextChunk(0, 0, "hi")]
    assert [item["id"] for item in end_of(events).items] == ["x3"]


def test_items_that_all_have_index_0_are_kept_apart() -> None:
    events = responses(
        *(
            event(f"output_item.{step}", output_index=0, item=item)
            for item in ({**CALL, "id": "1", "name": "f"}, {**CALL, "id": "2", "name": "g"})
            for step in ("added", "done")
        ),
        completed(),
    )
    assert [item["name"] for item in end_of(events).items] == ["f", "g"]


def test_arguments_that_are_an_object_become_text() -> None:
    events = responses(event("output_item.done", item={**CALL, "arguments": {"a": 1}}), completed())
    assert end_of(events).items[0]["arguments"] == '{"a":1}'


def test_unknown_items_and_phases_come_out_as_they_came() -> None:
    unknown = {"type": "hologram_call", "id": "h1", "depth": {"x": [1, 2]}}
    phased = {**MESSAGE, "phase": "commentary"}
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "abc"}
    items = [reasoning, unknown, phased]
    events = responses(
        *(event("output_item.done", output_index=at, item=item) for at, item in enumerate(items)), completed()
    )
    assert end_of(events).items == items


def test_reasoning_summaries_are_set_apart() -> None:
    events = responses(
        event("reasoning_summary_part.added"),
        event("reasoning_summary_text.delta", delta="one"),
        event("reasoning_summary_part.added"),
        event("reasoning_summary_text.delta", delta="two"),
        completed(),
    )
    assert events[:-1] == [ReasoningChunk("one"), ReasoningChunk("\n\n"), ReasoningChunk("two")]


def test_annotations_of_known_kinds_come_out() -> None:
    page = {"type": "url_citation", "url": "https://a", "title": "A", "start_index": 1, "end_index": 2}
    file = {"type": "file_citation", "file_id": "f", "filename": "n", "index": 2**40}
    events = responses(
        *(event("output_text.annotation.added", annotation=note) for note in (page, file, {"type": "rune"}, None)),
        completed(),
    )
    web = Annotation(start_index=1, end_index=2, url_citation=UrlCitation(url="https://a", title="A"))
    cited = Annotation(start_index=-1, end_index=-1, file_citation=FileCitation(file_id="f", filename="n"))
    assert events[:-1] == [AnnotationChunk(0, 0, web), AnnotationChunk(0, 0, cited)]


@pytest.mark.parametrize(
    "odd", [event("hologram", delta={"x": 1}), event("hologram", item=[5]), {"no": "type"}, {"type": "keepalive"}]
)
def test_odd_events_are_ignored(odd: Json) -> None:
    assert len(responses(odd, completed())) == 1


@pytest.mark.parametrize(
    "broken",
    [
        event("output_text.delta", delta={"x": 1}),
        event("output_item.done", item={"id": 1}),
        completed(usage={"input_tokens": "x"}),
    ],
)
def test_known_events_of_another_shape_are_a_failure(broken: Json) -> None:
    with pytest.raises(ModelProtocolError):
        responses(broken)


def test_pings_as_events_are_no_progress() -> None:
    reader = ResponsesReader(max_output_tokens=None, unknown=UNKNOWN)
    reader.read([b'{"type":"ping"}', b'{"type":"keepalive","sequence_number":3}'])
    assert reader.progress == 0


def test_error_event_with_the_error_inside_is_understood() -> None:
    with pytest.raises(ModelRejectedRequest):
        responses({"type": "error", "error": {"type": "invalid_request_error", "code": "context_length_exceeded"}})
    with pytest.raises(ModelUnavailable):
        responses({"error": {"message": "gateway"}})


def test_incomplete_without_a_reason_is_no_completion() -> None:
    events = responses(event("incomplete", response={"status": "incomplete", "incomplete_details": None}))
    assert end_of(events).outcome is TurnOutcome.MAX_TOKENS


def test_nothing_after_the_terminal_event_is_read() -> None:
    events = responses(completed(), event("output_text.delta", delta="late"))
    assert len(events) == 1


def test_chat_calls_that_all_have_index_0_are_told_apart_by_id() -> None:
    calls = [{"index": 0, "id": f"c{n}", "function": {"name": "f", "arguments": "{}"}} for n in range(2)]
    items = end_of(chat({"tool_calls": calls[:1]}, {"tool_calls": calls[1:]}, finish="tool_calls")).items
    assert [item["call_id"] for item in items] == ["c0", "c1"]


def test_chat_calls_that_repeat_id_and_name_are_one_call() -> None:
    pieces = [{"index": 0, "id": "c", "function": {"name": "f", "arguments": part}} for part in ('{"a"', ":1}")]
    items = end_of(chat(*({"tool_calls": [piece]} for piece in pieces))).items
    assert [(item["name"], item["arguments"]) for item in items] == [("f", '{"a":1}')]


def test_chat_call_without_name_still_comes_out_named_first() -> None:
    events = chat({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]})
    assert events[:-1] == [CallChunk(0, "", "", "{}")]
    assert end_of(events).items[0]["arguments"] == "{}"


def test_chat_text_after_calls_belongs_to_one_message() -> None:
    call = {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}]}
    events = chat({"content": "a"}, call, {"content": "b"})
    assert [item["type"] for item in end_of(events).items] == ["message", "function_call"]
    assert end_of(events).items[0]["content"][0]["text"] == "ab"


@pytest.mark.parametrize("finish", [None, "abort", "error"])
def test_chat_ends_only_with_a_known_finish_reason(finish: str | None) -> None:
    with pytest.raises(ModelProtocolError):
        chat({"content": "a"}, finish=finish)


def test_chat_server_without_done_marker_must_be_configured_so() -> None:
    payload = b'{"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}'
    strict = ChatReader(max_output_tokens=None, done_marker=True, unknown=UNKNOWN)
    strict.read([payload])
    with pytest.raises(ModelProtocolError):
        strict.finish()
    lenient = ChatReader(max_output_tokens=None, done_marker=False, unknown=UNKNOWN)
    lenient.read([payload])
    assert isinstance(lenient.finish()[-1], TurnEnded)
    with pytest.raises(ModelProtocolError):
        ChatReader(max_output_tokens=None, done_marker=False, unknown=UNKNOWN).finish()


def test_chat_error_chunk_is_understood() -> None:
    reader = ChatReader(max_output_tokens=None, done_marker=True, unknown=UNKNOWN)
    with pytest.raises(ModelUnavailable):
        reader.read([b'{"error":{"code":502,"message":"x"}}'])
    with pytest.raises(ModelUnavailable):
        reader.read([b'{"error":"broken"}'])
