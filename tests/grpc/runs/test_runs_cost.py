"""What a run, a delta and a read may cost, counted: times differ from machine to machine, these do not.

A change that needs more raises a budget here, knowingly; one that needs less lowers it.
"""

import math
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import httpx2
import openai
import pytest
from redis.asyncio import Redis

from famulus.v1.run_service_pb2 import GetRunRequest
from famulus.v1.thread_pb2 import Thread
from famulus.v1.thread_service_pb2 import GetThreadRequest
from famulus_server.embedded.upstream import Scene, ScriptedUpstream
from famulus_server.embedded.valkey import EmbeddedValkey
from famulus_server.engine.policy import (
    DEFAULT_TIER,
    Budget,
    Budgets,
    CallerQuotas,
    ModelPrice,
    Policy,
    Quota,
    Tier,
)
from famulus_server.wiring import server as wiring
from famulus_server.wiring.stores import open_stores
from run_stage import Stage, open_stage, stage_settings

pytestmark = pytest.mark.usefixtures("unhurried")

PLENTY = Quota(requests_per_minute=10**9, tokens_per_minute=10**9, concurrent_runs=10**9)
EVERYTHING = Policy(
    tiers={
        DEFAULT_TIER: Tier(
            limits=CallerQuotas(tenant=PLENTY, user=PLENTY, assistant=PLENTY, tenant_model=PLENTY),
            budgets=Budgets(tenant=Budget(amount=10**9), user=Budget(amount=10**9)),
        )
    },
    prices={"scripted": ModelPrice(input=1.0, output=2.0)},
    quotas={"scripted": PLENTY},
)
TIMES = 40
SOURCES = str(Path(wiring.__file__).parents[1])
# The upstream runs in the test's process, too.
UPSTREAM = str(Path(SOURCES, "embedded"))
# What asks it, down to aiohttp, of which both are made.
CLIENT = (str(Path(SOURCES, "models")), *openai.__path__, *httpx2.__path__)


@dataclass(frozen=True)
class Costs:
    """What was counted since the start of the server."""

    statements: int
    commits: int
    commands: int
    """Commands of Redis."""
    reads: int
    """Times that Redis read something from its clients: round trips, at most."""


@dataclass
class Counting:
    """A server whose costs are counted."""

    stage: Stage
    stores: list[Any]
    redis: Redis

    async def costs(self) -> Costs:
        told: dict[str, Any] = await self.redis.info("stats")
        stats = self.stores[0].stats
        return Costs(stats.statements, stats.commits, told["total_commands_processed"], told["total_reads_processed"])

    async def runs(self) -> dict[str, float]:
        """What a run of one delta costs, on a new thread."""
        self.stage.play(Scene(text="one"))
        create = await self.stage.wanted(new_thread=Thread(user_id="ann"))
        return await self.per(lambda: self.stage.stream(create))

    async def per(self, act: Callable[[], Awaitable[object]]) -> dict[str, float]:
        """The least that one of many costs: most have nothing beside them that is counted, too."""
        await act()
        least = dict.fromkeys(Costs.__annotations__, math.inf)
        for _ in range(TIMES):
            before = await self.costs()
            await act()
            after = await self.costs()
            least = {name: min(most, getattr(after, name) - getattr(before, name)) for name, most in least.items()}
        # The look at Redis is a command by itself.
        return least | {"commands": least["commands"] - 1, "reads": least["reads"] - 1}


@asynccontextmanager
async def counting(folder: Path, monkeypatch: pytest.MonkeyPatch, database_url: str = "") -> AsyncIterator[Counting]:
    """A server with everything on, on a Valkey that nobody else uses."""
    stores: list[Any] = []

    async def remember(*given: Any) -> Any:
        opened = await open_stores(*given)
        stores.append(opened[0])
        return opened

    monkeypatch.setattr(wiring, "open_stores", remember)
    valkey = EmbeddedValkey(data_dir=folder)
    url = await valkey.start()
    try:
        async with ScriptedUpstream() as upstream, Redis.from_url(url) as redis:
            settings = stage_settings(
                folder, upstream.base_url, redis_url=url, database_url=database_url, policy=EVERYTHING
            )
            async with open_stage(settings, upstream) as stage:
                yield Counting(stage, stores, redis)
    finally:
        await valkey.close()


