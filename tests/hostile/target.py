"""A server that is sent what nobody should send."""

from dataclasses import dataclass

import grpc
from google.protobuf.message import Message

from famulus.v1.run_pb2 import RunErrorCode, RunState
from famulus.v1.run_service_pb2 import ListRunsRequest
from hostile.rpcs import RPCS, Rpc, send
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

    def check_seeds(self) -> None:
        """The requests to begin with are accepted, or refused as late as they are meant to be: else those that are made
        of them would not get far."""
        refused = {}
        for rpc in RPCS:
            answer = self.send(rpc, self.seeds.of(rpc)) if rpc.name in self.seeds.requests else []
            if isinstance(answer, Refusal):
                refused[rpc.name] = answer.reason
        assert refused == {
            "DeleteAssistant": "RESOURCE_NOT_FOUND",
            "DeleteThread": "RESOURCE_NOT_FOUND",
            "DeleteMessage": "RESOURCE_NOT_FOUND",
            "SubmitToolOutputs": "UNKNOWN_TOOL_CALL",
            "GetDeletionReceipt": "RESOURCE_NOT_FOUND",
        }

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
