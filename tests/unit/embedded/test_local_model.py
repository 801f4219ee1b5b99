"""The local model, the real one; its weights are downloaded once, into the user's cache directory."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import psutil
import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam

from famulus_server.embedded.errors import EmbeddedUnavailable
from famulus_server.embedded.local_model import MODEL_NAME, LocalModel
from famulus_server.embedded.weights import SMOLLM2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECONDS = 30.0
SLOTS = 2
QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me a long story of the sea."}]


@dataclass(frozen=True)
class Served:
    base_url: str
    openai: AsyncOpenAI
    process: psutil.Process


def sdk(base_url: str) -> AsyncOpenAI:
    # A connection for each request: behind a streamed answer the server hangs up, though it said keep-alive, and
    # whoever was about to use the connection again is told that it was lost.
    return AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, default_headers={"Connection": "close"})


def serving(base_url: str) -> psutil.Process:
    """The process below this one that listens there."""
    port = urlsplit(base_url).port
    return next(
        process
        for process in psutil.Process().children(recursive=True)
        if any(connection.laddr.port == port for connection in process.net_connections(kind="inet"))
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    local = LocalModel(weights=weights, data_dir=tmp_path_factory.mktemp("data"), slots=SLOTS)
    base_url = await local.start()
    async with sdk(base_url) as openai:
        yield Served(base_url, openai, serving(base_url))
    await local.close()


async def stream(openai: AsyncOpenAI, *, max_tokens: int) -> tuple[str, list[str], int]:
    """The text, the finish reasons and the completion tokens of one streamed answer."""
    text, tokens = "", 0
    reasons: list[str] = []
    chunks = await openai.chat.completions.create(
        model=MODEL_NAME,
        messages=QUESTION,
        stream=True,
        stream_options={"include_usage": True},
        max_tokens=max_tokens,
        temperature=0,
        seed=1,
    )
    async with chunks:
        async for chunk in chunks:
            for choice in chunk.choices:
                text += choice.delta.content or ""
                reasons += [choice.finish_reason] if choice.finish_reason else []
            tokens = chunk.usage.completion_tokens if chunk.usage else tokens
    return text, reasons, tokens


async def test_chat_completion_streams_through_the_openai_sdk_with_usage(served: Served) -> None:
    text, reasons, tokens = await stream(served.openai, max_tokens=24)
    assert text
    assert reasons == ["length"]
    assert tokens == 24


async def test_slots_answer_at_the_same_time(served: Served) -> None:
    answers = await asyncio.gather(*(stream(served.openai, max_tokens=12) for _ in range(4)))
    assert [tokens for _, _, tokens in answers] == [12] * 4


async def test_leaving_a_stream_stops_the_model(served: Served) -> None:
    for _ in range(SLOTS):
        chunks = await served.openai.chat.completions.create(
            model=MODEL_NAME,
            messages=QUESTION,
            stream=True,
            max_tokens=1_900,  # some 20 s of work for each slot
            extra_body={"ignore_eos": True},
        )
        await anext(aiter(chunks))
        await chunks.close()
    async with asyncio.timeout(10):
        await stream(served.openai, max_tokens=2)


async def test_model_is_listed_under_its_name(served: Served) -> None:
    assert [model.id for model in (await served.openai.models.list()).data] == [MODEL_NAME]


async def test_only_one_port_is_open_and_only_on_loopback(served: Served) -> None:
    listening = [
        connection.laddr
        for connection in served.process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert [(address.ip, address.port) for address in listening] == [("127.0.0.1", urlsplit(served.base_url).port)]


async def test_other_callers_prompts_and_the_web_page_are_not_served(served: Served) -> None:
    root = served.base_url.removesuffix("/v1")

    def status(path: str) -> int:
        try:
            with urlopen(root + path, timeout=SECONDS) as response:
                return int(response.status)
        except HTTPError as error:
            error.close()
            return error.code

    assert await asyncio.to_thread(status, "/health") == 200
    assert await asyncio.to_thread(status, "/slots") == 501
    assert await asyncio.to_thread(status, "/") == 404


async def test_web_pages_of_other_origins_are_not_let_in(served: Served) -> None:
    def allowed_origin() -> str | None:
        request = Request(f"{served.base_url}/models", headers={"Origin": "http://elsewhere.example"})
        with urlopen(request, timeout=SECONDS) as response:
            json.load(response)
            allowed: str | None = response.headers.get("Access-Control-Allow-Origin")
            return allowed

    assert not await asyncio.to_thread(allowed_origin)


async def test_killed_model_is_told_and_starts_again_at_the_same_url(weights: Path, tmp_path: Path) -> None:
    local = LocalModel(weights=weights, data_dir=tmp_path, slots=1)
    base_url = await local.start()
    serving(base_url).kill()
    assert await local.exited() == 128 + signal.SIGKILL

    assert await local.start() == base_url
    async with sdk(base_url) as openai:
        _, _, tokens = await stream(openai, max_tokens=2)
    assert tokens == 2
    await local.close()


async def test_weights_that_cannot_be_loaded_are_told_with_the_log(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(EmbeddedUnavailable, match="local_model ended with code 1") as raised:
        await LocalModel(weights=broken, data_dir=tmp_path).start()
    assert "local_model.log" in raised.value.remedy


async def test_missing_weights_are_told_with_the_command_that_gets_them(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedUnavailable, match="models pull"):
        await LocalModel(weights=tmp_path / SMOLLM2.file_name, data_dir=tmp_path).start()


async def test_missing_package_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(EmbeddedUnavailable, match=r"famulus-server\[embedded\]"):
        await LocalModel(weights=tmp_path, data_dir=tmp_path).start()
