"""The verdict, the root cause, and what is never called good."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from evidence import host, judged
from learned import result

from orchestrator import judge as judge_module
from orchestrator.checks import fleet
from orchestrator.checks.catalogue import catalogue
from orchestrator.checks.registry import Case
from orchestrator.judge import read_contract, silence
from orchestrator.model.evidence import ContractSlot, Evidence
from orchestrator.model.finding import Finding, FleetFinding, Judgement
from orchestrator.model.run import Collected
from orchestrator.report.summary import exit_code

NO_KVM: dict[str, Any] = {
    "registered": True,
    "node": {"exists": False, "errno": "ENOENT"},
    "api_version": None,
    "execution": {"outcome": "skipped", "detail": "there is no /dev/kvm"},
}
KVM_GONE: dict[str, Any] = {
    "kvm": {**NO_KVM, "registered": False, "capabilities": None},
    "libvirt": {"domain_types": ["qemu"]},
}
NOT_ASKED_FOR: dict[str, Any] = {
    "kvm": {"execution": {"outcome": "skipped", "detail": "not asked for"}, "speed": {"outcome": "unknown"}},
    "guest": {"outcome": "skipped", "detail": "not asked for"},
}
BARE: dict[str, Any] = {
    "contract": {"text": "", "error": "absent"},
    "qemu": {"binary": "", "version": "", "accelerators": [], "img": "", "firmware": [], "swtpm": ""},
    "libvirt": {"units": None, "connected": False, "error": "there is no virsh", "settings": {}, "domain_types": []},
    "guest": {"outcome": "skipped", "detail": "there is no QEMU"},
}


def by_check(judgement: Judgement) -> dict[str, Finding]:
    return {finding.check: finding for finding in judgement.findings}


def test_a_host_with_nothing_wrong_is_proven() -> None:
    judgement = judged(host())
    assert (judgement.verdict, judgement.cause) == ("proven", None)


def test_nothing_is_proven_that_did_not_execute_a_guest() -> None:
    judgement = judged(host(NOT_ASKED_FOR))
    assert judgement.verdict == "unknown"
    assert judgement.cause is not None
    assert judgement.cause.summary == "no guest was executed: not asked for"


def test_that_no_guest_was_executed_matters_more_than_a_warning() -> None:
    judgement = judged(host({**NOT_ASKED_FOR, "libvirt": {"stale": ["libvirtd.service"]}}))
    assert judgement.cause is not None
    assert judgement.cause.check == "kvm.exec"


def test_a_proof_without_a_booted_domain_is_a_proof() -> None:
    assert judged(host({"guest": {"outcome": "skipped", "detail": "not asked for"}})).verdict == "proven"


def test_a_warning_degrades_and_is_named() -> None:
    judgement = judged(host({"libvirt": {"stale": ["libvirtd.service"]}}))
    assert judgement.verdict == "degraded"
    assert judgement.cause is not None
    assert judgement.cause.check == "libvirt.settings"


def test_a_missing_section_is_not_good() -> None:
    judgement = judged(host({"errors": {"libvirt": "not done after 40 s"}}))
    assert judgement.verdict == "unknown"
    assert by_check(judgement)["libvirt.daemon"].status == "error"
    assert by_check(judgement)["libvirt.connect"].cause == "libvirt.daemon"


def test_a_failure_outweighs_what_is_unknown() -> None:
    evidence = host({"errors": {"libvirt": "not done after 40 s"}, "packages": {"qemu-system-x86": ""}})
    assert judged(evidence).verdict == "failed"


def test_without_the_node_there_is_one_cause_and_the_rest_is_skipped_for_it() -> None:
    judgement = judged(host({"kvm": NO_KVM, "libvirt": {"domain_types": ["qemu"]}, "guest": {"domain_type": "qemu"}}))
    assert judgement.verdict == "failed"
    assert judgement.cause is not None
    assert judgement.cause.check == "kvm.node"
    skipped = {finding.check for finding in judgement.findings if finding.cause == "kvm.node"}
    of_kvm = {f"kvm.{name}" for name in ("permission", "api", "capabilities", "vcpus", "exec", "hardware", "open_as")}
    assert skipped == {*of_kvm, "qemu.accel", "libvirt.kvm", "libvirt.offers", "guest.boot"}
    assert [finding.check for finding in judgement.findings if finding.status == "fail"] == ["kvm.node"]


def test_firmware_that_locks_virtualization_is_the_one_cause() -> None:
    cpu = {"flags": ["lm"], "firmware": {"registers": {"0x5": None, "0x1": "0-63"}}}
    kernel = {"modules": {"kvm_intel": {"state": "absent"}}}
    guest = {"domain_type": "qemu"}
    judgement = judged(host({**KVM_GONE, "cpu": cpu, "kernel": kernel, "guest": guest}))
    assert [finding.check for finding in judgement.findings if finding.status == "fail"] == ["cpu.firmware"]
    assert by_check(judgement)["kernel.module"].cause == "cpu.firmware"
    assert by_check(judgement)["guest.boot"].cause == "cpu.firmware"


def test_a_hypervisor_below_linux_is_the_one_cause() -> None:
    kernel = {"hypervisors": ["xen"], "modules": {"kvm_intel": {"state": "absent"}}}
    judgement = judged(host({**KVM_GONE, "cpu": {"flags": ["lm"]}, "kernel": kernel, "guest": {"domain_type": "qemu"}}))
    assert [finding.check for finding in judgement.findings if finding.status == "fail"] == ["cpu.conflicts"]


def test_a_hypervisor_that_holds_the_processor_is_the_one_cause() -> None:
    busy = {"outcome": "broken", "step": "create_vm", "errno": "EBUSY"}
    refused = {"outcome": "broken", "domain_type": "kvm", "step": "image", "detail": "Device or resource busy"}
    judgement = judged(host({"kernel": {"hypervisors": ["vboxdrv"]}, "kvm": {"execution": busy}, "guest": refused}))
    assert [finding.check for finding in judgement.findings if finding.status == "fail"] == ["cpu.conflicts"]


def test_memory_that_is_not_promised_is_the_one_cause() -> None:
    refused = {"outcome": "broken", "domain_type": "kvm", "step": "image", "detail": "Cannot allocate memory"}
    judgement = judged(host({"memory": {"overcommit": "2", "commit_limit_mib": 61440}, "guest": refused}))
    assert [finding.check for finding in judgement.findings if finding.status == "fail"] == ["memory.overcommit"]


def test_a_user_without_an_account_is_one_cause_and_a_missing_node_excuses_no_membership() -> None:
    gone = {"operator": {"errno": "no such user", "tried": False}}
    judgement = judged(host({"kvm": {"users": gone}, "members": {"libvirt": []}}))
    assert [finding.check for finding in judgement.findings if finding.status == "fail"] == ["kvm.users"]
    judgement = judged(host({**KVM_GONE, "members": {"libvirt": []}}))
    assert by_check(judgement)["libvirt.users"].status == "fail"


def test_a_removed_package_is_the_cause_of_a_missing_qemu() -> None:
    evidence = host({"packages": {"qemu-system-x86": ""}, "qemu": {"binary": "", "version": ""}})
    judgement = judged(evidence)
    assert judgement.cause is not None
    assert judgement.cause.check == "contract.packages"
    assert by_check(judgement)["qemu.binary"].cause == "contract.packages"
    assert by_check(judgement)["qemu.tpm"].cause == "contract.packages"


def test_what_is_only_a_warning_has_the_same_cause_as_a_failure() -> None:
    evidence = host(
        {"qemu": {"swtpm": "", "swtpm_version": ""}, "windows": {"tpm_backends": ["passthrough"]}},
        {"qemu": {"windows": True}},
    )
    judgement = judged(evidence)
    assert by_check(judgement)["windows.tpm"].cause == "qemu.tpm"
    assert [finding.check for finding in judgement.findings if finding.status in ("fail", "warn")] == ["qemu.tpm"]


def test_what_passed_all_the_same_is_not_explained_away() -> None:
    judgement = judged(host({"packages": {"libvirt-daemon-system": ""}}))
    assert by_check(judgement)["qemu.binary"].status == "pass"


def test_a_lab_without_kvm_that_boots_a_guest_is_degraded() -> None:
    evidence = host({"kvm": NO_KVM, "libvirt": {"domain_types": ["qemu"]}, "guest": {"domain_type": "qemu"}})
    judgement = judged(evidence, "lab")
    assert judgement.verdict == "degraded"
    assert judgement.cause is not None
    assert judgement.cause.check == "kvm.node"
    assert by_check(judgement)["kvm.exec"].cause == "kvm.node"
    assert by_check(judgement)["libvirt.kvm"].cause == "kvm.node"
    assert by_check(judgement)["guest.boot"].status == "warn"


def test_a_lab_without_kvm_that_boots_no_guest_either_has_failed() -> None:
    broken = {"outcome": "broken", "domain_type": "qemu", "step": "create", "detail": "time is over"}
    judgement = judged(host({"kvm": NO_KVM, "libvirt": {"domain_types": ["qemu"]}, "guest": broken}), "lab")
    assert judgement.verdict == "failed"
    assert judgement.cause is not None
    assert judgement.cause.check == "guest.boot"


def test_a_lab_without_kvm_that_was_not_asked_for_a_guest_is_unknown() -> None:
    evidence = host({"kvm": NO_KVM, "guest": {"outcome": "skipped", "detail": "not asked for"}})
    judgement = judged(evidence, "lab")
    assert judgement.verdict == "unknown"
    assert judgement.cause is not None
    assert judgement.cause.check == "kvm.node"


def test_a_bare_host_is_told_to_be_provisioned_and_nothing_else() -> None:
    judgement = judged(host(BARE))
    assert judgement.cause is not None
    assert judgement.cause.check == "contract.present"
    assert "kvmfleet provision" in judgement.cause.fix
    assert [finding.check for finding in judgement.findings if finding.status == "fail"] == ["contract.present"]


def test_a_guest_that_cannot_open_kvm_is_the_permissions_fault() -> None:
    refused = {"outcome": "broken", "domain_type": "kvm", "step": "image", "detail": "Permission denied"}
    judgement = judged(host({"kvm": {"node": {"mode": 0o600}, "open_as": {"errno": "EACCES"}}, "guest": refused}))
    assert judgement.cause is not None
    assert judgement.cause.check == "kvm.permission"
    assert by_check(judgement)["guest.boot"].cause == "kvm.permission"


@pytest.mark.parametrize("profile", ["lab", "production", "multi-tenant"])
def test_every_check_says_something_whatever_the_profile(profile: Any) -> None:
    assert len(judged(host(BARE), profile).findings) == len(judged(host()).findings)


def test_an_empty_document_is_judged_and_not_good() -> None:
    empty = host(dict.fromkeys(("system", "cpu", "kernel", "kvm", "qemu", "libvirt", "guest")))
    assert judged(empty).verdict == "failed"


def test_a_silent_host_does_not_pass() -> None:
    judgement = silence(Collected("hv1", "ssh", problem="no route to host", hint="Is it on?", unreachable=True))
    assert judgement.verdict == "unreachable"
    assert judgement.cause is not None
    assert (judgement.cause.check, judgement.cause.summary) == ("host.reachable", "no route to host")
    assert judgement.cause.fix == "Is it on?"


def test_a_host_that_talks_nonsense_does_not_pass() -> None:
    judgement = silence(Collected("hv1", "ssh", problem="no evidence in the answer"))
    assert judgement.verdict == "unknown"
    assert judgement.findings[0].check == "host.evidence"


def test_a_broken_contract_reads_as_none_and_never_raises() -> None:
    for text in ("", "{", "[]", "[" * 100000, '{"schema": 1, "modules": 7}', "\ud800"):
        evidence = Evidence(schema=1, collected_at_s=0.0, duration_ms=0.0, contract=ContractSlot(text=text))
        assert read_contract(evidence) is None


def test_a_check_that_an_answer_upsets_costs_no_other_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def look(case: Case) -> Finding:
        raise KeyError(case.evidence.system.hostname)

    upset, *others = catalogue()
    checks = (msgspec.structs.replace(upset, look=look), *others)
    monkeypatch.setattr(judge_module, "catalogue", lambda: checks)
    evidence = host()
    judgement = judge_module.judge(evidence, read_contract(evidence), "production")
    assert judgement.cause == judgement.findings[0]
    assert (judgement.verdict, judgement.findings[0].status) == ("unknown", "error")
    assert judgement.findings[0].summary.startswith("the check itself failed: KeyError: ")
    assert {finding.status for finding in judgement.findings[1:]} <= {"pass", "skip"}


def test_a_check_of_the_fleet_that_an_answer_upsets_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def look(members: Sequence[fleet.Member]) -> FleetFinding:
        raise KeyError(members[0].name)

    upset, *others = fleet.CHECKS
    monkeypatch.setattr(fleet, "CHECKS", (msgspec.structs.replace(upset, look=look), *others))
    results = [result("hv1"), result("hv2")]
    found = judge_module.judge_fleet(results)
    assert (found[0].check, found[0].status) == (upset.id, "error")
    assert len(found) == len(others) + 1
    assert exit_code(results, found) == 1
