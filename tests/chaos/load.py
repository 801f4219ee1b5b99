"""Many users at once, each living through one story after the other."""

import asyncio
import random
from collections.abc import Callable, Mapping

from chaos.actor import Actor
from chaos.calls import FAULTS_OF_OURS, Calls
from chaos.journal import Journal
from chaos.stories import STORIES, Square
from famulus import FamulusError

USERS = 12
# A story is long over by then, whatever breaks meanwhile.
_STORY_SECONDS = 90.0


class Load:
    """The users of one trial."""

    def __init__(
        self, *, calls: Calls, journal: Journal, seed: int, assistant_id: str, stories: Mapping[str, float]
    ) -> None:
        self._calls = calls
        self._journal = journal
        self._seed = seed
        self._assistant_id = assistant_id
        self._stories = stories
        self._square = Square()

    async def run(self, enough: Callable[[], bool]) -> None:
        """Returns once there was `enough`, and all stories that had begun have ended."""
        async with asyncio.TaskGroup() as users:
            for user in range(USERS):
                users.create_task(self._live(user, enough), name=f"user {user}")

    async def _live(self, user: int, enough: Callable[[], bool]) -> None:
        rng = random.Random(f"{self._seed}-{user}")
        number = 0
        while not enough():
            number += 1
            name = rng.choices(list(self._stories), list(self._stories.values()))[0]
            actor = Actor(
                name=f"u{user}n{number}",
                calls=self._calls,
                journal=self._journal,
                rng=random.Random(rng.random()),
                assistant_id=self._assistant_id,
            )
            await self._tell(name, actor)
            if rng.random() < 0.03:
                # The shared threads grow; others take their place.
                self._square.threads = self._square.threads[1:]

    async def _tell(self, name: str, actor: Actor) -> None:
        self._journal.counts["stories"] += 1
        try:
            async with asyncio.timeout(_STORY_SECONDS):
                await STORIES[name](actor, self._square)
        except TimeoutError:
            runs = ", ".join(run.id for run in actor.runs) or actor.name
            self._journal.violate("a story does not end", runs, f"{name}, after {_STORY_SECONDS:g} s")
        except FamulusError as error:
            if error.code in FAULTS_OF_OURS:
                return  # noted already
            self._journal.violate("a story broke off", f"{name} of {actor.name}", str(error))
