"""The real roles, run by the real Ansible on invented facts: the contract they would write, and what they refuse.

One run with a host for each case. Only preflights run and nothing is changed, so it needs no root; what a look at
the host would have said is given as a variable.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from orchestrator import pki
from orchestrator.model.contract import SCHEMA, Contract

pytestmark = pytest.mark.ansible

ROOT = Path(__file__).parents[2]

PLAYBOOK = """
- hosts: all
  gather_facts: false
  connection: local
  vars:
    libvirt_other_qemu_settings: "{{ libvirt_security_qemu_settings }}"
    libvirt_other_daemon_settings: "{{ libvirt_security_daemon_settings }}"
    libvirt_other_remote_settings: "{{ libvirt_remote_daemon_settings }}"
  tasks:
    - ansible.builtin.set_fact:
        cacheable: true # so that they are in ansible_facts
        distribution: "{{ facts.distribution }}"
        distribution_version: "{{ facts.version }}"
        distribution_major_version: "{{ facts.version | split('.') | first }}"
        os_family: "{{ facts.family | default(facts.distribution) }}"
        architecture: "{{ facts.architecture | default('x86_64') }}"
        pkg_mgr: invented
        service_mgr: "{{ facts.service_mgr | default('systemd') }}"
        nodename: "{{ facts.nodename | default(inventory_hostname) }}"
        virtualization_tech_guest: "{{ facts.tech | default([]) }}"
    - ansible.builtin.import_role: {name: kernel_modules, tasks_from: preflight}
      tags: [never] # its variables without its look at this machine
    - ansible.builtin.fail:
        msg: "{{ __kernel_modules_variable_rules | selectattr('broken') | map(attribute='say') | join(' ') }}"
      when: __kernel_modules_variable_rules | selectattr('broken') | length > 0
    - ansible.builtin.fail:
        msg: "{{ __kernel_modules_machine_rules | selectattr('broken') | map(attribute='say') | join(' ') }}"
      when: __kernel_modules_machine_rules | selectattr('broken') | length > 0
    - ansible.builtin.import_role: {name: libvirt_security, tasks_from: preflight}
      tags: [never]
    - ansible.builtin.fail:
        msg: "{{ __libvirt_security_rules | selectattr('broken') | map(attribute='say') | join(' ') }}"
      when: __libvirt_security_rules | selectattr('broken') | length > 0
    - ansible.builtin.import_role: {name: qemu_kvm, tasks_from: preflight}
    - ansible.builtin.import_role: {name: libvirt, tasks_from: preflight}
    - ansible.builtin.import_role: {name: libvirt_remote, tasks_from: preflight}
    - ansible.builtin.import_role: {name: libvirt_guests, tasks_from: preflight}
    - ansible.builtin.import_role: {name: host_contract, tasks_from: preflight}
    - ansible.builtin.debug:
        msg:
          contract: "{{ __host_contract_document }}"
          files: "{{ __kernel_modules_files }}"
          changes: "{{ __host_contract_changes }}"
          packages: "{{ __host_contract_packages }}"
