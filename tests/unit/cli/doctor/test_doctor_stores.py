"""What `doctor` says of databases and of Redis."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from redis.asyncio import Redis

from famulus_server.store.postgres_schema import upgrade_database
from famulus_server.store.schema import HEAD
from postgres import PostgresServer, execute
from serving import ServerThread, settings_in
from unit.cli.doctor.conftest import Doctor, redis_at, store


async def test_database_whose_server_is_stopped(doctor: Doctor, postgres_server: PostgresServer) -> None:
    url = postgres_server.url().replace(str(postgres_server.folder), "/nowhere")
    found = await doctor(store(url))
    assert found.code == 1
    assert "no PostgreSQL server answers there" in found.seen("database")
    assert found.remedy("database") == "Start the database, or correct [store] url."


async def test_database_with_another_password(doctor: Doctor, postgres_server: PostgresServer) -> None:
    superuser = postgres_server.url(user="postgres")
    execute(superuser, "CREATE ROLE locked LOGIN PASSWORD 'right'")
    try:
        found = await doctor(store(postgres_server.url(user="locked", password="hush-db")))
    finally:
        execute(superuser, "DROP ROLE locked")
    assert found.verdict("database") == "fail"
    assert 'password authentication failed for user "locked"' in found.seen("database")
    assert found.remedy("database").startswith("Correct the password")


async def test_database_that_hangs_holds_up_nothing_else(doctor: Doctor, silent: int) -> None:
    url = f"postgresql://me:hush-db@127.0.0.1:{silent}/db?sslmode=disable"
    found = await doctor(store(url), "--timeout", "0.5")
    assert found.code == 1
    assert found.seen("database") == found.seen("encryption") == "no answer in 0.5 s"
    assert found.verdict("open files") == "ok"


async def test_database_without_schema_and_with_an_old_and_a_newer_one(doctor: Doctor, new_database: str) -> None:
    empty = await doctor(store(new_database))
    assert (empty.code, empty.verdict("database", "schema")) == (0, "warn")
    await upgrade_database(new_database)
    execute(new_database, "UPDATE alembic_version SET version_num = '0009'")
    old = await doctor(store(new_database))
    assert (old.code, old.seen("database", "schema")) == (0, f"0009, and this version needs {HEAD}")
    assert "famulus-server migrate" in old.remedy("database", "schema")
    execute(new_database, "UPDATE alembic_version SET version_num = '9999'")
    newer = await doctor(store(new_database))
    assert (newer.code, newer.verdict("database", "schema")) == (1, "fail")


async def test_database_of_something_else(doctor: Doctor, new_database: str) -> None:
    execute(new_database, "CREATE TABLE recipes (name text)")
    found = await doctor(store(new_database))
    assert "tables of something else" in found.seen("database")
    assert found.remedy("database").startswith("Give famulus a database of its own")


async def test_superuser_is_warned_of_and_so_are_too_few_connections(
    doctor: Doctor, postgres_server: PostgresServer, migrated_database: str
) -> None:
    url = postgres_server.url(urlsplit(migrated_database).path[1:], user="postgres")
    found = await doctor(f"{store(url)}pool = 500\n")
    assert found.code == 0
    assert "does not bind 'postgres'" in found.seen("database", "role")
    assert found.verdict("database", "connections") == "warn"
    assert "room for 0 more" in found.seen("database", "connections")


async def test_sqlite_file_is_looked_through_while_a_server_has_it_open(doctor: Doctor, tmp_path: Path) -> None:
    server = ServerThread(settings_in(tmp_path / "data"))
    running = await asyncio.to_thread(server.start)
    try:
        found = await doctor(f"[server]\nlisten = '{running.address}'\ndata_dir = '{tmp_path}/data'\n")
    finally:
        await asyncio.to_thread(server.stop)
    assert found.code == 0
    assert found.verdict("database", "integrity") == found.verdict("database", "log") == "ok"
    assert found.seen("address listen") == f"{running.address}: a famulus runs there, and is ready"
    assert "valkey.sock: Valkey" in found.seen("redis")


async def test_damaged_sqlite_file(doctor: Doctor, tmp_path: Path) -> None:
    server = ServerThread(settings_in(tmp_path / "data"))
    await asyncio.to_thread(server.start)
    await asyncio.to_thread(server.stop)
    file = tmp_path / "data" / "famulus.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        page_size = connection.execute("PRAGMA page_size").fetchone()[0]
        root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'runs'").fetchone()[0]
    content = bytearray(file.read_bytes())
    content[(root - 1) * page_size : root * page_size] = b"\xff" * page_size
    file.write_bytes(content)
    found = await doctor()
    assert found.verdict("database", "integrity") == "fail"
    assert "restore the file from a backup" in found.remedy("database", "integrity")


async def test_file_that_is_no_database(doctor: Doctor, tmp_path: Path) -> None:
    file = tmp_path / "data" / "famulus.db"
    file.parent.mkdir()
    file.write_text("a letter to my aunt, " * 100)
    assert "cannot be read as an SQLite database" in (await doctor()).seen("database")


async def test_redis_where_nobody_listens(doctor: Doctor, unused: int) -> None:
    found = await doctor(redis_at(f"redis://:hush-redis@127.0.0.1:{unused}/0"))
    assert found.code == 1
    assert found.seen("redis") == f"redis://:***@127.0.0.1:{unused}/0: ConnectionError"
    assert found.remedy("redis") == "Start it, or correct [redis] url."


async def test_redis_that_hangs(doctor: Doctor, silent: int) -> None:
    found = await doctor(redis_at(f"redis://127.0.0.1:{silent}/0"))
    assert found.seen("redis") == f"redis://127.0.0.1:{silent}/0: TimeoutError"
    assert "hangs" in found.remedy("redis")


async def test_redis_with_another_password(doctor: Doctor, redis_url: str) -> None:
    async with Redis.from_url(redis_url) as client:
        await client.config_set("requirepass", "right")
    wrong = redis_url.replace("unix://", "unix://:hush-redis@")
    for url in (wrong, redis_url):
        found = await doctor(redis_at(url))
        assert (found.code, found.verdict("redis")) == (1, "fail")
        assert "password" in found.remedy("redis")


async def test_redis_that_throws_keys_away_has_no_bound_or_is_full(doctor: Doctor, redis_url: str) -> None:
    async with Redis.from_url(redis_url) as client:
        await client.config_set("maxmemory-policy", "allkeys-lru")
        await client.config_set("maxmemory", 0)
        found = await doctor(redis_at(redis_url))
        assert (found.code, found.verdict("redis", "memory policy"), found.verdict("redis", "memory")) == (
            0,
            "warn",
            "warn",
        )
        assert found.seen("redis", "memory policy") == "allkeys-lru"
        assert "noeviction" in found.remedy("redis", "memory policy")
        await client.config_set("maxmemory-policy", "noeviction")
        await client.config_set("maxmemory", 1)
        assert (await doctor(redis_at(redis_url))).verdict("redis", "memory") == "fail"


async def test_redis_that_is_a_replica(doctor: Doctor, redis_url: str, unused: int) -> None:
    async with Redis.from_url(redis_url) as client:
        await client.replicaof("127.0.0.1", unused)
    found = await doctor(redis_at(redis_url))
    assert found.verdict("redis", "writes") == "fail"
