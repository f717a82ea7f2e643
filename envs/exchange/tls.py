"""A certificate made on the fly, so that a client can be sent here by the real exchange's own names.

It is signed by nobody: a client trusts it because its file is named (``cafile``, ``REQUESTS_CA_BUNDLE``).
"""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

# the hosts of the real exchange's USD-M futures; everything else is refused
FUTURES_HOSTS = (
    "fapi.binance.com",
    "fstream.binance.com",
    "demo-fapi.binance.com",
    "fstream.binancefuture.com",
)
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
_LIFETIME = datetime.timedelta(days=7)


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """A certificate and its key as PEM files."""

    certificate: Path
    key: Path

    def server_context(self) -> ssl.SSLContext:
        """What a server listens with."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context


def make_certificate(folder: Path) -> Certificate:
    """Write a certificate for this machine and the futures hosts into ``folder``; its key is the owner's."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "perpgym simulated exchange")])
    now = datetime.datetime.now(datetime.UTC)
    names: list[x509.GeneralName] = []
    for host in (*_LOCAL_HOSTS, *FUTURES_HOSTS):
        is_number = host[0].isdigit() or ":" in host
        names.append(x509.IPAddress(ipaddress.ip_address(host)) if is_number else x509.DNSName(host))
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    written = Certificate(certificate=folder / "exchange.pem", key=folder / "exchange.key")
    written.certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    written.key.touch(mode=0o600)
    written.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return written
