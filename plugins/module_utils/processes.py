"""The guests of a host, by its processes: what libvirt may not know of, or no longer, counts as well."""

from __future__ import annotations

import glob
import os
import re
import signal
import time
from contextlib import suppress
from typing import NamedTuple

KVM_VM = "anon_inode:kvm-vm"
QEMU = re.compile(r"/(qemu-system-[a-z0-9_]+|qemu-kvm)( \(deleted\))?$")


class Guest(NamedTuple):
    """A process that executes a guest."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid})"


def guests(proc: str = "/proc") -> list[Guest]:
    """Whoever holds a virtual machine of KVM, and every QEMU, with KVM or without."""
    found = []
    for path in glob.glob(f"{proc}/[0-9]*"):
        held = any(_link(fd) == KVM_VM for fd in glob.glob(f"{path}/fd/*"))
        if (held or QEMU.search(_link(f"{path}/exe"))) and not _helper(path):
            found.append(Guest(int(os.path.basename(path)), _name(path)))
    return sorted(found)


def _helper(path: str) -> bool:
    """libvirt asks QEMU what it can do with one that has no machine."""
    return any(before in ("-machine", "-M") and word.split(",")[0] == "none" for before, word in _pairs(path))


def _name(path: str) -> str:
    for before, word in _pairs(path):
        if before == "-name":
            return re.sub(r"^guest=|,.*$", "", word)
    return _text(f"{path}/comm").strip() or "?"


def _pairs(path: str) -> list[tuple[str, str]]:
    words = _text(f"{path}/cmdline").split("\0")
    return [(words[n], words[n + 1]) for n in range(len(words) - 1)]


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""


def _link(path: str) -> str:
    """Where a symbolic link leads; "" for one that has just gone."""
    try:
        return os.readlink(path)
    except OSError:
        return ""


def end(ended: list[Guest], proc: str = "/proc", patience_s: float = 10.0) -> None:
    """QEMU closes its disks on SIGTERM; what is left after that is killed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for guest in ended:
            with suppress(ProcessLookupError):
                os.kill(guest.pid, number)
        until = time.monotonic() + patience_s
        while time.monotonic() < until:
            if not {guest.pid for guest in ended} & {guest.pid for guest in guests(proc)}:
                return
            time.sleep(0.2)
