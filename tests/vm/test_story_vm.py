"""From a bare machine with its own kernel to a proven host, and through a reboot. Each test goes on from the last."""

import json
import os
import signal
import time

import pytest

from orchestrator.lab import processes, vm

pytestmark = [pytest.mark.vm, pytest.mark.timeout(2400)]

# What only a reboot settles.
ARGUMENT = "transparent_hugepage=never"
# What is live at once, and what brings it back after the reboot.
TUNING = {
    "host_tuning_hugepages": [{"size": "2M", "pages": 16}],
    "host_tuning_thp": {"defrag": "never"},
    "host_tuning_ksm": "enabled",
    "host_tuning_sysctls": {"vm.swappiness": 10},
}
WISHES = ("-e", json.dumps({"kernel_modules_cmdline": [ARGUMENT], "kernel_modules_reboot": "if-needed"} | TUNING))
KERNEL = ("kernel.module", "kernel.persist", "kernel.options", "kernel.cmdline", "kernel.reboot")
TUNED = ("tuning.hugepages", "tuning.thp", "tuning.ksm", "tuning.sysctl")
LIVE = (
    "cat /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages /sys/kernel/mm/ksm/run /proc/sys/vm/swappiness; "
    "grep -c hugetlbfs /proc/mounts; grep -o never] /sys/kernel/mm/transparent_hugepage/defrag || true"
)


@pytest.fixture
def validate(kvmfleet, inventory):
    """The one host in the report of a validation, and its exit code."""

    def run(*arguments):
        done = kvmfleet("validate", "-i", inventory, "--json", *arguments)
        assert done.stdout, done.stderr
        return json.loads(done.stdout)["hosts"][0], done.returncode

    return run


def statuses(host):
    return {finding["check"]: finding["status"] for finding in host["findings"]}


def proven(host):
    """A guest executed in KVM, at the speed of the machine below, and another one booted as type kvm in libvirt."""
    assert host["verdict"] == "proven", host["cause"]
    found = statuses(host)
    assert [found[check] for check in ("kernel.module", "kvm.exec", "kvm.hardware", "guest.boot")] == ["pass"] * 4
    assert host["evidence"]["guest"]["domain_type"] == "kvm", host["evidence"]["guest"]


def test_a_machine_whose_module_is_not_loaded_is_not_proven(validate, on):
    on("modprobe --remove kvm_amd kvm_intel kvm 2>/dev/null; ! test -e /dev/kvm")  # udev loads it for the processor
    host, code = validate("--boot", "proof")
    assert statuses(host)["kernel.module"] in ("fail", "warn")
    assert host["verdict"] in ("failed", "unknown")
    assert code != 0


def test_provision_hands_over_arguments_reboots_and_boots_a_guest_in_kvm(kvmfleet, inventory, on):
    before = on("cat /proc/sys/kernel/random/boot_id")
    done = kvmfleet("provision", "-i", inventory, *WISHES, "--json")
    (host,) = json.loads(done.stdout)["hosts"]
    assert host["converged"]["outcome"] == "ok", host["converged"]
    proven(host)
    assert done.returncode == 0, done.stderr
    assert on("lsmod | grep -c ^kvm_").strip() == "1"
    assert on("cat /proc/sys/kernel/random/boot_id") != before
    assert "[never]" in on("cat /sys/kernel/mm/transparent_hugepage/enabled")
    assert on(LIVE).split() == ["16", "1", "10", "1", "never]"]


def test_all_of_it_holds_after_a_reboot(kvmfleet, validate, on):
    before = on("cat /proc/sys/kernel/random/boot_id")
    done = kvmfleet("lab", "reboot", "real-1")
    assert done.returncode == 0, done.stderr
    assert on("cat /proc/sys/kernel/random/boot_id") != before
    host, code = validate()
    proven(host)
    assert {statuses(host)[check] for check in (*KERNEL, *TUNED)} == {"pass"}, host["findings"]
    assert code == 0


def test_an_unmodified_linux_boots_in_kvm(validate):
    host, code = validate("--boot", "alpine")
    proven(host)
    assert host["evidence"]["guest"]["depth"] == "alpine"
    assert code == 0


def test_the_second_provision_changes_nothing(kvmfleet, inventory):
    done = kvmfleet("provision", "-i", inventory, *WISHES, "--boot", "proof", "--json")
    (host,) = json.loads(done.stdout)["hosts"]
    assert host["converged"]["outcome"] == "ok", host["converged"]
    assert host["converged"]["changed"] == 0


def test_an_option_becomes_live_without_a_reboot_and_what_left_the_inventory_is_given_back(kvmfleet, inventory, on):
    nested = "cat /sys/module/kvm_amd/parameters/nested /sys/module/kvm_intel/parameters/nested 2>/dev/null || true"
    assert on(nested).strip() in ("1", "Y")
    only = ("--tags", "kernel_modules", "--tags", "host_tuning", "--boot", "none")
    other = json.dumps({"kernel_modules_nested": False, "kernel_modules_cmdline": [ARGUMENT]})
    done = kvmfleet("provision", "-i", inventory, *only, "-e", other, "--json")
    (host,) = json.loads(done.stdout)["hosts"]
    assert host["converged"]["outcome"] == "ok", host["converged"]
    assert on(nested).strip() in ("0", "N")
    assert on(LIVE).split()[:3] == ["0", "0", "60"]


def test_the_console_shows_the_login(kvmfleet, inventory):
    done = kvmfleet("lab", "console", "real-1")
    assert "real-1 login:" in done.stdout


def test_a_machine_that_was_cut_off_comes_back_as_it_was(kvmfleet, inventory, on):
    on("echo kept > /etc/kept; sync")
    status = json.loads(kvmfleet("lab", "status", "real", "--json").stdout)
    (machine,) = processes.find(vm.PROGRAM, f"unix:{status['folder']}/hosts/real-1/qmp,server=on,wait=off")
    os.kill(machine.pid, signal.SIGKILL)  # as a power cut does
    deadline = time.monotonic() + 20
    while kvmfleet("lab", "status", "real").returncode == 0 and time.monotonic() < deadline:
        time.sleep(0.2)
    silent = kvmfleet("lab", "ssh", "real-1", "true")
    assert "real-1 is not running" in silent.stderr
    assert "login:" in silent.stderr, "the end of its console is shown"
    up = kvmfleet("lab", "up", "real", "--bare")
    assert up.returncode == 0, up.stderr
    assert on("cat /etc/kept").strip() == "kept"


def test_a_second_machine_is_in_the_same_network(kvmfleet, inventory, on):
    up = kvmfleet("lab", "up", "real", "--hosts", "2", "--bare")
    assert up.returncode == 0, up.stderr
    greeting = on('timeout 20 bash -c "head -c 4 < /dev/tcp/real-2/22"')
    assert greeting == "SSH-"
