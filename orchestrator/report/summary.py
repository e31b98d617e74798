"""Counts and the exit code of a run: the part that every form of report shares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from orchestrator.model.finding import Finding, Verdict
from orchestrator.model.run import HostConverged, HostResult
from orchestrator.text import moment

__all__ = ["VERDICTS", "counts", "exit_code", "pretended_exit_code", "replayed", "worth_showing"]

VERDICTS: tuple[Verdict, ...] = ("proven", "degraded", "failed", "unreachable", "unknown")


def counts(results: Sequence[HostResult]) -> Mapping[Verdict, int]:
    """How many hosts have each verdict; every verdict is there, in the order of VERDICTS."""
    seen = Counter(result.judgement.verdict for result in results)
    return {verdict: seen[verdict] for verdict in VERDICTS}


def exit_code(results: Sequence[HostResult], fleet: Sequence[Finding] = (), *, strict: bool = False) -> int:
    """0 all good, 2 a check failed, 1 a host could not be judged (wins over 2). `strict`: warnings are failures."""
    seen, together = counts(results), {finding.status for finding in fleet}
    if not results or seen["unreachable"] or seen["unknown"] or "error" in together:
        return 1
    if seen["failed"] or "fail" in together or (strict and (seen["degraded"] or "warn" in together)):
        return 2
    return 0


def pretended_exit_code(converged: Sequence[HostConverged]) -> int:
    """The exit code of check mode, where nothing was proven: only whether every host could be gone through."""
    outcomes = {host.outcome for host in converged}
    if not outcomes or outcomes & {"unreachable", "skipped"}:
        return 1
    return 2 if "failed" in outcomes else 0


def replayed(results: Sequence[HostResult]) -> str:
    """The sentence that a replay begins with, so that nobody takes it for news; "" where hosts were asked."""
    times = [at for result in results if (at := result.collected.recorded_at_s) is not None]
    if not times:
        unread = any(result.collected.path == "file" for result in results)
        return "Replay of evidence of which no file can be read. No host was asked." if unread else ""
    first, last = moment(min(times)), moment(max(times))
    when = f"at {first}" if first == last else f"from {first} to {last}"
    return f"Replay of evidence that was recorded {when}. No host was asked."


def worth_showing(result: HostResult) -> tuple[Finding, ...]:
    """What a person should read about a host: failures, errors, warnings and what is waived, the root cause first."""
    bad = [f for f in result.judgement.findings if f.status in ("fail", "error", "warn", "waived")]
    cause = result.judgement.cause
    if cause is None:
        return tuple(bad)
    return (cause, *(f for f in bad if f.check != cause.check))
