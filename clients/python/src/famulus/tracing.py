"""Traces, where `opentelemetry-api` is installed: calls name the current span, and tools have spans of their own."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from famulus.carrying import carrying
from famulus.v1.tool_pb2 import ToolCall

_KEY = "traceparent"


def traced(channel: Any) -> Any:
    """What stubs are made on, so that each call carries the context that is current when it is made."""
    return channel if _opentelemetry() is None else carrying(channel, _with_context)


@contextmanager
def tool_span(call: ToolCall) -> Iterator[None]:
    """The span around a tool while it answers a call, by the semantic conventions for generative AI. Neither arguments
    nor output get into it."""
    api = _opentelemetry()
    if api is None:
        yield
        return
    name = call.function.name
    attributes = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": name,
        "gen_ai.tool.call.id": call.id,
        "gen_ai.tool.type": "function",
    }
    tracer = api.trace.get_tracer("famulus")
    # The words of an exception may hold anything.
    quiet = {"record_exception": False, "set_status_on_exception": False}
    with tracer.start_as_current_span(f"execute_tool {name}", attributes=attributes, **quiet) as span:
        try:
            yield
        except BaseException as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(api.trace.StatusCode.ERROR)
            raise


@functools.cache
def _opentelemetry() -> Any:
    """The package, if it is there. Imported late: those who only want stubs do without."""
    try:
        import opentelemetry.propagate
        import opentelemetry.trace
    except ImportError:
        return None
    return opentelemetry


def _with_context(metadata: Any) -> Any:
    """The metadata of a call, and the context, unless whoever calls has given one."""
    if any(key == _KEY for key, _ in metadata or ()):
        return metadata
    carrier: dict[str, str] = {}
    _opentelemetry().propagate.inject(carrier)
    return (*(metadata or ()), *carrier.items()) if carrier else metadata
