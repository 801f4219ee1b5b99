"""Names that stand for users where their own must not go."""

import hashlib
import hmac
from typing import Literal

# The name of the secret that is their key.
PSEUDONYM_KEY = "pseudonyms"

_CHARACTERS = 32  # of hexadecimal digits: 128 bits


class Pseudonyms:
    """Gives each user of each tenant a name that says nothing about him and is the same at all replicas.

    Names for one purpose cannot be linked to those for another without the key.
    """

    def __init__(self, *, key: bytes) -> None:
        self._key = key

    def of(self, purpose: Literal["audit", "provider"], tenant: str, user_id: str) -> str:
        """Hexadecimal digits; empty where there is no user."""
        if not user_id:
            return ""
        # The parts cannot run into one another: a length stands in front of the tenant.
        text = f"{purpose}:{len(tenant)}:{tenant}:{user_id}"
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()[:_CHARACTERS]
