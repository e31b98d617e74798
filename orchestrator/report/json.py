"""The report as one JSON document, for machines."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from orchestrator import __version__
from orchestrator.model import FleetFinding, HostConverged, HostResult
from orchestrator.report.summary import counts

__all__ = ["SCHEMA", "ascii_only", "render", "render_pretended"]

SCHEMA = 1


def render(results: Sequence[HostResult], fleet: Sequence[FleetFinding] = (), *, command: str) -> str:
    """Pretty-printed JSON: schema, kvmfleet version, command, summary by verdict, what the hosts are together, and
    every host with its findings, evidence and contract. Strings from hosts are as they came; JSON escapes what a
    terminal could act on.
    """
    document = {
        "schema": SCHEMA,
        "kvmfleet": __version__,
        "command": command,
        "summary": counts(results),
        "fleet": list(fleet),
        "hosts": [_host(result) for result in results],
    }
    return ascii_only(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())


def render_pretended(converged: Sequence[HostConverged], *, command: str, check_mode: bool = True) -> str:
    """The same where nothing was proven, as in check mode: no verdicts, only what was, or would have been, done."""
    document = {
        "schema": SCHEMA,
        "kvmfleet": __version__,
        "command": command,
        "check_mode": check_mode,
        "hosts": [{"name": host.host, "converged": host} for host in converged],
    }
    return ascii_only(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())


def _host(result: HostResult) -> dict[str, object]:
    return {
        "name": result.host,
        "verdict": result.judgement.verdict,
        "cause": result.judgement.cause,
        "findings": result.judgement.findings,
        "converged": result.converged,
        "collected": {
            "path": result.collected.path,
            "problem": result.collected.problem,
            "bytes_sent": result.collected.bytes_sent,
            "bytes_received": result.collected.bytes_received,
        },
        "contract": result.contract,
        "evidence": result.collected.evidence,
    }


def ascii_only(text: str) -> str:
    """C1 controls and bidirectional overrides are legal in JSON and act on terminals; write them as \\uXXXX."""
    return "".join(c if c.isprintable() or c == "\n" else _escape(c) for c in text)


def _escape(character: str) -> str:
    raw = character.encode("utf-16-be")
    return "".join(f"\\u{raw[i]:02x}{raw[i + 1]:02x}" for i in range(0, len(raw), 2))
