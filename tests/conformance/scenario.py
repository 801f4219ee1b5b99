"""Scenarios as they stand in `clients/conformance/scenarios`, and what a runner gets of them."""

import json
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgspec
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from famulus.v1 import (
    assistant_service_pb2,
    run_service_pb2,
    thread_service_pb2,
    usage_service_pb2,
    user_data_service_pb2,
)
from famulus_server.embedded.upstream import Scene, Script, default_script

CLIENTS = Path(__file__).parents[2] / "clients"
FOLDER = CLIENTS / "conformance/scenarios"
# Loaded so that the methods can be looked up by name.
SERVICES = (
    assistant_service_pb2,
    run_service_pb2,
    thread_service_pb2,
    usage_service_pb2,
    user_data_service_pb2,
)
_NAME = re.compile(r"\$([a-z_0-9]+)")

Line = dict[str, Any]
Json = Mapping[str, Any]


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One scenario; `clients/conformance/README.md` explains every key."""

    about: str
    server: str = "plain"
    token: str = ""
    model: tuple[dict[str, Any], ...] = ()
    given: tuple[dict[str, Any], ...] = ()
    cut: Any = None
    meanwhile: tuple[dict[str, Any], ...] = ()
    steps: tuple[dict[str, Any], ...]
    compare: str = "everything"
    expected: tuple[Line, ...] = ()

    @property
    def script(self) -> Script:
        """What the model plays."""
        if not self.model:
            return default_script()
        return Script(scenes=tuple(msgspec.convert(expanded(scene, {}), Scene) for scene in self.model))


@dataclass(frozen=True)
class ScenarioFile:
    """A scenario and where it stands."""

    path: Path
    scenario: Scenario

    @property
    def name(self) -> str:
        return self.path.stem

    @classmethod
    def load(cls, path: Path) -> Self:
        return cls(path, msgspec.json.decode(path.read_bytes(), type=Scenario))

    def record(self, expected: tuple[Line, ...]) -> None:
        """Rewrites the file with other expectations."""
        scenario = msgspec.structs.replace(self.scenario, expected=expected)
        fields: Json = msgspec.to_builtins(scenario)
        entries = ",\n".join(f"  {json.dumps(key)}: {_pretty(value)}" for key, value in fields.items())
        self.path.write_text(f"{{\n{entries}\n}}\n", encoding="utf-8")


def all_scenarios() -> Iterator[ScenarioFile]:
    """Every scenario, by name."""
    return map(ScenarioFile.load, sorted(FOLDER.glob("*.json")))


def expanded(value: Any, names: Mapping[str, str]) -> Any:
    """A piece of a scenario with `$name` replaced, and two short forms written out:
    `{"repeat": text, "times": n}` for a long text, `{"user": text}` for a user's message."""
    if isinstance(value, str):
        return _NAME.sub(lambda match: names[match[1]], value)
    if isinstance(value, list | tuple):
        return [expanded(each, names) for each in value]
    if isinstance(value, dict):
        if value.keys() == {"repeat", "times"}:
            return value["repeat"] * value["times"]
        if value.keys() == {"user"}:
            text = expanded(value["user"], names)
            return {"role": "MESSAGE_ROLE_USER", "content": [{"text": {"text": text}}]}
        return {key: expanded(each, names) for key, each in value.items()}
    return value


def runner_scenario(name: str, scenario: Scenario, names: Mapping[str, str]) -> Line:
    """What a runner reads: the steps with their requests serialized."""
    steps = [_runner_step(expanded(step, names)) for step in scenario.steps]
    token = {"token": expanded(scenario.token, names)} if scenario.token else {}
    return {"name": name, **token, "steps": steps}


def _runner_step(step: Line) -> Line:
    if "method" in step:
        return step | {"request": _serialized(request_of(step["method"], step.get("request", {})))}
    if "create" in step:
        return step | {"create": _serialized(json_format.ParseDict(step["create"], run_service_pb2.CreateRunRequest()))}
    return step


def method_named(method: str) -> MethodDescriptor:
    """`famulus.v1.RunService/GetRun`."""
    service, _, name = method.partition("/")
    return descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]


def request_of(method: str, fields: Json) -> Message:
    """A request, of its fields as protojson."""
    request = message_factory.GetMessageClass(method_named(method).input_type)()
    return json_format.ParseDict(dict(fields), request)


def response_of(method: str, serialized: bytes) -> Message:
    """A response, of its bytes."""
    return message_factory.GetMessageClass(method_named(method).output_type).FromString(serialized)


def _serialized(message: Message) -> str:
    return b64encode(message.SerializeToString()).decode()


def _pretty(value: Any) -> str:
    """One entry of a list a line: steps and transcripts are read line by line."""
    if isinstance(value, list | tuple) and value:
        lines = ",\n".join(f"    {json.dumps(each, ensure_ascii=False)}" for each in value)
        return f"[\n{lines}\n  ]"
    return json.dumps(value, ensure_ascii=False)
