"""The output items of a turn, put together from fragments: what a server that sends no whole items leaves to us."""

from dataclasses import dataclass, field
from typing import Any

import msgspec

from famulus_server.ports import CallChunk, RefusalChunk, TextChunk

Json = dict[str, Any]


@dataclass(slots=True, eq=False)
class Part:
    """A part of a message as far as it came."""

    refusal: bool
    pieces: list[str] = field(default_factory=list)

    def to_json(self) -> Json:
        text = "".join(self.pieces)
        return {"type": "refusal", "refusal": text} if self.refusal else _output_text(text)


@dataclass(slots=True, eq=False)
class OutputItem:
    """One output item as far as it came. `position` counts from 0 in the order of appearance."""

    position: int
    kind: str
    id: str = ""
    call_id: str = ""
    name: str = ""
    opening: Json | None = None  # the item as the server announced it
    announced: bool = False  # the chunk that names the call is out
    next_part: int = 0  # where text goes whose part is not told
    parts: dict[int, Part] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)
    whole: Json | None = None  # the item as the server sent it in the end

    def text(self, part: int, text: str) -> TextChunk:
        """More text."""
        (self.parts.get(part) or self.parts.setdefault(part, Part(refusal=False))).pieces.append(text)
        return TextChunk(self.position, part, text)

    def refusal(self, part: int, text: str) -> RefusalChunk:
        """More of a refusal."""
        (self.parts.get(part) or self.parts.setdefault(part, Part(refusal=True))).pieces.append(text)
        return RefusalChunk(self.position, part, text)

    def more_arguments(self, text: str) -> list[CallChunk]:
        """More arguments of a call; kept back until its name is known."""
        self.arguments.append(text)
        return [CallChunk(self.position, "", "", text)] if self.announced else []

    def identify(self, call_id: str, name: str) -> list[CallChunk]:
        """Id and name of a call, either perhaps empty. The first ones count."""
        self.call_id = self.call_id or call_id
        self.name = self.name or name
        return self.announce() if self.name and not self.announced else []

    def announce(self) -> list[CallChunk]:
        """The chunk that names the call, with the arguments that came before."""
        self.announced = True
        return [CallChunk(self.position, self.call_id, self.name, "".join(self.arguments))]

    def finish(self, item: Json) -> list[TextChunk | RefusalChunk | CallChunk]:
        """Takes the item as the server sent it in the end, and makes sure of what the rest of the service relies on.
        Returns what of it did not come in fragments before."""
        if self.kind == "function_call":
            arguments = item.get("arguments")
            if isinstance(arguments, dict):
                arguments = msgspec.json.encode(arguments).decode()
            own = {"call_id": self.call_id, "name": self.name, "arguments": "".join(self.arguments)}
            given = {"call_id": item.get("call_id"), "name": item.get("name"), "arguments": arguments}
            item |= own | {key: value for key, value in given.items() if isinstance(value, str)}
        elif self.kind == "message" and not isinstance(item.get("content"), list):
            item["content"] = self._content()
        self.whole = item
        if self.kind == "message":
            return self._missed_parts(item["content"])
        if self.kind != "function_call":
            return []
        missed = [] if self.arguments else [item["arguments"]]
        named = self.identify(item["call_id"], item["name"])
        return [*named, *(chunk for text in missed if text for chunk in self.more_arguments(text))]

    def _missed_parts(self, content: list[Any]) -> list[TextChunk | RefusalChunk | CallChunk]:
        chunks: list[TextChunk | RefusalChunk | CallChunk] = []
        for number, part in enumerate(content):
            if isinstance(part, dict) and number not in self.parts:
                text, refusal = part.get("text"), part.get("refusal")
                if isinstance(text, str) and text:
                    chunks.append(self.text(number, text))
                elif isinstance(refusal, str) and refusal:
                    chunks.append(self.refusal(number, refusal))
        return chunks

    def to_json(self, *, status: str) -> Json:
        """The item as input of a later turn."""
        if self.whole is not None:
            return self.whole
        identity = {"id": self.id} if self.id else {}
        match self.kind:
            case "message":
                body: Json = {"role": "assistant", "status": status, "content": self._content()}
            case "function_call":
                body = {"call_id": self.call_id, "name": self.name, "arguments": "".join(self.arguments)}
            case _:
                return self.opening or {"type": self.kind, **identity, "summary": []}
        return {"type": self.kind, **identity, **body}

    def _content(self) -> list[Json]:
        return [part.to_json() for _, part in sorted(self.parts.items())]


def _output_text(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": []}
