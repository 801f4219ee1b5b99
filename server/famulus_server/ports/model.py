"""The port to models: one model turn, streamed."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import msgspec

from famulus.v1.assistant_pb2 import ReasoningEffort, ResponseFormat
from famulus.v1.message_pb2 import Annotation
from famulus.v1.run_pb2 import RunErrorCode, Usage
from famulus.v1.tool_pb2 import Tool, ToolChoice, ToolResources
from famulus_server.errors import Allowance


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """One model turn. `items` is the input in the item format of the Responses API, whatever the backend. `user` is a
    pseudonym of whom the turn is for, never an id that a caller gave; empty where that is nobody. `traceparent` names
    the span that the provider may continue; empty where nothing is traced."""

    model: str
    instructions: str
    items: Sequence[Mapping[str, Any]]
    tools: Sequence[Tool] = ()
    tool_resources: ToolResources | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_output_tokens: int | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: "ReasoningEffort.ValueType" = ReasoningEffort.REASONING_EFFORT_UNSPECIFIED
    want_reasoning: bool = False
    cache_key: str = ""
    user: str = ""
    traceparent: str = ""


# Chunks are structs, which are made in a third of the time: there is one for each word.
class TextChunk(msgspec.Struct, gc=False):
    """More text of part `part` of output item `item` (both counted from 0 within the turn)."""

    item: int
    part: int
    text: str


class RefusalChunk(msgspec.Struct, gc=False):
    """More text of a refusal."""

    item: int
    part: int
    text: str


class ReasoningChunk(msgspec.Struct, gc=False):
    """More of the reasoning or of its summary."""

    text: str


class CallChunk(msgspec.Struct, gc=False):
    """More arguments of the function call that is output item `item`. `call_id` and `name` stand in its first chunk,
    which comes before any other of the call."""

    item: int
    call_id: str
    name: str
    arguments: str


@dataclass(slots=True)
class AnnotationChunk:
    """A note about a place in the text of a part."""

    item: int
    part: int
    annotation: Annotation


@dataclass(slots=True)
class Retrying:
    """The turn failed before its first chunk and will be tried again after `delay` seconds. Alone in its list."""

    code: "RunErrorCode.ValueType"
    delay: float


class TurnOutcome(Enum):
    """How a model turn ended, by the model's own word."""

    COMPLETED = "completed"
    MAX_TOKENS = "max_tokens"
    CONTENT_FILTER = "content_filter"


@dataclass(slots=True)
class TurnEnded:
    """The terminal event of a turn, always the last (contract 17).

    `items` are the output items in the format of the Responses API, ready to be sent back as input: messages (with
    `phase` where given), function calls (`call_id`, `name`, `arguments`), reasoning (with `encrypted_content`) and
    kinds nobody here knows, as they came. `usage` is None where the backend told none; `response_id` and
    `response_model` are the provider's words for the answer and for who made it, empty where it has none.
    """

    outcome: TurnOutcome
    items: Sequence[dict[str, Any]]
    usage: Usage | None
    response_id: str = ""
    response_model: str = ""


ModelEvent = Allowance | TextChunk | RefusalChunk | ReasoningChunk | CallChunk | AnnotationChunk | Retrying | TurnEnded


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What the engine must know of a configured model before it asks it. Numbers are tokens."""

    name: str
    context_window: int
    max_output_tokens: int | None
    built_in_tools: bool


class Model(Protocol):
    """Streams one model turn, and says before how large it is."""

    def stream(self, request: ModelRequest) -> AsyncGenerator[list[ModelEvent], None]:
        """Yields what each read from the upstream brought, never an empty list; the last list ends with TurnEnded.

        An Allowance, where the provider sends one, stands in front of the first list that shows the model at work.
        Raises ModelError; ModelSuspended where the upstream was not even asked. Closing the iterator closes the
        upstream call at once. Lone surrogates never come out.
        """

    async def count(self, request: ModelRequest) -> int | None:
        """The exact number of input tokens of this turn, by the provider's own word; None where it gives none, or not
        soon enough. Never raises a ModelError."""


class Models(Protocol):
    """The configured models."""

    def card(self, name: str) -> ModelCard | None:
        """None where the configuration has no such model."""

    def open(self, name: str) -> Model:
        """The model of that name; KeyError where there is none."""

    def rests(self, name: str) -> float:
        """Seconds for which the model of that name is not to be asked, because it fails; 0 where it may be."""
