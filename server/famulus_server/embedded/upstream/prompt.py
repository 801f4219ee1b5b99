"""One reading of both request formats: who said what, which tools there are, what is asked for."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec

Api = Literal["responses", "chat", "input_tokens"]
Json = dict[str, Any]


class _Request(msgspec.Struct, kw_only=True):
    """What both formats share; keys that do not matter here are ignored, as the real service's new ones are."""

    model: str
    stream: bool | None = None
    tools: list[Json] | None = None
    tool_choice: str | Json | None = None


class _ResponsesRequest(_Request, kw_only=True):
    input: str | list[Json]
    instructions: str | None = None
    max_output_tokens: int | None = None
    include: list[str] | None = None
    previous_response_id: str | None = None


class _CountRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The real service refuses what has no part in the input. What is None is not looked at here."""

    model: str = ""
    input: str | list[Json] = ""
    instructions: str | None = None
    conversation: Any = None
    parallel_tool_calls: Any = None
    personality: Any = None
    previous_response_id: Any = None
    reasoning: Any = None
    text: Any = None
    tool_choice: Any = None
    tools: Any = None
    truncation: Any = None


class _ChatRequest(_Request, kw_only=True):
    messages: list[Json]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream_options: Json | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    role: Literal["system", "user", "assistant", "tool"]
    text: str
    calls: tuple[str, ...] = ()  # ids of the calls an assistant's turn makes, or of the one a tool's turn answers


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    schema: Json


@dataclass(frozen=True, slots=True)
class Prompt:
    api: Api
    model: str
    stream: bool
    turns: list[Turn]
    tools: list[Tool]
    tool_choice: str  # auto, none, required, or the name of the function that must be called
    max_tokens: int | None
    include_usage: bool
    include_encrypted: bool
    whole: bool  # false when earlier turns are kept by the server (previous_response_id)

    @property
    def user_text(self) -> str:
        return next((turn.text for turn in reversed(self.turns) if turn.role == "user"), "")

    @property
    def system_text(self) -> str:
        return "\n".join(turn.text for turn in self.turns if turn.role == "system")

    @property
    def tool_outputs(self) -> tuple[str, ...]:
        """Outputs that no assistant turn has followed: those the model has not seen yet."""
        fresh: list[str] = []
        for turn in reversed(self.turns):
            if turn.role == "assistant":
                break
            if turn.role == "tool":
                fresh.append(turn.text)
        return tuple(reversed(fresh))

    @property
    def named_tools(self) -> list[Tool]:
        """Tools that must be called, or that the user asks for by name or by the last word of a name."""
        if self.tool_choice == "none":
            return []
        if self.tool_choice not in {"auto", "required"}:
            return [tool for tool in self.tools if tool.name == self.tool_choice]
        asked = self.user_text.lower()
        words = set(re.findall(r"[a-z0-9]+", asked))
        named = [
            tool
            for tool in self.tools
            if tool.name.lower() in asked or re.split(r"[^a-z0-9]+", tool.name.lower())[-1] in words
        ]
        return named or (self.tools[:1] if self.tool_choice == "required" else [])

    @property
    def input_tokens(self) -> int:
        """One token per word."""
        return sum(len(turn.text.split()) for turn in self.turns)

    def unpaired_call(self) -> str | None:
        """The complaint the real services answer with 400: a call without output, or an output without call."""
        made: set[str] = set()
        answered: set[str] = set()
        for turn in self.turns:
            (answered if turn.role == "tool" else made).update(turn.calls)
            if self.whole and not answered <= made:
                return f"No tool call found for function call output with call_id {min(answered - made)}."
        if made - answered:
            return f"No tool output found for function call {min(made - answered)}."
        return None


def read_responses(body: Any) -> Prompt:
    """Raises msgspec.ValidationError, whose text names the key."""
    request = msgspec.convert(body, _ResponsesRequest)
    system = [Turn("system", request.instructions)] if request.instructions else []
    items = [{"role": "user", "content": request.input}] if isinstance(request.input, str) else request.input
    return Prompt(
        api="responses",
        model=request.model,
        stream=bool(request.stream),
        turns=system + [turn for item in items for turn in _responses_turns(item)],
        tools=[_tool(tool) for tool in request.tools or () if tool.get("type") == "function"],
        tool_choice=_choice(request.tool_choice),
        max_tokens=request.max_output_tokens,
        include_usage=True,
        include_encrypted="reasoning.encrypted_content" in (request.include or ()),
        whole=request.previous_response_id is None,
    )


def read_chat(body: Any) -> Prompt:
    """Raises msgspec.ValidationError, whose text names the key."""
    request = msgspec.convert(body, _ChatRequest)
    return Prompt(
        api="chat",
        model=request.model,
        stream=bool(request.stream),
        turns=[turn for message in request.messages for turn in _chat_turns(message)],
        tools=[_tool(tool["function"]) for tool in request.tools or () if "function" in tool],
        tool_choice=_choice(request.tool_choice),
        max_tokens=request.max_completion_tokens or request.max_tokens,
        include_usage=bool((request.stream_options or {}).get("include_usage")),
        include_encrypted=False,
        whole=True,
    )


def read_count(body: Any) -> Prompt:
    """Raises msgspec.ValidationError, whose text names the key."""
    msgspec.convert(body, _CountRequest)
    return replace(read_responses({"model": "", "input": "", **body}), api="input_tokens")


def _responses_turns(item: Json) -> Iterator[Turn]:
    match item.get("type", "message"):
        case "message":
            yield Turn(_role(item), _text(item.get("content")))
        case "function_call":
            yield Turn("assistant", str(item.get("arguments", "")), (str(item.get("call_id")),))
        case "function_call_output":
            yield Turn("tool", _text(item.get("output")), (str(item.get("call_id")),))
        case "reasoning":
            yield Turn("assistant", _text(item.get("summary")))


def _chat_turns(message: Json) -> Iterator[Turn]:
    text, calls = _text(message.get("content")), message.get("tool_calls") or ()
    if message.get("role") == "tool":
        yield Turn("tool", text, (str(message.get("tool_call_id")),))
    else:
        arguments = [str(call.get("function", {}).get("arguments", "")) for call in calls]
        yield Turn(_role(message), " ".join([text, *arguments]), tuple(str(call.get("id")) for call in calls))


def _role(message: Json) -> Literal["system", "user", "assistant"]:
    match message.get("role"):
        case "system" | "developer":
            return "system"
        case "assistant":
            return "assistant"
        case _:
            return "user"


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))


def _tool(function: Json) -> Tool:
    return Tool(str(function.get("name")), function.get("parameters") or {})


def _choice(choice: str | Json | None) -> str:
    if isinstance(choice, dict):
        return str(choice.get("name") or choice.get("function", {}).get("name") or "auto")
    return choice or "auto"
