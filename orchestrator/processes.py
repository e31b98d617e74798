"""Ends a process with everything that it started.

Ansible's workers lead sessions of their own, so a signal to the process group of `ansible-playbook` misses them, and
what they started lives on without a parent. The tree is therefore read while it is whole, and each of its processes is
known by number and start time, so that a number that was given away meanwhile is left alone.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

__all__ = ["children", "end"]

TERM_S = 5.0  # Ansible tells its workers, and removes its temporary files
KILL_S = 2.0


class _Process(NamedTuple):
    pid: int
    parent: int
    started: int  # clock ticks since boot: proc_pid_stat(5), field 22


def children(pid: int, marker: str) -> list[int]:
    """The direct children of `pid` that carry `marker` in their environment."""
    return [p.pid for p in _table() if p.parent == pid and marker.encode() in _environment(p.pid)]


def end(roots: list[int]) -> None:
    """Asks the trees under `roots` to end, waits, then kills what is left. The roots remain their parents' to reap."""
    tree = _tree(roots) if roots else set()
    for number, patience_s in ((signal.SIGTERM, TERM_S), (signal.SIGKILL, KILL_S)):
        for process in tree & _table():
            _signal(process.pid, number)
        deadline = time.monotonic() + patience_s
        while tree & _table() and time.monotonic() < deadline:
            time.sleep(0.05)


def _tree(roots: list[int]) -> set[_Process]:
    table = _table()
    tree = {p for p in table if p.pid in roots}
    while more := {p for p in table - tree if any(p.parent == q.pid for q in tree)}:
        tree |= more
    return tree


def _table() -> set[_Process]:
    """Every process but zombies: those have ended, whoever has yet to read their status."""
    return {p for entry in Path("/proc").iterdir() if entry.name.isdecimal() and (p := _read(entry))}


def _read(entry: Path) -> _Process | None:
    try:
        # The name in parentheses may hold spaces and parentheses itself.
        state, parent, *rest = (entry / "stat").read_bytes().rpartition(b") ")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in {b"Z", b"X"} else _Process(int(entry.name), int(parent), int(rest[17]))


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return  # it ended by itself, or became another user's: sudo passes our signals on, and ends with its caller