@contextmanager
def calls(*of: str) -> Iterator[Counter[str]]:
    """Counts the calls that code in these folders makes, of functions in Python and in C. Without any: what the
    server's own code makes; not that of libraries."""
    counted: Counter[str] = Counter()
    known: dict[CodeType, bool] = {}

    def is_ours(code: CodeType) -> bool:
        if code not in known:
            known[code] = code.co_filename.startswith(of or SOURCES) and not code.co_filename.startswith(UPSTREAM)
        return known[code]

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event in {"call", "c_call"} and is_ours(frame.f_code):
            counted["all"] += 1
            if event == "c_call":
                counted[argument.__name__] += 1

    sys.setprofile(note)
    try:
        yield counted
    finally:
        sys.setprofile(None)


def check(found: Mapping[str, float], budget: Mapping[str, float]) -> None:
    """Each of the costs is within its budget."""
    over = {name: (found[name], most) for name, most in budget.items() if found[name] > most}
    assert not over, f"over budget: {over}"


async def test_run_costs_few_statements_commits_and_round_trips_to_redis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with counting(tmp_path, monkeypatch) as count:
        check(await count.runs(), {"statements": 17, "commits": 2, "commands": 62, "reads": 4})


async def test_run_costs_few_statements_and_commits_on_postgres(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: str
) -> None:
    async with counting(tmp_path, monkeypatch, empty_database) as count:
        check(await count.runs(), {"statements": 11, "commits": 2, "commands": 62, "reads": 4})


async def test_reads_cost_one_statement_and_no_commit_and_do_not_ask_redis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: str
) -> None:
    async with counting(tmp_path, monkeypatch, empty_database) as count:
        stage = count.stage
        run = await stage.start()
        await stage.wait(run.id)
        get_run, get_thread = GetRunRequest(run_id=run.id), GetThreadRequest(thread_id=run.thread_id)
        one = {"statements": 1, "commits": 0, "commands": 0, "reads": 0}
        check(await count.per(lambda: stage.runs.GetRun(get_run)), one)
        check(await count.per(lambda: stage.threads.GetThread(get_thread)), one)


async def test_delta_is_copied_and_serialized_once_and_costs_few_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with counting(tmp_path, monkeypatch) as count:
        create = await count.stage.wanted(new_thread=Thread(user_id="ann"))

        async def stream(deltas: int) -> Counter[str]:
            count.stage.play(Scene(deltas=deltas))
            await count.stage.stream(create)
            before = await count.costs()
            with calls() as counted:
                await count.stage.stream(create)
            counted["commands"] = (await count.costs()).commands - before.commands
            return counted

        tries = [(await stream(1_000), await stream(3_000)) for _ in range(3)]
    # The least of some tries, in whole numbers: what a stall has lost in Redis is written once more.
    names = ("all", "CopyFrom", "ByteSize", "SerializeToString", "commands")
    each = {name: min(round((long[name] - short[name]) / 2_000) for short, long in tries) for name in names}
    check(each, {"all": 20, "CopyFrom": 1, "ByteSize": 1, "SerializeToString": 1, "commands": 1})


async def test_delta_that_comes_alone_is_read_by_few_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with counting(tmp_path, monkeypatch) as count:
        create, deltas = await count.stage.wanted(new_thread=Thread(user_id="ann")), 300
        count.stage.play(Scene(deltas=deltas, pace_ms=1))
        await count.stage.stream(create)
        with calls(*CLIENT) as counted:
            await count.stage.stream(create)
        # Where two of them come together, they cost less.
        check({"all": counted["all"] / deltas}, {"all": 30})


async def test_run_and_read_cost_few_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with counting(tmp_path, monkeypatch) as count:
        stage = count.stage
        create = await stage.wanted(new_thread=Thread(user_id="ann"))
        stage.play(Scene(text="one"))
        run = await stage.start()
        await stage.wait(run.id)
        get_run = GetRunRequest(run_id=run.id)
        # What goes on beside them adds a few per cent.
        for act, most in ((lambda: stage.stream(create), 2_320), (lambda: stage.runs.GetRun(get_run), 107)):
            await act()
            with calls() as counted:
                for _ in range(TIMES):
                    await act()
            check({"all": counted["all"] / TIMES}, {"all": most})
