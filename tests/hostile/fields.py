"""The fields of a message, those of messages inside it included, by reflection."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

KEY = "k"


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a message: the names on the way to it. Of lists, the first item is meant; of maps, the value of `KEY`,
    or the key itself where `is_key`."""

    way: tuple[FieldDescriptor, ...]
    is_key: bool = False

    @property
    def path(self) -> str:
        """As violations name it; those of maps name the map."""
        lists = {field for field in self.way if field.is_repeated and not is_map(field)}
        return ".".join(f"{field.name}[0]" if field in lists else field.name for field in self.way)

    def put(self, message: Message, value: Any) -> None:
        """Sets the field to the value, and what leads to it."""
        at: Any = message
        for field in self.way[:-1]:
            at = getattr(at, field.name)
            if field.is_repeated:
                at = at[0] if at else at.add()
        field = self.way[-1]
        if is_map(field):
            pairs = getattr(at, field.name)
            pairs.clear()
            pairs[value if self.is_key else KEY] = "v" if self.is_key else value
        elif field.is_repeated:
            getattr(at, field.name)[:1] = [value]
        else:
            setattr(at, field.name, value)


def fields_of(kind: type[Message]) -> Sequence[FieldDescriptor]:
    """The fields of a message itself. Of descriptors, the stubs know two kinds, which are one."""
    return cast("Sequence[FieldDescriptor]", kind.DESCRIPTOR.fields)


def leaves(kind: type[Message], way: tuple[FieldDescriptor, ...] = ()) -> Iterator[Field]:
    """All fields that are no messages, none of a message inside one of its own kind."""
    for field in fields_of(kind):
        if is_map(field):
            yield Field((*way, field))
            yield Field((*way, field), is_key=True)
        elif field.message_type is None:
            yield Field((*way, field))
        elif field.message_type not in {outer.containing_type for outer in (*way, field)}:
            yield from leaves(GetMessageClass(field.message_type), (*way, field))


def texts(kind: type[Message]) -> Iterator[Field]:
    """The fields that hold text."""
    for field in leaves(kind):
        last = field.way[-1]
        if last.type == FieldDescriptor.TYPE_STRING or is_map(last):
            yield field


def numbers(kind: type[Message]) -> Iterator[Field]:
    """The fields that hold a number, enums and switches included; all of ours are signed."""
    for field in leaves(kind):
        if field.way[-1].type not in {FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES} and not is_map(
            field.way[-1]
        ):
            yield field


def is_map(field: FieldDescriptor) -> bool:
    """Whether it is a map; all of ours are of texts."""
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)
