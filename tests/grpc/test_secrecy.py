"""Neither the log nor the upstream is told what is none of their business, whatever goes wrong."""

import io
import logging
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
import structlog

from famulus.v1.message_pb2 import MESSAGE_ROLE_USER, Message
from famulus.v1.run_pb2 import RunErrorCode, RunState
from famulus.v1.thread_service_pb2 import UpdateThreadRequest
from famulus_server.config import Settings
from famulus_server.embedded.upstream import Scene, ScriptedUpstream
from famulus_server.embedded.upstream.script import Fault, ToolCall
from famulus_server.telemetry.logs import configure_logs
from postgres import execute
from run_stage import TOOLS, open_stage, stage_settings
from serving import refusal

MARK = "xyzzy"
KEY = f"{MARK}-key-of-ours"
USER = f"{MARK}-user"


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    handlers, level = logging.root.handlers[:], logging.root.level
    stream = io.StringIO()
    configure_logs(level="debug", stream=stream, secrets=[KEY])
    yield stream
    structlog.reset_defaults()
    logging.root.handlers, logging.root.level = handlers, level


def settings_in(folder: Path, upstream: ScriptedUpstream, **settings: Any) -> Settings:
    made = stage_settings(folder, upstream.base_url, **settings)
    models = [msgspec.structs.replace(model, api_key=KEY, user_field="safety_identifier") for model in made.models]
    return msgspec.structs.replace(made, models=tuple(models))


SAID = f"{MARK}: wrong key {KEY}"
FAULTS = (
    Fault(kind="status", status=401, message=SAID),
    Fault(kind="status", status=400, message=SAID, code="invalid_prompt"),
    Fault(kind="error_event", after=1, message=SAID),
    Fault(kind="bad_json", after=1),
    Fault(kind="bad_utf8", after=1),
    Fault(kind="reset", after=1),
    Fault(kind="eof", after=1),
)


@pytest.mark.usefixtures("unhurried")
async def test_log_has_no_word_of_a_conversation_and_no_secret_whatever_fails(
    log: io.StringIO, tmp_path: Path, empty_database: str
) -> None:
    async with ScriptedUpstream() as upstream:
        settings = settings_in(tmp_path, upstream, database_url=empty_database)
        async with open_stage(settings, upstream) as stage:
            thread = await stage.thread(f"{MARK} question", user_id=USER, title=f"{MARK} title", metadata={"k": MARK})
            assistant = await stage.assistant(name=MARK, instructions=f"{MARK} instructions", tools=TOOLS)
            fields = {"thread_id": thread.id, "assistant_id": assistant.id}
            answer = Scene(text=f"{MARK} answer", reasoning=f"{MARK} thought")
            stage.play(Scene(tool_calls=(ToolCall(name="get_time", arguments={"at": MARK}),), times=1), answer)
            run = await stage.wait((await stage.start(f"{MARK} hello", **fields)).id)
            await stage.submit(run.id, *((call.id, f"{MARK} output") for call in run.required_action.tool_calls))
            assert (await stage.wait(run.id)).state == RunState.RUN_STATE_COMPLETED
            errors = []
            for model, fault in product(("scripted", "chat"), FAULTS):
                stage.play(Scene(text=f"{MARK} half a word", fault=fault))
                failed = await stage.start(f"{MARK} hello", model=model, **fields)
                errors.append((await stage.wait(failed.id)).error)
            assert RunErrorCode.RUN_ERROR_CODE_MODEL_AUTHENTICATION in [error.code for error in errors]
            assert MARK not in str(errors)
            # A defect, in the middle of storing what was said: PostgreSQL quotes the row.
            execute(empty_database, "ALTER TABLE threads ADD CONSTRAINT odd CHECK (user_id = '') NOT VALID")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stage.thread(f"{MARK} last words", user_id=USER)
            execute(empty_database, "ALTER TABLE threads DROP CONSTRAINT odd")
            told = refusal(caught.value)
            assert told.reason == "INTERNAL"
            assert MARK not in told.message
            with pytest.raises(grpc.aio.AioRpcError):
                await stage.threads.UpdateThread(UpdateThreadRequest(), metadata=(("authorization", f"Bearer {KEY}"),))
    text = log.getvalue()
    for event in ("run released", "call failed", "model does not answer", "CheckViolationError"):
        assert event in text
    lines = [line for line in text.splitlines() if MARK in line]
    assert lines == []


@pytest.mark.usefixtures("unhurried")
async def test_upstream_is_never_told_a_tenant_or_an_id_of_a_user(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream:
        async with open_stage(settings_in(tmp_path, upstream), upstream, [Scene(text="hi")]) as stage:
            for model in ("scripted", "chat"):
                thread = await stage.thread("hello", user_id=USER)
                await stage.wait((await stage.start("again", thread_id=thread.id, model=model)).id)
            other = await stage.thread("hello", user_id="bob")
            await stage.wait((await stage.start("again", thread_id=other.id)).id)
        whole = [msgspec.json.encode([request.headers, request.body]).decode() for request in upstream.requests]
        users = [request.body["safety_identifier"] for request in upstream.requests]
    assert len(whole) == 3
    assert not [one for one in whole if USER in one or '"default"' in one or "tenant" in one]
    assert users[0] == users[1] != users[2]


def test_marks_would_be_seen(log: io.StringIO) -> None:
    structlog.get_logger().debug("said", words=f"{MARK} question", detail=Message(role=MESSAGE_ROLE_USER, id=MARK))
    assert log.getvalue().count(MARK) == 2
