"""The rough side, on the hosts of the story: interrupted runs, two runs at once, a full disk, a host that says no."""

import contextlib
import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from waiting import until

pytestmark = pytest.mark.hosts

HOSTS = ("story-1", "story-2")


@pytest.fixture(scope="module", autouse=True)
def _provisioned(kvmfleet, inventory):
    up = kvmfleet("lab", "up", "story", "--boot", "none")  # whatever the story left behind
    assert " 2 unknown" in up.stdout, up.stdout + up.stderr


def processes(*words):
    """Command lines of this machine that hold all the words; those inside the hosts are among them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if all(word in line for word in words):
                found.append(line)
    return found


def guests(inventory):
    """The proofs that run on hosts of this lab; on those of others, guests come and go meanwhile."""
    lab = json.loads(Path(inventory).with_name("lab.json").read_text())["id"]
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"guest=kvmfleet-proof-" in (path / "cmdline").read_bytes():
                found += [path] if f"/kvmfleet-{lab}-" in (path / "cgroup").read_text() else []
    return found


def clean(on, host):
    """Whether nothing is left of a proof there. A collector that is told to stop tidies up, also when we have ended."""
    left = "virsh --connect qemu:///system list --all --name; find /var/lib/libvirt -name kvmfleet-proof-\\*"
    return on(host, left).strip() == ""


def playing(inventory):
    """Whether an ansible-playbook works on our inventory."""
    return processes("ansible-playbook", str(inventory))


PHASES = {
    # what to run, and when to interrupt it
    "reading the inventory": (["provision"], lambda inventory: processes("ansible-inventory", inventory)),
    "converging": (["provision", "--force"], playing),
    "a guest that boots": (["validate"], guests),
}


@pytest.mark.parametrize("phase", PHASES)
def test_ctrl_c_ends_everything_and_exits_130(kvmfleet_start, inventory, on, phase):
    arguments, begun = PHASES[phase]
    run = kvmfleet_start(*arguments, "-i", inventory)
    until(lambda: begun(inventory) or run.poll() is not None)
    os.killpg(run.pid, signal.SIGINT)
    out, err = run.communicate(timeout=300)
    assert run.returncode == 130, err
    assert "Traceback" not in err
    assert "interrupted" in err
    assert out == ""
    assert processes(inventory) == []
    until(lambda: not guests(inventory))  # libvirt ends the guest when its owner is gone
    until(lambda: all(clean(on, host) for host in HOSTS))


def test_the_second_of_two_provisions_says_who_holds_the_lock(kvmfleet_start, kvmfleet, inventory):
    first = kvmfleet_start("provision", "-i", inventory, "--boot", "none")
    try:
        until(lambda: playing(inventory))
        os.kill(first.pid, signal.SIGSTOP)  # it has the lock for as long as the others take
        second = kvmfleet("provision", "-i", inventory, "-l", HOSTS[1])
        assert second.returncode == 1
        assert re.search(rf"{HOSTS[1]}: held by `kvmfleet provision`, process {first.pid} of root on", second.stderr)
        down = kvmfleet("lab", "down", "story", "--yes")  # must not pull the hosts from under it
        assert down.returncode == 1
        assert f"process {first.pid} of root" in down.stderr
    finally:
        os.kill(first.pid, signal.SIGCONT)
        first.communicate(timeout=600)


def test_a_full_disk_costs_the_history_and_not_the_report(kvmfleet, inventory, environment, tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], check=True)
    try:
        with contextlib.suppress(OSError):
            (tmp_path / "ballast").write_bytes(bytes(1 << 16))
        full = environment | {"KVMFLEET_STATE_DIR": str(tmp_path)}
        done = kvmfleet("validate", "-i", inventory, "--boot", "proof", "--json", env=full)
        assert [host["verdict"] for host in json.loads(done.stdout)["hosts"]] == ["degraded", "degraded"]
        assert done.returncode == 1
        assert str(tmp_path) in done.stderr
        assert "Traceback" not in done.stderr
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_host_that_fails_before_any_change_leaves_the_other_to_be_finished_and_proven(kvmfleet, inventory, on):
    on(
        HOSTS[0],
        "cp /usr/lib/os-release /root/was; mv /etc/debian_version /root; "
        "sed -i s/[Dd]ebian/plan9/g /usr/lib/os-release",
    )
    try:
        done = kvmfleet("provision", "-i", inventory, "--boot", "proof", "--json", "--force")
        assert done.returncode == 2, done.stderr
        hosts = {host["name"]: host for host in json.loads(done.stdout)["hosts"]}
        assert hosts[HOSTS[0]]["converged"]["outcome"] == "failed"
        assert hosts[HOSTS[0]]["converged"]["changed"] == 0
        assert hosts[HOSTS[0]]["verdict"] == "failed"
        assert "plan9 GNU/Linux 12 on x86_64 has no table of packages" in hosts[HOSTS[0]]["cause"]["summary"]
        assert hosts[HOSTS[1]]["converged"]["outcome"] == "ok"
        assert hosts[HOSTS[1]]["verdict"] in ("proven", "degraded")
        assert "Traceback" not in done.stderr
    finally:
        on(HOSTS[0], "mv /root/was /usr/lib/os-release; mv /root/debian_version /etc")


@pytest.mark.parametrize("variable", ["kvmfleet_profile=dreamland", '{"libvirt_users": ["nobody-here"]}'])
def test_a_wrong_variable_fails_before_anything_is_changed(kvmfleet, inventory, variable):
    done = kvmfleet("provision", "-i", inventory, "--boot", "none", "--json", "-e", variable)
    for host in json.loads(done.stdout)["hosts"]:
        assert host["converged"]["outcome"] == "failed", host["converged"]
        assert host["converged"]["changed"] == 0
        word = "dreamland" if "dreamland" in variable else "nobody-here"
        assert word in host["converged"]["failure"]["message"]


def test_a_host_that_loses_sudo_is_named_with_what_to_do(kvmfleet, inventory, on):
    on(HOSTS[0], "mv /usr/bin/sudo /usr/bin/sudo.away")
    try:
        done = kvmfleet("validate", "-i", inventory, "--boot", "proof", "--json")
        assert done.returncode == 1
        host = json.loads(done.stdout)["hosts"][0]
        assert host["verdict"] in ("unknown", "unreachable")
        assert "sudo" in host["cause"]["summary"]
        assert host["cause"]["fix"]
    finally:
        subprocess.run(["mv", *_paths_of_sudo(inventory)], check=True)


def _paths_of_sudo(inventory):
    """Nobody can become root there any more, but the host's files are ours."""
    folder = Path(inventory).parent / "hosts" / HOSTS[0] / "root/usr/bin"
    return [folder / "sudo.away", folder / "sudo"]


