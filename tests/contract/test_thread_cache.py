"""The thread cache on a real Valkey: what it keeps, and what where Valkey does not answer (contract 2, 24, 27)."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from contract.freezing import frozen, process_of
from contract.samples import OTHER, TENANT, message
from famulus.v1.message_pb2 import Message
from famulus_server.coordination import patience, thread_cache
from famulus_server.coordination.patience import Patience
from famulus_server.coordination.thread_cache import RedisThreadCache
from famulus_server.embedded.valkey import EmbeddedValkey
from famulus_server.encryption.aes import AesKey
from famulus_server.ports import Remembered

pytestmark = pytest.mark.usefixtures("unhurried")
KEY = f"famulus:{{thread_1}}:{TENANT}:context"


@pytest.fixture
def hurried(unhurried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in operation."""
    monkeypatch.undo()


@pytest.fixture
async def cache(url: str) -> AsyncIterator[RedisThreadCache]:
    opened = await open_cache(url)
    yield opened
    await opened.close()


async def open_cache(url: str, **settings: object) -> RedisThreadCache:
    made = RedisThreadCache(url=url, patience=Patience(), **settings)  # type: ignore[arg-type]
    made.open()
    assert made._writer.connecting is not None
    await made._writer.connecting
    return made


def said(sequence: int, text: str = "x") -> Message:
    made = message(f"msg_{sequence}", text=text)
    made.sequence = sequence
    return made


def remembered(*sequences: int, revision: int = 0, floor: int | None = None, text: str = "x") -> Remembered:
    messages = [said(sequence, text) for sequence in sequences]
    below = sequences[0] - 1 if floor is None else floor
    return Remembered(revision=revision, floor=below, upto=sequences[-1], messages=messages)


async def put(cache: RedisThreadCache, what: Remembered, thread_id: str = "thread_1") -> None:
    cache.put(TENANT, thread_id, what)
    await cache.flush()


async def get(cache: RedisThreadCache, thread_id: str = "thread_1") -> Remembered | None:
    return await cache.get(TENANT, thread_id)


async def held(redis: Redis) -> bytes:
    """The value as it stands in Valkey."""
    value: Any = await redis.get(KEY)
    return value or b""


async def calls(redis: Redis, command: str) -> int:
    statistics = await redis.info("commandstats")
    return int(statistics.get(f"cmdstat_{command}", {"calls": 0})["calls"])


async def test_what_was_put_comes_back_on_any_replica(cache: RedisThreadCache, url: str) -> None:
    whole = replace(remembered(8, 9, 12, revision=3, text="\u2603 \x00"), first=said(1))
    await put(cache, whole)
    elsewhere = await open_cache(url)
    assert await get(elsewhere) == whole
    assert (elsewhere.hits, elsewhere.misses, elsewhere.errors) == (1, 0, 0)
    await elsewhere.close()
    assert cache.bytes > sum(made.ByteSize() for made in whole.messages)


async def test_nothing_is_remembered_of_other_threads_and_tenants(cache: RedisThreadCache) -> None:
    await put(cache, remembered(1))
    assert await get(cache, "thread_2") is None
    assert (cache.hits, cache.misses, cache.errors) == (0, 1, 0)
    assert await cache.get(OTHER, "thread_1") is None


OLD, NEW = remembered(5, 6, revision=1), remembered(6, 7, revision=1)
BETTER = [
    (OLD, NEW),  # newer messages
    (remembered(5, 6, 7, 8, revision=1), remembered(2, revision=2)),  # another revision
    (remembered(9, revision=9), remembered(2, revision=10)),  # compared as numbers
    (remembered(2**60, revision=1), remembered(2**62, revision=1)),
    (OLD, remembered(4, 5, 6, revision=1)),  # the same in a wider window
]


@pytest.mark.parametrize(("worse", "better"), BETTER)
async def test_what_is_better_replaces_what_is_worse_and_never_the_other_way_round(
    cache: RedisThreadCache, url: str, worse: Remembered, better: Remembered
) -> None:
    late = await open_cache(url)
    await put(cache, worse)
    await put(cache, better)
    assert await get(cache) == better
    await put(late, worse)
    assert await get(cache) == better
    await late.close()


async def test_replicas_that_put_at_once_leave_the_newest(cache: RedisThreadCache, url: str) -> None:
    replicas = [cache, await open_cache(url), await open_cache(url)]
    for sequence in range(1, 100):
        replicas[sequence % 3].put(TENANT, "thread_1", remembered(sequence))
        if sequence % 7 == 0:
            await asyncio.sleep(0)
    await asyncio.gather(*(replica.flush() for replica in replicas))
    assert await get(cache) == remembered(99)
    for other in replicas[1:]:
        await other.close()


async def test_value_expires(cache: RedisThreadCache, redis: Redis) -> None:
    await put(cache, remembered(1))
    assert 3_500 < await redis.ttl(KEY) <= 3_600


