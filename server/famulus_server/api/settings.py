"""What the configuration says of the gRPC server's port. `config/` fills these in."""

import msgspec


class TlsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[tls]`: encryption of the API, by PEM files that may be replaced while the server runs."""

    cert_file: str = ""  # our certificate, and those between it and its CA; empty: no TLS
    key_file: str = ""
    # Signs the certificates of clients, which all of them then need: gRPC for Python cannot ask for a certificate and
    # go on without. Empty: they show none.
    client_ca_file: str = ""
