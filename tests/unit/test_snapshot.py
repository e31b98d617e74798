"""Two looks at a host that nobody touched give one snapshot; whatever somebody touches changes it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from evidence import host, merged

from orchestrator import snapshot

TUNED: dict[str, Any] = {
    "tuning": {
        "sysctls": {"vm.swappiness": {"live": "10", "next_boot": "10"}},
        "hugepages": {"2M": {"pages": 16, "free": 4}},
        "ksm_run": "0",
    },
    "storage": {
        "pools": {"images": {"defined": True, "active": True, "configured": {"type": "dir"}, "available_mib": 7}}
    },
    "identity": {
        "machine": "m",
        "flags": ["vmx"],
        "memory_mib": 65536,
        "interfaces": {"eth0": "52:54:00:00:00:01 igb"},
    },
}


def items(patch: Any = None) -> dict[str, str]:
    return snapshot.take(host(merged(TUNED, patch or {}))).items


VOLATILE: dict[str, Any] = {
    "another look": {"collected_at_s": 1760000000.0, "duration_ms": 99.0},
    "a boot": {
        "system": {"boot_id": "other"},
        "kernel": {"cmdline": "BOOT_IMAGE=/vmlinuz-other root=/dev/sda1 ro quiet intel_iommu=on"},
    },
    "guests": {"security": {"guests": []}, "network": {"bridges": {"br0": ["eth0", "vnet7", "vnet8"]}}},
    "a guest whose interface was given a name": {
        "network": {"bridges": {"br0": ["eth0", "vnet0", "web0"]}, "links": {"web0": {"tap": True}}}
    },
    "a container at a bridge": {
        "network": {"bridges": {"br0": ["eth0", "veth1a2b3c", "vnet0"]}, "links": {"veth1a2b3c": {"up": True}}}
    },
    "the first guest with a device": {
        "kernel": {
            "modules": {
                "vfio": {"state": "loaded", "params": {"enable_unsafe_noiommu_mode": "N"}},
                "vhost": {"state": "loaded", "params": {"max_mem_regions": "64"}},
            }
        }
    },
    "an administrator": {"members": {"sudo": ["operator", "mallory"]}},
    "an idle daemon": {"libvirt": {"units": {"libvirtd.service": {"active": "active"}}}},
    "use": {
        "tuning": {"hugepages": {"2M": {"free": 0}}, "ksm_sharing": 9},
        "storage": {"pools": {"images": {"available_mib": 1}}},
    },
    "how deep the proof went": {"guest": {"outcome": "skipped"}, "kvm": {"execution": {"duration_ms": 1.0}}},
}


@pytest.mark.parametrize("what", VOLATILE)
def test_what_changes_by_itself_is_not_in_it(what: str) -> None:
    assert items(VOLATILE[what]) == items()


TOUCHED: dict[str, tuple[Any, str]] = {
    "package": ({"packages": {"qemu-system-x86": "1:7.0"}}, "package:qemu-system-x86"),
    "package gone": ({"packages": {"qemu-system-x86": ""}}, "package:qemu-system-x86"),
    "file": (
        {"files": {"/etc/modules-load.d/kvmfleet.conf": {"mode": 0o666}}},
        "file:/etc/modules-load.d/kvmfleet.conf",
    ),
    "file a link": (
        {"files": {"/etc/modules-load.d/kvmfleet.conf": {"link": "/home/mallory/kvmfleet.conf"}}},
        "file:/etc/modules-load.d/kvmfleet.conf",
    ),
    "configured option": (
        {"kernel": {"configured_options": {"kvm_intel": {"nested": "0"}}}},
        "option:kvm_intel.nested",
    ),
    "option": ({"kernel": {"modules": {"kvm_intel": {"params": {"nested": "N"}}}}}, "parameter:kvm_intel.nested"),
    "module": ({"kernel": {"modules": {"tun": {"state": "absent"}}}}, "module:tun"),
    "arguments": ({"kernel": {"cmdline": "root=/dev/sda1 mitigations=off"}}, "cmdline"),
    "next boot": ({"kernel": {"next_boot": {"cmdline": "quiet"}}}, "cmdline-next-boot"),
    "socket": ({"libvirt": {"units": {"libvirtd.socket": {"active": "inactive"}}}}, "unit:libvirtd.socket"),
    "masked": ({"libvirt": {"units": {"libvirtd.service": {"enabled": "masked"}}}}, "unit:libvirtd.service"),
    "drop-in": (
        {"libvirt": {"unit_files": {"/etc/systemd/system/libvirtd.service.d/own.conf": "01ab"}}},
        "unit-file:/etc/systemd/system/libvirtd.service.d/own.conf",
    ),
    "hook": (
        {"libvirt": {"hooks": {"/etc/libvirt/hooks/qemu": {"exists": True, "sha256": "01ab", "mode": 0o755}}}},
        "hook:/etc/libvirt/hooks/qemu",
    ),
    "setting": (
        {"libvirt": {"settings": {"qemu.conf": {"seccomp_sandbox": "0"}}}},
        "setting:qemu.conf seccomp_sandbox",
    ),
    "member": ({"members": {"libvirt": ["operator", "mallory"]}}, "member:libvirt"),
    "network": ({"network": {"networks": {"lab": {"configured": "<network/>"}}}}, "network:lab definition"),
    "network stopped": ({"network": {"networks": {"lab": {"active": False}}}}, "network:lab"),
    "bridge": ({"network": {"bridges": {"br0": ["eth1"]}}}, "bridge:br0"),
    "pool": ({"storage": {"pools": {"images": {"autostart": True}}}}, "pool:images"),
    "sysctl": ({"tuning": {"sysctls": {"vm.swappiness": {"live": "60"}}}}, "sysctl:vm.swappiness"),
    "hugepages": ({"tuning": {"hugepages": {"2M": {"pages": 8}}}}, "tuning:hugepages 2M"),
    "ksm": ({"tuning": {"ksm_run": "1"}}, "tuning:ksm"),
    "listener": ({"security": {"tcp": [16514, 16509]}}, "listener:16509"),
    "firewall": ({"security": {"firewall": {"rules": []}}}, "firewall:rules"),
    "confinement": ({"security": {"apparmor": False}}, "security:apparmor"),
    "node": ({"kvm": {"node": {"mode": 0o666}}}, "kvm-node"),
    "microcode": ({"cpu": {"kinds": [{"cpus": "0-63", "id": "x", "microcode": "0xd0003f6"}]}}, "hardware:microcode"),
    "memory": ({"identity": {"memory_mib": 32768}}, "hardware:memory"),
    "interface": ({"identity": {"interfaces": {"eth0": None}}}, "hardware:interface eth0"),
    "kernel": ({"system": {"kernel": "6.1.0-40-amd64"}}, "system:kernel"),
    "contract": ({"contract": {"text": "{}"}}, "contract"),
}


@pytest.mark.parametrize("what", TOUCHED)
def test_what_somebody_touches_is_one_item_of_it(what: str) -> None:
    patch, item = TOUCHED[what]
    before, after = items(), items(patch)
    assert [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)] == [item]


@pytest.mark.parametrize("what", [{"sha256": "03"}, {"key_mode": 0o644}, {"key_owner": "mallory"}, {"ca_sha256": "04"}])
def test_a_certificate_is_told_with_its_key_and_its_ca(what: dict[str, Any]) -> None:
    path = "/etc/pki/libvirt/servercert.pem"
    good = {"sha256": "01", "key_mode": 0o600, "key_owner": "root", "ca_sha256": "02"}

    def told(certificate: dict[str, Any]) -> str:
        return items({"remote": {"certificates": {path: certificate}}})[f"certificate:{path}"]

    assert told(good) != told(good | what)
    assert told(good) == told(good | {"error": "expired"})
    assert told({"error": "there is none"}) == "there is none"


def test_of_a_network_that_runs_otherwise_only_those_lines_are_told_twice() -> None:
    before = items()["network:lab definition"]
    edited = before.replace(".200", ".180")
    seen = items({"network": {"networks": {"lab": {"configured": edited}}}})["network:lab definition"]
    assert seen == (
        f'{edited}not live yet: <range end="192.168.150.180" start="192.168.150.100"/>\n'
        'still live: <range end="192.168.150.200" start="192.168.150.100"/>\n'
    )


def test_a_setting_of_nothing_is_called_empty() -> None:
    sysctls = {"net.ipv4.ip_local_reserved_ports": {"live": "", "next_boot": None}}
    assert (
        items({"tuning": {"sysctls": sysctls}})["sysctl:net.ipv4.ip_local_reserved_ports"]
        == "live empty, next boot none"
    )


IN_A_CONTAINER: dict[str, Any] = {"system": {"container": "systemd-nspawn"}}
OF_THE_MACHINE_BELOW: dict[str, Any] = {
    "kernel": {"cmdline": "root=/dev/sda1 mitigations=off"},
    "tuning": {
        "sysctls": {"vm.swappiness": {"live": "60"}},
        "hugepages": {"2M": {"pages": 8}},
        "thp": {"enabled": "never"},
        "governors": {"performance": "0 1"},
        "ksm_run": "1",
        "isolated": "2",
        "nohz_full": "2",
    },
}


def test_what_is_live_below_a_container_is_not_drift_of_it_and_its_files_are() -> None:
    before, after = items(IN_A_CONTAINER), items(merged(IN_A_CONTAINER, OF_THE_MACHINE_BELOW))
    assert before == after
    assert len({*items()} ^ {*items(OF_THE_MACHINE_BELOW)}) > 3, "on a machine they are all told"
    sysctls = {"vm.swappiness": {"next_boot": "60"}}
    for what in ({"sysctls": sysctls}, {"at_boot": {"/sys/x": "1"}}, {"tuned_profile": "virtual-host"}):
        assert items(merged(IN_A_CONTAINER, {"tuning": what})) != before


def test_where_it_is_not_known_whether_it_is_a_container_nothing_is_told_of_the_kernel_below() -> None:
    taken = snapshot.take(host(merged(TUNED, {"errors": {"system": "late"}})))
    assert not {"sysctl", "tuning", "cmdline"} & {name.partition(":")[0] for name in taken.items}


def test_a_module_that_guests_bring_counts_where_it_is_loaded_at_boot() -> None:
    """vhost_net and tun are, by the role; without that, the first guest would make drift of them."""
    found = {"kernel": {"modules": {"vhost_net": {"state": "absent"}}}}
    assert items(found)["module:vhost_net"] == "absent"
    assert "module:vhost_net" not in items(merged(found, {"kernel": {"load_at_boot": ["kvm", "kvm_intel", "tun"]}}))


def test_ksmtuned_starts_and_stops_ksm_as_memory_becomes_scarce() -> None:
    def told(active: str, run: str) -> str:
        unit = {"load": "loaded", "enabled": "enabled", "active": active}
        return items({"tuning": {"units": {"ksmtuned.service": unit}, "ksm_run": run}})["tuning:ksm"]

    assert told("active", "0") == told("active", "1")
    assert told("inactive", "0") == "0"


def test_every_kind_was_seen_changing() -> None:
    seen = {item.partition(":")[0] for _, item in TOUCHED.values()}
    assert {kind.name for kind in snapshot.KINDS} - seen <= {"qemu", "blacklist", "certificate", "autostart"}


def test_a_section_that_was_not_collected_has_no_items_and_says_so() -> None:
    taken = snapshot.take(
        host({"errors": {"packages": "not done after 20 s"}, "network": {"error": "libvirt is gone"}})
    )
    assert taken.blind == {"packages": "not done after 20 s", "network": "libvirt is gone"}
    assert not [name for name in taken.items if name.startswith(("package:", "network:", "bridge:"))]


def test_of_a_file_server_that_does_not_answer_nothing_is_told() -> None:
    """Owner and mode of the folder are not gone then, and a busy one answers the next time."""
    slow = {"storage": {"pools": {"images": {"use": {"outcome": "hangs", "errno": "not done after 10 s"}}}}}
    taken = snapshot.take(host(merged(TUNED, slow)))
    assert taken.blind == {"storage": "the folder of images does not answer"}
    assert not [name for name in taken.items if name.startswith("pool:")]


def test_without_root_most_of_it_is_not_known() -> None:
    assert "collected as user 1000" in snapshot.take(host({"system": {"uid": 1000}})).blind["system"]


def test_owners_are_roles_that_there_are() -> None:
    from orchestrator import paths

    roles = {path.name for path in (paths.content() / "roles").iterdir()}
    owners = {kind.owner for kind in snapshot.KINDS} | {role for _, role in snapshot.FILE_OWNERS}
    assert owners - {""} <= roles
    assert snapshot.owner("file:/etc/modprobe.d/kvmfleet.conf") == "kernel_modules"
    assert snapshot.owner("file:/etc/kvmfleet/x") == "host_contract"
    assert snapshot.owner("hardware:cpu") == ""
    drop_ins = "unit-file:/etc/systemd/system/libvirtd.socket.d/"
    assert snapshot.owner(f"{drop_ins}kvmfleet-access.conf") == "libvirt_security"
    assert snapshot.owner(f"{drop_ins}own.conf") == ""
    assert snapshot.owner("of another version:x") == ""


def test_a_contract_that_is_no_document_is_an_item_all_the_same() -> None:
    assert items({"contract": {"text": "{"}})["contract"] == "{"
    assert items({"contract": {"text": "", "error": "absent"}})["contract"] == "absent"


def test_sections_are_those_of_the_evidence() -> None:
    from orchestrator.model.evidence import Evidence

    known = {field.name for field in msgspec.structs.fields(Evidence)}
    assert {section for kind in snapshot.KINDS for section in (kind.section, *kind.also)} <= known


TOLD_BY_TWO: dict[str, Any] = {
    "guests": {"unit": {"load": "loaded", "enabled": "enabled"}, "settings": {"ON_SHUTDOWN": "shutdown"}},
    "tuning": {"units": {"tuned.service": {"load": "loaded", "enabled": "enabled", "active": "active"}}},
}
SECTIONS = sorted({section for kind in snapshot.KINDS for section in (kind.section, *kind.also)})


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_that_fails_makes_nothing_seem_gone_or_changed(section: str) -> None:
    whole = items(TOLD_BY_TWO)
    failed = {section: {"text": ""} if section == "contract" else None, "errors": {section: "late"}}
    taken = snapshot.take(host(merged(merged(TUNED, TOLD_BY_TWO), failed)))
    told = {name: value for name, value in whole.items() if (kind := snapshot.kind(name)) and kind.is_told(taken.blind)}
    assert taken.items == told


@pytest.mark.parametrize("text", ["", "{", "[]"], ids=["absent", "broken", "no table"])
def test_without_a_contract_what_it_names_is_not_known(text: str) -> None:
    named = {"packages": None, "files": None, "members": None}
    taken = snapshot.take(host(merged(TUNED, {"contract": {"text": text, "error": "absent"}} | named)))
    assert "contract" in taken.items
    assert "hardware:memory" in taken.items
    assert {"packages", "files", "members", "tuning", "libvirt"} <= taken.blind.keys()
