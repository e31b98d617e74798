"""All checks, in the order in which they depend on each other, and what else a finding can be about."""

from __future__ import annotations

from orchestrator.checks import (
    cgroups,
    clock,
    confidential,
    contract,
    cpu,
    fleet,
    guest,
    guests,
    host,
    iommu,
    kernel,
    kvm,
    leaks,
    libvirt,
    limits,
    memory,
    mounts,
    network,
    qemu,
    remote,
    security,
    storage,
    tuning,
    upkeep,
    windows,
)
from orchestrator.checks.registry import Check, Topic
from orchestrator.text import suggestion

__all__ = ["catalogue", "explain", "markdown", "meant", "topics"]

# The chain: what is further down cannot work where something further up does not.
GROUPS = (
    host,
    clock,
    cpu,
    contract,
    kernel,
    memory,
    tuning,
    iommu,
    kvm,
    confidential,
    qemu,
    mounts,
    libvirt,
    cgroups,
    limits,
    security,
    leaks,
    remote,
    network,
    storage,
    guests,
    upkeep,
    guest,
    windows,
)


def catalogue() -> tuple[Check, ...]:
    """Every check; what one requires comes before it."""
    return tuple(check for group in GROUPS for check in group.CHECKS)


def topics() -> tuple[Topic, ...]:
    """Everything that a finding can be about: what the rollout finds, the checks of a host, those of the fleet."""
    return (host.CONVERGED, host.DRIFT, *catalogue(), *fleet.CHECKS)


def explain(id: str) -> Topic | None:
    """The topic with that id."""
    return next((topic for topic in topics() if topic.id == id), None)


def meant(id: str) -> str:
    """The hint for an id that no topic has."""
    return suggestion(id, [topic.id for topic in topics()], "`kvmfleet explain` lists all checks.")


def markdown() -> str:
    """docs/checks.md."""
    return PREFACE + "".join(_section(topic) for topic in topics())


PREFACE = """\
# The checks

In the order of the chain. The first that fails is the root cause; what requires it is skipped and names it.
The last ones, of the group `fleet`, compare hosts with each other.
`kvmfleet explain CHECK-ID` shows the same text. This file is made by `python -m orchestrator.checks`.
"""


def _section(topic: Topic) -> str:
    needs = ", ".join(f"`{name}`" for name in topic.requires)
    parts = [
        f"## {topic.id}",
        f"{topic.title}." + (f" Requires {needs}." if needs else ""),
        f"**Proves:** {topic.explanation.proves}",
        f"**How:** {topic.explanation.how}",
        f"**To do:** {topic.explanation.todo}",
    ]
    if topic.leniency:
        parts.append(topic.leniency)
    return "\n" + "\n\n".join(parts) + "\n"
