"""Replicas on one encrypted database."""

import asyncio

from contract.samples import TENANT, add_thread, read_texts
from famulus_server.store.postgres import PostgresStore
from postgres import query
from unit.store.sealing import key_cache


async def test_replicas_that_write_at_once_make_one_key(empty_database: str) -> None:
    replicas = [PostgresStore(url=empty_database, pool=4, keys=key_cache()) for _ in range(2)]
    for replica in replicas:
        await replica.open()
    adding = [add_thread(replicas[n % 2], f"thread_{n}", f"text {n}") for n in range(8)]
    await asyncio.gather(*adding)
    assert await query(empty_database, "SELECT count(*) FROM data_keys") == 1
    for n in range(8):
        assert await read_texts(replicas[(n + 1) % 2], f"thread_{n}") == [f"text {n}"]
    for replica in replicas:
        await replica.close()


async def test_thread_that_is_deleted_elsewhere_is_gone_although_its_key_is_remembered(empty_database: str) -> None:
    here, there = (PostgresStore(url=empty_database, pool=2, keys=key_cache("thread")) for _ in range(2))
    await here.open()
    await there.open()
    await add_thread(here, "thread_1", "a")
    assert await read_texts(there, "thread_1") == ["a"]
    await here.write(lambda tx: tx.threads.bury(TENANT, "thread_1", here.clock.now()))
    assert await query(empty_database, "SELECT count(*) FROM data_keys") == 0
    assert await read_texts(there, "thread_1") == []
    await here.close()
    await there.close()
