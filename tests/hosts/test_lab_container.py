"""Labs of real containers: made, used, killed at bad moments, and gone without a trace."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from waiting import until

from orchestrator.errors import LabError
from orchestrator.lab import container, images, labs, network, processes, record, tree
from orchestrator.lab.spec import LabSpec

pytestmark = [
    pytest.mark.hosts,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(shutil.which("systemd-nspawn") is None, reason="needs systemd-nspawn"),
]

UP = """
import sys
from orchestrator.lab import labs
from orchestrator.lab.spec import LabSpec
spec = LabSpec(name=sys.argv[1], systems=("debian-12",), provider="container")
labs.up(spec, progress=lambda text, fraction=None: print(text, flush=True))
"""


def quiet(message, fraction=None):
    pass


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """State of its own for this module; images come from the user's cache, as they cost half a minute each."""
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("labs")
    patch.setenv("KVMFLEET_STATE_DIR", str(folder))
    yield folder
    for name in record.names():
        labs.down(name, progress=quiet)
    patch.undo()


@pytest.fixture(scope="module")
def lab(state):
    """One host of each system."""
    return labs.up(LabSpec(name="pair", provider="container"), progress=quiet)


def ssh(lab, host, command, *, check=True):
    argv = labs.ssh_argv(lab.name, lab.hosts[host].name, [command])
    return subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=check
    ).stdout.strip()


def let_go(name):
    """The folder of a lab whose `up` was killed; a child of that has it locked until it executes something."""
    folder = record.folder_of(name)
    if folder.exists():
        with tree.hold(folder, wait=True):
            pass
    return folder


