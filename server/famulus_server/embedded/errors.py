"""The one error of the embedded parts."""

from __future__ import annotations


class EmbeddedUnavailable(Exception):
    """An embedded part cannot be had: `reason` says why, `remedy` what the operator can do about it."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}. {remedy}")
        self.reason = reason
        self.remedy = remedy
