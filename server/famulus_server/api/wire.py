"""Reading requests off the wire, and writing responses to it.

gRPC answers UNKNOWN when a deserializer fails, before any layer is entered. So ours never fails: it returns a
`_Refused` in the request's place, which raises once the layers are around the call.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from famulus.v1 import error_reason_pb2 as reasons
from famulus_server.api.validation.fields import MOST_VIOLATIONS
from famulus_server.errors import FamulusError, InvalidArgument, Violation


@dataclass(frozen=True, slots=True)
class _Refused:
    error: FamulusError


def reading(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    """A deserializer that never fails. It refuses what is no protobuf message of the right type (nested at most 100
    deep, text in UTF-8), and NUL in any text: PostgreSQL cannot store it."""

    def read(data: bytes) -> Any:
        try:
            request = deserialize(data) if deserialize else data
        except DecodeError:
            return _Refused(
                InvalidArgument(
                    reasons.ERROR_REASON_MALFORMED_REQUEST, "the request is not a valid message of this method"
                )
            )
        # Numbers have zero bytes, too; but most requests have none at all and need not be walked.
        if isinstance(request, Message) and 0 in data:
            violations: list[Violation] = []
            _find_nul(request, "", violations)
            if violations:
                return _Refused(InvalidArgument.fields(violations))
        return request

    return read


def writing(serialize: Callable[[Any], bytes] | None) -> Callable[[Any], bytes]:
    """A serializer that lets through what is serialized already: events are so once, for all who watch them."""

    def write(response: Any) -> bytes:
        return response if serialize is None or isinstance(response, bytes) else serialize(response)

    return write


def checked(request: Any) -> Any:
    """The request, or the error that stands in its place."""
    if isinstance(request, _Refused):
        raise request.error
    return request


async def checked_stream(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """The requests of a client stream, up to the first that must be refused."""
    async for request in requests:
        yield checked(request)


def _find_nul(message: Message, prefix: str, violations: list[Violation]) -> None:
    for field, value in message.ListFields():
        if len(violations) >= MOST_VIOLATIONS:
            return
        path = prefix + field.name
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            of_messages = entry.fields_by_name["value"].type == FieldDescriptor.TYPE_MESSAGE
            for key, item in value.items():
                _look(key, False, path, violations)
                _look(item, of_messages, path, violations)
        elif field.is_repeated:
            for index, item in enumerate(value):
                _look(item, entry is not None, f"{path}[{index}]", violations)
        else:
            _look(value, entry is not None, path, violations)


def _look(value: Any, is_message: bool, path: str, violations: list[Violation]) -> None:
    if is_message:
        _find_nul(value, path + ".", violations)
    elif isinstance(value, str) and "\0" in value:
        violations.append(Violation(path, "must not contain NUL"))
