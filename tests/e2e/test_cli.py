"""The small commands, and what all of them have in common."""

import os
import signal
import socket
import urllib.request
from pathlib import Path

from command import Running, environment, run
from famulus_server.embedded.weights import SMOLLM2
from famulus_server.store.schema import HEAD

COMMANDS = {
    "serve",
    "demo",
    "chat",
    "config",
    "auth",
    "audit",
    "migrate",
    "keys",
    "models",
    "healthcheck",
    "doctor",
    "top",
    "fake-upstream",
}


def test_help_lists_all_commands_and_imports_nothing_heavy() -> None:
    with Running("--help", env=environment(), interpreter=("-X", "importtime")) as helping:
        assert helping.wait() == 0
    assert {line.split()[0] for line in helping.stdout if line.split()} >= COMMANDS
    imported = {line.split("|")[-1].strip() for line in helping.stderr}
    assert "click" in imported
    assert not imported & {"grpc", "aiohttp", "openai", "msgspec", "structlog", "alembic", "google.protobuf", "rich"}


def test_version_is_that_of_the_package() -> None:
    shown = run("--version")
    assert shown.stdout.startswith("famulus-server 0.")


def test_wrong_setting_is_told_without_a_traceback(tmp_path: Path) -> None:
    file = tmp_path / "famulus.toml"
    file.write_text("[server]\nlisten = 7461\n")
    refused = run("--config", str(file), "serve")
    assert refused.returncode == 2
    assert refused.stderr == f"error: {file}: server.listen: Expected `str`, got `int`\n"
    assert refused.stdout == ""


def test_migrate_tells_each_step_and_repeated_does_nothing(tmp_path: Path) -> None:
    first, second = run("migrate", "--data-dir", str(tmp_path)), run("migrate", "--data-dir", str(tmp_path))
    assert (first.returncode, second.returncode) == (0, 0)
    assert first.stdout.startswith(f"nothing -> {HEAD}")
    assert "now at version" in first.stdout
    assert second.stdout.startswith(f"{tmp_path}/famulus.db: already at version")


def test_migrate_brings_a_postgresql_database_to_the_newest_version(new_database: str) -> None:
    env = environment({"FAMULUS_STORE_URL": new_database})
    first, second = run("migrate", env=env), run("migrate", env=env)
    where = new_database.partition("?")[0]
    assert (first.stdout, first.stderr) == (f"nothing -> {HEAD}\n{where}: now at version {HEAD}\n", "")
    assert second.stdout == f"{where}: already at version {HEAD}\n"


def test_migrate_tells_a_database_server_that_is_not_there(tmp_path: Path) -> None:
    env = environment({"FAMULUS_STORE_URL": f"postgresql://me:hush@/famulus?host={tmp_path}"})
    refused = run("migrate", env=env)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: postgresql://me@/famulus: ")
    assert "Traceback" not in refused.stderr


def test_migrate_refuses_what_is_no_url_of_postgresql() -> None:
    refused = run("migrate", env=environment({"FAMULUS_STORE_URL": "mysql://me:hush@host/famulus"}))
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: environment: FAMULUS_STORE_URL: ")
    assert "hush" not in refused.stderr


def test_migrate_refuses_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "famulus.db").write_text("this is no database, by any stretch of the imagination")
    refused = run("migrate", "--data-dir", str(tmp_path))
    assert refused.returncode == 1
    assert "cannot be read as an SQLite database" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_unwritable_data_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = run("migrate", "--data-dir", str(tmp_path / "file"))
    assert refused.returncode == 1
    assert refused.stderr == f"error: {tmp_path}/file: File exists\n"


def test_healthcheck_tells_a_server_that_is_not_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        refused = run("healthcheck", "--address", f"127.0.0.1:{unused.getsockname()[1]}", "--timeout", "5")
    assert refused.returncode == 2
    assert "no answer (UNAVAILABLE)" in refused.stdout


def test_healthcheck_gives_up_on_a_server_that_is_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        refused = run("healthcheck", "--address", f"127.0.0.1:{silent.getsockname()[1]}", "--timeout", "0.2")
    assert refused.returncode == 2


def test_fake_upstream_plays_a_script_until_it_is_told_to_stop(tmp_path: Path) -> None:
    script = tmp_path / "script.toml"
    script.write_text('models = ["from-the-script"]\n')
    with Running("fake-upstream", "--script", str(script), env=environment()) as upstream:
        base_url = upstream.line("http://")
        with urllib.request.urlopen(f"{base_url}/models") as answer:
            assert b"from-the-script" in answer.read()
        upstream.signal(signal.SIGTERM)
        assert upstream.wait() == 0
    assert upstream.stdout == [base_url]


def test_fake_upstream_names_what_is_wrong_with_a_script(tmp_path: Path) -> None:
    script = tmp_path / "script.toml"
    script.write_text("[[scene]]\nspeed = 1\n")
    refused = run("fake-upstream", "--script", str(script))
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: {script}: ")
    assert "speed" in refused.stderr


def test_fake_upstream_listens_on_loopback_only_unless_told_otherwise() -> None:
    refused = run("fake-upstream", "--host", "0.0.0.0")
    assert refused.returncode == 2
    assert "--allow-remote" in refused.stderr


def test_models_pull_finds_what_is_there(tmp_path: Path) -> None:
    weights = tmp_path / SMOLLM2.file_name
    with weights.open("wb") as file:
        os.truncate(file.fileno(), SMOLLM2.member_size)
    found = run("models", "pull", env=environment({"FAMULUS_CACHE_DIR": str(tmp_path)}))
    assert (found.returncode, found.stdout) == (0, f"{weights}\n")


def test_models_pull_without_an_index_says_what_to_do(tmp_path: Path) -> None:
    refused = run("models", "pull", env=environment({"FAMULUS_CACHE_DIR": str(tmp_path), "PIP_NO_INDEX": "1"}))
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: The model weights could not be downloaded")
    assert "Traceback" not in refused.stderr
