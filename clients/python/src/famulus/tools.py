"""Your functions as tools: arguments in, outputs out, errors told to the model."""

import asyncio
import contextvars
import inspect
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any

from famulus.errors import ToolError
from famulus.tracing import tool_span
from famulus.v1.tool_pb2 import ToolCall, ToolOutput

Tools = Mapping[str, Callable[..., Any]]

_logger = logging.getLogger("famulus")

LARGEST_OUTPUT = 1 << 20  # bytes; the service takes no more


class Toolbox:
    """Answers function calls with callables by name; `timeout` is in seconds and holds for each call by itself.

    A callable gets the arguments as keyword arguments. What it returns is the output: text as it is, anything else as
    JSON. When it raises, takes too long, is unknown or cannot take the arguments, the model is told. So it is when it
    raises SystemExit, which would end the process for the sake of one call; KeyboardInterrupt passes.
    """

    def __init__(self, tools: Tools, *, timeout: float) -> None:
        self._tools = dict(tools)
        self._timeout = timeout
        self._claimed: set[str] = set()

    def claim(self, calls: Iterable[ToolCall]) -> set[str]:
        """Ids of those calls that nobody claimed before: the caller must answer them."""
        fresh = {call.id for call in calls} - self._claimed
        self._claimed |= fresh
        return fresh

    async def answer_all(self, calls: Iterable[ToolCall]) -> list[ToolOutput]:
        """Runs the calls in parallel: coroutine functions in this loop, other callables in threads of their own."""
        return await asyncio.gather(*map(self._answer, calls))

    def answer_all_in_threads(self, calls: Iterable[ToolCall], running: list["Future[Any]"]) -> list[ToolOutput]:
        """Runs the calls in parallel, in threads of their own. Who cancels the futures put into `running` ends the
        waiting (with CancelledError), though not the threads."""
        deadline = time.monotonic() + self._timeout
        started = [(call, self._start(call)) for call in calls]
        running.extend(future for _, future in started)
        return [self._collect(call, future, deadline) for call, future in started]

    async def _answer(self, call: ToolCall) -> ToolOutput:
        limit = asyncio.timeout(self._timeout)
        try:
            async with limit:
                return _succeeded(call, await self._run(call))
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return _failed(call, error)  # the tool's own affair: something that it waited for was cancelled
        except (Exception, SystemExit) as error:  # noqa: BLE001 (what a tool raises is for the model, and ends no run)
            return _failed(call, self._too_slow() if limit.expired() else error)

    async def _run(self, call: ToolCall) -> Any:
        with tool_span(call):
            tool, arguments = self._prepare(call)
            if _is_async(tool):
                return await tool(**arguments)
            result = await asyncio.wrap_future(_in_thread(lambda: tool(**arguments)))
            return await result if inspect.isawaitable(result) else result

    def _start(self, call: ToolCall) -> "Future[Any]":
        def work() -> Any:
            with tool_span(call):
                tool, arguments = self._prepare(call)
                return tool(**arguments)

        return _in_thread(work)

    def _collect(self, call: ToolCall, future: "Future[Any]", deadline: float) -> ToolOutput:
        try:
            return _succeeded(call, future.result(max(0.0, deadline - time.monotonic())))
        except (Exception, SystemExit) as error:
            if future.cancelled():
                raise
            return _failed(call, error if future.done() else self._too_slow())

    def _prepare(self, call: ToolCall) -> tuple[Callable[..., Any], dict[str, Any]]:
        tool = self._tools.get(call.function.name)
        if tool is None:
            raise ToolError("there is no tool of this name")
        try:
            arguments = json.loads(call.function.arguments_json or "{}")
        except (ValueError, RecursionError):
            raise ToolError("the arguments are not JSON") from None
        if not isinstance(arguments, dict):
            raise ToolError("the arguments are not a JSON object")
        with suppress(ValueError):  # some built-in functions have no signature
            signature = inspect.signature(tool)
            try:
                signature.bind(**arguments)
            except TypeError as error:
                raise ToolError(f"the arguments do not fit: {error}") from None
        return tool, arguments

    def _too_slow(self) -> ToolError:
        return ToolError(f"the tool took longer than {self._timeout:g} seconds")


def refuse_async_tools(tools: Tools) -> None:
    """Raises TypeError if one of the tools needs an event loop."""
    for name, tool in tools.items():
        if _is_async(tool):
            raise TypeError(f"tool {name!r} is a coroutine function: use FamulusClient, or a plain function")


def _is_async(tool: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(tool) or inspect.iscoroutinefunction(getattr(tool, "__call__", None))  # noqa: B004


def _succeeded(call: ToolCall, result: Any) -> ToolOutput:
    try:
        text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise ToolError("the tool's result cannot be written as JSON") from None
    output = _clean(text)
    if len(output.encode()) > LARGEST_OUTPUT:
        raise ToolError("the tool's result is larger than 1 MiB")
    return ToolOutput(call_id=call.id, output=output)


def _failed(call: ToolCall, error: BaseException) -> ToolOutput:
    if isinstance(error, ToolError):
        text = str(error)
    else:
        # The text of any exception may hold what is not the model's to see.
        text = f"the tool failed: {type(error).__name__}"
        _logger.error("the tool %s failed", call.function.name, exc_info=error, extra={"call_id": call.id})
    return ToolOutput(call_id=call.id, output=_clean(text), is_error=True)


def _clean(text: str) -> str:
    """The text without what the service would refuse: lone surrogates and NUL."""
    return text.encode(errors="replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def _in_thread(work: Callable[[], Any]) -> "Future[Any]":
    """Runs `work` in a daemon thread of its own, so that a tool that hangs holds up neither the others nor the exit.

    The future stays pending until then, hence can be cancelled at any time; a late result is dropped.
    """
    future: Future[Any] = Future()
    context = contextvars.copy_context()

    def run() -> None:
        with suppress(InvalidStateError):
            try:
                result = context.run(work)
            except StopIteration:  # asyncio refuses to carry it
                future.set_exception(RuntimeError("StopIteration"))
            except BaseException as error:  # noqa: BLE001 (whoever waits for the future gets it)
                future.set_exception(error)
            else:
                future.set_result(result)

    threading.Thread(target=run, name="famulus-tool", daemon=True).start()
    return future
