"""Questions of many callers to Redis over one connection: those that come while it answers go out together."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ResponseError

from famulus_server.coordination.answers import Answer
from famulus_server.coordination.connection import Command, Line, reason
from famulus_server.coordination.errors import RedisUnavailable
from famulus_server.coordination.patience import Patience

# How much longer a caller waits where the timer went off late.
_GRACE = 0.02
# No caller waits for this one: a Redis that hangs for less keeps its connection.
_TIMEOUT = 1.0
_QUESTIONS_AT_A_TIME = 256
# What nobody waits for goes out with the next question, or after so long.
_UNHURRIED_SECONDS = 0.02
_MAX_WAITING = 10_000


@dataclass(frozen=True, slots=True, eq=False)
class _Question:
    command: Command
    answer: asyncio.Future[Answer | RedisUnavailable]


class Exchange:
    """One connection, which belongs to the task that joins and serves. While it serves, any task may ask, as far as
    `patience` allows: that of this process's callers with Redis."""

    def __init__(self, *, url: str, patience: Patience) -> None:
        self._patience = patience
        self._line = Line(url=url, timeout=_TIMEOUT)
        # What is on its way; the rest goes out once all of that is answered.
        self._asked: deque[_Question] = deque()
        self._waiting: list[_Question] = []
        self._is_hurried = False
        # For what is on its way, and for what nobody hurries.
        self._overdue: asyncio.TimerHandle | None = None
        self._due: asyncio.TimerHandle | None = None
        # Why nobody can ask any more, once that is so.
        self._left: asyncio.Future[str] | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is a point in asking."""
        return self._is_joined and not self._patience.is_over

    async def join(self, commands: Iterable[Command]) -> list[Any]:
        """Connects, and says what has to be said before anybody asks. Raises RedisUnavailable."""
        await self._line.renew()
        # One after another: nobody waits for them, and each may be long.
        answers = [(await self._line.ask([command]))[0] for command in commands]
        for answer in answers:
            if isinstance(answer, ResponseError):
                raise RedisUnavailable(reason(answer))
        self._left = asyncio.get_running_loop().create_future()
        self._line.listen(heard=self._hear, lost=self._leave)
        return answers

    async def serve(self) -> None:
        """Lets others ask, and never returns. Raises RedisUnavailable once the connection is lost, Redis refuses, or
        somebody asks when patience is over; then nobody can ask until it is joined again: Redis may have come back
        empty, and what it has to know is said by whoever joins."""
        if self._left is None:
            raise RedisUnavailable("not connected")
        try:
            raise RedisUnavailable(await self._left)
        finally:
            self._forget()
            await self._line.close()

    async def ask(self, command: Command) -> Any:
        """The answer, in time or not at all. Raises RedisUnavailable, also where Redis refuses; what was asked may be
        done all the same, and later."""
        if self._patience.is_over:
            # Others may have lost it. Redis hears of what is answered otherwise from now on when it is joined again.
            self._leave("left alone")
        if not self._is_joined:
            raise RedisUnavailable("not connected")
        if self._patience.is_spent:
            self.tell(command)
            raise RedisUnavailable("in doubt")
        with self._patience.wait():
            answer = await self._answer_to(command)
            if isinstance(answer, RedisUnavailable):
                raise answer
        if isinstance(answer, ResponseError):
            # It is there, and cannot count: full, or to be read only. That costs nobody any time.
            self._leave(reason(answer))
            raise RedisUnavailable(reason(answer))
        return answer

    def tell(self, command: Command, heard: Callable[[Any], None] = lambda _: None) -> None:
        """Sends a command soon, before whatever is asked later. The answer is `heard`, or None: where it is too late
        to send it, the connection is lost, or Redis refuses."""
        question = _Question(command, asyncio.get_running_loop().create_future())
        if self.is_open and self._put(question, hurried=False):
            question.answer.add_done_callback(lambda answer: self._pass_on(answer.result(), heard))
        else:
            heard(None)

    async def close(self) -> None:
        """Closes the connection."""
        await self._line.close()

    @property
    def _is_joined(self) -> bool:
        return self._left is not None and not self._left.done()

    async def _answer_to(self, command: Command) -> Answer | RedisUnavailable:
        loop = asyncio.get_running_loop()
        asked = loop.time()
        question = _Question(command, loop.create_future())
        self._put(question, hurried=True)
        timer = loop.call_at(asked + self._patience.seconds, self._lose_patience, question, asked)
        try:
            return await question.answer
        finally:
            timer.cancel()

    def _pass_on(self, answer: Answer | RedisUnavailable, heard: Callable[[Any], None]) -> None:
        if isinstance(answer, ResponseError):
            self._leave(reason(answer))
        heard(None if isinstance(answer, Exception) else answer)

    def _leave(self, why: str) -> None:
        if self._left is not None and not self._left.done():
            self._left.set_result(why)

    def _put(self, question: _Question, *, hurried: bool) -> bool:
        """Whether there is room for it."""
        if len(self._waiting) >= _MAX_WAITING:
            return False
        self._waiting.append(question)
        if hurried:
            self._hurry()
        elif len(self._waiting) == 1:
            # Those that come while it waits go with it.
            self._due = asyncio.get_running_loop().call_later(_UNHURRIED_SECONDS, self._hurry)
        return True

    def _hurry(self) -> None:
        self._is_hurried = True
        if not self._asked:
            # Those who ask meanwhile go out together once that is answered.
            self._send()

    def _send(self) -> None:
        # Of those who lost patience it is sent as well: they were answered otherwise, and that has to be counted.
        waiting = [question for question in self._waiting if not question.answer.cancelled()]
        self._asked.extend(waiting[:_QUESTIONS_AT_A_TIME])
        self._waiting = waiting[_QUESTIONS_AT_A_TIME:]
        self._is_hurried = bool(self._waiting)
        if self._due is not None:
            self._due.cancel()
        if self._asked:
            self._line.send([question.command for question in self._asked])
            self._overdue = asyncio.get_running_loop().call_later(_TIMEOUT, self._leave, "no answer")

    def _hear(self, answer: Answer) -> None:
        if not self._asked:
            self._leave("unknown answer")
            return
        _answer(self._asked.popleft(), answer)
        if self._asked:
            return
        if self._overdue is not None:
            self._overdue.cancel()
        if self._is_hurried:
            self._send()

    def _forget(self) -> None:
        for timer in (self._due, self._overdue):
            if timer is not None:
                timer.cancel()
        for question in (*self._asked, *self._waiting):
            _answer(question, RedisUnavailable("connection lost"))
        self._asked.clear()
        self._waiting.clear()
        self._is_hurried = False

    def _lose_patience(self, question: _Question, asked: float) -> None:
        if self._patience.is_late(asked):
            asyncio.get_running_loop().call_later(_GRACE, self._give_up, question)
        else:
            self._give_up(question)

    def _give_up(self, question: _Question) -> None:
        _answer(question, RedisUnavailable("no answer in time"))


def _answer(question: _Question, answer: Answer | RedisUnavailable) -> None:
    if not question.answer.done():
        question.answer.set_result(answer)
