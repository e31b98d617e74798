"""All faults, in the order of the chain of checks."""

from __future__ import annotations

from orchestrator.errors import LabError
from orchestrator.lab.faults import guests, host, kernel, kvm, libvirt, network, remote, security, storage
from orchestrator.lab.faults.fault import Fault
from orchestrator.text import suggestion

__all__ = ["catalogue", "find"]

GROUPS = (host, kernel, kvm, libvirt, security, remote, network, storage, guests)


def catalogue() -> tuple[Fault, ...]:
    """Every fault."""
    return tuple(fault for group in GROUPS for fault in group.FAULTS)


def find(id: str) -> Fault:
    """The fault with that id.

    Raises:
        LabError: There is none.
    """
    known = {fault.id: fault for fault in catalogue()}
    if id not in known:
        hint = suggestion(id, known, "kvmfleet lab break --list shows all of them.")
        raise LabError(f"There is no fault {id!a}.", hint=hint)
    return known[id]
