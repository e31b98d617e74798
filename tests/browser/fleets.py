"""Fleets for the page: what a validation of hosts with these faults would have learned."""

from __future__ import annotations

from typing import Any

import msgspec
from evidence import host, judged

from orchestrator.judge import judge, read_contract, silence
from orchestrator.model.finding import Finding, Judgement, Waiver
from orchestrator.model.run import Collected, HostResult

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)>'\"></td>{{ 7*7 }}\x1b[2J\u202e"
"""What a host could call itself, and say about itself."""

FAULTS: tuple[Any, ...] = (
    {"kvm": {"node": {"exists": False, "errno": "ENOENT"}, "api_version": None, "execution": {"outcome": "skipped"}}},
    {"packages": {"qemu-system-x86": ""}, "qemu": {"binary": "", "version": ""}},
    {"libvirt": {"connected": False, "error": "Failed to connect socket to '/var/run/libvirt/libvirt-sock'"}},
    {"errors": {"libvirt": "not done after 40 s"}},
    {"kvm": {"node": {"mode": 0o600}, "open_as": {"errno": "EACCES"}}},
)
WAIVER = Waiver("the cloud below offers no nested virtualization", "Ann Lee", "2027-01-31")


def _result(name: str, patch: Any) -> HostResult:
    evidence = host(patch)
    contract = read_contract(evidence)
    return HostResult(name, judged(evidence), Collected(name, "ssh", evidence), contract, groups=("kvm_hosts", "rack1"))


def _silent(name: str) -> HostResult:
    collected = Collected(name, "ssh", problem="no route to host", hint="Is it on? Try: ssh root@hv", unreachable=True)
    return HostResult(name, silence(collected), collected, groups=("kvm_hosts",))


def _waived(name: str) -> HostResult:
    evidence = host({"kvm": {"speed": {"outcome": "emulated", "emulated_instructions": 40000}}})
    contract = read_contract(evidence)
    judgement = judge(evidence, contract, "production", {"kvm.hardware": WAIVER})
    return HostResult(name, judgement, Collected(name, "ssh", evidence), contract, groups=("kvm_lab",))


def mixed(number: int) -> tuple[HostResult, ...]:
    """So many hosts: most are proven, and every fault is there."""
    results = []
    for index in range(number):
        name = f"hv{index:03}.rack{index % 8}.example.com"
        if index % 9 == 4:
            results.append(_result(name, FAULTS[index // 9 % len(FAULTS)]))
        elif index % 31 == 7:
            results.append(_silent(name))
        elif index % 17 == 3:
            results.append(_result(name, {"libvirt": {"stale": ["libvirtd.service"]}}))
        elif index % 23 == 5:
            results.append(_waived(name))
        else:
            results.append(_result(name, {}))
    return tuple(results)


def hostile() -> tuple[HostResult, ...]:
    """A host that puts markup wherever a host can put anything."""
    evidence = host(
        {"system": dict.fromkeys(("hostname", "os_name", "kernel", "arch"), HOSTILE), "cpu": {"model": HOSTILE}}
    )
    findings = tuple(
        Finding("kvm.exec", status, HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE)
        for status in ("fail", "warn", "error", "waived", "pass", "skip")
    )
    named = [msgspec.structs.replace(finding, check=check) for finding, check in zip(findings, CHECKS, strict=True)]
    judgement = Judgement("failed", tuple(named), named[0])
    collected = Collected(HOSTILE, "ssh", evidence, problem=HOSTILE, hint=HOSTILE)
    return (HostResult(HOSTILE, judgement, collected, groups=(HOSTILE,)), _result("hv1", {}))


CHECKS = ("kvm.exec", "kvm.node", "kvm.api", "kvm.hardware", "qemu.binary", "libvirt.connect")
