"""From a bare machine with its own kernel to a proven host, and through a reboot. Each test goes on from the last."""

import json
import os
import signal
import time

import pytest

from orchestrator.lab import processes, vm
from orchestrator.lab.faults.catalogue import catalogue
from tests.hosts.waiting import until

pytestmark = [pytest.mark.vm, pytest.mark.timeout(4800)]

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

# Faults that no container can have, but for one: the first machine may have one processor only.
DRILLED = [f for f in catalogue() if f.providers == ("vm",) and f.id != "processor-offline"]
# These change with what else the machine does.
MOMENTARY = ("memory.", "upkeep.oom")

# The machine is its own file server, with the kernel's NFS. To one of its exports root, and so libvirt, is nobody.
SERVER = """
export DEBIAN_FRONTEND=noninteractive
apt-get -q -y -o Dpkg::Options::=--force-unsafe-io install --no-install-recommends nfs-kernel-server
mkdir -p /srv/export/open /srv/export/squashed
chown libvirt-qemu: /srv/export/squashed
echo "/srv/export/open real-1(rw,no_root_squash,no_subtree_check)" > /etc/exports
echo "/srv/export/squashed real-1(rw,root_squash,no_subtree_check)" >> /etc/exports
systemctl enable --now nfs-server
exportfs -ra
"""
NOT_THERE = """
for pool in nas squashed; do virsh pool-destroy $pool; virsh pool-undefine $pool; done
systemctl disable --now nfs-server
"""
ON_NFS = ("storage.reach", "storage.active", "storage.equal", "storage.usable")


def nfs(name, folder, **fields):
    source = {"hosts": ["real-1"], "dir": f"/srv/export/{folder}", "format": "nfs"}
    return {"name": name, "type": "netfs", "path": f"/srv/{name}", "source": source, **fields}


NAS = nfs("nas", "open", mode="0711")
SQUASHED = nfs("squashed", "squashed", owner="libvirt-qemu", mode="0755")


@pytest.fixture
def pools(kvmfleet, inventory):
    """Provisions the host with these pools; gives the host of the report."""

    def run(*declared):
        only = ("--tags", "libvirt_storage", "--tags", "host_contract", "--boot", "none", "--json")
        wishes = ("-e", json.dumps({"libvirt_storage_pools": declared}))
        return json.loads(kvmfleet("provision", "-i", inventory, *WISHES, *wishes, *only).stdout)["hosts"][0]

    return run


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


def finding(host, check):
    return next(finding for finding in host["findings"] if finding["check"] == check)


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
    done = kvmfleet("provision", "-i", inventory, *WISHES, "--boot", "proof", "--json", "--force")
    (host,) = json.loads(done.stdout)["hosts"]
    assert host["converged"]["outcome"] == "ok", host["converged"]
    assert host["converged"]["changed"] == 0


def test_an_option_that_somebody_loads_by_hand_is_drift_that_provision_heals(kvmfleet, inventory):
    """As the fault does it: the module is loaded anew with another value, and modprobe.d says what it said."""

    def look():
        done = kvmfleet("drift", "-i", inventory, *WISHES, "--json")
        (host,) = json.loads(done.stdout)["hosts"]
        return done.returncode, {item["item"]: item for item in host["items"]}

    assert look() == (0, {})
    began_s = time.time()
    assert kvmfleet("lab", "break", "real-1", "nested-other-now").returncode == 0
    try:
        code, items = look()
        (name,) = items
        assert code == 2
        assert name in ("parameter:kvm_amd.nested", "parameter:kvm_intel.nested")
        assert items[name]["owner"] == "kernel_modules"
        assert items[name]["since_s"] >= began_s
        assert " provision " in items[name]["heal"]
        done = kvmfleet("provision", "-i", inventory, *WISHES, "--boot", "proof", "--drifted", "--json")
        (host,) = json.loads(done.stdout)["hosts"]
        assert (host["converged"]["outcome"], host["left"]) == ("ok", []), host["converged"]
    finally:
        assert kvmfleet("lab", "heal", "real-1").returncode == 0
    assert look() == (0, {})


@pytest.fixture(scope="module")
def healthy(kvmfleet, inventory):
    """What is found on the machine with nothing wrong, by the strict profile: a lab is lenient with clocks."""
    return lasting(json.loads(kvmfleet(*STRICT, inventory).stdout)["hosts"][0])


def lasting(host):
    """Check -> its finding."""
    return {f["check"]: f for f in host["findings"] if not f["check"].startswith(MOMENTARY)}


STRICT = ("validate", "--profile", "production", "--boot", "proof", "--json", "-i")


@pytest.mark.parametrize("fault", DRILLED, ids=lambda fault: fault.id)
def test_a_fault_that_only_a_machine_can_have_is_named_and_nothing_else(kvmfleet, inventory, healthy, fault):
    broken = kvmfleet("lab", "break", "real-1", fault.id)
    try:
        assert broken.returncode == 0, broken.stderr
        found = lasting(json.loads(kvmfleet(*STRICT, inventory).stdout)["hosts"][0])
    finally:
        healed = kvmfleet("lab", "heal", "real-1")
    assert healed.returncode == 0, healed.stderr
    loud = {c for c, f in found.items() if f["status"] not in ("pass", "skip") and f["status"] != healthy[c]["status"]}
    causes = {f["cause"] for f in found.values()} - {f["cause"] for f in healthy.values()}
    assert loud | causes == {fault.check}, [f["summary"] for c, f in found.items() if c in loud | causes]


