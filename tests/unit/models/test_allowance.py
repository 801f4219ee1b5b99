"""What providers say of their own limits."""

import pytest

from famulus_server.errors import Allowance
from famulus_server.models.allowance import read_allowance
from famulus_server.models.failures import from_status


def test_numbers_and_times_of_both_limits_are_read() -> None:
    headers = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-limit-tokens": "150000",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-remaining-tokens": "149984",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-reset-tokens": "6m0s",
    }
    assert read_allowance(headers) == Allowance(
        requests_left=59, requests_reset=1.0, tokens_left=149_984, tokens_reset=360.0
    )


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1s", 1.0),
        ("0s", 0.0),
        ("20ms", 0.02),
        ("7.5ms", 0.0075),
        ("6m0s", 360.0),
        ("2m59.56s", 179.56),
        ("1m20ms", 60.02),
        ("1h0m0s", 3_600.0),
        ("1d", 86_400.0),
        ("12", 12.0),
        ("0.5", 0.5),
    ],
)
def test_reset_is_read_in_all_its_forms(value: str, seconds: float) -> None:
    found = read_allowance({"x-ratelimit-reset-tokens": value})
    assert found is not None
    assert found.tokens_reset == pytest.approx(seconds)


@pytest.mark.parametrize(
    "nonsense",
    ["", " ", "soon", "-1", "+5", "nan", "inf", "1e3", "5, 6", "1_000", "٣", "1s2m", "1.s", "9" * 16, "9" * 5_000],
)
def test_nonsense_is_as_good_as_nothing(nonsense: str) -> None:
    kinds = [f"x-ratelimit-{what}-{of}" for what in ("remaining", "reset") for of in ("requests", "tokens")]
    assert read_allowance(dict.fromkeys(kinds, nonsense)) is None


@pytest.mark.parametrize("date", ["1795000000", "86401", "25h", "999999999d"])
def test_reset_that_is_no_wait_but_a_date_is_ignored(date: str) -> None:
    headers = {"x-ratelimit-remaining-requests": "3", "x-ratelimit-reset-requests": date}
    assert read_allowance(headers) == Allowance(requests_left=3)


@pytest.mark.parametrize("status", [429, 500, 400])
def test_refusals_tell_the_allowance_too(status: int) -> None:
    headers = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "30s"}
    assert from_status(status, headers, None).allowance == Allowance(tokens_left=0, tokens_reset=30.0)
    assert from_status(status, {}, None).allowance is None
