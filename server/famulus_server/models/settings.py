"""What the configuration says of one model. `config/` fills these in; the registry builds models from them."""

from typing import Annotated, Literal

import msgspec

Seconds = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class RetrySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a turn that failed before its first chunk is tried again, and how soon."""

    attempts: Count = 3
    base_delay: Seconds = 1.0
    factor: Annotated[float, msgspec.Meta(ge=1)] = 2.0
    max_delay: Seconds = 10.0
    jitter: Share = 0.1  # at most this share is added to a delay
    patience: Seconds = 60.0  # a provider that asks for a longer wait is not waited for
    budget: Share = 0.1  # retries per turn that this process allows in the long run
    reserve: Annotated[int, msgspec.Meta(ge=0)] = 10  # retries allowed on top of that


class BreakerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a model that fails is not asked any more, and for how long."""

    window_seconds: Seconds = 30.0  # calls that ended longer ago do not count
    min_calls: Count = 10  # of fewer calls nothing can be told
    failure_share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.5
    open_seconds: Seconds = 5.0  # doubled each time that a probe fails, up to `max_open_seconds`
    max_open_seconds: Seconds = 60.0


class ModelSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One configured model. Timeouts are in seconds; sizes of context and output in tokens."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    backend: Literal["responses", "chat"]
    base_url: Annotated[str, msgspec.Meta(pattern="^https?://")]
    upstream_model: str = ""  # the provider's name of it; empty: the same
    api_key: str = ""
    context_window: Count = 8192
    max_output_tokens: Count | None = None
    connect_timeout: Seconds = 5.0
    first_event_timeout: Seconds = 60.0
    idle_timeout: Seconds = 60.0  # between two events of the model; pings do not count
    max_line_bytes: Count = 1_048_576
    reasoning: bool = False  # asks for encrypted reasoning, and for summaries where they are wanted
    count_tokens: bool = False  # responses: asks for the exact size of a turn before the turn
    built_in_tools: bool = True  # means nothing for the backend "chat", which has none
    legacy_max_tokens: bool = False  # chat: say `max_tokens` instead of `max_completion_tokens`
    # The field in which the provider is told a pseudonym of the user. auto: safety_identifier for OpenAI's own servers,
    # and none for others, as some refuse fields that they do not know.
    user_field: Literal["auto", "none", "safety_identifier", "user"] = "auto"
    done_marker: bool = True  # chat: whether the server ends its streams with `[DONE]`
    retry: RetrySettings = RetrySettings()
    breaker: BreakerSettings = BreakerSettings()

    def __repr__(self) -> str:
        """Without the key, since representations end in logs."""
        return f"ModelSettings(name={self.name!r}, backend={self.backend!r}, base_url={self.base_url!r})"
