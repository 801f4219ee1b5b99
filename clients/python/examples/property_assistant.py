"""An assistant that finds homes: prints its answer as it grows, and the calls of our functions that it makes.

python property_assistant.py [HOST:PORT [MODEL [QUESTION]]]
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import grpc

from famulus import FamulusClient, FamulusError, ToolError
from famulus.v1.assistant_pb2 import Assistant
from famulus.v1.assistant_service_pb2 import EnsureAssistantRequest
from famulus.v1.message_pb2 import Message, MessagePart, MessageRole, TextPart
from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import RunState
from famulus.v1.run_service_pb2 import CreateRunRequest
from famulus.v1.thread_pb2 import Thread
from famulus.v1.tool_pb2 import FunctionTool, Tool

PROPERTIES = Path(__file__).parents[2] / "examples/properties.json"
INSTRUCTIONS = "Help to find a home. Search, and look at the details, before you recommend one."
# The scripted model makes its arguments up from these: the first choice, the default.
TOOLS = {
    "search_properties": {
        "location": {"type": "string", "enum": ["Lisbon", "Bern", "Ghent"]},
        "max_price": {"type": "number", "default": 1_000_000},
        "min_bedrooms": {"type": "integer", "default": 1},
    },
    "get_property_details": {"property_id": {"type": "string", "default": "prop_1"}},
}
REQUIRED = {"search_properties": ["location"], "get_property_details": ["property_id"]}

Property = dict[str, Any]


class Listing:
    """What is for sale."""

    def __init__(self, path: Path) -> None:
        self._properties: list[Property] = json.loads(path.read_text(encoding="utf-8"))

    def search_properties(
        self, location: str, max_price: float | None = None, min_bedrooms: int | None = None
    ) -> list[Property]:
        """Those that fit, without their descriptions."""
        return [
            {key: value for key, value in each.items() if key != "description"}
            for each in self._properties
            if each["location"].casefold() == location.casefold()
            and (max_price is None or each["price"] <= max_price)
            and (min_bedrooms is None or each["bedrooms"] >= min_bedrooms)
        ]

    def get_property_details(self, property_id: str) -> Property:
        for each in self._properties:
            if each["id"] == property_id:
                return each
        raise ToolError(f"there is no property {property_id!r}")


def assistant(model: str) -> Assistant:
    """The assistant with its tools."""
    tools = [
        Tool(
            function=FunctionTool(
                name=name,
                parameters_json=json.dumps({"type": "object", "properties": properties, "required": REQUIRED[name]}),
            )
        )
        for name, properties in TOOLS.items()
    ]
    return Assistant(name="Property assistant", model=model, instructions=INSTRUCTIONS, tools=tools)


def show(event: RunEvent, text_so_far: str) -> None:
    """Prints what is new: text, calls, and where an attempt was taken over, the text as it is now."""
    match event.WhichOneof("event"):
        case "text_delta":
            sys.stdout.write(event.text_delta.text)
        case "tool_calls_requested":
            for call in event.tool_calls_requested.tool_calls:
                sys.stdout.write(f"[{call.function.name} {call.function.arguments_json}]\n")
        case "attempt_started" | "snapshot":  # what was printed before may not hold any more
            sys.stdout.write(f"\n{text_so_far}")
    sys.stdout.flush()


async def ask(target: str, model: str, question: str) -> str:
    """Prints the answer as it comes; returns the name of the final state."""
    listing = Listing(PROPERTIES)
    handlers = {name: getattr(listing, name) for name in TOOLS}
    async with FamulusClient(target) as client:
        ensured = await client.assistants.EnsureAssistant(EnsureAssistantRequest(assistant=assistant(model)))
        text = MessagePart(text=TextPart(text=question))
        create = CreateRunRequest(
            new_thread=Thread(user_id="user-1"),
            assistant_id=ensured.assistant.id,
            additional_messages=[Message(role=MessageRole.MESSAGE_ROLE_USER, content=[text])],
        )
        async with client.stream_run(create, tools=handlers, cancel_on_exit=True) as stream:
            async for event in stream:
                show(event, stream.view.text)
    return RunState.Name(stream.view.result().run.state)


def main(
    target: str = "127.0.0.1:7461", model: str = "scripted", question: str = "Call search_properties for Lisbon."
) -> None:
    try:
        sys.stdout.write(f"\n{asyncio.run(ask(target, model, question))}\n")
    except FamulusError as error:
        sys.exit(str(error))
    except grpc.RpcError as error:  # of the stub
        sys.exit(str(FamulusError.from_rpc(error)))


if __name__ == "__main__":
    main(*sys.argv[1:])
