"""Makes a broker's directory: CA, server certificate, keys, a policy that allows nothing."""

import datetime
import ipaddress
import os
import re
from collections.abc import Sequence
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sealrun_broker import jwt
from sealrun_broker.directory import Directory, write
from sealrun_broker.errors import BrokerError
from sealrun_broker.store import KEY_BYTES

_LIFE: Final = datetime.timedelta(days=3650)
_SKEW: Final = datetime.timedelta(days=1)  # a guest's clock may be behind
# What resolvers take, an underscore too; international names in their ASCII form (RFC 5890).
_LABEL: Final = r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}"
_DNS_NAME: Final = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")
_NAME_CHARACTERS: Final = 253
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")

_POLICY: Final = """\
# What is not allowed here is denied. The file is read again when it changes.

[evidence]
# Evidence that proves nothing. For tests and demonstrations only.
insecure_sample = false
# Versions of SEV-SNP reports. Version 2 does not say which CPU it is from.
snp_report_versions = [3, 4, 5]

# Who gets which resource; one rule that matches is enough.
#
# [[resource]]
# path = "default/key/*"        # `*` stands for any characters of one part
# tee = ["snp", "tdx"]          # absent: every kind of evidence that counts
# init_data = ["<hex digest>"]  # absent: every init-data
# images = ["sha256:<hex>"]     # the guest pulled one of these and no other; absent: any image
# claims = { "policy_smt_allowed" = [false] }   # claims of the verifier, by dotted name
# insecure_unrecognised = false # also a VM that the reference values do not affirm
"""


def initialise(path: str, names: Sequence[str], store_key: str | None = None) -> Directory:
    """Make the directory at `path`; its server answers to loopback and to `names` (DNS names, IP
    addresses). store_key: where the key of the resources goes, if not into the directory.

    Raises BrokerError; never touches a directory that holds anything, or a key that is there."""
    directory = Directory(os.path.abspath(path))
    subjects = [_general_name(name) for name in dict.fromkeys((*_LOOPBACK, *names))]
    try:
        os.makedirs(directory.path, mode=0o700, exist_ok=True)
        if os.listdir(directory.path):
            raise BrokerError(f"cannot make a broker in {path}: the directory is not empty")
        # First: it may be elsewhere, and what fails here leaves nothing.
        _write_store_key(store_key or directory.store_key)
        for folder in (directory.tls, directory.admins, directory.tokens, directory.resources):
            os.mkdir(folder, 0o700)
        for folder in ("", "/snp", "/snp/vcek", "/tdx"):
            os.mkdir(directory.collateral + folder, 0o700)
        _write_tls(directory, subjects)
        _write_keys(directory)
        # Last: what has a policy is complete.
        write(directory.policy, _POLICY.encode())
    except OSError as error:
        raise BrokerError(f"cannot make a broker in {path}: {error.strerror}") from error
    return directory


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if not _DNS_NAME.fullmatch(name) or len(name) > _NAME_CHARACTERS:
        raise BrokerError(f"cannot make a certificate for {name!a}: it is no name")
    return x509.DNSName(name)


def _write_tls(directory: Directory, subjects: list[x509.GeneralName]) -> None:
    ca_key = ec.generate_private_key(ec.SECP256R1())
    server_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = _name("sealrun-broker CA")
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    ca = (
        _certificate(ca_name, ca_name, ca_key.public_key(), authority)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(ca_key, SHA256())
    )
    server = (
        _certificate(_name("sealrun-broker"), ca_name, server_key.public_key(), authority)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(subjects), critical=False)
        .sign(ca_key, SHA256())
    )
    write(directory.ca, ca.public_bytes(Encoding.PEM), 0o644)
    write(directory.ca_key, _private_pem(ca_key))
    write(directory.server, server.public_bytes(Encoding.PEM), 0o644)
    write(directory.server_key, _private_pem(server_key))


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    authority: x509.AuthorityKeyIdentifier,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + _LIFE)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(authority, critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _write_keys(directory: Directory) -> None:
    admin = ed25519.Ed25519PrivateKey.generate()
    public = admin.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    write(directory.admin_key, _private_pem(admin))
    write(directory.admin, public, 0o644)
    write(directory.token_key, _private_pem(ec.generate_private_key(ec.SECP256R1())))


def _write_store_key(path: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BrokerError(f"cannot write {path}: {error.strerror}") from error
    with os.fdopen(fd, "wb") as stream:
        stream.write(os.urandom(KEY_BYTES))


def _private_pem(key: jwt.PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
