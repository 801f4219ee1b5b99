"""Hints on a real Valkey: who hears what, and what happens where Valkey does not answer (contract 2, 9)."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from contract.freezing import process_of
from famulus.v1.run_event_pb2 import RunEvent
from famulus_server.coordination import hints as module
from famulus_server.coordination.event_log import RedisEventLog
from famulus_server.coordination.hints import RedisHints
from famulus_server.coordination.patience import Patience
from famulus_server.embedded.valkey import EmbeddedValkey
from famulus_server.engine.packing import pack
from famulus_server.ports import STOP, WORK, events_topic

HEARING_LOST, HEARING_AGAIN = "hints (hearing) unreachable", "hints (hearing) reachable again"


@pytest.fixture
async def replicas(url: str) -> AsyncIterator[tuple[RedisHints, RedisHints]]:
    one, other = RedisHints(url=url), RedisHints(url=url)
    one.open()
    other.open()
    yield one, other
    await one.close()
    await other.close()


class Ear:
    """Listens to a topic."""

    def __init__(self, hints: RedisHints, topic: str) -> None:
        self._topic = topic
        self._heard: asyncio.Queue[str] = asyncio.Queue()
        self.stop = hints.listen(topic, self._heard.put_nowait)

    async def hears(self) -> str:
        return await asyncio.wait_for(self._heard.get(), 10.0)

    async def hears_at_last(self, text: str, sender: RedisHints) -> None:
        """Where hints may still get lost, they are sent again."""
        async with asyncio.timeout(10.0):
            while True:
                sender.send(self._topic, text)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.2):
                        while await self._heard.get() != text:
                            pass
                        return

    def heard_nothing(self) -> bool:
        return self._heard.empty()


async def connected(hints: RedisHints, topic: str) -> Ear:
    ear = Ear(hints, topic)
    assert await ear.hears() == ""
    return ear


def events_in(told: Sequence[Mapping[str, Any]]) -> list[str]:
    return [entry["event"] for entry in told]


async def until(condition: Callable[[], bool]) -> None:
    """For what only the log tells."""
    async with asyncio.timeout(10.0):
        while not condition():  # noqa: ASYNC110 - as said
            await asyncio.sleep(0.005)


async def until_connections(redis: Redis, count: int) -> None:
    async with asyncio.timeout(5.0):
        while len(await redis.client_list()) != count:
            pass


async def until_channels(redis: Redis, count: int) -> None:
    async with asyncio.timeout(10.0):
        while len(await redis.pubsub_channels()) != count:
            pass


async def test_every_replica_hears_a_hint_the_sender_included(replicas: tuple[RedisHints, RedisHints]) -> None:
    one, other = replicas
    ears = [await connected(one, STOP), await connected(other, STOP), await connected(other, WORK)]
    one.send(STOP, "run_1 \u2603")
    assert await ears[0].hears() == "run_1 \u2603"
    assert await ears[1].hears() == "run_1 \u2603"
    other.send(WORK)
    assert await ears[2].hears() == ""
    assert all(ear.heard_nothing() for ear in ears)


async def test_hint_saves_the_time_of_a_poll(replicas: tuple[RedisHints, RedisHints]) -> None:
    one, other = replicas
    ear = await connected(other, STOP)
    waits = []
    for number in range(20):
        started = asyncio.get_running_loop().time()
        one.send(STOP, f"run_{number}")
        assert await ear.hears() == f"run_{number}"
        waits.append(asyncio.get_running_loop().time() - started)
    assert sorted(waits)[10] < 0.05


async def test_event_log_hints_at_what_can_be_read(replicas: tuple[RedisHints, RedisHints], url: str) -> None:
    ear = await connected(replicas[0], events_topic("run_1"))
    log = RedisEventLog(url=url, patience=Patience())
    log.open()
    log.publish("run_1", pack([RunEvent(sequence=1)]))
    assert await ear.hears() == ""
    assert [batch.last for batch in await log.read("run_1", after_sequence=0, limit=10)] == [1]
    await log.close()


async def test_equal_hints_that_wait_are_one(url: str) -> None:
    hints = RedisHints(url=url)
    listening = RedisHints(url=url)
    listening.open()
    ear = await connected(listening, WORK)
    for number in range(100):
        hints.send(WORK, "" if number % 2 else "x")
    hints.open()
    assert [await ear.hears(), await ear.hears()] == ["x", ""]
    hints.send(WORK, "last")
    assert await ear.hears() == "last"
    await hints.close()
    await listening.close()


async def test_hints_that_nobody_takes_are_bounded(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_UNSENT", 3)
    hints = RedisHints(url=url)
    for number in range(10):
        hints.send(WORK, str(number))
    listening = RedisHints(url=url)
    listening.open()
    ear = await connected(listening, WORK)
    hints.open()
    assert [await ear.hears() for _ in range(3)] == ["0", "1", "2"]
    hints.send(WORK, "later")
    assert await ear.hears() == "later"
    await hints.close()
    await listening.close()


async def test_topic_is_unsubscribed_when_its_last_listener_stops(
    replicas: tuple[RedisHints, RedisHints], redis: Redis
) -> None:
    one, other = replicas
    first = await connected(one, WORK)
    second = Ear(one, WORK)
    third = await connected(one, STOP)
    first.stop()
    first.stop()
    other.send(WORK, "x")
    assert await second.hears() == "x"
    assert first.heard_nothing()
    second.stop()
    await until_channels(redis, 1)
    other.send(WORK, "y")
    other.send(STOP, "z")
    assert await third.hears() == "z"
    assert second.heard_nothing()
    # Again, and at once.
    again = await connected(one, WORK)
    again.stop()
    again = Ear(one, WORK)
    other.send(WORK, "a")
    while (text := await again.hears()) != "a":
        assert text == ""


async def test_listener_that_fails_harms_no_other(replicas: tuple[RedisHints, RedisHints]) -> None:
    def fail(text: str) -> None:
        raise ZeroDivisionError

    one, other = replicas
    with capture_logs() as told:
        one.listen(WORK, fail)
        ear = await connected(one, WORK)
        other.send(WORK, "x")
        assert await ear.hears() == "x"
    assert events_in(told) == ["a listener failed"] * 2


async def test_listeners_may_come_and_go_while_they_are_called(replicas: tuple[RedisHints, RedisHints]) -> None:
    one, other = replicas
    calls: list[str] = []
    stops: list[Callable[[], None]] = []

    def leave(text: str) -> None:
        calls.append(text)
        while stops:
            stops.pop()()

    stops += [one.listen(WORK, leave), one.listen(WORK, leave)]
    ear = await connected(one, WORK)
    other.send(WORK, "x")
    assert await ear.hears() == "x"
    assert calls in ([""], ["", ""])


async def test_two_thousand_topics_cost_one_connection(replicas: tuple[RedisHints, RedisHints], redis: Redis) -> None:
    one, other = replicas
    ears = {number: Ear(one, events_topic(f"run_{number}")) for number in range(2_000)}
    for ear in ears.values():
        assert await ear.hears() == ""
    for number in ears:
        other.send(events_topic(f"run_{number}"), str(number))
    for number, ear in ears.items():
        assert await ear.hears() == str(number)
    # Theirs, the other's two, and the test's own; `one` has sent nothing yet.
    assert len(await redis.client_list()) == 4
    for ear in ears.values():
        ear.stop()
    await until_channels(redis, 0)


async def test_killed_valkey_costs_hints_and_nothing_else_and_listeners_are_told_when_it_is_back(
    replicas: tuple[RedisHints, RedisHints], redis: Redis, valkey: EmbeddedValkey
) -> None:
    one, other = replicas
    ears = [await connected(one, topic) for topic in (WORK, STOP, events_topic("run_1"))]
    with capture_logs() as told:
        os.kill(await process_of(redis), signal.SIGKILL)
        await valkey.exited()
        for number in range(10):
            other.send(WORK, f"lost {number}")
        ears.append(Ear(one, "late"))
        await valkey.start()
        for ear in ears:
            while (text := await ear.hears()) != "":
                assert text.startswith("lost")
        await ears[1].hears_at_last("run_2", other)
    assert events_in(told).count(HEARING_LOST) == 2
    assert events_in(told).count(HEARING_AGAIN) >= 1


async def test_frozen_valkey_is_noticed_and_heard_again_when_it_thaws(
    replicas: tuple[RedisHints, RedisHints], redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SILENCE_SECONDS", 0.2)
    monkeypatch.setattr(module, "_PATIENCE_SECONDS", 0.2)
    one, other = replicas
    ear = await connected(one, WORK)
    process = await process_of(redis)
    with capture_logs() as told:
        os.kill(process, signal.SIGSTOP)
        try:
            other.send(WORK, "during")
            await until(lambda: HEARING_LOST in events_in(told))
        finally:
            os.kill(process, signal.SIGCONT)
        while await ear.hears() != "":
            pass
    await ear.hears_at_last("after", other)


async def test_silence_is_no_fault(url: str, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SILENCE_SECONDS", 0.02)
    hints = RedisHints(url=url)
    with capture_logs() as told:
        hints.open()
        ear = await connected(hints, WORK)
        async with asyncio.timeout(5.0):
            while (await redis.info("commandstats")).get("cmdstat_ping", {"calls": 0})["calls"] < 5:
                pass
        await hints.close()
    assert ear.heard_nothing()
    assert told == []


async def test_valkey_that_forbids_hints_is_told_once_and_without_secrets(url: str, redis: Any) -> None:
    await redis.execute_command("ACL", "SETUSER", "mute", "on", ">secret", "~*", "resetchannels", "+@all")
    with capture_logs() as told:
        hints = RedisHints(url=f"{url}?username=mute&password=secret")
        hints.open()
        ear = Ear(hints, WORK)
        async with asyncio.timeout(5.0):
            while len(told) < 2:
                hints.send(WORK)
                await asyncio.sleep(0.01)
        await redis.execute_command("ACL", "SETUSER", "mute", "allchannels")
        assert await ear.hears() == ""
        await hints.close()
    lost = [entry for entry in told if entry["event"].endswith("unreachable")]
    assert {entry["event"] for entry in lost} == {HEARING_LOST, "hints (sending) unreachable"}
    assert len(lost) == 2
    assert {entry["error"] for entry in lost} == {"NoPermissionError"}
    assert "secret" not in str(told)


async def test_url_on_which_nothing_listens_costs_nothing(tmp_path: Path) -> None:
    hints = RedisHints(url=f"unix://{tmp_path}/nobody.sock")
    with capture_logs() as told:
        hints.open()
        stop = hints.listen(WORK, lambda text: None)
        hints.send(WORK)
        await until(lambda: len(told) == 2)
        stop()
        await hints.close()
    assert set(events_in(told)) == {HEARING_LOST, "hints (sending) unreachable"}


async def test_url_that_nobody_understands_is_told_without_its_secrets() -> None:
    hints = RedisHints(url="redis://:secret/1@nowhere")
    with capture_logs() as told:
        hints.open()
        hints.send(WORK)
        hints.listen(WORK, lambda text: None)()
        await until(lambda: bool(told))
        await hints.close()
    assert events_in(told) == ["hints cannot be used"]
    assert "secret" not in str(told)


async def test_closed_hints_leave_no_task_and_no_connection(url: str, redis: Redis) -> None:
    tasks = asyncio.all_tasks()
    hints = RedisHints(url=url)
    await hints.close()
    hints.open()
    ear = await connected(hints, WORK)
    hints.send(WORK, "x")
    assert await ear.hears() == "x"
    assert len(await redis.client_list()) == 3
    await hints.close()
    assert asyncio.all_tasks() == tasks
    await until_connections(redis, 1)


async def test_hints_can_be_closed_before_they_have_connected(url: str) -> None:
    tasks = asyncio.all_tasks()
    hints = RedisHints(url=url)
    hints.open()
    await asyncio.sleep(0)
    await hints.close()
    assert asyncio.all_tasks() == tasks
