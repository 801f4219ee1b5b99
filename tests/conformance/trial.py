"""One scenario with one runner, from what must be there before to the verdict."""

import asyncio
import json
import os
import signal
import tempfile
import uuid
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import grpc
from google.protobuf import json_format

from clients.python.cutting_proxy import CuttingProxy
from conformance import transcript
from conformance.proxy import EventProxy
from conformance.scenario import Line, Scenario, ScenarioFile, expanded, runner_scenario
from conformance.world import Site, World
from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_service_pb2 import GetRunRequest, WatchRunRequest
from famulus.v1.run_service_pb2_grpc import RunServiceStub
from famulus.v1.thread_service_pb2 import ListMessagesRequest, ListOrder
from famulus.v1.thread_service_pb2_grpc import ThreadServiceStub
from validator import validate_final, validate_stream

RUNNER_SECONDS = 40.0

# What every scenario finds: an assistant without tools, and one with those of the runners and one that they lack.
_TOOLS = ("echo", "add", "tell", "refuse", "slow", "large", "missing")
_STANDARD: Mapping[str, dict[str, Any]] = {
    "assistant": {"model": "scripted"},
    "toolsmith": {
        "model": "scripted",
        "tools": [{"function": {"name": name, "parameters_json": '{"type":"object"}'}} for name in _TOOLS],
    },
}


class Broken(Exception):
    """The runner itself failed."""


@dataclass(frozen=True)
class Outcome:
    """The transcript of a runner, made comparable, and what is wrong with it apart from that."""

    lines: Sequence[Line]
    wrong: Sequence[str]


async def perform(world: World, runner: Path, file: ScenarioFile) -> Outcome:
    """Runs a scenario. Raises Broken where the runner does not do its part."""
    async with world.site(file.scenario.server) as site:
        trial = _Trial(world, site, file)
        await trial.prepare()
        return await trial.run(runner)


