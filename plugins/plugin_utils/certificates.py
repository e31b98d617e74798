"""What the controller does for certificates: judges those that hosts have, and signs new ones with the fleet's CA.

The CA's key is the only private key here. What a host sends is only asked for its public key: names come from the
inventory.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import stat
from collections.abc import Sequence
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ORGANIZATION = "kvmfleet"
CERTIFICATE, KEY, ISSUED = "ca.pem", "ca.key", "issued.jsonl"
SKEW = datetime.timedelta(hours=1)  # clocks of hosts may be behind


class PkiError(Exception):
    """What is wrong with a CA or a certificate, and what to do about it."""


class Judgement(NamedTuple):
    """What is wrong with a certificate, "" for nothing; and whether it should be renewed although it is valid."""

    problem: str
    ageing: bool = False


def judge(chain: str, ca: str, names: Sequence[str], now: datetime.datetime, *, exactly: bool = False) -> Judgement:
    """Whether the first certificate of `chain` is valid now, for all `names`, and signed by one of `ca`.

    With `exactly` it may be for no other names either.
    """
    try:
        certificates, authorities = _parsed(chain), _parsed(ca)
    except ValueError as e:
        return Judgement(f"is no certificate in PEM form ({e})")
    leaf = certificates[0]
    for certificate in certificates:
        if now > certificate.not_valid_after_utc:
            return Judgement(f"expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
        if now < certificate.not_valid_before_utc:
            return Judgement(f"is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC")
    if not _leads_to(certificates, authorities):
        return Judgement(f"is signed by {leaf.issuer.rfc4514_string()}, which is not the CA")
    wanted, found = {canonical(name) for name in names}, names_of(leaf)
    if missing := sorted(wanted - set(found)):
        return Judgement(f"is for {', '.join(found) or 'no name'}, and not for {', '.join(missing)}")
    if exactly and (surplus := sorted(set(found) - wanted)):
        return Judgement(f"is also for {', '.join(surplus)}")
    left, life = leaf.not_valid_after_utc - now, leaf.not_valid_after_utc - leaf.not_valid_before_utc
    return Judgement("", ageing=left < life / 3)


def _parsed(text: str) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(text.encode())


def _leads_to(certificates: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate]) -> bool:
    """The certificate is signed by an authority; or by the next of its chain, and that one leads to an authority."""
    leaf, *above = certificates
    if any(_issued(leaf, authority) for authority in authorities):
        return True
    return bool(above) and _issued(leaf, above[0]) and _leads_to(above, authorities)


def _issued(certificate: x509.Certificate, by: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(by)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def names_of(certificate: x509.Certificate) -> list[str]:
    """The names that it is for, sorted."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    hosts = found.get_values_for_type(x509.DNSName)
    return sorted([*hosts, *(str(address) for address in found.get_values_for_type(x509.IPAddress))])


