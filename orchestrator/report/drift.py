"""Drift and history on a terminal, and as JSON."""

from __future__ import annotations

import difflib
import shlex
import time
from collections.abc import Iterator, Sequence
from datetime import datetime

import msgspec
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator import __version__
from orchestrator.model import Drift, HostDrift
from orchestrator.snapshot import owner
from orchestrator.store import Acceptance, PastResult, PastRun
from orchestrator.text import printable, printable_json, printable_lines

__all__ = ["exit_code", "past_host", "past_runs", "render", "report"]

SCHEMA = 1
STATES = ("in-sync", "pending", "drifted", "never-provisioned", "unreachable", "unknown")
STYLE = {"in-sync": "bold green", "pending": "bold yellow", "drifted": "bold red"}
UNKNOWN = "bold magenta"


def exit_code(hosts: Sequence[HostDrift], *, strict: bool = False) -> int:
    """0 in sync, 2 a host drifted, 1 it could not be told of a host (wins over 2). `strict` counts pending as drift."""
    states = {host.state for host in hosts}
    if not hosts or states & {"never-provisioned", "unreachable", "unknown"}:
        return 1
    return 2 if "drifted" in states or (strict and "pending" in states) else 0


def render(hosts: Sequence[HostDrift], inventory: Sequence[str] = ()) -> str:
    """One JSON document: schema, version, how many hosts are in each state, and each host with its items of drift."""
    document = {
        "schema": SCHEMA,
        "kvmfleet": __version__,
        "command": "drift",
        "summary": {state: sum(host.state == state for host in hosts) for state in STATES},
        "hosts": [
            {**msgspec.structs.asdict(host), "items": [_item(host.host, item, inventory) for item in host.items]}
            for host in hosts
        ],
    }
    return printable_json(document)


def _item(host: str, item: Drift, inventory: Sequence[str]) -> dict[str, object]:
    return {**msgspec.structs.asdict(item), "owner": owner(item.item), "heal": heal(host, item, inventory)}


def heal(host: str, item: Drift, inventory: Sequence[str]) -> str:
    """The command that brings the item back, or lets it be where no role can."""
    kind, _, name = item.item.partition(":")
    strangers = sorted(set((item.seen or "").split()) - set((item.expected or "").split()))
    if kind == "member" and strangers:  # a role adds users, and takes away none that it did not add
        return " && ".join(f"gpasswd -d {shlex.quote(user)} {shlex.quote(name)}" for user in strangers)
    if owner(item.item):
        return _provision(host, inventory)
    return f"kvmfleet drift accept {shlex.quote(host)} {shlex.quote(item.item)} --reason '…'"


def _provision(host: str, inventory: Sequence[str]) -> str:
    where = "".join(f"-i {shlex.quote(path)} " for path in inventory)
    return f"kvmfleet provision {where}--limit {shlex.quote(host)}"


def report(hosts: Sequence[HostDrift], inventory: Sequence[str] = (), *, diff: bool = False) -> RenderableType:
    """The table of hosts, then what drifted on each. `diff` shows values whole, expected against seen."""
    parts: list[RenderableType] = [_table(hosts), Text()]
    for host in hosts:
        parts += _details(host, inventory, diff=diff)
    parts.append(_closing(hosts))
    return Group(*parts)


