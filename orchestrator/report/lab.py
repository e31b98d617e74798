"""A lab as a table, for people."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.lab.faults.fault import Fault
from orchestrator.lab.labs import LabStatus
from orchestrator.text import counted

__all__ = ["faults", "status"]

_STYLE = {"running": "green", "stopped": "yellow", "absent": "red"}


def status(lab: LabStatus) -> RenderableType:
    """The hosts, then where the inventory is and what this kind of lab cannot do."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    for name in ("host", "state", "system", "ssh at", "up for"):
        table.add_column(name, no_wrap=True)
    for host in lab.hosts:
        uptime = "-" if host.uptime_s is None else str(timedelta(seconds=int(host.uptime_s)))
        table.add_row(host.name, Text(host.state, style=_STYLE[host.state]), host.system, host.ssh, uptime)
    summary = f"\n{counted(len(lab.hosts), 'host')} of lab {lab.name}, provider {lab.provider}, network {lab.subnet}"
    broken = "".join(f"\n{host.name} is broken: {', '.join(host.faults)}" for host in lab.hosts if host.faults)
    where = Text(f"{summary}\ninventory: {lab.inventory}{broken}")
    return Group(table, where, Text(lab.limits, style="dim"))


def faults(known: Sequence[Fault]) -> RenderableType:
    """What hosts can be broken with, and which check has to name it."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    for name in ("fault", "check", "hosts"):
        table.add_column(name, no_wrap=True)
    table.add_column("what is wrong then")
    for fault in known:
        table.add_row(fault.id, fault.check, ", ".join(fault.providers), fault.says)
    return table
