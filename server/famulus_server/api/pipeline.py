"""Runs every RPC, of whatever kind, inside the layers of the server.

A layer makes, once for each method, a coroutine function around the next one: it may refuse a call before that, and
sees how it ended after it. One list in `server.py` names all of them, outermost first.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, closing
from typing import Any, Protocol, TypeAlias

import grpc
import structlog
from grpc.aio import ServicerContext

from famulus.v1 import error_reason_pb2 as reasons
from famulus_server.api.calls import Call, Method, Proceed, current_call, enter, log_request
from famulus_server.api.errors import fail, tell
from famulus_server.api.wire import checked, checked_stream, reading, writing
from famulus_server.engine.timer import Timer
from famulus_server.errors import Aborted, Internal

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic in its types only
_Context = ServicerContext[Any, Any]

_log = structlog.get_logger(__name__)


class Layer(Protocol):
    """Something that every call passes."""

    def around(self, method: Method, proceed: Proceed) -> Proceed:
        """What calls of the method pass in place of `proceed`, which leads through the layers further in. A method
        that is none of its concern gets `proceed` itself."""


class Pipeline(grpc.aio.ServerInterceptor):
    """The one gRPC interceptor of the server."""

    def __init__(self, layers: Sequence[Layer], *, slow_seconds: float = 30.0) -> None:
        """Streams end with SLOW_CONSUMER where their reader takes longer than `slow_seconds` for a response."""
        self._layers = layers
        self._slow_seconds = slow_seconds
        self._handlers: dict[str, _Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["_Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "_Handler | None":
        method = handler_call_details.method
        handler = self._handlers.get(method)
        if handler is None:
            found = await continuation(handler_call_details)
            if found is None:
                # Not remembered: the names of methods that do not exist are the caller's invention.
                return None
            handler = self._handlers[method] = self._wrap(method, found)
        return handler

    def _wrap(self, name: str, handler: _Handler) -> _Handler:
        behaviour: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        check = checked_stream if handler.request_streaming else checked

        async def answer(call: Call) -> None:
            call.request = check(call.received)
            log_request(call.request)
            call.response = await behaviour(call.request, call.context)

        async def stream(call: Call) -> None:
            # Written, not yielded: when the call is cancelled, this task closes the servicer's iterator at once.
            call.request = check(call.received)
            log_request(call.request)
            responses: AsyncGenerator[Any, None] = behaviour(call.request, call.context)
            async with aclosing(responses):
                with closing(Timer(self._slow_seconds)) as timer:
                    async for response in responses:
                        if call.when_answered is not None:
                            call.when_answered()
                            call.when_answered = None
                        timer.allow(self._slow_seconds)
                        await self._write(call.context, response, timer)

        method = Method(name, handler.response_streaming)
        proceed: Proceed = stream if method.streams else answer
        for layer in reversed(self._layers):
            proceed = layer.around(method, proceed)

        async def serve(request: Any, context: _Context) -> Any:
            call = Call(method=name, context=context, received=request, headers=context.invocation_metadata() or ())
            enter(call)
            try:
                await proceed(call)
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001 - of a layer outside of `Errors`: its text must not get out, either
                _log.exception("a layer failed", exception=type(error).__name__)
                fail(call, Internal(call.request_id))
            if call.status is not None:
                await tell(call, call.status)
            return call.response

        shapes: dict[tuple[bool, bool], Callable[..., _Handler]] = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }
        return shapes[handler.request_streaming, handler.response_streaming](
            serve,
            request_deserializer=reading(handler.request_deserializer),
            response_serializer=writing(handler.response_serializer),
        )

    async def _write(self, context: _Context, response: Any, timer: Timer) -> None:
        """Returns once the reader has taken it, or may take it soon (contract 14). Raises Aborted."""
        try:
            with timer:
                await context.write(response)
        except TimeoutError:
            current_call().let_go = True
            # gRPC keeps the response, and sends it before the error.
            raise Aborted(
                reasons.ERROR_REASON_SLOW_CONSUMER, "the reader is too slow: resume after the last sequence"
            ) from None
        except grpc.aio.InternalError as gone:
            # The caller went away in the middle of it, which is no failure of ours.
            raise asyncio.CancelledError from gone
