"""What a provider says that a turn used, as it can be believed."""

from famulus.v1.run_pb2 import Usage

# Whatever is said: sums of such counts, times a price, still fit 64 bits.
_MOST = 1 << 31


def believe(*, prompt: int, completion: int, total: int | None, cached: int | None, reasoning: int | None) -> Usage:
    """The counts within what they can be: none is negative or absurd, and a part is not more than its whole."""
    prompt, completion = _bounded(prompt), _bounded(completion)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=_bounded(total or 0) or prompt + completion,
        cached_prompt_tokens=min(_bounded(cached or 0), prompt),
        reasoning_tokens=min(_bounded(reasoning or 0), completion),
    )


def _bounded(count: int) -> int:
    return min(max(count, 0), _MOST)
