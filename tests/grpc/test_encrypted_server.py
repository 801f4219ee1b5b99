"""A whole server with encryption at rest: what its files hold, and how it starts and answers."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import grpc
import msgspec
import pytest
from click.testing import CliRunner, Result

from famulus.v1.assistant_service_pb2_grpc import AssistantServiceStub
from famulus.v1.run_service_pb2 import CreateRunRequest, StreamRunRequest
from famulus.v1.run_service_pb2_grpc import RunServiceStub
from famulus.v1.thread_service_pb2 import ListMessagesRequest
from famulus.v1.thread_service_pb2_grpc import ThreadServiceStub
from famulus_server.cli import main
from famulus_server.config import EncryptionSettings, Settings
from famulus_server.encryption.errors import KeyUnusable
from famulus_server.encryption.key_sources import new_key
from famulus_server.store.errors import KeysUnusable
from serving import ServerThread, Stubs, refusal, said, settings_in

MARK = "xyzzy"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "famulus.key"
    file.write_text(new_key())
    file.chmod(0o600)
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of the server's files."""
    return tmp_path / "data"


def encrypted(folder: Path, key_file: Path, **more: object) -> Settings:
    encryption = EncryptionSettings(key_file=str(key_file), **more)  # type: ignore[arg-type]
    return msgspec.structs.replace(settings_in(folder), encryption=encryption)


@contextmanager
def serving(settings: Settings) -> Iterator[Stubs]:
    server = ServerThread(settings)
    try:
        with grpc.insecure_channel(server.start().address) as channel:
            yield Stubs(AssistantServiceStub(channel), ThreadServiceStub(channel), RunServiceStub(channel))
    finally:
        server.stop()


def converse(stubs: Stubs) -> str:
    """A thread on which a model has answered; everything that is said has the mark."""
    assistant = stubs.new_assistant(name=MARK, instructions=f"say {MARK}")
    thread = stubs.new_thread(title=MARK)
    create = CreateRunRequest(
        thread_id=thread.id, assistant_id=assistant.id, additional_messages=[said(f"repeat {MARK}")]
    )
    assert list(stubs.runs.StreamRun(StreamRunRequest(create=create)))
    return thread.id


def texts(stubs: Stubs, thread_id: str) -> list[str]:
    """Newest first."""
    listed = stubs.threads.ListMessages(ListMessagesRequest(thread_id=thread_id))
    return [message.content[0].text.text for message in listed.messages]


def files_with(folder: Path, text: str) -> list[str]:
    return [file.name for file in folder.rglob("*") if file.is_file() and text.encode() in file.read_bytes()]


def command(key_file: Path, folder: Path, *arguments: str) -> Result:
    env = {"FAMULUS_CONFIG": None, "FAMULUS_ENCRYPTION_KEY_FILE": str(key_file)}
    return CliRunner(env=env).invoke(main, ["keys", *arguments, "--data-dir", str(folder)])


@pytest.mark.parametrize("scope", ["tenant", "thread"])
def test_nothing_that_was_said_is_in_any_file_of_the_server(folder: Path, key_file: Path, scope: str) -> None:
    settings = encrypted(folder, key_file, scope=scope)
    with serving(settings) as stubs:
        thread_id = converse(stubs)
        # While it runs: the logs of changes of SQLite and Valkey are there.
        assert files_with(folder, thread_id)
        assert files_with(folder, MARK) == []
    assert files_with(folder, MARK) == []
    with serving(settings) as stubs:
        assert texts(stubs, thread_id)[-1] == f"repeat {MARK}"


def test_database_that_was_not_encrypted_is_encrypted_by_the_command(folder: Path, key_file: Path) -> None:
    with serving(settings_in(folder)) as stubs:
        thread_id = converse(stubs)
    assert "famulus.db" in files_with(folder, MARK)
    listed = command(key_file, folder, "list")
    assert (listed.exit_code, listed.stdout.splitlines()[:3]) == (
        0,
        ["no data keys", "assistant_versions: 1 rows not encrypted", "threads: 1 rows not encrypted"],
    )
    done = command(key_file, folder, "rotate", "--data")
    assert (done.exit_code, done.stdout) == (0, "all is encrypted with new keys\n")
    assert "messages: 2 rows encrypted" in done.stderr
    assert "messages: 0 rows not encrypted" in command(key_file, folder, "list").stdout
    assert "famulus.db" not in files_with(folder, MARK)
    with serving(encrypted(folder, key_file)) as stubs:
        assert texts(stubs, thread_id)[-1] == f"repeat {MARK}"


def test_key_of_the_operator_is_exchanged_by_the_command(folder: Path, key_file: Path, tmp_path: Path) -> None:
    with serving(encrypted(folder, key_file)) as stubs:
        thread_id = converse(stubs)
    new = tmp_path / "new.key"
    new.write_text(new_key())
    new.chmod(0o600)
    with pytest.raises(RuntimeError) as refused:
        ServerThread(encrypted(folder, new)).start()
    assert isinstance(refused.value.__cause__, KeysUnusable)
    config = tmp_path / "famulus.toml"
    config.write_text(f"[encryption]\nkey_file = '{new}'\nold_key_files = ['{key_file}']\n")
    arguments = ["--config", str(config), "keys", "rotate", "--data-dir", str(folder)]
    done = CliRunner(env={"FAMULUS_CONFIG": None}).invoke(main, arguments)
    assert done.exit_code == 0, done.stderr
    # The tenant's, and that of Redis.
    assert done.stdout == "2 data keys were wrapped by another key; now the configured one wraps all\n"
    with serving(encrypted(folder, new)) as stubs:
        assert texts(stubs, thread_id)[-1] == f"repeat {MARK}"


def test_row_that_was_tampered_with_is_an_internal_error_with_a_reference(folder: Path, key_file: Path) -> None:
    with serving(encrypted(folder, key_file)) as stubs:
        thread_id = converse(stubs)
        with closing(sqlite3.connect(folder / "famulus.db")) as connection:
            connection.execute("UPDATE messages SET body = substr(body, 1, 50) WHERE sequence = 1")
            connection.commit()
        with pytest.raises(grpc.RpcError) as caught:
            texts(stubs, thread_id)
    told = refusal(caught.value)
    assert told.code is grpc.StatusCode.INTERNAL
    assert told.message == f"internal error, reference {told.metadata['reference']}"


def test_server_does_not_start_without_a_key_that_it_is_to_have(folder: Path, tmp_path: Path) -> None:
    missing = msgspec.structs.replace(settings_in(folder), encryption=EncryptionSettings(key_command=("false",)))
    with pytest.raises(RuntimeError) as refused:
        ServerThread(missing).start()
    assert isinstance(refused.value.__cause__, KeyUnusable)
