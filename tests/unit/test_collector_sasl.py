"""What the collector makes of a daemon's answers about passwords, and of the files that they come from."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from orchestrator.collector import sasl
from orchestrator.collector.contract import Contract


class Daemon:
    """The other end of a TLS connection, with answers by the number of the call."""

    def __init__(self, **answers: Any) -> None:
        self.answers, self.asked, self.waiting = answers, list[bytes](), b""

    def sendall(self, data: bytes) -> None:
        self.asked.append(data)
        (number,) = struct.unpack_from(">I", data, 12)
        status, body = self.answers[f"call_{number}"]
        head = struct.pack(">IIIIIII", 28 + len(body), sasl.PROGRAM, 1, number, 1, number, status)
        self.waiting += head + body

    def recv(self, size: int) -> bytes:
        data, self.waiting = self.waiting[: min(size, 7)], self.waiting[min(size, 7) :]  # in pieces, as a network may
        return data


def error(text: str) -> bytes:
    return struct.pack(">IIII", 45, 7, 1, len(text)) + text.encode()


def test_a_daemon_tells_how_it_authenticates() -> None:
    daemon: Any = Daemon(
        call_66=(0, struct.pack(">II", 1, 1)), call_67=(0, struct.pack(">I13s3x", 13, b"SCRAM-SHA-256"))
    )
    assert sasl.ways(sasl.call(daemon, sasl.AUTH_LIST)) == ["sasl"]
    assert sasl.mechanisms(sasl.call(daemon, sasl.SASL_INIT)) == ["SCRAM-SHA-256"]
    assert sasl.ways(struct.pack(">IIII", 3, 0, 2, 9)) == ["none", "polkit", "9"]
    assert sasl.mechanisms(struct.pack(">I", 0)) == []


def test_a_login_that_is_begun_shows_whether_the_user_is_known() -> None:
    daemon: Any = Daemon(call_68=(0, b""))
    assert sasl.knows(daemon, "ada,=")
    length, *message = struct.unpack(">52xI25I", daemon.asked[0])
    assert (length, bytes(message)) == (25, b"n,,n=ada=2C=3D,r=kvmfleet")
    daemon = Daemon(call_68=(1, error("authentication failed")))
    assert not sasl.knows(daemon, "eve")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((1, error("no mechanism")), "no mechanism"),
        ((1, error("x" * 9000)), "^x{256}$"),
        ((1, struct.pack(">IIII", 45, 7, 0, 0)), "without a text"),
        ((0, b"x" * (1 << 17)), "an answer of 131100 bytes"),
    ],
)
def test_an_answer_that_is_none_is_told_in_few_words(answer: Any, words: str) -> None:
    with pytest.raises((sasl.RefusedError, ValueError), match=words):
        sasl.call(Daemon(call_66=answer), sasl.AUTH_LIST)  # type: ignore[arg-type]


def test_a_daemon_that_hangs_up_is_told() -> None:
    daemon: Any = Daemon()
    with pytest.raises(ValueError, match="hung up"):
        sasl.exactly(daemon, 4)


@pytest.mark.parametrize("answer", [b"", b"\0\0\0\x09", b"\xff\xff\xff\xff"])
def test_an_answer_that_is_cut_is_an_error_and_no_crash(answer: bytes) -> None:
    with pytest.raises(struct.error):
        sasl.ways(answer)


def test_only_settings_that_are_no_secret_are_read() -> None:
    text = "# mech_list: x\nmech_list: scram-sha-256 \nsql_passwd: geheim\nsasldb_path:/etc/libvirt/passwd.db\n"
    assert sasl.settings(text) == {"mech_list": "scram-sha-256", "sasldb_path": "/etc/libvirt/passwd.db"}


def test_a_host_that_is_not_there_has_no_answer_and_no_database(tmp_path: Path) -> None:
    wish = {"database": f"{tmp_path}/no.db", "configuration": "/nowhere", "users": ["ada"], "mechanisms": ["X"]}
    found = sasl.look(Contract({"remote": {"names": ["127.0.0.1"], "port": 1, "sasl": wish}}))
    assert (found["database"], found["users"], found["settings"]) == ({"exists": False}, [], {})
    assert found["silent"]
    assert json.dumps(found)
