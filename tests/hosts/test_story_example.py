"""inventory/example as a whole on two real hosts: few tasks, no second change, everything declared proven, edits seen.

The tests of this file tell one story in order, on the lab of the other stories.
"""

import json
import re
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.hosts

HOSTS = ("story-1", "story-2")
EXAMPLE = Path("inventory/example/group_vars/kvm_hosts.yml")
GROUPS = ("network", "storage", "tuning", "security", "guests", "contract")
MOST_TASKS = 60
# What a container cannot have: its kernel's values are those of this machine, which has neither SELinux nor AppArmor.
NOT_IN_A_CONTAINER = {"tuning.thp", "tuning.sysctl", "security.svirt"}


def edited():
    """The example's networks and pools, each with one thing that is another one."""
    declared = yaml.safe_load(EXAMPLE.read_text())
    networks, pools = declared["libvirt_networks"], declared["libvirt_storage_pools"]
    networks[1]["dns"]["domain"] = "edited.example"
    networks[1]["dhcp"]["hosts"][0]["name"] = "edited"
    pools[0]["path"] = "/srv/edited"
    return json.dumps({"libvirt_networks": networks, "libvirt_storage_pools": pools})


@pytest.fixture
def playbook(ansible, inventory):
    """Runs provision.yml with the example's variables, without the orchestrator; gives what it printed."""

    def run(*arguments):
        done = ansible("ansible-playbook", "-i", inventory, "playbooks/provision.yml", "-e", f"@{EXAMPLE}", *arguments)
        assert done.returncode == 0, done.stdout
        return done.stdout

    return run


def recaps(output):
    """The counters of every host."""
    lines = re.findall(r"^story-\d +: (.+)$", output, re.M)
    assert len(lines) == len(HOSTS), output
    return [{name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", line)} for line in lines]


def test_every_declared_thing_is_there_and_proven(kvmfleet, inventory):
    done = kvmfleet("provision", "-i", inventory, "-e", f"@{EXAMPLE}", "--json")
    hosts = json.loads(done.stdout)["hosts"]
    assert [host["converged"]["outcome"] for host in hosts] == ["ok", "ok"], [host["converged"] for host in hosts]
    for host in hosts:
        found = {f["check"]: f["status"] for f in host["findings"] if f["check"].split(".")[0] in GROUPS}
        passed = {check for check, status in found.items() if status == "pass"}
        assert {"network.active", "network.equal", "storage.active", "storage.equal", "storage.usable"} <= passed, found
        assert {"security.sandbox", "security.sockets", "security.firewall", "guests.policy"} <= passed, found
        assert {check for check in found if found[check] not in ("pass", "skip")} <= NOT_IN_A_CONTAINER, found
        assert host["evidence"]["guest"]["outcome"] == "works"


def test_the_second_run_changes_nothing_with_few_tasks_and_check_mode_is_clean(playbook):
    playbook()  # writes the contract anew: without the orchestrator nobody knows the digest of the intent
    for more in ((), ("--check", "--diff")):
        for recap in recaps(playbook(*more)):
            assert (recap["changed"], recap["failed"]) == (0, 0)
            assert 0 < recap["ok"] <= MOST_TASKS


def test_an_edited_network_and_pool_are_shown_first_and_then_really_changed(playbook, on):
    shown = playbook("-e", edited(), "--check", "--diff")
    for line in ("edited.example", 'name="edited"', "/srv/edited"):
        assert len(re.findall(rf"^ *\+.*{re.escape(line)}", shown, re.M)) >= len(HOSTS), shown
    look = "virsh net-dumpxml guests; virsh pool-dumpxml images"
    assert all("edited" not in on(host, look) for host in HOSTS)

    playbook("-e", edited())
    for host in HOSTS:
        now = on(host, look)
        assert now.count("edited") >= 3, now
        assert on(host, "virsh net-dumpxml guests | grep -c edited.example").strip() == "1"
        assert on(host, "test -d /srv/edited && test -d /srv/images && echo both").strip() == "both"
    assert [recap["changed"] for recap in recaps(playbook("-e", edited()))] == [0, 0]


def test_what_leaves_the_inventory_leaves_the_hosts(kvmfleet, inventory, on):
    done = kvmfleet("provision", "-i", inventory, "--json", "--boot", "proof")
    assert done.returncode == 0, done.stderr
    for host in HOSTS:
        assert "guests" not in on(host, "virsh net-list --all --name").split()
        assert "images" not in on(host, "virsh pool-list --all --name").split()
        assert on(host, "test ! -e /etc/sysctl.d/60-kvmfleet.conf && echo gone").strip() == "gone"
