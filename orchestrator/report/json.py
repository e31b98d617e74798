"""The report as one JSON document, for machines; docs/schema/report.json describes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from orchestrator import __version__
from orchestrator.model.contract import Contract, Profile
from orchestrator.model.drift import Drift
from orchestrator.model.evidence import Evidence
from orchestrator.model.finding import Finding, FleetFinding, Verdict
from orchestrator.model.run import EarlierBoot, HostConverged, HostResult
from orchestrator.report.summary import counts
from orchestrator.text import printable_json

__all__ = ["SCHEMA", "Report", "render", "render_pretended"]

SCHEMA = 1
"""Version of Report. Raised when a field changes its meaning, not when one is added."""


class Reached(msgspec.Struct, frozen=True):
    """How the host was asked, and what came of it."""

    path: str  # ssh, local, ansible; file where a recording could not be read
    problem: str
    bytes_sent: int
    bytes_received: int
    recorded_at_s: float | None  # since the epoch; where no host was asked, but a recording was judged


class HostReport(msgspec.Struct, frozen=True):
    """Everything that a run learned about one host."""

    name: str
    verdict: Verdict
    profile: Profile  # that it was judged by
    cause: Finding | None
    findings: tuple[Finding, ...]
    converged: HostConverged | None
    left: tuple[Drift, ...]  # drift that the playbook left as it found it
    booted: EarlierBoot | None  # the guest of an earlier run, where nothing changed since and none was booted again
    collected: Reached
    contract: Contract | None
    evidence: Evidence | None


class Report(msgspec.Struct, frozen=True):
    """What a run learned."""

    schema: int
    kvmfleet: str
    command: str
    summary: Mapping[Verdict, int]  # how many hosts have each verdict
    fleet: tuple[FleetFinding, ...]  # what the hosts are together
    hosts: tuple[HostReport, ...]


def render(results: Sequence[HostResult], fleet: Sequence[FleetFinding] = (), *, command: str) -> str:
    """Pretty-printed JSON. Strings from hosts are as they came; JSON escapes what a terminal could act on."""
    hosts = tuple(map(_host, results))
    return printable_json(Report(SCHEMA, __version__, command, counts(results), tuple(fleet), hosts))


def render_pretended(converged: Sequence[HostConverged], *, command: str, check_mode: bool = True) -> str:
    """The same where nothing was proven, as in check mode: no verdicts, only what was, or would have been, done."""
    document = {
        "schema": SCHEMA,
        "kvmfleet": __version__,
        "command": command,
        "check_mode": check_mode,
        "hosts": [{"name": host.host, "converged": host} for host in converged],
    }
    return printable_json(document)


def _host(result: HostResult) -> HostReport:
    collected = result.collected
    return HostReport(
        name=result.host,
        verdict=result.judgement.verdict,
        profile=result.profile,
        cause=result.judgement.cause,
        findings=result.judgement.findings,
        converged=result.converged,
        left=result.left,
        booted=result.booted,
        collected=Reached(
            collected.path,
            collected.problem,
            collected.bytes_sent,
            collected.bytes_received,
            collected.recorded_at_s,
        ),
        contract=result.contract,
        evidence=collected.evidence,
    )
