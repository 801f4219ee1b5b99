"""The port to limits that all replicas share (contract 26, 27)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Scope = Literal["tenant", "user", "assistant", "model", "tenant_model"]
Quantity = Literal["requests", "tokens", "runs"]


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit: how much of something somebody may use.

    `subject` says who: ids and names, joined by `/`. Of requests and tokens, `most` may come at once, and `per_second`
    comes back. Of runs, at most `most` are held at a time; `per_second` is 0.
    """

    scope: Scope
    subject: str
    quantity: Quantity
    most: int
    per_second: float = 0.0


@dataclass(frozen=True, slots=True)
class Demand:
    """So much is wanted of what a limit limits. Of more than `most`, `most` must be free, and the rest becomes debt."""

    limit: Limit
    amount: int = 1


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing was taken, because of this limit. After `retry_after` seconds there is enough, unless others take it. Of
    runs nobody knows when one is released: then it is when to ask again."""

    limit: Limit
    retry_after: float


class Limiter(Protocol):
    """Counts for all replicas together; where it cannot, each replica keeps to its share.

    Never raises, and never takes long: at most 50 ms, a few times.
    """

    async def take(
        self, demands: Sequence[Demand], *, holder: str = "", seconds: float = 0.0, key: str = ""
    ) -> Refused | None:
        """Takes all that is demanded, or nothing. A `holder` holds a place in each limit of runs until it is released,
        or for so many seconds; one that holds a place already takes no other. By its `key` it will be settled."""

    def settle(self, demands: Sequence[Demand], *, key: str, used: int, holder: str = "") -> None:
        """Corrects what was taken of tokens to what was used; debt is allowed. Once per key: again, it does nothing.
        A `holder` gives his places in these limits back. Returns at once: it is carried out soon, and before whatever
        is asked here later."""

    def release(self, limits: Sequence[Limit], *, holder: str) -> None:
        """Gives the places of a holder back. Those that it does not hold are none. Returns at once, as `settle`."""

    async def observe(self, limit: Limit, *, left: int) -> None:
        """Somebody who keeps the same limit says that only so much is left: the limit shrinks to that for now. It never
        grows by this."""

    async def pause(self, limits: Sequence[Limit], *, seconds: float) -> None:
        """Nothing is to be had of these for so long, and for a minute at most: whoever asks again then is told anew."""
