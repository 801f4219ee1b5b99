"""`serve`: start, stop, and what it leaves behind."""

import signal
from pathlib import Path

from command import Running, all_gone, environment, has_local_model, run, server_environment
from famulus import FamulusSyncClient
from famulus.v1.assistant_pb2 import Assistant
from famulus.v1.assistant_service_pb2 import EnsureAssistantRequest
from famulus.v1.message_pb2 import MESSAGE_ROLE_USER, Message, MessagePart, TextPart
from famulus.v1.run_service_pb2 import CreateRunRequest
from famulus.v1.thread_pb2 import Thread

HOLDS_ITS_ANSWER = "[[scene]]\ntext = 'once upon a time'\nhold_after = 1\n"


def start_run(client: FamulusSyncClient) -> CreateRunRequest:
    assistant = Assistant(name="test", model="scripted")
    answer = client.assistants.EnsureAssistant(EnsureAssistantRequest(assistant=assistant))
    message = Message(role=MESSAGE_ROLE_USER, content=[MessagePart(text=TextPart(text="Hello"))])
    return CreateRunRequest(new_thread=Thread(), assistant_id=answer.assistant.id, additional_messages=[message])


def test_server_tells_its_address_serves_and_leaves_nothing_behind_on_sigterm(tmp_path: Path) -> None:
    env = server_environment(tmp_path, local_model=has_local_model())
    with Running("serve", env=env) as server:
        address = server.address()
        healthy = run("healthcheck", "--address", address)
        assert (healthy.returncode, healthy.stdout) == (0, f"{address}: readiness SERVING\n")
        assert run("healthcheck", "--address", address, "--service", "no.such.Service").returncode == 1
        children = server.descendants()
        assert any("valkey" in child.name() for child in children)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert all_gone(children)
    assert len(server.stdout) == 1
    assert run("healthcheck", "--address", address).returncode == 2


def test_killed_server_leaves_no_process_behind(tmp_path: Path) -> None:
    with Running("serve", env=server_environment(tmp_path, local_model=has_local_model())) as server:
        server.address()
        children = server.descendants()
        assert children
        server.signal(signal.SIGKILL)
        assert server.wait() == -signal.SIGKILL
        assert all_gone(children)


def test_signal_while_it_starts_ends_it_at_once(tmp_path: Path) -> None:
    with Running("serve", "--log-level", "debug", env=server_environment(tmp_path)) as server:
        while not (tmp_path / "famulus.db.lock").exists():
            assert server.process.is_running()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    assert server.stdout == []


def test_second_signal_does_not_wait_for_runs_at_work(tmp_path: Path) -> None:
    script = tmp_path / "script.toml"
    script.write_text(HOLDS_ITS_ANSWER)
    with Running("serve", env=server_environment(tmp_path / "data", script=script)) as server:
        with FamulusSyncClient(server.address()) as client, client.stream_run(start_run(client)) as stream:
            assert next(event for event in stream if event.HasField("text_delta"))
            children = server.descendants()
            server.signal(signal.SIGTERM)
            server.line("Draining", on="stderr")
            server.signal(signal.SIGTERM)
            assert server.wait() == 128 + signal.SIGTERM
        assert all_gone(children)


def test_server_at_the_newest_schema_does_not_import_migration_tools(tmp_path: Path) -> None:
    measured = ("-X", "importtime")
    with Running("migrate", "--data-dir", str(tmp_path), env=environment(), interpreter=measured) as migrating:
        assert migrating.wait() == 0
    assert {"alembic", "sqlalchemy"} <= imported_by(migrating)
    with Running("serve", env=server_environment(tmp_path), interpreter=measured) as server:
        server.address()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    assert not {"alembic", "sqlalchemy"} & imported_by(server)


def imported_by(ended: Running) -> set[str]:
    return {line.split("|")[-1].strip() for line in ended.stderr}


def test_second_server_is_told_what_is_in_its_way(tmp_path: Path) -> None:
    env = server_environment(tmp_path / "first")
    with Running("serve", env=env) as server:
        address = server.address()
        same_data = run("serve", env=env)
        assert same_data.returncode == 1
        assert "is open in another process" in same_data.stderr
        assert "another data directory" in same_data.stderr
        same_port = run("serve", "--listen", address, env=server_environment(tmp_path / "second"))
        assert same_port.returncode == 1
        assert f"error: cannot listen on '{address}': is another server running there?" in same_port.stderr
        assert "Traceback" not in same_port.stderr
