"""What callers show: tokens, the keys that sign them, and certificates. All real, made by `cryptography` and PyJWT."""

import base64
import hashlib
import hmac
import ipaddress
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.api_jws import PyJWS

ISSUER = "https://issuer.example"
AUDIENCE = "famulus"
SPIFFE = "spiffe://example.org/ns/acme/sa/agent"
_LOCALHOST = (x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1")))


def claims(**changes: Any) -> dict[str, Any]:
    """Claims of a good token; a change to None leaves a claim out."""
    now = int(time.time())
    good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "agent", "tenant": "acme", "roles": ["operator"], "exp": now + 600}
    return {key: value for key, value in {**good, **changes}.items() if value is not None}


@dataclass(frozen=True)
class Signer:
    """A key of an issuer."""

    kid: str
    private: Any
    algorithm: str = "ES256"

    @classmethod
    def new(cls, kid: str, algorithm: str = "ES256") -> "Signer":
        """One with a key of its own."""
        if algorithm == "RS256":
            return cls(kid, rsa.generate_private_key(public_exponent=65537, key_size=2048), algorithm)
        if algorithm == "EdDSA":
            return cls(kid, ed25519.Ed25519PrivateKey.generate(), algorithm)
        return cls(kid, ec.generate_private_key(ec.SECP256R1()), algorithm)

    @property
    def jwk(self) -> dict[str, Any]:
        """The public key as a set has it."""
        kinds: Mapping[str, Any] = {"ES256": ECAlgorithm, "RS256": RSAAlgorithm, "EdDSA": OKPAlgorithm}
        return {**kinds[self.algorithm].to_jwk(self.private.public_key(), as_dict=True), "kid": self.kid, "use": "sig"}

    @property
    def public_pem(self) -> bytes:
        """The public key as forgers take it for a secret."""
        return bytes(self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))

    def token(self, *, headers: Mapping[str, Any] | None = None, **changes: Any) -> str:
        """A token with good claims, but for the changes; a header of None is left out."""
        return self.token_of(json.dumps(claims(**changes)).encode(), headers=headers)

    def token_of(self, payload: bytes, *, headers: Mapping[str, Any] | None = None) -> str:
        """A token that holds these bytes. PyJWT itself would refuse to make some that forgers make."""
        header = {"alg": self.algorithm, "kid": self.kid, "typ": "JWT", **(headers or {})}
        shown = {key: value for key, value in header.items() if value is not None}
        signed = f"{_segment(json.dumps(shown).encode())}.{_segment(payload)}"
        signature = PyJWS().get_algorithm_by_name(self.algorithm).sign(signed.encode(), self.private)
        return f"{signed}.{_segment(signature)}"


def jwks(*signers: Signer) -> bytes:
    """The set of their public keys."""
    return json.dumps({"keys": [signer.jwk for signer in signers]}).encode()


def forged(header: Mapping[str, Any], payload: Mapping[str, Any], secret: bytes | None = None) -> str:
    """A token that nobody would sign: with an HMAC under the secret, or without any signature."""
    signed = f"{_segment(json.dumps(header).encode())}.{_segment(json.dumps(payload).encode())}"
    signature = hmac.digest(secret, signed.encode(), hashlib.sha256) if secret else b""
    return f"{signed}.{_segment(signature)}"


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a call that shows it."""
    return (("authorization", f"Bearer {token}"),)


def _segment(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, in PEM."""

    chain: bytes
    key: bytes = field(repr=False)

    def write(self, folder: Path, name: str) -> tuple[str, str]:
        """The files; replaced as a whole where they are there."""
        paths = []
        for suffix, data in (("crt", self.chain), ("key", self.key)):
            path = folder / f"{name}.{suffix}"
            fresh = path.with_suffix(f".{suffix}.new")
            fresh.write_bytes(data)
            fresh.replace(path)
            paths.append(str(path))
        return paths[0], paths[1]


class Authority:
    """A CA."""

    def __init__(self, name: str = "test CA") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.pem = self._signed(self._name, self._key, (), ca=True, seconds=3600).public_bytes(Encoding.PEM)

    def server(self) -> Pair:
        """For a server on this machine."""
        return self.client(*_LOCALHOST)

    def client(self, *names: x509.GeneralName, seconds: float = 3600) -> Pair:
        """With these names, valid for so long."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "somebody")])
        certificate = self._signed(subject, key, names, ca=False, seconds=seconds)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return Pair(certificate.public_bytes(Encoding.PEM), private)

    def _signed(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        names: Sequence[x509.GeneralName],
        *,
        ca: bool,
        seconds: float,
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(seconds=seconds))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def uri(name: str) -> x509.GeneralName:
    """A name of a certificate."""
    return x509.UniformResourceIdentifier(name)


def dns(name: str) -> x509.GeneralName:
    """A name of a certificate."""
    return x509.DNSName(name)