def test_a_killed_collector_leaves_no_guest_and_its_files_to_the_next_boot(kvmfleet_start, kvmfleet, inventory, on):
    run = kvmfleet_start("validate", "-i", inventory, "-l", HOSTS[0], "--json")
    until(lambda: guests(inventory) or run.poll() is not None)
    (guest,) = guests(inventory)
    os.kill(int(guest.name), signal.SIGSTOP)  # or it might be where it should be before its collector is killed
    on(HOSTS[0], 'pkill -KILL -f "^/usr/bin/python3 -I -c import sys"')
    with contextlib.suppress(ProcessLookupError):  # libvirt may have killed it already
        os.kill(int(guest.name), signal.SIGCONT)
    out, err = run.communicate(timeout=300)
    assert run.returncode == 1, err
    assert json.loads(out)["hosts"][0]["verdict"] == "unknown"
    until(lambda: not guests(inventory))
    until(lambda: on(HOSTS[0], "virsh --connect qemu:///system list --all --name").strip() == "")
    left = on(HOSTS[0], "find /var/lib/libvirt -name kvmfleet-proof-\\*").split()
    assert left, "nobody was there to remove them"
    on(HOSTS[0], f"touch --date=yesterday {' '.join(left)}")
    assert kvmfleet("validate", "-i", inventory, "-l", HOSTS[0]).returncode == 0
    assert on(HOSTS[0], "find /var/lib/libvirt -name kvmfleet-proof-\\*") == ""