"""

DEBIAN = {"distribution": "Debian", "version": "13.8"}
KERNEL = {
    "kernel": "6.12.0",
    "cpu": "vmx",
    "node": True,
    "loadable": ["vhost_net"],
    "absent": ["kvm_amd"],
    "stale": False,
    "arguments": False,
}
LSM = {"selinux": "", "apparmor": True, "firewalld": False}
HOSTS = {
    "Alpine": {"distribution": "Alpine", "version": "3.22.1", "service_mgr": "openrc"},
    "Archlinux": {"distribution": "Archlinux", "version": "rolling"},
    "Debian_12": {"distribution": "Debian", "version": "12.15"},
    "Debian_13": DEBIAN,
    "Fedora": {"distribution": "Fedora", "version": "43", "family": "RedHat"},
    "RedHat_8": {"distribution": "Rocky", "version": "8.10", "family": "RedHat"},
    "RedHat_9": {"distribution": "AlmaLinux", "version": "9.6", "family": "RedHat"},
    "RedHat_10": {"distribution": "RedHat", "version": "10.0", "architecture": "aarch64"},
    "Suse_15": {"distribution": "SLES", "version": "15.7", "family": "Suse"},
    "Suse_16": {"distribution": "openSUSE Leap", "version": "16.0", "family": "Suse"},
    "openSUSE_Tumbleweed": {"distribution": "openSUSE Tumbleweed", "version": "20260101", "family": "Suse"},
    "Ubuntu_22.04": {"distribution": "Ubuntu", "version": "22.04", "family": "Debian"},
    "Ubuntu_24.04": {"distribution": "Ubuntu", "version": "24.04", "family": "Debian", "architecture": "aarch64"},
    "Ubuntu_26.04": {"distribution": "Ubuntu", "version": "26.04", "family": "Debian"},
}

CASES: dict[str, dict[str, Any]] = {
    "configured": {
        "kvmfleet_profile": "multi-tenant",
        "kvmfleet_intents": {"configured": "abc", "container": "def"},
        "kernel_modules_options": {"kvm": {"halt_poll_ns": 0, "ignore_msrs": True}},
        "kernel_modules_cmdline": ["intel_iommu=on", "isolcpus=2-7,10"],
        "kernel_modules_other_arguments": ["intel_iommu=on", "iommu=pt"],
        "qemu_kvm_extra_packages": ["qemu-block-extra"],
        "qemu_kvm_cpu_baseline": "x86-64-v3",
        "qemu_kvm_confidential_guests": ["sev-snp"],
        "libvirt_extra_packages": ["lvm2"],
        "libvirt_qemu_settings": {"user": "guests", "max_files": 32768, "vnc_password": "geheim"},
        "libvirt_daemon_settings": {"max_clients": 500},
        "libvirt_guests_policy": {
            "on_shutdown": "shutdown",
            "bypass_cache": True,
            "uris": ["default", "lxc:///system"],
        },
        "libvirt_guests_autostart": ["dns"],
        "qemu_kvm_install": True,
    },
    "left-behind": {
        "facts": HOSTS["RedHat_9"],
        "units": {
            f"{name}{kind}": {"enabled": True, "active": name == "libvirtd"}
            for name in ("libvirtd", "virtqemud")
            for kind in (".service", ".socket")
        },
    },
    "bad-guests": {
        "libvirt_guests_policy": {
            "shutdown_timeout": -1,
            "on_shutdown": "suspend",
            "parallel_shutdown": 2,
            "uris": ["here"],
        }
    },
    "baseline-on-arm": {"facts": DEBIAN | {"architecture": "aarch64"}, "qemu_kvm_cpu_baseline": "x86-64-v3"},
    "bad-baseline": {"qemu_kvm_cpu_baseline": "v3"},
    "bad-confidential": {"qemu_kvm_confidential_guests": ["sgx"]},
    "unknown-policy": {"libvirt_guests_policy": {"shutdown": "now"}},
    "container": {"facts": DEBIAN | {"tech": ["container", "docker"]}, "kernel_modules_cmdline": ["hugepages=8"]},
    "guarded": {
        "lsm": {"selinux": "enforcing", "apparmor": False},
        "libvirt_security_migration_sources": ["192.0.2.0/24"],
        "libvirt_security_selinux_booleans": {"virt_use_nfs": True},
        "libvirt_qemu_settings": {"seccomp_sandbox": False},
    },
    "behind-firewalld": {"lsm": {"firewalld": True}, "libvirt_security_firewall": "firewalld"},
    "lab-without-lsm": {
        "kvmfleet_profile": "lab",
        "lsm": {"apparmor": False},
        "libvirt_security_svirt": "apparmor",
        "libvirt_security_user": "root",
    },
    "container-without-lsm": {"facts": DEBIAN | {"tech": ["container"]}, "lsm": {"apparmor": False}},
    "no-lsm": {"lsm": {"apparmor": False}},
    "no-selinux": {"libvirt_security_svirt": "selinux"},
    "no-apparmor-in-container": {
        "facts": DEBIAN | {"tech": ["container"]},
        "lsm": {"apparmor": False},
        "libvirt_security_svirt": "apparmor",
    },
    "permissive": {"lsm": {"selinux": "permissive"}},
    "root": {"libvirt_qemu_settings": {"user": "root"}},
    "bad-sources": {"libvirt_security_migration_sources": ["hv1"], "libvirt_security_closed_ports": ["20-30"]},
    "ssh-elsewhere": {"ansible_port": 5922},
    "text-lists": {"libvirt_users": "admin", "libvirt_qemu_settings": "max_files=1"},
    "bad-settings": {"libvirt_qemu_settings": {"max_files": 1.5}, "libvirt_daemon_settings": {"tls_port": "1"}},
    "bad-modules": {"kernel_modules_extra": ["vhost-net"], "kernel_modules_options": {"kvm": 1}},
    "bad-options": {
        "kernel_modules_options": {"kvm": {"halt poll_ns": 0, "mmu_audit": None, "nx": "1\ninstall kvm x", "tdp": ""}}
    },
    "bad-arguments": {"kernel_modules_cmdline": ["hugepages=8", "memmap=4G$8G", "a b", "quiet\n"]},
    "text-arguments": {"kernel_modules_cmdline": "hugepages=8"},
    "bad-reboot": {"kernel_modules_reboot": "always"},
    "bad-profile": {"kvmfleet_profile": "prod"},
    "bad-family": {"libvirt_family": "modern"},
    "remote": {
        "libvirt_remote_transports": ["ssh", "tls"],
        "ansible_host": "192.0.2.11",
        "libvirt_remote_peers": ["remote", "hv2"],
        "libvirt_remote_addresses": ["192.0.2.11"],
        "libvirt_remote_ca_passphrase": "geheim",
        "libvirt_daemon_settings": {"max_clients": 500},
    },
    "remote-user": {
        "libvirt_remote_transports": ["tls"],
        "libvirt_remote_ca_passphrase": "geheim",
        "libvirt_security_user": "guests",
    },
    "remote-modular": {
        "facts": HOSTS["RedHat_9"],
        "libvirt_remote_transports": ["tls"],
        "libvirt_remote_ca_passphrase": "geheim",
        "libvirt_remote_allowed_dns": ["O=me,CN=*"],
    },
    "sasl": {
        "facts": HOSTS["RedHat_9"],
        "libvirt_remote_transports": ["tls"],
        "libvirt_remote_ca_passphrase": "geheim",
        "libvirt_remote_sasl": "scram-sha-256",
        "libvirt_remote_sasl_users": [
            {"name": "backup", "password": "streng geheim ü"},
            {"name": "2nd.host-1", "password": 12345678},
        ],
        "qemu_kvm_install": True,
    },
    "sasl-without-tls": {
        "libvirt_remote_sasl": "scram-sha-256",
        "libvirt_remote_sasl_users": [{"name": "backup", "password": "streng geheim"}],
    },
    "sasl-for-nobody": {"libvirt_remote_transports": ["tls"], "libvirt_remote_sasl": "scram-sha-256"},
    "sasl-elsewhere": {
        "facts": HOSTS["Alpine"],
        "libvirt_remote_transports": ["tls"],
        "libvirt_remote_sasl": "scram-sha-256",
        "libvirt_remote_sasl_users": [{"name": "backup", "password": "streng geheim"}],
    },
    "bad-sasl-users": {
        "libvirt_remote_sasl_users": [
            {"name": name, "password": password}
            for name, password in {"-c": "", "a@b": "streng geheim\n", "new\n": "x" * 257, "": "streng geheim"}.items()
        ]
        + [{"name": "twice", "password": "streng geheim"}] * 2,
    },
    "bad-sasl": {"libvirt_remote_sasl": "digest-md5"},
    "sasl-without-password": {"libvirt_remote_sasl_users": [{"name": "backup"}]},
    "sasl-as-text": {"libvirt_remote_sasl_users": ["backup:streng geheim"]},
    "bad-transport": {"libvirt_remote_transports": ["tcp"]},
    "bad-remote": {
        "libvirt_remote_names": ["-x", "hv2\n"],
        "libvirt_remote_addresses": ["hv1"],
        "libvirt_remote_days": 0,
    },
    "half-a-certificate": {"libvirt_remote_transports": ["tls"], "libvirt_remote_key": "/etc/ssl/hv1.key"},
    "no-such-certificate": {
        "libvirt_remote_transports": ["tls"],
        "libvirt_remote_ca_certificate": "/nowhere/ca.pem",
        "libvirt_remote_certificate": "/nowhere/hv1.pem",
        "libvirt_remote_key": "/nowhere/hv1.key",
    },
    "remote-openrc": {"facts": HOSTS["Alpine"], "libvirt_remote_transports": ["tls"]},
    "named-as-another": {"facts": DEBIAN | {"nodename": "remote"}, "libvirt_remote_transports": ["tls"]},
    "named-otherwise": {"facts": DEBIAN | {"nodename": "hv9.example.org"}, "libvirt_remote_transports": ["tls"]},
    "longer.example.org": {
        "facts": DEBIAN | {"nodename": "longer"},
        "libvirt_remote_transports": ["tls"],
        "libvirt_remote_ca_passphrase": "geheim",
    },
    "shorter": {
        "facts": DEBIAN | {"nodename": "Shorter.example.org"},
        "libvirt_remote_transports": ["tls"],
        "libvirt_remote_ca_passphrase": "geheim",
    },
    "no-ca": {"libvirt_remote_transports": ["tls"], "libvirt_remote_pki": "/nowhere"},
    "wrong-passphrase": {"libvirt_remote_transports": ["tls"], "libvirt_remote_ca_passphrase": "falsch"},
    "unknown-platform": {"facts": {"distribution": "Debian", "version": "11.2"}},
    "strayed-platform": {"facts": {"distribution": "Debian", "version": "/../../main"}},
    "unknown-architecture": {"facts": DEBIAN | {"architecture": "s390x"}},
    "el8": {"facts": HOSTS["RedHat_8"], "qemu_kvm_install": True},
    "no-flags": {"look": {"cpu": "", "node": False}},
    "no-node-in-container": {"facts": DEBIAN | {"tech": ["container"]}, "look": {"node": False}},
    "no-node-on-arm": {"facts": DEBIAN | {"architecture": "aarch64"}, "look": {"cpu": "", "node": False}},
    "no-module": {"look": {"absent": ["kvm_amd", "vhost_vsock"]}},
}


def variables(case: dict[str, Any]) -> dict[str, Any]:
    looks = {
        "__kernel_modules_look": {"stdout": json.dumps(KERNEL | case.get("look", {}))},
        "__libvirt_security_look": {"stdout": json.dumps(LSM | case.get("lsm", {}))},
        "__libvirt_look": {"stdout": json.dumps({"units": case.get("units", {}), "unknown": []})},
    }
    common = {"facts": DEBIAN, "qemu_kvm_install": False, "ansible_python_interpreter": sys.executable}
    return common | looks | {key: case[key] for key in case if key not in ("look", "lsm", "units")}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Host -> what its last task said."""
    folder = tmp_path_factory.mktemp("roles")
    pki.init(folder / "pki", passphrase="geheim")
    hosts = {name: variables({"facts": facts}) for name, facts in HOSTS.items()} | {
        name: variables(case) for name, case in CASES.items()
    }
    (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts}}))
    (folder / "play.yml").write_text(PLAYBOOK)
    settings = {
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_ROLES_PATH": str(ROOT / "roles"),
        "ANSIBLE_HOME": str(folder),
        "KVMFLEET_STATE_DIR": str(folder),  # with the CA
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "ANSIBLE_FORKS": "4",
    }
    command = [Path(sys.executable).with_name("ansible-playbook"), "-i", folder / "hosts.yml", folder / "play.yml"]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=300)
    tasks = json.loads(done.stdout[done.stdout.index("{") :])["plays"][0]["tasks"]
    said: dict[str, dict[str, Any]] = {}
    for task in tasks:
        said |= {host: result for host, result in task["hosts"].items() if not result.get("skipped")}
    return said


