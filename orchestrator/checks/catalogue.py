"""All checks, in the order in which they depend on each other."""

from __future__ import annotations

from orchestrator.checks import contract, cpu, guest, host, kernel, kvm, libvirt, qemu
from orchestrator.checks.registry import Check

__all__ = ["catalogue", "explain", "markdown"]

# The chain: what is further down cannot work where something further up does not.
GROUPS = (host, cpu, contract, kernel, kvm, qemu, libvirt, guest)


def catalogue() -> tuple[Check, ...]:
    """Every check; what one requires comes before it."""
    return tuple(check for group in GROUPS for check in group.CHECKS)


def explain(id: str) -> Check | None:
    """The check with that id."""
    return next((check for check in catalogue() if check.id == id), None)


def markdown() -> str:
    """docs/checks.md."""
    return PREFACE + "".join(_section(check) for check in catalogue())


PREFACE = """\
# The checks

In the order of the chain. The first that fails is the root cause; what requires it is skipped and names it.
`kvmfleet explain CHECK-ID` shows the same text. This file is made by `python -m orchestrator.checks`.
"""


def _section(check: Check) -> str:
    needs = ", ".join(f"`{name}`" for name in check.requires)
    parts = [
        f"## {check.id}",
        f"{check.title}." + (f" Requires {needs}." if needs else ""),
        f"**Proves:** {check.explanation.proves}",
        f"**How:** {check.explanation.how}",
        f"**To do:** {check.explanation.todo}",
    ]
    if check.lab_warns:
        parts.append("In the profile lab a failure is a warning.")
    return "\n" + "\n\n".join(parts) + "\n"
