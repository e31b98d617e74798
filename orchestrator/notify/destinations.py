"""Where messages go: URLs of apprise, which hold secrets, and the sending."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import msgspec

from orchestrator import processes
from orchestrator.errors import UsageError
from orchestrator.model.run import Message

__all__ = ["Destination", "read", "send"]

MAX_BYTES = 64 * 1024
LIMIT_S = 30.0
"""For all destinations together: they are sent to at one time, and a service that is well answers in a second."""

SPELLING = "How each service is spelled: https://appriseit.com/services/"


class Destination(msgspec.Struct, frozen=True, dict=True):
    """Somewhere that takes messages. Its URL holds secrets, so it is shown as the place that it was read at."""

    url: str
    place: str  # such as `line 3 of /etc/kvmfleet/notify`
    file: str = ""  # that it is in; "" where it came in the variable

    @cached_property
    def id(self) -> str:
        """The same for the same URL, and of no use to whoever would like to know it, also where that is short."""
        return hashlib.scrypt(self.url.encode(), salt=b"kvmfleet destination", n=1 << 14, r=8, p=1, dklen=16).hex()

    def __repr__(self) -> str:
        return f"Destination({self.place})"


def read(path: str | None, variable: str = "") -> tuple[Destination, ...]:
    """Those in the file, or else in what KVMFLEET_NOTIFY holds; none without both. No service is asked.

    Raises:
        UsageError: they cannot be read or understood, or others can read them, too. It holds nothing of them.
    """
    if path is not None:
        lines = _text(path).splitlines()
        found = [
            Destination(line.strip(), f"line {number} of {path}", path)
            for number, line in enumerate(lines, 1)
            if line.strip() and not line.strip().startswith("#")
        ]
        if not found:
            raise UsageError(f"{path} names no URL to send to.", hint=f"Write one into each line. {SPELLING}")
    else:
        found = [Destination(url, f"URL {number} of KVMFLEET_NOTIFY") for number, url in enumerate(variable.split(), 1)]
    if bad := list(_not_understood(found)):
        raise UsageError(f"apprise cannot send to {', '.join(bad)}: it does not know such a URL.", hint=SPELLING)
    unique: dict[str, Destination] = {}
    for destination in found:
        unique.setdefault(destination.url, destination)
    return tuple(unique.values())


def _text(path: str) -> str:
    """What is in a file that only its owner can read."""
    if "://" in path or path.startswith("mailto:"):
        raise UsageError(
            "--notify wants a file that holds URLs, not a URL: everybody on this machine can see arguments, and it "
            "holds a secret.",
            hint="Write it into a file of mode 0600, one in each line, or into the variable KVMFLEET_NOTIFY.",
        )
    try:
        with open(path, "rb", opener=_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(
                    f"{path} is no regular file, and a pipe would be waited for.",
                    hint="Write the URLs into a file of mode 0600, or into the variable KVMFLEET_NOTIFY.",
                )
            mode = stat.S_IMODE(status.st_mode)
            if mode & 0o077:
                raise UsageError(
                    f"{path} holds secrets, and others can read or write it: its mode is {mode:04o}.",
                    hint=f"chmod 600 {path}",
                )
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UsageError(f"{path} has more than {MAX_BYTES} bytes, so it is no list of URLs.")
        return content.decode("utf-8-sig")
    except OSError as e:
        raise UsageError(f"{path} cannot be read: {e.strerror}.", hint="Name a file that holds the URLs.") from e
    except UnicodeDecodeError as e:
        raise UsageError(f"{path} is not UTF-8 at byte {e.start}.", hint="Write it anew, one URL a line.") from None


def _at_once(path: str, flags: int) -> int:
    """A pipe into which nobody writes is opened, too."""
    return os.open(path, flags | os.O_NONBLOCK)


def _not_understood(destinations: Sequence[Destination]) -> Iterator[str]:
    """The places of those that apprise cannot send to."""
    if not destinations:
        return
    import apprise

    from orchestrator.notify.sending import ASSET

    logging.getLogger("apprise").propagate = False  # its warnings quote URLs
    for destination in destinations:
        if apprise.Apprise.instantiate(destination.url, asset=ASSET) is None:
            yield destination.place


def send(messages: Sequence[tuple[Destination, Message]], *, limit_s: float = LIMIT_S) -> dict[Destination, str]:
    """Sends each message to its destination, all at one time. Gives why one was not taken, "" where it was."""
    program = Path(__file__).with_name("sending.py")
    child = subprocess.Popen(
        [sys.executable, "-P", str(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    parcels = [{"url": to.url, **msgspec.structs.asdict(message)} for to, message in messages]
    late = "it ended without an answer"
    try:
        printed, _ = child.communicate(json.dumps(parcels).encode(), timeout=limit_s)
    except subprocess.TimeoutExpired:
        late = f"not done after {limit_s:g} s"
        processes.end([child.pid], term_s=0)
        printed, _ = child.communicate()
    finally:
        if child.poll() is None:
            processes.end([child.pid], term_s=0)
            child.wait()
    answers = dict(msgspec.json.Decoder(tuple[int, str]).decode_lines(printed))
    return {to: answers.get(number, late) for number, (to, _) in enumerate(messages)}
