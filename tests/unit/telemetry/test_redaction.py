"""What must not stand in the log, and what may."""

from typing import Any

import pytest

from famulus_server.telemetry.redaction import REDACTED, Redaction

HUSH = "hush-hush.123"


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {HUSH}",
        f"sent {{'authorization': 'Basic {HUSH}='}}",
        f"key sk-proj-{HUSH}",
        f"fam_live_{HUSH}".replace(".", "-"),
        f"postgresql://famulus:{HUSH}@db:5432/famulus",
        f"postgresql://famulus:a/b#{HUSH}@c@db/famulus?x=1",
        f"redis://:{HUSH}@cache:6379/0 is away",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJodXNoIn0.hush-hush_123",
        f'{{"api_key": "{HUSH}", "x": 1}}',
        f"https://host/?a=1&api-key={HUSH}&b=2",
        f"password={HUSH} host=db",
        f"-----BEGIN EC PRIVATE KEY-----\n{HUSH}\n{HUSH}\n-----END EC PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY-----\n{HUSH}",
        f"null value in column\nDETAIL:  Failing row contains (acme, {HUSH}).",
        f"invalid input for query argument $3: '{HUSH}' (expected str)",
    ],
)
def test_what_looks_like_a_secret_is_struck_out(text: str) -> None:
    clean = Redaction().clean(text)
    assert REDACTED in clean
    assert "hush" not in clean
    assert Redaction().clean({"deep": [{"inside": (text,)}]})["deep"][0]["inside"][0] == clean


NAMES = ["authorization", "api_key", "Api-Key", "apikey", "token", "page_token", "PASSWORD", "x-secret", "key"]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_called_a_secret_is_struck_out_whatever_it_is(name: str) -> None:
    assert Redaction().of(name, 5) == Redaction().of(name, [HUSH]) == REDACTED
    assert Redaction().clean({name: {"a": HUSH}}) == {name: REDACTED}


def test_known_secrets_need_no_shape() -> None:
    redaction = Redaction(secrets=["correct horse", "correct horse battery", "abc", ""])
    assert redaction.clean("a correct horse battery, abc") == f"a {REDACTED}, abc"


class Quoting:
    def __repr__(self) -> str:
        return f"<Request Bearer {HUSH}>"


def test_objects_are_cleaned_as_the_text_that_they_are_shown_as() -> None:
    assert Redaction().clean([Quoting(), ValueError(f"password={HUSH}"), f"sk-{HUSH}".encode()]) == [
        f"<Request Bearer {REDACTED}>",
        f"ValueError('password={REDACTED}')",
        f"b'sk-{REDACTED}.123'",
    ]


@pytest.mark.parametrize(
    "value",
    [
        "call",
        "/famulus.v1.RunService/GetRun",
        "run_01m82hmwjddb0t1j2q9np0td3x",
        "https://api.openai.com/v1/responses?x=1",
        "postgresql://famulus@db:5432/famulus",
        "ipv6:[::1]:5432",
        "risk-averse task-force",
        "Traceback (most recent call last):\n  ValueError: no such thread",
        None,
        True,
        1.5,
        ["models.price", {"prompt_tokens": 7}],
    ],
)
def test_what_is_no_secret_stays(value: Any) -> None:
    assert Redaction().clean(value) == value
    assert Redaction().of("prompt_tokens", value) == value
    assert Redaction().of("keys", value) == value


@pytest.mark.parametrize("part", ["a.", "a://", "https://x:y", "eyJaaaaaa.", "basic ", "token=", "-----BEGIN "])
def test_long_texts_hold_nobody_up(part: str) -> None:
    # Were each beginning of a shape followed to the end of the text, this would take a minute.
    text = (part * 100_000)[:100_000] + f"://me:{HUSH}@db"
    assert HUSH not in Redaction().clean(text)
