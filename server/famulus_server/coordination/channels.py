"""Redis Pub/Sub as the hints use it: one channel per topic, whatever the database number."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

from redis.exceptions import RedisError, ResponseError

from famulus_server.coordination.connection import Line, cancellable, make_connection, reason
from famulus_server.coordination.errors import RedisUnavailable

_TIMEOUT = 1.0
_CHANNELS_AT_A_TIME = 500
_PREFIX = "famulus:hints:"


def channel_of(topic: str) -> str:
    """The name of the channel on which a topic's hints travel."""
    return _PREFIX + topic


class News(NamedTuple):
    """Something came in: a hint, or an empty text once a topic is subscribed to. Anything else has no topic."""

    topic: str
    text: str


class Publisher:
    """Sends hints over a connection of its own."""

    def __init__(self, *, url: str) -> None:
        self._line = Line(url=url, timeout=_TIMEOUT)

    async def send(self, hints: Sequence[tuple[str, str]]) -> None:
        """Sends topics and texts. Raises RedisUnavailable; then some may have been sent."""
        await self._line.renew()
        answers = await self._line.ask([("PUBLISH", channel_of(topic), text) for topic, text in hints])
        for answer in answers:
            if isinstance(answer, ResponseError):
                raise RedisUnavailable(reason(answer))

    async def close(self) -> None:
        """Closes the connection."""
        await self._line.close()


class Subscriber:
    """Hears hints over a connection of its own. Each method but `close` raises RedisUnavailable; connect anew then."""

    def __init__(self, *, url: str) -> None:
        self._connection = make_connection(url, timeout=_TIMEOUT)

    async def connect(self) -> None:
        """Connects, subscribed to nothing."""
        try:
            with cancellable():
                await self._connection.connect()
        except (RedisError, OSError) as error:
            raise RedisUnavailable(reason(error)) from error

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Asks for the hints of topics; that they will come is told by News of each."""
        await self._name("SUBSCRIBE", topics)

    async def unsubscribe(self, topics: Iterable[str]) -> None:
        """Hints of these topics need not come any more."""
        await self._name("UNSUBSCRIBE", topics)

    async def ping(self) -> None:
        """Makes the other side say something."""
        await self._send("PING")

    async def hear(self, *, within: float) -> News | None:
        """The next thing that comes in; None after so many seconds of silence."""
        try:
            came: Any = await self._connection.read_response(timeout=within, push_request=True)
        except (RedisError, OSError) as error:
            raise RedisUnavailable(reason(error)) from error
        match came:
            case None:
                return None
            case [b"message", bytes(channel), bytes(text)]:
                return News(_topic_of(channel), text.decode(errors="replace"))
            case [b"subscribe", bytes(channel), _]:
                return News(_topic_of(channel), "")
        return News("", "")

    async def close(self) -> None:
        """Closes the connection."""
        try:
            await self._connection.disconnect()
        except (RedisError, OSError):
            return

    async def _name(self, command: str, topics: Iterable[str]) -> None:
        rest = map(channel_of, topics)
        while some := list(islice(rest, _CHANNELS_AT_A_TIME)):
            await self._send(command, *some)

    async def _send(self, *command: str) -> None:
        # It would connect again by itself, and forget all subscriptions.
        if not self._connection.is_connected:
            raise RedisUnavailable("connection lost")
        try:
            with cancellable():
                await self._connection.send_command(*command, check_health=False)
        except (RedisError, OSError) as error:
            raise RedisUnavailable(reason(error)) from error


def _topic_of(channel: bytes) -> str:
    return channel.decode(errors="replace").removeprefix(_PREFIX)
