"""`python -m conformance.mutant FAULT TARGET`: the Python runner, with a fault built in that the suite must see."""

import runpy
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import grpc

from conformance.scenario import CLIENTS
from famulus import following, retry, stream, tools, view
from famulus.errors import FamulusError
from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.tool_pb2 import ToolCall, ToolOutput

_SEQUENCE = 5  # of the event that is dropped or repeated


def drops_an_event() -> None:
    take = following.Following.take

    def patched(self: following.Following, event: RunEvent) -> bool:
        return take(self, event) and event.sequence != _SEQUENCE

    following.Following.take = patched  # type: ignore[method-assign]


def repeats_an_event() -> None:
    following_on = stream.RunStream.__anext__
    told: list[RunEvent] = []

    async def patched(self: stream.RunStream) -> RunEvent:
        if told and told[-1].sequence == _SEQUENCE:
            return told.pop()
        told.append(await following_on(self))
        return told[-1]

    stream.RunStream.__anext__ = patched  # type: ignore[method-assign]


def forgets_its_place() -> None:
    """It joins one event too early, once, and takes what comes."""
    joining = following.Following.joining

    def patched(self: following.Following) -> Any:
        if self.last_sequence == _SEQUENCE:
            self.last_sequence -= 1
            following.Following.joining = joining  # type: ignore[method-assign]
        return joining(self)

    following.Following.joining = patched  # type: ignore[method-assign]


def gives_up() -> None:
    def patched(self: retry.Outage, error: FamulusError) -> float:
        raise error

    retry.Outage.delay = patched  # type: ignore[method-assign]


def misreads_an_error() -> None:
    read = FamulusError.from_rpc

    def patched(error: grpc.RpcError) -> FamulusError:
        told = read(error)
        return FamulusError(told.message, code=told.code, reason_name="INTERNAL", metadata=told.metadata)

    FamulusError.from_rpc = patched  # type: ignore[method-assign]


def loses_what_is_in_an_error() -> None:
    read = FamulusError.from_rpc

    def patched(error: grpc.RpcError) -> FamulusError:
        told = read(error)
        told.metadata.clear()
        return told

    FamulusError.from_rpc = patched  # type: ignore[method-assign]


def leaks_an_exception() -> None:
    def patched(call: ToolCall, error: BaseException) -> ToolOutput:
        return ToolOutput(call_id=call.id, output=repr(error), is_error=True)

    tools._failed = patched


def hides_that_a_tool_failed() -> None:
    failed = tools._failed

    def patched(call: ToolCall, error: BaseException) -> ToolOutput:
        return ToolOutput(call_id=call.id, output=failed(call, error).output)

    tools._failed = patched


def answers_one_by_one() -> None:
    """It submits the outputs of the first call alone."""
    claim = tools.Toolbox.claim

    def patched(self: tools.Toolbox, calls: Iterable[ToolCall]) -> set[str]:
        return set(sorted(claim(self, calls))[:1])

    tools.Toolbox.claim = patched  # type: ignore[method-assign]


def keeps_what_was_discarded() -> None:
    view.RunView._discard = lambda self, after: None  # type: ignore[method-assign]


FAULTS: Mapping[str, Callable[[], None]] = {
    fault.__name__: fault
    for fault in (
        drops_an_event,
        repeats_an_event,
        forgets_its_place,
        gives_up,
        misreads_an_error,
        loses_what_is_in_an_error,
        leaks_an_exception,
        hides_that_a_tool_failed,
        answers_one_by_one,
        keeps_what_was_discarded,
    )
}

if __name__ == "__main__":
    FAULTS[sys.argv.pop(1)]()
    runner = CLIENTS / "python/conformance/conformance_runner.py"
    sys.path.insert(0, str(runner.parent))
    runpy.run_path(str(runner), run_name="__main__")
