"""What a newer version has stored survives an older one, which knows nothing of it: replicas of both run side by side
while they are updated."""

import sqlite3
from contextlib import closing
from pathlib import Path

from google.protobuf.field_mask_pb2 import FieldMask

from famulus.v1.assistant_pb2 import Assistant
from famulus.v1.assistant_service_pb2 import UpdateAssistantRequest
from famulus.v1.message_pb2 import Message
from famulus.v1.run_pb2 import Run, RunState
from famulus.v1.run_service_pb2 import UpdateRunRequest
from famulus.v1.thread_pb2 import Thread
from famulus.v1.thread_service_pb2 import GetThreadRequest, UpdateMessageRequest, UpdateThreadRequest
from famulus_server.embedded.upstream import Scene, ScriptedUpstream, ToolCall
from run_stage import TOOLS, open_stage, stage_settings

# Field 999, which no message has, of four bytes.
NEWER = b"\xba\x3e\x04skew"
METADATA = FieldMask(paths=["metadata"])


def bodies(path: Path, table: str) -> list[bytes]:
    with closing(sqlite3.connect(path)) as database:
        return [body for (body,) in database.execute(f"SELECT body FROM {table}")]


async def test_fields_of_a_newer_version_survive_every_change_by_this_one(tmp_path: Path) -> None:
    path, changed = tmp_path / "famulus.db", {"changed": "yes"}
    async with ScriptedUpstream() as upstream:
        settings = stage_settings(tmp_path, upstream.base_url)
        scenes = [Scene(times=1, tool_calls=(ToolCall(name="get_time"),)), Scene(deltas=2)]
        async with open_stage(settings, upstream, scenes) as stage:
            assistant = await stage.assistant(tools=TOOLS)
            run = await stage.wait((await stage.start(assistant_id=assistant.id)).id)
            [message] = await stage.messages(run.thread_id)
        with closing(sqlite3.connect(path)) as database, database:
            marked = {
                table: database.execute(f"UPDATE {table} SET body = CAST(body || ? AS BLOB)", (NEWER,)).rowcount
                for table in ("assistant_versions", "threads", "messages", "runs", "run_steps")
            }
        async with open_stage(settings, upstream) as stage:
            await stage.threads.UpdateThread(
                UpdateThreadRequest(thread=Thread(id=run.thread_id, metadata=changed), update_mask=METADATA)
            )
            await stage.threads.UpdateMessage(
                UpdateMessageRequest(
                    thread_id=run.thread_id, message=Message(id=message.id, metadata=changed), update_mask=METADATA
                )
            )
            await stage.assistants.UpdateAssistant(
                UpdateAssistantRequest(assistant=Assistant(id=assistant.id, metadata=changed), update_mask=METADATA)
            )
            await stage.runs.UpdateRun(UpdateRunRequest(run=Run(id=run.id, metadata=changed), update_mask=METADATA))
            [call] = run.required_action.tool_calls
            await stage.submit(run.id, (call.id, "noon"))
            assert (await stage.wait(run.id)).state == RunState.RUN_STATE_COMPLETED
            told = (await stage.threads.GetThread(GetThreadRequest(thread_id=run.thread_id))).thread
            assert NEWER in told.SerializeToString()
    # The update made another version of the assistant.
    marked["assistant_versions"] += 1
    assert {table: sum(NEWER in body for body in bodies(path, table)) for table in marked} == marked
