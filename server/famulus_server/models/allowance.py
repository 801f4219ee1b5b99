"""What providers say in the headers of their answers about the limits that they keep."""

import re
from collections.abc import Mapping

from famulus_server.errors import Allowance

# No more digits than a double holds exactly: whoever sends more does not mean a number of tokens.
_NUMBER = re.compile(r"[0-9]{1,15}")
# "6m0s", "20ms", "1.5s"; a number alone is seconds.
_AMOUNT = r"\d{1,9}(?:\.\d{1,9})?"
_DURATION = re.compile(
    rf"(?P<alone>{_AMOUNT})|(?:(?P<d>\d{{1,9}})d)?(?:(?P<h>\d{{1,9}})h)?(?:(?P<m>\d{{1,9}})m)?"
    rf"(?:(?P<s>{_AMOUNT})s)?(?:(?P<ms>{_AMOUNT})ms)?",
    re.ASCII,
)
_SECONDS = {"alone": 1.0, "d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
# Longer is no limit on a rate, but a date that somebody put there.
_LONGEST_RESET = 86_400.0


def read_allowance(headers: Mapping[str, str]) -> Allowance | None:
    """What is left, and when it is all back. None where the headers say nothing that can be understood."""
    found = Allowance(
        requests_left=_read_number(headers.get("x-ratelimit-remaining-requests")),
        requests_reset=_read_seconds(headers.get("x-ratelimit-reset-requests")),
        tokens_left=_read_number(headers.get("x-ratelimit-remaining-tokens")),
        tokens_reset=_read_seconds(headers.get("x-ratelimit-reset-tokens")),
    )
    return None if found == Allowance() else found


def _read_number(value: str | None) -> int | None:
    return int(value) if value and _NUMBER.fullmatch(value) else None


def _read_seconds(value: str | None) -> float | None:
    duration = _DURATION.fullmatch(value) if value else None
    if duration is None:
        return None
    seconds = sum(float(amount) * _SECONDS[unit] for unit, amount in duration.groupdict().items() if amount)
    return seconds if seconds <= _LONGEST_RESET else None
