"""Requests at random, made from the descriptors of their messages: nothing here knows a field by its name."""

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from hostile.fields import is_map, leaves

_MOST_ITEMS = 3
_MOST_LEVELS = 5
_INT32, _INT64 = (-(2**31), 2**31 - 1), (-(2**63), 2**63 - 1)
_RANGES = {
    FieldDescriptor.TYPE_INT32: _INT32,
    FieldDescriptor.TYPE_INT64: _INT64,
    FieldDescriptor.TYPE_SINT32: _INT32,
    FieldDescriptor.TYPE_SINT64: _INT64,
    FieldDescriptor.TYPE_SFIXED32: _INT32,
    FieldDescriptor.TYPE_SFIXED64: _INT64,
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_FIXED32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_FIXED64: (0, 2**64 - 1),
}
_UNICODE = st.characters(exclude_categories=["Cs"])


class Random:
    """Strategies for messages; `words` are texts that mean something to the server, such as ids."""

    def __init__(self, words: Sequence[str]) -> None:
        self.texts = st.sampled_from(words) | st.text(_UNICODE, max_size=40)
        self._made: dict[tuple[Descriptor, int], st.SearchStrategy[Any]] = {}

    def messages(self, descriptor: Descriptor, levels: int = _MOST_LEVELS) -> st.SearchStrategy[Any]:
        """Messages of a type, with at most so many levels of messages in them."""
        made = self._made.get((descriptor, levels))
        if made is None:
            made = self._made[descriptor, levels] = self._make(descriptor, levels)
        return made

    def mutated(self, message: Message) -> st.SearchStrategy[Message]:
        """The message with a few of its fields set to whatever they may hold."""
        fields = list(leaves(message.DESCRIPTOR))
        if not fields:
            return st.just(message)
        change = st.sampled_from(fields).flatmap(lambda field: st.tuples(st.just(field), self._item(field.way[-1], 0)))

        def mutate(changes: Sequence[tuple[Any, Any]]) -> Message:
            result = type(message)()
            result.CopyFrom(message)
            for field, value in changes:
                field.put(result, value)
            return result

        return st.lists(change, min_size=1, max_size=_MOST_ITEMS).map(mutate)

    def _make(self, descriptor: Descriptor, levels: int) -> st.SearchStrategy[Any]:
        fields = [field for field in descriptor.fields if levels or field.message_type is None or is_map(field)]
        alone = {field.name: self._value(field, levels) for field in fields if field.containing_oneof is None}
        parts: list[st.SearchStrategy[Mapping[str, Any]]] = [st.fixed_dictionaries({}, optional=alone)]
        for oneof in descriptor.oneofs:
            members = [field for field in oneof.fields if field in fields]
            chosen = [st.fixed_dictionaries({field.name: self._value(field, levels)}) for field in members]
            parts.append(st.just({}) | st.one_of(chosen))
        kind = GetMessageClass(descriptor)
        return st.tuples(*parts).map(
            lambda given: kind(**{name: value for part in given for name, value in part.items()})
        )

    def _value(self, field: FieldDescriptor, levels: int) -> st.SearchStrategy[Any]:
        if is_map(field):
            return st.dictionaries(self.texts, self.texts, max_size=_MOST_ITEMS)
        one = self._item(field, levels)
        return st.lists(one, max_size=_MOST_ITEMS) if field.is_repeated else one

    def _item(self, field: FieldDescriptor, levels: int) -> st.SearchStrategy[Any]:
        if is_map(field) or field.type == FieldDescriptor.TYPE_STRING:
            return self.texts
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            return self.messages(field.message_type, levels - 1)
        if field.type == FieldDescriptor.TYPE_ENUM:
            return st.sampled_from([value.number for value in field.enum_type.values]) | st.integers(*_INT32)
        if field.type == FieldDescriptor.TYPE_BOOL:
            return st.booleans()
        if field.type == FieldDescriptor.TYPE_BYTES:
            return st.binary(max_size=40)
        if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
            return st.floats(width=32)
        least, most = _RANGES[field.type]
        return st.integers(-1 if least else 0, 3) | st.sampled_from([least, most]) | st.integers(least, most)


def garbled(data: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Bytes that were changed, lost, doubled or put in here and there."""

    def change(given: tuple[bytes, Sequence[tuple[int, int, bytes]]]) -> bytes:
        result, changes = bytearray(given[0]), given[1]
        for place, length, put in changes:
            at = place % (len(result) + 1)
            result[at : at + length] = put
        return bytes(result)

    cut = st.tuples(st.integers(0, 2**16), st.integers(0, 8), st.binary(max_size=8))
    return st.tuples(data, st.lists(cut, min_size=1, max_size=4)).map(change)
