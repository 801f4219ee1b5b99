import json
import time

import pytest

from famulus_server.api.validation import schemas


def nested(levels: int) -> str:
    return '{"not":' * (levels - 1) + "{}" + "}" * (levels - 1)


GOOD = [
    "{}",
    '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}',
    '{"$schema": "http://json-schema.org/draft-07/schema#", "type": "object", "definitions": {"a": {}}}',
    '{"$ref": "#"}',
    '{"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}',
    '{"pattern": "^(a+)+$"}',
    '{"pattern": "^(?=a)b"}',
    '{"description": "brackets {[{[ in a string and a quote \\" too"}',
    '{"maximum": 9223372036854775807, "minimum": -1.5e300}',
    '{"description": "\\ud83d\\ude00"}',
    nested(100),
]
BAD = {
    "": "is not valid JSON",
    "{": "is not valid JSON",
    "[]": "must be a JSON object",
    "true": "must be a JSON object",
    '{"type": "objekt"}': "is not a valid JSON Schema, at /type",
    '{"properties": {"a": {"minLength": -1}}}': "is not a valid JSON Schema, at /properties/a/minLength",
    '{"pattern": "("}': "is not a valid JSON Schema, at /pattern",
    '{"pattern": "((a{1000}){1000}){1000}"}': "is not a valid JSON Schema, at /pattern",
    '{"$ref": "http://127.0.0.1:1/schema"}': "is not a valid JSON Schema, at /",
    '{"$ref": "file:///etc/passwd"}': "is not a valid JSON Schema, at /",
    '{"$ref": "#/$defs/missing"}': "is not a valid JSON Schema, at /",
    '{"$schema": "http://127.0.0.1:1/meta"}': "is not a valid JSON Schema, at /",
    '{"maximum": NaN}': "must not contain NaN or Infinity",
    '{"maximum": -Infinity}': "must not contain NaN or Infinity",
    '{"maximum": 1e999}': "must not contain numbers beyond those of a double",
    '{"maximum": 1' + "0" * 5_000 + "}": "must not contain integers of more than 20 digits",
    '{"a": 1, "a": 2}': "must not have the same key twice in an object",
    '{"description": "\\ud800"}': "must not contain halves of surrogate pairs",
    '{"\\udc00": 1}': "must not contain halves of surrogate pairs",
    nested(101): "must be nested at most 100 levels deep",
    "[" * 60_000: "must be nested at most 100 levels deep",
    json.dumps({"description": "x" * 65_536}): "must have at most 65,536 bytes",
    json.dumps({"description": "ä" * 40_000}, ensure_ascii=False): "must have at most 65,536 bytes",
}


@pytest.mark.parametrize("text", GOOD, ids=lambda text: text[:40])
def test_schema_that_others_can_read_is_accepted(text: str) -> None:
    assert schemas.problem(text) is None


@pytest.mark.parametrize(("text", "problem"), BAD.items(), ids=lambda text: text[:40])
def test_schema_that_somebody_would_choke_on_is_refused(text: str, problem: str) -> None:
    assert schemas.problem(text) == problem


@pytest.mark.parametrize(
    "text",
    [
        '"' + '\\"' * 32_000,
        json.dumps({f"p{index}": {"pattern": "(x+x+)+y"} for index in range(1_500)}),
        json.dumps(
            {
                "$ref": "#/$defs/d0",
                "$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{(i + 1) % 30}"}] * 2} for i in range(30)},
            }
        ),
    ],
    ids=["unterminated string of escapes", "many patterns", "references that double"],
)
def test_hostile_schema_costs_no_time(text: str) -> None:
    started = time.process_time()
    schemas.problem(text)
    assert time.process_time() - started < 1
