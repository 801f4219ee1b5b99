"""Traces of a server, where the environment asks for them."""

import os
from contextlib import AsyncExitStack

from famulus_server.config import ConfigError
from famulus_server.ports import Tracer
from famulus_server.telemetry.traces import Traces, TraceSettingError


async def open_traces(stack: AsyncExitStack, instance: str) -> Tracer:
    """The tracer; what it has been told is sent when the stack is left. `instance` names the process. Raises
    ConfigError."""
    # OpenTelemetry's SDK reads the environment, and nothing else, hence so does this.
    traces = Traces(environ=os.environ, instance=instance)
    try:
        tracer = await traces.open()
    except TraceSettingError as wrong:
        raise ConfigError("environment", wrong.name, wrong.reason) from None
    stack.push_async_callback(traces.close)
    return tracer
