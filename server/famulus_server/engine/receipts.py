"""Receipts for deletions: they tell what was deleted, but not whose it was, and anybody can verify them."""

import hashlib
import hmac
import json

from famulus.v1.user_data_service_pb2 import DeletionReceipt

_KEY_ID_DIGITS = 16


def user_hmac(user_id: str, *, secret: bytes) -> str:
    """What stands for a user: only who has the secret can tell whether it is a certain one."""
    return hmac.digest(secret, user_id.encode(), "sha256").hex()


def sign(receipt: DeletionReceipt, tenant: str, *, seed: bytes) -> None:
    """Puts statement, signature and key into a receipt that is otherwise complete; `seed` are 32 bytes."""
    # Imported here to keep start-up short: rarely needed.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.from_private_bytes(seed)
    receipt.statement_json = _statement(receipt, tenant)
    receipt.signature = key.sign(receipt.statement_json.encode())
    receipt.public_key = key.public_key().public_bytes_raw()
    receipt.key_id = hashlib.sha256(receipt.public_key).hexdigest()[:_KEY_ID_DIGITS]


def _statement(receipt: DeletionReceipt, tenant: str) -> str:
    counts = {field.name: getattr(receipt.counts, field.name) for field in receipt.counts.DESCRIPTOR.fields}
    told = {
        "receipt_id": receipt.id,
        "tenant": tenant,
        "user_hmac": receipt.user_hmac,
        "create_time": receipt.create_time.ToJsonString(),
        "complete_time": receipt.complete_time.ToJsonString(),
        "counts": counts,
    }
    return json.dumps(told, sort_keys=True, separators=(",", ":"))
