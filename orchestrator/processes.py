"""Ends a process with everything that it started.

Ansible's workers lead sessions of their own, so a signal to the process group of `ansible-playbook` misses them, and
what they started goes on without a parent. The tree is therefore read while it is whole, and grown by whatever joins
its sessions meanwhile, also by one that a worker began to lead since. A daemon that a task started has left them, and
stays.

A worker that was forked after the last look, by a parent that has ended since, is in no tree. It still has its
parent's arguments, so a caller that looks again with `running` finds it.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

__all__ = ["end", "running", "started_ticks"]

TERM_S = 5.0  # Ansible tells its workers, and removes its temporary files
KILL_S = 2.0


class _Process(NamedTuple):
    """Stays the same when its parent ends; a number that is given away again comes with another start."""

    pid: int
    started: int  # clock ticks since boot: proc_pid_stat(5), field 22


class _Place(NamedTuple):
    parent: int
    session: int


def running(argument: str) -> list[int]:
    """The processes with exactly this argument, and what they forked that called no exec, whoever is its parent now."""
    return [process.pid for process in _table() if argument.encode() in _arguments(process.pid)]


def started_ticks(pid: int) -> int | None:
    """The start of a process in clock ticks since boot; with the number it names a process for good. None: it ended."""
    entry = _read(Path(f"/proc/{pid}"))
    return entry[0].started if entry else None


def end(roots: list[int], *, term_s: float = TERM_S) -> None:
    """Asks the trees under `roots` to end, waits, then kills what is left. Each root must lead a session of its own.

    The roots remain their parents' to reap.
    """
    family = _Family(roots)
    for number, patience_s in ((signal.SIGTERM, term_s), (signal.SIGKILL, KILL_S)):
        deadline, told = time.monotonic() + patience_s, set[_Process]()
        while (alive := family.alive()) and time.monotonic() < deadline:
            for process in alive - told:
                _signal(process.pid, number)
            told |= alive
            time.sleep(0.05)


class _Family:
    """Some processes, all that descend from them, and all that share a session with one of those."""

    def __init__(self, roots: list[int]) -> None:
        self._members = {process for process in _table() if process.pid in roots} if roots else set()
        self._sessions: set[int] = set()

    def alive(self) -> set[_Process]:
        table = _table() if self._members else {}
        while True:
            parents = {process.pid for process in self._members & table.keys()}
            numbers = {process.pid for process in self._members}  # what it led after we looked at it
            again = numbers & {process.pid for process in table.keys() - self._members}  # given to others since
            self._sessions |= {table[process].session for process in self._members & table.keys()} | numbers
            # Ours, too, stays: a root that shares it is the caller's mistake, not our end.
            self._sessions -= {os.getsid(0), *again}
            joined = {p for p, place in table.items() if place.parent in parents or place.session in self._sessions}
            if joined <= self._members:
                return self._members & table.keys()
            self._members |= joined


def _table() -> dict[_Process, _Place]:
    """Every process but zombies: those have ended, whoever has yet to read their status."""
    return dict(entry for path in Path("/proc").iterdir() if path.name.isdecimal() and (entry := _read(path)))


def _read(path: Path) -> tuple[_Process, _Place] | None:
    try:
        # The name in parentheses may hold spaces and parentheses itself.
        state, parent, _group, session, *rest = (path / "stat").read_bytes().rpartition(b") ")[2].split()
    except (OSError, ValueError):
        return None
    if state in {b"Z", b"X"}:
        return None
    return _Process(int(path.name), int(rest[15])), _Place(int(parent), int(session))


def _arguments(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return  # it ended by itself, or became another user's: sudo passes our signals on, and ends with its caller
