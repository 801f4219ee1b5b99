"""Children of the server that are killed: runs go on, and the children come back."""

import asyncio
from pathlib import Path
from urllib.parse import quote

import msgspec
import psutil
import pytest
import tenacity
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff

from famulus.v1.run_pb2 import RunState
from famulus_server.config import EmbeddedSettings
from famulus_server.embedded.local_model import MODEL_NAME
from famulus_server.embedded.upstream import Scene, ScriptedUpstream
from run_stage import open_stage, stage_settings

# 20 s at most.
PATIENT = Retry(ConstantBackoff(0.02), 1_000)


def model_servers() -> set[psutil.Process]:
    """The local model's servers below this process, their guards aside."""
    return {process for process in psutil.Process().children(recursive=True) if is_model_server(process)}


def is_model_server(process: psutil.Process) -> bool:
    try:
        command = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return "local_model_server" in command and "guard.py" not in command


@tenacity.retry(retry=tenacity.retry_if_exception_type(OSError), wait=tenacity.wait_fixed(0.02))
async def connect(port: int) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()


async def test_killed_valkey_comes_back_and_has_the_events_of_later_runs(tmp_path: Path) -> None:
    url = f"unix://{quote(str(tmp_path / 'valkey' / 'valkey.sock'))}"
    async with (
        ScriptedUpstream() as upstream,
        open_stage(stage_settings(tmp_path, upstream.base_url), upstream, [Scene(text="fine")]) as stage,
        Redis.from_url(url, retry=PATIENT) as redis,
    ):
        first = psutil.Process((await redis.info("server"))["process_id"])
        first.kill()
        await asyncio.to_thread(first.wait)
        assert (await stage.play_out()).text == "fine"
        second = psutil.Process((await redis.info("server"))["process_id"])
        # The connections to the killed one may cost the first batches, and nothing else.
        await stage.play_out()
        run = (await stage.play_out()).run
        assert await redis.xread({f"famulus:{{{run.id}}}:events": f"{run.last_sequence - 1}-0"}, block=5_000)
    assert second != first
    assert not second.is_running()


@pytest.mark.usefixtures("weights")
async def test_killed_local_model_comes_back_and_answers(tmp_path: Path) -> None:
    others = model_servers()
    async with ScriptedUpstream() as upstream:
        settings = stage_settings(tmp_path, upstream.base_url)
        settings = msgspec.structs.replace(settings, embedded=EmbeddedSettings(local_model="on"))
        async with open_stage(settings, upstream) as stage:
            assistant = await stage.assistant(model=MODEL_NAME)
            [first] = model_servers() - others
            port = first.net_connections("tcp")[0].laddr.port
            first.kill()
            await asyncio.to_thread(first.wait)
            async with asyncio.timeout(20):
                await connect(port)
            run = await stage.start("Hello", assistant_id=assistant.id, max_completion_tokens=5)
            ended = await stage.wait(run.id)
            assert ended.state in {RunState.RUN_STATE_COMPLETED, RunState.RUN_STATE_INCOMPLETE}
            assert ended.usage.completion_tokens > 0
    assert model_servers() == others
