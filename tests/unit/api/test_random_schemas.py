"""JSON Schemas at random: what is accepted, everybody else can read, and what is not, is refused in words."""

import json

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from famulus_server.api.validation import schemas
from hostile.strategies import json_texts, with_odd_values

GOOD = (
    b'{"type": "object", "properties": {"city": {"type": "string", "pattern": "^a+$"}, "n": {"type": "integer",'
    b' "minimum": 0, "enum": [1, 2]}}, "required": ["city"], "additionalProperties": false}',
    b'{"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"const": null}]}}, "$ref": "#/$defs/a", "title": "t"}',
)
_LONGEST_PROBLEM = 500  # characters


@settings(max_examples=200)
@given(json_texts() | st.sampled_from(GOOD).flatmap(with_odd_values).map(bytes.decode) | st.text())
def test_schema_is_refused_in_words_or_readable_by_everybody(text: str) -> None:
    problem = schemas.problem(text)
    if problem is not None:
        assert len(problem) < _LONGEST_PROBLEM
        return
    schema = json.loads(text)
    # Once more as it is read for the model, and as it is sent.
    assert msgspec.json.decode(text) == schema
    assert json.loads(json.dumps(schema, ensure_ascii=False).encode()) == schema
