"""A scripted upstream with a model on it, over real sockets."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Literal

from famulus.v1.tool_pb2 import FunctionTool, Tool
from famulus_server.embedded.upstream.script import Scene, Script
from famulus_server.embedded.upstream.server import ScriptedUpstream
from famulus_server.models.registry import ModelRegistry
from famulus_server.models.settings import BreakerSettings, ModelSettings, RetrySettings
from famulus_server.ports import (
    Model,
    ModelEvent,
    ModelRequest,
    TextChunk,
    TurnEnded,
)
from famulus_server.telemetry.metrics import Measurements

ONCE = RetrySettings(attempts=1)
PATIENT = BreakerSettings(min_calls=1_000_000)
HELLO = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}]
TOOLS = [Tool(function=FunctionTool(name="weather", parameters_json='{"type":"object","properties":{}}'))]


class Stage:
    """A scripted upstream and a model on it."""

    def __init__(self, upstream: ScriptedUpstream, model: Model, registry: ModelRegistry) -> None:
        self.upstream = upstream
        self.model = model
        self.registry = registry

    async def play(self, **request: Any) -> list[ModelEvent]:
        return [event for events in await self.reads(**request) for event in events]

    async def reads(self, **request: Any) -> list[list[ModelEvent]]:
        return [events async for events in self.model.stream(ask(**request))]

    async def end(self, **request: Any) -> TurnEnded:
        last = (await self.play(**request))[-1]
        assert isinstance(last, TurnEnded)
        return last


Open = Callable[..., AbstractAsyncContextManager[Stage]]


def ask(**request: Any) -> ModelRequest:
    return ModelRequest(**{"model": "m", "instructions": "", "items": HELLO} | request)


@asynccontextmanager
async def open_stage(
    backend: Literal["responses", "chat"],
    *scenes: Scene,
    now: Callable[[], float] = time.monotonic,
    **settings: Any,
) -> AsyncIterator[Stage]:
    """The model tries once, and is never suspended, unless told otherwise."""
    async with ScriptedUpstream(script=Script(scenes=scenes)) as upstream:
        given: dict[str, Any] = {"base_url": upstream.base_url, "retry": ONCE, "breaker": PATIENT} | settings
        registry = ModelRegistry(
            settings=[ModelSettings(name="m", backend=backend, **given)], metrics=Measurements(), now=now
        )
        try:
            yield Stage(upstream, registry.open("m"), registry)
        finally:
            await registry.close()


def text_of(events: list[ModelEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextChunk))
