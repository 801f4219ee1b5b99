"""`python -m bench.bare UPSTREAM`: the least that can be done: grpc.aio in front, the SDK's raw bytes behind, nothing
kept, nobody asked who he is.

It serves the methods of the API that the benchmark calls, so that the same client asks it and famulus.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import msgspec
import openai

from famulus.v1.run_event_pb2 import RunEvent, TextDelta
from famulus.v1.run_pb2 import Run
from famulus.v1.run_service_pb2 import GetRunRequest, GetRunResponse, StreamRunRequest, StreamRunResponse
from famulus.v1.run_service_pb2_grpc import RunServiceServicer, add_RunServiceServicer_to_server
from famulus.v1.thread_pb2 import Thread
from famulus.v1.thread_service_pb2 import GetThreadRequest, GetThreadResponse
from famulus.v1.thread_service_pb2_grpc import ThreadServiceServicer, add_ThreadServiceServicer_to_server

_DELTA = "response.output_text.delta"


class _Event(msgspec.Struct):
    type: str
    delta: str = ""


class _Runs(RunServiceServicer):
    def __init__(self, client: openai.AsyncOpenAI) -> None:
        self._client = client
        self._decoder = msgspec.json.Decoder(_Event)

    async def StreamRun(self, request: StreamRunRequest, _: Any) -> AsyncIterator[StreamRunResponse]:  # noqa: N802
        text = request.create.additional_messages[0].content[0].text.text
        call = self._client.responses.with_streaming_response.create(model="bench", input=text, stream=True)
        async with call as response:
            sequence, tail = 0, b""
            async for chunk in response.iter_bytes():
                *whole, tail = (tail + chunk).split(b"\n\n")
                events = []
                for frame in whole:
                    event = self._decoder.decode(frame[frame.index(b"data: ") + 6 :])
                    if event.type == _DELTA:
                        sequence += 1
                        events.append(RunEvent(sequence=sequence, text_delta=TextDelta(text=event.delta)))
                if events:
                    yield StreamRunResponse(events=events)

    async def GetRun(self, request: GetRunRequest, _: Any) -> GetRunResponse:  # noqa: N802
        return GetRunResponse(run=Run(id=request.run_id))


class _Threads(ThreadServiceServicer):
    async def GetThread(self, request: GetThreadRequest, _: Any) -> GetThreadResponse:  # noqa: N802
        return GetThreadResponse(thread=Thread(id=request.thread_id))


async def main(upstream: str) -> None:
    """Serves until it is killed."""
    http = openai.DefaultAsyncHttpxClient(trust_env=False)
    async with openai.AsyncOpenAI(base_url=upstream, api_key="none", max_retries=0, http_client=http) as client:
        server = grpc.aio.server()
        # Methods that nobody calls here are not there.
        add_RunServiceServicer_to_server(_Runs(client), server)  # type: ignore[abstract]
        add_ThreadServiceServicer_to_server(_Threads(), server)  # type: ignore[abstract]
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(f"127.0.0.1:{port}", flush=True)
        await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
