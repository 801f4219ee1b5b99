"""What clients open, they close; and what they cannot open, they explain."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from clients.python.conftest import CREATE, Follow
from clients.python.scripted_runs import PATIENCE, ScriptedRuns, Stream, cut_after, refuse, serving, silent_after, whole
from clients.python.story import RUN_ID, call, plain, with_tools
from famulus import FamulusClient, FamulusError, FamulusSyncClient, RetryPolicy, Violation
from famulus.channels import channel_options
from famulus.v1 import error_reason_pb2 as reasons
from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import RunState
from famulus.v1.run_service_pb2_grpc import add_RunServiceServicer_to_server


async def test_leaving_a_stream_cancels_its_call_and_not_the_run(follow: Follow) -> None:
    with serving(runs := ScriptedRuns(plain(), [silent_after(5)])) as target:
        seen = await follow(target, stop_after=5)
        assert await asyncio.to_thread(runs.streams[0].closed.wait, PATIENCE)
    assert len(seen.events) == 5
    assert runs.cancelled == []


async def test_leaving_a_stream_cancels_the_run_where_that_was_asked_for(follow: Follow) -> None:
    with serving(runs := ScriptedRuns(plain(), [silent_after(5)])) as target:
        await follow(target, stop_after=5, cancel_on_exit=True)
    assert runs.cancelled == [RUN_ID]


async def test_a_run_that_ended_or_was_refused_is_not_cancelled(follow: Follow) -> None:
    with serving(runs := ScriptedRuns(plain())) as target:
        await follow(target, cancel_on_exit=True)
    refused = cut_after(0, grpc.StatusCode.RESOURCE_EXHAUSTED, reason="RATE_LIMITED")
    with serving(again := ScriptedRuns(plain(), [refused])) as target:
        seen = await follow(target, cancel_on_exit=True)
    assert seen.error is not None
    assert runs.cancelled == again.cancelled == []
    assert again.created == []


async def fail_at_the_first_event(client: FamulusClient) -> None:
    async with client.stream_run(CREATE) as stream:
        async for _ in stream:
            raise ZeroDivisionError


async def test_an_exception_in_the_loop_cancels_the_call() -> None:
    with serving(runs := ScriptedRuns(plain(), [silent_after(5)])) as target:
        async with FamulusClient(target) as client:
            with pytest.raises(ZeroDivisionError):
                await fail_at_the_first_event(client)
            assert await asyncio.to_thread(runs.streams[0].closed.wait, PATIENCE)


def test_an_exception_in_the_loop_cancels_the_call_of_the_sync_client() -> None:
    with serving(runs := ScriptedRuns(plain(), [silent_after(5)])) as target, FamulusSyncClient(target) as client:
        with pytest.raises(ZeroDivisionError), client.stream_run(CREATE) as stream:
            1 // (next(stream).sequence - 1)
        assert runs.streams[0].closed.wait(PATIENCE)


async def test_cancelling_the_task_cancels_the_call_and_the_run_too_if_asked_for() -> None:
    reached = asyncio.Event()

    async def read(client: FamulusClient) -> None:
        async with client.stream_run(CREATE, cancel_on_exit=True) as stream:
            async for _ in stream:
                if stream.last_sequence == 5:
                    reached.set()

    with serving(runs := ScriptedRuns(plain(), [silent_after(5)])) as target:
        async with FamulusClient(target) as client:
            task = asyncio.create_task(read(client))
            await reached.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(runs.streams[0].closed.wait, PATIENCE)
            assert runs.cancelled == [RUN_ID]


async def test_the_server_ends_a_stream_that_was_read_to_its_end(follow: Follow) -> None:
    cancelled: list[bool] = []

    def lingers(stream: Stream) -> Iterator[Sequence[RunEvent]]:
        yield from whole(stream)
        cancelled.append(stream.closed.wait(0.2))

    with serving(ScriptedRuns(plain(), [lingers])) as target:
        await follow(target)
    assert cancelled == [False]


async def test_a_server_that_does_not_end_a_stream_after_the_last_event_is_left(follow: Follow) -> None:
    with serving(runs := ScriptedRuns(plain(), [silent_after(len(plain()))])) as target:
        seen = await follow(target)
        assert await asyncio.to_thread(runs.streams[0].closed.wait, PATIENCE)
    assert seen.events == plain()
    assert len(runs.streams) == 1


async def test_threads_of_a_sync_stream_end_with_it() -> None:
    with serving(ScriptedRuns(plain(), [cut_after(3)])) as target:
        with FamulusSyncClient(target) as client, client.stream_run(CREATE) as stream:
            for _ in stream:
                pass
        for thread in threading.enumerate():
            if thread.name.startswith("famulus"):
                await asyncio.to_thread(thread.join, PATIENCE)
                assert not thread.is_alive()


async def test_a_stream_that_was_not_entered_is_not_opened() -> None:
    with serving(runs := ScriptedRuns(plain())) as target:
        async with FamulusClient(target) as client:
            with pytest.raises(RuntimeError, match="enter the stream"):
                await anext(client.stream_run(CREATE))
        with FamulusSyncClient(target) as sync_client, pytest.raises(RuntimeError, match="enter the stream"):
            next(sync_client.stream_run(CREATE))
    assert runs.streams == []


async def test_a_run_is_waited_for_through_outages_and_deadlines() -> None:
    retry = RetryPolicy(initial_delay=0.01, silence=0.3)
    runs = ScriptedRuns(with_tools(call("call_1", "greet")))
    runs.refusals.extend([lambda context: refuse(context, grpc.StatusCode.UNAVAILABLE)] * 2)
    with serving(runs) as target:
        async with FamulusClient(target, retry=retry) as client:
            waiting = await client.run_to_end(CREATE)
            with FamulusSyncClient(target, retry=retry) as sync_client:
                assert waiting == await asyncio.to_thread(sync_client.run_to_end, CREATE)
                assert waiting.run.state == RunState.RUN_STATE_REQUIRES_ACTION
                runs.publish()
                ended = await client.wait_run(RUN_ID)
                assert ended == await asyncio.to_thread(sync_client.wait_run, RUN_ID)
    assert ended.text == "Done"
    assert runs.created[0].request_id != runs.created[1].request_id


async def test_a_wait_outlasts_the_deadline_of_its_calls() -> None:
    log = plain()
    runs = ScriptedRuns(log[:-1])
    with serving(runs) as target:
        async with FamulusClient(target, retry=RetryPolicy(initial_delay=0.01, silence=0.1)) as client:
            wait = asyncio.create_task(client.wait_run(RUN_ID))
            done, _ = await asyncio.wait([wait], timeout=0.4)
            assert not done
            runs.log.append(log[-1])
            runs.publish()
            assert (await wait).text == "Good morning, world"


async def test_errors_say_what_the_service_says() -> None:
    runs = ScriptedRuns(plain())
    runs.refusals.append(
        lambda context: refuse(
            context,
            grpc.StatusCode.INVALID_ARGUMENT,
            "create.model: is wrong",
            reason="INVALID_FIELD",
            field="create.model",
            retry_after=1.5,
            metadata={"model": "m"},
        )
    )
    with serving(runs) as target:
        async with FamulusClient(target) as client:
            with pytest.raises(
                FamulusError, match=r"^INVALID_ARGUMENT / INVALID_FIELD: create\.model: is wrong$"
            ) as caught:
                await client.run_to_end(CREATE)
    error = caught.value
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == reasons.ERROR_REASON_INVALID_FIELD
    assert error.metadata == {"model": "m"}
    assert error.violations == (Violation("create.model", "is wrong"),)
    assert error.retry_after == 1.5
    assert not error.transient


async def test_errors_of_the_raw_stubs_are_read_the_same_way() -> None:
    runs = ScriptedRuns(plain())
    runs.refusals.extend([lambda context: refuse(context, grpc.StatusCode.ABORTED, reason="OF_A_NEWER_VERSION")] * 2)
    with serving(runs) as target:
        async with FamulusClient(target) as client:
            with pytest.raises(grpc.RpcError) as caught:
                await client.runs.CreateRun(CREATE)
        with FamulusSyncClient(target) as sync_client, pytest.raises(grpc.RpcError) as again:
            await asyncio.to_thread(sync_client.runs.CreateRun, CREATE)
    for error in map(FamulusError.from_rpc, (caught.value, again.value)):
        assert error.code is grpc.StatusCode.ABORTED
        assert error.reason_name == "OF_A_NEWER_VERSION"
        assert error.reason == reasons.ERROR_REASON_UNSPECIFIED


@pytest.mark.parametrize("details", [b"\xff\xff", b"\x1a\x0c\x0a\x04type\x12\x04\xff\xff\xff\xff"])
async def test_damaged_details_cost_nothing_but_the_details(details: bytes) -> None:
    def damaged(context: grpc.ServicerContext) -> None:
        context.set_trailing_metadata((("grpc-status-details-bin", details),))
        context.abort(grpc.StatusCode.NOT_FOUND, "no such run")

    runs = ScriptedRuns(plain())
    runs.refusals.append(damaged)
    with serving(runs) as target:
        async with FamulusClient(target) as client:
            with pytest.raises(FamulusError, match="NOT_FOUND: no such run"):
                await client.wait_run(RUN_ID)


async def test_a_server_that_is_not_there_is_told_when_patience_ends(follow: Follow) -> None:
    with serving(ScriptedRuns(plain())) as target:
        pass
    seen = await follow(target, retry=RetryPolicy(initial_delay=0.01, give_up_after=0.2))
    assert seen.error is not None
    assert seen.error.code is grpc.StatusCode.UNAVAILABLE


def test_a_token_is_never_sent_in_the_clear() -> None:
    with pytest.raises(ValueError, match="encrypted"):
        FamulusSyncClient("famulus.example:1", token="secret")


async def test_a_token_needs_no_credentials_on_this_machine() -> None:
    runs = ScriptedRuns(plain())
    seen: list[dict[str, str | bytes]] = []
    runs.refusals.extend([lambda context: seen.append(dict(context.invocation_metadata()))] * 2)
    with serving(runs) as target:
        async with FamulusClient(target, token="secret") as client:
            await client.runs.CreateRun(CREATE)
        with FamulusSyncClient(target, token="secret") as sync_client:
            await asyncio.to_thread(sync_client.runs.CreateRun, CREATE)
    assert [metadata["authorization"] for metadata in seen] == ["Bearer secret"] * 2


async def test_a_token_goes_with_every_call_over_an_encrypted_channel(tmp_path: Path) -> None:
    runs = ScriptedRuns(plain())
    seen: list[dict[str, str | bytes]] = []
    runs.refusals.extend([lambda context: seen.append(dict(context.invocation_metadata()))] * 2)
    kind = grpc.LocalConnectionType.UDS  # counts as encrypted
    target = f"unix:{tmp_path}/famulus.sock"
    server = grpc.server(ThreadPoolExecutor(2))
    add_RunServiceServicer_to_server(runs, server)
    server.add_secure_port(target, grpc.local_server_credentials(kind))
    server.start()
    credentials = grpc.local_channel_credentials(kind)
    async with FamulusClient(target, credentials=credentials, token="secret") as client:
        await client.runs.CreateRun(CREATE)
    with FamulusSyncClient(target, credentials=credentials, token="secret") as sync_client:
        await asyncio.to_thread(sync_client.runs.CreateRun, CREATE)
    server.stop(0).wait()
    assert [metadata["authorization"] for metadata in seen] == ["Bearer secret"] * 2


def test_own_channel_options_win() -> None:
    options = channel_options("famulus:443", [("grpc.keepalive_time_ms", 1), ("grpc.primary_user_agent", "me")])
    assert len(dict(options)) == len(options)
    assert dict(options)["grpc.keepalive_time_ms"] == 1
    assert dict(options)["grpc.primary_user_agent"] == "me"


def test_the_messages_can_be_had_without_grpc() -> None:
    program = (
        "import sys, famulus, famulus.v1.run_pb2\n"
        "assert 'FamulusClient' in dir(famulus)\n"
        "assert 'grpc' not in sys.modules, 'grpc was loaded'\n"
        "from famulus import FamulusClient\n"
        "assert 'grpc' in sys.modules\n"
        "assert not hasattr(famulus, 'nonsense')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_all_names_of_the_package_can_be_had() -> None:
    import famulus

    for name in famulus.__all__:
        assert getattr(famulus, name).__module__.startswith("famulus.")
