"""`famulus-server chat`."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from famulus_server.cli.configuration import Configuration
from famulus_server.cli.console import note
from famulus_server.cli.options import address_option

if TYPE_CHECKING:
    from famulus_server.cli.conversation import Conversation


@click.command(short_help="Talk to an assistant.")
@address_option
@click.option("--thread", metavar="ID", help="Go on with this thread.")
@click.option("--assistant", metavar="ID", help="Who answers.  [default: the thread's own assistant]")
@click.option("--model", metavar="NAME", help="Let an assistant for this model answer.")
@click.option("--message", "-m", metavar="TEXT", help="Say this, show the answer and leave.")
@click.pass_obj
def chat(
    configuration: Configuration,
    address: str | None,
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
    """
    if assistant and model:
        raise click.UsageError("--assistant brings its own model: give one of the two")
    settings = configuration.load()
    # Here, because grpc takes a while to import.
    from famulus import FamulusSyncClient, RetryPolicy
    from famulus_server.cli.conversation import Conversation

    models = (model,) if model else _models_to_try(tuple(each.name for each in settings.models))
    # A server that restarts is waited for, one that is not there is not waited for long.
    with FamulusSyncClient(address or settings.server.listen, retry=RetryPolicy(give_up_after=15)) as client:
        conversation = Conversation(client=client, models=models, assistant_id=assistant or "")
        if thread:
            conversation.resume(thread, with_own_assistant=not (assistant or model), recall=message is None)
        try:
            succeeded = conversation.say(message) if message is not None else _converse(conversation)
        finally:
            if conversation.thread_id:
                elsewhere = ["--address", address] if address else []
                command = [sys.argv[0], "chat", *elsewhere, "--thread", conversation.thread_id]
                note(f"To go on: {shlex.join(command)}")
    if not succeeded:
        raise click.exceptions.Exit(1)


def _models_to_try(configured: Sequence[str]) -> tuple[str, ...]:
    from famulus_server.embedded.local_model import MODEL_NAME

    # The server may have settings of its own; these two it has where nothing is configured.
    return (*configured, MODEL_NAME, "scripted")


def _converse(conversation: Conversation) -> bool:
    note("Ctrl-C cancels an answer; at the prompt it leaves.")
    for text in _prompted():
        conversation.say(text)
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
