"""What no host can tell alone, with evidence of hosts that fit together and of hosts that do not."""

from __future__ import annotations

from typing import Any

import pytest
from evidence import host

from orchestrator.checks.fleet import CHECKS, Member
from orchestrator.judge import judge_fleet, read_contract, silence
from orchestrator.model.finding import FleetFinding, Judgement
from orchestrator.model.run import Collected, HostResult
from orchestrator.report import summary

ROUTED = (
    '<network><forward mode="route"/><ip address="10.{}.0.1" prefix="16"/><ip family="ipv6" address="fd0{}::1" '
    'prefix="64"/><name>dmz</name></network>'
)


def member(name: str, evidence: Any = None, contract: Any = None) -> Member:
    """A host like all others, with a name and an identity of its own."""
    own = {
        "system": {"hostname": name, "boot_id": f"boot of {name}"},
        "identity": {
            "machine": f"machine {name}",
            "host_keys": [f"ssh-ed25519 SHA256:{name}"],
            "flags": ["avx2", "vmx"],
        },
        "libvirt": {"host_uuid": f"uuid {name}"},
    }
    for section, values in (evidence or {}).items():
        own.setdefault(section, {}).update(values)
    found = host(own, contract)
    return Member(name, found, read_contract(found))


def finding(check: str, *members: Member) -> FleetFinding:
    return next(known for known in CHECKS if known.id == check).finding(members)


def routed(number: int) -> dict[str, Any]:
    return {"networks": {"dmz": {"xml": ROUTED.format(number, number)}}}


TWINS: dict[str, tuple[Any, Any, str, str]] = {
    "fleet.identity one machine": (
        {"system": {"boot_id": "b"}},
        None,
        "fail",
        "one machine under several names: hv1, hv2",
    ),
    "fleet.identity cloned": ({"identity": {"machine": "m"}}, None, "fail", "hv1, hv2 share the machine id"),
    "fleet.identity uuid": ({"libvirt": {"host_uuid": "u"}}, None, "fail", "hv1, hv2 share the UUID of libvirt"),
    "fleet.hostkeys": ({"identity": {"host_keys": ["k"]}}, None, "fail", "hv1, hv2 share 1 ssh host key"),
    "fleet.names": ({"system": {"hostname": "n"}}, None, "fail", "hv1, hv2 are all called n"),
    "fleet.subnets": ({}, routed(1), "fail", "hv1's dmz (10.1.0.0/16) and hv2's dmz (10.1.0.0/16)"),
}


@pytest.mark.parametrize("case", TWINS)
def test_what_two_hosts_may_not_share_is_named_with_both(case: str) -> None:
    evidence, contract, status, told = TWINS[case]
    check = case.partition(" ")[0]
    alone = finding(check, member("hv1"), member("hv2"))
    assert alone.status == "pass", alone
    found = finding(check, member("hv1", evidence, contract), member("hv2", evidence, contract), member("hv3"))
    assert (found.status, found.hosts) == (status, ("hv1", "hv2"))
    assert told in found.summary
    assert found.fix


def test_containers_of_one_machine_have_its_boot_id_and_are_hosts_all_the_same() -> None:
    shared = {"system": {"boot_id": "b", "container": "systemd-nspawn"}}
    assert finding("fleet.identity", member("hv1", shared), member("hv2", shared)).status == "pass"


def test_one_machine_under_two_names_is_one_finding() -> None:
    """Its keys and its name are the same, too, and that is no second problem."""
    twin = {"system": {"boot_id": "b", "hostname": "n"}, "identity": {"machine": "m", "host_keys": ["k"]}}
    found = [check.finding([member("hv1", twin), member("hv2", twin)]) for check in CHECKS]
    assert [finding.check for finding in found if finding.status == "fail"] == ["fleet.identity"]


def test_what_is_not_known_is_shared_by_nobody() -> None:
    nothing = {"identity": {"machine": "", "host_keys": [], "flags": []}, "libvirt": {"host_uuid": ""}}
    blank = [member("hv1", nothing), member("hv2", nothing)]
    assert {finding("fleet.identity", *blank).status, finding("fleet.hostkeys", *blank).status} == {"pass"}
    assert finding("fleet.cpu", *blank).status == "skip"


