"""Runs one scenario of the conformance suite of all clients, and writes what this client did.

conformance_runner.py TARGET < scenario.json > transcript.jsonl
"""

import asyncio
import json
import sys
from base64 import b64decode, b64encode
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message

from conformance_lines import error_line, event_line, result_line, view_line
from conformance_tools import tools_named
from famulus import FamulusClient, FamulusError, RunResult, RunStream
from famulus.v1.run_service_pb2 import CancelRunRequest, CreateRunRequest

Step = Mapping[str, Any]


class Runner:
    """Does the steps of a scenario with one client."""

    def __init__(self, client: FamulusClient) -> None:
        self._client = client
        self._stubs: Mapping[str, Any] = {
            "famulus.v1.AssistantService": client.assistants,
            "famulus.v1.ThreadService": client.threads,
            "famulus.v1.RunService": client.runs,
            "famulus.v1.UsageService": client.usage,
            "famulus.v1.UserDataService": client.user_data,
        }
        self._step = 0

    async def do(self, index: int, step: Step) -> None:
        """Does one step. What the client raises is written; any other exception is the scenario's fault, or ours."""
        self._step = index
        match step["op"]:
            case "call":
                await self._call(step)
            case "pages":
                await self._pages(step)
            case "stream":
                await self._follow(step, self._client.stream_run(_create(step), **_options(step)))
            case "watch":
                await self._follow(step, self._client.watch_run(step["run_id"], **_options(step)))
            case "run_to_end":
                tools = {key: value for key, value in _options(step).items() if key in {"tools", "tool_timeout"}}
                await self._result(self._client.run_to_end(_create(step), **tools))
            case "wait":
                await self._result(self._client.wait_run(step["run_id"]))
            case other:
                raise ValueError(f"unknown op {other!r}")

    async def _call(self, step: Step) -> None:
        method, request = self._method(step)
        timeout = step["timeout_ms"] / 1_000 if "timeout_ms" in step else None
        try:
            response = await method(request, timeout=timeout)
        except grpc.RpcError as error:
            self._write(error=error_line(FamulusError.from_rpc(error)))
        else:
            self._write(response=b64encode(response.SerializeToString()).decode())

    async def _pages(self, step: Step) -> None:
        method, request = self._method(step)
        while True:
            try:
                response = await method(request)
            except grpc.RpcError as error:
                self._write(error=error_line(FamulusError.from_rpc(error)))
                return
            self._write(page=[item.id for items in _lists(response) for item in items])
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    def _method(self, step: Step) -> tuple[Any, Any]:
        """The stub's method, and the request for it."""
        service, _, name = step["method"].partition("/")
        described = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
        request = message_factory.GetMessageClass(described.input_type).FromString(b64decode(step["request"]))
        return getattr(self._stubs[service], name), request

    async def _follow(self, step: Step, stream: RunStream) -> None:
        leave_after, cancel_after = step.get("leave_after"), step.get("cancel_after")
        end, seen = "finished", 0
        told: dict[str, Any] = {}
        try:
            async with stream:
                while seen != leave_after:
                    try:
                        event = await anext(stream)
                    except StopAsyncIteration:
                        break
                    self._write(event=event_line(event))
                    seen += 1
                    if seen == cancel_after:
                        with suppress(grpc.RpcError):  # too late, say: the stream tells
                            await self._client.runs.CancelRun(CancelRunRequest(run_id=stream.view.run_id))
                else:
                    end = "left"
        except FamulusError as error:
            end, told = "error", {"error": error_line(error)}
        self._write(end=end, **told, last_sequence=stream.last_sequence, view=view_line(stream.view))

    async def _result(self, waiting: Any) -> None:
        try:
            result: RunResult = await waiting
        except FamulusError as error:
            self._write(error=error_line(error))
        else:
            self._write(result=result_line(result))

    def _write(self, **line: Any) -> None:
        sys.stdout.write(json.dumps({"step": self._step, **line}, ensure_ascii=False) + "\n")
        sys.stdout.flush()


def _create(step: Step) -> CreateRunRequest:
    return CreateRunRequest.FromString(b64decode(step["create"]))


def _options(step: Step) -> dict[str, Any]:
    """The arguments of `stream_run` and `watch_run` that a step names."""
    options = {key: step[key] for key in ("after_sequence", "cancel_on_exit") if key in step}
    if "tools" in step:
        options["tools"] = tools_named(step["tools"])
    if "tool_timeout_ms" in step:
        options["tool_timeout"] = step["tool_timeout_ms"] / 1_000
    return options


def _lists(page: Message) -> list[Any]:
    """What a page lists: its repeated fields."""
    return [value for field, value in page.ListFields() if field.is_repeated]


async def run(target: str, scenario: Mapping[str, Any]) -> None:
    """Does all steps, one after the other."""
    token = scenario.get("token")
    credentials = grpc.local_channel_credentials() if token else None
    async with FamulusClient(target, credentials=credentials, token=token) as client:
        runner = Runner(client)
        for index, step in enumerate(scenario["steps"]):
            await runner.do(index, step)


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], json.load(sys.stdin.buffer)))
