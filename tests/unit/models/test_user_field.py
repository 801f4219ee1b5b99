"""Whom the provider is told that a turn is for, by default."""

import pytest

from famulus_server.models.responses_request import user_of
from famulus_server.models.settings import ModelSettings
from famulus_server.ports import ModelRequest


@pytest.mark.parametrize(
    ("base_url", "told"),
    [
        ("https://api.openai.com/v1", True),
        ("https://API.openai.com:443/v1", True),
        ("https://eu.api.openai.com/v1", True),
        ("https://api.openai.com.example.org/v1", False),
        ("https://notapi.openai.com/v1", False),
        ("https://example.org/api.openai.com/v1", False),
        ("http://127.0.0.1:8000/v1", False),
    ],
)
def test_pseudonym_goes_to_openai_and_to_no_other_server_by_default(base_url: str, told: bool) -> None:
    settings = ModelSettings(name="m", backend="chat", base_url=base_url)
    request = ModelRequest(model="m", instructions="", items=[], user="a1b2")
    assert user_of(request, settings) == ({"safety_identifier": "a1b2"} if told else {})
