"""From a thread to the input of a model turn.

The input is: the messages that the first turn saw, then for each committed turn its items (with the outputs of its
calls) and the messages that came in meanwhile. What an earlier turn saw never changes, so that a provider's prompt
cache keeps working; items are in the format of the Responses API.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from famulus.v1.message_pb2 import AttachmentTool, ImageDetail, Message, MessagePart, MessageRole
from famulus.v1.run_pb2 import Run
from famulus.v1.tool_pb2 import Tool, ToolChoice, ToolChoiceMode, ToolResources
from famulus_server.engine.context import Context, recall, whole
from famulus_server.ports import ModelCard, ModelRequest, Remembered, Store, ThreadCache, Transaction, Turn

_PAGE = 200
# Without a tokenizer: on the safe side for English, near the truth for most others.
_CHARACTERS_PER_TOKEN = 3
_TOKENS_PER_MESSAGE = 8
_TOKENS_PER_IMAGE = 800
# Left free for the answer where nobody says how long that may be.
_ANSWER_SHARE = 0.25
_DETAILS: Mapping["ImageDetail.ValueType", str] = {
    ImageDetail.IMAGE_DETAIL_LOW: "low",
    ImageDetail.IMAGE_DETAIL_HIGH: "high",
}

Item = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A model turn ready to be asked for. `seen_sequence` is that of the newest message in it; `estimated_tokens` is
    what its input costs, roughly; `fits` says whether the model's context has room for that. The first turn's window is
    made to fit, what follows (outputs of tools, new messages) is sent whole or not at all."""

    request: ModelRequest
    seen_sequence: int
    estimated_tokens: int
    fits: bool


async def build(
    store: Store,
    cache: ThreadCache,
    tenant: str,
    run: Run,
    card: ModelCard,
    turns: Sequence[Turn],
    *,
    thread: Remembered | None = None,
) -> Prompt:
    """The input of the run's next turn, after the committed ones. What the first turn sees is remembered. Of a `thread`
    that is given nothing is read."""
    fixed = estimate_text(run.instructions) + sum(map(_estimate_tool, run.tools))
    start = turns[0].seen_sequence if turns else None
    remembered = None

    async def see(context: Context) -> tuple[Context, list[Message], list[Message], list[Message]]:
        first, last = await _window(context, run, start, _budget(run, card) - fixed)
        return context, first, last, [] if start is None else await context.behind(start)

    async def read(tx: Transaction) -> tuple[Context, list[Message], list[Message], list[Message]]:
        return await see(await recall(tx, tenant, run.thread_id, remembered, count=_count(run)))

    if thread is None:
        remembered = await cache.get(tenant, run.thread_id)
        context, first, last, new = await store.read(read)
    else:
        context, first, last, new = await see(whole(thread))
    old = first + last
    if context.stale:
        cache.note_stale()
    if start is None and last:
        window = context.since(last[0].sequence)
        # One message alone would save nothing: the newest is read anyway. But what no longer holds has to go.
        if len(window.messages) > 1 or remembered is not None:
            cache.put(tenant, run.thread_id, window)
    others = [message for message in new if message.run_id != run.id]
    items: list[Item] = [item for message in old for item in message_items(message)]
    pending = deque(others)
    for number, turn in enumerate(turns):
        items.extend(turn.items)
        seen = turns[number + 1].seen_sequence if number + 1 < len(turns) else None
        while pending and (seen is None or pending[0].sequence <= seen):
            items.extend(message_items(pending.popleft()))
    newest = max((message.sequence for message in (*old, *new)), default=0)
    request = ModelRequest(
        model=run.model,
        instructions=run.instructions,
        items=items,
        tools=list(run.tools),
        tool_resources=_resources(run, [*old, *new]),
        tool_choice=_choice(run),
        parallel_tool_calls=run.parallel_tool_calls if run.HasField("parallel_tool_calls") else None,
        temperature=run.temperature if run.HasField("temperature") else None,
        top_p=run.top_p if run.HasField("top_p") else None,
        max_output_tokens=_output_limit(run, card, used=run.usage.completion_tokens),
        response_format=run.response_format if run.HasField("response_format") else None,
        reasoning_effort=run.reasoning_effort,
        want_reasoning=run.stream_reasoning,
        cache_key=run.thread_id,
    )
    # Messages are counted as for the window, which could not be kept to otherwise.
    tokens = fixed + sum(map(_estimate, (*old, *others)))
    tokens += sum(_estimate_item(item) for turn in turns for item in turn.items)
    return Prompt(request=request, seen_sequence=newest, estimated_tokens=tokens, fits=tokens <= card.context_window)


def message_items(message: Message) -> list[Item]:
    """A message as input items; none where it has nothing to say."""
    if message.role == MessageRole.MESSAGE_ROLE_ASSISTANT:
        content = [part for part in map(_assistant_part, message.content) if part]
        role = "assistant"
    else:
        content = [_user_part(part) for part in message.content]
        content += [
            {"type": "input_file", "file_id": attachment.file_id}
            for attachment in message.attachments
            if AttachmentTool.ATTACHMENT_TOOL_FILE_SEARCH in attachment.tools
        ]
        role = "user"
    return [{"type": "message", "role": role, "content": content}] if content else []


