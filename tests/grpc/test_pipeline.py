"""The layers around every call, on a real socket, with a servicer that does what a test asks for."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
import structlog
from google.protobuf.message import Message
from google.rpc import error_details_pb2

from famulus.v1 import error_reason_pb2 as reasons
from famulus.v1.run_service_pb2 import GetRunRequest, GetRunResponse, WatchRunRequest, WatchRunResponse
from famulus.v1.run_service_pb2_grpc import RunServiceServicer, RunServiceStub, add_RunServiceServicer_to_server
from famulus_server.api.access_log import AccessLog
from famulus_server.api.callers import OneCaller
from famulus_server.api.calls import Caller, current_call, current_tenant
from famulus_server.api.deadlines import Deadlines
from famulus_server.api.draining import Admission, Drain
from famulus_server.api.errors import Errors
from famulus_server.api.pipeline import Pipeline
from famulus_server.engine.clock import SystemClock, TimeOrderedIds
from famulus_server.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    FamulusError,
    InvalidArgument,
    NotFound,
    OutOfRange,
    Unavailable,
    Violation,
)
from serving import Refusal, refusal

Answer = Callable[[], Awaitable[None]]
GET_RUN = "/famulus.v1.RunService/GetRun"


class Actor(RunServiceServicer):
    """Does what the test sets; the second kind of method yields one response before."""

    def __init__(self) -> None:
        self.act: Answer = self.nothing
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def nothing(self) -> None:
        """Succeeds."""

    async def GetRun(self, request: GetRunRequest, _: object) -> GetRunResponse:  # noqa: N802
        try:
            await self.act()
        finally:
            self.ended.set_result(current_tenant())
        return GetRunResponse()

    async def WatchRun(self, request: WatchRunRequest, _: object) -> AsyncIterator[WatchRunResponse]:  # noqa: N802
        try:
            yield WatchRunResponse()
            current_call().error_facts["last_sequence"] = "7"
            await self.act()
        finally:
            self.ended.set_result(current_tenant())


class Stage:
    """The server, what it serves, and a client of it."""

    def __init__(self, actor: Actor, drain: Drain, channel: grpc.aio.Channel) -> None:
        self.actor = actor
        self.drain = drain
        self.channel = channel
        self.stub: Any = RunServiceStub(channel)

    def act(self, error: BaseException) -> None:
        """The servicer raises from now on."""

        async def fail() -> None:
            raise error

        self.actor.act = fail

    async def refused(self, **options: Any) -> Refusal:
        """How a unary call fails."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.stub.GetRun(GetRunRequest(run_id="r"), **options)
        return refusal(caught.value)

    async def refused_bytes(self, data: bytes, method: str = GET_RUN) -> Refusal:
        """How a call fails whose request is these bytes."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.channel.unary_unary(method)(data)  # type: ignore[arg-type]
        return refusal(caught.value)


class Lines:
    """What is logged from now on. A line may come after the answer to its call, so it is awaited."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[structlog.typing.EventDict] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def __call__(self, _: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        self._loop.call_soon_threadsafe(self._queue.put_nowait, dict(event))
        raise structlog.DropEvent

    async def next(self, event: str) -> structlog.typing.EventDict:
        """The next line of this kind."""
        async with asyncio.timeout(5):
            while (line := await self._queue.get())["event"] != event:
                pass
        return line


