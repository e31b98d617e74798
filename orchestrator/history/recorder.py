"""The process that records a run: which one it is, and whether it is still there."""

from __future__ import annotations

import os
from pathlib import Path

import sqlalchemy as sa

from orchestrator import processes

__all__ = ["is_alive", "process"]


def is_alive(row: sa.RowMapping) -> bool:
    """Whether the process of an unfinished run is alive; of another controller's we cannot know, so it is believed."""
    if row["controller"] != os.uname().nodename:
        return True
    return bool(process(int(row["process"].split()[1])) == row["process"])


def process(pid: int) -> str:
    """Boot, number and start of a process: numbers are used again, this triple is not. "" when there is none."""
    started = processes.started_ticks(pid)
    return "" if started is None else f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {pid} {started}"