def contract(answers: dict[str, dict[str, Any]], host: str) -> Contract:
    document = answers[host]["msg"]["contract"]
    decoded = msgspec.json.decode(json.dumps(document), type=Contract)
    assert_known(document, msgspec.to_builtins(decoded))
    return decoded


def assert_known(written: Any, understood: Any) -> None:
    """Nothing is written that the other side would drop without a word."""
    if isinstance(written, dict):
        assert set(written) <= set(understood)
        for key in written:
            assert_known(written[key], understood[key])
    else:
        assert list(written) == list(understood) if isinstance(written, list) else written == understood


@pytest.mark.parametrize("platform", HOSTS)
def test_every_platform_gets_a_contract_that_decodes(answers: dict[str, dict[str, Any]], platform: str) -> None:
    decoded = contract(answers, platform)
    assert (decoded.schema, decoded.platform, decoded.profile, decoded.intent_digest) == (
        SCHEMA,
        platform,
        "production",
        "",
    )
    assert decoded.qemu.binary.startswith("/usr/")
    assert decoded.libvirt.services[0].removesuffix(".service") in {"libvirtd", "virtqemud"}
    assert len(set(decoded.packages)) == len(decoded.packages) > 5


def test_openrc_hosts_have_services_and_no_sockets(answers: dict[str, dict[str, Any]]) -> None:
    assert contract(answers, "Alpine").libvirt.sockets == ()
    assert contract(answers, "Alpine").libvirt.services == ("libvirtd", "virtlogd")


