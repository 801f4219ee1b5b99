"""What only the Responses API can do, over real sockets."""

import asyncio
from typing import Any

from contract.model_stage import HELLO, open_stage
from famulus.v1.message_pb2 import Annotation, UrlCitation
from famulus_server.embedded.upstream.script import Scene, ToolCall
from famulus_server.models.registry import ModelRegistry
from famulus_server.models.settings import ModelSettings
from famulus_server.ports import AnnotationChunk, ModelCard
from famulus_server.telemetry.metrics import Measurements

PAGE = {"type": "url_citation", "url": "https://a", "title": "A", "start_index": 0, "end_index": 2}


async def test_encrypted_reasoning_phase_and_unknown_items_are_kept() -> None:
    unknown = {"type": "hologram_call", "depth": {"x": 3}}
    scene = Scene(reasoning="hm", text="so", phase="final_answer", items=(unknown,))
    async with open_stage("responses", scene, reasoning=True) as stage:
        items = (await stage.end()).items
        sent = await stage.upstream.wait_for_request(1)
        await stage.play(items=[*HELLO, *items])
        sent_back = (await stage.upstream.wait_for_request(2)).body["input"]
    assert sent.body["include"] == ["reasoning.encrypted_content"]
    reasoning, hologram, message = items
    assert reasoning["encrypted_content"] == "encrypted-1"
    assert {key: hologram[key] for key in unknown} == unknown
    assert message["phase"] == "final_answer"
    assert sent_back == [*HELLO, *items]


async def test_reasoning_that_nobody_kept_is_not_sent_back() -> None:
    async with open_stage("responses", Scene(reasoning="hm", text="so")) as stage:
        items = (await stage.end()).items
        await stage.play(items=[*HELLO, *items])
        sent_back = (await stage.upstream.wait_for_request(2)).body["input"]
    assert [item["type"] for item in items] == ["reasoning", "message"]
    assert [item["type"] for item in sent_back] == ["message", "message"]


async def test_annotations_come_as_chunks_and_in_the_item() -> None:
    async with open_stage("responses", Scene(text="so it is", annotations=(PAGE,))) as stage:
        events = await stage.play()
        end = await stage.end()
    noted = Annotation(start_index=0, end_index=2, url_citation=UrlCitation(url="https://a", title="A"))
    assert [event for event in events if isinstance(event, AnnotationChunk)] == [AnnotationChunk(0, 0, noted)]
    assert end.items[0]["content"][0]["annotations"] == [PAGE]


async def test_long_inputs_do_not_stop_the_event_loop() -> None:
    async with open_stage("responses", Scene(text="fine")) as stage:
        await stage.registry.warm_up()
        now = asyncio.get_running_loop().time
        began = now()
        await stage.play(items=HELLO * 1_000)
        # The SDK's own way of preparing input takes a millisecond per item.
        assert now() - began < 0.3


async def test_call_ids_are_the_calls_own_and_not_those_of_items() -> None:
    async with open_stage("responses", Scene(tool_calls=(ToolCall(name="f", id="call_mine"),))) as stage:
        (item,) = (await stage.end()).items
    assert item["call_id"] == "call_mine"
    assert item["id"] != "call_mine"


def test_cards_tell_what_a_model_can() -> None:
    def card(backend: Any, **given: Any) -> ModelCard | None:
        settings = ModelSettings(name="m", backend=backend, base_url="http://127.0.0.1", **given)
        return ModelRegistry(settings=[settings], metrics=Measurements()).card("m")

    assert card("responses", context_window=9, max_output_tokens=3) == ModelCard(
        name="m", context_window=9, max_output_tokens=3, built_in_tools=True
    )
    able = [card("chat"), card("responses", built_in_tools=False)]
    assert [found.built_in_tools for found in able if found] == [False, False]
    assert ModelRegistry(settings=[], metrics=Measurements()).card("m") is None


async def test_model_name_and_key_go_upstream() -> None:
    async with open_stage("responses", Scene(text="x"), upstream_model="vendor/m", api_key="sk-1") as stage:
        await stage.play()
        request = await stage.upstream.wait_for_request(1)
    assert request.body["model"] == "vendor/m"
    assert request.headers["authorization"] == "Bearer sk-1"