def canonical(name: str) -> str:
    """An address in its one spelling; anything else as it is."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name


class Authority:
    """The fleet's CA, from the folder that `kvmfleet pki init` made.

    Raises:
        PkiError: it is not there, not valid, or its key cannot be used.
    """

    def __init__(self, folder: str, passphrase: str = "") -> None:
        self._folder = os.path.expanduser(folder)
        self.pem = self._read(CERTIFICATE)
        try:
            self._certificate = _parsed(self.pem)[0]
        except ValueError as e:
            raise PkiError(f"{self._path(CERTIFICATE)} is no certificate in PEM form.") from e
        self._key = self._load_key(passphrase)
        if self._key.public_key() != self._certificate.public_key():
            raise PkiError(f"{self._path(KEY)} is not the key of {self._path(CERTIFICATE)}: put the right one there.")
        if self._certificate.not_valid_after_utc < _now():
            raise PkiError(
                f"The CA {self._path(CERTIFICATE)} expired on {self._certificate.not_valid_after_utc:%Y-%m-%d}. Move "
                "its folder away, run `kvmfleet pki init`, and provision all hosts."
            )

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)

    def _read(self, name: str) -> str:
        try:
            with open(self._path(name), encoding="ascii", errors="replace") as stream:
                return stream.read()
        except FileNotFoundError as e:
            raise PkiError(
                f"There is no CA: {self._path(name)} is missing. Run `kvmfleet pki init`; or let libvirt_remote_pki "
                "name the folder of another CA; or name certificates that the host has, libvirt_remote_certificate."
            ) from e
        except OSError as e:
            raise PkiError(f"{self._path(name)}: {e.strerror}.") from e

    def _load_key(self, passphrase: str) -> Any:
        text = self._read(KEY)
        if os.stat(self._path(KEY)).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise PkiError(
                f"{self._path(KEY)} can be read by its group or by others, who could sign with it: chmod 600 it."
            )
        try:
            return serialization.load_pem_private_key(text.encode(), passphrase.encode() or None)
        except TypeError as e:
            if passphrase:
                raise PkiError(f"{self._path(KEY)} has no passphrase: take libvirt_remote_ca_passphrase away.") from e
            raise PkiError(f"{self._path(KEY)} needs its passphrase: set libvirt_remote_ca_passphrase.") from e
        except ValueError as e:
            raise PkiError(f"{self._path(KEY)}: wrong passphrase (libvirt_remote_ca_passphrase), or no key.") from e

    def issued(self, certificate: str) -> bool:
        """Whether this very CA signed it, not one that its file holds for a time beside it."""
        return _issued(_parsed(certificate)[0], self._certificate)

    def sign(
        self,
        request: str,
        host: str,
        unit: str,
        names: Sequence[str],
        days: int,
        now: datetime.datetime | None = None,
    ) -> str:
        """A certificate for both ends of a connection. `request` is only asked for its key, which it must own."""
        try:
            asked = x509.load_pem_x509_csr(request.encode())
            sound = asked.is_signature_valid and _strong(asked.public_key())
        except (ValueError, TypeError) as e:
            raise PkiError(f"{host} sent no certificate request.") from e
        if not sound:
            raise PkiError(f"{host} sent a certificate request with a wrong signature or a weak key.")
        now = now or _now()
        until = min(now + datetime.timedelta(days=days), self._certificate.not_valid_after_utc)
        subject = [(NameOID.ORGANIZATION_NAME, ORGANIZATION), (NameOID.ORGANIZATIONAL_UNIT_NAME, unit)]
        made = (
            x509.CertificateBuilder()
            .subject_name(
                x509.Name([x509.NameAttribute(*pair) for pair in (*subject, (NameOID.COMMON_NAME, host[:64]))])
            )
            .issuer_name(self._certificate.subject)
            .public_key(asked.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - SKEW)
            .not_valid_after(until)
            .add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(asked.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._certificate.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        self._remember(made, host, unit)
        return made.public_bytes(serialization.Encoding.PEM).decode()

    def _remember(self, made: x509.Certificate, host: str, unit: str) -> None:
        """One line a certificate, which many processes may add at once: `kvmfleet pki status` reads them."""
        line = {
            "host": host,
            "for": unit,
            "serial": f"{made.serial_number:x}",
            "names": names_of(made),
            "not_after_s": int(made.not_valid_after_utc.timestamp()),
            "issued_s": int(_now().timestamp()),
        }
        descriptor = os.open(self._path(ISSUED), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, json.dumps(line).encode() + b"\n")
        finally:
            os.close(descriptor)


def _usage() -> x509.KeyUsage:
    """What GnuTLS, as libvirt and QEMU use it, wants of both ends."""
    rest = ("content_commitment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign", "encipher_only")
    return x509.KeyUsage(
        digital_signature=True, key_encipherment=True, decipher_only=False, **dict.fromkeys(rest, False)
    )


def _strong(key: Any) -> bool:
    return isinstance(key, ec.EllipticCurvePublicKey) or (isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048)


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
