"""The installed command with authentication: keys are made, shown, and withdrawn."""

import signal
from pathlib import Path

import msgspec

from command import Running, environment, run, server_environment
from credentials import Authority

SCRIPT = '[[scene]]\ntext = "You said: "\necho = true\n'


def test_key_that_was_made_lets_chat_in_until_it_is_withdrawn(tmp_path: Path) -> None:
    script, file, token = tmp_path / "script.toml", tmp_path / "famulus.toml", tmp_path / "token"
    script.write_text(SCRIPT)
    made = run("auth", "new-key", "--tenant", "acme", "--role", "operator")
    kept = run("auth", "new-key", "--name", "kept", "--role", "reader").stdout
    file.write_text(made.stdout + kept)
    token.write_text(made.stderr.split()[-1] + "\n")
    with Running("--config", str(file), "serve", env=server_environment(tmp_path / "data", script=script)) as server:
        address = server.address()
        chat = ("chat", "--address", address, "--message", "Hello")
        answered = run(*chat, "--token-file", str(token))
        assert (answered.returncode, answered.stdout) == (0, "You said: Hello\n")
        assert f"--token-file {token}" in answered.stderr
        assert run(*chat, env=environment({"FAMULUS_TOKEN": token.read_text().strip()})).returncode == 0
        refused = run(*chat)
        assert refused.returncode == 1
        assert refused.stderr.startswith("error: no valid credentials. Show a token or key: --token-file names")
        assert run("healthcheck", "--address", address).returncode == 0
        file.write_text(kept)
        server.signal(signal.SIGHUP)
        reloaded = msgspec.json.decode(server.line("settings reloaded", on="stderr"))
        assert reloaded["changed"] == ["auth.keys"]
        assert run(*chat, "--token-file", str(token)).returncode == 1
        logged = "\n".join(server.stderr)
        assert '"caller":"key"' in logged
        assert token.read_text().strip() not in logged
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


def test_commands_speak_tls_with_a_server_whose_ca_they_know(tmp_path: Path) -> None:
    ca, script, file = Authority(), tmp_path / "script.toml", tmp_path / "famulus.toml"
    script.write_text(SCRIPT)
    cert, key = ca.server().write(tmp_path, "server")
    (tmp_path / "ca.crt").write_bytes(ca.pem)
    (tmp_path / "foreign.crt").write_bytes(Authority().pem)
    made = run("auth", "new-key", "--role", "operator")
    file.write_text(f"[tls]\ncert_file = '{cert}'\nkey_file = '{key}'\n{made.stdout}")
    shown = environment({"FAMULUS_TOKEN": made.stderr.split()[-1]})
    with Running("--config", str(file), "serve", env=server_environment(tmp_path / "data", script=script)) as server:
        address = server.address()
        trusting = ("--address", address, "--ca-file", str(tmp_path / "ca.crt"))
        answered = run("chat", *trusting, "--message", "Hello", env=shown)
        assert (answered.returncode, answered.stdout) == (0, "You said: Hello\n")
        assert run("healthcheck", *trusting).returncode == 0
        for options in ((), ("--ca-file", str(tmp_path / "foreign.crt"))):
            assert run("healthcheck", "--address", address, *options).returncode == 2
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
