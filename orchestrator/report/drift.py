"""Drift and history on a terminal."""

from __future__ import annotations

import difflib
import itertools
import shlex
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from orchestrator.history.store import Acceptance, PastResult, PastRun
from orchestrator.model.drift import Drift, DriftState, HostDrift
from orchestrator.snapshot import ABSENT, owner
from orchestrator.text import counted, listed, printable, printable_lines

__all__ = ["STATES", "Asked", "exit_code", "heal", "past_host", "past_runs", "report"]

STATES: tuple[DriftState, ...] = ("in-sync", "pending", "drifted", "never-provisioned", "unreachable", "unknown")
WORST_FIRST: tuple[DriftState, ...] = (
    "drifted", "unknown", "unreachable", "never-provisioned", "pending", "in-sync",
)  # fmt: skip
ITEMS = 20
"""Of one host that are shown without -v."""
NAMED = 5
"""Hosts in a command; of more it is told for all that were asked about."""
STYLE = {"in-sync": "bold green", "pending": "bold yellow", "drifted": "bold red"}
UNKNOWN = "bold magenta"
_COLOUR = {"+": "green", "-": "red"}
BEFORE = 1000
"""Characters of a long value that are looked at before its first difference, for the lines around it."""


def exit_code(hosts: Sequence[HostDrift], *, strict: bool = False) -> int:
    """0 in sync, 2 a host drifted, 1 it could not be told of a host (wins over 2). `strict` counts pending as drift."""
    states = {host.state for host in hosts}
    if not hosts or states & {"never-provisioned", "unreachable", "unknown"}:
        return 1
    return 2 if "drifted" in states or (strict and "pending" in states) else 0


def heal(host: str, item: Drift, inventory: Sequence[str], *, left: bool) -> str:
    """The command that brings the item back, or lets it be where no role can. `left`: the last provision did not."""
    return by_hand(host, item, left=left) or provision([host], inventory)


def by_hand(host: str, item: Drift, *, left: bool) -> str | None:
    """The same where `provision` does not bring the item back, else None."""
    if command := _on_host(item):
        return command
    versions = {item.expected or ABSENT, item.seen or ABSENT}
    other_version = item.item.startswith("package:") and ABSENT not in versions  # no role upgrades, or goes back
    if owner(item.item) and not other_version and not left:
        return None
    return f"kvmfleet drift accept {shlex.quote(host)} {shlex.quote(item.item)} --reason '…'"


def _on_host(item: Drift) -> str | None:
    """The command for the host itself that takes users out of a group: a role takes away none that it did not add."""
    kind, _, group = item.item.partition(":")
    strangers = sorted(set((item.seen or "").split()) - set((item.expected or "").split()))
    if kind != "member" or not strangers:
        return None
    return " && ".join(f"gpasswd -d {shlex.quote(user)} {shlex.quote(group)}" for user in strangers)


def provision(hosts: Sequence[str], inventory: Sequence[str]) -> str:
    """The command that provisions these hosts."""
    return f"{_provision(inventory)} --limit {shlex.quote(','.join(hosts))}"


def _provision(inventory: Sequence[str]) -> str:
    return " ".join(["kvmfleet provision", *(f"-i {shlex.quote(path)}" for path in inventory)])


class Asked(NamedTuple):
    """Which hosts the user asked about; commands that are to be typed next name the same ones."""

    inventory: Sequence[str] = ()
    limit: str = ""

    def provision(self, hosts: Sequence[str], flag: str = "") -> str:
        """The command that provisions these hosts; of many, those that were asked about, with the flag."""
        if len(hosts) <= NAMED:
            return provision(hosts, self.inventory)
        limit = f"--limit {shlex.quote(self.limit)}" if self.limit else ""
        return " ".join(filter(None, [_provision(self.inventory), limit, flag]))


ASKED = Asked()


def report(
    hosts: Sequence[HostDrift], asked: Asked = ASKED, *, diff: bool = False, verbose: bool = False
) -> RenderableType:
    """The table of hosts that are not in sync, the worst first, then each thing once with the hosts that share it.

    `diff` shows values whole, expected against seen. `verbose` leaves no host and no item out.
    """
    worst_first = sorted(hosts, key=lambda host: WORST_FIRST.index(host.state))
    shown = [host for host in worst_first if verbose or host.state != "in-sync"]
    tables = (_table(shown, owners=owners) for owners in (True, False))
    parts: list[RenderableType] = [_Fitting(*tables), Text()] if shown else []
    parts.append(_lines(worst_first, asked, diff=diff, verbose=verbose))
    parts.append(_closing(hosts))
    return Group(*parts)


