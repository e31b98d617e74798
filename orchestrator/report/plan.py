"""What check mode said of every host, on a terminal and as JSON; docs/schema/plan.json describes the latter."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import msgspec
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from orchestrator import __version__
from orchestrator.model.run import Change, HostConverged
from orchestrator.text import counted, listed, printable, printable_json

__all__ = ["Plan", "exit_code", "plan", "render", "report"]

SCHEMA = 1
"""Version of Plan. Raised when a field changes its meaning, not when one is added."""

State = Literal["unchanged", "changes", "unknown"]
STATES: Mapping[State, str] = {
    "unchanged": "nothing to change", "changes": "would change", "unknown": "cannot be planned",
}  # fmt: skip
STYLE: Mapping[State, str] = {"unchanged": "bold green", "changes": "bold yellow", "unknown": "bold magenta"}
THINGS = 6  # of a task, without -v
OF_ONE_HOST = re.compile(r'^[+-]\s*"intent_digest": .*$', re.MULTILINE)
"""In the contract's diff: it differs from host to host, and says nothing to people."""

UNSEEN = (
    "Check mode sees what is there now: what waits for another change (on a host without libvirt its settings, units, "
    "networks and pools) shows once that is made. What no task manages it does not see at all."
)


class HostPlan(msgspec.Struct, frozen=True):
    """What would change on one host."""

    name: str
    state: State
    changed: int = 0  # tasks that would change something; in `changes` are at most a hundred
    changes: tuple[Change, ...] = ()  # of a host that cannot be planned, those that came before the problem
    problem: str = ""  # why it cannot be planned


class Plan(msgspec.Struct, frozen=True):
    """What would change on every host of the fleet, in its order."""

    schema: int
    kvmfleet: str
    command: str
    unseen: str  # what nobody should read out of it
    summary: Mapping[State, int]
    hosts: tuple[HostPlan, ...]


def plan(converged: Sequence[HostConverged]) -> Plan:
    """Out of what a playbook did in check mode."""
    hosts = tuple(map(_host, converged))
    summary = {state: sum(host.state == state for host in hosts) for state in STATES}
    return Plan(SCHEMA, __version__, "plan", UNSEEN, summary, hosts)


def _host(host: HostConverged) -> HostPlan:
    if host.outcome == "ok":
        return HostPlan(host.host, "changes" if host.changed else "unchanged", host.changed, host.changes)
    return HostPlan(host.host, "unknown", host.changed, host.changes, _problem(host))


def _problem(host: HostConverged) -> str:
    if host.failure is None:
        return "no task was run on it; --tags and --skip-tags may leave none"
    item = f" ({host.failure.item})" if host.failure.item else ""
    how = "unreachable" if host.outcome == "unreachable" else "failed in check mode"
    return f"{how}: {host.failure.task}{item}: {host.failure.message}"


def exit_code(plan: Plan) -> int:
    """0 nothing would change, 2 something would, 1 it could not be told of a host (wins over 2)."""
    if not plan.hosts or plan.summary["unknown"]:
        return 1
    return 2 if plan.summary["changes"] else 0


def render(plan: Plan) -> str:
    """Pretty-printed JSON of which every character can be shown."""
    return printable_json(plan)


def report(plan: Plan, *, verbose: bool = False) -> RenderableType:
    """What would change, once for hosts that are alike in it; the others in a line. `verbose` cuts no list short."""
    parts: list[RenderableType] = []
    for hosts in _alike(plan.hosts):
        parts += _block(hosts, verbose=verbose)
    return Group(*parts, Text(f"\nNothing was changed. {UNSEEN}\n", style="dim"), _closing(plan))


def _alike(hosts: Sequence[HostPlan]) -> list[list[HostPlan]]:
    """Hosts of which the same is to be told; those that need reading come last, where a terminal stops."""
    told: dict[bytes, list[HostPlan]] = {}
    for host in hosts:
        changes = tuple(
            msgspec.structs.replace(change, diff=OF_ONE_HOST.sub("", change.diff)) for change in host.changes
        )
        told.setdefault(msgspec.json.encode(msgspec.structs.replace(host, name="", changes=changes)), []).append(host)
    return sorted(told.values(), key=lambda group: list(STATES).index(group[0].state))


def _block(hosts: Sequence[HostPlan], *, verbose: bool) -> Iterator[RenderableType]:
    host = hosts[0]
    names = [one.name for one in hosts]
    text = Text(f"{listed(names, len(names) if verbose else 5)}: ", style="bold")
    text.append(STATES[host.state], style=STYLE[host.state])
    if host.state == "changes":
        text.append(f": {counted(host.changed, 'task')}")
    elif host.problem:
        text.append(f": {printable(host.problem, 1000)}", style="")
    yield text
    if host.state == "unknown" and host.changed:
        yield Padding(Text(f"before that, would change: {counted(host.changed, 'task')}"), (0, 0, 0, 2), expand=False)
    for change in host.changes:
        yield from _change(change, verbose=verbose)
    if host.changed > len(host.changes):
        yield Padding(Text(f"and {host.changed - len(host.changes)} more"), (0, 0, 0, 2), expand=False)
    if len([change for change in host.changes if change.hidden]) > _hidden(host):
        yield Padding(Text(f"of the hidden ones only {counted(_hidden(host), 'task')}"), (0, 0, 0, 2), expand=False)


def _hidden(host: HostPlan) -> int:
    """How many of the tasks that would change something are hidden ones."""
    return host.changed - sum(not change.hidden for change in host.changes)


def _change(change: Change, *, verbose: bool) -> Iterator[RenderableType]:
    yield Padding(Text(change.task), (0, 0, 0, 2), expand=False)
    if change.hidden:
        yield Padding(Text("hidden, as it may hold a secret (no_log)", style="dim"), (0, 0, 0, 6), expand=False)
    if change.things:
        shown = change.things if verbose else change.things[:THINGS]
        more = f" and {len(change.things) - len(shown)} more, see -v" if len(shown) < len(change.things) else ""
        yield Padding(Text(", ".join(shown) + more, style="dim"), (0, 0, 0, 6), expand=False)
    for line in change.diff.splitlines():
        style = "green" if line.startswith("+") else "red" if line.startswith("-") else ""
        yield Padding(Text(line.expandtabs(), style=style), (0, 0, 0, 6), expand=False)


def _closing(plan: Plan) -> Text:
    words = [f"{number} {STATES[state]}" for state, number in plan.summary.items() if number]
    return Text(f"{counted(len(plan.hosts), 'host')}: {', '.join(words)}", style="bold")
