"""What the scripted upstream saw: every request, and how it ended."""

import asyncio
from dataclasses import dataclass, field
from typing import Any, Literal

Outcome = Literal["open", "completed", "broken", "disconnected"]


@dataclass(slots=True, eq=False)
class ReceivedRequest:
    """One request. `outcome` is final once `closed` is set.

    completed: the answer ended as HTTP answers end, whatever was in it. broken: the upstream cut the connection,
    because the scene says so or because it was closed. disconnected: the client went away first.
    """

    number: int
    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    body: Any  # decoded JSON; text where it is not JSON
    scene: str | None = None
    outcome: Outcome = "open"
    closed: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    released: asyncio.Event = field(default_factory=asyncio.Event, repr=False)  # set it to end `hold_after`

    def close(self, outcome: Outcome) -> None:
        if not self.closed.is_set():
            self.outcome = outcome
            self.closed.set()

    def to_json(self) -> dict[str, Any]:
        kept = ("number", "method", "path", "headers", "body", "scene", "outcome")
        return {name: getattr(self, name) for name in kept}


class Recorder:
    """Requests in the order of their arrival, numbered from 1; the oldest go when there are more than `history`."""

    def __init__(self, *, history: int) -> None:
        self.requests: list[ReceivedRequest] = []
        self._history = history
        self._count = 0
        self._arrived = asyncio.Condition()

    async def add(self, *, method: str, path: str, headers: dict[str, str], body: Any) -> ReceivedRequest:
        self._count += 1
        request = ReceivedRequest(self._count, method, path, headers, body)
        self.requests.append(request)
        del self.requests[: -self._history]
        async with self._arrived:
            self._arrived.notify_all()
        return request

    async def wait(self, number: int, timeout: float) -> ReceivedRequest:
        """The request of this number. `timeout` in seconds; raises TimeoutError, LookupError when it is forgotten."""
        async with asyncio.timeout(timeout), self._arrived:
            await self._arrived.wait_for(lambda: self._count >= number)
        for request in self.requests:
            if request.number == number:
                return request
        raise LookupError(f"request {number} is no longer kept")

    def clear(self) -> None:
        """Forget all requests and count from 1 again."""
        self.requests.clear()
        self._count = 0
