"""What runs learned about hosts, and disks without room; needs nothing that only tests need, so it starts fast."""

from __future__ import annotations

import contextlib
from pathlib import Path

from orchestrator.model.contract import Contract
from orchestrator.model.drift import Drift, DriftState, HostDrift
from orchestrator.model.evidence import ContractSlot, Evidence, System
from orchestrator.model.finding import Finding, Judgement
from orchestrator.model.run import Collected, HostResult

GOOD = Finding("kvm.exec", "pass", "a guest executed in 0.3 ms")
BAD = Finding("kvm.node", "fail", "/dev/kvm is absent", "a character device", "nothing", "modprobe kvm_intel")

SWAP = Drift("sysctl:vm.swappiness", "10", "60")
GONE = Drift("package:swtpm", "0.7", None)


def result(host: str = "hv1", *found: Finding, hostname: str = "hv1", contract: str = "") -> HostResult:
    evidence = Evidence(
        schema=1,
        collected_at_s=1.5,
        duration_ms=2.5,
        system=System(hostname=hostname),
        contract=ContractSlot(text=contract),
    )
    cause = next((finding for finding in found if finding.status == "fail"), None)
    return HostResult(
        host,
        Judgement("failed" if cause else "proven", found or (GOOD,), cause),
        Collected(host, "ssh", evidence=evidence),
        contract=Contract(schema=1, intent_digest="abc") if contract else None,
    )


def seen(*items: Drift, state: DriftState = "drifted", host: str = "hv1") -> HostDrift:
    return HostDrift(host, state, items=items)


def fill(folder: Path) -> None:
    """To the last byte."""
    with (folder / "filler").open("wb", buffering=0) as opened:
        for size in (1 << 16, 512, 1):
            with contextlib.suppress(OSError):
                while opened.write(bytes(size)):
                    pass
