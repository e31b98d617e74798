"""What is different from what somebody was last told about each host."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from orchestrator.model.drift import Drift, DriftState, HostDrift

__all__ = ["Kind", "Notice", "Transition", "group", "transitions"]

SILENT = ("unreachable", "unknown")
"""One to whoever waits for a host, which may go from the one to the other and back without an end."""

Kind = Literal["drifted", "changed", "untold", "recovered"]
"""Changed: it had drifted before, and now otherwise. Untold: it cannot be told of the host whether it drifted."""


class Notice(msgspec.Struct, frozen=True):
    """What somebody was told of a host last. Of a host that is as it should be, and always was, there is none."""

    state: DriftState
    items: Mapping[str, str] = {}  # of drift -> digest of what was expected and what was seen
    delivered: bool = True  # else it may not have arrived


class Transition(msgspec.Struct, frozen=True):
    """Something to tell of one host."""

    kind: Kind
    host: HostDrift
    before: Notice | None
    now: Notice | None  # what is known once this arrived; None when all is well
    items: tuple[Drift, ...] = ()  # those to tell about
    gone: tuple[str, ...] = ()  # of what was told before
    checks: int = 0  # so many in a row could not tell


def transitions(
    known: Mapping[str, Notice], seen: Sequence[HostDrift], silent_checks: Mapping[str, int], *, after: int
) -> tuple[Transition, ...]:
    """What to tell of the hosts that were looked at, in their order. Of all others nothing is known anew.

    `silent_checks`: so many checks in a row, with this one, could not tell how the host is; it is worth a word from
    `after` on.
    """
    found = (_transition(host, known.get(host.host), silent_checks.get(host.host, 1), after) for host in seen)
    return tuple(one for one in found if one)


def group(state: str) -> tuple[str, ...]:
    """The states that are one to whoever waits for the host."""
    return SILENT if state in SILENT else (state,)


def _transition(host: HostDrift, told: Notice | None, checks: int, after: int) -> Transition | None:
    match host.state:
        case "in-sync" | "pending":
            return Transition("recovered", host, told, None) if told else None
        case "drifted":
            return _drifted(host, told)
        case _:
            known = told is not None and told.delivered and told.state in group(host.state)
            if known or checks < after:
                return None
            return Transition("untold", host, told, Notice(host.state), checks=checks)


def _drifted(host: HostDrift, told: Notice | None) -> Transition | None:
    items = {item.item: _digest(item) for item in host.items}
    if told is None or told.state != "drifted" or not told.delivered:
        return Transition("drifted", host, told, Notice("drifted", items), host.items)
    if host.problem:  # what could not be looked at has not gone
        items = {**told.items, **items}
    fresh = tuple(item for item in host.items if told.items.get(item.item) != items[item.item])
    gone = tuple(sorted(told.items.keys() - items.keys()))
    return Transition("changed", host, told, Notice("drifted", items), fresh, gone) if fresh or gone else None


def _digest(item: Drift) -> str:
    return hashlib.sha256(msgspec.json.encode((item.expected, item.seen))).hexdigest()[:16]
