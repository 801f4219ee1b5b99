"""Connections to Redis: a single one whose owner knows when it is another one than before, and some to ask by."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from redis.asyncio.connection import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig

from famulus_server.coordination.answers import Answer, Answers
from famulus_server.coordination.errors import RedisUnavailable
from famulus_server.coordination.patience import Patience

Command = Sequence[str | bytes | int]

_ARGUMENT = b"$%d\r\n%b\r\n"


class Line:
    """One connection. It never reconnects by itself, as the library's pools do: Redis may have come back empty."""

    def __init__(self, *, url: str, timeout: float) -> None:
        """`timeout` is in seconds: for connecting, for sending with the first answer, and for each further answer."""
        # Timed here: the library would start a task for all that it sends, and a timer for each answer.
        self._connection = make_connection(url, timeout=None)
        self._timeout = timeout
        # While somebody listens.
        self._transport: asyncio.Transport | None = None

    async def renew(self) -> bool:
        """Connects where there is no connection, or it has ended; tells whether. Raises RedisUnavailable."""
        try:
            if self._connection.is_connected:
                # Nothing is outstanding, so there is something to read only where the other side has hung up.
                if not await self._connection.can_read():
                    return False
                await self._connection.disconnect(nowait=True)
            async with asyncio.timeout(self._timeout):
                await self._connection.connect()
        except (RedisError, OSError) as error:
            raise RedisUnavailable(reason(error)) from error
        return True

    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        """The answers to all commands, sent at once; refusals are ResponseErrors among them. Call `renew` before.
        Raises RedisUnavailable, and then nobody knows what was done, and the connection is closed."""
        now = asyncio.get_running_loop().time
        answers: list[Any] = []
        try:
            async with asyncio.timeout(self._timeout) as timer:
                await self._connection.send_packed_command(_pack(commands), check_health=False)
                for _ in commands:
                    if answers:
                        timer.reschedule(now() + self._timeout)
                    answers.append(await self._answer())
        except (RedisError, OSError) as error:
            await self.close()
            raise RedisUnavailable(reason(error)) from error
        return answers

    def listen(self, *, heard: Callable[[Answer], None], lost: Callable[[str], None]) -> None:
        """Instead of asking: from now on, and until it is closed, all that is sent is answered by `heard`, in its turn,
        until the connection is `lost`. Only numbers and texts are understood."""
        # The library itself can only be asked by a task, at several times the cost.
        self._transport = transport = self._connection._writer.transport  # noqa: SLF001 - there is no other way
        transport.set_protocol(Answers(before=transport.get_protocol(), heard=heard, lost=lost))

    def send(self, commands: Sequence[Command]) -> None:
        """Sends commands to whose answers somebody listens."""
        if self._transport is not None:
            self._transport.write(_pack(commands))

    async def close(self) -> None:
        """Closes the connection; `renew` opens another."""
        if self._transport is not None:
            # What is not sent yet does not keep it open.
            self._transport.abort()
            self._transport = None
        with contextlib.suppress(RedisError, OSError):
            async with asyncio.timeout(self._timeout):
                await self._connection.disconnect()

    async def _answer(self) -> Any:
        try:
            return await self._connection.read_response()
        except ResponseError as error:
            return error


class Reader:
    """Asks for somebody who waits, and waits no longer than his patience lasts."""

    def __init__(self, *, url: str, patience: Patience) -> None:
        self._url = url
        self._patience = patience
        # As many as there ever were questions at a time.
        self._idle: list[Line] = []

    async def ask(self, *command: str | bytes | int) -> Any:
        """The answer to a command that changes nothing. Raises RedisUnavailable, also where it is refused."""
        started = asyncio.get_running_loop().time()
        try:
            return await self._ask(command)
        except RedisUnavailable:
            if not self._patience.is_late(started):
                raise
        return await self._ask(command)

    async def close(self) -> None:
        """Closes the connections."""
        for line in self._idle:
            await line.close()

    async def _ask(self, command: Command) -> Any:
        line = self._idle.pop() if self._idle else Line(url=self._url, timeout=self._patience.seconds)
        await line.renew()
        [answer] = await line.ask([command])
        self._idle.append(line)
        if isinstance(answer, ResponseError):
            raise RedisUnavailable(reason(answer)) from answer
        return answer


def _pack(commands: Sequence[Command]) -> bytes:
    """As they go over the wire. The library's own way takes three times as long."""
    packed: list[bytes] = []
    for command in commands:
        texts = [text if type(text) is bytes else str(text).encode() for text in command]
        packed.append(b"*%d\r\n" % len(texts))
        packed += map(_ARGUMENT.__mod__, zip(map(len, texts), texts, strict=True))
    return b"".join(packed)


@contextlib.contextmanager
def cancellable() -> Iterator[None]:
    """Around whatever sends by the library. It uses asyncio.wait_for, which before Python 3.12 loses a cancel that
    comes when it is about to return: whoever waits for the cancelled task would wait for ever."""
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        yield
    finally:
        if task and task.cancelling() > before:
            raise asyncio.CancelledError


def make_connection(url: str, *, timeout: float | None) -> Any:
    """A connection of the library, which gives it no types. It is yet to be connected, and tries everything once;
    nothing has an end without a `timeout`."""
    # Only the pool knows how to read a URL.
    pool: Any = ConnectionPool.from_url(
        url,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry=Retry(NoBackoff(), 0),
        # Otherwise it asks for news of maintenance, which come between answers.
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
    )
    return pool.make_connection()


def reason(error: Exception) -> str:
    """What went wrong, for the log: the error's text may hold what was sent, or a password."""
    if isinstance(error.__cause__, RedisError):
        # The library wraps a refused password once more.
        error = error.__cause__
    word = str(error).partition(" ")[0]
    # Codes of which the library knows no class come first in the text, as in "NOREPLICAS Not enough ...".
    told = isinstance(error, ResponseError) and word.isalpha() and word.isupper()
    return f"{type(error).__name__}: {word}" if told else type(error).__name__
