"""The client for threads."""

import time
from types import TracebackType
from typing import Self

import grpc

from famulus.carrying import carrying
from famulus.channels import Options, channel_credentials, channel_options
from famulus.errors import FamulusError
from famulus.following import Following, repeatable
from famulus.retry import Outage, RetryPolicy
from famulus.sync_stream import SyncRunStream
from famulus.tokens import Bearer, Token
from famulus.tools import Toolbox, Tools, refuse_async_tools
from famulus.tracing import traced
from famulus.unary import send_blocking
from famulus.v1.assistant_service_pb2_grpc import AssistantServiceStub
from famulus.v1.run_service_pb2 import CreateRunRequest, WaitRunRequest
from famulus.v1.run_service_pb2_grpc import RunServiceStub
from famulus.v1.thread_service_pb2_grpc import ThreadServiceStub
from famulus.v1.usage_service_pb2_grpc import UsageServiceStub
from famulus.v1.user_data_service_pb2_grpc import UserDataServiceStub
from famulus.view import RunResult

TOOL_TIMEOUT = 60.0  # seconds


class FamulusSyncClient:
    """A channel to famulus, the typed stubs on it, and helpers that follow runs through broken connections.

    Any number of threads may share it. Close it (`with`, or `close`). Calls on the stubs raise `grpc.RpcError`, the
    methods FamulusError. Where Ctrl-C is to be survived, use it outside of the main thread, or leave the process after
    a KeyboardInterrupt: one that comes while grpc takes the channel's lock leaves it taken, and the next call hangs.
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
        returns a good one: it is called, by any thread, before each call. `options` are gRPC's. Raises ValueError for a
        target or a token that cannot be one."""
        arguments = channel_options(target, options)
        bearer = None if token is None else Bearer(token)
        secured = channel_credentials(target, credentials, bearer, in_plaintext=token_in_plaintext)
        if secured is None:
            self._channel = grpc.insecure_channel(target, arguments)
        else:
            self._channel = grpc.secure_channel(target, secured, arguments)
        self._retry = retry or RetryPolicy()
        channel = traced(self._channel)
        if secured is None and bearer is not None:
            channel = carrying(channel, bearer.added_to)
        self.assistants = AssistantServiceStub(channel)
        self.threads = ThreadServiceStub(channel)
        self.runs = RunServiceStub(channel)
        self.usage = UsageServiceStub(channel)
        self.user_data = UserDataServiceStub(channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channel and cancels what is open on it."""
        self._channel.close()

    def stream_run(
        self,
        create: CreateRunRequest,
        *,
        after_sequence: int = 0,
        tools: Tools | None = None,
        tool_timeout: float = TOOL_TIMEOUT,
        cancel_on_exit: bool = False,
    ) -> SyncRunStream:
        """Starts a run and follows it to its end. Raises TypeError for a tool that is a coroutine function.

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
    ) -> SyncRunStream:
        """Follows a run that exists, from after a sequence to its end; otherwise like `stream_run`."""
        following = Following(run_id=run_id, after_sequence=after_sequence, policy=self._retry)
        return self._stream(following, tools, tool_timeout, cancel_on_exit)

    def run_to_end(
        self, create: CreateRunRequest, *, tools: Tools | None = None, tool_timeout: float = TOOL_TIMEOUT
    ) -> RunResult:
        """Starts a run and returns it when it has ended. Without `tools` it also returns in REQUIRES_ACTION."""
        if tools is None:
            created = send_blocking(self.runs.CreateRun, repeatable(create), policy=self._retry)
            return self.wait_run(created.run.id)
        with self.stream_run(create, tools=tools, tool_timeout=tool_timeout) as stream:
            for _ in stream:
                pass
        return stream.view.result()

    def wait_run(self, run_id: str) -> RunResult:
        """Waits until a run has ended or needs action."""
        outage = Outage(self._retry)
        while True:
            try:
                response = self.runs.WaitRun(WaitRunRequest(run_id=run_id), timeout=self._retry.silence)
                return RunResult(response.run, list(response.messages))
            except grpc.RpcError as error:
                delay = outage.delay_of_wait(FamulusError.from_rpc(error))
            time.sleep(delay)

    def _stream(self, following: Following, tools: Tools | None, timeout: float, cancel_on_exit: bool) -> SyncRunStream:
        refuse_async_tools(tools or {})
        return SyncRunStream(
            runs=self.runs,
            following=following,
            policy=self._retry,
            toolbox=None if tools is None else Toolbox(tools, timeout=timeout),
            cancel_on_exit=cancel_on_exit,
        )
