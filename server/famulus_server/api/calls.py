"""What the layers and the servicers know of the call they are in."""

import re
from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
import structlog
from google.rpc.status_pb2 import Status
from grpc.aio import ServicerContext

from famulus_server.ports import Caller

__all__ = [
    "Call",
    "Caller",
    "Method",
    "Proceed",
    "current_call",
    "current_tenant",
    "enter",
    "log_ids",
    "log_request",
]

# Ids of ours and imported ones. A caller may send anything as an id.
_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_LOGGED = ("run_id", "thread_id")


@dataclass(frozen=True, slots=True)
class Method:
    """What is called: its full name, `/famulus.v1.RunService/GetRun`, and whether it answers with a stream."""

    name: str
    streams: bool


@dataclass(slots=True, kw_only=True)
class Call:
    """One RPC, with the full name of its `method`, what was `received` and the `headers` that came with it; layers fill
    in the rest as they learn it.

    Once it has ended, the layers outside of `Errors` know the name of the gRPC `code` that the caller sees, and of an
    error of ours its `reason` and the `status` that he is still to be told.

    `error_facts` join the ErrorInfo metadata of whatever error ends the call. `let_go` says that the server ends the
    call, and not a caller who went away.

    For the audit there are the `request`, if it is one message that could be read, the `response` of a call that has
    just one, and the ids of what a stream has `made`; `when_answered` is called before a stream's first response.
    """

    method: str
    context: ServicerContext[Any, Any]
    received: Any
    headers: Iterable[tuple[str, str | bytes]]
    request_id: str = ""
    caller: Caller | None = None
    code: str = grpc.StatusCode.UNKNOWN.name
    reason: str = ""
    status: Status | None = None
    error_facts: dict[str, str] = field(default_factory=dict)
    let_go: bool = False
    request: Any = None
    response: Any = None
    made: dict[str, str] = field(default_factory=dict)
    when_answered: Callable[[], None] | None = None
    noted: bool = False


Proceed: TypeAlias = Callable[[Call], Awaitable[None]]

# Each RPC is a task of its own, so this is never seen by another call.
_CURRENT: ContextVar[Call] = ContextVar("famulus_call")


def enter(call: Call) -> None:
    """Makes `call` the current one of this task."""
    _CURRENT.set(call)


def current_call() -> Call:
    """The call that this task serves. LookupError outside of one."""
    return _CURRENT.get()


def current_tenant() -> str:
    """The tenant of the caller. Fails where no layer has found out who calls: never a default."""
    caller = _CURRENT.get().caller
    if caller is None:
        raise LookupError("the call has no caller")
    return caller.tenant


def log_ids(**ids: str) -> None:
    """All that this task logs from now on names these, unless they cannot be ids."""
    structlog.contextvars.bind_contextvars(**{name: value for name, value in ids.items() if _ID.fullmatch(value)})


def log_request(request: Any) -> None:
    """All that this task logs from now on names the run and the thread that the request names."""
    found = {name: value for name in _LOGGED if (value := getattr(request, name, ""))}
    if found:
        log_ids(**found)
