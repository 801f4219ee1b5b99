"""Shapes of the Responses API's events: only the fields that matter, all optional, since servers leave them out."""

from typing import Annotated, Any

import msgspec

from famulus.v1.message_pb2 import Annotation, FileCitation, FilePath, UrlCitation
from famulus.v1.run_pb2 import Usage
from famulus_server.models.usage import believe

Json = dict[str, Any]


class Event(msgspec.Struct, gc=False):
    """All kinds of events in one; what an event does not have is None."""

    type: str = ""
    delta: str = ""
    output_index: int | None = None
    content_index: int | None = None
    item_id: str | None = None
    item: Json | None = None
    annotation: Json | None = None
    response: msgspec.Raw = msgspec.Raw(b"null")  # many events repeat it, few matter
    error: Json | None = None
    code: str | None = None
    message: str | None = None


class Kind(msgspec.Struct):
    """What is read of an event whose fields are of unexpected types."""

    type: str = ""


class TokenDetails(msgspec.Struct):
    """Shares of a number of tokens."""

    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class TokenUsage(msgspec.Struct):
    """Tokens used."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int | None = None
    input_tokens_details: TokenDetails | None = None
    output_tokens_details: TokenDetails | None = None

    def to_proto(self) -> Usage:
        read, written = self.input_tokens_details or TokenDetails(), self.output_tokens_details or TokenDetails()
        return believe(
            prompt=self.input_tokens,
            completion=self.output_tokens,
            total=self.total_tokens,
            cached=read.cached_tokens,
            reasoning=written.reasoning_tokens,
        )


class IncompleteDetails(msgspec.Struct):
    """Why an answer ended early."""

    reason: str | None = None


class Response(msgspec.Struct):
    """What a terminal event says of the whole answer."""

    output: list[Json] | None = None
    usage: TokenUsage | None = None
    incomplete_details: IncompleteDetails | None = None
    error: Json | None = None
    id: Any = None
    model: Any = None


class TokenCount(msgspec.Struct):
    """The answer of the endpoint that counts tokens. Numbers that no double holds are no counts."""

    input_tokens: Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


EVENT = msgspec.json.Decoder(Event)
KIND = msgspec.json.Decoder(Kind)
RESPONSE = msgspec.json.Decoder(Response | None)
COUNT = msgspec.json.Decoder(TokenCount)


def read_annotation(note: Json) -> Annotation | None:
    """The annotation, or None for a kind that has no place in ours."""
    file_id, start, end = _text(note, "file_id"), _place(note, "start_index"), _place(note, "end_index")
    match note.get("type"):
        case "file_citation":
            place = _place(note, "index")
            citation = FileCitation(file_id=file_id, filename=_text(note, "filename"))
            return Annotation(start_index=place, end_index=place, file_citation=citation)
        case "container_file_citation":
            citation = FileCitation(file_id=file_id, filename=_text(note, "filename"))
            return Annotation(start_index=start, end_index=end, file_citation=citation)
        case "file_path":
            place = _place(note, "index")
            return Annotation(start_index=place, end_index=place, file_path=FilePath(file_id=file_id))
        case "url_citation":
            citation_of_page = UrlCitation(url=_text(note, "url"), title=_text(note, "title"))
            return Annotation(start_index=start, end_index=end, url_citation=citation_of_page)
        case _:
            return None


def _text(note: Json, key: str) -> str:
    value = note.get(key)
    return value if isinstance(value, str) else ""


def _place(note: Json, key: str) -> int:
    value = note.get(key)
    return value if isinstance(value, int) and 0 <= value < 2**31 else -1
