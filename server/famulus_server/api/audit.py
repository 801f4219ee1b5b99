"""Who did what, for the audit log: never what was said."""

from collections.abc import Iterator
from typing import Any, Literal

import grpc
from google.protobuf.message import Message

from famulus.v1 import error_reason_pb2 as reasons
from famulus_server.api.calls import Call, Method, Proceed
from famulus_server.api.errors import fail
from famulus_server.engine.audit import AuditTrail
from famulus_server.engine.pseudonyms import Pseudonyms
from famulus_server.errors import Unavailable
from famulus_server.ports import AuditEntry, Clock, Ids

_PACKAGE = "/famulus.v1."
_READS = ("Get", "List", "Watch", "Wait", "Query")
_OK = grpc.StatusCode.OK.name
_REFUSALS = (grpc.StatusCode.UNAUTHENTICATED.name, grpc.StatusCode.PERMISSION_DENIED.name)
# A caller may send anything as an id.
_MOST_CHARACTERS = 256
# Requests hold resources, and StreamRunRequest a request that does.
_DEPTH = 2
_RETRY_SECONDS = 1.0
# Names a repeated call, and no resource.
_NO_RESOURCE = "request_id"
_USER = "user_id"


class Audit:
    """The layer that notes calls once they have ended, and streams as soon as they have begun: `"changes"` are all that
    may change something, and all that were refused for who the caller is; `"all"` are those that read, too.

    Where the log cannot take more, calls that may change something are refused with STORE_UNAVAILABLE.
    """

    def __init__(
        self, *, calls: Literal["changes", "all"], trail: AuditTrail, pseudonyms: Pseudonyms, clock: Clock, ids: Ids
    ) -> None:
        self._all = calls == "all"
        self._trail = trail
        self._pseudonyms = pseudonyms
        self._clock = clock
        self._ids = ids

    def around(self, method: Method, proceed: Proceed) -> Proceed:
        if not method.name.startswith(_PACKAGE):
            return proceed  # probes and reflection
        changes = may_change(method.name)

        async def note(call: Call) -> None:
            if changes and self._trail.full:
                fail(call, _full())
                return
            if method.streams:
                call.when_answered = lambda: self._note(call, _OK, "", changes=changes)
            try:
                await proceed(call)
            finally:
                self._note(call, call.code, call.reason, changes=changes)

        return note

    def _note(self, call: Call, code: str, reason: str, *, changes: bool) -> None:
        refused = code in _REFUSALS
        # A stream that was noted when it began is noted again only where it ends for who the caller is.
        if not (self._all or changes or refused) or (call.noted and not refused):
            return
        call.noted = True
        caller = call.caller
        entry = AuditEntry(
            id=self._ids.new("audit"),
            time=self._clock.now(),
            tenant=_storable(caller.tenant) if caller else "",
            actor=_storable(caller.name) if caller else "",
            method=call.method.removeprefix(_PACKAGE).replace("/", "."),
            resources=self._resources(call),
            code=code,
            reason=reason,
            peer=call.context.peer(),
            request_id=call.request_id,
        )
        # However it ended: who gives up before he is asked who he is must not fill the log, either.
        if caller is None:
            self._trail.note_stranger(entry)
        else:
            self._trail.note(entry, must=changes)

    def _resources(self, call: Call) -> dict[str, str]:
        """The ids that the request names, and those of what the call made."""
        if call.caller is None:
            return {}
        found: dict[str, str] = {}
        for part in (call.request, call.response):
            if isinstance(part, Message):
                for name, value in ids_in(part):
                    found.setdefault(name, value[:_MOST_CHARACTERS])
        found |= call.made
        if _USER in found:
            # Nothing can be removed from the log, so nothing personal may get into it.
            found[_USER] = self._pseudonyms.of("audit", call.caller.tenant, found[_USER])
        return found


def _full() -> Unavailable:
    return Unavailable(
        reasons.ERROR_REASON_STORE_UNAVAILABLE,
        "the audit log cannot be written at present",
        retry_after=_RETRY_SECONDS,
    )


def _storable(name: str) -> str:
    """The name without what a database refuses: one row that cannot be stored would hold up all behind it."""
    return name.encode(errors="replace").decode().replace("\0", "?")


def may_change(method: str) -> bool:
    """Whether a method, named in full, does more than read."""
    return not method.rpartition("/")[2].startswith(_READS)


def ids_in(message: Message, prefix: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, str]]:
    """The ids that a message has in fields called `id` and `..._id`, its own before those of the messages in it. The
    `id` of what stands in the field `thread` is a `thread_id`. Lists are not looked into."""
    inner: list[tuple[str, Any]] = []
    for field, value in message.ListFields():
        if field.is_repeated:
            continue
        if isinstance(value, Message):
            inner.append((field.name, value))
        elif field.name == "id":
            yield f"{prefix}_id" if prefix else "id", value
        elif field.name.endswith("_id") and field.name != _NO_RESOURCE:
            yield field.name, value
    if depth:
        for name, part in inner:
            yield from ids_in(part, name, depth - 1)
