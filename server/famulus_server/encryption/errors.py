"""Why there is no key to encrypt with. It stops the start of the server; the text is for the operator."""


class KeyUnusable(Exception):
    """The key cannot be had, or is no key. The text never has any of it."""
