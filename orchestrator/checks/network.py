"""Are the networks of libvirt there, and are they what was declared?"""

from __future__ import annotations

import difflib

from orchestrator.checks.contract import PROVISION
from orchestrator.checks.registry import Case, check, failed, not_applicable, passed, undecided, warned
from orchestrator.model import Finding, Network

NONE = Network()


def _unknown(case: Case) -> Finding | None:
    """What is to be said where no network can be looked at."""
    if not case.wishes.networks:
        return not_applicable("no networks are asked for")
    if case.evidence.network.error:
        return undecided(
            f"libvirt does not tell its networks: {case.evidence.network.error}",
            fix="Read `journalctl -u libvirtd -u virtnetworkd`; then validate again.",
        )
    return None


@check(
    "network.active",
    "The networks run and start with the host",
    sections=("network",),
    requires=("contract.present", "libvirt.connect"),
    proves="Every network of the contract is defined, runs where it is meant to, and starts with the host.",
    how="The list of networks that libvirt gives, in one call for all of them.",
    todo=f"`virsh net-start NAME` and `virsh net-autostart NAME`. One that is missing: {PROVISION}",
)
def active(case: Case) -> Finding:
    if unknown := _unknown(case):
        return unknown
    found, problems, commands = case.evidence.network.networks, [], []
    for name, wish in case.wishes.networks.items():
        seen = found.get(name, NONE)
        if name not in found or not seen.configured:
            problems.append(f"{name} is not defined" + (", only running" if seen.active else ""))
            continue
        if seen.active != wish.active:
            problems.append(f"{name} {'runs' if seen.active else 'does not run'}")
            commands.append(f"virsh net-{'start' if wish.active else 'destroy'} {name}")
        if seen.autostart != wish.autostart:
            problems.append(f"{name} {'starts' if seen.autostart else 'does not start'} with the host")
            commands.append(f"virsh net-autostart {name}" + ("" if wish.autostart else " --disable"))
    if problems:
        fix = f"Run `{' && '.join(commands)}`." if commands else PROVISION
        return failed("; ".join(problems), expected="as in the contract", seen="; ".join(problems), fix=fix)
    return passed(f"{_count(len(case.wishes.networks))} as they are meant to be")


@check(
    "network.equal",
    "The networks are what was declared",
    sections=("network",),
    requires=("contract.present", "libvirt.connect"),
    explained_by=("network.active",),
    proves="The definition of every network is that of the contract, and so is what runs.",
    how="The XML of libvirt for the definition and for what runs, in one spelling: order, defaults and counters are no "
    "difference.",
    todo=f"Another definition: {PROVISION} Only what runs is different: it becomes equal by a restart of the network, "
    "which cuts off the guests that use it: provision again when there are none, or with kvmfleet_allow_disruption.",
)
def equal(case: Case) -> Finding:
    if unknown := _unknown(case):
        return unknown
    found, wished = case.evidence.network.networks, case.wishes.networks
    changed, pending = [], []
    for name, wish in wished.items():
        seen = found.get(name, NONE)
        if seen.configured != wish.xml:
            changed.append(f"{name}: {_difference(wish.xml, seen.configured)}")
        elif seen.active and seen.live != wish.xml:
            pending.append(f"{name}: {_difference(wish.xml, seen.live)}")
    if changed:
        return failed(
            f"defined in another way: {'; '.join(changed)}",
            expected="as in the contract",
            seen="changed",
            fix=PROVISION,
        )
    if pending:
        return warned(
            f"runs in another way than it is defined: {'; '.join(pending)}",
            expected="as defined",
            seen="as it was before",
            fix="Restart the network when no guest uses it: run `kvmfleet provision` for this host then.",
        )
    return passed(f"{_count(len(wished))} equal to the contract")


@check(
    "network.bridge",
    "The bridges of the host are there",
    sections=("network",),
    requires=("contract.present",),
    proves="Every bridge of the contract is there, with its ports.",
    how="/sys/class/net.",
    todo=f"`bridge link` shows what is at which bridge. {PROVISION}",
)
def bridge(case: Case) -> Finding:
    wished, found = case.wishes.bridges, case.evidence.network.bridges
    if not wished:
        return not_applicable("no bridges are asked for")
    problems = [f"there is no {name}" for name in wished if name not in found]
    for name, ports in wished.items():
        lacking = [port for port in ports if port not in found.get(name, ports)]
        if lacking:
            problems.append(f"{', '.join(lacking)} is not at {name}")
    if problems:
        return failed("; ".join(problems), expected="as in the contract", seen="; ".join(problems), fix=PROVISION)
    return passed(f"{', '.join(wished)} with {_count(sum(map(len, wished.values())), 'port')}")


def _count(number: int, noun: str = "network") -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _difference(wished: str, seen: str) -> str:
    """The lines that went and came, in one line."""
    if not seen:
        return "not defined"
    lines = difflib.unified_diff(wished.splitlines(), seen.splitlines(), lineterm="", n=0)
    words = [f"{line[0]}{line[1:].strip()}" for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")]
    return " ".join(words[:6]) + (f" and {len(words) - 6} more" if len(words) > 6 else "")


CHECKS = (active, equal, bridge)
