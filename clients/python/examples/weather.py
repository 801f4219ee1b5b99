"""Asks a question on a new thread and prints the answer as it grows; the assistant may call a function of ours.

python weather.py [HOST:PORT [MODEL [QUESTION]]]
"""

import asyncio
import json
import sys

from famulus import FamulusClient, FamulusError
from famulus.v1.assistant_pb2 import Assistant
from famulus.v1.assistant_service_pb2 import EnsureAssistantRequest
from famulus.v1.message_pb2 import Message, MessagePart, MessageRole, TextPart
from famulus.v1.run_pb2 import RunState
from famulus.v1.run_service_pb2 import CreateRunRequest
from famulus.v1.thread_pb2 import Thread
from famulus.v1.tool_pb2 import FunctionTool, Tool

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def get_weather(city: str) -> dict[str, object]:
    return {"city": city, "sky": "clear", "degrees_celsius": 21}


async def ask(target: str, model: str, question: str) -> str:
    """Prints the answer as it comes; returns the name of the final state."""
    tool = FunctionTool(name="get_weather", description="The weather in a city.", parameters_json=json.dumps(SCHEMA))
    wanted = Assistant(model=model, instructions="Answer in one sentence.", tools=[Tool(function=tool)])
    async with FamulusClient(target) as client:
        ensured = await client.assistants.EnsureAssistant(EnsureAssistantRequest(assistant=wanted))
        text = MessagePart(text=TextPart(text=question))
        create = CreateRunRequest(
            new_thread=Thread(user_id="user-1"),
            assistant_id=ensured.assistant.id,
            additional_messages=[Message(role=MessageRole.MESSAGE_ROLE_USER, content=[text])],
        )
        async with client.stream_run(create, tools={"get_weather": get_weather}, cancel_on_exit=True) as stream:
            async for event in stream:
                match event.WhichOneof("event"):
                    case "text_delta":
                        sys.stdout.write(event.text_delta.text)
                    case "attempt_started" | "snapshot":  # what was printed before may not hold any more
                        sys.stdout.write(f"\n{stream.view.text}")
                sys.stdout.flush()
    return RunState.Name(stream.view.result().run.state)


def main(target: str = "127.0.0.1:7461", model: str = "scripted", question: str = "Call get_weather for Bern.") -> None:
    try:
        sys.stdout.write(f"\n{asyncio.run(ask(target, model, question))}\n")
    except FamulusError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
