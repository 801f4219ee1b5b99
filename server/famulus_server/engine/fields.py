"""Copying named fields from one message to another of the same kind, as update masks ask for (AIP-134)."""

from collections.abc import Collection
from typing import Any, TypeVar

from google.protobuf.message import Message

M = TypeVar("M", bound=Message)


def is_set(message: Message, name: str) -> bool:
    """Whether a field is set: for one with presence also to its default, for others to anything else."""
    return any(field.name == name for field, _ in message.ListFields())


def copy_of(message: M) -> M:
    """A message of one's own: units of work may be run again, so what they change must not be anybody else's."""
    result = type(message)()
    result.CopyFrom(message)
    return result


def copy_fields(source: M, target: M, names: Collection[str]) -> None:
    """Replaces the named fields of the target by the source's; what is not set there is cleared."""
    picked = copy_of(source)
    for name in {field.name for field, _ in source.ListFields()}.difference(names):
        _clear(picked, name)
    for name in names:
        _clear(target, name)
    target.MergeFrom(picked)


def take(target: Message, names: Collection[str], source: Message) -> None:
    """Sets those of the named fields of the target that a message of another kind has set, under the same names."""
    for field, value in source.ListFields():
        if field.name not in names:
            continue
        if isinstance(value, Message):
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)


def _clear(message: Any, name: str) -> None:
    # The stubs want literal names.
    message.ClearField(name)
