"""Drift as one JSON document, for machines; docs/schema/drift.json describes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from orchestrator import __version__
from orchestrator.model.drift import Drift, DriftState, HostDrift
from orchestrator.report.drift import STATES, heal
from orchestrator.snapshot import owner
from orchestrator.text import printable_json

__all__ = ["SCHEMA", "DriftReport", "render"]

SCHEMA = 1
"""Version of DriftReport. Raised when a field changes its meaning, not when one is added."""


class DriftItem(Drift, frozen=True, kw_only=True):
    """One thing that is not as it was, who keeps it, and how it is brought back."""

    owner: str  # a role, "" where none keeps it
    heal: str  # a command


class HostDriftReport(HostDrift, frozen=True, kw_only=True):
    """How one host compares with its baseline."""

    items: tuple[DriftItem, ...]


class DriftReport(msgspec.Struct, frozen=True):
    """What a drift check learned. Times are seconds since the epoch."""

    schema: int
    kvmfleet: str
    command: str
    began_s: float
    ended_s: float
    summary: Mapping[DriftState, int]  # how many hosts are in each state
    hosts: tuple[HostDriftReport, ...]


def render(hosts: Sequence[HostDrift], inventory: Sequence[str] = (), *, began_s: float, ended_s: float) -> str:
    """Pretty-printed JSON. Strings from hosts are as they came; JSON escapes what a terminal could act on."""
    states = Counter(host.state for host in hosts)
    summary = {state: states[state] for state in STATES}
    told = tuple(_host(host, inventory) for host in hosts)
    return printable_json(DriftReport(SCHEMA, __version__, "drift", began_s, ended_s, summary, told))


def _host(host: HostDrift, inventory: Sequence[str]) -> HostDriftReport:
    items = tuple(
        DriftItem(
            item.item, item.expected, item.seen, item.since_s,
            owner=owner(item.item),
            heal=heal(host.host, item, inventory, left=item.item in host.left),
        )
        for item in host.items
    )  # fmt: skip
    return HostDriftReport(**{**msgspec.structs.asdict(host), "items": items})
