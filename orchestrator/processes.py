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
    """Stays the same when its parent ends and it gets another one."""

    pid: int
    started: int  # clock ticks since boot: proc_pid_stat(5), field 22


def children(pid: int, marker: str) -> list[int]:
    """The direct children of `pid` that carry `marker` in their environment."""
    return [p.pid for p, parent in _table().items() if parent == pid and marker.encode() in _environment(p.pid)]


def end(roots: list[int], *, term_s: float = TERM_S) -> None:
    """Asks the trees under `roots` to end, waits, then kills what is left. The roots remain their parents' to reap."""
    tree = _tree(roots) if roots else set()
    for number, patience_s in ((signal.SIGTERM, term_s), (signal.SIGKILL, KILL_S)):
        for process in tree & _table().keys():
            _signal(process.pid, number)
        deadline = time.monotonic() + patience_s
        while tree & _table().keys() and time.monotonic() < deadline:
            time.sleep(0.05)


def _tree(roots: list[int]) -> set[_Process]:
    table = _table()
    tree = {process for process in table if process.pid in roots}
    while more := {p for p, parent in table.items() if p not in tree and any(parent == q.pid for q in tree)}:
        tree |= more
    return tree


def _table() -> dict[_Process, int]:
    """Every process with its parent's number, but zombies: those have ended, whoever has yet to read their status."""
    return dict(entry for path in Path("/proc").iterdir() if path.name.isdecimal() and (entry := _read(path)))


def _read(path: Path) -> tuple[_Process, int] | None:
    try:
        # The name in parentheses may hold spaces and parentheses itself.
        state, parent, *rest = (path / "stat").read_bytes().rpartition(b") ")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in {b"Z", b"X"} else (_Process(int(path.name), int(rest[17])), int(parent))


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
