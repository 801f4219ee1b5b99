"""The client for asyncio."""

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING, Self

import grpc

from famulus.channels import Options, channel_credentials, channel_options
from famulus.errors import FamulusError
from famulus.following import Following, repeatable
from famulus.retry import Outage, RetryPolicy
from famulus.stream import RunStream
from famulus.tokens import Bearer, Token, in_plaintext
from famulus.tools import Toolbox, Tools
from famulus.tracing import traced
from famulus.unary import send
from famulus.v1.assistant_service_pb2_grpc import AssistantServiceStub
from famulus.v1.run_service_pb2 import CreateRunRequest, WaitRunRequest
from famulus.v1.run_service_pb2_grpc import RunServiceStub
from famulus.v1.thread_service_pb2_grpc import ThreadServiceStub
from famulus.v1.usage_service_pb2_grpc import UsageServiceStub
from famulus.v1.user_data_service_pb2_grpc import UserDataServiceStub
from famulus.view import RunResult

if TYPE_CHECKING:
    from famulus.v1.assistant_service_pb2_grpc import AssistantServiceAsyncStub
    from famulus.v1.run_service_pb2_grpc import RunServiceAsyncStub
    from famulus.v1.thread_service_pb2_grpc import ThreadServiceAsyncStub
    from famulus.v1.usage_service_pb2_grpc import UsageServiceAsyncStub
    from famulus.v1.user_data_service_pb2_grpc import UserDataServiceAsyncStub

TOOL_TIMEOUT = 60.0  # seconds


class FamulusClient:
    """A channel to famulus, the typed stubs on it, and helpers that follow runs through broken connections.

    Make it in the event loop that uses it, and close it (`async with`, or `close`). Calls on the stubs raise
    `grpc.RpcError`, the methods FamulusError.
    """

    def __init__(
        self,
        target: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        token: Token | None = None,
        token_in_plaintext: bool = False,
        options: Options = (),
        retry: RetryPolicy | None = None,
    ) -> None:
        """`target` is `host:port`, or any gRPC name such as `dns:///famulus:8443`. Without `credentials` the channel is
        not encrypted. `token` goes with every call as a bearer token; it needs `credentials`, unless the target is a
        loopback address or `token_in_plaintext` allows it, as where a mesh encrypts. Where tokens run out, pass what
        returns a good one: it is called, in a thread, before each call. `options` are gRPC's. Raises ValueError for a
        target or a token that cannot be one."""
        arguments = channel_options(target, options)
        bearer = None if token is None else Bearer(token)
        secured = channel_credentials(target, credentials, bearer, in_plaintext=token_in_plaintext)
        if secured is None:
            self._channel = grpc.aio.insecure_channel(target, arguments, interceptors=in_plaintext(bearer))
        else:
            self._channel = grpc.aio.secure_channel(target, secured, arguments)
        self._retry = retry or RetryPolicy()
        channel = traced(self._channel)
        self.assistants: AssistantServiceAsyncStub = AssistantServiceStub(channel)
        self.threads: ThreadServiceAsyncStub = ThreadServiceStub(channel)
        self.runs: RunServiceAsyncStub = RunServiceStub(channel)
        self.usage: UsageServiceAsyncStub = UsageServiceStub(channel)
        self.user_data: UserDataServiceAsyncStub = UserDataServiceStub(channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the channel and cancels what is open on it."""
        await self._channel.close()

    def stream_run(
        self,
        create: CreateRunRequest,
        *,
        after_sequence: int = 0,
        tools: Tools | None = None,
        tool_timeout: float = TOOL_TIMEOUT,
        cancel_on_exit: bool = False,
    ) -> RunStream:
        """Starts a run and follows it to its end.

        With a `request_id` in `create`, the same call joins the run that an earlier one started; without one, each call
        starts a run. `tools` answers the run's function calls: callables by name, each with at most `tool_timeout`
        seconds. Leaving the stream early does not stop the run, unless `cancel_on_exit` says so.
        """
        following = Following(create=create, after_sequence=after_sequence, policy=self._retry)
        return self._stream(following, tools, tool_timeout, cancel_on_exit)

    def watch_run(
        self,
        run_id: str,
        *,
        after_sequence: int = 0,
        tools: Tools | None = None,
        tool_timeout: float = TOOL_TIMEOUT,
        cancel_on_exit: bool = False,
    ) -> RunStream:
        """Follows a run that exists, from after a sequence to its end; otherwise like `stream_run`."""
        following = Following(run_id=run_id, after_sequence=after_sequence, policy=self._retry)
        return self._stream(following, tools, tool_timeout, cancel_on_exit)

    async def run_to_end(
        self, create: CreateRunRequest, *, tools: Tools | None = None, tool_timeout: float = TOOL_TIMEOUT
    ) -> RunResult:
        """Starts a run and returns it when it has ended. Without `tools` it also returns in REQUIRES_ACTION."""
        if tools is None:
            created = await send(self.runs.CreateRun, repeatable(create), policy=self._retry)
            return await self.wait_run(created.run.id)
        async with self.stream_run(create, tools=tools, tool_timeout=tool_timeout) as stream:
            async for _ in stream:
                pass
        return stream.view.result()

    async def wait_run(self, run_id: str) -> RunResult:
        """Waits until a run has ended or needs action. Cancelling the wait does not stop the run."""
        outage = Outage(self._retry)
        while True:
            try:
                response = await self.runs.WaitRun(WaitRunRequest(run_id=run_id), timeout=self._retry.silence)
                return RunResult(response.run, list(response.messages))
            except grpc.RpcError as error:
                delay = outage.delay_of_wait(FamulusError.from_rpc(error))
            await asyncio.sleep(delay)

    def _stream(self, following: Following, tools: Tools | None, timeout: float, cancel_on_exit: bool) -> RunStream:
        return RunStream(
            runs=self.runs,
            following=following,
            policy=self._retry,
            toolbox=None if tools is None else Toolbox(tools, timeout=timeout),
            cancel_on_exit=cancel_on_exit,
        )