class _Trial:
    def __init__(self, world: World, site: Site, file: ScenarioFile) -> None:
        self._world = world
        self._site = site
        self._file = file
        self._scenario: Scenario = file.scenario
        # `$scenario` is another text each time: for request ids, and owners of what is listed.
        self._names = {**site.names, "scenario": uuid.uuid4().hex}
        self._awaited = [dict(act) for act in file.scenario.meanwhile]
        self._acting: list[asyncio.Task[None]] = []

    async def prepare(self) -> None:
        """Makes what the scenario needs."""
        self._world.upstream.replace(self._scenario.script)
        ensure = "famulus.v1.AssistantService/EnsureAssistant"
        for name, fields in _STANDARD.items():
            response = json_format.MessageToDict(await self._site.call(ensure, {"assistant": fields}))
            self._names[name] = response["assistant"]["id"]
        for act in self._scenario.given:
            await self._act(act)

    async def run(self, runner: Path) -> Outcome:
        """Starts the runner and judges what it wrote."""
        told = runner_scenario(self._file.name, self._scenario, self._names)
        async with self._proxy() as (address, proxy):
            output = await _run(runner, address, told)
        for act in self._acting:
            await act
        lines = transcript.read(output)
        wrong = [f"never happened: {act}" for act in self._awaited]
        if self._scenario.cut and not proxy.cuts:
            wrong.append("no connection was cut")
        if self._scenario.compare != "everything":
            wrong += transcript.check_order(lines)
            wrong += await self._compare_with_log(lines)
        # Names that were learned on the way are not the scenario's.
        return Outcome(transcript.comparable(lines, self._scenario, self._names), wrong)

    @asynccontextmanager
    async def _proxy(self) -> AsyncIterator[tuple[str, EventProxy | CuttingProxy]]:
        proxy: EventProxy | CuttingProxy
        if isinstance(self._scenario.cut, list):
            proxy = CuttingProxy(self._site.addresses[0], self._scenario.cut)
        else:
            cutting = self._scenario.cut == "each event"
            proxy = EventProxy(self._site.addresses, passed=self._passed, cutting=cutting)
        async with proxy.listening() as address:
            yield address, proxy

    def _passed(self, event: RunEvent) -> None:
        """An event is on its way to the runner."""
        kind = event.WhichOneof("event") or ""
        if kind == "run_state_changed":
            self._names["streamed_run"] = event.run_state_changed.run.id
            self._names["streamed_thread"] = event.run_state_changed.run.thread_id
        for number, call in enumerate(event.tool_calls_requested.tool_calls, 1):
            self._names[f"call_{number}"] = call.id
        for act in list(self._awaited):
            if act["after"] == kind:
                act["count"] = act.get("count", 1) - 1
                if not act["count"]:
                    self._awaited.remove(act)
                    self._acting.append(asyncio.create_task(self._act(act)))

    async def _act(self, act: Mapping[str, Any]) -> None:
        match act["do"]:
            case "call":
                fields = expanded(act.get("request", {}), self._names)
                token = expanded(act.get("token", ""), self._names)
                response = await self._site.call(act["method"], fields, token=token)
                found = json_format.MessageToDict(response, preserving_proto_field_name=True)
                for name, path in act.get("take", {}).items():
                    self._names[name] = _at(found, path)
            case "watch":
                await self._log(expanded(act["run_id"], self._names))
            case "until":
                await self._until(expanded(act["run_id"], self._names), act["kind"], act["count"])
            case "release":
                self._world.upstream.requests[-1].released.set()
            case "flush":
                await self._site.flush()
            case "restart":
                await self._world.restart(self._scenario.server)
            case "kill":
                self._site.kill_executor(self._world.upstream)
            case other:
                raise ValueError(f"unknown act {other!r}")

    async def _log(self, run_id: str) -> list[RunEvent]:
        """All events of a run, to its end, as a plain watcher sees them."""
        async with self._channel() as channel:
            call = RunServiceStub(channel).WatchRun(WatchRunRequest(run_id=run_id))
            return [event async for response in call for event in response.events]

    async def _until(self, run_id: str, kind: str, count: int) -> None:
        """Returns once a run told so many events of a kind."""
        async with self._channel() as channel:
            call = RunServiceStub(channel).WatchRun(WatchRunRequest(run_id=run_id))
            async for response in call:
                count -= sum(event.WhichOneof("event") == kind for event in response.events)
                if count <= 0:
                    break
            call.cancel()

    def _channel(self) -> grpc.aio.Channel:
        # The first replicas may be dead.
        return grpc.aio.insecure_channel(f"ipv4:{','.join(self._site.addresses)}")

    async def _compare_with_log(self, lines: Sequence[Line]) -> list[str]:
        """What the events of the run break of the contract, whoever tells them."""
        run_id = self._names["streamed_run"]
        events = await self._log(run_id)
        async with self._channel() as channel:
            run = (await RunServiceStub(channel).GetRun(GetRunRequest(run_id=run_id))).run
            listed = ListMessagesRequest(thread_id=run.thread_id, run_id=run_id, order=ListOrder.LIST_ORDER_ASCENDING)
            messages = (await ThreadServiceStub(channel).ListMessages(listed)).messages
        try:
            validate_stream(events)
            validate_final(events, run, list(messages))
        except AssertionError as error:
            return [f"the service's own log: {error}"]
        told = {event.sequence: event.WhichOneof("event") for event in events}
        shown = [line["event"] for line in lines if "event" in line]
        # What a takeover discards is not in the log any more.
        return [
            f"event {event['sequence']} is {event['kind']}, in the log {told[event['sequence']]}"
            for event in shown
            if event["sequence"] in told and event["kind"] not in (told[event["sequence"]], "snapshot")
        ]


async def _run(runner: Path, address: str, scenario: Line) -> bytes:
    """What a runner writes. Raises Broken."""
    # Files, so that what was written before a time-out is not lost.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as complaints:
        process = await asyncio.create_subprocess_exec(
            runner, address, stdin=PIPE, stdout=output, stderr=complaints, start_new_session=True
        )
        problem = ""
        try:
            async with asyncio.timeout(RUNNER_SECONDS):
                await process.communicate(json.dumps(scenario).encode())
        except TimeoutError:
            problem = f"it did not end within {RUNNER_SECONDS:g} seconds"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        if process.returncode:
            said = "\n".join(_tail(file) for file in (output, complaints))
            raise Broken(f"{problem or f'exit code {process.returncode}'}; it said at last:\n{said}")
        output.seek(0)
        return output.read()


def _tail(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read()[-2_000:].decode(errors="replace")


async def is_usable(runner: Path) -> str:
    """Why a runner cannot be started here; empty where it can."""
    try:
        # It has nothing to do, hence needs no server.
        await _run(runner, "127.0.0.1:1", {"name": "nothing", "steps": []})
    except (Broken, OSError) as error:
        return str(error)
    return ""


def _at(found: Any, path: str) -> str:
    """`run.id` of a response."""
    for key in path.split("."):
        found = found[int(key)] if isinstance(found, list) else found[key]
    return str(found)
