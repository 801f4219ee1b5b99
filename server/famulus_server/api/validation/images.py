"""URLs of images. The model's provider fetches them, or a server of the company's own: none may point inside."""

import ipaddress
import re
from urllib.parse import urlsplit

_MOST_CHARACTERS = 2_048
_DATA = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,[A-Za-z0-9+/]+={0,2}")
_VISIBLE_ASCII = re.compile(r"[!-\[\]-~]+")  # without the backslash, which some parsers take for a slash
_PUBLIC_NAME = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z0-9-]{2,63}\.?", re.IGNORECASE)
_PRIVATE_DOMAINS = ("localhost", "local", "internal", "intranet", "lan", "home", "corp", "private", "arpa")
# All of version 6 that is routed; what carries an address of version 4 in it (mapped, NAT64) is mostly outside.
_UNICAST = ipaddress.ip_network("2000::/3")
# Of version 4, what is called global and is for the machinery of networks.
_MACHINERY = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24")))


def problem(url: str) -> str | None:
    """What is wrong with the URL of an image, as the end of a sentence; None if nothing is."""
    if url.startswith("data:"):
        return None if _DATA.fullmatch(url) else "must be `data:image/...;base64,` followed by base64"
    if len(url) > _MOST_CHARACTERS:
        return f"must have at most {_MOST_CHARACTERS:,} characters"
    if not _VISIBLE_ASCII.fullmatch(url):
        return "must be visible ASCII characters, without backslashes"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "is not a valid URL"
    if parts.scheme != "https":
        return "must begin with `https:` or `data:image/`"
    if parts.username is not None or parts.password is not None:
        return "must not contain a user name or password"
    if not host or not _is_public(host):
        return "must name a public host"
    return None


def _is_public(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return _is_public_name(host)
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return address in _UNICAST and address.is_global and not (address.sixtofour or address.teredo)
        address = address.ipv4_mapped
    return address.is_global and not address.is_multicast and not any(address in network for network in _MACHINERY)


def _is_public_name(host: str) -> bool:
    if not _PUBLIC_NAME.fullmatch(host):
        return False
    last = host.rstrip(".").rpartition(".")[2].lower()
    # No top-level domain begins with a digit: these are other spellings of addresses, such as 127.1 and 0x7f.0.0.1.
    return not last[0].isdigit() and last not in _PRIVATE_DOMAINS
