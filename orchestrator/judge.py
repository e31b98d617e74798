"""From one host's evidence to findings, the root cause, and the one word."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence, Set
from types import MappingProxyType

import msgspec

from orchestrator.checks import fleet
from orchestrator.checks.catalogue import catalogue
from orchestrator.checks.contract import read
from orchestrator.checks.registry import Case, Check, Topic
from orchestrator.model.contract import Contract, Profile
from orchestrator.model.evidence import Evidence
from orchestrator.model.finding import Finding, FleetFinding, Judgement, Verdict, Waiver
from orchestrator.model.run import Collected, HostResult
from orchestrator.text import printable

__all__ = ["judge", "judge_fleet", "read_contract", "silence"]

log = logging.getLogger(__name__)

REPORT = "This is a fault of kvmfleet: report it, with what --save-evidence wrote."


def read_contract(evidence: Evidence) -> Contract | None:
    """The contract that the host carries, or None; the check contract.present says why."""
    contract = read(evidence)
    return None if isinstance(contract, str) else contract


def judge(
    evidence: Evidence,
    contract: Contract | None,
    profile: Profile,
    waivers: Mapping[str, Waiver] = MappingProxyType({}),
) -> Judgement:
    """Every check, in the order of the chain. `waivers` are those of this host: check -> who answers for its finding.

    What requires a check that was waived is skipped because of it: the waiver covers the consequences, too. Not that no
    guest was executed, however: that host is unknown.
    """
    case = Case(evidence, contract, profile)
    blame: dict[str, str] = {}  # check that did not pass, or was skipped for another -> the check to blame
    tolerated: set[str] = set()  # failures that the profile makes warnings
    findings = []
    for check in catalogue():
        waiver = waivers.get(check.id)
        tolerable = profile in check.warns_in
        finding = _explained(check, case, blame, powerless=frozenset() if tolerable else tolerated)
        if finding.cause or finding.status in ("fail", "error"):
            blame[check.id] = finding.cause or check.id
        if finding.status == "fail" and tolerable:
            finding = msgspec.structs.replace(finding, status="warn")
            if not (waiver and waiver.holds):
                tolerated.add(check.id)
        if waiver and finding.status in ("fail", "warn"):
            finding = _waived(finding, waiver)
        findings.append(finding)
    verdict = _verdict(findings, evidence)
    return Judgement(verdict, tuple(findings), _cause(verdict, findings))


def _explained(check: Check, case: Case, blame: Mapping[str, str], *, powerless: Set[str]) -> Finding:
    """The check's finding, or a skip that names whose fault it is.

    `powerless` are failures that excuse no other. What a lab tolerates still stops the checks that require it, but a
    lab without KVM that cannot boot a guest under TCG either has failed.
    """
    blocker = next((blame[name] for name in check.requires if name in blame), "")
    if blocker:
        return Finding(check.id, "skip", f"not looked at, because of {blocker}", cause=blocker)
    finding = _found(check, case)
    culprits = (blame[name] for name in check.explained_by if name in blame)
    culprit = next((name for name in culprits if name not in powerless), "")
    if culprit and finding.status in ("fail", "warn"):
        return msgspec.structs.replace(finding, status="skip", cause=culprit)
    return finding


def _found(check: Check, case: Case) -> Finding:
    """What the check finds. An answer that it was not made for costs this finding, and no other check or host."""
    try:
        return check.finding(case)
    except Exception as e:
        return Finding(check.id, "error", _upset(check, e), fix=REPORT)


def _upset(check: Topic, error: Exception) -> str:
    """What is said of a check that cannot cope with what a host answered, whatever it was."""
    log.debug("%s", check.id, exc_info=error)
    return f"the check itself failed: {type(error).__name__}: {printable(str(error))}"


def _waived(finding: Finding, waiver: Waiver) -> Finding:
    """The finding under its waiver; one that is over changes nothing but the words."""
    when = f"waived until {waiver.expires}" if waiver.holds else f"its waiver expired on {waiver.expires}"
    summary = f"{finding.summary} ({when}, owner {waiver.owner}: {waiver.reason})"
    return msgspec.structs.replace(finding, status="waived" if waiver.holds else finding.status, summary=summary)


def _verdict(findings: list[Finding], evidence: Evidence) -> Verdict:
    seen = {finding.status for finding in findings}
    if "fail" in seen:
        return "failed"
    if "error" in seen or not _executed(evidence):
        return "unknown"
    return "degraded" if "warn" in seen else "proven"


def _executed(evidence: Evidence) -> bool:
    """Nothing is called proven that did not execute a guest."""
    return evidence.kvm.execution.outcome == "works" or evidence.guest.outcome == "works"


def _cause(verdict: Verdict, findings: list[Finding]) -> Finding | None:
    """The first finding, up the chain, that made the verdict what it is."""
    by_check = {finding.check: finding for finding in findings}
    status = {"failed": "fail", "unknown": "error", "degraded": "warn"}.get(verdict)
    first = next((finding for finding in findings if finding.status == status), None)
    if verdict == "unknown" and not first:  # complete, but no guest was executed
        skipped = by_check["kvm.exec"]
        return by_check.get(skipped.cause, skipped)
    return first


def judge_fleet(results: Iterable[HostResult]) -> tuple[FleetFinding, ...]:
    """What the hosts that gave evidence are together; nothing where there is only one."""
    answers = [(result.host, result.collected.evidence, result.contract) for result in results]
    members = [fleet.Member(host, evidence, contract) for host, evidence, contract in answers if evidence]
    return tuple(_found_among(members, check) for check in fleet.CHECKS) if len(members) > 1 else ()


def _found_among(members: Sequence[fleet.Member], check: fleet.FleetCheck) -> FleetFinding:
    try:
        return check.finding(members)
    except Exception as e:
        return FleetFinding(check.id, "error", _upset(check, e), fix=REPORT)


def silence(collected: Collected) -> Judgement:
    """A host that gave no evidence: unreachable, or unknown when it answered something else. Never good."""
    check = "host.reachable" if collected.unreachable else "host.evidence"
    verdict: Verdict = "unreachable" if collected.unreachable else "unknown"
    finding = Finding(
        check, "error", collected.problem or "the host gave no evidence", "evidence", "none", collected.hint
    )
    return Judgement(verdict, (finding,), finding)