def left_behind(lab_id, *folders):
    """All that bears a lab's id or a path of its folders, anywhere on this machine."""
    listings = [
        *(["ip", "link"], ["nft", "list", "ruleset"], ["cat", "/proc/self/mountinfo"]),
        ["find", "/sys/fs/cgroup", "/run/kvmfleet", "/run/systemd", *map(str, folders), "-maxdepth", "4"],
    ]
    texts = [subprocess.run(argv, capture_output=True, text=True).stdout for argv in listings]
    marks = [lab_id, *map(str, folders)]
    lines = [line for text in texts for line in text.splitlines() if any(mark in line for mark in marks)]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            argv = (folder / "cmdline").read_text(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if any(mark in argv for mark in marks) and int(folder.name) != os.getpid():
            lines.append(f"process {folder.name}: {argv}")
    return [line for line in lines if line not in map(str, folders)]


@pytest.mark.parametrize("host", [0, 1])
def test_the_login_user_is_unprivileged_and_may_use_sudo(lab, host):
    assert ssh(lab, host, "id -un") == "kvmfleet"
    assert ssh(lab, host, "sudo -n id -un") == "root"


@pytest.mark.parametrize(("host", "version"), [(0, "12"), (1, "13")])
def test_a_host_runs_the_system_that_it_is_said_to_run(lab, host, version):
    assert ssh(lab, host, '. /etc/os-release; echo "$ID $VERSION_ID"') == f"debian {version}"


@pytest.mark.parametrize("host", [0, 1])
def test_a_host_boots_a_real_systemd_without_a_failed_unit(lab, host):
    assert ssh(lab, host, "systemctl is-system-running --wait", check=False) == "running"


@pytest.mark.parametrize("host", [0, 1])
def test_names_resolve_to_the_hosts_that_have_them(lab, host):
    assert ssh(lab, host, "hostname") == lab.hosts[host].name
    for other in lab.hosts:
        assert ssh(lab, host, f"getent ahostsv4 {other.name} | head -n 1").split()[0] == other.address


def test_hosts_reach_each_other(lab):
    banner = ssh(lab, 0, f"timeout 60 bash -c 'head -c 7 < /dev/tcp/{lab.hosts[1].name}/22'")
    assert banner == "SSH-2.0"


def test_hosts_reach_the_distributions_archive(lab):
    assert ssh(lab, 0, "sudo apt-get update --error-on=any > /dev/null 2>&1 && echo reached") == "reached"


def test_a_host_with_another_key_is_not_trusted(lab, tmp_path):
    wrong = tmp_path / "known_hosts"
    one, two = (host.address for host in lab.hosts)
    wrong.write_text((lab.folder / "known_hosts").read_text().replace(two, "0.0.0.0").replace(one, two))
    argv = ["ssh", "-F", lab.ssh_config, "-o", f"UserKnownHostsFile={wrong}", "-o", "BatchMode=yes", two, "true"]
    refused = subprocess.run(argv, capture_output=True, text=True)
    assert refused.returncode == 255
    assert "verification failed" in refused.stderr


def test_plain_ansible_takes_the_inventory_and_becomes_root(lab):
    argv = [
        Path(sys.executable).with_name("ansible"),
        "kvm_hosts",
        "-i",
        lab.inventory,
        "-m",
        "command",
        "-a",
        "id -un",
    ]
    told = subprocess.run(argv, capture_output=True, text=True, timeout=120, env=os.environ | {"ANSIBLE_NOCOLOR": "1"})
    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stdout.splitlines().count("root") == 2


@pytest.mark.skipif(not Path("/dev/kvm").exists(), reason="this machine has no /dev/kvm")
def test_a_host_has_a_kvm_device_of_its_own(lab):
    before = Path("/dev/kvm").stat()
    assert ssh(lab, 0, "stat -c '%U:%G %a %t:%T' /dev/kvm") == "root:kvm 660 a:e8"
    ssh(lab, 0, "sudo chmod 0604 /dev/kvm; sudo chown nobody /dev/kvm")
    after = Path("/dev/kvm").stat()
    assert (before.st_mode, before.st_uid) == (after.st_mode, after.st_uid)
    assert ssh(lab, 1, "stat -c %a /dev/kvm") == "660"


def test_hosts_do_not_share_a_control_group(lab):
    ssh(lab, 0, "sudo systemctl kill --signal=KILL dbus.service || true")
    assert ssh(lab, 1, "systemctl is-active dbus.service") == "active"
    names = {f"kvmfleet-{lab.id}-{host.number}" for host in lab.hosts}
    if not Path("/run/systemd/system").is_dir():
        assert names <= {path.name for path in container.cgroups.hierarchies()[0].iterdir()}


def test_up_starts_a_stopped_host_and_keeps_what_is_on_it(lab):
    ssh(lab, 0, "echo kept | sudo tee /etc/kept; sync")
    processes.end(processes.find("systemd-nspawn", f"--directory={lab.root(lab.hosts[0])}"), grace_s=10)
    assert [host.state for host in labs.status("pair").hosts] == ["stopped", "running"]
    assert labs.up(LabSpec(name="pair", provider="container"), progress=quiet) == lab
    assert ssh(lab, 0, "cat /etc/kept") == "kept"


def test_a_host_that_reboots_comes_back_by_itself(lab):
    def boot():
        with contextlib.suppress(LabError, subprocess.SubprocessError):
            return ssh(lab, 0, "systemctl show --value --property UserspaceTimestampMonotonic")
        return ""

    before = boot()
    ssh(lab, 0, "sudo reboot", check=False)
    until(lambda: boot() not in ("", before), pause_s=0.5)
    assert len(processes.find("systemd-nspawn", f"--directory={lab.root(lab.hosts[0])}")) == 1


def test_up_repairs_what_a_restart_of_this_machine_took(lab):
    labs.PROVIDERS["container"].stop(lab, lab.hosts, grace_s=5)
    network.disconnect(lab)
    assert [host.state for host in labs.status("pair").hosts] == ["stopped", "stopped"]
    labs.up(LabSpec(name="pair", provider="container"), progress=quiet)
    assert ssh(lab, 0, f"getent hosts {lab.hosts[1].name}")


def test_a_subnet_that_collides_by_now_is_said(lab):
    labs.PROVIDERS["container"].stop(lab, lab.hosts, grace_s=5)
    network.disconnect(lab)
    subprocess.run(["ip", "route", "add", "blackhole", lab.subnet], check=True)
    try:
        with pytest.raises(LabError, match="collides with"):
            labs.up(LabSpec(name="pair", provider="container"), progress=quiet)
    finally:
        subprocess.run(["ip", "route", "del", "blackhole", lab.subnet], check=True)
    labs.up(LabSpec(name="pair", provider="container"), progress=quiet)


def test_a_firewall_that_drops_is_opened_for_the_lab_only_and_closed_again(lab):
    mine = network.bridge(lab.id)
    rules = f"""
table ip lab_test_firewall {{
  chain forward {{
    type filter hook forward priority 10; policy drop;
    iifname != "{mine}" oifname != "{mine}" accept
  }}
}}
"""  # its rule keeps the test from cutting off other users of this machine
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
    try:
        labs.up(LabSpec(name="pair", provider="container"), progress=quiet)
        labs.up(LabSpec(name="pair", provider="container"), progress=quiet)
        shown = subprocess.run(
            ["nft", "list", "table", "ip", "lab_test_firewall"], capture_output=True, text=True
        ).stdout
        assert shown.count(f'comment "kvmfleet_{lab.id}"') == 2
        assert ssh(lab, 0, "sudo apt-get update --error-on=any > /dev/null 2>&1 && echo reached") == "reached"
        network.disconnect(lab)
        shown = subprocess.run(
            ["nft", "list", "table", "ip", "lab_test_firewall"], capture_output=True, text=True
        ).stdout
        assert lab.id not in shown.replace(mine, "")
    finally:
        subprocess.run(["nft", "delete", "table", "ip", "lab_test_firewall"], check=True)
    labs.up(LabSpec(name="pair", provider="container"), progress=quiet)


def test_what_a_host_downloaded_serves_the_next_one(lab):
    ssh(lab, 0, "sudo apt-get install --yes --quiet tree && sudo ln -s /etc/shadow /var/cache/apt/archives/x_1_all.deb")
    labs.harvest(lab)
    kept = images.debs(lab.hosts[0].image)
    assert [path.name for path in kept.glob("tree_*")]
    assert not (kept / "x_1_all.deb").exists()


def test_down_leaves_nothing_of_a_lab_that_was_used(state, lab):
    other = labs.up(LabSpec(name="used", systems=("debian-13",), provider="container"), progress=quiet)
    ssh(other, 0, "sudo touch /etc/fixed && sudo chattr +i /etc/fixed; nohup sleep 600 > /dev/null 2>&1 &", check=False)
    told = labs.down("used", dry_run=True, progress=quiet)
    assert f"interface {network.bridge(other.id)}" in told
    assert f"folder {other.folder}" in told
    assert labs.status("used").hosts[0].state == "running"
    labs.down("used", progress=quiet)
    assert left_behind(other.id, other.folder) == []
    assert [host.state for host in labs.status("pair").hosts] == ["running", "running"]


@pytest.mark.parametrize(
    ("message", "delay_s", "then"),
    [
        ("making it from", 0.0, "down"),
        ("making it from", 0.4, "down"),
        ("making it from", 0.4, "up and down"),
        ("starting", 0.0, "down"),
        ("starting", 0.1, "down"),
        ("starting", 0.1, "up and down"),
        ("starting", 0.6, "down"),
    ],
)
def test_nothing_is_left_of_an_up_that_was_killed(state, lab, message, delay_s, then):
    assert images.root(lab.hosts[0].image).is_dir()
    up = subprocess.Popen([sys.executable, "-c", UP, "killed"], stdout=subprocess.PIPE, text=True)
    with up:
        assert any(message in line for line in up.stdout)
        time.sleep(delay_s)
        up.send_signal(signal.SIGKILL)
    let_go("killed")
    killed = labs.find("killed")
    if then != "down":
        labs.up(LabSpec(name="killed", provider="container"), progress=quiet)
        assert ssh(killed, 0, "sudo -n id -un") == "root"
    labs.down("killed", progress=quiet)
    assert left_behind(killed.id, killed.folder) == []


def test_nothing_is_left_of_an_up_that_was_killed_while_it_made_its_network(state, lab):
    delay_s, hits = 0.1, 0
    while hits < 4:  # later and later, until it had begun with the network four times
        with subprocess.Popen([sys.executable, "-c", UP, "early"], stdout=subprocess.DEVNULL) as up:
            time.sleep(delay_s)
            up.send_signal(signal.SIGKILL)
        early, folder = labs.record.read("early"), let_go("early")
        if folder.exists():
            hits += any(trace.startswith("interface") for trace in labs.down("early", progress=quiet))
        assert left_behind(early.id if early else str(folder), folder) == []
        delay_s *= 1.1


def test_a_killed_build_leaves_no_process_and_no_image(state, tmp_path, monkeypatch):
    monkeypatch.setenv("KVMFLEET_CACHE_DIR", str(tmp_path))
    up = subprocess.Popen([sys.executable, "-c", UP, "build"], stdout=subprocess.PIPE, text=True)
    with up:
        assert any("extracting" in line for line in up.stdout)
        up.send_signal(signal.SIGKILL)
    let_go("build")
    build = labs.find("build")
    assert not images.root(images.key("debian-12")).exists()
    labs.down("build", progress=quiet)
    assert left_behind(build.id, build.folder, tmp_path) == []


def test_a_cached_lab_needs_no_network_and_puts_forwarding_back(state, lab):
    """In a network namespace of its own whose only way out leads nowhere."""
    code = (
        UP
        + """
from pathlib import Path
forwarding = [Path(f"/proc/sys/net/ipv4/conf/{name}/forwarding") for name in ("up0", "all")]
print("switches", *(switch.read_text().strip() for switch in forwarding))
labs.down(sys.argv[1], progress=lambda text, fraction=None: None)
print("switches", *(switch.read_text().strip() for switch in forwarding))
print("left", *Path("/run").glob("kvmfleet*"), *Path("/run/systemd/nspawn").glob("*/*"))
"""
    )
    setup = """
mount -t tmpfs tmpfs /run
ip link set lo up
ip link add up0 type bridge && ip address add 192.0.2.2/24 dev up0 && ip link set up0 up
ip route add default via 192.0.2.1
echo 0 > /proc/sys/net/ipv4/ip_forward
exec "$@"
"""
    argv = ["unshare", "--net", "--mount", "sh", "-ec", setup, "sh", sys.executable, "-c", code, "offline"]
    told = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    assert told.returncode == 0, told.stderr
    assert "offline-1: answers at" in told.stdout
    assert told.stdout.splitlines()[-3:] == ["switches 1 0", "switches 0 0", "left"]


def test_immutable_files_are_removed_and_mounts_are_not_entered(tmp_path):
    outside, inside = tmp_path / "outside", tmp_path / "doomed" / "mounted"
    outside.mkdir()
    (outside / "precious").touch()
    inside.mkdir(parents=True)
    (tmp_path / "doomed" / "fixed").mkdir()
    (tmp_path / "doomed" / "fixed" / "file").touch()
    subprocess.run(["mount", "--bind", outside, inside], check=True)
    try:
        with pytest.raises(LabError, match="is mounted inside"):
            tree.remove(tmp_path / "doomed")
    finally:
        subprocess.run(["umount", inside], check=True)
    assert (outside / "precious").exists()
    subprocess.run(["chattr", "-R", "+i", tmp_path / "doomed" / "fixed"], check=True)
    tree.remove(tmp_path / "doomed")
    assert not (tmp_path / "doomed").exists()


def test_a_file_system_on_which_devices_do_not_work_is_refused(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nodev", "tmpfs", tmp_path], check=True)
    try:
        with pytest.raises(LabError, match="Device nodes do not work in") as caught:
            container.Container().require(tmp_path)
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert "nodev" in caught.value.hint


def test_the_record_names_all_that_down_needs(lab):
    assert msgspec.json.decode((lab.folder / "lab.json").read_bytes())["id"] == lab.id