def _table(hosts: Sequence[HostDrift]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    for name in ("host", "state", "since", "items"):
        table.add_column(name, no_wrap=True)
    for host in hosts:
        state = Text(host.state, style=STYLE.get(host.state, UNKNOWN))
        if host.pending and host.state == "drifted":
            state.append(", pending", style=STYLE["pending"])
        table.add_row(Text(host.host), state, _when(host.since_s), str(len(host.items) or ""))
    return table


def _details(host: HostDrift, inventory: Sequence[str], *, diff: bool) -> Iterator[RenderableType]:
    if host.state == "pending":
        yield Text(f"pending {host.host}: the inventory or the roles changed since it was provisioned")
        yield Text(f"      {_provision(host.host, inventory)}", style="dim")
    for item in host.items:
        yield _line(host.host, item, diff=diff)
    if host.problem:
        yield Text(f"{host.state} {host.host}: {printable(host.problem, 1000)}", style=STYLE.get(host.state, UNKNOWN))
        if host.hint:
            yield Text(f"      {printable(host.hint, 600)}", style="dim")
    for fix in dict.fromkeys(heal(host.host, item, inventory) for item in host.items):
        yield Text(f"      {printable(fix, 600)}", style="dim")


def _line(host: str, item: Drift, *, diff: bool) -> Text:
    text = Text(f"{host}: ", style="bold").append(printable(item.item), style="")
    role = owner(item.item)
    text.append(f" ({role or 'no role changes it'}), since {_when(item.since_s)}", style="dim")
    if diff:
        for line in _diff(item):
            text.append(
                f"\n      {line}", style="green" if line.startswith("+") else "red" if line.startswith("-") else ""
            )
        return text
    return text.append(f"\n      {printable(_change(item), 600)}")


def _change(item: Drift) -> str:
    """In one line; of long values the first line that changed, and how many more did."""
    if "\n" not in (item.expected or "") + (item.seen or ""):
        return f"{_value(item.expected)} → {_value(item.seen)}"
    changed = [line for line in _diff(item) if line[:1] in "+-"]
    first = next((line for line in changed if line[:1] == "+"), changed[0])
    return first + (f" and {len(changed) - 1} more lines, see --diff" if len(changed) > 1 else "")


def _value(value: str | None) -> str:
    return "nothing" if value is None else printable(value, 160)


def _diff(item: Drift) -> list[str]:
    """Expected with -, seen with +, and the lines around a change."""
    expected, seen = (printable_lines(value or "").splitlines() for value in (item.expected, item.seen))
    return list(difflib.unified_diff(expected, seen, lineterm="", n=2))[2:]


def _when(at_s: float) -> str:
    """Local time to the minute, as `ls` and `journalctl` have it."""
    return datetime.fromtimestamp(at_s).strftime("%Y-%m-%d %H:%M") if at_s else ""


def _closing(hosts: Sequence[HostDrift]) -> Text:
    words = [f"{number} {state}" for state in STATES if (number := sum(host.state == state for host in hosts))]
    return Text(f"\n{len(hosts)} host{'s' if len(hosts) != 1 else ''}: {', '.join(words)}", style="bold")


def past_runs(runs: Sequence[PastRun]) -> RenderableType:
    """Runs, the latest first."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    for name in ("run", "command", "by", "began", "took", "state"):
        table.add_column(name, no_wrap=True)
    for run in runs:
        took = f"{run.finished_at_s - run.started_at_s:.0f} s" if run.finished_at_s else ""
        by = printable(f"{run.user}@{run.controller}")
        table.add_row(str(run.id), printable(run.command), by, _when(run.started_at_s), took, run.state)
    return table


def past_host(
    host: str, results: Sequence[PastResult], watched: Sequence[HostDrift], accepted: Sequence[Acceptance]
) -> RenderableType:
    """What the history knows of one host: verdicts, drift, and what was accepted, the latest first."""
    rows: list[tuple[float, Text]] = []
    for result in results:
        text = Text(f"{result.verdict}", style="bold").append(f" in run {result.run_id}", style="dim")
        rows.append((result.recorded_at_s, text.append(f": {result.cause}" if result.cause else "")))
    for seen in watched:
        text = Text(seen.state, style=STYLE.get(seen.state, UNKNOWN))
        names = ", ".join(item.item for item in seen.items[:5]) + (" …" if len(seen.items) > 5 else "")
        rows.append((seen.seen_s, text.append(f" {printable(names or seen.problem)}")))
    for one in accepted:
        told = f"accepted {one.item} by {one.author}: {one.reason}"
        rows.append((one.accepted_s, Text(printable(told))))
    table = Table(box=None, show_header=False, padding=(0, 1), title=Text(printable(host)), title_justify="left")
    for at_s, text in sorted(rows, key=lambda row: row[0], reverse=True):
        table.add_row(_when(at_s), text)
    return table


def days_ago(days: int) -> float:
    """The time so many days before now, seconds since the epoch."""
    return time.time() - days * 86400
