"""What is believed of a provider's counts."""

from famulus.v1.run_pb2 import Usage
from famulus_server.models.usage import believe


def test_counts_are_taken_as_they_are() -> None:
    told = believe(prompt=10, completion=5, total=16, cached=4, reasoning=2)
    assert told == Usage(
        prompt_tokens=10, completion_tokens=5, total_tokens=16, cached_prompt_tokens=4, reasoning_tokens=2
    )


def test_total_that_is_not_told_is_the_sum() -> None:
    assert believe(prompt=10, completion=5, total=None, cached=None, reasoning=None).total_tokens == 15


def test_nonsense_neither_fails_a_run_nor_earns_money() -> None:
    told = believe(prompt=-1_000, completion=10**30, total=-1, cached=10**30, reasoning=-5)
    assert (told.prompt_tokens, told.cached_prompt_tokens, told.reasoning_tokens) == (0, 0, 0)
    assert told.total_tokens == told.completion_tokens == 1 << 31
