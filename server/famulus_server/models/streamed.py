"""One model turn over HTTP: raw bytes from the SDK's client, our own timers, and a connection that is always closed."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import structlog

from famulus_server.engine.timer import Timer
from famulus_server.errors import ModelError, ModelProtocolError, ModelTimeout, ModelUnavailable
from famulus_server.models.allowance import read_allowance
from famulus_server.models.connection import Connection
from famulus_server.models.failures import from_status
from famulus_server.models.settings import ModelSettings
from famulus_server.models.sse import SseDecoder
from famulus_server.ports import ModelEvent, ModelRequest

if TYPE_CHECKING:
    import aiohttp
    from openai import AsyncAPIResponse

    from famulus_server.models.client import Client

# Answers in one piece, so that a small read cannot unpack to a huge one.
HEADERS = {"Accept-Encoding": "identity"}
# What is read at a time, at most: some hundred events, which keep others waiting for a millisecond.
_READ_BYTES = 64 * 1024
_REST_OF_BODY_SECONDS = 0.05

Read: TypeAlias = Callable[[], Awaitable[bytes]]

_log = structlog.get_logger(__name__)


def headers_of(request: ModelRequest) -> dict[str, str]:
    """What goes with a turn besides its body. Of the trace no more than the name of a span: the rest of it, which
    callers may have filled, is no provider's business."""
    return {**HEADERS, "traceparent": request.traceparent} if request.traceparent else HEADERS


class TurnReader(Protocol):
    """Makes model events of the events of one turn, in one wire format."""

    ended: bool  # TurnEnded has been returned
    progress: int  # events that show the model at work; pings do not

    def read(self, payloads: Sequence[bytes]) -> list[ModelEvent]:
        """What these events bring; nothing after TurnEnded. Raises ModelError."""

    def finish(self) -> list[ModelEvent]:
        """The stream is over. Raises ModelProtocolError unless that is how it may end (contract 17)."""


class WireFormat(Protocol):
    """One of the two APIs."""

    def start(self, client: "Client", request: ModelRequest) -> "AbstractAsyncContextManager[AsyncAPIResponse[Any]]":
        """The streaming request, sent on entering. Raises ModelRejectedRequest for what the API cannot express."""

    def reader(self, request: ModelRequest) -> TurnReader:
        """A reader for the answer."""

    async def count(self, client: "Client", request: ModelRequest, /) -> int | None:
        """The input tokens of the request, by the provider's word; None where the API has no word for it. Raises
        ModelError, and what the SDK raises."""


class StreamedModel:
    """Implements the port `Model` over one upstream. Tries once.

    Reading the iterator to its end, not just to TurnEnded, keeps the connection for the next turn.
    """

    def __init__(self, *, connection: Connection, wire: WireFormat, settings: ModelSettings) -> None:
        self._connection = connection
        self._wire = wire
        self._settings = settings
        self._told = False  # the log knows that counting fails

    async def stream(self, request: ModelRequest) -> AsyncGenerator[list[ModelEvent], None]:
        client = await self._connection.client()
        call = self._wire.start(client, request)
        reader = self._wire.reader(request)
        decoder = SseDecoder(max_line_bytes=self._settings.max_line_bytes)
        timer = Timer(self._settings.first_event_timeout)
        opened = False
        try:
            with timer:
                response = await call.__aenter__()
            opened = True
            allowance = read_allowance(response.headers)
            read = _body(response)
            while not reader.ended:
                progress = reader.progress
                with timer:
                    chunk = await read()
                events = reader.read(decoder.feed(chunk)) if chunk else reader.finish()
                if events:
                    if allowance is not None:
                        events, allowance = [allowance, *events], None
                    yield events
                if reader.progress != progress:
                    # Counted from here: the time that the consumer took is not the model's silence.
                    timer.allow(self._settings.idle_timeout)
            timer.allow(_REST_OF_BODY_SECONDS)
            await _read_rest(read, timer)
        except _failures() as error:
            raise _translate(error, opened=opened) from error
        finally:
            timer.close()
            if opened:
                await call.__aexit__(None, None, None)

    async def count(self, request: ModelRequest) -> int | None:
        if not self._settings.count_tokens:
            return None
        client = await self._connection.client()
        try:
            # A connection takes no longer, and the turn waits for it.
            async with asyncio.timeout(self._settings.connect_timeout):
                return await self._wire.count(client, request)
        except ModelError as error:
            self._cannot_count(error)
        except _failures() as error:
            self._cannot_count(_translate(error, opened=False))
        return None

    def _cannot_count(self, error: ModelError) -> None:
        """Tells the log once: each turn would say the same."""
        if not self._told:
            self._told = True
            kind = type(error).__name__
            _log.warning("model does not count tokens", model=self._settings.name, error=kind, detail=str(error))


def _body(response: "AsyncAPIResponse[Any]") -> Read:
    """Reads what has come, as soon as there is any; nothing at the end. The SDK's own iterator is for what is encoded,
    though nobody asked for that: it cuts what is there into small pieces, and hands each through several generators."""
    if "content-encoding" in response.headers:
        return partial(anext, response.iter_bytes(), b"")
    transported: Any = response.http_response.stream
    content: aiohttp.StreamReader = transported._stream._aiohttp_response.content  # noqa: SLF001
    return partial(content.read, _READ_BYTES)


async def _read_rest(read: Read, timer: Timer) -> None:
    """Reads the end of the body, usually there already: only then the connection can be used again."""
    with suppress(*_failures()), timer:
        while await read():
            pass


def _failures() -> tuple[type[Exception], ...]:
    """What the SDK raises. The errors of what is below it come through while a body is read; all are loaded by now."""
    import aiohttp
    import httpx2
    import openai

    body = aiohttp.ClientError, aiohttp.http_exceptions.HttpProcessingError
    return TimeoutError, openai.OpenAIError, httpx2.HTTPError, *body


def _translate(error: Exception, *, opened: bool) -> ModelError:
    import openai

    cause = _root(error)
    match error:
        case TimeoutError():
            return ModelTimeout("no event in time")
        # The SDK takes every connection that is lost before the answer for a time-out.
        case openai.APITimeoutError() if isinstance(cause, TimeoutError):
            return ModelTimeout("no connection in time")
        case openai.APIStatusError():
            return from_status(error.status_code, error.response.headers, error.body)
    kind = type(cause).__name__
    return ModelProtocolError(f"the stream was cut: {kind}") if opened else ModelUnavailable(f"no answer: {kind}")


def _root(error: BaseException) -> BaseException:
    """What an error was raised because of, and so on. Below a time-out there is only how it broke off what waited."""
    while (cause := error.__cause__) is not None and not isinstance(cause, asyncio.CancelledError):
        error = cause
    return error
