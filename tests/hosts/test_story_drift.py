"""Drift on two real hosts: none on one that nobody touched, also after a boot, and of what was touched the right item.

The tests of this file tell one story in order.
"""

import json
import sqlite3
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytestmark = pytest.mark.hosts

HOST, OTHER = "story-1", "story-2"  # Debian 12 and Debian 13
LOOKS = 20
WISHES = json.dumps(
    {
        "libvirt_networks": [{"name": "watched", "subnet": "10.77.5.0/24"}],
        "host_tuning_sysctls": {"vm.dirty_ratio": 15},
    }
)


@pytest.fixture
def drift(kvmfleet, inventory):
    """Looks for drift; gives the exit code and the hosts of the report by name."""

    def run(*arguments, variables=WISHES):
        done = kvmfleet("drift", "-i", inventory, "-e", variables, "--json", *arguments)
        assert done.stdout, done.stderr
        return done.returncode, {host["host"]: host for host in json.loads(done.stdout)["hosts"]}

    return run


def provision(kvmfleet, inventory, *arguments):
    """Gives the hosts of the report by name."""
    done = kvmfleet("provision", "-i", inventory, "-e", WISHES, "--boot", "proof", "--json", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return {host["name"]: host for host in json.loads(done.stdout)["hosts"]}


def snapshots(environment):
    """How many different ones the history holds of each host."""
    with sqlite3.connect(Path(environment["KVMFLEET_STATE_DIR"]) / "history.sqlite3") as history:
        rows = history.execute(
            "select host, count(distinct snapshot_id) from watches where state = 'in-sync' group by host"
        )
        return dict(rows)


def test_a_host_that_is_no_longer_what_it_was_told_is_pending_until_it_is_provisioned(kvmfleet, inventory, drift):
    kvmfleet("lab", "up", "story", "--boot", "proof")  # whatever the stories before left
    _, hosts = drift(variables='{"kvmfleet_profile": "production"}')
    assert {host["pending"] for host in hosts.values()} == {True}
    provision(kvmfleet, inventory)
    _, hosts = drift()
    for name, host in hosts.items():
        if host["items"]:  # what they left, and no role heals
            assert kvmfleet("drift", "accept", name, "--reason", "the stories before").returncode == 0
    assert drift()[0] == 0


def test_untouched_hosts_give_one_snapshot_also_after_a_boot(kvmfleet, inventory, drift, environment):
    for look in range(LOOKS):
        if look == LOOKS // 2:
            for host in (HOST, OTHER):
                assert kvmfleet("lab", "reboot", host).returncode == 0
        code, hosts = drift()
        assert code == 0, {name: host["items"] for name, host in hosts.items()}
    assert snapshots(environment) == {HOST: 1, OTHER: 1}


LIGHTER = """
set -e; cd /root; rm -rf lighter; mkdir lighter; cd lighter
apt-get download -q swtpm-tools >/dev/null; dpkg-deb -R ./*.deb tree
sed -i "s/^Version: .*/Version: 0.0.1/" tree/DEBIAN/control
dpkg-deb -b tree old.deb >/dev/null; dpkg --force-downgrade -i old.deb >/dev/null
"""

TOUCHES = {  # what somebody does on the host -> the item that names it, and its owner
    "edits qemu.conf": ("echo max_queued = 3 >> /etc/libvirt/qemu.conf", "file:/etc/libvirt/qemu.conf", "libvirt"),
    "removes a package": ("dpkg --purge --force-depends ovmf", "package:ovmf", "libvirt"),
    "downgrades a package": (LIGHTER, "package:swtpm-tools", "libvirt"),
    "stops a socket": ("systemctl stop libvirtd-ro.socket", "unit:libvirtd-ro.socket", "libvirt"),
    "changes a sysctl": (
        "echo vm.dirty_ratio = 33 > /etc/sysctl.d/99-somebody.conf",
        "sysctl:vm.dirty_ratio",
        "host_tuning",
    ),
    "edits a network": (
        "virsh net-dumpxml --inactive watched | sed s/10.77.5.1/10.77.5.7/ > /root/watched.xml; "
        "virsh net-define /root/watched.xml",
        "network:watched definition",
        "libvirt_networks",
    ),
    "lets a network not start": ("virsh net-autostart watched --disable", "network:watched", "libvirt_networks"),
    "adds a member": ("usermod -aG libvirt games", "member:libvirt", "libvirt"),
    "puts a hook": ("install -D /bin/true /etc/libvirt/hooks/network", "hook:/etc/libvirt/hooks/network", ""),
    "edits the contract": ("sed -i s/monolithic/modular/ /etc/kvmfleet/contract.json", "contract", "host_contract"),
}


def test_each_thing_that_somebody_does_is_one_item_with_its_owner_and_since_when(kvmfleet, inventory, drift, on):
    for command, _, _ in TOUCHES.values():
        done = kvmfleet("lab", "ssh", HOST, "sudo", "sh", "-c", f"'{command}'")
        assert done.returncode == 0, done.stderr
    code, hosts = drift()
    assert code == 2
    assert (hosts[OTHER]["state"], hosts[HOST]["state"]) == ("in-sync", "drifted")
    found = {item["item"]: item for item in hosts[HOST]["items"]}
    for what, (_, item, owner) in TOUCHES.items():
        assert item in found, (what, sorted(found))
        assert (found[item]["owner"], found[item]["since_s"] > 0) == (owner, True), what
        assert found[item]["expected"] != found[item]["seen"]
    firmware = {"qemu:firmware"}  # what the package brought
    assert set(found) - {item for _, item, _ in TOUCHES.values()} <= firmware
    _, again = drift()
    assert {i["item"]: i["since_s"] for i in again[HOST]["items"]} == {name: i["since_s"] for name, i in found.items()}


def test_what_is_accepted_is_how_the_host_should_be_and_who_said_so_stays_known(kvmfleet, drift):
    done = kvmfleet("drift", "accept", HOST, "member:libvirt", "--reason", "plays with guests")
    assert done.returncode == 0, done.stderr
    _, hosts = drift()
    assert "member:libvirt" not in {item["item"] for item in hosts[HOST]["items"]}
    past = json.loads(kvmfleet("history", HOST, "--json").stdout)
    assert [(one["item"], one["reason"]) for one in past["accepted"]] == [("member:libvirt", "plays with guests")]


# What no role brings back: settings that nobody declared, a script, and a version.
LEFT = {
    "file:/etc/libvirt/qemu.conf",
    "hook:/etc/libvirt/hooks/network",
    "package:swtpm-tools",
    "sysctl:vm.dirty_ratio",
}


def test_only_what_drifted_is_healed_and_what_a_role_does_not_heal_stays_drift(kvmfleet, inventory, drift):
    _, before = drift()
    since = {item["item"]: item["since_s"] for item in before[HOST]["items"]}
    hosts = provision(kvmfleet, inventory, "--drifted")
    assert {name: host["converged"]["outcome"] for name, host in hosts.items()} == {HOST: "ok", OTHER: "unchanged"}
    assert {item["item"] for item in hosts[HOST]["left"]} == LEFT
    (finding,) = [finding for finding in hosts[HOST]["findings"] if finding["check"] == "host.drift"]
    assert finding["status"] == "warn"
    code, after = drift()
    assert code == 2
    assert {item["item"]: item["since_s"] for item in after[HOST]["items"]} == {name: since[name] for name in LEFT}
    assert set(after[HOST]["left"]) == LEFT
    assert all(item["heal"].startswith("kvmfleet drift accept") for item in after[HOST]["items"]), "provision did not"


def test_what_is_repaired_by_hand_is_in_sync_again(kvmfleet, drift, on):
    on(HOST, "apt-get install -y --allow-downgrades swtpm-tools >/dev/null; gpasswd -d games libvirt")
    on(HOST, "sed -i /^max_queued/d /etc/libvirt/qemu.conf")
    on(HOST, "rm /etc/sysctl.d/99-somebody.conf /etc/libvirt/hooks/network")
    code, hosts = drift()
    assert (code, [item["item"] for item in hosts[HOST]["items"]]) == (2, ["member:libvirt"]), "games was accepted"
    assert kvmfleet("drift", "accept", HOST, "--reason", "plays no more").returncode == 0
    assert drift()[0] == 0


def test_hosts_in_sync_are_left_alone_and_proven_and_a_guest_boots_once_for_each_boot(kvmfleet, inventory):
    for boots in ("works", "skipped"):
        hosts = provision(kvmfleet, inventory, "--boot", "firmware")
        assert {host["converged"]["outcome"] for host in hosts.values()} == {"unchanged"}
        assert {host["evidence"]["guest"]["outcome"] for host in hosts.values()} == {boots}
        assert {host["verdict"] for host in hosts.values()} <= {"proven", "degraded"}


@pytest.fixture
def receiver():
    """Takes notifications; gives its URL and the titles that arrived."""
    titles = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            titles.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["title"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            """Tests are quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"json://127.0.0.1:{server.server_port}", titles
        server.shutdown()
        thread.join()


def test_what_changes_is_told_once_and_what_is_healed_once_more(drift, on, receiver, tmp_path):
    url, titles = receiver
    file = tmp_path / "notify"
    file.touch(mode=0o600)
    file.write_text(url)
    told = ("--notify", str(file))
    assert drift(*told)[0] == 0
    assert titles == []
    on(HOST, "usermod -aG libvirt games")
    for _ in range(2):
        assert drift(*told)[0] == 2
        assert titles == [f"kvmfleet: {HOST} drifted"]
    on(HOST, "gpasswd -d games libvirt")
    for _ in range(2):
        assert drift(*told)[0] == 0
        assert titles[1:] == [f"kvmfleet: {HOST} in sync again"]


def test_a_host_that_is_down_is_unreachable_and_in_sync_when_it_is_back(kvmfleet, inventory, drift):
    done = kvmfleet(
        "drift", "-i", inventory, "-e", "ansible_host=127.0.0.1", "-e", "ansible_port=9", "-l", HOST, "--json"
    )
    assert done.returncode == 1
    (host,) = json.loads(done.stdout)["hosts"]
    assert host["state"] == "unreachable"
    assert drift()[0] == 0
