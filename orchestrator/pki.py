"""The fleet's CA: made once, on the controller, and asked what it issued.

The key of the CA is the only private key that ever is on the controller. Hosts make theirs themselves, and the Ansible
plugin plugins/action/certificates.py signs for them, so that the roles work without this package as well.
"""

from __future__ import annotations

import datetime
import os
import secrets
import stat
import tempfile
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from orchestrator import paths
from orchestrator.errors import PkiError

__all__ = ["Authority", "Issued", "init", "status"]

DAYS = 3650
CERTIFICATE, KEY, ISSUED = "ca.pem", "ca.key", "issued.jsonl"


class Issued(msgspec.Struct, frozen=True):
    """The newest certificate of a host for one purpose."""

    host: str
    purpose: str = msgspec.field(name="for")  # libvirt or qemu
    serial: str
    names: tuple[str, ...]
    not_after_s: int
    issued_s: int


class Authority(msgspec.Struct, frozen=True):
    """The CA as everybody may see it."""

    folder: str
    subject: str
    sha256: str  # fingerprint of the certificate
    not_after_s: int
    encrypted: bool  # the key needs a passphrase
    private: bool  # nobody but its owner can read the key
    issued: tuple[Issued, ...] = ()

    def days_left(self, now_s: float) -> int:
        """Whole days from `now_s`, in seconds since the epoch, to its end; negative after that."""
        return int((self.not_after_s - now_s) // 86400)


def init(folder: Path | None = None, *, passphrase: str = "", days: int = DAYS) -> Authority:
    """Makes a CA: the folder gets its name when it is complete.

    Raises:
        PkiError: there is one, or the folder cannot be written.
    """
    folder = folder or paths.pki()
    if os.path.exists(folder / CERTIFICATE) or os.path.exists(folder / KEY):
        raise PkiError(
            f"{folder}: there is a CA already, and the certificates of the hosts depend on it.",
            hint=f"Look at it with `kvmfleet pki status`. For a new one, move {folder} away first.",
        )
    try:
        paths.private(folder.parent)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as place:  # 0700
            new = Path(place, folder.name)
            new.mkdir(mode=0o700)
            for name, text in _made(passphrase, days).items():
                with os.fdopen(os.open(new / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
                    stream.write(text)
            new.rename(folder)
    except OSError as e:
        raise PkiError(f"{folder}: {e.strerror}.", hint="Set KVMFLEET_STATE_DIR to a folder that you can write.") from e
    return status(folder)


def _made(passphrase: str, days: int) -> dict[str, bytes]:
    """The two files of a CA."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "kvmfleet"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"kvmfleet CA {secrets.token_hex(4)}"),
        ]
    )
    now = datetime.datetime.now(datetime.UTC)
    others = ("content_commitment", "data_encipherment", "key_agreement", "key_encipherment", "digital_signature")
    usage = x509.KeyUsage(
        key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False, **dict.fromkeys(others, False)
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # clocks of hosts may be behind
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    cipher: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        cipher = serialization.BestAvailableEncryption(passphrase.encode())
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    return {KEY: key.private_bytes(*form, cipher), CERTIFICATE: certificate.public_bytes(form[0])}


def status(folder: Path | None = None) -> Authority:
    """The CA, and for each host and purpose the newest certificate that it issued. Raises PkiError."""
    folder = folder or paths.pki()
    try:
        certificate = x509.load_pem_x509_certificate((folder / CERTIFICATE).read_bytes())
        key = (folder / KEY).read_bytes()
        mode = (folder / KEY).stat().st_mode
        issued = _issued(folder / ISSUED)
    except FileNotFoundError as e:
        raise PkiError(f"{folder}: there is no CA.", hint="Make one with `kvmfleet pki init`.") from e
    except OSError as e:
        raise PkiError(f"{e.filename}: {e.strerror}.", hint="Check its owner and mode.") from e
    except ValueError as e:
        raise PkiError(f"{folder / CERTIFICATE} is no certificate.", hint="Put it back from a backup.") from e
    return Authority(
        folder=str(folder),
        subject=certificate.subject.rfc4514_string(),
        sha256=certificate.fingerprint(hashes.SHA256()).hex(),
        not_after_s=int(certificate.not_valid_after_utc.timestamp()),
        encrypted=b"ENCRYPTED" in key.partition(b"\n")[0],
        private=not mode & (stat.S_IRWXG | stat.S_IRWXO),
        issued=issued,
    )


def _issued(path: Path) -> tuple[Issued, ...]:
    """The newest of each, those that end first in front. A line that a full disk cut off is left out."""
    newest: dict[tuple[str, str], Issued] = {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            found = msgspec.json.decode(line, type=Issued)
        except msgspec.DecodeError:
            continue
        newest[found.host, found.purpose] = found
    return tuple(sorted(newest.values(), key=lambda issued: (issued.not_after_s, issued.host, issued.purpose)))
