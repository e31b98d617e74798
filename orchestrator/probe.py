"""Which hosts a provision leaves alone, because it would make nothing else of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import msgspec

from orchestrator import snapshot
from orchestrator.drift import Baseline
from orchestrator.history.store import PastResult
from orchestrator.inventory import Host
from orchestrator.model.drift import Drift, DriftState, HostDrift
from orchestrator.model.finding import Verdict
from orchestrator.model.run import Boot, EarlierBoot, HostConverged, HostResult
from orchestrator.text import moment

__all__ = ["Known", "Look", "Which", "booted_before", "earlier_boot", "is_settled", "spared", "told"]

Which = Literal["needed", "all", "drifted"]
"""Hosts that the playbook runs on: those that are not as they should be, all of them, or only those that drift."""

GOOD: tuple[Verdict, ...] = ("proven", "degraded")
DEEP = ("uefi", "alpine")  # both start with what --boot firmware tries: QEMU, libvirt, firmware, disk, serial line
FLEET_WIDE = re.compile(r'"(auto|route|open)"|\{[{%]')
WHY: Mapping[DriftState, str] = {
    "in-sync": "no drift, and nothing new in the inventory or the roles",
    "pending": "what changed in the inventory or the roles is not rolled out by --drifted",
    "never-provisioned": "never provisioned, which --drifted does not do",
    "unreachable": "no answer, so nobody knows whether it drifted",
    "unknown": "nobody knows whether it drifted",
}


class Known(NamedTuple):
    """What the history knows of a host that was provisioned and found good."""

    baseline: Baseline
    verdict: Verdict  # when it was last looked at
    drift: tuple[Drift, ...] = ()  # that the last drift check saw, which knows since when


class Look(NamedTuple):
    """How a host is just before the playbook would run on it."""

    host: Host
    result: HostResult
    drift: HostDrift
    known: Known | None = None


def spared(
    looks: Iterable[Look], hosts: Iterable[Host], which: Which, intents: Mapping[str, str], version: str
) -> set[str]:
    """The names of those of `hosts` that the playbook is not run on."""
    if which == "drifted":
        return {look.host.name for look in looks if look.drift.state != "drifted"}
    fine = {look.host.name for look in looks if which == "needed" and _is_fine(look, intents, version)}
    together = {host.name for host in hosts if _chooses_in_the_fleet(host)}
    return fine if together <= fine else fine - together


def _is_fine(look: Look, intents: Mapping[str, str], version: str) -> bool:
    """In doubt it is not: a playbook with nothing to do costs only time."""
    if not look.known or look.drift.state != "in-sync":
        return False
    was, now = look.known.baseline, look.result.judgement.verdict
    asked_for_the_same = was.intent_digest == intents[look.host.name] and was.kvmfleet == version
    good = look.known.verdict in GOOD and now in GOOD and GOOD.index(now) <= GOOD.index(was.verdict)
    return asked_for_the_same and good and not _has_to_renew(look.result)


def _has_to_renew(result: HostResult) -> bool:
    """The role libvirt_remote makes new certificates in the last third of their life, long before a check warns."""
    found = result.collected.evidence
    return found is not None and any(
        one.not_after_s - found.collected_at_s < (one.not_after_s - one.not_before_s) / 3
        for one in found.remote.certificates.values()
    )


def _chooses_in_the_fleet(host: Host) -> bool:
    """Subnets are chosen, and compared, among the hosts of one run: those that take part in it do so together."""
    return bool(FLEET_WIDE.search(json.dumps(host.variables.get("libvirt_networks"), default=str)))


def told(look: Look) -> HostConverged:
    """In the place of what the playbook did to a host that was spared."""
    return HostConverged(look.host.name, "unchanged", notes=(WHY[look.drift.state],))


def earlier_boot(look: Look, boot: Boot, booted: PastResult | None) -> EarlierBoot | None:
    """The guest of `booted`, the last result with one; None where it says nothing of the host as it is now.

    It booted as deep as `boot` says, on this boot of the host, with everything as it is now, and all is well.
    """
    then, now = booted.evidence if booted else None, look.result.collected.evidence
    if not booted or not then or not now or boot.depth == "file" or look.result.judgement.verdict not in GOOD:
        return None
    as_deep = then.guest.depth == boot.depth or (boot.depth == "firmware" and then.guest.depth in DEEP)
    same = then.system.boot_id == now.system.boot_id and snapshot.take(then) == snapshot.take(now)
    found = EarlierBoot(booted.recorded_at_s, then.guest.depth, then.guest.domain_type)
    return found if as_deep and same else None


def is_settled(look: Look, boot: Boot, before: EarlierBoot | None) -> bool:
    """Whether the look, in which a guest executed, is all the proof that was asked for.

    It is with a guest that booted before, and where none is to boot or would help.
    """
    return before is not None or boot.depth in ("none", "proof") or look.result.judgement.verdict not in GOOD


def booted_before(result: HostResult, before: EarlierBoot) -> HostResult:
    """The result, which says of the guest when it booted."""
    summary = f"a domain booted at {moment(before.at_s)}, and nothing on the host changed since"
    findings = tuple(
        msgspec.structs.replace(finding, summary=summary) if finding.check == "guest.boot" else finding
        for finding in result.judgement.findings
    )
    judgement = msgspec.structs.replace(result.judgement, findings=findings)
    return msgspec.structs.replace(result, judgement=judgement, booted=before)