class _Fitting:
    """The first of these tables that breaks no word and nothing that is not to be wrapped; else the last."""

    def __init__(self, *tables: Table) -> None:
        self._tables = tables

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        fitting = (table for table in self._tables if self._narrowest(table, console, options) <= options.max_width)
        yield next(fitting, self._tables[-1])

    def _narrowest(self, table: Table, console: Console, options: ConsoleOptions) -> int:
        for column in table.columns:
            if column.no_wrap:  # rich measures the longest word of it
                column.min_width = max(cell_len(str(cell)) for cell in (column.header, *column.cells))
        return console.measure(table, options=options.update(max_width=10_000)).minimum


def _table(hosts: Sequence[HostDrift], *, owners: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    for name in ("host", "state", "since"):
        table.add_column(name, no_wrap=True)
    table.add_column("items", justify="right")
    if owners:
        table.add_column("owner")
    for host in hosts:
        state = _word(host.state)
        if host.pending and host.state == "drifted":
            state.append(", ").append_text(_word("pending"))
        cells = [Text(printable(host.host)), state, Text(_when(host.since_s)), Text(str(len(host.items) or ""))]
        table.add_row(*cells, *([Text(", ".join(_owners(host)))] if owners else []))
    return table


def _owners(host: HostDrift) -> list[str]:
    """The roles that keep what drifted, and at the end who keeps what no role does."""
    roles = {owner(item.item) for item in host.items}
    return [*sorted(roles - {""}), *(["no role"] if "" in roles else [])]


def _lines(worst_first: Sequence[HostDrift], asked: Asked, *, diff: bool, verbose: bool) -> RenderableType:
    """A line for each thing with its hosts; it is indented where it goes on."""
    lines = Table.grid(padding=(0, 1))
    lines.add_column(min_width=7, no_wrap=True)
    lines.add_column(overflow="fold")
    shared, left_out = _shared(worst_first, None if verbose else ITEMS)
    for one in shared:
        lines.add_row(_word("drifted"), _drifted(one, diff=diff))
    if left_out:
        lines.add_row("", Text(f"and {left_out} more items; -v lists them", style="dim"))
    for state, text in _problems(worst_first):
        lines.add_row(_word(state), text)
    if pending := [host.host for host in worst_first if host.pending]:
        told = "the inventory or the roles changed since the last provision"
        lines.add_row(_word("pending"), _told(pending, told, asked.provision(pending)))
    healed = [h.host for h in worst_first if any(by_hand(h.host, i, left=i.item in h.left) is None for i in h.items)]
    if healed:
        lines.add_row(Text("heal", style="bold"), Text(printable(asked.provision(healed, "--drifted"), 2000)))
    calm = [host.host for host in worst_first if host.state == "in-sync"]
    if calm and not verbose:
        lines.add_row(_word("in-sync"), Text(listed(calm)))
    return lines


class _Shared(NamedTuple):
    """One thing that drifted, and where."""

    item: Drift
    left: bool  # the last provision did not bring it back
    hosts: dict[str, float]  # since when, in seconds since the epoch


def _shared(hosts: Sequence[HostDrift], limit: int | None) -> tuple[list[_Shared], int]:
    """What drifted, each thing once with its hosts and since when; of a host at most `limit`, and how many are not."""
    found: dict[tuple[str, str | None, str | None, bool], _Shared] = {}
    left_out = 0
    for host in hosts:
        new = 0
        for item in host.items:
            key = (item.item, item.expected, item.seen, item.item in host.left)
            if key not in found:
                new += 1
                if limit is not None and new > limit:
                    left_out += 1
                    continue
            found.setdefault(key, _Shared(item, key[-1], {})).hosts[host.host] = item.since_s
    return list(found.values()), left_out


def _drifted(one: _Shared, *, diff: bool) -> Text:
    item, left, hosts = one
    text = Text(f"{listed(list(hosts))}: ", style="bold").append(printable(item.item), style="not bold")
    since = _when(min(hosts.values())) + (" or later" if len({_when(at_s) for at_s in hosts.values()}) > 1 else "")
    text.append(f" ({owner(item.item) or 'no role changes it'}), since {since}", style="not bold dim")
    if diff:
        for line in _diff(item):
            text.append(f"\n{line}", style=f"not bold {_COLOUR.get(line[:1], '')}")
    else:
        text.append(f"\n{printable(_change(item), 600)}", style="not bold")
    host = next(iter(hosts))
    if left and by_hand(host, item, left=False) is None:
        text.append("\nthe last provision left it as it found it: repair it on the host, or", style="not bold dim")
    if command := by_hand(host, item, left=left):
        where = "on the host: " if _on_host(item) else ""
        more = " # and so for the others" if len(hosts) > 1 else ""
        text.append(f"\n{where}{printable(command, 600)}{more}", style="not bold dim")
    return text


def _problems(hosts: Sequence[HostDrift]) -> Iterator[tuple[DriftState, Text]]:
    """Why it could not be told, or not wholly; equal reasons once with their hosts."""
    shared: dict[tuple[DriftState, str, str], list[str]] = {}
    for host in hosts:
        if host.problem:
            shared.setdefault((host.state, host.problem, host.hint), []).append(host.host)
    for (state, problem, hint), names in shared.items():
        yield state, _told(names, problem, hint)


def _told(hosts: Sequence[str], what: str, hint: str) -> Text:
    text = Text(f"{listed(hosts)}: ", style="bold").append(printable(what, 1000), style="not bold")
    return text.append(f"\n{printable(hint, 2000)}", style="not bold dim") if hint else text


def _word(state: DriftState) -> Text:
    return Text(state, style=STYLE.get(state, UNKNOWN))


def _change(item: Drift) -> str:
    """In one line; of long values the first line that changed, and how many more did."""
    if "\n" not in (item.expected or "") + (item.seen or ""):
        return f"{_value(item.expected)} → {_value(item.seen)}"
    changed = [line for line in _diff(item) if line[:1] in "+-"]
    first = next((line for line in changed if line[:1] == "+"), changed[0])
    more = len(changed) - 1
    return first + (f" and {counted(more, 'more line')}, see --diff" if more else "")


def _value(value: str | None) -> str:
    return "nothing" if value is None else printable(value, 160)


def _diff(item: Drift) -> list[str]:
    """Expected with -, seen with +, and the lines around a change; of what is long from shortly before the first."""
    values = {"-": item.expected, "+": item.seen}
    pairs = zip(item.expected or "", item.seen or "", strict=False)
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    begin = (item.seen or "").rfind("\n", 0, max(same - BEFORE, 0)) + 1
    expected, seen = (printable_lines((value or "")[begin:]).splitlines() for value in values.values())
    shown = list(difflib.unified_diff(expected, seen, lineterm="", n=2))[2:]
    # what looks alike, such as two kinds of line breaks, as Python writes it
    return shown or [sign + _value(None if value is None else ascii(value[same:])) for sign, value in values.items()]


def _when(at_s: float) -> str:
    """Local time to the minute, as `ls` and `journalctl` have it."""
    return datetime.fromtimestamp(at_s).strftime("%Y-%m-%d %H:%M") if at_s else ""


def _closing(hosts: Sequence[HostDrift]) -> Text:
    words = [f"{number} {state}" for state in STATES if (number := sum(host.state == state for host in hosts))]
    return Text(f"\n{counted(len(hosts), 'host')}: {', '.join(words)}", style="bold")


def past_runs(runs: Sequence[PastRun]) -> RenderableType:
    """Runs, the latest first; a narrow terminal leaves out who started them."""
    return _Fitting(*(_runs(runs, users=users) for users in (True, False)))


def _runs(runs: Sequence[PastRun], *, users: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    for name in ("run", "command", *(["by"] if users else []), "began", "took", "state"):
        table.add_column(name, no_wrap=True)
    for run in runs:
        took = f"{run.finished_at_s - run.started_at_s:.0f} s" if run.finished_at_s else ""
        by = [printable(f"{run.user}@{run.controller}")] if users else []
        table.add_row(str(run.id), printable(run.command), *by, _when(run.started_at_s), took, run.state)
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
        if (since := _when(seen.since_s)) != _when(seen.seen_s):
            text.append(f" since {since}", style="not bold dim")
        names = ", ".join(item.item for item in seen.items[:5]) + (" …" if len(seen.items) > 5 else "")
        rows.append((seen.seen_s, text.append(f" {printable(names or seen.problem)}")))
    for one in accepted:
        told = f"accepted {one.item} by {one.author}: {one.reason}"
        rows.append((one.accepted_s, Text(printable(told))))
    table = Table(box=None, show_header=False, padding=(0, 1), title=Text(printable(host)), title_justify="left")
    for at_s, text in sorted(rows, key=lambda row: row[0], reverse=True):
        table.add_row(_when(at_s), text)
    return table
