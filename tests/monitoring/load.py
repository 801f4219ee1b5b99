"""What callers do: runs that complete, use tools, fail, are cancelled, and are refused by limits."""

import asyncio
import contextlib
import itertools
import random
from collections.abc import Awaitable, Callable

import grpc

from famulus.v1.assistant_pb2 import Assistant
from famulus.v1.run_pb2 import RatingVerdict, Run, RunRating, RunState
from famulus.v1.run_service_pb2 import RateRunRequest
from famulus.v1.thread_pb2 import Thread
from run_stage import TOOLS, Stage

# Longer than all stories but those of runs whose database goes away.
_PATIENCE_SECONDS = 5.0
# While Redis is away, nothing is seen of an answer until it ends: other replicas execute the runs.
_FIRST_WORD_SECONDS = 1.0
_WORDS = ("rivers", "mountains", "islands", "lakes", "deserts", "forests", "valleys", "glaciers")


class Load:
    """Callers of one server. Each lives through one story after the other."""

    def __init__(self, stage: Stage, *, seed: int = 1) -> None:
        self._stage = stage
        self._rng = random.Random(seed)
        self._users = itertools.count(1)
        self._house = Assistant()
        self.stories: dict[str, tuple[Callable[[], Awaitable[None]], int]] = {
            "chat": (self.chat, 12),
            "tools": (self.tools, 3),
            "muddled": (self.muddled, 1),
            "impossible": (self.impossible, 1),
            "cancelled": (self.cancelled, 1),
            "eager": (self.eager, 1),
        }

    async def prepare(self) -> None:
        """Makes the assistant that all talk to."""
        self._house = await self._stage.assistant(model="house", tools=TOOLS)

    async def run(self, callers: int, seconds: float) -> None:
        """So many callers, for so long, or a little longer until their stories are over."""
        until = asyncio.get_running_loop().time() + seconds

        async def live() -> None:
            while asyncio.get_running_loop().time() < until:
                await self.tell(self._rng.choices(list(self.stories), [share for _, share in self.stories.values()])[0])
                await asyncio.sleep(self._rng.uniform(0.0, 0.4))

        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(live())

    async def tell(self, name: str) -> None:
        """One story. What the server refuses meanwhile is part of it, and so is a caller who waits no longer."""
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self.stories[name][0]()
        except TimeoutError:
            pass
        except grpc.aio.AioRpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
                raise

    async def chat(self) -> None:
        """Two questions on a thread, streamed; the answer is rated."""
        thread = await self._stage.thread(user_id=self._user())
        for _ in range(2):
            text = " ".join(self._rng.choices(_WORDS, k=self._rng.randint(4, 30)))
            run = await self._stage.start(text, thread_id=thread.id, assistant_id=self._house.id)
            await self._stage.watch(run.id)
        verdict = RatingVerdict.RATING_VERDICT_GOOD if self._rng.random() < 0.8 else RatingVerdict.RATING_VERDICT_BAD
        await self._stage.runs.RateRun(RateRunRequest(run_id=run.id, rating=RunRating(verdict=verdict)))

    async def tools(self) -> None:
        """A question that needs the weather, which takes a moment."""
        run = await self._stage.wait((await self._start("what is the weather?")).id)
        if run.state == RunState.RUN_STATE_REQUIRES_ACTION:
            await asyncio.sleep(self._rng.uniform(0.05, 0.3))
            await self._stage.submit(run.id, *((call.id, "sunny") for call in run.required_action.tool_calls))
            await self._stage.wait(run.id)

    async def muddled(self) -> None:
        """A model that calls a tool that nobody offered, besides one that somebody did."""
        run = await self._stage.wait((await self._start("a muddled one")).id)
        if run.state == RunState.RUN_STATE_REQUIRES_ACTION:
            await self._stage.submit(run.id, *((call.id, "noon") for call in run.required_action.tool_calls))
            await self._stage.wait(run.id)

    async def impossible(self) -> None:
        """A question that the model refuses."""
        await self._stage.wait((await self._start("an impossible one")).id)

    async def cancelled(self) -> None:
        """An answer that never ends, until it is cancelled."""
        run = await self._start("an endless one")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_WORD_SECONDS):
                await self._stage.until(run.id, "text_delta")
        await self._stage.cancel(run.id)
        await self._stage.wait(run.id)

    async def eager(self) -> None:
        """One user more often than allowed."""
        user = self._user()
        for _ in range(12):
            await self._stage.start(assistant_id=self._house.id, new_thread=Thread(user_id=user))

    async def _start(self, text: str) -> Run:
        thread = Thread(user_id=self._user())
        return await self._stage.start(text, assistant_id=self._house.id, new_thread=thread)

    def _user(self) -> str:
        return f"user-{next(self._users)}"
