"""Compare how a host is with how it was when it was last good."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from orchestrator import snapshot
from orchestrator.model.drift import Drift, DriftState, HostDrift
from orchestrator.model.evidence import Evidence
from orchestrator.model.finding import Verdict
from orchestrator.model.run import Collected
from orchestrator.snapshot import Snapshot

__all__ = ["Baseline", "judge", "left", "timed"]

MACHINE = "hardware:machine"


class Baseline(msgspec.Struct, frozen=True):
    """What a host should be like: its snapshot after the last validated provision, and what was accepted since."""

    items: Mapping[str, str]
    intent_digest: str = ""  # "" when the playbook was run without the orchestrator
    kvmfleet: str = ""  # the version that looked
    verdict: Verdict = "proven"  # proven or degraded
    left: Mapping[str, str | None] = {}  # how provisions left what they did not make as it should be


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
            problem=_stranger(collected.evidence),
            hint="Run `kvmfleet provision` for it: a host is its own baseline once it was provisioned and found good.",
        )
    now = now or snapshot.take(collected.evidence)
    items = _compare(baseline, now, version=version)
    pending = bool(intent and baseline.intent_digest and intent != baseline.intent_digest)
    problem = _unseen(now)
    if items:
        left = tuple(one.item for one in items if baseline.left.get(one.item, one.expected) == one.seen)
        return HostDrift(host, "drifted", items=items, left=left, pending=pending, problem=problem)
    if problem:
        return HostDrift(host, "unknown", pending=pending, problem=f"could not be looked at: {problem}")
    return HostDrift(host, "pending" if pending else "in-sync", pending=pending)


def _unseen(now: Snapshot) -> str:
    """What could not be collected, and why; each reason once."""
    reasons: dict[str, list[str]] = {}
    for section, why in sorted(now.blind.items()):
        reasons.setdefault(why, []).append(section)
    return "; ".join(f"{', '.join(sections)}: {why}" for why, sections in reasons.items())


def _compare(baseline: Baseline, now: Snapshot, *, version: str) -> tuple[Drift, ...]:
    """Every item that differs, in the order of their names.

    Left out is what cannot be told: items of sections that could not be collected, and, when another version of
    kvmfleet looked at that time, kinds of items that it did not know. So is what comes and goes with guests, and what
    was not looked at because an edited contract does not name it.
    """
    edited = baseline.items.get("contract") != now.items.get("contract")
    lent = snapshot.lent(baseline.items, now.items)
    kinds = {item.partition(":")[0] for item in baseline.items}
    found = []
    for item in sorted({*baseline.items, *now.items} - lent):
        kind = snapshot.kind(item)
        if kind is None or not kind.is_told(now.blind) or (kind.name not in kinds and baseline.kvmfleet != version):
            continue
        expected, seen = baseline.items.get(item), now.items.get(item)
        unnamed = edited and kind.tells_absence and None in (expected, seen)
        if expected != seen and not unnamed:
            found.append(Drift(item, expected, seen))
    return tuple(found)


def left(
    baseline: Baseline, before: Snapshot | None, after: Snapshot, *, intent: str, version: str
) -> tuple[Drift, ...]:
    """Drift that a play left as it found it, and that the next baseline must not take for granted.

    `before` is how the host was just before the play, None where it could not be looked at. What nobody saw then
    counts as left, unless the play was asked for something else than the one before. On another machine, or the same
    one installed anew, nothing is expected.
    """
    then, now = baseline.items.get(MACHINE), after.items.get(MACHINE)
    if then and now and then != now:
        return ()
    asked_for_the_same = intent == baseline.intent_digest
    items = _compare(baseline, after, version=version)
    return tuple(item for item in items if _was_so(item, before, unseen=asked_for_the_same))


def timed(items: Iterable[Drift], before: Iterable[Drift], now_s: float) -> tuple[Drift, ...]:
    """The items with the time since when they are so: that of an equal one among those of `before`, or now."""
    since = {(item.item, item.expected, item.seen): item.since_s for item in before}
    return tuple(
        msgspec.structs.replace(item, since_s=since.get((item.item, item.expected, item.seen), now_s)) for item in items
    )


def _was_so(item: Drift, before: Snapshot | None, *, unseen: bool) -> bool:
    """Whether the item was already what it is now; `unseen` where nobody could look."""
    kind = snapshot.kind(item.item)
    if before is None or kind is None or not kind.is_told(before.blind):
        return unseen
    if kind.tells_absence and item.item not in before.items:  # the contract of then did not name it
        return unseen
    return before.items.get(item.item) == item.seen


def _stranger(evidence: Evidence) -> str:
    if evidence.contract.text:
        return "it carries a contract, and the history here knows of no provision: another controller's, perhaps"
    return "it is not provisioned"
