"""What the demo shows: runs against a server, checked as they go."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import click
from famulus import FamulusClient, FamulusError, RetryPolicy, RunStream
from famulus.v1.assistant_pb2 import Assistant
from famulus.v1.assistant_service_pb2 import EnsureAssistantRequest
from famulus.v1.message_pb2 import MESSAGE_ROLE_USER, Message, MessagePart, TextPart
from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import RUN_INCOMPLETE_REASON_MAX_COMPLETION_TOKENS, RUN_STATE_COMPLETED, RUN_STATE_INCOMPLETE
from famulus.v1.run_service_pb2 import CreateRunRequest
from famulus.v1.thread_pb2 import Thread
from famulus.v1.thread_service_pb2 import CreateThreadRequest, ListMessagesRequest
from famulus.v1.tool_pb2 import FunctionTool, Tool
from famulus.view import RunView, text_of

from famulus_server.cli.breaking_line import BreakingLine
from famulus_server.cli.transcript import Transcript, state_of

# Greedy, and about things the small model has a short answer to: left to itself it goes on for ever.
_TEMPERATURE = 0.0
_MOST_TOKENS = 200
_FIRST_QUESTION = "Write one sentence about the sea."
_LONG_QUESTION = "Explain in two sentences why the sky is blue."
# The scripted model repeats what it hears, as fast as it can: this takes it many responses.
_LONG_TEXT = " ".join(f"word{number}" for number in range(1, 2_001))
_CUT_AFTER_BYTES = 6_000
_TOOL_QUESTION = "What is the weather, and what is the time?"
_PLACE = json.dumps({"type": "object", "properties": {"city": {"const": "Lisbon"}}, "required": ["city"]})


@dataclass(kw_only=True)
class Findings:
    """What was measured and what was wrong; `to_json` is the demo's last line."""

    model: str
    ready_ms: float
    runs: int = 0
    events: int = 0
    states: list[str] = field(default_factory=list)
    ttfe_ms: float = 0.0
    first_text_ms: float = 0.0
    resumed: bool = False
    cut_after: int = 0
    tool_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    problems: list[str] = field(default_factory=list)

    def check(self, holds: bool, problem: str) -> None:
        """Note a problem unless it holds."""
        if not holds:
            self.problems.append(problem)

    def to_json(self) -> str:
        """One line."""
        return json.dumps({"ok": not self.problems, **vars(self)})


class Demonstration:
    """Shows runs on a server at `address`. `scripted_model` answers where a run must be the same each time."""

    def __init__(self, *, address: str, client: FamulusClient, findings: Findings) -> None:
        self._address = address
        self._client = client
        self._findings = findings
        self._transcript = Transcript(details=True)
        self.thread_id = ""

    async def converse(self) -> None:
        """Create an assistant and a thread, and stream a first run with the time to its first event."""
        assistant_id = await self._assistant(Assistant(name="demo", model=self._findings.model))
        thread = Thread(title="A demonstration", default_assistant_id=assistant_id)
        created = await self._client.threads.CreateThread(CreateThreadRequest(thread=thread))
        self.thread_id = created.thread.id
        click.echo(f"assistant {assistant_id} answers on {self.thread_id}")
        create = self._say(_FIRST_QUESTION)
        first: dict[str, float] = {}
        started = time.perf_counter()

        def clock(event: RunEvent) -> None:
            passed = round((time.perf_counter() - started) * 1_000, 1)
            first.setdefault("event", passed)
            if event.HasField("text_delta"):
                first.setdefault("text", passed)

        async with self._client.stream_run(create, cancel_on_exit=True) as stream:
            sequences = await self._show(stream, clock)
        self._findings.ttfe_ms, self._findings.first_text_ms = first.get("event", 0.0), first.get("text", 0.0)
        await self._conclude(stream.view, sequences)
        self._transcript.remark(f"first event after {self._findings.ttfe_ms} ms, text {self._findings.first_text_ms} ms")

    async def cut_and_resume(self, *, scripted: bool) -> None:
        """Stream another run on the thread over a line that breaks half way, and go on with what is missing."""
        create = self._say(_LONG_TEXT if scripted else _LONG_QUESTION)
        create.request_id = f"demo-cut-{time.time_ns()}"
        async with BreakingLine(target=self._address, after_bytes=_CUT_AFTER_BYTES) as line:
            # It would resume by itself; here, the moment of the break is to be seen.
            async with FamulusClient(line.address, retry=RetryPolicy(give_up_after=0)) as client:
                first = client.stream_run(create)
                before: list[int] = []
                try:
                    async with first:
                        await self._show(first, into=before)
                except FamulusError as error:
                    self._transcript.remark(f"the connection broke after event {first.last_sequence}: {error.code.name}")
            broken = line.broken
        cut_after = first.last_sequence
        # The same call again, with the last sequence seen: the same run, from there on.
        async with self._client.stream_run(create, after_sequence=cut_after, cancel_on_exit=True) as second:
            self._transcript.remark("the same call again goes on with what is missing")
            after = await self._show(second)
        findings = self._findings
        findings.cut_after = cut_after
        findings.resumed = broken and bool(before) and bool(after) and after[0] == cut_after + 1
        findings.check(findings.resumed, "the cut stream was not resumed")
        await self._conclude(second.view, before + after)

    async def call_tools(self, model: str) -> None:
        """Stream a run of the scripted model whose function calls are answered by functions of this process."""
        called: list[str] = []
        tools: Mapping[str, Callable[..., str]] = {
            "get_weather": lambda city: called.append("get_weather") or f"sunny in {city}",
            "get_time": lambda city: called.append("get_time") or f"noon in {city}",
        }
        assistant_id = await self._assistant(
            Assistant(
                name="demo with tools",
                model=model,
                tools=[Tool(function=FunctionTool(name=name, parameters_json=_PLACE)) for name in tools],
            )
        )
        click.echo(f"assistant {assistant_id} has the functions {' and '.join(tools)}")
        create = self._say(_TOOL_QUESTION)
        create.assistant_id = assistant_id
        async with self._client.stream_run(create, tools=tools, cancel_on_exit=True) as stream:
            sequences = await self._show(stream)
        self._findings.tool_calls = len(called)
        self._findings.check(sorted(called) == sorted(tools), f"the functions called were {called}")
        told = all(output in stream.view.text for output in ("sunny in Lisbon", "noon in Lisbon"))
        self._findings.check(told, "the answer does not quote what the functions returned")
        await self._conclude(stream.view, sequences)

    async def _assistant(self, assistant: Assistant) -> str:
        assistant.temperature = _TEMPERATURE
        assistant.instructions = "You are a helpful assistant."
        answer = await self._client.assistants.EnsureAssistant(EnsureAssistantRequest(assistant=assistant))
        return answer.assistant.id

    def _say(self, text: str) -> CreateRunRequest:
        click.echo(f"\n> {text if len(text) < len(_LONG_TEXT) else text[:40] + ' ...'}")
        message = Message(role=MESSAGE_ROLE_USER, content=[MessagePart(text=TextPart(text=text))])
        create = CreateRunRequest(thread_id=self.thread_id, additional_messages=[message])
        if text != _LONG_TEXT:
            create.max_completion_tokens = _MOST_TOKENS
        return create
