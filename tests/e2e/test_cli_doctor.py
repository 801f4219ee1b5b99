"""`famulus-server doctor` as a process of its own."""

import json
import os
import socket
from pathlib import Path

from command import SECONDS, environment, run, server_environment
from terminal import terminal


def test_terminal_shows_what_is_waited_for_until_all_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://me:hush@127.0.0.1:{silent.getsockname()[1]}/db?sslmode=disable"
        env = {**server_environment(tmp_path), "FAMULUS_STORE_URL": url}
        with terminal("doctor", "--timeout", "1", env=env) as shown:
            shown.until("looking at settings, database, encryption")
            told = shown.until(" fail\r\n")
            assert shown.process.wait(SECONDS) == 1
    assert "\x1b[31mFAIL\x1b[0m  database: no answer in 1 s" in told
    assert "hush" not in told


def test_findings_do_not_wait_for_a_command_that_was_given_up(tmp_path: Path) -> None:
    key = tmp_path / "key"
    os.mkfifo(key)
    env = {**server_environment(tmp_path / "data"), "FAMULUS_ENCRYPTION_KEY_COMMAND": f"cat {key}"}
    with terminal("doctor", "--timeout", "1", env=env) as shown:
        told = shown.until(" fail\r\n")
        assert shown.process.poll() is None
        key.write_text("")  # which ends the command
        assert shown.process.wait(SECONDS) == 1
    assert "encryption: no answer in 1 s" in told


def test_doctor_changes_nothing_and_says_nothing_beside_its_findings(tmp_path: Path) -> None:
    data = tmp_path / "data"
    told = run("doctor", "--json", env=server_environment(data))
    assert (told.returncode, told.stderr) == (0, "")
    assert json.loads(told.stdout)["ok"]
    assert not data.exists()


def test_settings_of_its_own_option_win_over_those_of_the_group(tmp_path: Path) -> None:
    right, wrong = tmp_path / "right.toml", tmp_path / "wrong.toml"
    right.write_text("")
    wrong.write_text("[sever]\n")
    env = environment(
        {
            "FAMULUS_SERVER_LISTEN": "127.0.0.1:0",
            "FAMULUS_METRICS_LISTEN": "127.0.0.1:0",
            "FAMULUS_SERVER_DATA_DIR": str(tmp_path / "data"),
        }
    )
    assert run("--config", str(wrong), "doctor", "--config", str(right), env=env).returncode == 0
    assert run("--config", str(right), "doctor", "--config", str(wrong), env=env).returncode == 1
