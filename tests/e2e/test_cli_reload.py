"""SIGHUP: a server that runs takes over what has changed in its file."""

import signal
from pathlib import Path

import msgspec

from command import Running, server_environment
from famulus import FamulusSyncClient
from famulus.v1.assistant_pb2 import Assistant
from famulus.v1.assistant_service_pb2 import EnsureAssistantRequest
from famulus.v1.message_pb2 import MESSAGE_ROLE_USER, Message, MessagePart, TextPart
from famulus.v1.run_pb2 import RUN_STATE_CANCELLED
from famulus.v1.run_service_pb2 import CancelRunRequest, CreateRunRequest
from famulus.v1.thread_pb2 import Thread

HOLDS_ITS_ANSWER = "[[scene]]\ntext = 'once upon a time'\nhold_after = 1\n"


def reload(server: Running, marks: str) -> dict[str, object]:
    """What is logged about the settings when they are read again: a line with these words."""
    server.signal(signal.SIGHUP)
    line: dict[str, object] = msgspec.json.decode(server.line(marks, on="stderr"))
    return line


def held_run(client: FamulusSyncClient) -> CreateRunRequest:
    assistant = EnsureAssistantRequest(assistant=Assistant(name="test", model="scripted"))
    message = Message(role=MESSAGE_ROLE_USER, content=[MessagePart(text=TextPart(text="Hello"))])
    return CreateRunRequest(
        new_thread=Thread(),
        assistant_id=client.assistants.EnsureAssistant(assistant).assistant.id,
        additional_messages=[message],
    )


def test_open_stream_lives_through_good_and_wrong_settings(tmp_path: Path) -> None:
    script, file = tmp_path / "script.toml", tmp_path / "famulus.toml"
    script.write_text(HOLDS_ITS_ANSWER)
    file.write_text("[tiers.default]\nweight = 1\n")
    env = server_environment(tmp_path / "data", script=script)
    with Running("--config", str(file), "serve", env=env) as server, FamulusSyncClient(server.address()) as client:
        with client.stream_run(held_run(client)) as stream:
            events = [next(stream)]
            while not events[-1].HasField("text_delta"):
                events.append(next(stream))
            file.write_text("[tiers.default]\nweight = 'heavy'\n")
            refused = reload(server, "settings not reloaded")
            assert refused["reason"] == f"{file}: tiers.default.weight: Expected `int`, got `str`"
            file.write_text("[worker]\nslots = 7\n[tiers.default]\nweight = 2\n[prices]\ncurrency = 'EUR'\n")
            # Compared with the settings from the start, so those in between have changed nothing.
            assert reload(server, "settings reloaded")["changed"] == ["tiers", "prices.currency"]
            rest = msgspec.json.decode(server.line("need a restart", on="stderr"))
            assert rest["keys"] == ["worker.slots"]
            run_id = events[0].run_state_changed.run.id
            client.runs.CancelRun(CancelRunRequest(run_id=run_id))
            events.extend(stream)
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        assert events[-1].run_state_changed.run.state == RUN_STATE_CANCELLED
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


def test_server_without_a_file_says_so_and_goes_on(tmp_path: Path) -> None:
    with Running("serve", env=server_environment(tmp_path)) as server:
        server.address()
        assert reload(server, "settings not reloaded")["reason"] == "the server was started without a file"
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


def test_signal_while_it_starts_is_obeyed_once_it_runs(tmp_path: Path) -> None:
    file = tmp_path / "famulus.toml"
    file.touch()
    with Running("--config", str(file), "serve", env=server_environment(tmp_path)) as server:
        while not (tmp_path / "famulus.db.lock").exists():
            assert server.process.is_running()
        assert reload(server, "settings reloaded")["changed"] == []
        server.address()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
