"""One trial: a cluster, its users, its faults, and the judgement."""

import asyncio
import contextlib
import random
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos.calls import Calls
from chaos.cluster import Cluster, open_cluster
from chaos.faults import ALL_KINDS, NOT_MENDED, Faults
from chaos.journal import Journal
from chaos.load import Load
from chaos.mutations import MUTATIONS
from chaos.sampler import Sampler
from chaos.script import FAULTY
from chaos.stories import EVERYTHING
from chaos.verdict import judge
from famulus.v1.assistant_pb2 import Assistant
from famulus.v1.assistant_service_pb2 import CreateAssistantRequest
from postgres import PostgresServer

_PROGRESS_SECONDS = 5.0
# Then what happened to a mutation is judged, if it has not shown before.
MUTATION_SECONDS = 25.0

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long a trial lasts: until there were so many runs and kills, and so many seconds are over. One of a mutation
    ends as soon as that is caught."""

    seed: int
    runs: int = 0
    kills: int = 0
    seconds: float = 0.0
    mutation: str = ""

    @property
    def stories(self) -> Mapping[str, float]:
        """The mix of what users do."""
        return MUTATIONS[self.mutation].stories if self.mutation else EVERYTHING

    @property
    def faults(self) -> Mapping[str, float]:
        """The mix of what breaks."""
        return MUTATIONS[self.mutation].faults if self.mutation else ALL_KINDS


async def conduct(plan: Plan, *, say: Say, keep: Path | None = None) -> tuple[Journal, "Figures"]:
    """Conducts one trial. Logs are written to `keep`, or to a folder that is gone in the end."""
    journal = Journal()
    with contextlib.ExitStack() as stack:
        postgres = await asyncio.to_thread(PostgresServer)
        stack.callback(postgres.close)
        await asyncio.to_thread(postgres.start)
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="famulus-chaos-")))
        async with open_cluster(
            folder, postgres=postgres, seed=plan.seed, journal=journal, mutation=plan.mutation
        ) as cluster:
            calls = Calls([replica.address for replica in cluster.replicas], journal=journal)
            try:
                await _live(plan, cluster, calls, journal, say)
                if not (plan.mutation and is_caught(plan.mutation, journal)):
                    await judge(cluster, calls, journal, seed=plan.seed)
                say(_state(journal))
                figures = Figures.of(journal, cluster)
            finally:
                await calls.close()
    return journal, figures


def is_caught(mutation: str, journal: Journal) -> bool:
    """Whether a rule is broken that the missing safety stands for."""
    return any(violation.rule in MUTATIONS[mutation].shows for violation in journal.violations)


@dataclass(frozen=True)
class Figures:
    """What was measured on the way."""

    runs: int
    kills: int
    freezes: int
    takeovers: int
    amplification: float  # calls of a model that is well, for each turn
    takeover_seconds: Mapping[str, list[float]]
    resume_seconds: list[float]

    @classmethod
    def of(cls, journal: Journal, cluster: Cluster) -> "Figures":
        """The figures of a trial that has been judged."""
        return cls(
            runs=len(journal.runs),
            kills=sum(journal.counts[what] for what in ("replica kill", "valkey kill", "postgres kill")),
            freezes=sum(journal.counts[what] for what in ("replica freeze", "valkey freeze", "postgres freeze")),
            takeovers=journal.counts["takeovers"],
            amplification=_calls_of_sound_models(cluster) / max(1, journal.counts["turns"]),
            takeover_seconds={how: sorted(taken) for how, taken in journal.takeover_seconds.items()},
            resume_seconds=sorted(journal.resume_seconds),
        )


def _calls_of_sound_models(cluster: Cluster) -> int:
    return sum(not (request.scene or "").startswith(FAULTY) for request in cluster.upstream.requests)


async def _live(plan: Plan, cluster: Cluster, calls: Calls, journal: Journal, say: Say) -> None:
    """The load and the faults, until there was enough of both."""
    started = time.monotonic()

    def enough() -> bool:
        if any(violation.rule == NOT_MENDED for violation in journal.violations):
            return True
        kills = journal.counts["replica kill"]
        return len(journal.runs) >= plan.runs and kills >= plan.kills and time.monotonic() - started >= plan.seconds

    assistant = CreateAssistantRequest(assistant=Assistant(model="scripted"), request_id="the one assistant")
    assistant_id = (await calls.send("CreateAssistant", assistant, random.Random(plan.seed))).assistant.id
    load = Load(calls=calls, journal=journal, seed=plan.seed, assistant_id=assistant_id, stories=plan.stories)
    faults = Faults(cluster=cluster, journal=journal, rng=random.Random(plan.seed), mix=plan.faults)
    with (
        _beside(Sampler(database=cluster.database, journal=journal).run()),
        _beside(_tell(journal, say)),
    ):
        with _beside(faults.run()):
            if plan.mutation:
                await _until_caught(load, lambda: is_caught(plan.mutation, journal) or enough())
            else:
                await load.run(enough)
        await faults.mend()


async def _until_caught(load: Load, enough: Callable[[], bool]) -> None:
    """The load, broken off in the middle: what a mutation did to runs need not be waited for."""
    with _beside(load.run(enough)):
        while not enough():  # noqa: ASYNC110 - it is also a matter of time
            await asyncio.sleep(0.1)


async def _tell(journal: Journal, say: Say) -> None:
    while True:
        await asyncio.sleep(_PROGRESS_SECONDS)
        say(_state(journal))


def _state(journal: Journal) -> str:
    counts = ", ".join(f"{count} {what}" for what, count in sorted(journal.counts.items()))
    return f"{len(journal.runs)} runs, {len(journal.violations)} violations; {counts}"


@contextlib.contextmanager
def _beside(doing: Coroutine[Any, Any, None]) -> Iterator[None]:
    """Something that goes on meanwhile."""
    task = asyncio.create_task(doing)
    try:
        yield
    finally:
        task.cancel()
