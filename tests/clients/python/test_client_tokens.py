"""Tokens, and servers that cannot be what they should be."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from clients.python.conftest import CREATE, QUICK
from clients.python.scripted_runs import PATIENCE, ScriptedRuns, cut_after, serving
from clients.python.story import RUN_ID, plain
from credentials import Authority, Pair, dns
from famulus import FamulusClient, FamulusError, FamulusSyncClient, RetryPolicy
from famulus.v1.run_service_pb2 import GetRunRequest

Client = Callable[..., FamulusClient | FamulusSyncClient]


@pytest.fixture(params=[{"credentials": None, "token_in_plaintext": True}, {}], ids=["plaintext", "credentials"])
def way(request: pytest.FixtureRequest) -> dict[str, Any]:
    """How the client is told to send tokens to this machine."""
    options: dict[str, Any] = request.param
    return options


async def follow(target: str, *, sync: bool, **options: Any) -> int:
    """The number of events that one stream gave; then makes one call on a stub."""
    options = {"retry": QUICK, **options}
    if sync:
        return await asyncio.to_thread(follow_in_thread, target, **options)
    async with FamulusClient(target, **options) as client:
        async with client.stream_run(CREATE) as stream:
            count = len([event async for event in stream])
        await client.runs.GetRun(GetRunRequest(run_id=RUN_ID))
    return count


def follow_in_thread(target: str, **options: Any) -> int:
    with FamulusSyncClient(target, **options) as client:
        with client.stream_run(CREATE) as stream:
            count = len(list(stream))
        client.runs.GetRun(GetRunRequest(run_id=RUN_ID))
        client.runs.GetRun.with_call(GetRunRequest(run_id=RUN_ID))
    return count


@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
async def test_each_call_shows_a_fresh_token_and_a_source_that_fails_is_asked_again(
    sync: bool, way: dict[str, Any]
) -> None:
    asked: list[str] = []
    threads: set[int] = set()

    def source() -> str:
        threads.add(threading.get_ident())
        asked.append(f"token-{len(asked)}")
        if len(asked) == 1:
            raise ConnectionError("the door is closed")
        return f"{asked[-1]}\n"  # as files end

    with serving(runs := ScriptedRuns(plain(), [cut_after(3)])) as target:
        assert await follow(target, sync=sync, token=source, **way) == len(plain())
    assert runs.shown == [f"Bearer {token}" for token in asked[1:]]
    assert len(runs.shown) >= 3
    assert sync or threading.get_ident() not in threads  # the event loop does not wait for it


@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
async def test_a_source_that_goes_on_failing_is_told_when_patience_ends(sync: bool, way: dict[str, Any]) -> None:
    def source() -> str:
        raise ConnectionError("the door is closed")

    impatient = RetryPolicy(give_up_after=0)
    words = "there is no token: ConnectionError: the door is closed"
    with serving(ScriptedRuns(plain())) as target, pytest.raises(FamulusError, match=words) as failure:
        await follow(target, sync=sync, token=source, retry=impatient, **way)
    assert failure.value.code is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("client", [FamulusClient, FamulusSyncClient])
@pytest.mark.parametrize("token", ["", " \n", "two words", "line\nbreak", "tök"])
async def test_a_text_that_is_no_token_is_refused_at_once(client: Client, token: str) -> None:
    with pytest.raises(ValueError, match="the token is empty, or not all of printable ASCII"):
        client("127.0.0.1:1", token=token)


@pytest.mark.parametrize("client", [FamulusClient, FamulusSyncClient])
async def test_a_token_leaves_this_machine_in_plaintext_only_where_that_is_allowed(client: Client) -> None:
    with pytest.raises(ValueError, match="token_in_plaintext"):
        client("famulus.example:1", token="secret")
    allowed = client("famulus.example:1", token="secret", token_in_plaintext=True)
    await closed if (closed := allowed.close()) is not None else None


@pytest.mark.parametrize("client", [FamulusClient, FamulusSyncClient])
@pytest.mark.parametrize("target", ["", "http://127.0.0.1:7461", "HTTPS://famulus.example"])
async def test_what_is_no_target_is_refused_at_once(client: Client, target: str) -> None:
    with pytest.raises(ValueError, match="the target is not host:port"):
        client(target)


class Elsewhere(Authority):
    """Signs for another machine."""

    def server(self) -> Pair:
        return self.client(dns("elsewhere.example"))


@pytest.mark.parametrize(
    ("signs", "trusted"),
    [(Authority(), Authority("another")), (Authority(), Authority()), (elsewhere := Elsewhere(), elsewhere)],
)
@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
async def test_a_server_whose_certificate_is_not_to_be_trusted_is_left_at_once(
    sync: bool, signs: Authority, trusted: Authority
) -> None:
    pair = signs.server()
    server = grpc.server(ThreadPoolExecutor(2))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(pair.key, pair.chain)]))
    server.start()
    credentials = grpc.ssl_channel_credentials(trusted.pem)
    patient = RetryPolicy(give_up_after=10 * PATIENCE)
    with pytest.raises(FamulusError) as failure:
        async with asyncio.timeout(PATIENCE):
            await follow(f"127.0.0.1:{port}", sync=sync, credentials=credentials, retry=patient)
    server.stop(0).wait()
    assert not failure.value.transient
    assert failure.value.code is grpc.StatusCode.UNAVAILABLE
