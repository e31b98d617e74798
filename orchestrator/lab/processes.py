"""The process that runs a host, found by what it was told to run rather than by a number that was written down."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from orchestrator.processes import started_ticks

__all__ = ["Process", "end", "find"]

_PROC = Path("/proc")


class Process(msgspec.Struct, frozen=True):
    """A process and its start, which together name it for good: a number alone may be given again."""

    pid: int
    started_ticks: int

    def started_at_s(self) -> float:
        """Seconds since the epoch."""
        return _boot_s() + self.started_ticks / os.sysconf("SC_CLK_TCK")


def find(program: str, argument: str) -> tuple[Process, ...]:
    """Processes of a program that were given exactly this argument."""
    return tuple(_matching(program.encode(), argument.encode()))


def _matching(program: bytes, argument: bytes) -> Iterator[Process]:
    for pid in (int(folder.name) for folder in _PROC.iterdir() if folder.name.isdecimal()):
        with contextlib.suppress(OSError):  # it ended while we looked
            argv = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
            if os.path.basename(argv[0]) == program and argument in argv and (started := started_ticks(pid)):
                yield Process(pid, started)


def _boot_s() -> float:
    lines = (_PROC / "stat").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("btime ")))


def end(processes: Iterable[Process], *, grace_s: float) -> None:
    """Asks processes to end, waits for all of them, and kills those that are left."""
    with contextlib.ExitStack() as stack:
        handles = {handle for process in processes if (handle := _open(process)) is not None}
        for handle in handles:
            stack.callback(os.close, handle)
        for step, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
            for handle in handles:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, step)
            handles = _still_running(handles, wait_s)


def _open(process: Process) -> int | None:
    """A handle that cannot come to mean another process."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    if started_ticks(process.pid) == process.started_ticks:
        return handle
    os.close(handle)
    return None


def _still_running(handles: Iterable[int], wait_s: float) -> set[int]:
    """The handles whose processes have not ended when the time is over."""
    left, until = set(handles), time.monotonic() + wait_s
    while left and (rest := until - time.monotonic()) > 0:
        ended, _, _ = select.select(list(left), [], [], rest)  # a pidfd is readable when its process has ended
        left -= set(ended)
    return left