async def test_oldest_messages_are_left_out_where_all_are_too_large(url: str, redis: Redis) -> None:
    cache = await open_cache(url, max_bytes=4_096)
    await put(cache, remembered(*range(1, 21), text="x" * 500))
    kept = await get(cache)
    assert kept is not None
    assert [made.sequence for made in kept.messages] == list(range(kept.floor + 1, 21))
    assert 10 < kept.floor < 20
    # The thread's first message stays known, as long as there is room for it.
    assert kept.first is None or kept.first.sequence == 1
    assert await redis.strlen(KEY) <= 4_096
    await cache.close()


async def test_first_message_stays_known_where_others_are_left_out(url: str) -> None:
    cache = await open_cache(url, max_bytes=4_096)
    await put(cache, remembered(*range(1, 200), text="short"))
    kept = await get(cache)
    assert kept is not None
    assert kept.floor > 0
    assert kept.first in (None, said(1, "short"))
    await put(cache, replace(remembered(300, text="n"), first=said(1)))
    kept = await get(cache)
    assert kept is not None
    assert kept.first == said(1)
    await put(cache, replace(remembered(301, text="n" * 3_000), first=said(1, "f" * 3_000)))
    kept = await get(cache)
    assert kept is not None
    assert (kept.upto, kept.first) == (301, None)
    await cache.close()


async def test_thread_whose_newest_message_is_too_large_is_not_kept(url: str, redis: Redis) -> None:
    cache = await open_cache(url, max_bytes=4_096)
    await put(cache, remembered(1, text="x" * 5_000))
    assert await get(cache) is None
    assert await redis.exists(KEY) == 0
    await cache.close()


async def test_forgotten_thread_is_not_brought_back_by_whoever_is_late(
    cache: RedisThreadCache, url: str, redis: Redis
) -> None:
    late = await open_cache(url)
    await put(cache, remembered(1, text="secret"))
    cache.put(TENANT, "thread_1", remembered(1, 2, text="secret"))
    cache.forget(TENANT, "thread_1")
    cache.put(TENANT, "thread_1", remembered(1, 2, 3, text="secret"))
    await cache.flush()
    await put(late, remembered(4, revision=2**40, text="secret"))
    await put(cache, remembered(5, revision=2**40, text="secret"))
    assert await get(cache) is None
    assert await get(late) is None
    assert (await held(redis)).startswith(b"1 ")
    assert b"secret" not in await held(redis)
    assert 0 < await redis.ttl(KEY) <= 3_600
    assert late.errors == cache.errors == 0
    await late.close()


async def test_what_is_sealed_is_not_to_be_read_and_comes_back(url: str, redis: Redis) -> None:
    sealed = await open_cache(url, sealer=AesKey(b"k" * 32))
    await put(sealed, remembered(1, 2, text="secret"))
    assert b"secret" not in await held(redis)
    assert await get(sealed) == remembered(1, 2, text="secret")
    # With another key, or none.
    plain = await open_cache(url)
    assert await get(plain) is None
    await put(plain, remembered(1, 2, 3))
    assert await get(sealed) is None
    other = await open_cache(url, sealer=AesKey(b"o" * 32))
    await put(other, remembered(1, 2, 3, 4))
    assert await get(sealed) is None
    assert (sealed.errors, plain.errors) == (2, 1)
    for opened in (sealed, plain, other):
        await opened.close()


async def test_damaged_values_are_as_good_as_none_and_are_replaced(cache: RedisThreadCache, redis: Redis) -> None:
    await put(cache, remembered(1, 2, revision=7))
    whole = await held(redis)
    line = whole.index(b"\n")
    for place in range(0, len(whole), 5):
        damaged = bytearray(whole)
        damaged[place] ^= 0x11
        await redis.set(KEY, bytes(damaged))
        # A line of numbers may be as good as another: then nothing is behind it that says the same.
        assert await get(cache) is None, f"damaged at {place}"
    for value in (b"", b"garbage", b"\n", whole[:line], whole[: line + 9], whole + b"x", b"2" + whole[1:]):
        await redis.set(KEY, value)
        assert await get(cache) is None, value
    await put(cache, remembered(1, revision=0))
    assert await get(cache) == remembered(1, revision=0)


async def test_old_value_cannot_be_passed_off_as_a_newer_one(cache: RedisThreadCache, redis: Redis) -> None:
    await put(cache, remembered(1, 2, revision=7))
    whole = await held(redis)
    assert whole.startswith(b"1 7 2 0\n")
    await redis.set(KEY, whole.replace(b"1 7 2 0\n", b"1 8 2 0\n"))
    assert await get(cache) is None
    # Nor one thread's as another's.
    await redis.set(f"famulus:{{thread_2}}:{TENANT}:context", whole)
    assert await get(cache, "thread_2") is None


async def test_tenants_with_the_same_ids_do_not_get_in_each_others_way(cache: RedisThreadCache) -> None:
    await put(cache, remembered(1))
    cache.put(OTHER, "thread_1", remembered(1, 2))
    await cache.flush()
    assert (await get(cache), await cache.get(OTHER, "thread_1")) == (remembered(1), remembered(1, 2))
    cache.forget(OTHER, "thread_1")
    await cache.flush()
    assert (await get(cache), await cache.get(OTHER, "thread_1")) == (remembered(1), None)


