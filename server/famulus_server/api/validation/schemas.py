"""JSON Schemas, which callers send as text."""

import json
import math
import re
from typing import Any

import jsonschema_rs

_MOST_BYTES = 64 * 1024
# Parsers recurse: ours gives up at 1,000 levels, those of others (the model's provider, clients) earlier.
_MOST_LEVELS = 100
_MOST_DIGITS = 20
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)
# A pattern that would backtrack for ever is cut off, and one that would compile to megabytes is refused.
_PATTERNS = jsonschema_rs.FancyRegexOptions(backtrack_limit=10_000, size_limit=1 << 18, dfa_size_limit=1 << 18)


class _Unusable(ValueError):
    """The text is JSON by Python's standards, but not by those of everybody else."""


def problem(text: str) -> str | None:
    """What is wrong with the text of a JSON Schema, as the end of a sentence; None if nothing is.

    It must be a JSON object of at most 64 KiB and 100 levels, with unique keys and ordinary numbers, and a valid
    schema by the draft that it names (2020-12 by default), whose references all lead into itself.
    """
    if len(text) > _MOST_BYTES or len(text.encode()) > _MOST_BYTES:
        return f"must have at most {_MOST_BYTES:,} bytes"
    if _levels(text) > _MOST_LEVELS:
        return f"must be nested at most {_MOST_LEVELS} levels deep"
    try:
        schema = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_short,
        )
        # An escaped half of a surrogate pair is a character to Python alone.
        json.dumps(schema, ensure_ascii=False).encode()
    except _Unusable as unusable:
        return str(unusable)
    except UnicodeEncodeError:
        return "must not contain halves of surrogate pairs"
    except ValueError:
        return "is not valid JSON"
    if not isinstance(schema, dict):
        return "must be a JSON object"
    return _schema_problem(schema)


def _levels(text: str) -> int:
    deepest = level = 0
    for token in _TOKENS.finditer(text):
        bracket = token[0]
        if bracket in "[{":
            level += 1
            deepest = max(deepest, level)
        elif bracket in "]}":
            level -= 1
    return deepest


def _schema_problem(schema: dict[str, Any]) -> str | None:
    try:
        # Offline: a reference to elsewhere is an error, never a request.
        jsonschema_rs.validator_for(schema, offline=True, pattern_options=_PATTERNS)
    except jsonschema_rs.ValidationError as error:
        place = "/".join(str(part)[:40] for part in error.instance_path[:8])
        return f"is not a valid JSON Schema, at /{place}"
    except (ValueError, jsonschema_rs.ReferencingError):
        return "is not a valid JSON Schema"
    return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise _Unusable("must not have the same key twice in an object")
    return result


def _no_constant(_: str) -> float:
    raise _Unusable("must not contain NaN or Infinity")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise _Unusable("must not contain numbers beyond those of a double")
    return number


def _short(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise _Unusable(f"must not contain integers of more than {_MOST_DIGITS} digits")
    return int(digits)
