"""JSON Schemas at random: what is accepted, everybody else can read, and what is not, is refused in words."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.targets.json_schema import SEEDS, try_input
from hostile.strategies import json_texts, with_odd_values


@settings(max_examples=100)
@given(json_texts().map(str.encode) | st.sampled_from(SEEDS).flatmap(with_odd_values) | st.text().map(str.encode))
def test_schema_is_refused_in_words_or_readable_by_everybody(text: bytes) -> None:
    try_input(text)
