"""Every RPC of the API, by reflection: what is tried on one is tried on all, on those to come as well."""

import importlib
import pkgutil
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

import famulus.v1
from serving import Refusal, refusal

_ERRORS = Path(__file__).parents[2] / "docs/errors.md"
_ROW = re.compile(r"^\| `(\w+)` \| (\w+) \|", re.MULTILINE)
_SECONDS = 20.0
_EXCUSES = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE}


@dataclass(frozen=True, slots=True)
class Rpc:
    """A method: `path` is that of gRPC, `/famulus.v1.RunService/GetRun`."""

    path: str
    request: type[Message]
    takes_stream: bool

    @property
    def name(self) -> str:
        """`GetRun`."""
        return self.path.rpartition("/")[2]


def _find() -> Iterator[Rpc]:
    for module in pkgutil.iter_modules(famulus.v1.__path__):
        if not module.name.endswith("_service_pb2"):
            continue
        services = importlib.import_module(f"famulus.v1.{module.name}").DESCRIPTOR.services_by_name
        for service in services.values():
            for method in service.methods:
                path = f"/{service.full_name}/{method.name}"
                yield Rpc(path, GetMessageClass(method.input_type), method.client_streaming)


RPCS = tuple(_find())


@cache
def _documented() -> Mapping[str, str]:
    """The codes of the reasons, as docs/errors.md has them."""
    return dict(_ROW.findall(_ERRORS.read_text(encoding="utf-8").partition("## Error of a run")[0]))


def send(channel: grpc.Channel, rpc: Rpc, data: bytes) -> list[bytes] | Refusal:
    """The responses to a request of these bytes, whatever they are, or the refusal. Streams are left when they fall
    silent for the first time.

    A refusal is one that docs/errors.md has, and no excuse: neither a fault of ours, nor that the server cannot serve.
    """
    # A client need not know whether a method streams: on the wire it is all the same.
    call: Any = (
        channel.stream_stream(rpc.path)(iter([data]), timeout=_SECONDS)  # type: ignore[arg-type]
        if rpc.takes_stream
        else channel.unary_stream(rpc.path)(data, timeout=_SECONDS)  # type: ignore[arg-type]
    )
    answers: list[bytes] = []
    try:
        for answer in call:
            answers.append(answer)
            if not answer:
                call.cancel()
                break
    except grpc.RpcError as error:
        told = refusal(error)
        what = (rpc.name, told.code, told.message, data)
        assert _documented().get(told.reason) == told.code.name, what
        assert told.code not in _EXCUSES, what
        return told
    return answers
