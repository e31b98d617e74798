"""Breaks hosts of labs on purpose, and heals them.

The lab's record knows which faults are in force on which host: one is written down before the first step of it is
taken, and crossed out after the last step back, so that a fault outlives no interruption unseen.
"""

from __future__ import annotations

import msgspec

from orchestrator.errors import LabError
from orchestrator.lab import labs, record
from orchestrator.lab.faults import catalogue
from orchestrator.lab.faults.fault import Fault, heal_program, inject_program
from orchestrator.lab.record import Lab, LabHost
from orchestrator.lab.spec import SYSTEMS, Progress

__all__ = ["heal", "inject"]

_LIMIT_S = 180.0  # a package that is installed again in a machine in software
_AS_ROOT = "sudo -n sh"


def inject(host: str, id: str, *, progress: Progress) -> Fault:
    """Breaks a host with a fault of the catalogue. One that fails half way is taken back again.

    Raises:
        LockedError: Somebody changes the lab, or provisions this host.
        LabError: There is no such fault or host, the host cannot express it or has it already, or it failed.
    """
    fault = catalogue.find(id)
    lab, target = labs.running(labs.lab_of(host), host)
    _refuse(fault, lab, target)
    with labs.alone(lab, target, "lab break"):
        target = _fresh(target)
        if fault.id in target.faults:
            raise LabError(f"{host} is broken with {fault.id} already.", hint=f"Heal it: kvmfleet lab heal {host}")
        _note(target, (*target.faults, fault.id))
        try:
            labs.ask(lab, target, _AS_ROOT, stdin=inject_program(fault), timeout_s=_LIMIT_S)
        except LabError as e:
            raise _failed(e, fault, lab, target) from e
        progress(f"{host}: {fault.id}: {fault.says}")
    return fault


def heal(host: str, id: str | None = None, *, progress: Progress) -> tuple[str, ...]:
    """Takes back one fault of a host, or all that it has, the last one first; the ids of what was healed.

    Raises:
        LockedError: Somebody changes the lab, or provisions this host.
        LabError: There is no such host, it does not have that fault, or it cannot be healed.
    """
    lab, target = labs.running(labs.lab_of(host), host)
    with labs.alone(lab, target, "lab heal"):
        target = _fresh(target)
        if id is not None and id not in target.faults:
            has = f"It has {', '.join(target.faults)}." if target.faults else "Nothing of it was broken."
            raise LabError(f"{host} is not broken with {catalogue.find(id).id}.", hint=has)
        healed = (id,) if id is not None else tuple(reversed(target.faults))
        for each in healed:
            _heal(catalogue.find(each), lab, target)
            progress(f"{host}: {each}: healed")
    return healed


def _refuse(fault: Fault, lab: Lab, host: LabHost) -> None:
    if lab.provider not in fault.providers:
        able = " and ".join(fault.providers)
        raise LabError(
            f"{host.name} is a {lab.provider}, which cannot have the fault {fault.id}: {fault.why}.",
            hint=f"Only a host of the provider {able} can: kvmfleet lab up real --provider {fault.providers[0]}",
        )
    if host.system not in fault.systems:
        known = ", ".join(SYSTEMS[system].title for system in fault.systems)
        raise LabError(f"The fault {fault.id} is written for {known}, not for {host.system}, which {host.name} runs.")


def _fresh(host: LabHost) -> LabHost:
    """The host as it is recorded now that nobody else can change that."""
    return labs.find(labs.lab_of(host.name)).host(host.name)


def _note(host: LabHost, faults: tuple[str, ...]) -> None:
    lab = labs.find(labs.lab_of(host.name))
    record.write(lab.with_host(msgspec.structs.replace(host, faults=faults)))


def _heal(fault: Fault, lab: Lab, host: LabHost) -> None:
    try:
        labs.ask(lab, host, _AS_ROOT, stdin=heal_program(fault), timeout_s=_LIMIT_S)
    except LabError as e:
        again = f"Try again: kvmfleet lab heal {host.name} {fault.id}"
        raise LabError(f"{host.name}: {fault.id} is not healed: {_reason(e)}", hint=again) from e
    host = _fresh(host)
    _note(host, tuple(id for id in host.faults if id != fault.id))


def _failed(error: LabError, fault: Fault, lab: Lab, host: LabHost) -> LabError:
    """What to say about a fault that did not come about, after it was taken back."""
    message = f"{host.name} could not be broken with {fault.id}: {_reason(error)}"
    try:
        _heal(fault, lab, host)
    except LabError as e:
        return LabError(message, hint=f"It may be half broken, for healing failed too. {e.hint}")
    return LabError(message, hint="What had been done was taken back.")


def _reason(error: LabError) -> str:
    """The last line of what a program said, or why there was none."""
    return error.hint.splitlines()[-1] if error.hint else error.message
