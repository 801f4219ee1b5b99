"""A server that is sent what nobody should send."""

from dataclasses import dataclass

import grpc
from google.protobuf.message import Message

from famulus.v1.run_pb2 import RunErrorCode, RunState
from famulus.v1.run_service_pb2 import ListRunsRequest
from hostile.rpcs import Rpc, send
from hostile.seeds import Seeds
from serving import Refusal, Stubs


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and what there is on it."""

    channel: grpc.Channel
    stubs: Stubs
    seeds: Seeds

    @property
    def assistant_id(self) -> str:
        """An assistant with a function."""
        return self.seeds.ids[0]

    def send(self, rpc: Rpc, request: bytes | Message) -> list[bytes] | Refusal:
        """See `hostile.rpcs.send`."""
        return send(self.channel, rpc, request if isinstance(request, bytes) else request.SerializeToString())

    def check_health(self) -> None:
        """The server works as ever, and no run failed through a fault of ours."""
        thread = self.stubs.new_thread(title="healthy")
        assert thread.title == "healthy"
        request = ListRunsRequest(states=[RunState.RUN_STATE_FAILED], page_size=100)
        while True:
            page = self.stubs.runs.ListRuns(request)
            codes = {run.error.code for run in page.runs}
            assert RunErrorCode.RUN_ERROR_CODE_SERVER_ERROR not in codes, page.runs
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token
