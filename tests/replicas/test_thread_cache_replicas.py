"""What one replica does to a thread, the next run on another sees exactly, whatever is remembered (contract 2, 28)."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio

from famulus.v1.message_pb2 import Message
from famulus.v1.run_pb2 import Run, RunState, TruncationStrategy
from famulus.v1.run_service_pb2 import BusyPolicy
from famulus.v1.thread_service_pb2 import (
    DeleteMessageRequest,
    DeleteThreadRequest,
    ForkThreadRequest,
    UpdateMessageRequest,
)
from famulus_server.coordination import patience
from famulus_server.coordination.thread_cache import RedisThreadCache
from famulus_server.embedded.upstream import Match, Scene, ToolCall
from famulus_server.wiring import server as wiring
from replicas.conftest import OpenReplica
from replicas.redis_faults import FAULTS, Valkey
from run_stage import TOOLS, Stage

AUTO = TruncationStrategy()
LAST_FOUR = TruncationStrategy(last_messages=4)
STRATEGIES = pytest.mark.parametrize("strategy", [AUTO, LAST_FOUR], ids=["auto", "last messages"])
SCENES = (
    Scene(match=Match(user_contains="weather"), text="Let me see. ", tool_calls=(ToolCall(name="get_weather"),)),
    Scene(text="to ", echo=True),
)


@pytest.fixture
def caches(monkeypatch: pytest.MonkeyPatch) -> list[RedisThreadCache]:
    """The thread caches of the replicas, in the order in which these were opened."""
    made: list[RedisThreadCache] = []

    def make(**settings: Any) -> RedisThreadCache:
        made.append(RedisThreadCache(**settings))
        return made[-1]

    monkeypatch.setattr(wiring, "RedisThreadCache", make)
    # Nobody wants to wait for five seconds.
    monkeypatch.setattr(patience, "_LEFT_ALONE_SECONDS", 0.2)
    return made


@pytest_asyncio.fixture
async def pair(open_replica: OpenReplica, caches: list[RedisThreadCache]) -> AsyncIterator[tuple[Stage, Stage]]:
    async with open_replica() as here, open_replica() as there:
        here.play(*SCENES)
        yield here, there


def seen(stage: Stage) -> list[str]:
    """What the newest request to the model held."""
    items = stage.asked[-1]["input"]
    return ["".join(part["text"] for part in item["content"]) for item in items if item["type"] == "message"]


async def run(stage: Stage, strategy: TruncationStrategy, text: str, thread_id: str = "") -> Run:
    """A run to its end, whose model must have seen exactly what is stored."""
    where = {"thread_id": thread_id} if thread_id else {}
    ended = await stage.wait((await stage.start(text, truncation_strategy=strategy, **where)).id)
    assert ended.state == RunState.RUN_STATE_COMPLETED
    stored = await stage.texts(ended.thread_id)
    assert stored[-1].startswith("to ")
    before = stored[:-1]
    assert seen(stage) == (before[-4:] if strategy == LAST_FOUR else before)
    return ended


async def delete(stage: Stage, message: Message) -> None:
    await stage.threads.DeleteMessage(DeleteMessageRequest(thread_id=message.thread_id, message_id=message.id))


@STRATEGIES
async def test_warm_runs_see_what_another_replica_has_done_meanwhile(
    pair: tuple[Stage, Stage], caches: list[RedisThreadCache], strategy: TruncationStrategy
) -> None:
    here, there = pair
    thread_id = (await run(here, strategy, "one")).thread_id

    async def forget_a_middle_one() -> None:
        await delete(there, (await there.messages(thread_id))[-2])

    async def forget_the_newest() -> None:
        await delete(there, (await there.messages(thread_id))[-1])

    async def forget_the_first() -> None:
        await delete(there, (await there.messages(thread_id))[0])

    async def say() -> None:
        await there.say(thread_id, "by the way")

    async def change() -> None:
        changed = (await there.messages(thread_id))[-1]
        changed.metadata["checked"] = "yes"
        await there.threads.UpdateMessage(UpdateMessageRequest(thread_id=thread_id, message=changed))

    async def roll_back() -> None:
        assistant = await there.assistant(tools=TOOLS)
        waiting = await there.start("the weather?", thread_id=thread_id, assistant_id=assistant.id)
        assert (await there.wait(waiting.id)).state == RunState.RUN_STATE_REQUIRES_ACTION
        assert (await there.texts(thread_id))[-1] == "Let me see. "
        policy = BusyPolicy.BUSY_POLICY_ROLLBACK
        await there.wait((await there.start("never mind", thread_id=thread_id, busy_policy=policy)).id)
        assert "Let me see. " not in await there.texts(thread_id)

    async def fork_and_go_on() -> None:
        fork = (await there.threads.ForkThread(ForkThreadRequest(thread_id=thread_id))).thread
        await delete(there, (await there.messages(fork.id))[-1])
        await run(there, strategy, "in the fork", fork.id)
        await run(here, strategy, "in the fork again", fork.id)

    async def answer_elsewhere() -> None:
        await run(there, strategy, "elsewhere", thread_id)

    changes: list[Callable[[], Awaitable[None]]] = [
        say, forget_a_middle_one, answer_elsewhere, forget_the_newest, roll_back, fork_and_go_on, change,
        forget_the_first, say, answer_elsewhere,
    ]  # fmt: skip
    for number, happens in enumerate(changes):
        await run(here, strategy, f"warm {number}", thread_id)
        for cache in caches:
            await cache.flush()
        await happens()
        await run(here, strategy, f"after {number}", thread_id)
        for cache in caches:
            await cache.flush()
    assert sum(cache.stale for cache in caches) >= 4
    assert caches[0].hits > 15
    assert caches[1].hits > 0
    assert [cache.errors for cache in caches] == [0, 0]


@STRATEGIES
@pytest.mark.parametrize("fault", FAULTS)
async def test_broken_redis_changes_no_prompt(
    pair: tuple[Stage, Stage], redis: Valkey, strategy: TruncationStrategy, fault: str
) -> None:
    here, there = pair
    break_it, mend_it = FAULTS[fault]
    thread_id = (await run(here, strategy, "one")).thread_id
    await run(here, strategy, "two", thread_id)
    await break_it(redis)
    for number in range(3):
        await there.say(thread_id, f"aside {number}")
        await run(here, strategy, f"here {number}", thread_id)
        await delete(there, (await there.messages(thread_id))[-1])
        await run(there, strategy, f"there {number}", thread_id)
    await mend_it(redis)
    for number in range(3):
        await run(here, strategy, f"here again {number}", thread_id)
        await delete(there, (await there.messages(thread_id))[-2])
        await run(there, strategy, f"there again {number}", thread_id)


@STRATEGIES
async def test_flushed_or_poisoned_redis_changes_no_prompt(
    pair: tuple[Stage, Stage], caches: list[RedisThreadCache], redis: Valkey, strategy: TruncationStrategy
) -> None:
    here, there = pair
    thread_id = (await run(here, strategy, "one")).thread_id
    other_id = (await run(here, strategy, "something else")).thread_id
    for known_id in (thread_id, other_id):
        await run(here, strategy, "and so on", known_id)
    for cache in caches:
        await cache.flush()
    key, other = (f"famulus:{{{one}}}:default:context" for one in (thread_id, other_id))
    async with redis.client() as client:
        for number in range(3):
            old: Any = await client.get(key)
            assert old
            for poison in (b"", b"garbage", old[:-7], old.replace(b"one", b"two"), await client.get(other), None):
                if poison is None:
                    await client.flushall()
                else:
                    await client.set(key, poison)
                await run((here, there)[number % 2], strategy, f"number {number}", thread_id)
                await caches[number % 2].flush()
            # An old value, put back.
            await client.set(key, old)
            await run(here, strategy, "and now?", thread_id)
            await caches[0].flush()
            # A list.
            await client.delete(key)
            await client.lpush(key, b"garbage")
            await run(here, strategy, "still there?", thread_id)
            await caches[0].flush()


async def test_deleted_thread_leaves_nothing_in_redis(
    pair: tuple[Stage, Stage], caches: list[RedisThreadCache], redis: Valkey
) -> None:
    here, there = pair
    ended = await run(here, AUTO, "a secret")
    await run(here, AUTO, "keep it", ended.thread_id)
    await caches[0].flush()
    key = f"famulus:{{{ended.thread_id}}}:default:context"
    async with redis.client() as client:
        assert b"a secret" in (await client.get(key) or b"")
        await there.threads.DeleteThread(DeleteThreadRequest(thread_id=ended.thread_id))
        await caches[1].flush()
        assert b"a secret" not in (await client.get(key) or b"")
