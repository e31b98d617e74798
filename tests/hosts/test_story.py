"""The whole story on two real hosts: bare → check mode → provision → nothing to change → break → named → healed.

The tests of this file tell one story in order, on one lab; each is the next part of it.
"""

import base64
import json
import re
import xml.etree.ElementTree as ET

import pytest
from waiting import until

from orchestrator.collector import bootimage

pytestmark = pytest.mark.hosts

HOSTS = ("story-1", "story-2")  # Debian 12 and Debian 13


@pytest.fixture
def validate(kvmfleet, inventory):
    """Validates the lab; gives the exit code and the hosts of the report by name."""

    def run(*arguments, hosts=HOSTS):
        done = kvmfleet("validate", "-i", inventory, "--json", *arguments)
        found = {host["name"]: host for host in json.loads(done.stdout)["hosts"]}
        assert tuple(found) == hosts
        return done.returncode, found

    return run


@pytest.fixture
def plan(kvmfleet, inventory):
    """Plans the lab; gives the exit code and the hosts of the plan by name."""

    def run(*arguments):
        done = kvmfleet("plan", "-i", inventory, "--json", *arguments)
        assert done.stdout, done.stderr
        return done.returncode, {host["name"]: host for host in json.loads(done.stdout)["hosts"]}

    return run


def test_bare_hosts_are_not_proven_and_the_cause_says_what_to_do(validate):
    code, hosts = validate()
    assert code == 2
    for host in hosts.values():
        assert host["verdict"] == "failed"
        assert "provision" in host["cause"]["fix"]


def test_check_mode_is_clean_on_bare_hosts_and_changes_nothing(kvmfleet, inventory, on):
    done = kvmfleet("provision", "-i", inventory, "--check")
    assert done.returncode == 0, done.stderr
    for host in HOSTS:
        assert on(host, "test ! -e /etc/kvmfleet && ! command -v virsh && echo bare") == "bare\n"


def test_a_plan_of_bare_hosts_names_what_would_be_written_and_changes_nothing(plan, on):
    code, hosts = plan("--diff")
    assert (code, tuple(hosts)) == (2, HOSTS)
    for name, host in hosts.items():
        assert host["state"] == "changes"
        assert host["changed"] == len(host["changes"]) > 3
        by_role = {change["role"]: change for change in host["changes"]}
        assert "/etc/modules-load.d/kvmfleet.conf" in by_role["kernel_modules"]["things"]
        assert "\n+kvm" in by_role["kernel_modules"]["diff"]
        assert by_role["host_contract"]["things"] == ["/etc/kvmfleet", "/etc/kvmfleet/contract.json"]
        assert on(name, "test ! -e /etc/kvmfleet && ! command -v virsh && echo bare") == "bare\n"


def test_provision_ends_with_a_proof_on_every_host(kvmfleet, inventory, tmp_path):
    junit = tmp_path / "report.xml"
    done = kvmfleet("provision", "-i", inventory, "--json", "--junit", junit)
    assert done.returncode == 0, done.stderr
    hosts = json.loads(done.stdout)["hosts"]
    assert [host["name"] for host in hosts] == list(HOSTS)
    for host in hosts:
        found = {finding["check"]: finding for finding in host["findings"]}
        assert found["guest.boot"]["status"] in ("pass", "warn")
        assert host["evidence"]["guest"]["outcome"] == "works"
        assert host["verdict"] in ("proven", "degraded")
        assert host["verdict"] == "proven" or _only_the_machine_is_short_of(host)
    assert ET.parse(junit).getroot().get("failures") == "0"


def _only_the_machine_is_short_of(host):
    """A container cannot give what this machine lacks: the processor's extensions, or modules of its kernel."""
    short = {f["check"] for f in host["findings"] if f["status"] == "warn"}
    return short <= {
        "cpu.conflicts",
        "cpu.extensions",
        "cpu.nested_paging",
        "kernel.module",
        "kernel.options",
        "kernel.vhost_net",
        "kernel.vhost_vsock",
        "kvm.node",
        "kvm.exec",
        "kvm.hardware",
        "qemu.kvm",
        "libvirt.kvm",
        "guest.boot",
    }


