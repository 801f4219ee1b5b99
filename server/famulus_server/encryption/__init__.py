"""Encryption at rest: where the operator's key comes from, and AES-256-GCM."""
