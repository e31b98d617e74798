"""Runs commands by turns, and prints medians, ratios and the versions they belong to."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
KVMFLEET = str(ROOT / "kvmfleet")
BIN = Path(sys.prefix) / "bin"
COMMAND = (BIN / "python", "-P", "-m", "orchestrator")
"""kvmfleet without its launcher."""


class Run(NamedTuple):
    """One finished command; the processor time is its own and that of all its children that it waited for."""

    wall_s: float
    cpu_s: float
    stdout: str
    peak_mib: float = 0.0  # of the largest of these processes

    @property
    def report(self) -> Any:
        return json.loads(self.stdout)


def run(*command: str | Path, codes: Iterable[int] = (0,), environment: Mapping[str, str] | None = None) -> Run:
    """Ends with the command's own words when its exit code is another one. `environment` goes on top of ours."""
    begun = time.perf_counter()
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        subprocess.Popen(
            [str(word) for word in command],
            cwd=ROOT,
            env=os.environ | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        ) as child,
    ):
        _, status, usage = os.wait4(child.pid, 0)
        wall_s = time.perf_counter() - begun
        child.returncode = os.waitstatus_to_exitcode(status)
        said, complaint = (_text(file) for file in (out, err))
    if child.returncode not in codes:
        words = f"{complaint[-4000:]}{said[-2000:]}"
        sys.exit(f"{' '.join(map(str, command))} ended with {child.returncode}:\n{words}")
    return Run(wall_s, usage.ru_utime + usage.ru_stime, said, usage.ru_maxrss / 1024)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def by_turns(candidates: Mapping[str, Callable[[], Run]], rounds: int) -> dict[str, list[Run]]:
    """Each round runs every candidate once, and every other round backwards, so that a slow minute hits all of them."""
    runs: dict[str, list[Run]] = {name: [] for name in candidates}
    for number in range(rounds):
        for name in list(candidates)[:: -1 if number % 2 else 1]:
            runs[name].append(candidates[name]())
    return runs


def median_wall_s(runs: Iterable[Run]) -> float:
    return statistics.median(run.wall_s for run in runs)


def median_cpu_s(runs: Iterable[Run]) -> float:
    return statistics.median(run.cpu_s for run in runs)


def heading(title: str, rounds: int, *more: str) -> None:
    """What was measured, where, and with which versions; `more` names what is no library of ours."""
    ours = (f"{name} {version(name)}" for name in ("ansible-core", "ansible-runner", "asyncssh", "click"))
    libraries = ", ".join((*ours, *more))
    commit = run("git", "describe", "--always", "--dirty").stdout.strip()
    print(f"{title}, median of {rounds} rounds by turns")
    print(f"kvmfleet {commit}, Python {platform.python_version()}, {libraries}")
    print(f"{os.cpu_count()} processors, Linux {platform.release()}\n")


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """A table as Markdown has it, so that it can go into docs/benchmarks.md as it is."""
    head = list(header)
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    print()
