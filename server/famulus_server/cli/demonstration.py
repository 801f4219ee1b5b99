"""What the demo shows: three runs on one thread, checked as they go."""

from __future__ import annotations

import json
import textwrap
import uuid
from collections.abc import Callable, Sequence

import click

from famulus import FamulusClient, FamulusError, RetryPolicy, RunStream
from famulus.v1.assistant_pb2 import Assistant
from famulus.v1.assistant_service_pb2 import EnsureAssistantRequest
from famulus.v1.message_pb2 import MESSAGE_ROLE_USER, Message, MessagePart, TextPart
from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_service_pb2 import CreateRunRequest
from famulus.v1.thread_pb2 import Thread
from famulus.v1.thread_service_pb2 import LIST_ORDER_ASCENDING, CreateThreadRequest, ListMessagesRequest
from famulus.v1.tool_pb2 import FunctionTool, Tool
from famulus.view import text_of
from famulus_server.cli.breaking_line import BreakingLine
from famulus_server.cli.findings import Findings
from famulus_server.cli.transcript import Transcript

# The small model has short answers to these, as long as it is greedy.
_QUESTION = "Write one sentence about the sea."
_LONGER_QUESTION = "Explain in two sentences why the sky is blue."
_TEMPERATURE = 0.0
_MOST_TOKENS = 1_000
# The scripted model repeats it, as fast as it can.
_LONG_TEXT = " ".join(f"word{number}" for number in range(1, 801))
_CUT_AFTER_BYTES = 3_500
_TOOL_QUESTION = "What is the weather, and what is the time?"
_CITY = json.dumps({"type": "object", "properties": {"city": {"const": "Lisbon"}}, "required": ["city"]})


class Demonstration:
    """Shows runs of the server at `address`, with `client` and, for the one that is cut, a client of its own."""

    def __init__(self, *, address: str, client: FamulusClient, findings: Findings) -> None:
        self._address = address
        self._client = client
        self._findings = findings
        self._transcript = Transcript(details=True)
        self.thread_id = ""

    async def converse(self) -> None:
        """Create an assistant and a thread, and stream a run."""
        assistant_id = await self._assistant(Assistant(name="demo", model=self._findings.model))
        thread = Thread(title="Demo", default_assistant_id=assistant_id)
        self.thread_id = (await self._client.threads.CreateThread(CreateThreadRequest(thread=thread))).thread.id
        click.echo(f"assistant {assistant_id}\nthread    {self.thread_id}")
        create = self._say(_QUESTION)
        seen: list[RunEvent] = []
        self._findings.start_clock()
        async with self._client.stream_run(create, cancel_on_exit=True) as stream:
            await self._show(stream, seen)
        await self._conclude(stream, seen)
        times = f"first event after {self._findings.ttfe_ms} ms, first text after {self._findings.first_text_ms} ms"
        self._transcript.remark(times)

    async def cut_and_resume(self, *, scripted: bool) -> None:
        """Stream a run over a connection that breaks half way, and resume it."""
        create = self._say(_LONG_TEXT if scripted else _LONGER_QUESTION)
        create.request_id = str(uuid.uuid4())
        seen: list[RunEvent] = []
        async with (
            BreakingLine(target=self._address, after_bytes=_CUT_AFTER_BYTES) as line,
            # A client resumes by itself, unseen; this one gives up at once.
            FamulusClient(line.address, retry=RetryPolicy(give_up_after=0)) as client,
        ):
            try:
                async with client.stream_run(create) as stream:
                    await self._show(stream, seen, arrived=line.note_arrival)
            except FamulusError as error:
                self._transcript.remark(f"the connection broke after event {len(seen)}: {error.code.name}")
        cut_after = seen[-1].sequence if seen else 0
        # The same call again, with what was seen last, goes on with the same run.
        async with self._client.stream_run(create, after_sequence=cut_after, cancel_on_exit=True) as stream:
            self._transcript.remark("the same call again, from there on")
            await self._show(stream, seen)
        await self._conclude(stream, seen)
        self._findings.cut_after = cut_after
        self._findings.resumed = line.broken and 0 < cut_after < seen[-1].sequence and _complete(seen)
        self._findings.check(self._findings.resumed, "the stream that was cut was not resumed")

    async def call_tools(self, model: str) -> None:
        """Stream a run whose function calls, made at once, are answered by functions of this process."""
        called = []

        def get_weather(city: str) -> str:
            called.append("get_weather")
            return f"sunny in {city}"

        def get_time(city: str) -> str:
            called.append("get_time")
            return f"noon in {city}"

        functions = {"get_weather": get_weather, "get_time": get_time}
        tools = [Tool(function=FunctionTool(name=name, parameters_json=_CITY)) for name in functions]
        create = self._say(_TOOL_QUESTION)
        create.assistant_id = await self._assistant(Assistant(name="demo of functions", model=model, tools=tools))
        seen: list[RunEvent] = []
        async with self._client.stream_run(create, tools=functions, cancel_on_exit=True) as stream:
            await self._show(stream, seen)
        await self._conclude(stream, seen)
        self._findings.tool_calls = len(called)
        self._findings.check(sorted(called) == sorted(functions), f"the functions called are {called}")
        quoted = "sunny in Lisbon" in stream.view.text and "noon in Lisbon" in stream.view.text
        self._findings.check(quoted, "the answer does not quote what the functions returned")

    async def _assistant(self, assistant: Assistant) -> str:
        assistant.instructions, assistant.temperature = "You are a helpful assistant.", _TEMPERATURE
        answer = await self._client.assistants.EnsureAssistant(EnsureAssistantRequest(assistant=assistant))
        return answer.assistant.id

    def _say(self, text: str) -> CreateRunRequest:
        click.echo(f"\n> {textwrap.shorten(text, 60, placeholder=' ...')}")
        message = Message(role=MESSAGE_ROLE_USER, content=[MessagePart(text=TextPart(text=text))])
        return CreateRunRequest(
            thread_id=self.thread_id, additional_messages=[message], max_completion_tokens=_MOST_TOKENS
        )

    async def _show(
        self, stream: RunStream, seen: list[RunEvent], *, arrived: Callable[[], None] = lambda: None
    ) -> None:
        """Show the events to the end of the stream; `seen` keeps those that came, should it break."""
        async for event in stream:
            seen.append(event)
            arrived()
            self._findings.see(event)
            self._transcript.show(event)

    async def _conclude(self, stream: RunStream, seen: Sequence[RunEvent]) -> None:
        run = stream.view.result().run
        request = ListMessagesRequest(thread_id=run.thread_id, run_id=run.id, order=LIST_ORDER_ASCENDING)
        stored = (await self._client.threads.ListMessages(request)).messages
        self._findings.conclude(
            run,
            sequences=[event.sequence for event in seen],
            streamed="".join(event.text_delta.text for event in seen),
            stored="".join(map(text_of, stored)),
        )
        usage = run.usage
        self._transcript.remark(f"{usage.prompt_tokens} prompt and {usage.completion_tokens} completion tokens")


def _complete(events: Sequence[RunEvent]) -> bool:
    return [event.sequence for event in events] == list(range(1, len(events) + 1))
