"""What checks found, and the one word for a host."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["Status", "Finding", "FleetFinding", "Waiver", "Verdict", "Judgement"]

Status = Literal["pass", "warn", "fail", "skip", "error", "waived"]


class Finding(msgspec.Struct, frozen=True):
    """What one check found on one host."""

    check: str
    status: Status
    summary: str  # one line: what was seen
    expected: str = ""
    seen: str = ""
    fix: str = ""
    cause: str = ""  # id of the check because of which this one was skipped


class FleetFinding(Finding, frozen=True):
    """What one check found among hosts that are each for themselves in order."""

    hosts: tuple[str, ...] = ()  # those that are concerned


class Waiver(msgspec.Struct, frozen=True):
    """Who answers for a finding on a host, and how long."""

    reason: str
    owner: str
    expires: str  # the last day on which it holds, as 2027-01-31
    holds: bool = True  # on the day of the judgement


Verdict = Literal["proven", "degraded", "failed", "unreachable", "unknown"]


class Judgement(msgspec.Struct, frozen=True):
    """All findings of one host, and the one word."""

    verdict: Verdict
    findings: tuple[Finding, ...]
    cause: Finding | None = None  # the root cause, the first finding that nothing else explains
