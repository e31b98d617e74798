"""The report as metrics in Prometheus' text format, for the textfile collector of node_exporter.

Series are bounded by the hosts and by what is wrong with them: a check that passed has no series of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import get_args

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from orchestrator.model import FleetFinding, HostResult, Status
from orchestrator.report.summary import VERDICTS
from orchestrator.text import printable

__all__ = ["render"]

_QUIET = ("pass", "skip")


def render(
    results: Sequence[HostResult],
    fleet: Sequence[FleetFinding] = (),
    *,
    command: str,
    began_s: float,
    ended_s: float,
) -> str:
    """The text; times are seconds since the epoch."""
    registry = CollectorRegistry()
    ended = Gauge("kvmfleet_run_timestamp_seconds", "When the run ended.", ("command",), registry=registry)
    ended.labels(command).set(ended_s)
    took = Gauge("kvmfleet_run_duration_seconds", "How long the run took.", ("command",), registry=registry)
    took.labels(command).set(max(ended_s - began_s, 0.0))
    verdicts = Gauge("kvmfleet_host_verdict", "1 for the verdict of the host.", ("host", "verdict"), registry=registry)
    counts = Gauge("kvmfleet_host_findings", "How many findings the host has.", ("host", "status"), registry=registry)
    problems = Gauge(
        "kvmfleet_host_problem",
        "1 for each check that did not pass and was not skipped.",
        ("host", "check", "status"),
        registry=registry,
    )
    for result in results:
        host, findings = printable(result.host), result.judgement.findings
        statuses = Counter(finding.status for finding in findings)
        for verdict in VERDICTS:
            verdicts.labels(host, verdict).set(result.judgement.verdict == verdict)
        for status in get_args(Status):
            counts.labels(host, status).set(statuses[status])
        for finding in findings:
            if finding.status not in _QUIET:
                problems.labels(host, finding.check, finding.status).set(1)
    among = Gauge(
        "kvmfleet_fleet_problem",
        "1 for each comparison of the hosts that did not pass and was not skipped.",
        ("check", "status"),
        registry=registry,
    )
    for finding in fleet:
        if finding.status not in _QUIET:
            among.labels(finding.check, finding.status).set(1)
    return generate_latest(registry).decode()
