"""What is said when a command fails, and the exit code: 2 for wrong settings and options, 1 for the rest."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from famulus import FamulusError

_REMEDIES = {
    "RESOURCE_NOT_FOUND": "Check the id; ids of another data directory or tenant are not found either.",
    "THREAD_HAS_ACTIVE_RUN": "Wait for that run, or cancel it.",
    "NO_ASSISTANT": "Name one with --assistant, or a model with --model.",
    "UNKNOWN_MODEL": "Name one of the server's models with --model; `serve` lists them when it starts.",
    "SERVER_DRAINING": "The server is about to stop: try again in a moment.",
    "SERVER_OVERLOADED": "Try again in a moment.",
    "STORE_UNAVAILABLE": "Try again in a moment; the server's log says what is wrong with the database.",
    "UNAUTHENTICATED": "Show a token or key: --token-file names a file that has it, or FAMULUS_TOKEN is one. "
    "What is wrong with one that was shown is in the server's log.",
    "PERMISSION_DENIED": "Ask the operator for that role.",
    "CREDENTIALS_EXPIRED": "Get a fresh token.",
    "INTERNAL": "The server's log has the cause under that reference.",
}


class Failure(click.ClickException):
    """Ends a command with `error: ...` on standard error."""

    def show(self, file: Any = None) -> None:
        click.echo(f"error: {self.message}", file=file, err=file is None)


class WrongSettings(Failure):
    """The settings, or a file they name, are wrong: another start would fail as well."""

    exit_code = 2


class Cli(click.Group):
    """Turns whatever a command raises into a message for people."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if ctx.params["debug"]:
                raise
            raise _explain(error) from None


def _explain(error: Exception) -> Failure:
    # All imports are here because they cost time, which only a failure should take; cheap ones come first.
    from famulus_server.api.addresses import ListenError
    from famulus_server.config import ConfigError
    from famulus_server.embedded.errors import EmbeddedUnavailable
    from famulus_server.encryption.errors import KeyUnusable
    from famulus_server.store.errors import StoreInUse, StoreUnusable

    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, ConfigError):
        return WrongSettings(str(error))
    if isinstance(error, StoreInUse):
        return Failure(f"{error}. Stop that server, or give this one another data directory")
    if isinstance(error, KeyUnusable):
        return WrongSettings(f"[encryption]: {error}")
    if isinstance(error, ListenError | StoreUnusable | EmbeddedUnavailable):
        return Failure(str(error))
    if isinstance(error, OSError):
        return Failure(": ".join(filter(None, [error.filename and str(error.filename), error.strerror])))
    return _explain_further(error)


def _explain_further(error: Exception) -> Failure:
    import grpc

    from famulus import FamulusError
    from famulus_server.embedded.upstream import ScriptError

    if isinstance(error, ScriptError):
        return WrongSettings(str(error))
    if isinstance(error, grpc.RpcError):
        error = FamulusError.from_rpc(error)
    if isinstance(error, FamulusError):
        return Failure(in_words(error))
    return Failure(f"{type(error).__name__}: {error}. This is a defect; `famulus-server --debug ...` shows where")


def in_words(error: FamulusError) -> str:
    """What an error of the API says, and what to do about it."""
    # grpc words these for developers, with addresses and source lines.
    if not error.reason_name and error.code.name in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}:
        return (
            "no server answers there. Start one with `famulus-server serve`, or name its address with --address; "
            "if it speaks TLS, --ca-file names who has signed its certificate"
        )
    if error.code.name == "UNIMPLEMENTED":
        return "the server there answers no such calls. Name another: one with the role worker only executes runs"
    facts = ", ".join(f"{name} {value}" for name, value in error.metadata.items() if value not in error.message)
    said = f"{error.message} ({facts})" if facts else error.message
    remedy = _REMEDIES.get(error.reason_name)
    if not remedy and error.retry_after:
        remedy = f"Try again in {math.ceil(error.retry_after)} s."
    return f"{said}. {remedy}" if remedy else f"{said} [{error.reason_name or error.code.name}]"
