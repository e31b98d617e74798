"""host_tuning on a real host: refused, shown, made, kept, named when it is broken, and given back.

A container has the kernel of this machine, so only files are written here; tests/vm sees them act.
"""

import json

import pytest

pytestmark = pytest.mark.hosts

HOST = "story-1"
WISHES = {
    "host_tuning_hugepages": [{"size": "2M", "pages": 16}],
    "host_tuning_thp": {"enabled": "madvise"},
    "host_tuning_ksm": "disabled",
    "host_tuning_sysctls": {"vm.swappiness": 10},
    "host_tuning_bridge_netfilter": "bypass",
    "host_tuning_iommu": "passthrough",
}
OURS = "find /etc -name \\*kvmfleet\\* -path \\*/sys\\* -o -name 60-kvmfleet\\*"


@pytest.fixture
def tune(ansible, inventory):
    """Runs the role and writes the contract; gives what Ansible said and how much it changed."""

    def run(wishes, *arguments):
        playbook = ("-i", inventory, "-l", HOST, "playbooks/provision.yml", "--tags", "host_tuning,host_contract")
        done = ansible("ansible-playbook", *playbook, "-e", json.dumps(wishes), *arguments)
        recap = dict(word.split("=") for word in done.stdout.splitlines()[-2].split() if "=" in word)
        assert bool(done.returncode) == bool(int(recap["failed"])), done.stdout + done.stderr
        return done.stdout, int(recap["changed"])

    return run


def test_more_pages_than_memory_are_refused_with_figures_before_anything_changes(tune, on):
    said, changed = tune({"host_tuning_hugepages": [{"size": "2M", "pages": 1 << 24}]})
    assert changed == 0
    assert "not enough memory for 16777216 pages of 2M. They are 32768.0 GiB" in said
    assert on(HOST, OURS) == ""


def test_what_is_declared_is_shown_then_made_and_the_second_run_changes_nothing(tune, on):
    said, _ = tune(WISHES, "--check", "--diff")
    assert "+vm.swappiness = 10" in said
    assert on(HOST, OURS) == ""
    assert tune(WISHES)[1] > 0
    assert set(on(HOST, OURS).split()) >= {
        "/etc/sysctl.d/60-kvmfleet.conf",
        "/etc/systemd/system/kvmfleet-tuning.service",
        "/etc/udev/rules.d/60-kvmfleet-bridge.rules",
    }
    assert on(HOST, "systemctl is-enabled kvmfleet-tuning.service; systemd-analyze verify kvmfleet-tuning.service") == (
        "enabled\n"
    )
    assert tune(WISHES)[1] == 0


def test_a_file_that_somebody_edits_is_named_and_what_leaves_the_inventory_is_gone(tune, on, kvmfleet, inventory):
    on(HOST, "echo vm.swappiness = 100 >> /etc/sysctl.d/60-kvmfleet.conf")
    done = kvmfleet("validate", "-i", inventory, "-l", HOST, "--boot", "none", "--json")
    (host,) = json.loads(done.stdout)["hosts"]
    found = {finding["check"]: finding for finding in host["findings"]}
    assert found["contract.files"]["summary"] == "/etc/sysctl.d/60-kvmfleet.conf has another content"
    assert found["tuning.sysctl"]["status"] == "skip", "the kernel is this machine's"
    assert host["evidence"]["tuning"]["sysctls"]["vm.swappiness"]["next_boot"] == "100"
    assert tune({})[1] > 0
    assert on(HOST, OURS) == ""
