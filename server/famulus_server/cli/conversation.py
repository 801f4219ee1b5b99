"""One conversation with a server: a thread, who answers on it, and what is said."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import click
import grpc

from famulus import FamulusClient, FamulusError, RunStream
from famulus.v1.assistant_pb2 import Assistant
from famulus.v1.assistant_service_pb2 import EnsureAssistantRequest
from famulus.v1.error_reason_pb2 import ERROR_REASON_UNKNOWN_MODEL
from famulus.v1.message_pb2 import MESSAGE_ROLE_USER, Message, MessagePart, TextPart
from famulus.v1.run_pb2 import RUN_STATE_COMPLETED, RUN_STATE_INCOMPLETE, RUN_STATE_REQUIRES_ACTION
from famulus.v1.run_service_pb2 import CancelRunRequest, CreateRunRequest
from famulus.v1.thread_pb2 import Thread
from famulus.v1.thread_service_pb2 import GetThreadRequest, ListMessagesRequest
from famulus.view import text_of
from famulus_server.cli.console import note
from famulus_server.cli.failures import in_words
from famulus_server.cli.transcript import Transcript, describe_call, describe_end
from famulus_server.embedded.local_model import MODEL_NAME

_RECALLED_MESSAGES = 6
_TITLE_CHARACTERS = 80
_MOST_TOKENS_OF_THE_SMALL_MODEL = 300


class Conversation:
    """Says things on one thread, which the first of them creates unless `resume` named one.

    The first of `models` that the server has answers, unless `assistant_id` says who does. To cancel a task that
    follows an answer cancels the run and waits for its end; to cancel it again ends the waiting.
    """

    def __init__(self, *, client: FamulusClient, models: Sequence[str], assistant_id: str) -> None:
        self._client = client
        self._models = list(models)
        self._assistant_id = assistant_id
        # Whoever was chosen is not exchanged for another, even where its model is gone.
        self._was_chosen = bool(assistant_id)
        self._most_tokens: int | None = None
        self.thread_id = ""
        """Id of the thread; empty until the first run has created it."""

    async def resume(self, thread_id: str, *, with_own_assistant: bool, recall: bool) -> None:
        """Go on with a thread; `recall` shows its last messages. Waits for the run that is at work on it.

        Raises grpc.RpcError where there is no such thread.
        """
        thread = (await self._client.threads.GetThread(GetThreadRequest(thread_id=thread_id))).thread
        self.thread_id = thread.id
        if with_own_assistant:
            self._assistant_id = thread.default_assistant_id
            self._was_chosen = bool(self._assistant_id)
        if recall:
            await self._recall()
        if thread.active_run_id:
            note("A run is at work on this thread; Ctrl-C cancels it.")
            await self._follow(self._client.watch_run(thread.active_run_id, cancel_on_exit=True))

    async def say(self, text: str) -> bool:
        """Say something and show the answer; whether there was one. Refusals are shown, too.

        Raises FamulusError where the server cannot be reached any more.
        """
        while True:
            try:
                return await self._follow(self._client.stream_run(await self._run(text), cancel_on_exit=True))
            except FamulusError as error:
                if error.reason == ERROR_REASON_UNKNOWN_MODEL and len(self._models) > 1 and not self._was_chosen:
                    self._models.pop(0)
                    self._assistant_id = ""
                    continue
                if error.transient:
                    raise
                note(f"error: {in_words(error)}")
                return False

    async def _run(self, text: str) -> CreateRunRequest:
        if not self._assistant_id:
            self._assistant_id = await self._ensure_assistant()
        request = CreateRunRequest(
            assistant_id=self._assistant_id,
            additional_messages=[Message(role=MESSAGE_ROLE_USER, content=[MessagePart(text=TextPart(text=text))])],
        )
        if self._most_tokens:
            request.max_completion_tokens = self._most_tokens
        if self.thread_id:
            request.thread_id = self.thread_id
        else:
            thread = Thread(title=text[:_TITLE_CHARACTERS], default_assistant_id=self._assistant_id)
            request.new_thread.CopyFrom(thread)
        return request

    async def _ensure_assistant(self) -> str:
        assistant = Assistant(name="chat", model=self._models[0], instructions="You are a helpful assistant.")
        if assistant.model == MODEL_NAME:
            # So small a model wanders off into other languages, and goes on for minutes.
            assistant.temperature, self._most_tokens = 0.0, _MOST_TOKENS_OF_THE_SMALL_MODEL
        try:
            answer = await self._client.assistants.EnsureAssistant(EnsureAssistantRequest(assistant=assistant))
        except grpc.RpcError as error:
            raise FamulusError.from_rpc(error) from error
        return answer.assistant.id

    async def _follow(self, stream: RunStream) -> bool:
        """Show a run to its end; whether it gave an answer. The task may be cancelled once, which cancels the run."""
        transcript = Transcript(details=False)
        try:
            async with stream:
                async for event in stream:
                    self.thread_id = self.thread_id or event.run_state_changed.run.thread_id
                    transcript.show(event)
                    await self._refuse_tools(stream, transcript)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.uncancel():
                raise  # cancelled once more: nobody waits for the run
            # Until the run has ended its thread takes no other one.
            run = (await self._client.wait_run(stream.view.run_id)).run if stream.view.run_id else None
            transcript.remark(describe_end(run) if run else "cancelled")
            return False
        transcript.end_line()
        run = stream.view.result().run
        if run.state != RUN_STATE_COMPLETED:
            transcript.remark(describe_end(run))
        return run.state in {RUN_STATE_COMPLETED, RUN_STATE_INCOMPLETE}

    async def _refuse_tools(self, stream: RunStream, transcript: Transcript) -> None:
        run = stream.view.run
        if run is not None and run.state == RUN_STATE_REQUIRES_ACTION:
            calls = ", ".join(map(describe_call, run.required_action.tool_calls))
            transcript.remark(f"the assistant wants {calls}, and chat has no functions: cancelling the run")
            await self._client.runs.CancelRun(CancelRunRequest(run_id=run.id))

    async def _recall(self) -> None:
        request = ListMessagesRequest(thread_id=self.thread_id, page_size=_RECALLED_MESSAGES)
        for message in reversed((await self._client.threads.ListMessages(request)).messages):
            mark = "> " if message.role == MESSAGE_ROLE_USER else ""
            click.secho(f"{mark}{text_of(message)}", dim=True)
