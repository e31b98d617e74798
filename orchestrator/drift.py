"""Compare how a host is with how it was when it was last good."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from orchestrator import snapshot
from orchestrator.model import Collected, Drift, DriftState, HostDrift
from orchestrator.snapshot import Snapshot

__all__ = ["Baseline", "compare", "judge"]


class Baseline(msgspec.Struct, frozen=True):
    """What a host should be like: its snapshot after the last validated provision, and what was accepted since."""

    items: Mapping[str, str]
    intent_digest: str = ""  # "" when the playbook was run without the orchestrator
    kvmfleet: str = ""  # the version that looked


def judge(
    collected: Collected, baseline: Baseline | None, *, intent: str, version: str, now: Snapshot | None = None
) -> HostDrift:
    """The state of one host, without since when. `intent` is the digest of what the inventory wants of it now.

    `now` is the snapshot of its evidence, where the caller has taken it already.
    """
    return msgspec.structs.replace(_judge(collected, baseline, intent, version, now), took_s=collected.took_s)


def _judge(
    collected: Collected, baseline: Baseline | None, intent: str, version: str, now: Snapshot | None
) -> HostDrift:
    host = collected.host
    if collected.evidence is None:
        state: DriftState = "unreachable" if collected.unreachable else "unknown"
        return HostDrift(host, state, problem=collected.problem or "the host gave no evidence", hint=collected.hint)
    if baseline is None:
        return HostDrift(
            host,
            "never-provisioned",
            problem=_stranger(collected),
            hint="Run `kvmfleet provision` for it: a host is its own baseline once it was provisioned and found good.",
        )
    now = now or snapshot.take(collected.evidence)
    items = compare(baseline, now, version=version)
    pending = bool(intent and baseline.intent_digest and intent != baseline.intent_digest)
    problem = "; ".join(f"{section}: {why}" for section, why in sorted(now.blind.items()))
    if items:
        return HostDrift(host, "drifted", items=items, pending=pending, problem=problem)
    if problem:
        return HostDrift(host, "unknown", pending=pending, problem=f"could not be looked at: {problem}")
    return HostDrift(host, "pending" if pending else "in-sync", pending=pending)


def compare(baseline: Baseline, now: Snapshot, *, version: str) -> tuple[Drift, ...]:
    """Every item that differs, in the order of their names.

    Left out is what cannot be told: items of sections that could not be collected, and, when another version of
    kvmfleet looked at that time, kinds of items that it did not know.
    """
    kinds = {item.partition(":")[0] for item in baseline.items}
    found = []
    for item in sorted({*baseline.items, *now.items}):
        kind = snapshot.kind(item)
        if kind is None or kind.section in now.blind or (kind.name not in kinds and baseline.kvmfleet != version):
            continue
        expected, seen = baseline.items.get(item), now.items.get(item)
        if expected != seen:
            found.append(Drift(item, expected, seen))
    return tuple(found)


def _stranger(collected: Collected) -> str:
    contract = collected.evidence.contract if collected.evidence else None
    if contract and contract.text:
        return "it carries a contract, and the history here knows of no provision: another controller's, perhaps"
    return "it was never provisioned"