def test_enterprise_linux_is_modular(answers: dict[str, dict[str, Any]]) -> None:
    decoded = contract(answers, "RedHat_9")
    assert decoded.libvirt.family == "modular"
    assert {"virtqemud.socket", "virtnetworkd-ro.socket", "virtproxyd.socket"} <= set(decoded.libvirt.sockets)
    assert set(decoded.libvirt.settings) == {"qemu.conf", "virtqemud.conf", "virtproxyd.conf"}


def test_the_architecture_picks_its_packages(answers: dict[str, dict[str, Any]]) -> None:
    assert {"qemu-system-arm", "qemu-efi-aarch64"} <= set(contract(answers, "Ubuntu_24.04").packages)
    assert "edk2-aarch64" in contract(answers, "RedHat_10").packages


def test_the_contract_holds_the_resolved_variables(answers: dict[str, dict[str, Any]]) -> None:
    decoded = contract(answers, "configured")
    assert (decoded.profile, decoded.intent_digest) == ("multi-tenant", "abc")
    assert decoded.modules["kvm"].options == {"halt_poll_ns": "0", "ignore_msrs": "1"}
    assert (decoded.qemu.cpu_baseline, decoded.qemu.confidential) == ("x86-64-v3", ("sev-snp",))
    assert contract(answers, "Debian_13").modules["kvm_intel"].options == {"nested": "1"}
    assert "kvm_amd" not in decoded.modules
    assert all(decoded.modules[name].required for name in ("kvm", "kvm_intel", "vhost_net", "vhost_vsock", "tun"))
    assert {"qemu-block-extra", "lvm2"} <= set(decoded.packages)
    assert decoded.cmdline == ("intel_iommu=on", "isolcpus=2-7,10", "iommu=pt")
    assert decoded.libvirt.settings["libvirtd.conf"]["max_clients"] == "500"
    assert decoded.qemu.user == "guests"


