"""How a host compares with what it was when it was last good."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["DriftState", "TOLD", "Drift", "HostDrift"]

DriftState = Literal["in-sync", "drifted", "pending", "never-provisioned", "unreachable", "unknown"]
"""Pending: the inventory or the roles changed since the last rollout. A host that also drifted is drifted."""

TOLD: tuple[DriftState, ...] = ("in-sync", "pending", "drifted")
"""Of a host in another state it could not be told whether it is as it should be."""


class Drift(msgspec.Struct, frozen=True):
    """One thing that is not as it was when the host was last good. None is for what is not there."""

    item: str
    expected: str | None
    seen: str | None
    since_s: float = 0.0  # when it was first seen so, seconds since the epoch


class HostDrift(msgspec.Struct, frozen=True):
    """How one host compares with its baseline."""

    host: str
    state: DriftState
    since_s: float = 0.0  # when the state was first seen
    seen_s: float = 0.0
    items: tuple[Drift, ...] = ()
    left: tuple[str, ...] = ()  # those of the items that the last provision left as they are; not kept in the history
    pending: bool = False  # also where the state is drifted
    problem: str = ""  # why it could not be told, or not wholly
    hint: str = ""
    told_s: float | None = None  # when its state could last be told, None where the history knows of no such check
    took_s: float | None = None  # how long asking it took, None where that cannot be told of one host
