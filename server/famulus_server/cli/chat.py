"""`famulus-server chat`."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import signal
import sys
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from famulus_server.cli.configuration import Configuration
from famulus_server.cli.console import note
from famulus_server.cli.options import address_option, address_to_call, ca_file_option, token_file_option

if TYPE_CHECKING:
    from famulus import FamulusClient
    from famulus_server.cli.conversation import Conversation

_Result = TypeVar("_Result")


@click.command(short_help="Talk to an assistant.")
@address_option
@token_file_option
@ca_file_option
@click.option("--thread", metavar="ID", help="Go on with this thread.")
@click.option("--assistant", metavar="ID", help="Who answers.  [default: the thread's own assistant]")
@click.option("--model", metavar="NAME", help="Let an assistant for this model answer.")
@click.option("--message", "-m", metavar="TEXT", help="Say this, show the answer and leave.")
@click.pass_obj
def chat(
    configuration: Configuration,
    address: str | None,
    token_file: Path | None,
    ca_file: Path | None,
    thread: str | None,
    assistant: str | None,
    model: str | None,
    message: str | None,
) -> None:
    """Talk to an assistant of a running server; answers are shown as they come.

    Ctrl-C cancels an answer; at the prompt it leaves, as Ctrl-D does. The thread stays: it is named at the end, and
    --thread goes on with it, at any time and from anywhere.

    \b
    Examples:
      famulus-server chat
      famulus-server chat --message "What is the capital of France?"
      famulus-server chat --thread thread_... --message "And of Spain?"
      famulus-server chat --address famulus.example:7461 --token-file token --ca-file ca.pem
    """
    if assistant and model:
        raise click.UsageError("--assistant brings its own model: give one of the two")
    settings = configuration.load()
    # Here, because grpc takes a while to import.
    from famulus_server.cli.conversation import Conversation

    models = (model,) if model else _models_to_try(tuple(each.name for each in settings.models))
    target = address or address_to_call(settings.server.listen)
    with asyncio.Runner() as runner, _connected(runner, target, token_file, ca_file) as client:
        conversation = Conversation(client=client, models=models, assistant_id=assistant or "")
        try:
            if thread:
                own = not (assistant or model)
                _run(runner, conversation.resume(thread, with_own_assistant=own, recall=message is None))
            succeeded = _converse(runner, conversation) if message is None else _run(runner, conversation.say(message))
        finally:
            if conversation.thread_id:
                given = {"--address": address, "--token-file": token_file, "--ca-file": ca_file}
                same = [str(part) for option in given.items() if option[1] for part in option]
                configured = ["--config", str(configuration.file)] if configuration.file else []
                command = [sys.argv[0], *configured, "chat", *same, "--thread", conversation.thread_id]
                note(f"To go on: {shlex.join(command)}")
    if not succeeded:
        raise click.exceptions.Exit(1)


def _models_to_try(configured: Sequence[str]) -> tuple[str, ...]:
    from famulus_server.embedded.local_model import MODEL_NAME

    # The server may have settings of its own; these two it has where nothing is configured.
    return (*configured, MODEL_NAME, "scripted")


@contextlib.contextmanager
def _connected(
    runner: asyncio.Runner, address: str, token_file: Path | None, ca_file: Path | None
) -> Iterator[FamulusClient]:
    from famulus import FamulusClient, RetryPolicy
    from famulus_server.cli.credentials import channel_credentials, read_token

    token = read_token(token_file)
    credentials = channel_credentials(address, ca_file=ca_file, token=token)

    async def connect() -> FamulusClient:
        # A server that restarts is waited for, and it takes up to 25 seconds to stop.
        return FamulusClient(address, credentials=credentials, token=token, retry=RetryPolicy(give_up_after=30))

    client = _run(runner, connect())
    try:
        yield client
    finally:
        _run(runner, client.close())


def _run(runner: asyncio.Runner, work: Coroutine[Any, Any, _Result]) -> _Result:
    """What `work` returns. Each Ctrl-C cancels it; raises Abort if it then ends as cancelled.

    The runner's own way is to cancel at the first Ctrl-C only. A second would be a KeyboardInterrupt in the middle of
    grpc, which may then never finish its calls.
    """
    loop = runner.get_loop()
    task = loop.create_task(work)
    before = signal.signal(signal.SIGINT, lambda *_: loop.call_soon_threadsafe(task.cancel))
    try:
        return loop.run_until_complete(task)
    except asyncio.CancelledError:
        raise click.Abort from None
    finally:
        signal.signal(signal.SIGINT, before)


def _converse(runner: asyncio.Runner, conversation: Conversation) -> bool:
    note("Ctrl-C cancels an answer; at the prompt it leaves.")
    for text in _prompted():
        _run(runner, conversation.say(text))
    return True


def _prompted() -> Iterator[str]:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives `input` a history and editing; some builds of Python lack it
    while True:
        try:
            text = input("> ")
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return
        if text.strip():
            yield text
