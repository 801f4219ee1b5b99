"""What can be seen of a model's provider, for whoever looks for what is wrong: by the client that turns use."""

import asyncio
import socket
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import msgspec

from famulus_server.models.chat import ChatFormat
from famulus_server.models.connection import Connection
from famulus_server.models.responses import ResponsesFormat
from famulus_server.models.settings import ModelSettings
from famulus_server.models.streamed import StreamedModel, WireFormat
from famulus_server.ports import ModelRequest, TextChunk, TurnOutcome

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_ROUTES = {"responses": "/responses", "chat": "/chat/completions"}
_NO_SUCH_ROUTE = {404, 405, 501}
# A date of HTTP has no fractions.
_SECOND = timedelta(seconds=1)
_QUESTION = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Say OK."}]}
# The fewest that the Responses API allows.
_FEW_TOKENS = 16


class ModelUnreachable(Exception):
    """No HTTP answer came. The text says why, for the operator, and has no secrets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSight:
    """The answer to `GET /models`, and which of the two APIs there are. Times are in seconds."""

    status: int  # of HTTP
    took: float
    offered: frozenset[str] | None  # names of models; None: that is no list of them
    backends: frozenset[str]  # as in the settings; empty also where the provider was not asked for them
    clock_ahead: float | None  # the provider's, of this machine's; None: it told no time


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How a small turn went; the first text came after `first_text` seconds, if any came."""

    text: str
    outcome: TurnOutcome | None
    tokens: int | None
    first_text: float | None


async def inspect_model(settings: ModelSettings) -> ModelSight:
    """What is there; costs no tokens. Raises ModelUnreachable."""
    connection = Connection(settings=settings)
    try:
        client = await connection.client()
        sent, started = datetime.now(UTC), time.perf_counter()
        response = await _send(client, "GET", "/models")
        took = time.perf_counter() - started
        # Who refuses the key refuses everything.
        refused = response.status_code in {401, 403}
        there = [] if refused else [name for name, path in _ROUTES.items() if await _has(client, path)]
    finally:
        await connection.close()
    return ModelSight(
        status=response.status_code,
        took=took,
        offered=_names(response.content) if response.is_success else None,
        backends=frozenset(there),
        clock_ahead=_ahead(response.headers.get("date"), sent, sent + timedelta(seconds=took)),
    )


async def ask_model(settings: ModelSettings) -> Answer:
    """Has the model say two letters, which costs some tokens. Raises ModelError."""
    connection = Connection(settings=settings)
    wire: WireFormat
    wire = ChatFormat(settings=settings) if settings.backend == "chat" else ResponsesFormat(settings=settings)
    model = StreamedModel(connection=connection, wire=wire, settings=settings)
    request = ModelRequest(model=settings.name, instructions="", items=[_QUESTION], max_output_tokens=_FEW_TOKENS)
    text, first_text, ended = "", None, None
    now = asyncio.get_running_loop().time
    try:
        started = now()
        async for events in model.stream(request):
            for event in events:
                if isinstance(event, TextChunk):
                    first_text = first_text or now() - started
                    text += event.text
            ended = events[-1]
    finally:
        await connection.close()
    usage = getattr(ended, "usage", None)
    return Answer(
        text=text,
        outcome=getattr(ended, "outcome", None),
        tokens=usage.total_tokens if usage else None,
        first_text=first_text,
    )


async def _has(client: "AsyncOpenAI", path: str) -> bool:
    """Whether there is such a route: a request that is none is refused there, and costs nothing."""
    return (await _send(client, "POST", path)).status_code not in _NO_SUCH_ROUTE


async def _send(client: "AsyncOpenAI", method: str, path: str) -> Any:
    """The response, whatever its status. Raises ModelUnreachable."""
    import httpx2  # here, because `--help` needs no network
    import openai

    try:
        if method == "GET":
            return await client.get(path, cast_to=httpx2.Response)
        return await client.post(path, body={}, cast_to=httpx2.Response)
    except openai.APIStatusError as error:
        return error.response
    except (openai.OpenAIError, httpx2.HTTPError) as error:
        raise ModelUnreachable(_why(error)) from error


def _why(error: BaseException) -> str:
    """In words, of the innermost cause that there are words for: what is around it may be of the same kind, and know
    less."""
    causes = [error]
    while inner := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(inner)
    for cause in reversed(causes):
        match cause:
            case socket.gaierror():
                return "the name of its host is not known"
            case ssl.SSLCertVerificationError():
                return f"TLS: {cause.verify_message}"
            case ssl.SSLError():
                return f"TLS: {cause.reason or 'the server speaks none'}"
            case ConnectionRefusedError():
                return "nobody listens there"
            case TimeoutError():
                return "no connection in time"
    return f"no answer ({type(causes[-1]).__name__})"


def _names(body: bytes) -> frozenset[str] | None:
    try:
        told = msgspec.json.decode(body)
        return frozenset(str(entry["id"]) for entry in told["data"])
    except (msgspec.MsgspecError, RecursionError, TypeError, KeyError):
        return None


def _ahead(date: str | None, sent: datetime, received: datetime) -> float | None:
    """By how many seconds at least the other clock is ahead, or behind if negative."""
    try:
        told = parsedate_to_datetime(date or "")
    except ValueError:
        return None
    told = told if told.tzinfo else told.replace(tzinfo=UTC)
    if told > received:
        return (told - received).total_seconds()
    return min((told + _SECOND - sent).total_seconds(), 0.0)