def test_guests_are_confined_with_what_the_kernel_has(answers: dict[str, dict[str, Any]]) -> None:
    decoded = contract(answers, "configured")
    assert decoded.security.svirt == "apparmor"
    assert decoded.security.socket_group == "libvirt"
    assert decoded.libvirt.settings["qemu.conf"]["security_driver"] == '"apparmor"'
    assert decoded.libvirt.settings["qemu.conf"]["security_require_confined"] == "1"
    assert decoded.libvirt.settings["libvirtd.conf"]["auth_unix_rw"] == '"none"'
    guarded = contract(answers, "guarded")
    assert guarded.security.svirt == "selinux"
    assert guarded.security.booleans == {"virt_use_nfs": "on"}
    assert guarded.security.socket_group == ""


def test_the_users_own_setting_wins_over_that_of_another_role(answers: dict[str, dict[str, Any]]) -> None:
    assert contract(answers, "guarded").libvirt.settings["qemu.conf"]["seccomp_sandbox"] == "0"
    assert contract(answers, "Debian_13").libvirt.settings["qemu.conf"]["seccomp_sandbox"] == "1"


def test_guests_of_strangers_run_no_guests_of_their_own(answers: dict[str, dict[str, Any]]) -> None:
    assert contract(answers, "configured").modules["kvm_intel"].options == {"nested": "0"}


