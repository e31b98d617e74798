"""What a run is told to do, and what it learns about each host."""

from __future__ import annotations

from typing import Literal

import msgspec

from orchestrator.model.contract import Contract, Profile
from orchestrator.model.drift import Drift
from orchestrator.model.evidence import Evidence
from orchestrator.model.finding import Judgement

__all__ = [
    "Depth",
    "Boot",
    "TaskFailure",
    "Change",
    "HostConverged",
    "Step",
    "Collected",
    "EarlierBoot",
    "HostResult",
    "Message",
]

Depth = Literal["none", "proof", "firmware", "uefi", "alpine", "file"]
"""How far a validation goes: no guest, 20 bytes through the KVM ioctls, or a libvirt domain that boots: a boot sector,
the shell of UEFI firmware, an unmodified Linux, or an image of the user's."""


class Boot(msgspec.Struct, frozen=True):
    """How a validation proves: the depth, and what that needs."""

    depth: Depth = "firmware"
    image: str = ""  # file: an absolute path on the host
    expect: str = ""  # file: a regular expression for its serial line, "" for anything
    luggage: str = ""  # alpine: a file of the controller that goes along with the question
    parts: tuple[tuple[str, int], ...] = ()  # what is in it, end to end: names and sizes
    active: bool = False  # also what leaves its mark while it lasts, such as a volume made and deleted


class TaskFailure(msgspec.Struct, frozen=True):
    """The task that stopped a host."""

    task: str  # "role : task"
    message: str
    role: str = ""
    item: str = ""


class Change(msgspec.Struct, frozen=True):
    """What one task would change on one host; safe to print."""

    task: str  # "role : task"
    role: str = ""
    things: tuple[str, ...] = ()  # files, packages, units, or the words of the module; empty where nothing is named
    diff: str = ""  # with --diff
    hidden: bool = False  # it may hold a secret, so that Ansible does not even tell whether it changed (no_log)


class HostConverged(msgspec.Struct, frozen=True):
    """What a playbook did to one host."""

    host: str
    # skipped: the playbook never got to it; unchanged: it was not run there, as it would make nothing else of the host
    outcome: Literal["ok", "failed", "unreachable", "skipped", "unchanged"]
    ok: int = 0
    changed: int = 0
    skipped: int = 0
    failed: int = 0
    failure: TaskFailure | None = None
    notes: tuple[str, ...] = ()  # what a module had to say to people, or why it is unchanged; safe to print
    changes: tuple[Change, ...] = ()  # of check mode, the first hundred; `changed` counts them all


class Step(msgspec.Struct, frozen=True):
    """How far a guest has come that boots on a host just now."""

    host: str
    text: str  # safe to print


class Collected(msgspec.Struct, frozen=True):
    """One host's answer, or why there is none."""

    host: str
    path: Literal["ssh", "local", "ansible", "file"]  # file: a recording that cannot be read
    evidence: Evidence | None = None
    problem: str = ""  # what and why, one line, no terminal escapes
    hint: str = ""
    bytes_sent: int = 0
    bytes_received: int = 0
    unreachable: bool = False  # False with a problem: the host answered, but not with evidence
    recorded_at_s: float | None = None  # where no host was asked: when the recording was made
    took_s: float | None = (
        None  # how long asking it took; None through Ansible, which is asked for all its hosts at once
    )


class EarlierBoot(msgspec.Struct, frozen=True):
    """A guest that booted on a host before, which was not booted again as nothing on the host changed since."""

    at_s: float  # since the epoch, by the controller's clock
    depth: str
    domain_type: str


class HostResult(msgspec.Struct, frozen=True):
    """One line of a report: everything a run learned about one host."""

    host: str
    judgement: Judgement
    collected: Collected
    contract: Contract | None = None
    converged: HostConverged | None = None
    profile: Profile = "production"  # that it was judged by
    groups: tuple[str, ...] = ()  # of the inventory that it is in
    left: tuple[Drift, ...] = ()  # drift that the playbook left as it found it
    booted: EarlierBoot | None = None  # in the place of a guest of this run


class Message(msgspec.Struct, frozen=True):
    """Plain text for people."""

    title: str
    body: str
    kind: Literal["info", "success", "failure"]
