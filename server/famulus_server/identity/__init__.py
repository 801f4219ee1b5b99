"""Who calls: tokens, static keys and client certificates, and whose they are."""
