"""Who may log in to libvirt with a password: the database of users, and what the daemon asks of who connects.

Before anybody has logged in, a daemon tells how that is done, in libvirt's own protocol over TLS. When a login begins,
it answers with the salt of a user that it knows: that takes no password.
"""

import os
import re
import socket
import ssl
import stat
import struct
from typing import Any, Dict, List

from . import files, inventory, remote, shell, tls
from .contract import Contract

PROGRAM = 0x20008086  # this and the numbers of the calls: libvirt, src/remote/remote_protocol.x
AUTH_LIST, SASL_INIT, SASL_START = 66, 67, 68
HEAD = ">IIIIIII"  # length, program, version, call, type, serial, status: src/rpc/virnetprotocol.x
WAYS = {0: "none", 1: "sasl", 2: "polkit"}
LARGEST = 1 << 16
SHOWN = ("mech_list", "sasldb_path")  # others may be passwords


class RefusedError(Exception):
    """libvirt answered with an error, in its words."""


def look(contract: Contract) -> Dict[str, Any]:
    path = contract.text("remote.sasl.database")
    found: Dict[str, Any] = {
        "settings": settings(files.text(contract.text("remote.sasl.configuration"))),
        "database": database(path),
    }
    try:
        found["users"] = users(path)
    except OSError as error:
        found["unread"] = error.strerror or str(error)
    user = contract.names("remote.sasl.users")[:1]
    for name, where in remote.asked(contract)[:1]:
        found.update(daemon(name, where, remote.port(contract), user))
    return found


def settings(text: str) -> Dict[str, str]:
    """`key: value` a line, and of the keys only those that are no secret."""
    lines = re.findall(r"^(\w+)\s*:[ \t]*(.*?)\s*$", text, re.MULTILINE)
    return {key: value[:256] for key, value in lines if key in SHOWN}


def database(path: str) -> Dict[str, Any]:
    """Who can read it, and no digest of it."""
    try:
        info = os.stat(path)
    except OSError:
        return {"exists": False}
    mode, owner = stat.S_IMODE(info.st_mode), inventory.user_name(info.st_uid)
    return {"exists": True, "mode": mode, "owner": owner, "group": inventory.group_name(info.st_gid)}


def users(path: str) -> List[str]:
    """The users in the database, without their realm. Raises OSError where they cannot be listed."""
    if not os.path.isfile(path):
        return []
    if not shell.which("sasldblistusers2"):
        raise OSError("there is no sasldblistusers2")
    answer = shell.run(["sasldblistusers2", "-f", path], 5)
    if answer.code:  # 1: no database, or one of another format
        raise OSError("`sasldblistusers2` ended with {}: {}".format(answer.code, answer.err.strip()[:256]))
    return sorted({line.rpartition("@")[0][:256] for line in answer.out.splitlines() if "@" in line})[:2048]


def daemon(name: str, where: str, number: int, user: List[str]) -> Dict[str, Any]:
    """How the libvirt there lets in who has a certificate, and whether it knows a user."""
    found: Dict[str, Any] = {}
    try:
        plain = socket.create_connection((where, number), tls.PATIENCE_S)
        with plain, tls.trust().wrap_socket(plain, server_hostname=name) as secure:
            if secure.recv(1) != b"\1":
                return {"silent": tls.NOT_ACCEPTED}
            found["asks"] = ways(call(secure, AUTH_LIST))
            if "sasl" in found["asks"]:
                found["mechanisms"] = mechanisms(call(secure, SASL_INIT))
            if "SCRAM-SHA-256" in found.get("mechanisms", ()) and user:
                found["knows"] = knows(secure, user[0])
    except RefusedError as error:
        found["silent"] = str(error)
    except ssl.SSLError as error:
        found["silent"] = tls.said(error)
    except (OSError, ValueError, struct.error) as error:
        found["silent"] = getattr(error, "strerror", "") or str(error)
    return found


def ways(answer: bytes) -> List[str]:
    """An array of numbers."""
    (count,) = struct.unpack_from(">I", answer)
    numbers = struct.unpack_from(">{}I".format(min(count, 20)), answer, 4)
    return [WAYS.get(number, str(number)) for number in numbers]


def mechanisms(answer: bytes) -> List[str]:
    """A string, with commas."""
    return [name for name in re.split(r"[, ]+", opaque(answer, 0)) if name][:64]


def knows(secure: "ssl.SSLSocket", user: str) -> bool:
    """The first message of SCRAM, RFC 5802, without the proof that would follow it."""
    name = user.replace("=", "=3D").replace(",", "=2C").encode("utf-8")
    message = b"n,,n=" + name + b",r=kvmfleet"
    # an array of char has four bytes for each
    data = struct.pack(">I", len(message)) + b"".join(struct.pack(">I", byte) for byte in message)
    mechanism = b"SCRAM-SHA-256"
    try:
        call(secure, SASL_START, struct.pack(">I13s3xI", len(mechanism), mechanism, 0) + data)
        return True
    except RefusedError:
        return False


def call(secure: "ssl.SSLSocket", number: int, body: bytes = b"") -> bytes:
    """The answer of libvirt, without its head. Raises RefusedError, OSError and ValueError."""
    size = struct.calcsize(HEAD)
    secure.sendall(struct.pack(HEAD, size + len(body), PROGRAM, 1, number, 0, number, 0) + body)
    (length,) = struct.unpack(">I", exactly(secure, 4))
    if not size <= length <= LARGEST:
        raise ValueError("an answer of {} bytes".format(length))
    answer = exactly(secure, length - 4)
    if answer[20:24] != b"\0\0\0\0":
        # an error: its code, its domain, whether there is a text, and that
        raise RefusedError(opaque(answer, 36) or "an error without a text")
    return answer[24:]


def exactly(secure: "ssl.SSLSocket", size: int) -> bytes:
    parts = b""
    while len(parts) < size:
        data = secure.recv(size - len(parts))
        if not data:
            raise ValueError("it hung up")
        parts += data
    return parts


def opaque(answer: bytes, offset: int) -> str:
    """A string behind its length."""
    (length,) = struct.unpack_from(">I", answer, offset)
    return answer[offset + 4 : offset + 4 + min(length, 256)].decode("utf-8", "replace")