def test_ports_are_guarded_where_sources_or_strangers_are(answers: dict[str, dict[str, Any]]) -> None:
    assert contract(answers, "Debian_13").security.firewall.backend == ""
    guarded = contract(answers, "guarded")
    assert guarded.security.firewall.sets["sources4"] == ("192.0.2.0/24",)
    assert guarded.files["/etc/kvmfleet/firewall.nft"].sha256
    assert contract(answers, "configured").security.firewall.backend == "nftables"
    assert contract(answers, "behind-firewalld").security.firewall.backend == "firewalld"


@pytest.mark.parametrize("host", ["lab-without-lsm", "container-without-lsm"])
def test_where_nothing_can_confine_nothing_is_set(answers: dict[str, dict[str, Any]], host: str) -> None:
    decoded = contract(answers, host)
    assert decoded.security.svirt == ""
    assert not [key for key in decoded.libvirt.settings["qemu.conf"] if key.startswith("security_")]


def test_what_happens_to_guests_is_promised_in_the_words_of_its_file(answers: dict[str, dict[str, Any]]) -> None:
    guests = contract(answers, "configured").guests
    assert (guests.file, guests.unit) == ("/etc/default/libvirt-guests", "libvirt-guests.service")
    assert guests.settings == {"ON_SHUTDOWN": "shutdown", "BYPASS_CACHE": "1", "URIS": "default lxc:///system"}
    assert guests.autostart == ("dns",)
    assert "guests" not in answers["Debian_12"]["msg"]["contract"]


def test_roles_say_what_they_change_before_they_do(answers: dict[str, dict[str, Any]]) -> None:
    said = answers["configured"]["msg"]
    files = [path for changes in said["changes"] for path in changes.get("files", []) + changes.get("edited", [])]
    assert set(said["files"]) | {"/etc/libvirt/qemu.conf", "/etc/default/libvirt-guests"} <= set(files)
    assert {"libvirt": []} in [changes.get("members") for changes in said["changes"]]
    assert {"qemu-system-x86", "libvirt-daemon-system", "lvm2"} <= set(said["packages"])


def test_a_family_that_an_upgrade_left_behind_is_not_promised(answers: dict[str, dict[str, Any]]) -> None:
    assert contract(answers, "left-behind").libvirt.family == "modular"


def test_a_daemon_that_is_not_installed_gets_no_settings(answers: dict[str, dict[str, Any]]) -> None:
    """Its file would be there when the host was unprovisioned, as no package took it away."""
    assert set(contract(answers, "left-behind").libvirt.settings) == {"qemu.conf", "virtqemud.conf"}


def test_a_password_is_not_in_the_contract(answers: dict[str, dict[str, Any]]) -> None:
    document = answers["configured"]["msg"]["contract"]
    assert "geheim" not in json.dumps(document)
    assert {"user", "max_files"} <= set(document["libvirt"]["settings"]["qemu.conf"])


def test_a_host_with_tls_promises_its_certificates_and_who_may_come_in(answers: dict[str, dict[str, Any]]) -> None:
    decoded = contract(answers, "remote")
    wish = decoded.remote
    assert (wish.names, wish.peers, wish.sockets) == (("remote", "192.0.2.11"), ("hv2",), ("libvirtd-tls.socket",))
    assert (wish.addresses, wish.port, len(wish.ca_sha256)) == (("192.0.2.11",), 16514, 64)
    assert [one.owner for one in wish.certificates] == ["root", "root", "libvirt-qemu", "libvirt-qemu"]
    assert decoded.libvirt.settings["libvirtd.conf"] == {
        "max_clients": "500",
        "tls_allowed_dn_list": '[ "O=kvmfleet,OU=libvirt,CN=*" ]',
    }
    assert "openssl" in decoded.packages
    assert "libvirt-daemon-proxy" not in decoded.packages
    assert "geheim" not in json.dumps(answers["remote"])


@pytest.mark.parametrize(("host", "hostname"), [("longer.example.org", "longer"), ("shorter", "Shorter.example.org")])
def test_a_host_may_have_its_name_with_its_domain_and_without(answers, host: str, hostname: str) -> None:
    assert contract(answers, host).remote.names == (host, hostname)


