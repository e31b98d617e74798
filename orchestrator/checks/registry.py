"""What a check is, and how a function becomes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from orchestrator.model.contract import Contract, Profile
from orchestrator.model.evidence import Evidence
from orchestrator.model.finding import Finding

__all__ = [
    "Case",
    "Check",
    "Explanation",
    "Topic",
    "check",
    "differences",
    "failed",
    "not_applicable",
    "numbers",
    "passed",
    "undecided",
    "warned",
]


class Case(msgspec.Struct, frozen=True):
    """All that a check may look at. `contract` is None on a host that was never provisioned."""

    evidence: Evidence
    contract: Contract | None
    profile: Profile

    @property
    def wishes(self) -> Contract:
        """The contract, or what every host is expected to be."""
        return self.contract or Contract(schema=self.evidence.schema)

    @property
    def kvm_runs(self) -> bool:
        """The kernel's KVM accepted the processor, whatever the flags and the list of modules say."""
        kvm = self.evidence.kvm
        return kvm.registered or kvm.api_version == 12 or kvm.execution.outcome == "works"


class Explanation(msgspec.Struct, frozen=True):
    """What `kvmfleet explain` tells about a check."""

    proves: str
    how: str
    todo: str


Look = Callable[[Case], Finding]


class Topic(msgspec.Struct, frozen=True, kw_only=True):
    """What a finding is about: a stable id, and what `kvmfleet explain` tells."""

    id: str
    title: str
    explanation: Explanation
    requires: tuple[str, ...] = ()
    warns_in: tuple[Profile, ...] = ()  # the profiles in which a failure is only a warning

    @property
    def leniency(self) -> str:
        """The sentence about `warns_in`; "" where every profile is strict."""
        profiles = f"profile{'s' if len(self.warns_in) > 1 else ''} {' and '.join(self.warns_in)}"
        return f"In the {profiles} a failure is a warning." if self.warns_in else ""


class Check(Topic, frozen=True, kw_only=True):
    """A topic that evidence decides.

    A check is skipped when one of `requires` failed. One of `explained_by` that failed turns only a failure or a
    warning of this check into a skip: what passed all the same, passed. In the profiles `warns_in` a failure is a
    warning; the judge does that.
    """

    sections: tuple[str, ...]  # of the evidence; one that could not be collected makes the finding an error
    explained_by: tuple[str, ...]
    look: Look

    def finding(self, case: Case) -> Finding:
        """What is found, before anything is known about other checks."""
        errors = case.evidence.errors
        missing = next((section for section in self.sections if section in errors), None)
        if missing:
            summary = f"could not be looked at: {missing}: {errors[missing]}"
            return Finding(
                self.id, "error", summary, fix="Run `kvmfleet validate` again; if it stays, look at the host."
            )
        return msgspec.structs.replace(self.look(case), check=self.id)


def check(
    id: str,
    title: str,
    *,
    sections: tuple[str, ...],
    proves: str,
    how: str,
    todo: str,
    requires: tuple[str, ...] = (),
    explained_by: tuple[str, ...] = (),
    warns_in: tuple[Profile, ...] = (),
) -> Callable[[Look], Check]:
    """Make a check of the function below."""
    return lambda look: Check(
        id=id,
        title=title,
        explanation=Explanation(proves, how, todo),
        requires=requires,
        warns_in=warns_in,
        sections=sections,
        explained_by=explained_by,
        look=look,
    )


def passed(summary: str) -> Finding:
    return Finding("", "pass", summary)


def failed(summary: str, *, fix: str, expected: str = "", seen: str = "") -> Finding:
    return Finding("", "fail", summary, expected, seen, fix)


def warned(summary: str, *, fix: str, expected: str = "", seen: str = "") -> Finding:
    return Finding("", "warn", summary, expected, seen, fix)


def undecided(summary: str, *, fix: str) -> Finding:
    """The question made no sense here, so the host is neither good nor bad."""
    return Finding("", "error", summary, fix=fix)


def not_applicable(reason: str) -> Finding:
    """Nothing to be found here, for a reason that is no failure."""
    return Finding("", "skip", reason)


def differences(wanted: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Keys whose values differ, as "key is A, not B"."""
    return [
        f"{key} is {found[key]}, not {value}" if key in found else f"{key} is not set, not {value}"
        for key, value in sorted(wanted.items())
        if key not in found or plain(found[key]) != plain(value)
    ]


def plain(value: str) -> str:
    """One spelling for the values that kernel and libvirt write in several ways: Y is 1, "x" is x."""
    bare = value.strip().replace('"', "").replace(" ", "")
    return {"y": "1", "yes": "1", "true": "1", "n": "0", "no": "0", "false": "0"}.get(bare.lower(), bare)


MOST_PROCESSORS = 8192  # of any kernel


def numbers(text: str) -> set[int]:
    """0-2,5 is 0, 1, 2 and 5. Of a list of processors, as the kernel writes it."""
    found: set[int] = set()
    for part in plain(text).split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal() and int(last or first) < MOST_PROCESSORS:
            found |= set(range(int(first), int(last or first) + 1))
    return found
