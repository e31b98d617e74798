"""Runs commands by turns, and prints medians, ratios and the versions they belong to."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
KVMFLEET = str(ROOT / "kvmfleet")
BIN = Path(sys.prefix) / "bin"


class Run(NamedTuple):
    """One finished command; the processor time is its own and that of all its children."""

    wall_s: float
    cpu_s: float
    stdout: str

    @property
    def report(self) -> Any:
        return json.loads(self.stdout)


def run(*command: str | Path, codes: Iterable[int] = (0,)) -> Run:
    """Ends with the command's own words when its exit code is another one."""
    begun = time.perf_counter()
    with subprocess.Popen(
        [str(word) for word in command],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        before = os.times()
        out, err = child.communicate()
        wall_s = time.perf_counter() - begun
        after = os.times()
    if child.returncode not in codes:
        sys.exit(f"{' '.join(map(str, command))} ended with {child.returncode}:\n{err}{out[-2000:]}")
    cpu_s = after.children_user - before.children_user + after.children_system - before.children_system
    return Run(wall_s, cpu_s, out)


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


def heading(title: str, rounds: int) -> None:
    """What was measured, where, and with which versions."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("ansible-core", "ansible-runner", "asyncssh", "click"))
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