def test_where_daemons_are_modular_others_reach_the_proxy(answers: dict[str, dict[str, Any]]) -> None:
    decoded = contract(answers, "remote-modular")
    assert decoded.remote.sockets == ("virtproxyd-tls.socket",)
    assert decoded.libvirt.settings["virtproxyd.conf"] == {"tls_allowed_dn_list": '[ "O=me,CN=*" ]'}
    assert decoded.libvirt.settings["virtqemud.conf"] == {}
    assert {"openssl", "libvirt-daemon-proxy"} <= set(decoded.packages)
    assert decoded.remote.certificates[2].owner == "qemu"


def test_whoever_qemu_runs_as_reads_its_key(answers: dict[str, dict[str, Any]]) -> None:
    decoded = contract(answers, "remote-user")
    assert (decoded.qemu.user, decoded.remote.certificates[2].owner) == ("guests", "guests")


def test_a_host_that_asks_for_passwords_promises_users_and_no_password(answers: dict[str, dict[str, Any]]) -> None:
    decoded = contract(answers, "sasl")
    assert decoded.remote.sasl.mechanisms == ("SCRAM-SHA-256",)
    assert decoded.remote.sasl.users == ("backup", "2nd.host-1")
    assert decoded.libvirt.settings["virtproxyd.conf"]["auth_tls"] == '"sasl"'
    assert "auth_tls" not in decoded.libvirt.settings["virtqemud.conf"]
    assert {"cyrus-sasl", "cyrus-sasl-scram"} <= set(decoded.packages)
    assert contract(answers, "remote").remote.sasl.mechanisms == ()


@pytest.mark.parametrize("host", [name for name in CASES if "sasl" in name])
def test_a_password_of_a_user_is_said_nowhere(answers: dict[str, dict[str, Any]], host: str) -> None:
    text = json.dumps(answers[host], ensure_ascii=False)
    assert not [word for word in ("streng", "12345678", "xxx") if word in text]


def test_a_host_without_tls_promises_nothing_of_it(answers: dict[str, dict[str, Any]]) -> None:
    assert "remote" not in answers["Debian_13"]["msg"]["contract"]


def test_managed_files_are_promised_with_their_digest(answers: dict[str, dict[str, Any]]) -> None:
    decoded = contract(answers, "configured")
    for path, content in answers["configured"]["msg"]["files"].items():
        assert decoded.files[path].sha256 == hashlib.sha256(content.encode()).hexdigest()
    assert decoded.files["/etc/libvirt/qemu.conf"].mode == 0o600
    assert decoded.files["/etc/libvirt/qemu.conf"].sha256 == ""


def test_files_of_modules_are_what_the_kernel_tools_read(answers: dict[str, dict[str, Any]]) -> None:
    files = answers["configured"]["msg"]["files"]
    plain = {path: [line for line in text.splitlines() if not line.startswith("#")] for path, text in files.items()}
    assert plain == {
        "/etc/modprobe.d/kvmfleet.conf": ["options kvm_intel nested=0", "options kvm halt_poll_ns=0 ignore_msrs=1"],
        "/etc/modules-load.d/kvmfleet.conf": ["kvm", "kvm_intel", "vhost_net", "vhost_vsock", "tun"],
    }