DIFFERENT: dict[str, tuple[Any, str]] = {
    "fleet.cpu vendor": ({"cpu": {"vendor": "AuthenticAMD"}}, "x86_64 AuthenticAMD on hv2; x86_64 GenuineIntel on hv1"),
    "fleet.cpu flags": ({"identity": {"flags": ["avx2", "avx512f", "aes"]}}, "hv1 lacks aes, avx512f"),
    "fleet.qemu": ({"qemu": {"version": "10.0.3"}}, "10.0.3 on hv2"),
    "fleet.libvirt": ({"libvirt": {"version": "11.3.0"}}, "11.3.0 on hv2"),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_a_difference_is_a_warning_that_a_lab_may_have(case: str) -> None:
    evidence, told = DIFFERENT[case]
    check = case.partition(" ")[0]
    assert finding(check, member("hv1"), member("hv2")).status == "pass"
    found = finding(check, member("hv1"), member("hv2", evidence))
    assert found.status == "warn"
    assert told in found.summary
    lab = {"profile": "lab"}
    assert finding(check, member("hv1", {}, lab), member("hv2", evidence, lab)).status == "pass"


def test_a_flag_that_only_a_newer_kernel_names_is_no_difference() -> None:
    newer = member("hv2", {"identity": {"flags": ["avx2", "vmx", "ibpb_exit_to_user"]}})
    assert finding("fleet.cpu", member("hv1"), newer).status == "pass"


def test_an_instruction_that_hosts_of_other_processors_lack_is_one_on_aarch64_too() -> None:
    arm = {"system": {"arch": "aarch64"}, "identity": {"flags": ["asimd"]}}
    sve = {"system": {"arch": "aarch64"}, "identity": {"flags": ["asimd", "sve"]}}
    assert "hv1 lacks sve" in finding("fleet.cpu", member("hv1", arm), member("hv2", sve)).summary


def test_what_hosts_share_decides_what_is_to_be_done() -> None:
    def fix(twin: Any) -> str:
        return finding("fleet.identity", member("hv1", twin), member("hv2", twin)).fix

    uuid = {"libvirt": {"host_uuid": "u"}}
    assert "machine-id" in fix({"identity": {"machine": "m"}} | uuid)
    assert "host_uuid" in fix(uuid)
    assert "machine-id" not in fix(uuid)


def test_a_subnet_that_every_host_routes_is_told_once_a_host() -> None:
    """Not with every other one: 5,000 hosts of one variable would be twelve million pairs."""
    network = '<network><forward mode="route"/><ip address="10.1.{}.1" prefix="{}"/></network>'
    same, inside = ({"networks": {"dmz": {"xml": network.format(*words)}}} for words in ((0, 16), (2, 24)))
    hosts = [member(f"hv{number}", {}, same) for number in range(10, 29)]
    found = finding("fleet.subnets", *hosts, member("hv29", {}, inside))
    assert found.hosts == tuple(f"hv{number}" for number in range(10, 30))
    assert found.summary.startswith("routed subnets overlap: hv10's dmz (10.1.0.0/16) and hv11's dmz (10.1.0.0/16); ")
    assert found.summary.endswith(" and 7 more")


def test_subnets_behind_nat_may_be_the_same_everywhere() -> None:
    nat = {"networks": {"dmz": {"xml": ROUTED.format(1, 1).replace("route", "nat")}}}
    assert finding("fleet.subnets", member("hv1", {}, nat), member("hv2", {}, nat)).status == "pass"


def test_a_network_that_is_none_has_no_clash() -> None:
    torn = {
        "networks": {"dmz": {"xml": "<network><forward mode='route'/><ip address='x'/></network>"}, "b": {"xml": "<"}}
    }
    assert finding("fleet.subnets", member("hv1", {}, torn), member("hv2", {}, torn)).status == "pass"


def test_a_host_that_is_alone_with_something_is_named_and_two_are_not_enough() -> None:
    usual, odd = [member(f"hv{n}") for n in range(1, 4)], member("hv4", {"system": {"kernel": "5.10.0"}})
    found = finding("fleet.outliers", *usual, odd)
    assert (found.status, found.hosts) == ("warn", ("hv4",))
    assert "hv4 has the kernel 5.10.0, all others 6.1.0-37-amd64" in found.summary
    assert finding("fleet.outliers", *usual).status == "pass"
    assert finding("fleet.outliers", usual[0], odd).status == "skip"
    assert finding("fleet.outliers", usual[0], usual[1], odd, odd).status == "pass", "two and two have no majority"


def results(*members: Member) -> list[HostResult]:
    good = Judgement("proven", ())
    return [HostResult(m.name, good, Collected(m.name, "ssh", m.evidence), m.contract) for m in members]


def test_silent_hosts_are_left_out_and_one_host_is_no_fleet() -> None:
    dead = Collected("hv9", "ssh", unreachable=True)
    silent = HostResult("hv9", silence(dead), dead)
    assert judge_fleet([*results(member("hv1")), silent]) == ()
    assert {found.check for found in judge_fleet([*results(member("hv1"), member("hv2")), silent])} == {
        check.id for check in CHECKS
    }


@pytest.mark.parametrize(("status", "strict", "code"), [("fail", False, 2), ("warn", False, 0), ("warn", True, 2)])
def test_what_hosts_are_together_counts_for_the_exit_code(status: Any, strict: bool, code: int) -> None:
    fleet = [FleetFinding("fleet.qemu", status, "x")]
    assert summary.exit_code(results(member("hv1"), member("hv2")), fleet, strict=strict) == code
