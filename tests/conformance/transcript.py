"""Transcripts of runners, made comparable: the same for every run of a scenario, and readable."""

import difflib
import hashlib
import json
import re
from base64 import b64decode
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import json_format

from conformance.scenario import Line, Scenario, response_of

# The service's own, and those that the scripted model gives its calls.
_ID = re.compile(r"\b(asst|thread|msg|run|step|call)_(?:[0-9a-z]{26}|\d+_\d+)\b")
_DROPPED = re.compile(r".*_time|etag|next_page_token|renew_time|reference")
_LONGEST = 200  # characters that are shown whole
_JUMPS = ("attempt_started", "snapshot")


class Unreadable(Exception):
    """What a runner wrote is no transcript."""


def read(output: bytes) -> list[Line]:
    """The lines that a runner wrote. Raises Unreadable."""
    try:
        lines = [json.loads(line) for line in output.decode().splitlines() if line.strip()]
    except ValueError as error:
        raise Unreadable(f"a line is not JSON: {error}") from error
    if not all(isinstance(line, dict) for line in lines):
        raise Unreadable("a line is not a JSON object")
    return lines


def comparable(lines: Sequence[Line], scenario: Scenario, names: Mapping[str, str]) -> list[Line]:
    """The lines without what differs from run to run: ids become names, times go, long texts become their hashes."""
    naming = _Naming(names)
    kept = [line for line in lines if scenario.compare == "everything" or "event" not in line]
    return [naming.clean(_decoded(line, scenario)) for line in kept]


def check_order(lines: Sequence[Line]) -> list[str]:
    """What is wrong with the order of events that are not compared one by one: each comes once, none is left out."""
    wrong = []
    last: dict[int, int] = {}
    for line in lines:
        if "event" not in line:
            continue
        step, event = line["step"], line["event"]
        before = last.get(step, event["sequence"] - 1)
        if event["sequence"] <= before or (event["sequence"] != before + 1 and event["kind"] not in _JUMPS):
            wrong.append(f"step {step}: event {event['sequence']} ({event['kind']}) after event {before}")
        last[step] = event["sequence"]
    return wrong


def difference(expected: Sequence[Line], actual: Sequence[Line]) -> str:
    """What differs, a line each; empty where nothing does."""
    before, after = (
        [json.dumps(line, ensure_ascii=False, sort_keys=True) for line in lines] for lines in (expected, actual)
    )
    return "\n".join(difflib.unified_diff(before, after, "expected", "actual", n=1, lineterm=""))


def _decoded(line: Line, scenario: Scenario) -> Line:
    if "response" in line:
        method = scenario.steps[line["step"]]["method"]
        decoded = response_of(method, b64decode(line["response"]))
        return line | {"response": json_format.MessageToDict(decoded, preserving_proto_field_name=True)}
    if "error" in line:
        return line | {"error": _told_by_service(line["error"])}
    return line


def _told_by_service(error: Line) -> Line:
    """The error without what the transport words as it likes, and without what says nothing."""
    kept = {key: value for key, value in error.items() if value or key == "reason"}
    return kept if error["reason"] else {key: value for key, value in kept.items() if key != "message"}


class _Naming:
    """Gives ids their names: those that the scenario knows, then by order of appearance."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = {value: f"${name}" for name, value in names.items()}
        self._counts: dict[str, int] = {}

    def clean(self, value: Any) -> Any:
        if isinstance(value, dict):
            kept = {key: each for key, each in value.items() if not _DROPPED.fullmatch(key)}
            return {key: self.clean(_compact(each) if key == "output" else each) for key, each in kept.items()}
        if isinstance(value, list):
            return [self.clean(each) for each in value]
        if isinstance(value, str):
            return _shortened(_ID.sub(lambda match: self._name(match[0], match[1]), value))
        return value

    def _name(self, found: str, kind: str) -> str:
        if found not in self._names:
            self._counts[kind] = self._counts.get(kind, 0) + 1
            self._names[found] = f"<{kind} {self._counts[kind]}>"
        return self._names[found]


def _compact(output: str) -> str:
    """An output without white space where it is a JSON object: languages differ in that."""
    try:
        parsed = json.loads(output)
    except ValueError:
        return output
    return json.dumps(parsed, ensure_ascii=False, separators=(",", ":")) if isinstance(parsed, dict) else output


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    return f"<{len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}>"