def test_uefi_firmware_starts_its_shell_on_every_host(validate):
    _, hosts = validate("--boot", "uefi")
    for host in hosts.values():
        guest = host["evidence"]["guest"]
        assert (guest["outcome"], guest["step"]) == ("works", "poweroff"), guest
        assert {"image", "create", "nonce"} <= guest["milestones"].keys()


def test_an_image_of_the_users_boots_and_is_not_touched(validate, on):
    sector = base64.b64encode(bootimage.image("anything")[:512]).decode()
    on(HOSTS[0], f"echo {sector} | base64 -d > /srv/own.img; truncate -s 1M /srv/own.img")
    look = 'stat --format="%u %g %a %Y %Z" /srv/own.img; sha256sum /srv/own.img'
    before = on(HOSTS[0], look)
    code, hosts = validate("-l", HOSTS[0], "--boot", "file=/srv/own.img,expect=thing", hosts=HOSTS[:1])
    guest = hosts[HOSTS[0]]["evidence"]["guest"]
    assert (code, guest["outcome"], guest["said"]) == (0, "works", "KVMFLEET anything")
    assert on(HOSTS[0], look) == before


def test_an_image_that_is_not_there_says_nothing_about_the_host(validate):
    code, hosts = validate("-l", HOSTS[0], "--boot", "file=/srv/none.img", hosts=HOSTS[:1])
    assert (code, hosts[HOSTS[0]]["verdict"]) == (1, "unknown")
    assert hosts[HOSTS[0]]["cause"]["summary"] == "nothing to boot: /srv/none.img: no such file or directory"


def test_the_guest_leaves_nothing_behind(on):
    for host in HOSTS:
        assert on(host, "virsh --connect qemu:///system list --all --name").strip() == ""
        assert on(host, "find / -xdev -name kvmfleet-proof-\\* 2>/dev/null; true") == ""


def test_the_second_provision_changes_nothing_with_few_tasks(kvmfleet, inventory):
    done = kvmfleet("provision", "-i", inventory, "--json", "--boot", "proof", "--force")
    for host in json.loads(done.stdout)["hosts"]:
        assert host["converged"]["changed"] == 0, host["converged"]
        assert 0 < host["converged"]["ok"] < 40


def test_check_mode_is_clean_on_converged_hosts(kvmfleet, inventory):
    done = kvmfleet("provision", "-i", inventory, "--check")
    assert done.returncode == 0, done.stderr
    assert not re.search(r"changed [1-9]", done.stderr), done.stderr


def test_a_plan_of_converged_hosts_is_empty_until_the_inventory_changes(plan, on):
    code, hosts = plan()
    assert (code, {host["state"] for host in hosts.values()}) == (0, {"unchanged"}), hosts
    code, hosts = plan("-e", '{"host_tuning_sysctls": {"vm.dirty_ratio": 15}}')
    assert code == 2
    for host in hosts.values():
        assert [change["role"] for change in host["changes"]] == ["host_tuning", "host_contract"]
        assert host["changes"][0]["things"] == ["/etc/sysctl.d/60-kvmfleet.conf"], "nothing live, in a container"
    on(HOSTS[0], "test ! -e /etc/sysctl.d/60-kvmfleet.conf")


def test_a_plan_tells_what_it_can_when_a_host_is_down(plan, tmp_path):
    down = tmp_path / "down.ini"
    down.write_text("[kvm_hosts]\ndown ansible_host=127.0.0.1 ansible_port=9\n")
    code, hosts = plan("-i", down)
    assert code == 1
    assert {name: host["state"] for name, host in hosts.items()} == dict.fromkeys(HOSTS, "unchanged") | {
        "down": "unknown"
    }
    assert "Connection refused" in hosts["down"]["problem"]


def test_a_plan_shows_no_password_that_would_come_or_go(kvmfleet, inventory, on):
    """A task is silent where it is about to write one; the one that goes away is only seen in the diff."""
    password, on_one = "hunter2x", ("-i", inventory, "-l", HOSTS[0])
    setting = ("-e", '{"libvirt_qemu_settings": {"vnc_password": "' + password + '"}}')
    coming = kvmfleet("plan", *on_one, "--diff", *setting)
    assert "libvirt : Write the settings\n      hidden, as it may hold a secret" in coming.stdout
    kvmfleet("provision", *on_one, "--boot", "none", *setting)
    assert password in on(HOSTS[0], "cat /etc/libvirt/qemu.conf")
    going = kvmfleet("plan", *on_one, "--diff")
    assert "\n      -(hidden, as it may hold a secret)\n" in going.stdout
    for done in (coming, going):
        assert done.returncode == 2
        assert password not in done.stdout + done.stderr
    kvmfleet("provision", *on_one, "--boot", "proof")
    assert password not in on(HOSTS[0], "cat /etc/libvirt/qemu.conf")


