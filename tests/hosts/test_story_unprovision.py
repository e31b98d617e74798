"""Guests go on through a change, hold up unprovisioning, and after that a host is what it was.

The last file of this folder by name: it leaves the lab's hosts bare. Its tests tell one story in order.
"""

import base64
import json
import re

import pytest

pytestmark = pytest.mark.hosts

HOSTS = ("story-1", "story-2")  # Debian 12 and Debian 13
HOST = HOSTS[1]
DOMAIN = (
    '<domain type="qemu"><name>dns</name><memory unit="MiB">32</memory><vcpu>1</vcpu>'
    '<os><type arch="x86_64" machine="q35">hvm</type></os><devices><console type="pty"/></devices></domain>'
)
POLICY = {"on_boot": "ignore", "on_shutdown": "shutdown", "shutdown_timeout": 90}


@pytest.fixture
def provision(kvmfleet, inventory):
    """Provisions both hosts with these variables; gives their convergence by name."""

    def run(**variables):
        done = kvmfleet("provision", "-i", inventory, "--json", "--boot", "proof", "-e", json.dumps(variables))
        assert done.returncode in (0, 2), done.stderr
        return {host["name"]: host for host in json.loads(done.stdout)["hosts"]}

    return run


@pytest.fixture
def findings(kvmfleet, inventory):
    def run():
        done = kvmfleet("validate", "-i", inventory, "--json", "--boot", "proof", "-l", HOST)
        (host,) = json.loads(done.stdout)["hosts"]
        return {finding["check"]: finding for finding in host["findings"]}

    return run


def processes(on):
    """Of the guest and of virtlogd, and the guest's number in libvirt."""
    said = on(HOST, "pgrep -x qemu-system-x86; pgrep -x virtlogd; virsh domid dns").split()
    assert len(said) == 3, said
    return said


def test_a_guest_and_virtlogd_go_on_while_two_families_become_one_and_settings_change(provision, findings, on):
    assert provision(libvirt_qemu_settings={"keepalive_interval": 7})[HOST]["converged"]["outcome"] == "ok"
    on(HOST, f"echo {base64.b64encode(DOMAIN.encode()).decode()} | base64 -d > /root/dns.xml")
    on(HOST, "virsh -q define /root/dns.xml; virsh -q start dns")
    before = processes(on)
    # no package of Debian brings the other family, so this one only listens
    on(
        HOST,
        "cd /usr/lib/systemd/system; "
        'printf "[Socket]\\nListenStream=/run/other\\n[Install]\\nWantedBy=sockets.target\\n" > virtqemud.socket; '
        'printf "[Service]\\nExecStart=/bin/sleep infinity\\n" > virtqemud.service; '
        "systemctl daemon-reload; systemctl enable --now virtqemud.socket",
    )
    found = findings()["libvirt.daemon"]
    assert (found["status"], found["summary"]) == ("fail", "active: libvirtd and virtqemud, instead of libvirtd alone")

    libvirtd = on(HOST, "pgrep -x libvirtd")
    wish = {"libvirt_guests_policy": POLICY, "libvirt_guests_autostart": ["dns"]}
    host = provision(libvirt_qemu_settings={"keepalive_interval": 8}, **wish)[HOST]
    assert host["converged"]["changed"], host["converged"]
    assert on(HOST, "pgrep -x libvirtd") != libvirtd
    assert processes(on) == before
    found = findings()
    assert {
        found[name]["status"] for name in ("libvirt.daemon", "guests.policy", "guests.service", "guests.autostart")
    } == {"pass"}


def test_what_is_not_as_declared_is_named(findings, on):
    on(HOST, "systemctl disable libvirt-guests; echo ON_SHUTDOWN=suspend >> /etc/default/libvirt-guests")
    on(HOST, "virsh -q autostart --disable dns")
    found = findings()
    assert "ON_SHUTDOWN is suspend, not shutdown" in found["guests.policy"]["summary"]
    assert "active now, disabled for the next boot" in found["guests.service"]["summary"]
    assert found["guests.autostart"]["summary"] == "would not start: dns"


def test_a_host_with_a_guest_that_runs_is_left_as_it_is(kvmfleet, inventory, on):
    look = "sha256sum /etc/libvirt/qemu.conf /var/lib/kvmfleet/record.json; dpkg-query -W | sha256sum"
    before = on(HOST, look)
    done = kvmfleet("unprovision", "-i", inventory, "-l", HOST, "--yes")
    assert done.returncode == 2
    assert re.search(r"Guests run on this host: dns \(process \d+\)\. Nothing was changed\.", done.stdout), done.stdout
    assert on(HOST, look) == before


# What a Debian host that once had packages is allowed to differ in: accounts that their scripts keep.
ACCOUNTS = r"\./(passwd|group|shadow|gshadow|subuid|subgid)-?"


def test_an_unprovisioned_host_has_the_packages_and_files_from_before(kvmfleet, inventory, on, fingerprint):
    on(HOST, "virsh -q destroy dns; systemctl disable --now virtqemud.socket; rm /usr/lib/systemd/system/virtqemud.*")
    done = kvmfleet("unprovision", "-i", inventory, "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stays: /etc/libvirt/qemu/dns.xml" in done.stdout
    for host in HOSTS:
        packages, files = fingerprint(host)
        before = on(host, "cat /root/before.packages"), on(host, "cat /root/before.files")
        assert packages == before[0]
        changed = {line.split()[-1] for line in set(files.splitlines()) ^ set(before[1].splitlines())}
        strange = {path for path in changed if not re.fullmatch(ACCOUNTS, path)}
        assert strange == ({"./libvirt/qemu/dns.xml"} if host == HOST else set())
        assert on(host, "ls -d /etc/kvmfleet /var/lib/kvmfleet 2>/dev/null; true") == ""
    again = kvmfleet("unprovision", "-i", inventory, "--yes")
    assert again.returncode == 0
    assert again.stdout.count("nothing to take back") == len(HOSTS)
