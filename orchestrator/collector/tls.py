"""TLS of this host and of its peers, used and not only read.

OpenSSL, as Python brings it, shakes hands with itself, once on each end with the host's own files. A peer's libvirt has
to accept this host's certificate and say so.
"""

import calendar
import hashlib
import os
import re
import socket
import ssl
import stat
import time
from typing import Any, Dict

from . import files, inventory

PATIENCE_S = 4.0
NOT_ACCEPTED = "it does not accept this host's certificate"
CLIENT = ("/etc/pki/CA/cacert.pem", "/etc/pki/libvirt/clientcert.pem", "/etc/pki/libvirt/private/clientkey.pem")


def certificate(ca: str, path: str, key: str) -> Dict[str, Any]:
    """What a certificate says, who can read its key, and why it cannot be used, "" where it can."""
    found = dict(decoded(path), error=handshake(ca, path, key), ca_sha256="")
    text = files.text(ca)
    if text:
        found["ca_sha256"] = hashlib.sha256(text.strip().encode("utf-8", "replace")).hexdigest()
    try:
        info = os.stat(key)
    except OSError:
        return found
    return dict(found, key_mode=stat.S_IMODE(info.st_mode), key_owner=inventory.user_name(info.st_uid))


def decoded(path: str) -> Dict[str, Any]:
    """Subject as libvirt writes it, names and dates; of an expired certificate too."""
    text = files.text(path)
    try:
        der = ssl.PEM_cert_to_DER_cert(text[text.index("-----BEGIN") : text.index("-----END CERTIFICATE-----") + 25])
        parsed = ssl._ssl._test_decode_cert(path)  # type: ignore  # since Python 2.6; ssl has no other way without a peer
    except (OSError, ValueError, AttributeError):
        return {}
    subject = [pair for group in parsed.get("subject", ()) for pair in group]
    return {
        "sha256": hashlib.sha256(der).hexdigest(),
        "subject": ",".join("{}={}".format(SHORT.get(name, name), value) for name, value in subject),
        "names": sorted(address(value) for kind, value in parsed.get("subjectAltName", ()) if kind in KINDS),
        "not_before_s": seconds(parsed.get("notBefore", "")),
        "not_after_s": seconds(parsed.get("notAfter", "")),
    }


SHORT = {"commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU", "countryName": "C"}
KINDS = ("DNS", "IP Address")


def address(text: str) -> str:
    """An IPv6 address in its shortest spelling, as everybody else writes it; anything else as it is."""
    try:
        return socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, text.strip()))
    except (OSError, ValueError):
        return text.strip()


def seconds(text: str) -> int:
    """`Jan  5 09:34:43 2018 GMT` as seconds since the epoch, 0 where it is something else."""
    try:
        return calendar.timegm(time.strptime(text, "%b %d %H:%M:%S %Y GMT"))
    except (ValueError, OverflowError):
        return 0


def handshake(ca: str, path: str, key: str) -> str:
    """Why both ends, with these files, do not come together; "" when they do."""
    try:
        ends = [context(ssl.PROTOCOL_TLS_SERVER, ca, path, key), context(ssl.PROTOCOL_TLS_CLIENT, ca, path, key)]
        shake(*ends)
    except ssl.SSLError as error:
        return said(error)
    except OSError as error:
        return "{}: {}".format(error.filename or path, error.strerror or error)
    return ""


def context(protocol: Any, ca: str, path: str, key: str) -> ssl.SSLContext:
    made = ssl.SSLContext(protocol)
    made.check_hostname = False  # the names are compared by whoever knows them
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_verify_locations(ca)
    made.load_cert_chain(path, key, password=lambda: b"")
    return made


def shake(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """Both ends in memory, each in turn until neither waits for the other."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    waiting = [client.wrap_bio(down, up), server.wrap_bio(up, down, server_side=True)]
    for _ in range(10):
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                pass
        if not waiting:
            return
    raise ssl.SSLError("the handshake does not end")


def said(error: ssl.SSLError) -> str:
    """OpenSSL's reason without its own names for things: `certificate has expired`."""
    reason = getattr(error, "verify_message", "") or re.sub(r"^\[[^\]]*\]\s*|\s*\(_ssl\.c:\d+\)$", "", str(error))
    if error.reason == "KEY_VALUES_MISMATCH":
        reason = "the key is that of another certificate"
    return reason or "{}".format(error.reason)


def trust() -> ssl.SSLContext:
    """That of a client with this host's certificate, which looks at the name of whom it reaches."""
    made = context(ssl.PROTOCOL_TLS_CLIENT, *CLIENT)
    made.check_hostname = True
    return made


def peer(name: str, where: str, number: int) -> Dict[str, Any]:
    """Why the libvirt there is not usable from here, "" where it is, and the certificate that it shows."""
    shown = ""
    try:
        plain = socket.create_connection((where, number), PATIENCE_S)
        with plain, trust().wrap_socket(plain, server_hostname=name) as secure:
            shown = hashlib.sha256(secure.getpeercert(True) or b"").hexdigest()
            # One byte says that the certificate of this end was accepted.
            if secure.recv(1) != b"\1":
                return {"error": NOT_ACCEPTED, "sha256": shown}
    except socket.timeout:
        return {"error": "no answer in {:.0f} s".format(PATIENCE_S), "sha256": shown}
    except ssl.SSLError as error:
        return {"error": said(error), "sha256": shown}
    except OSError as error:
        reset = isinstance(error, ConnectionResetError) and shown
        words = NOT_ACCEPTED if reset else error.strerror or str(error)
        return {"error": words, "sha256": shown}
    except ValueError as error:
        return {"error": str(error), "sha256": shown}
    return {"error": "", "sha256": shown}