def test_plain_ansible_playbook_takes_the_inventory_and_changes_nothing_the_second_time(inventory, ansible):
    """The first time it rewrites the contract: without the orchestrator nobody knows the digest of the intent."""
    for _ in range(2):
        done = ansible("ansible-playbook", "-i", inventory, "playbooks/provision.yml")
        assert done.returncode == 0, done.stdout
    assert len(re.findall(r"changed=0 .*failed=0", done.stdout)) == len(HOSTS), done.stdout


def test_settings_that_an_interrupted_run_wrote_are_read_after_the_next_one(inventory, ansible, on):
    """Then nothing is written any more, and only the daemon, which is older than its file, tells of it."""
    before = on(HOSTS[0], "virsh list >/dev/null; touch -d +5sec /etc/libvirt/qemu.conf; pgrep -o libvirtd")
    play = ("ansible-playbook", "-i", inventory, "playbooks/provision.yml", "--limit", HOSTS[0], "--tags", "libvirt")
    for changed in (2, 0):  # the look that found it and the restart
        done = ansible(*play)
        assert re.search(rf"changed={changed} .*failed=0", done.stdout), done.stdout
    assert on(HOSTS[0], "virsh list >/dev/null; pgrep -o libvirtd") != before


BROKEN = {
    # what is done to the first host, and the check that must name it
    "kvm.permission": "chmod 0600 /dev/kvm",
    "libvirt.daemon": "systemctl disable --now libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd",
    "contract.files": "echo options kvm nested=0 > /etc/modprobe.d/kvmfleet.conf",
}


def test_three_broken_things_are_each_named_and_provision_heals_what_is_its_own(validate, kvmfleet, inventory, on):
    """One fault at a time would be three rounds; together they show that each is found beside the others."""
    for fault in BROKEN.values():
        on(HOSTS[0], fault)
    code, hosts = validate()
    assert code == 2
    bad = {f["check"] for f in hosts[HOSTS[0]]["findings"] if f["status"] == "fail"}
    assert hosts[HOSTS[0]]["verdict"] == "failed"
    assert bad == BROKEN.keys()
    assert hosts[HOSTS[1]]["verdict"] in ("proven", "degraded")

    on(HOSTS[0], "systemd-tmpfiles --create --prefix=/dev/kvm")  # udev's work, which no role does
    healed = kvmfleet("provision", "-i", inventory)
    assert healed.returncode == 0, healed.stdout + healed.stderr


def test_a_lab_host_that_loses_kvm_boots_a_guest_under_tcg_and_is_degraded(validate, on):
    on(HOSTS[1], "umount /dev/kvm; rm -f /dev/kvm")  # comes back with the next start of the host
    code, hosts = validate("-l", HOSTS[1], hosts=HOSTS[1:])
    host = hosts[HOSTS[1]]
    assert (code, host["verdict"]) == (0, "degraded")
    assert host["cause"]["check"] == "kvm.node"
    guest = host["evidence"]["guest"]
    assert (guest["outcome"], guest["domain_type"]) == ("works", "qemu")


def test_a_dead_host_is_unreachable_and_the_other_is_still_judged(validate, kvmfleet, on):
    kvmfleet("lab", "ssh", HOSTS[1], "sudo", "systemctl", "poweroff")  # which takes our own login down, sooner or later
    until(lambda: kvmfleet("lab", "status", "story").returncode)
    code, hosts = validate("--boot", "proof", "-T", "5")
    assert code == 1
    assert hosts[HOSTS[1]]["verdict"] == "unreachable"
    assert hosts[HOSTS[0]]["verdict"] in ("proven", "degraded")
    assert kvmfleet("lab", "up", "story", "--bare").returncode == 0
    assert validate("--boot", "proof")[0] == 0
