"""`chat` against a server."""

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from command import PROGRAM, SECONDS, Running, environment, run, server_environment
from famulus import FamulusSyncClient
from famulus.v1.assistant_pb2 import Assistant
from famulus.v1.assistant_service_pb2 import CreateAssistantRequest

SCRIPT = """
[[scene]]
match = { user_contains = "wait for ever" }
text = "once upon a time"
hold_after = 2

[[scene]]
match = { user_contains = "break" }
fault = { kind = "status", status = 400 }

[[scene]]
text = "You said: "
echo = true
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with _serving(tmp_path_factory.mktemp("chat")) as server:
        yield server.address()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


@pytest.fixture(scope="module")
def freezing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that a test may stop for a while."""
    with _serving(tmp_path_factory.mktemp("freezing")) as server:
        yield server


def test_message_is_answered_and_the_thread_can_be_resumed(address: str) -> None:
    first = run("chat", "--address", address, "--message", "Hello there")
    assert (first.returncode, first.stdout) == (0, "You said: Hello there\n")
    command = re.findall(r"To go on: (.*)", first.stderr)[0]
    resumed = subprocess.run(
        ["/bin/sh", "-c", command], check=True, input="And now?\n", capture_output=True, text=True, env=environment()
    )
    assert "> Hello there\nYou said: Hello there\n" in resumed.stdout
    assert resumed.stdout.endswith("> You said: And now?\n> \n")
    assert re.findall(r"thread_\w+", resumed.stderr) == re.findall(r"thread_\w+", first.stderr)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--thread", "thread_missing"], "error: no such thread. Check the id"),
        (["--assistant", "asst_missing"], "error: no such assistant. Check the id"),
        (["--model", "missing"], "error: no such model is configured: missing. Name one"),
    ],
)
def test_refusals_are_sentences_that_say_what_to_do(address: str, arguments: list[str], said: str) -> None:
    refused = run("chat", "--address", address, *arguments, "-m", "Hello")
    assert refused.returncode == 1
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr


def test_run_that_fails_is_told_with_its_reason(address: str) -> None:
    failed = run("chat", "--address", address, "-m", "Please break")
    assert failed.returncode == 1
    assert "(failed: " in failed.stderr


def test_assistant_that_was_chosen_is_not_exchanged_where_its_model_is_gone(address: str) -> None:
    with FamulusSyncClient(address) as client:
        lost = Assistant(name="lost", model="gone")
        made = client.assistants.CreateAssistant(CreateAssistantRequest(assistant=lost)).assistant
    refused = run("chat", "--address", address, "--assistant", made.id, "-m", "Hello")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "error: no such model is configured: gone" in refused.stderr


def test_server_that_is_not_there_is_told_clearly() -> None:
    refused = run("chat", "--address", "127.0.0.1:1", "-m", "Hello")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: no server answers there. Start one with `famulus-server serve`")
    assert "--ca-file" in refused.stderr


def test_ctrl_c_cancels_the_answer_and_at_the_prompt_leaves(address: str) -> None:
    with _chatting(address) as (terminal, chat):
        _expect_prompt(terminal, chat.pid)
        os.write(terminal, b"wait for ever\n")
        _expect(terminal, "once upon")
        os.write(terminal, b"\x03")
        _expect(terminal, "(cancelled)")
        _expect_prompt(terminal, chat.pid)
        os.write(terminal, b"and again\n")
        _expect(terminal, "You said: and again")
        _expect_prompt(terminal, chat.pid)
        _leave(terminal)
        assert chat.wait(SECONDS) == 0


def test_ctrl_c_before_anything_has_come_cancels_the_answer(freezing: Running) -> None:
    with _chatting(freezing.address()) as (terminal, chat):
        _expect_prompt(terminal, chat.pid)
        os.write(terminal, b"hello\n")
        _expect(terminal, "You said: hello")
        _expect_prompt(terminal, chat.pid)
        with _frozen(freezing):
            os.write(terminal, b"wait for ever\n")
            _expect_idle(terminal, "wait for ever\r\n", chat.pid)
            os.write(terminal, b"\x03")
            _expect_idle(terminal, "^C", chat.pid)
        _expect(terminal, "(cancelled)")
        _expect_prompt(terminal, chat.pid)
        os.write(terminal, b"and again\n")
        _expect(terminal, "You said: and again")


def test_second_ctrl_c_leaves_a_run_that_does_not_end(freezing: Running) -> None:
    with _chatting(freezing.address()) as (terminal, chat):
        _expect_prompt(terminal, chat.pid)
        os.write(terminal, b"wait for ever\n")
        _expect(terminal, "once upon")
        with _frozen(freezing):
            os.write(terminal, b"\x03")
            _expect_idle(terminal, "^C", chat.pid)
            os.write(terminal, b"\x03")
            said = _expect(terminal, "Aborted!")
            assert chat.wait(SECONDS) == 1
    assert re.search(r"To go on: .* --thread thread_\w+\s+Aborted!", said)
    assert "Traceback" not in said


@contextlib.contextmanager
def _serving(folder: Path) -> Iterator[Running]:
    (folder / "script.toml").write_text(SCRIPT)
    with Running("serve", env=server_environment(folder / "data", script=folder / "script.toml")) as server:
        yield server


@contextlib.contextmanager
def _frozen(server: Running) -> Iterator[None]:
    server.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.signal(signal.SIGCONT)


@contextlib.contextmanager
def _chatting(address: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A terminal, and the program that runs in it."""
    terminal, theirs = pty.openpty()
    chat = subprocess.Popen(
        [PROGRAM, "chat", "--address", address],
        env=environment({"TERM": "dumb"}),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: _own(theirs),  # noqa: PLW1509 - no threads here
    )
    os.close(theirs)
    try:
        yield terminal, chat
    finally:
        chat.kill()
        chat.wait()
        os.close(terminal)


def _own(terminal: int) -> None:
    import fcntl
    import termios

    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)


def _leave(terminal: int) -> None:
    """Ctrl-C at the prompt, again where nothing happens: readline misses one that comes just before it waits."""
    for seconds in (3.0, 3.0, SECONDS):
        os.write(terminal, b"\x03")
        if select.select([terminal], [], [], seconds)[0]:
            break
    _expect(terminal, "To go on: ")


def _expect(terminal: int, text: str) -> str:
    """Read on until the text comes; all that was read."""
    seen, deadline = "", time.monotonic() + SECONDS
    while text not in seen:
        readable, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert readable, f"no {text!r} in {seen!r}"
        seen += os.read(terminal, 1).decode(errors="replace")
    return seen


def _expect_prompt(terminal: int, pid: int) -> None:
    """Read on until the program waits for what is typed: between a prompt and that, readline forgets a Ctrl-C."""
    _expect_idle(terminal, "> ", pid)


def _expect_idle(terminal: int, text: str, pid: int) -> None:
    """Read on until the text comes and the program has nothing to do but wait."""
    _expect(terminal, text)
    deadline = time.monotonic() + SECONDS
    while psutil.Process(pid).status() != psutil.STATUS_SLEEPING:
        assert time.monotonic() < deadline
        time.sleep(0.01)