@pytest.fixture
async def lines() -> AsyncIterator[Lines]:
    lines, before = Lines(), structlog.get_config()["processors"]
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, lines])
    yield lines
    structlog.configure(processors=before)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    ids = TimeOrderedIds(clock=SystemClock())
    drain, actor = Drain(), Actor()  # type: ignore[abstract]
    layers = (
        AccessLog(ids=ids),
        Errors(ids=ids),
        Deadlines(unary_seconds=0.2, patient=()),
        OneCaller(Caller(tenant="acme")),
        Admission(drain=drain, methods=[GET_RUN]),
    )
    server = grpc.aio.server(interceptors=[Pipeline(layers)], options=[("grpc.so_reuseport", 0)])
    add_RunServiceServicer_to_server(actor, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Stage(actor, drain, channel)
    await server.stop(None)


TABLE: list[tuple[FamulusError, grpc.StatusCode, list[str]]] = [
    (InvalidArgument.fields([Violation("a.b", "is wrong")]), grpc.StatusCode.INVALID_ARGUMENT, ["BadRequest"]),
    (NotFound("run", "r"), grpc.StatusCode.NOT_FOUND, ["ResourceInfo"]),
    (AlreadyExists(reasons.ERROR_REASON_REQUEST_ID_REUSED, "m"), grpc.StatusCode.ALREADY_EXISTS, []),
    (FailedPrecondition(reasons.ERROR_REASON_RUN_EXPIRED, "m"), grpc.StatusCode.FAILED_PRECONDITION, []),
    (Aborted(reasons.ERROR_REASON_ETAG_MISMATCH, "m"), grpc.StatusCode.ABORTED, []),
    (OutOfRange(reasons.ERROR_REASON_SEQUENCE_OUT_OF_RANGE, "m"), grpc.StatusCode.OUT_OF_RANGE, []),
    (
        Unavailable(reasons.ERROR_REASON_STORE_UNAVAILABLE, "m", retry_after=1.5, metadata={"k": "v"}),
        grpc.StatusCode.UNAVAILABLE,
        ["RetryInfo"],
    ),
]


@pytest.mark.parametrize(("error", "code", "details"), TABLE, ids=lambda value: type(value).__name__)
async def test_error_comes_with_its_code_and_details(
    stage: Stage, error: FamulusError, code: grpc.StatusCode, details: list[str]
) -> None:
    stage.act(error)
    told = await stage.refused()
    assert told.code == code
    assert told.message == error.message
    assert f"ERROR_REASON_{told.reason}" == reasons.ErrorReason.Name(error.reason)
    assert told.metadata == error.metadata
    assert list(told.details) == ["ErrorInfo", *details]


async def test_retry_info_has_the_delay(stage: Stage) -> None:
    stage.act(Unavailable(reasons.ERROR_REASON_SERVER_OVERLOADED, "m", retry_after=1.5))
    retry: Any = (await stage.refused()).details["RetryInfo"]
    assert (retry.retry_delay.seconds, retry.retry_delay.nanos) == (1, 500_000_000)


async def test_unforeseen_exception_shows_nothing_but_a_reference_that_the_log_has_too(
    stage: Stage, lines: Lines
) -> None:
    stage.act(RuntimeError("password=hunter2"))
    told = await stage.refused()
    assert (told.code, told.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert b"hunter2" not in told.raw + told.message.encode()
    failed = await lines.next("call failed")
    assert failed["reference"] == told.metadata["reference"]
    assert failed["exc_info"]
    assert failed["request_id"] == (await lines.next("call"))["request_id"]


async def test_error_in_the_middle_of_a_stream_tells_the_last_sequence(stage: Stage) -> None:
    stage.act(RuntimeError("boom"))
    stream = stage.stub.WatchRun(WatchRunRequest())
    assert await stream.read() == WatchRunResponse()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    told = refusal(caught.value)
    assert told.code == grpc.StatusCode.INTERNAL
    assert told.metadata["last_sequence"] == "7"


async def test_many_violations_still_fit_into_the_trailers(stage: Stage) -> None:
    stage.act(InvalidArgument.fields([Violation(f"{'f' * 400}[{index}]", "d" * 100) for index in range(500)]))
    told = await stage.refused()
    assert told.code == grpc.StatusCode.INVALID_ARGUMENT
    assert 1 <= len(told.fields) < 500


async def test_request_id_of_the_caller_comes_back_and_stands_in_the_log(stage: Stage, lines: Lines) -> None:
    call = stage.stub.GetRun(GetRunRequest(), metadata=(("x-request-id", "mine-1"),))
    await call
    assert (await call.trailing_metadata())["x-request-id"] == "mine-1"
    line = await lines.next("call")
    assert (line["method"], line["code"], line["tenant"], line["request_id"]) == (GET_RUN, "OK", "acme", "mine-1")
    assert line["milliseconds"] >= 0


async def test_request_id_comes_back_with_a_refusal_too(stage: Stage, lines: Lines) -> None:
    stage.act(NotFound("run", "r"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stage.stub.GetRun(GetRunRequest(), metadata=(("x-request-id", "mine-2"),))
    assert (caught.value.trailing_metadata() or {})["x-request-id"] == "mine-2"
    line = await lines.next("call")
    assert (line["code"], line["request_id"]) == ("NOT_FOUND", "mine-2")


@pytest.mark.parametrize("bad", ["", "two words", "x" * 129])
async def test_request_id_that_could_confuse_a_log_is_replaced(stage: Stage, bad: str) -> None:
    call = stage.stub.GetRun(GetRunRequest(), metadata=(("x-request-id", bad),))
    await call
    assert str((await call.trailing_metadata())["x-request-id"]).startswith("req_")


@pytest.mark.parametrize(
    "data",
    [b"\x0a\x05ab", b"\x0a\x02\xff\xfe", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"\x0b" * 200],
    ids=["truncated", "not UTF-8", "endless varint", "groups 200 deep"],
)
async def test_bytes_that_are_no_message_are_the_callers_fault(stage: Stage, data: bytes) -> None:
    told = await stage.refused_bytes(data)
    assert (told.code, told.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")


async def test_nul_is_refused_in_a_unary_and_in_a_streaming_call(stage: Stage) -> None:
    request: Message = GetRunRequest(run_id="a\0b")
    assert (await stage.refused_bytes(request.SerializeToString())).fields == ["run_id"]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stage.stub.WatchRun(WatchRunRequest(run_id="\0")).read()
    assert refusal(caught.value).fields == ["run_id"]


async def test_unknown_method_is_unimplemented(stage: Stage) -> None:
    told = await stage.refused_bytes(b"", "/famulus.v1.RunService/Nonsense")
    assert told.code == grpc.StatusCode.UNIMPLEMENTED


async def test_unary_call_that_takes_too_long_is_ended_and_logged_so(stage: Stage, lines: Lines) -> None:
    stage.actor.act = asyncio.Event().wait  # type: ignore[assignment]
    assert (await stage.refused()).code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert await stage.actor.ended == "acme"
    assert (await lines.next("call"))["code"] == "DEADLINE_EXCEEDED"


async def test_cancelled_call_ends_its_servicer_and_is_logged_as_cancelled(stage: Stage, lines: Lines) -> None:
    stage.actor.act = asyncio.Event().wait  # type: ignore[assignment]
    stream = stage.stub.WatchRun(WatchRunRequest())
    await stream.read()
    stream.cancel()
    assert await stage.actor.ended == "acme"
    assert (await lines.next("call"))["code"] == "CANCELLED"


async def test_draining_refuses_the_methods_that_start_work(stage: Stage) -> None:
    stage.drain.start()
    told = await stage.refused()
    assert (told.code, told.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_DRAINING")
    assert isinstance(told.details["RetryInfo"], error_details_pb2.RetryInfo)


async def test_draining_interrupts_a_stream_that_waits(stage: Stage) -> None:
    async def wait() -> None:
        async with stage.drain.interrupting():
            await asyncio.Event().wait()

    stage.actor.act = wait
    stream = stage.stub.WatchRun(WatchRunRequest())
    await stream.read()
    reading = asyncio.create_task(stream.read())
    stage.drain.start()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await reading
    told = refusal(caught.value)
    assert (told.code, told.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_DRAINING")
    assert told.metadata == {"last_sequence": "7"}
