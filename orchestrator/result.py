"""What was collected from a host, judged, beside what the playbook did there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, get_args

import msgspec

from orchestrator.checks.host import CONVERGED, DRIFT
from orchestrator.inventory import Host
from orchestrator.judge import judge, read_contract, silence
from orchestrator.model.contract import Profile
from orchestrator.model.drift import Drift
from orchestrator.model.finding import Finding, Judgement
from orchestrator.model.run import Collected, HostConverged, HostResult
from orchestrator.text import listed, printable
from orchestrator.waivers import Waivers

__all__ = ["STANDARDS", "Standards", "judged", "profile_of", "unheard", "with_left"]


class Standards(NamedTuple):
    """What hosts are judged by."""

    profile: Profile | None = None  # instead of the one that each host was told to have
    waivers: Waivers = Waivers()


STANDARDS = Standards()


def judged(
    collected: Collected,
    converged: HostConverged | None,
    groups: tuple[str, ...],
    profile: Profile,
    waivers: Waivers,
) -> HostResult:
    """`converged` is what the playbook did there, if it ran; the waivers are those of the whole fleet."""
    host = collected.host
    contract, judgement = None, silence(collected)
    if collected.evidence:
        contract = read_contract(collected.evidence)
        judgement = judge(collected.evidence, contract, profile, waivers.of(host, groups))
    return HostResult(host, _with_play(judgement, converged), collected, contract, converged, profile, groups)


def unheard(host: str) -> Collected:
    """In the place of an answer that nobody gave."""
    return Collected(host, "ssh", problem="the collector gave no answer for it")


def profile_of(host: Host, collected: Collected | None) -> Profile:
    """As the host was told; before the first rollout, as it will be told. The strict one where Jinja decides."""
    contract = read_contract(collected.evidence) if collected and collected.evidence else None
    if contract:
        return contract.profile
    wanted = host.variables.get("kvmfleet_profile")
    return next((profile for profile in get_args(Profile) if profile == wanted), "production")


def _with_play(judgement: Judgement, converged: HostConverged | None) -> Judgement:
    """A host that the playbook did not finish is never good, whatever its evidence says of what was there before."""
    if converged is None or converged.outcome in ("ok", "unchanged") or judgement.verdict == "unreachable":
        return judgement
    finding = _play_finding(converged)
    findings = (finding, *judgement.findings)
    if finding.status == "fail":
        return Judgement("failed", findings, finding)
    return Judgement("failed" if judgement.verdict == "failed" else "unknown", findings, judgement.cause or finding)


def _play_finding(converged: HostConverged) -> Finding:
    """The failed task as a finding, so that every report shows it where it shows all others."""
    # The same words for every host: a report tells hosts that share a failure once.
    fix = "Settle that, then run the same command again; what is done is not done twice."
    if converged.failure is None:
        return Finding(CONVERGED.id, "error", "the playbook never got to this host", "the playbook finishes", "", fix)
    task, item = converged.failure.task, f" ({converged.failure.item})" if converged.failure.item else ""
    where = f"task {task}{item}" if converged.outcome == "failed" else f"unreachable at task {task}"
    summary = f"{where}: {converged.failure.message}"
    return Finding(CONVERGED.id, "fail", summary, "the playbook finishes", converged.outcome, fix)


def with_left(result: HostResult, left: tuple[Drift, ...]) -> HostResult:
    """The result of a host on which the playbook left this drift as it found it: good enough it is, but not proven."""
    finding, (verdict, findings, cause) = _drift_finding(left), msgspec.structs.astuple(result.judgement)
    judgement = Judgement("degraded" if verdict == "proven" else verdict, (finding, *findings), cause or finding)
    return msgspec.structs.replace(result, left=left, judgement=judgement)


def _drift_finding(left: Sequence[Drift]) -> Finding:
    return Finding(
        DRIFT.id,
        "warn",
        f"the playbook left drift as it found it: {listed([item.item for item in left])}",
        printable(left[0].expected or "nothing", 160),
        printable(left[0].seen or "nothing", 160),
        "`kvmfleet drift --diff` shows it. Repair it on the host, or say that it is fine with `kvmfleet drift accept`.",
    )
