"""Reports as metrics in Prometheus' text format, for the textfile collector of node_exporter.

Series are bounded by the hosts and by what is wrong with them: a check that passed has no series of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import get_args

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from orchestrator.model.drift import DriftState, HostDrift
from orchestrator.model.finding import FleetFinding, Status
from orchestrator.model.run import HostResult
from orchestrator.report.summary import VERDICTS
from orchestrator.text import printable

__all__ = ["render", "render_drift"]

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
    registry = _registry(command, began_s, ended_s)
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


def render_drift(hosts: Sequence[HostDrift], *, began_s: float, ended_s: float) -> str:
    """The text for a drift check; times are seconds since the epoch.

    A time that is not known has no series: a zero would be 1970.
    """
    registry = _registry("drift", began_s, ended_s)
    name, by_host = "kvmfleet_host_drift", ("host",)
    states = Gauge(f"{name}_state", "1 for the state of the host.", ("host", "state"), registry=registry)
    pending = Gauge(f"{name}_pending", "1 where a changed inventory is not rolled out.", by_host, registry=registry)
    items = Gauge(f"{name}_items", "How many items drifted.", by_host, registry=registry)
    told = Gauge(
        f"{name}_check_last_success_timestamp_seconds",
        "When it could last be told whether the host drifted.",
        by_host,
        registry=registry,
    )
    took = Gauge(f"{name}_check_duration_seconds", "How long asking the host took.", by_host, registry=registry)
    for found in hosts:
        host = printable(found.host)
        for state in get_args(DriftState):
            states.labels(host, state).set(found.state == state)
        pending.labels(host).set(found.pending)
        items.labels(host).set(len(found.items))
        if found.told_s is not None:
            told.labels(host).set(found.told_s)
        if found.took_s is not None:
            took.labels(host).set(found.took_s)
    return generate_latest(registry).decode()


def _registry(command: str, began_s: float, ended_s: float) -> CollectorRegistry:
    """With what every run tells of itself."""
    registry = CollectorRegistry()
    ended = Gauge("kvmfleet_run_timestamp_seconds", "When the run ended.", ("command",), registry=registry)
    ended.labels(command).set(ended_s)
    took = Gauge("kvmfleet_run_duration_seconds", "How long the run took.", ("command",), registry=registry)
    took.labels(command).set(max(ended_s - began_s, 0.0))
    return registry