def test_a_container_need_not_have_the_modules_and_the_arguments(answers: dict[str, dict[str, Any]]) -> None:
    decoded = contract(answers, "container")
    assert decoded.modules
    assert not any(wish.required for wish in decoded.modules.values())
    assert decoded.cmdline == ()


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("text-lists", ["must be lists", "must be a table"]),
        ("bad-settings", ["max_files: its value must be", "tls_port has no effect", "drop-in"]),
        ("bad-modules", ["vhost-net", "such as vhost_net", "kvm needs a table of options"]),
        ("bad-options", ['and not: "halt poll_ns", "mmu_audit", "nx", "tdp"', "kernel_modules_options"]),
        ("bad-arguments", ["such as intel_iommu=on", "and not: memmap=4G$8G a b quiet"]),
        ("text-arguments", ["takes a list of arguments", "not: hugepages=8"]),
        ("bad-guests", ["shutdown_timeout must not be below 0", "here is no URI", "parallel_shutdown has no effect"]),
        ("unknown-policy", ["shutdown. Supported parameters include", "on_shutdown"]),
        ("bad-reboot", ["never, if-needed, got: always"]),
        ("bad-profile", ["lab, production, multi-tenant, got: prod"]),
        ("bad-family", ["auto, monolithic, modular, got: modern"]),
        ("bad-transport", ["ssh, tls", "tcp"]),
        ("bad-remote", ["no names or addresses of hosts: -x, hv2\n.", "systemd listens on addresses", "at least 1"]),
        ("sasl-without-tls", ["asked for over tls", "Put tls into libvirt_remote_transports"]),
        ("sasl-for-nobody", ["nobody could log in", "Name somebody there"]),
        ("sasl-elsewhere", ["not known on Alpine", "Take tls out"]),
        (
            "bad-sasl-users",
            [
                'which is not so with "-c", "a@b", "new\\n", "".',
                "more than one for twice.",
                'which is not so with that of "-c", "a@b", "new\\n".',
            ],
        ),
        ("bad-sasl", ["none, scram-sha-256, got: digest-md5"]),
        ("sasl-without-password", ["missing required arguments: password", "libvirt_remote_sasl_users"]),
        ("sasl-as-text", ["libvirt_remote_sasl_users"]),
        ("half-a-certificate", ["belong together", "set all three"]),
        ("no-such-certificate", ["libvirt_remote_ca_certificate", "this host has no /nowhere/ca.pem"]),
        ("remote-openrc", ["openrc runs this host", "Take tls out"]),
        ("named-as-another", ["calls itself remote", "libvirt_remote_names", "correct its hostname"]),
        ("named-otherwise", ["calls itself hv9.example.org", "libvirt_remote_names"]),
        ("no-ca", ["There is no CA: /nowhere/ca.pem", "Run `kvmfleet pki init`"]),
        ("wrong-passphrase", ["wrong passphrase (libvirt_remote_ca_passphrase)"]),
        ("unknown-platform", ["Debian 11.2", "no table", "Debian_12, Debian_13", "add a table"]),
        ("strayed-platform", ["Debian /../../main", "no table"]),
        ("unknown-architecture", ["s390x", "x86_64 and aarch64"]),
        ("baseline-on-arm", ["qemu_kvm_cpu_baseline is x86-64-v3", "aarch64"]),
        ("bad-baseline", ["qemu_kvm_cpu_baseline must be one of", "x86-64-v2, x86-64-v3, x86-64-v4", "got: v3"]),
        ("bad-confidential", ["qemu_kvm_confidential_guests must be one or more of: sev, sev-es, sev-snp, tdx", "sgx"]),
        ("el8", ["Python 3.6", "dnf install qemu-kvm", "qemu_kvm_install to false"]),
        ("no-flags", ["vmx nor svm", "firmware", "power the machine off and on", "lab"]),
        ("no-node-in-container", ["in this container", "of its host"]),
        ("no-node-on-arm", ["exception level 2"]),
        ("no-lsm", ["Neither SELinux nor AppArmor", "apparmor=1", "libvirt_security_svirt: none"]),
        ("no-selinux", ["is selinux, but this kernel runs without", "labels before anything is enforced"]),
        ("no-apparmor-in-container", ["is apparmor, but this container cannot load profiles", "another machine's"]),
        ("permissive", ["SELinux is permissive", "ausearch", "setenforce 1"]),
        ("root", ["QEMU would run as root", "libvirt_qemu_settings"]),
        ("bad-sources", ["hv1 is no network", "Port 22 carries ssh"]),
        ("ssh-elsewhere", ["Port 5922 carries ssh"]),
        ("no-module", ["6.12.0 has no module vhost_vsock", "reboot", "kernel_modules_extra"]),
    ],
)
def test_what_cannot_work_is_refused_with_what_to_do(
    answers: dict[str, dict[str, Any]], host: str, words: list[str]
) -> None:
    assert answers[host].get("failed"), answers[host]
    assert [word for word in words if word not in answers[host]["msg"]] == []
