"""Client certificates. That they are genuine was verified by TLS; here it is found out whose they are."""

import hashlib
from collections.abc import Sequence

from cryptography import x509

from famulus_server.identity.recent import Recent
from famulus_server.identity.rejection import Rejected
from famulus_server.identity.settings import CertificateSettings
from famulus_server.ports import Caller, Clock

_MOST_REMEMBERED = 10_000
_ONE_SEGMENT = "/*"


class Certificates:
    """Knows callers by the names in their certificates."""

    def __init__(self, rules: Sequence[CertificateSettings], *, clock: Clock) -> None:
        """Of several rules that fit, the first one holds."""
        self._rules = rules
        self._clock = clock
        self._recent: Recent[Caller] = Recent(most=_MOST_REMEMBERED)

    def caller(self, pem: bytes) -> Caller:
        """Whose certificate it is. Raises Rejected."""
        digest = hashlib.sha256(pem).digest()
        caller = self._recent.get(digest)
        if caller is None:
            caller = self._read(pem)
            self._recent.keep(digest, caller)
        # A connection may outlive the certificate that it was opened with.
        if caller.expire_time is not None and caller.expire_time <= self._clock.now().timestamp():
            raise Rejected("the certificate has expired")
        return caller

    def _read(self, pem: bytes) -> Caller:
        try:
            certificate = x509.load_pem_x509_certificate(pem)
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
            raise Rejected(f"the certificate has no names ({type(error).__name__})") from None
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        hosts = [name.lower() for name in names.get_values_for_type(x509.DNSName)]
        # A SPIFFE id is the only URI of its certificate.
        spiffe = uris[0] if len(uris) == 1 else ""
        for rule in self._rules:
            if (rule.dns and rule.dns.lower() in hosts) or (rule.spiffe and _fits(spiffe, rule.spiffe)):
                end = certificate.not_valid_after_utc.timestamp()
                return Caller(rule.tenant, rule.name, frozenset(rule.roles), end)
        raise Rejected("no rule has a name of the certificate")


def _fits(spiffe: str, pattern: str) -> bool:
    if not pattern.endswith(_ONE_SEGMENT):
        return spiffe == pattern
    start = pattern.removesuffix("*")
    rest = spiffe.removeprefix(start)
    return spiffe.startswith(start) and bool(rest) and "/" not in rest
