"""A scene applied to a prompt: the exact words, calls and counts to write, the same every time."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from famulus_server.embedded.upstream.prompt import Prompt
from famulus_server.embedded.upstream.script import Finish, Quirk, Scene

# Stands for the number of the request in ids, so that rendered answers can be kept and used again.
REQUEST_NUMBER = "\x1fREQUEST"
_ARGUMENTS_PIECE = 16  # characters per delta of a call's arguments
_DELTAS_OF_A_SILENT_SCENE = 8
_DEEPEST_SAMPLE = 8


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    id: str
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tokens:
    input: int
    cached: int
    output: int
    reasoning: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Everything is made of deltas. Hashable, because rendered answers are cached by it."""

    model: str
    reasoning: tuple[str, ...]
    text: tuple[str, ...]
    refusal: tuple[str, ...]
    calls: tuple[Call, ...]
    annotations_json: tuple[str, ...]
    items_json: tuple[str, ...]
    phase: str | None
    finish: Finish
    tokens: Tokens
    encrypted: bool
    include_usage: bool
    has_message: bool
    quirks: frozenset[Quirk]

    @property
    def delta_count(self) -> int:
        pieces = sum(len(call.arguments) for call in self.calls)
        return len(self.reasoning) + len(self.text) + len(self.refusal) + pieces


def compose(scene: Scene, prompt: Prompt) -> Answer:
    text = _text_deltas(scene, prompt)
    refusal = split_words(scene.refusal or "")
    whole = Answer(
        model=prompt.model,
        reasoning=split_words(scene.reasoning or ""),
        text=text,
        refusal=refusal,
        calls=tuple(_calls(scene, prompt)),
        annotations_json=tuple(_to_json(annotation) for annotation in scene.annotations),
        items_json=tuple(_to_json(item) for item in scene.items),
        phase=scene.phase,
        finish=scene.finish,
        tokens=Tokens(0, 0, 0, 0),
        encrypted=prompt.include_encrypted,
        include_usage=prompt.include_usage,
        has_message=bool(text or refusal or scene.text is not None),
        quirks=frozenset(scene.quirks),
    )
    cut = whole if prompt.max_tokens is None else _cut(whole, prompt.max_tokens)
    usage = scene.usage
    return replace(
        cut,
        tokens=Tokens(
            input=prompt.input_tokens if usage.input is None else usage.input,
            cached=usage.cached,
            output=cut.delta_count if usage.output is None else usage.output,
            reasoning=len(cut.reasoning) if usage.reasoning is None else usage.reasoning,
        ),
    )


def split_words(text: str) -> tuple[str, ...]:
    """Words with the space before them, as models stream them; joined again they are the text."""
    return tuple(re.findall(r"\s*\S+|\s+$", text))


def sample(schema: Any, name: str = "value", depth: int = 0) -> Any:
    """A plain value of a JSON Schema: its const, default or first choice, else one made from its type and name."""
    if not isinstance(schema, dict) or depth > _DEEPEST_SAMPLE:
        return None
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    for key in ("enum", "examples"):
        if schema.get(key):
            return schema[key][0]
    kind = schema.get("type", "object" if "properties" in schema else "string")
    match kind[0] if isinstance(kind, list) else kind:
        case "object":
            return {key: sample(part, key, depth + 1) for key, part in schema.get("properties", {}).items()}
        case "array":
            return [sample(schema.get("items", {}), name, depth + 1)]
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return name


def _text_deltas(scene: Scene, prompt: Prompt) -> tuple[str, ...]:
    if isinstance(scene.text, tuple):
        deltas = scene.text
    elif scene.deltas is not None:
        deltas = _numbered(scene.deltas)
    elif scene.text is None and _is_silent(scene):
        deltas = _numbered(_DELTAS_OF_A_SILENT_SCENE)
    else:
        deltas = split_words(scene.text or "")
    heard = prompt.user_text if scene.echo else ""
    quoted = "\n".join(prompt.tool_outputs) if scene.quote_outputs else ""
    return deltas + split_words(heard) + split_words(quoted)


def _is_silent(scene: Scene) -> bool:
    says = (scene.echo, scene.quote_outputs, scene.reasoning, scene.refusal)
    return not any(says) and not (scene.tool_calls or scene.call_tools or scene.items)


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"w{n}" if n == 1 else f" w{n}" for n in range(1, count + 1))


def _calls(scene: Scene, prompt: Prompt) -> list[Call]:
    asked: list[tuple[str, str | None, str]] = []
    for call in scene.tool_calls:
        arguments = call.arguments if isinstance(call.arguments, str) else _to_json(call.arguments)
        asked += [(call.name, call.id, arguments)] * call.repeat
    if scene.call_tools:
        tools = prompt.named_tools
        asked += [(tool.name, None, _to_json(sample({"type": "object", **tool.schema}))) for tool in tools]
    return [
        Call(name, given or f"call_{REQUEST_NUMBER}_{n}", _pieces(arguments))
        for n, (name, given, arguments) in enumerate(asked, start=1)
    ]


def _pieces(arguments: str) -> tuple[str, ...]:
    return tuple(arguments[at : at + _ARGUMENTS_PIECE] for at in range(0, len(arguments), _ARGUMENTS_PIECE))


def _cut(answer: Answer, limit: int) -> Answer:
    """The first `limit` deltas; a call that was cut keeps the arguments it had, later calls are not made."""
    if answer.delta_count <= limit:
        return answer
    left = limit

    def take(deltas: Sequence[str]) -> tuple[str, ...]:
        nonlocal left
        taken = tuple(deltas[:left])
        left -= len(taken)
        return taken

    reasoning, text, refusal = take(answer.reasoning), take(answer.text), take(answer.refusal)
    calls = [replace(call, arguments=take(call.arguments)) for call in answer.calls if left > 0]
    return replace(
        answer,
        reasoning=reasoning,
        text=text,
        refusal=refusal,
        calls=tuple(calls),
        has_message=bool(text or refusal),
        finish="length",
    )


def _to_json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
