"""Arguments and settings, in this process."""

import base64
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from grpc import StatusCode

from famulus import FamulusError
from famulus_server.cli import main
from famulus_server.cli.configuration import Configuration
from famulus_server.cli.failures import in_words
from famulus_server.cli.options import address_to_call

COMMANDS = [
    "serve",
    "demo",
    "chat",
    "config check",
    "auth new-key",
    "migrate",
    "keys new",
    "keys list",
    "keys rotate",
    "models pull",
    "healthcheck",
    "doctor",
    "top",
    "fake-upstream",
]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAMULUS_CONFIG", raising=False)
    monkeypatch.delenv("FAMULUS_SERVER_LISTEN", raising=False)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_shows_how_to_call_it(command: str) -> None:
    shown = call(*command.split(), "--help")
    assert shown.exit_code == 0
    assert f"famulus-server {command}" in shown.stdout.partition("Examples:")[2]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[server]\nlisten = '0.0.0.0:7461'\n", "server.listen: refusing to listen on '0.0.0.0:7461'"),
        ("[redis]\nurl = 'localhost:6379'\n", "redis.url: Expected `str` matching regex '^$|^(redis|rediss|unix)://'"),
        ("[worker]\nslots = 0\n", "worker.slots: Expected `int` >= 1"),
        ("[sever]\n", "sever: unknown section"),
        ("[tls]\ncert_file = '/nowhere'\nkey_file = '/nowhere'\n", "tls: TLS: /nowhere: No such file"),
        ("[server\n", "is not TOML"),
        ("models = 1\n", "models: must be an array of tables"),
    ],
)
def test_wrong_setting_is_named_with_file_key_and_reason(text: str, named: str, tmp_path: Path) -> None:
    file = tmp_path / "famulus.toml"
    file.write_text(text)
    refused = call("--config", str(file), "serve")
    assert refused.exit_code == 2
    assert refused.stderr.startswith(f"error: {file}: {named}")


def test_wrong_environment_is_named_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAMULUS_WORKER_SLOTS", "many")
    assert call("serve").stderr == "error: environment: FAMULUS_WORKER_SLOTS: Expected `int`, got `str`\n"
    monkeypatch.delenv("FAMULUS_WORKER_SLOTS")
    monkeypatch.setenv("FAMULUS_SERVER_LISTEN", "nowhere")
    assert call("serve").stderr.startswith("error: environment: FAMULUS_SERVER_LISTEN: 'nowhere' is no address")


def test_wrong_option_is_named() -> None:
    assert call("serve", "--listen", "nowhere").stderr.startswith("error: command line: --listen: 'nowhere'")


def test_missing_file_is_named() -> None:
    refused = call("--config", "missing.toml", "serve")
    assert (refused.exit_code, refused.stderr) == (
        2,
        "error: missing.toml: cannot be read: No such file or directory\n",
    )


def test_option_wins_over_environment_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "famulus.toml"
    file.write_text("[server]\nlisten = '127.0.0.1:1'\ndata_dir = 'of-the-file'\n[log]\nlevel = 'error'\n")
    monkeypatch.setenv("FAMULUS_SERVER_LISTEN", "127.0.0.1:2")
    configuration = Configuration(file=file)
    settings = configuration.load({"server": {"listen": None, "data_dir": "of-the-option"}})
    assert (settings.server.listen, settings.server.data_dir) == ("127.0.0.1:2", "of-the-option")
    assert settings.log.level == "error"
    assert configuration.load({"server": {"listen": "127.0.0.1:3"}}).server.listen == "127.0.0.1:3"


@pytest.mark.parametrize(
    ("listen", "called"),
    [
        ("0.0.0.0:7461", "localhost:7461"),
        ("[::]:7461", "localhost:7461"),
        ("127.0.0.1:7461", "127.0.0.1:7461"),
        ("[::1]:7461", "[::1]:7461"),
        ("unix:/run/famulus.sock", "unix:/run/famulus.sock"),
    ],
)
def test_server_that_listens_everywhere_is_called_by_a_name_of_this_machine(listen: str, called: str) -> None:
    assert address_to_call(listen) == called


def test_file_without_certificates_is_told_before_anybody_is_called(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("none")
    refused = call("healthcheck", "--address", "127.0.0.1:1", "--ca-file", str(file))
    assert (refused.exit_code, refused.stderr) == (1, f"error: {file}: holds no certificate (PEM)\n")


@pytest.mark.parametrize(
    "arguments", [["chat", "--assistant", "asst_1", "--model", "small"], ["demo", "--listen", "127.0.0.1:0"]]
)
def test_options_that_contradict_each_other_are_refused(arguments: list[str]) -> None:
    assert call(*arguments).exit_code == 2


def test_defect_is_told_without_its_traceback_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the moon is full")

    monkeypatch.setattr(Configuration, "load", fail)
    told = call("migrate")
    assert told.exit_code == 1
    assert told.stderr.startswith("error: RuntimeError: the moon is full. This is a defect")
    assert isinstance(call("--debug", "migrate").exception, RuntimeError)


def test_refusal_is_told_with_what_its_text_leaves_out_and_when_to_come_back() -> None:
    facts = {"role": "operator", "limit": "tenant.requests_per_minute"}
    error = FamulusError(
        "this needs the role operator", code=StatusCode.RESOURCE_EXHAUSTED, metadata=facts, retry_after=2.1
    )
    assert in_words(error) == ("this needs the role operator (limit tenant.requests_per_minute). Try again in 3 s.")


def test_new_key_is_printed_alone() -> None:
    assert len(base64.b64decode(call("keys", "new").stdout)) == 32


def test_keys_cannot_be_exchanged_where_there_are_none(tmp_path: Path) -> None:
    refused = call("keys", "rotate", "--data-dir", str(tmp_path))
    assert (refused.exit_code, refused.stderr) == (
        2,
        "error: [encryption]: there is no key: give key_file or key_command\n",
    )
