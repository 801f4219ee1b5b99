"""A span for every call of an upstream, which the upstream is told to continue."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from urllib.parse import urlsplit

from famulus_server.errors import ModelError
from famulus_server.models.settings import ModelSettings
from famulus_server.ports import Attributes, Model, ModelEvent, ModelRequest, SpanKind, Tracer, TurnEnded, TurnOutcome

_REASONS = {TurnOutcome.MAX_TOKENS: "length", TurnOutcome.CONTENT_FILTER: "content_filter"}
_APIS = {"responses": "responses", "chat": "chat_completions"}
_PORTS = {"http": 80, "https": 443}


class TracedModel:
    """Implements the port `Model` around one that tries once. Names and attributes are those of OpenTelemetry's
    semantic conventions for generative AI, without what is said."""

    def __init__(self, *, model: Model, settings: ModelSettings, tracer: Tracer) -> None:
        self._model = model
        self._tracer = tracer
        address = urlsplit(settings.base_url)
        asked = settings.upstream_model or settings.name
        self._name = f"chat {asked}"
        self._attributes: Attributes = {
            "gen_ai.operation.name": "chat",
            # Not whose the model is, but whose API it speaks.
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": asked,
            "gen_ai.request.stream": True,
            "openai.api.type": _APIS[settings.backend],
            "server.address": address.hostname or "",
            "server.port": address.port or _PORTS[address.scheme],
            "famulus.model": settings.name,
        }

    async def stream(self, request: ModelRequest) -> AsyncGenerator[list[ModelEvent], None]:
        # Never the current span: a generator cannot keep that to itself.
        span = self._tracer.start(self._name, SpanKind.CLIENT, self._attributes)
        began, first = time.monotonic(), True
        try:
            async with aclosing(self._model.stream(replace(request, traceparent=span.traceparent))) as stream:
                async for events in stream:
                    if first:
                        first = False
                        span.note({"gen_ai.response.time_to_first_chunk": time.monotonic() - began})
                    if isinstance(ended := events[-1], TurnEnded):
                        span.note(_told(ended))
                    yield events
        except ModelError as error:
            if error.status is not None:
                span.note({"http.response.status_code": error.status})
            span.fail(type(error).__name__)
            raise
        finally:
            span.end()

    async def count(self, request: ModelRequest) -> int | None:
        return await self._model.count(request)


def _told(ended: TurnEnded) -> Attributes:
    called = any(item.get("type") == "function_call" for item in ended.items)
    reason = _REASONS.get(ended.outcome) or ("tool_calls" if called else "stop")
    told: dict[str, str | int | list[str]] = {"gen_ai.response.finish_reasons": [reason]}
    if ended.response_id:
        told["gen_ai.response.id"] = ended.response_id
    if ended.response_model:
        told["gen_ai.response.model"] = ended.response_model
    if ended.usage is not None:
        told["gen_ai.usage.input_tokens"] = ended.usage.prompt_tokens
        told["gen_ai.usage.output_tokens"] = ended.usage.completion_tokens
        told["gen_ai.usage.cache_read.input_tokens"] = ended.usage.cached_prompt_tokens
        told["gen_ai.usage.reasoning.output_tokens"] = ended.usage.reasoning_tokens
    return told