async def test_foreign_key_is_one_threads_bad_luck(cache: RedisThreadCache, redis: Redis) -> None:
    await redis.lpush(KEY, "garbage")
    await put(cache, remembered(1), "thread_2")
    for _ in range(10):
        assert await get(cache) is None
    assert await get(cache, "thread_2") == remembered(1)
    await put(cache, remembered(1, 2))
    assert await get(cache) == remembered(1, 2)


@pytest.mark.usefixtures("hurried")
async def test_frozen_valkey_is_asked_five_times_and_left_alone(
    cache: RedisThreadCache, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(cache, remembered(1))
    assert await get(cache) == remembered(1)
    monkeypatch.setattr(patience, "_LEFT_ALONE_SECONDS", 3_600.0)
    with frozen(await process_of(redis)):
        for _ in range(50):
            assert await get(cache) is None
        assert cache.errors == 5
        # What is put meanwhile is nobody's to wait for.
        cache.put(TENANT, "thread_1", remembered(1, 2))
    assert await get(cache) is None
    monkeypatch.setattr(patience, "_LEFT_ALONE_SECONDS", 0.0)
    monkeypatch.setattr(cache._patience, "_left_alone_until", 0.0)
    while await get(cache) is None:
        pass


@pytest.mark.usefixtures("hurried")
async def test_many_reads_at_once_wait_for_a_frozen_valkey_only_until_it_is_left_alone(
    cache: RedisThreadCache, redis: Redis
) -> None:
    with frozen(await process_of(redis)):
        async with asyncio.timeout(2):
            assert await asyncio.gather(*(get(cache) for _ in range(1_000))) == [None] * 1_000
    assert cache.errors < 10


async def test_thread_forgotten_while_valkey_is_away_is_forgotten_once_it_is_back(
    cache: RedisThreadCache, valkey: EmbeddedValkey, redis: Redis
) -> None:
    await put(cache, remembered(1, text="secret"))
    # Otherwise it may be killed before it has written what it knows.
    await redis.config_set("appendfsync", "always")
    await put(cache, remembered(1, 2, text="secret"))
    os.kill(await process_of(redis), signal.SIGKILL)
    await valkey.exited()
    cache.forget(TENANT, "thread_1")
    cache.put(TENANT, "thread_2", remembered(1))
    await cache.flush()
    assert await get(cache) is None
    await valkey.start()
    while b"secret" in await held(redis):
        await cache.flush()
        await asyncio.sleep(0.02)
    assert await get(cache) is None


async def test_valkey_that_comes_back_empty_is_filled_again(
    cache: RedisThreadCache, valkey: EmbeddedValkey, redis: Redis, tmp_path: Path
) -> None:
    await put(cache, remembered(1))
    os.kill(await process_of(redis), signal.SIGKILL)
    await valkey.exited()
    assert await get(cache) is None
    await put(cache, remembered(1, 2))
    shutil.rmtree(tmp_path / "valkey/appendonlydir")
    await valkey.start()
    while await get(cache) is None:
        await put(cache, remembered(1, 2, 3))
    assert await get(cache) == remembered(1, 2, 3)


async def test_full_valkey_costs_what_was_put_and_still_deletes(cache: RedisThreadCache, redis: Redis) -> None:
    await put(cache, remembered(1, text="secret"))
    await redis.config_set("maxmemory", 1)
    await put(cache, remembered(1, 2, text="secret"))
    assert await get(cache) == remembered(1, text="secret")
    cache.forget(TENANT, "thread_1")
    await cache.flush()
    assert await redis.exists(KEY) == 0
    await redis.config_set("maxmemory", 256 * 1024 * 1024)
    while await redis.exists(KEY) == 0:
        await cache.flush()
        await asyncio.sleep(0.02)
    await put(cache, remembered(1, 2, text="secret"))
    assert await get(cache) is None


async def test_no_more_waits_than_is_bounded_and_the_newest_of_a_thread_goes_first(
    url: str, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread_cache, "_MAX_PUTS", 3)
    cache = await open_cache(url)
    for number in range(5):
        cache.put(TENANT, f"thread_{number}", remembered(1))
        cache.put(TENANT, f"thread_{number}", remembered(1, 2))
    await cache.flush()
    assert [await get(cache, f"thread_{number}") for number in range(5)] == [None, None, *[remembered(1, 2)] * 3]
    assert await calls(redis, "eval") == 3
    await cache.close()


async def test_wrong_url_only_costs_what_would_be_remembered(tmp_path: Path) -> None:
    for wrong in (f"unix://{tmp_path}/none.sock", "nonsense://"):
        cache = RedisThreadCache(url=wrong, patience=Patience())
        cache.open()
        cache.put(TENANT, "thread_1", remembered(1))
        await cache.flush()
        assert await get(cache) is None
        cache.forget(TENANT, "thread_1")
        await cache.close()


async def test_cache_that_was_never_opened_remembers_nothing(tmp_path: Path) -> None:
    cache = RedisThreadCache(url=f"unix://{tmp_path}/none.sock", patience=Patience())
    assert await get(cache) is None
    await cache.close()
