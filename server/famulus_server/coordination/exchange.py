"""Questions of many callers to Redis over one connection: those that come at the same time go out together."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ResponseError

from famulus_server.coordination.connection import Command, Line, reason
from famulus_server.coordination.errors import RedisUnavailable

# What a caller waits at most (contract 27), and how much longer where the timer went off late: that tells of our own
# loop or machine, not of Redis, and its answer may be there.
_PATIENCE = 0.05
_LATE = 0.005
_GRACE = 0.02
# After so many failures in a row Redis is not asked any more.
_FAILURES = 5
# No caller waits for this one: a Redis that hangs for less keeps its connection.
_TIMEOUT = 1.0
_QUESTIONS_AT_A_TIME = 256
_MAX_WAITING = 10_000


@dataclass(frozen=True, slots=True, eq=False)
class _Question:
    command: Command
    answer: asyncio.Future[Any]
    time: float


class Exchange:
    """One connection, which belongs to the task that joins and serves. While it serves, any task may ask."""

    def __init__(self, *, url: str) -> None:
        self._line = Line(url=url, timeout=_TIMEOUT)
        self._waiting: list[_Question] = []
        self._due = asyncio.Event()
        self._is_open = False
        self._failures = 0
        self._failed_at = 0.0
        self._patient = 0

    @property
    def is_open(self) -> bool:
        """Whether there is a point in asking."""
        return self._is_open

    @property
    def has_failed(self) -> bool:
        """Whether it is closed because Redis failed too often, although there was a connection."""
        return self._failures >= _FAILURES

    async def join(self, commands: Iterable[Command]) -> list[Any]:
        """Connects, and says what has to be said before anybody asks. Raises RedisUnavailable."""
        self._failures = 0
        await self._line.renew()
        # One after another: nobody waits for them, and each may be long.
        answers = [(await self._line.ask([command]))[0] for command in commands]
        for answer in answers:
            if isinstance(answer, ResponseError):
                raise RedisUnavailable(reason(answer))
        self._is_open = True
        return answers

    async def serve(self) -> None:
        """Sends what is asked, and never returns. Raises RedisUnavailable once the connection is lost, or Redis has
        failed too often; then nobody can ask until it is joined again."""
        asked: list[_Question] = []
        try:
            while self._is_open:
                await self._due.wait()
                self._due.clear()
                while asked := self._take():
                    if await self._line.renew():
                        # It may have come back empty. What it has to know is said by whoever joins.
                        raise RedisUnavailable("connection lost")
                    answers = await self._line.ask([question.command for question in asked])
                    for question, answer in zip(asked, answers, strict=True):
                        if not question.answer.done():
                            question.answer.set_result(answer)
            raise RedisUnavailable("too many failures")
        finally:
            self._is_open = False
            for question in (*asked, *self._waiting):
                if not question.answer.done():
                    question.answer.set_exception(RedisUnavailable("connection lost"))
            self._waiting = []

    async def ask(self, command: Command) -> Any:
        """The answer, in time or not at all. Raises RedisUnavailable, also where Redis refuses; what was asked may be
        done all the same, and later."""
        if not self._is_open:
            raise RedisUnavailable("not connected")
        # As long as Redis may be hanging, one caller at a time waits for it.
        if self._failures and self._patient:
            self.tell(command)
            raise RedisUnavailable("in doubt")
        loop = asyncio.get_running_loop()
        question = _Question(command, loop.create_future(), loop.time())
        self._put(question)
        timer = loop.call_later(_PATIENCE, self._lose_patience, question)
        self._patient += 1
        try:
            answer = await question.answer
        finally:
            self._patient -= 1
            timer.cancel()
        if isinstance(answer, ResponseError):
            self._count_failure(question)
            raise RedisUnavailable(reason(answer))
        self._failures = 0
        return answer

    def tell(self, command: Command) -> None:
        """Sends a command whose answer nobody waits for, unless it is too late for that."""
        question = _Question(command, asyncio.get_running_loop().create_future(), 0.0)
        question.answer.set_result(None)
        self._put(question)

    async def close(self) -> None:
        """Closes the connection."""
        await self._line.close()

    def _put(self, question: _Question) -> None:
        if self._is_open and len(self._waiting) < _MAX_WAITING:
            self._waiting.append(question)
            self._due.set()

    def _take(self) -> list[_Question]:
        # Of those who lost patience it is sent as well: they were answered otherwise, and that has to be counted.
        waiting = [question for question in self._waiting if not question.answer.cancelled()]
        self._waiting = waiting[_QUESTIONS_AT_A_TIME:]
        return waiting[:_QUESTIONS_AT_A_TIME]

    def _lose_patience(self, question: _Question) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() - question.time > _PATIENCE + _LATE:
            loop.call_later(_GRACE, self._give_up, question)
        else:
            self._give_up(question)

    def _give_up(self, question: _Question) -> None:
        if not question.answer.done():
            question.answer.set_exception(RedisUnavailable("no answer in time"))
            self._count_failure(question)

    def _count_failure(self, question: _Question) -> None:
        # What was asked before the last failure says nothing new.
        if question.time < self._failed_at:
            return
        self._failed_at = asyncio.get_running_loop().time()
        self._failures += 1
        if self._failures >= _FAILURES:
            self._is_open = False
            self._due.set()
