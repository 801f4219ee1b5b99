"""The JSON Schema of a function: refused in words, or read alike by everybody."""

import json

import msgspec

from famulus_server.api.validation import schemas

_LONGEST_PROBLEM = 500  # characters

SEEDS = (
    b'{"type": "object", "properties": {"city": {"type": "string", "pattern": "^a+$"}, "n": {"type": "integer",'
    b' "minimum": 0, "enum": [1, 2]}}, "required": ["city"], "additionalProperties": false}',
    b'{"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"const": null}]}}, "$ref": "#/$defs/a", "title": "t"}',
    b'{"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"a": {}}, "maximum": -1.5e300}',
)


def try_input(data: bytes) -> None:
    text = data.decode(errors="ignore")
    problem = schemas.problem(text)
    if problem is not None:
        assert len(problem) < _LONGEST_PROBLEM
        return
    schema = json.loads(text)
    # As it is read for the model, and as it is sent.
    assert msgspec.json.decode(text) == schema
    assert json.loads(json.dumps(schema, ensure_ascii=False).encode()) == schema