def test_all_of_them_are_healed(kvmfleet, validate, inventory, healthy):
    now = lasting(json.loads(kvmfleet(*STRICT, inventory).stdout)["hosts"][0])
    assert {c: f["status"] for c, f in now.items()} == {c: f["status"] for c, f in healthy.items()}
    proven(validate()[0])


def test_an_export_that_is_missing_is_named(pools, on):
    on(SERVER)
    host = pools(nfs("nas", "none"))
    assert host["converged"]["outcome"] == "failed"
    message = host["converged"]["failure"]["message"]
    assert message.startswith("nas does not start: "), message
    assert "mount.nfs: " in message
    assert "real-1:/srv/export/none" in message


def test_qemu_can_use_pools_of_a_file_server_that_trusts_root_and_of_one_that_does_not(pools, on):
    host = pools(NAS, SQUASHED)
    assert host["converged"]["outcome"] == "ok", host["converged"]
    assert [statuses(host)[check] for check in ON_NFS] == ["pass"] * 4, host["findings"]
    assert on("virsh pool-list --name --autostart").split() == ["nas", "squashed"]
    assert on("stat --file-system --format %T /srv/nas /srv/squashed").split() == ["nfs", "nfs"]
    assert on("stat --format %a:%U /srv/export/open /srv/export/squashed").split() == ["711:root", "755:libvirt-qemu"]
    assert on("ls -A /srv/export/open /srv/export/squashed").split() == ["/srv/export/open:", "/srv/export/squashed:"]
    again = pools(NAS, SQUASHED)
    assert again["converged"]["outcome"] == "ok", again["converged"]
    assert again["converged"]["changed"] == 0


def test_what_a_file_server_does_not_let_qemu_do_is_named(validate, on):
    on("chown root: /srv/export/squashed")
    host, _ = validate("--boot", "none")
    assert "squashed: libvirt-qemu gets no file there (EACCES)" in finding(host, "storage.usable")["summary"]
    on("chown libvirt-qemu: /srv/export/squashed; exportfs -u real-1:/srv/export/open")
    host, code = validate("--boot", "none")
    # which of the two depends on what the kernel still remembers of the folder
    assert host["cause"]["check"] in ("storage.reach", "storage.usable"), host["cause"]
    assert "nas: " in host["cause"]["summary"]
    assert code == 2
    on("exportfs -ra")


def test_a_file_server_that_is_gone_is_the_cause_though_libvirt_hangs_too(validate, pools, on):
    on("systemctl stop nfs-server; systemctl restart libvirtd")  # which also ends by itself, and is started by a client
    host, code = validate()
    assert host["cause"]["check"] == "storage.reach", host["cause"]
    assert "/srv/nas from real-1:/srv/export/open does not answer" in host["cause"]["summary"]
    assert finding(host, "libvirt.connect")["cause"] == "storage.reach"
    assert host["evidence"]["errors"] == {}
    assert (host["verdict"], code) == ("failed", 2)
    stopped = pools(NAS, SQUASHED)["converged"]
    assert stopped["changed"] == 0
    assert "/srv/nas did not answer" in stopped["failure"]["message"]
    on(
        "systemctl start nfs-server; timeout 600 touch /srv/nas/back; rm /srv/nas/back"
    )  # first it waits for old clients
    host, code = validate()
    proven(host)
    assert [statuses(host)[check] for check in ON_NFS] == ["pass"] * 4, host["findings"]
    assert code == 0
    on(NOT_THERE)


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
    until(lambda: kvmfleet("lab", "status", "real").returncode)
    silent = kvmfleet("lab", "ssh", "real-1", "true")
    assert "real-1 is not running" in silent.stderr
    assert "login:" in silent.stderr, "the end of its console is shown"
    up = kvmfleet("lab", "up", "real", "--bare")
    assert up.returncode == 0, up.stderr
    assert on("cat /etc/kept").strip() == "kept"


def test_a_second_machine_is_in_the_same_network(kvmfleet, inventory, on):
    up = kvmfleet("lab", "up", "real", "--hosts", "2", "--cpus", "2", "--bare")
    assert up.returncode == 0, up.stderr
    greeting = on('timeout 120 bash -c "head -c 4 < /dev/tcp/real-2/22"')
    assert greeting == "SSH-"


def test_a_processor_of_two_that_is_off_line_is_named(kvmfleet, validate):
    def status():
        return statuses(validate("--limit", "real-2", "--boot", "none")[0])["cpu.online"]

    assert status() == "pass"
    try:
        assert kvmfleet("lab", "break", "real-2", "processor-offline").returncode == 0
        assert status() == "warn"
    finally:
        assert kvmfleet("lab", "heal", "real-2").returncode == 0
    assert status() == "pass"
