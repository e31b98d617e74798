"""Doors and walls, on the first host of the story: declared, tried from outside, broken, named, healed, taken back."""

import json
import socket

import pytest
from waiting import until

pytestmark = pytest.mark.hosts

HOST = "story-1"
MIGRATION, SCREEN, OTHER = 49160, 5905, 8080


@pytest.fixture(scope="module")
def address(kvmfleet, inventory):
    """Where the host is; with a server on three ports, of which two are guarded when they are declared."""
    up = kvmfleet("lab", "up", "story", "--boot", "none")  # whatever the story left behind
    assert " 2 unknown" in up.stdout, up.stdout + up.stderr
    hosts = json.loads(kvmfleet("lab", "status", "story", "--json").stdout)["hosts"]
    found = next(host["address"] for host in hosts if host["name"] == HOST)
    for port in (MIGRATION, SCREEN, OTHER):
        unit = f"systemd-run --quiet --unit=server-{port} python3 -m http.server {port}"
        done = kvmfleet("lab", "ssh", HOST, "sudo", *unit.split())
        assert done.returncode == 0, done.stderr
        until(lambda port=port: reachable(found, port))
    yield found
    for port in (MIGRATION, SCREEN, OTHER):
        kvmfleet("lab", "ssh", HOST, "sudo", "systemctl", "stop", f"server-{port}")


def reachable(address, port):
    try:
        socket.create_connection((address, port), timeout=3).close()
    except OSError:
        return False
    return True


@pytest.fixture
def provision(kvmfleet, inventory):
    """Provisions the host with these variables; gives the host of the report."""

    def run(**variables):
        arguments = ("-i", inventory, "-l", HOST, "--json", "--boot", "none", "-e", json.dumps(variables))
        done = kvmfleet("provision", *arguments)
        (host,) = json.loads(done.stdout)["hosts"]
        assert host["converged"]["failed"] == 0, host["converged"]
        return host

    return run


@pytest.fixture
def findings(kvmfleet, inventory):
    """Validates the host; gives its findings of security by check, status or what explains it."""

    def look():
        done = kvmfleet("validate", "-i", inventory, "-l", HOST, "--json", "--boot", "none")
        (host,) = json.loads(done.stdout)["hosts"]
        return {f["check"]: f["cause"] or f["status"] for f in host["findings"] if f["check"].startswith("security.")}

    return look


def declared(source):
    return {"libvirt_security_migration_sources": [source], "libvirt_security_access": "group"}


def test_what_is_declared_counts_at_once_beside_ufw_and_what_docker_does(provision, findings, on, address):
    gateway = on(HOST, "ip -4 route show default | cut -d\\  -f3").strip()
    provision(**declared("192.0.2.0/24"))
    assert [reachable(address, port) for port in (MIGRATION, SCREEN, OTHER, 22)] == [False, False, True, True]
    # a firewall that drops by default, and the forwarding that Docker forbids
    on(
        HOST,
        "DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends ufw >/dev/null 2>&1",
    )
    on(HOST, "ufw allow 22/tcp && ufw --force enable && iptables -P FORWARD DROP")
    host = provision(**declared(gateway))
    assert [reachable(address, port) for port in (MIGRATION, SCREEN, OTHER, 22)] == [True, False, False, True]
    assert on(HOST, "stat -c %a:%G /run/libvirt/libvirt-sock").strip() == "660:libvirt"
    assert host["evidence"]["security"]["firewall"]["ufw_active"] is True
    assert set(findings().values()) <= {"pass", "skip"}


def test_declared_again_nothing_changes(provision, on):
    gateway = on(HOST, "ip -4 route show default | cut -d\\  -f3").strip()
    assert provision(**declared(gateway))["converged"]["changed"] == 0


def test_the_rules_outlive_a_reload_and_a_restart_of_the_firewall(on, address):
    on(HOST, "systemctl start nftables && systemctl reload nftables && systemctl restart nftables")
    on(HOST, "nft list table inet kvmfleet >/dev/null")
    assert reachable(address, SCREEN) is False
    on(HOST, "ufw reload")  # nftables.service has flushed its rules, too


BROKEN = {  # check -> how it is broken, and what the finding is then
    "security.firewall": ("nft delete table inet kvmfleet", "fail"),
    "security.sockets": ("chmod 0666 /run/libvirt/libvirt-sock", "fail"),
    "security.sandbox": (
        "sed -i s/seccomp_sandbox.*/seccomp_sandbox=0/ /etc/libvirt/qemu.conf",
        "libvirt.settings",  # which says that it is not as declared
    ),
}


def test_every_broken_wall_is_named_and_healed(findings, provision, on):
    gateway = on(HOST, "ip -4 route show default | cut -d\\  -f3").strip()
    for fault, _ in BROKEN.values():
        on(HOST, fault)
    found = {check: told for check, told in findings().items() if told not in ("pass", "skip")}
    assert found == {check: told for check, (_, told) in BROKEN.items()}
    provision(**declared(gateway))
    assert set(findings().values()) <= {"pass", "skip"}


def test_what_is_no_longer_declared_is_taken_back(provision, on, address):
    on(HOST, "ufw disable && systemctl stop nftables && iptables -P FORWARD ACCEPT")
    provision()
    assert reachable(address, SCREEN)
    assert "kvmfleet" not in on(HOST, "nft list tables; ufw show added; ls /etc/systemd/system")
    on(HOST, "test ! -e /etc/kvmfleet/firewall.nft")
    assert on(HOST, "stat -c %a /run/libvirt/libvirt-sock").strip() == "666"
    assert "auth_unix_rw" not in on(HOST, "grep -v ^# /etc/libvirt/libvirtd.conf || true")
    on(HOST, "DEBIAN_FRONTEND=noninteractive apt-get -qq -y purge ufw >/dev/null 2>&1")