def estimate_text(text: str) -> int:
    """Tokens of a text, roughly."""
    return estimate_length(len(text))


def estimate_length(characters: int) -> int:
    """Tokens of a text of this length, roughly."""
    return -(-characters // _CHARACTERS_PER_TOKEN)


def _estimate(message: Message) -> int:
    tokens = _TOKENS_PER_MESSAGE
    for part in message.content:
        kind = part.WhichOneof("part")
        tokens += _TOKENS_PER_IMAGE if kind in ("image_url", "image_file") else estimate_text(part.text.text)
    return tokens


def _estimate_item(item: Item) -> int:
    return _TOKENS_PER_MESSAGE + len(msgspec.json.encode(item)) // _CHARACTERS_PER_TOKEN


def _estimate_tool(tool: Tool) -> int:
    return estimate_text(tool.function.parameters_json) + estimate_text(tool.function.description)


async def _window(context: Context, run: Run, start: int | None, budget: int) -> tuple[list[Message], list[Message]]:
    """The messages that the first turn sees, oldest first: the thread's first one, where that is kept, and the newest
    ones. `start` is the newest that it saw, once it has run."""
    before = None if start is None else start + 1
    kept: list[Message] = []
    if run.truncation_strategy.HasField("last_messages"):
        wanted = run.truncation_strategy.last_messages
        while len(kept) < wanted and (page := await context.older(wanted - len(kept), after=0, before=before)):
            kept += page
            before = page[-1].sequence
        return [], kept[::-1]
    oldest = await context.first()
    first = [] if oldest is None or (before is not None and oldest.sequence >= before) else [oldest]
    budget -= sum(map(_estimate, first))
    floor = first[0].sequence if first else 0
    while page := await context.older(_PAGE, after=floor, before=before):
        for message in page:
            budget -= _estimate(message)
            # The newest message is sent whatever it costs: an answer to nothing would help nobody.
            if budget < 0 and kept:
                return first, kept[::-1]
            kept.append(message)
        before = page[-1].sequence
    return first, kept[::-1]


def _count(run: Run) -> int:
    """How many of the newest messages the window is likely to need."""
    last = run.truncation_strategy.last_messages
    return last if run.truncation_strategy.HasField("last_messages") else _PAGE


def _budget(run: Run, card: ModelCard) -> int:
    # By what the run may use, not by what is left of that: the window must not change from turn to turn.
    answer = _output_limit(run, card, used=0) or int(card.context_window * _ANSWER_SHARE)
    budget = card.context_window - min(answer, card.context_window // 2)
    if run.HasField("max_prompt_tokens"):
        budget = min(budget, run.max_prompt_tokens)
    return budget


def _output_limit(run: Run, card: ModelCard, *, used: int) -> int | None:
    limits = [card.max_output_tokens] if card.max_output_tokens is not None else []
    if run.HasField("max_completion_tokens"):
        limits.append(max(1, run.max_completion_tokens - used))
    return min(limits, default=None)


def _choice(run: Run) -> ToolChoice | None:
    if not run.HasField("tool_choice"):
        return None
    choice = run.tool_choice
    # "required" and a named function hold for the first turn: else the model could never answer.
    forced = choice.HasField("function_name") or choice.mode == ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED
    return ToolChoice(mode=ToolChoiceMode.TOOL_CHOICE_MODE_AUTO) if forced and run.turns else choice


def _resources(run: Run, messages: Sequence[Message]) -> ToolResources:
    resources = ToolResources()
    resources.CopyFrom(run.tool_resources)
    known = set(resources.code_interpreter_file_ids)
    for message in messages:
        for attachment in message.attachments:
            wanted = AttachmentTool.ATTACHMENT_TOOL_CODE_INTERPRETER in attachment.tools
            if wanted and attachment.file_id not in known:
                known.add(attachment.file_id)
                resources.code_interpreter_file_ids.append(attachment.file_id)
    return resources


def _user_part(part: MessagePart) -> Item:
    kind = part.WhichOneof("part")
    if kind == "image_url":
        return {"type": "input_image", "image_url": part.image_url.url, "detail": _detail(part.image_url.detail)}
    if kind == "image_file":
        return {"type": "input_image", "file_id": part.image_file.file_id, "detail": _detail(part.image_file.detail)}
    return {"type": "input_text", "text": part.text.text}


def _assistant_part(part: MessagePart) -> Item | None:
    kind = part.WhichOneof("part")
    if kind == "text" and part.text.text:
        return {"type": "output_text", "text": part.text.text}
    if kind == "refusal" and part.refusal.refusal:
        return {"type": "refusal", "refusal": part.refusal.refusal}
    return None


def _detail(detail: "ImageDetail.ValueType") -> str:
    return _DETAILS.get(detail, "auto")
