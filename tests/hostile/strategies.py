"""What nobody should send, at random: messages made from their descriptors, bytes, and JSON."""

import json
import re
from collections import ChainMap
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from hostile.fields import fields_of, is_map, leaves

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
_SCALAR = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+|null|true|false')
_ODD_JSON = (
    *("", "null", "true", "-0", "1e400", "NaN", "-Infinity", "01", "1.", "9" * 20, "9" * 5_000, "2147483648", "-1"),
    *('"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"', '"\\x"', '"', "'a'", '"a', "[", "{", "]", '{"a"', "\ufeff{}", "//"),
    *(
        "[" * 1_100,
        "[" * 600 + "]" * 600,
        '{"a":' * 200 + "1" + "}" * 200,
        '{"a": 1, "a": 2}',
        "[1,]",
        '"\t"',
        "{}",
        "[]",
    ),
)
_UNICODE = st.characters(exclude_categories=["Cs"])


class Random:
    """Strategies for messages; `words` are texts that mean something to the server, such as ids."""

    def __init__(self, words: Sequence[str]) -> None:
        self.texts = st.sampled_from(words) | st.text(_UNICODE, max_size=40)
        self._made: dict[tuple[type[Message], int], st.SearchStrategy[Any]] = {}

    def messages(self, kind: type[Message], levels: int = _MOST_LEVELS) -> st.SearchStrategy[Any]:
        """Messages of a type, with at most so many levels of messages in them."""
        made = self._made.get((kind, levels))
        if made is None:
            made = self._made[kind, levels] = self._make(kind, levels)
        return made

    def mutated(self, message: Message) -> st.SearchStrategy[Message]:
        """The message with a few of its fields set to whatever they may hold."""
        fields = list(leaves(type(message)))
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

    def _make(self, kind: type[Message], levels: int) -> st.SearchStrategy[Any]:
        fields = [field for field in fields_of(kind) if levels or field.message_type is None or is_map(field)]
        alone = {field.name: self._value(field, levels) for field in fields if field.containing_oneof is None}
        parts: list[st.SearchStrategy[Mapping[str, Any]]] = [st.fixed_dictionaries({}, optional=alone)]
        for oneof in kind.DESCRIPTOR.oneofs:
            members = [
                field for field in fields if field.containing_oneof and field.containing_oneof.name == oneof.name
            ]
            chosen = [st.fixed_dictionaries({field.name: self._value(field, levels)}) for field in members]
            parts.append(st.just({}) | st.one_of(chosen))
        return st.tuples(*parts).map(lambda given: kind(**ChainMap(*map(dict, given))))

    def _value(self, field: FieldDescriptor, levels: int) -> st.SearchStrategy[Any]:
        if is_map(field):
            return st.dictionaries(self.texts, self.texts, max_size=_MOST_ITEMS)
        one = self._item(field, levels)
        return st.lists(one, max_size=_MOST_ITEMS) if field.is_repeated else one

    def _item(self, field: FieldDescriptor, levels: int) -> st.SearchStrategy[Any]:
        if is_map(field) or field.type == FieldDescriptor.TYPE_STRING:
            return self.texts
        if field.message_type is not None:
            return self.messages(GetMessageClass(field.message_type), levels - 1)
        if field.enum_type is not None:
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


def with_odd_values(data: bytes) -> st.SearchStrategy[bytes]:
    """JSON, or what holds some, in which a few values or keys are others."""
    places = [found.span() for found in _SCALAR.finditer(data)]

    def change(changes: Mapping[int, bytes]) -> bytes:
        pieces, end = [], 0
        for number, (start, stop) in enumerate(places):
            if number in changes:
                pieces += [data[end:start], changes[number]]
                end = stop
        return b"".join([*pieces, data[end:]])

    number = st.integers(0, len(places) - 1)
    return st.dictionaries(number, json_texts().map(str.encode), min_size=1, max_size=3).map(change)


def json_texts() -> st.SearchStrategy[str]:
    """JSON, or nearly: with what parsers disagree about, or choke on."""
    leaf = st.sampled_from(_ODD_JSON) | st.integers().map(str) | st.floats().map(json.dumps) | st.text().map(json.dumps)

    def wrap(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        key = st.sampled_from(['"a"', '"\\ud800"', '""', "a", '"type"']) | st.text(max_size=5).map(json.dumps)
        lists = st.lists(inner, max_size=4).map(lambda items: f"[{','.join(items)}]")
        pairs = st.lists(st.tuples(key, inner), max_size=4)
        return lists | pairs.map(lambda items: "{" + ",".join(f"{name}: {value}" for name, value in items) + "}")

    return st.recursive(leaf, wrap, max_leaves=8)
