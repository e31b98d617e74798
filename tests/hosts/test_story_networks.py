"""libvirt's networks on a real host: declared, changed while a guest uses them, broken, named, and removed again."""

import json
import re

import pytest
from waiting import until

pytestmark = pytest.mark.hosts

HOST = "story-1"
LAB = {
    "name": "lab",
    "bridge": "virbr10",
    "subnet": ["192.168.150.0/24", "fd00:150::/64"],
    "dhcp": {"ranges": [{"start": "192.168.150.100", "end": "192.168.150.199"}]},
}
FREE = {"name": "free", "subnet": "auto", "dhcp": True}
ALONE = {"name": "alone", "mode": "isolated", "subnet": "10.78.0.0/24", "dns": {"enabled": False}}
TAP = {"name": "tap", "mode": "macvtap", "dev": "host0"}
RESERVED = {"hosts": [{"mac": "52:54:00:00:00:01", "name": "web", "ip": "192.168.150.9"}]}
GUEST = """<domain type="qemu"><name>web</name><memory unit="MiB">16</memory><os><type>hvm</type></os>
<devices><interface type="network"><source network="lab"/></interface></devices></domain>"""


@pytest.fixture(autouse=True)
def _provisioned(kvmfleet, inventory, on):
    """The story did that already, unless this file runs alone."""
    if not on(HOST, "ls /etc/kvmfleet/contract.json 2>/dev/null || true"):
        done = kvmfleet("provision", "-i", inventory, "-l", HOST, "--boot", "none")
        assert " 1 unknown" in done.stdout, done.stdout + done.stderr


@pytest.fixture
def declare(ansible, inventory):
    """Provisions the networks of a list, and nothing else; gives whether that worked and what was printed."""

    def run(*networks, bridges=(), options=()):
        wanted = json.dumps({"libvirt_networks": networks, "libvirt_networks_bridges": bridges})
        play = ("-i", inventory, "playbooks/provision.yml", "-l", HOST, "--tags", "libvirt_networks,host_contract")
        done = ansible("ansible-playbook", *play, "--diff", *options, "-e", wanted)
        return done.returncode == 0, done.stdout

    return run


@pytest.fixture
def virsh(on):
    return lambda *commands: on(HOST, f'virsh -q -c qemu:///system "{"; ".join(commands)}"')


@pytest.fixture
def findings(kvmfleet, inventory):
    """What validate says about the networks: check -> status and summary."""

    def run():
        done = kvmfleet("validate", "-i", inventory, "-l", HOST, "--boot", "none", "--json")
        found = json.loads(done.stdout)["hosts"][0]["findings"]
        return {f["check"]: (f["status"], f["summary"]) for f in found if f["check"].startswith("network.")}

    return run


def test_check_mode_shows_networks_that_a_run_then_makes_once(declare, virsh, findings):
    good, shown = declare(LAB, FREE, ALONE, TAP, options=["--check"])
    assert good, shown
    assert '+    <range end="192.168.150.199" start="192.168.150.100"/>' in re.sub(" +<", "    <", shown)
    assert "lab" not in virsh("net-list --all")
    for changed in (2, 0):  # the networks and the contract
        good, said = declare(LAB, FREE, ALONE, TAP)
        assert good, said
        assert f"changed={changed} " in said, said
    listed = virsh("net-list --all")
    assert len(re.findall(r"(?:lab|free|alone|tap) +active +yes +yes", listed)) == 4, listed
    assert re.search(r"default +inactive +no +yes", listed)
    assert {name: status for name, (status, _) in findings().items()} == {
        "network.active": "pass",
        "network.equal": "pass",
        "network.bridge": "skip",
        "network.link": "pass",
        "network.forwarding": "pass",
        "network.firewall": "pass",
        "network.dnsmasq": "pass",
        "network.collisions": "pass",
        "network.bridge_nf": "skip",
        "network.mtu": "skip",
    }


def test_what_guests_use_changes_as_far_as_it_can_and_the_rest_waits(declare, on, virsh, findings):
    on(HOST, f"echo {json.dumps(GUEST)} > /root/web.xml && virsh -q -c qemu:///system create --paused /root/web.xml")
    edited = LAB | {"dhcp": LAB["dhcp"] | RESERVED, "mtu": 1400}
    good, said = declare(edited, FREE, ALONE, TAP)
    assert good, said
    assert "network lab: changed, but it runs as it was, because of the guest web." in said
    live = virsh("net-dumpxml lab")
    assert "52:54:00:00:00:01" in live
    assert "1400" not in live
    status, summary = findings()["network.equal"]
    assert (status, summary) == ("warn", 'runs in another way than it is defined: lab: -<mtu size="1400"/>')

    virsh("destroy web")
    good, said = declare(edited, FREE, ALONE, TAP)
    assert good, said
    assert "1400" in virsh("net-dumpxml lab")
    assert findings()["network.equal"][0] == "pass"


@pytest.mark.parametrize(
    ("fault", "cure", "check", "words"),
    [
        ("ip link set virbr10 down", "ip link set virbr10 up", "link", "virbr10 of lab is down"),
        (
            "sysctl -q net.ipv4.ip_forward=0",
            "sysctl -q net.ipv4.ip_forward=1",
            "forwarding",
            "net.ipv4.ip_forward is 0",
        ),
        ("iptables -F FORWARD", "systemctl restart libvirtd", "firewall", "lab has no rules to forward"),
        ("kill -9 $(cat /run/libvirt/network/lab.pid)", "systemctl reload libvirtd", "dnsmasq", "lab has no dnsmasq"),
        (
            "ip route add 192.168.150.0/25 dev host0",
            "ip route del 192.168.150.0/25 dev host0",
            "collisions",
            "192.168.150.0/25 of host0",
        ),
    ],
)
def test_what_a_network_is_made_of_is_missed(on, findings, fault, cure, check, words):
    on(HOST, fault)
    try:
        found = findings()
        assert {name for name, (status, _) in found.items() if status not in ("pass", "skip")} == {f"network.{check}"}
        assert words in found[f"network.{check}"][1]
    finally:
        on(HOST, cure)
    until(lambda: findings()[f"network.{check}"][0] == "pass")


def test_networks_that_somebody_touched_are_named(virsh, on, findings):
    on(HOST, "virsh -c qemu:///system net-dumpxml tap --inactive | sed s/host0/lo/g > /root/tap.xml")
    virsh("net-define /root/tap.xml")
    status, summary = findings()["network.equal"]
    assert status == "fail"
    assert 'tap: -<forward dev="host0" mode="bridge"/> +<forward dev="lo" mode="bridge"/>' in summary
    virsh("net-destroy free", "net-autostart free --disable", "net-destroy alone", "net-undefine alone")
    status, summary = findings()["network.active"]
    assert status == "fail"
    for words in ("free does not run", "free does not start with the host", "alone is not defined"):
        assert words in summary


@pytest.fixture
def module(ansible, inventory):
    """Runs one module of ours on the host; gives whether that worked and what it said."""

    def run(name, *options, **arguments):
        module = ("--become", "-m", f"kvmfleet.host.{name}", "-a", json.dumps(arguments))
        done = ansible("ansible", "-i", inventory, HOST, *module, *options)
        return done.returncode == 0, done.stdout + done.stderr

    return run


def test_subnets_that_the_host_is_in_are_refused(module, on):
    address = on(HOST, "hostname -I").split()[0]
    clash = {"name": "clash", "subnet": re.sub(r"\d+$", "0/24", address)}
    good, said = module("libvirt_networks", networks=[clash], look=True)
    assert not good
    assert "which this host reaches through host0" in said


BR0 = {"name": "br0", "ports": ["host0"]}
OFFICE = {"name": "office", "mode": "bridge", "bridge": "br0"}


def test_a_bridge_that_nobody_confirms_and_one_that_cuts_the_connection_do_not_stay(module, on):
    before = on(HOST, "ip -br addr show host0; ls /etc/systemd/network")
    good, said = module("host_bridges", "--check", bridges=[{**BR0, "addresses": ["192.0.2.9/24"]}])
    assert not good
    assert "the connection to this host goes through host0 to" in said
    good, said = module("host_bridges", bridges=[BR0], rollback_after=10)
    assert good, said
    assert '"br0: made"' in said
    until(lambda: on(HOST, "ip -br addr show host0; ls /etc/systemd/network") == before)


def test_a_bridge_takes_over_the_interface_that_carries_ssh(declare, on, virsh, findings):
    for changed in (3, 0):  # bridges, networks and the contract
        good, said = declare(OFFICE, bridges=[BR0, {"name": "br9"}])
        assert good, said
        assert f"changed={changed} " in said, said
    assert "br0" in on(HOST, "ip route show default")
    assert "host0" in on(HOST, "ls /sys/class/net/br0/brif")
    assert on(HOST, "systemctl list-timers --all --no-legend kvmfleet\\*") == ""
    assert findings()["network.bridge"] == ("pass", "br0, br9 with 1 port")
    assert findings()["network.link"][0] == "pass"
    on(HOST, "ip link delete br9")
    assert findings()["network.bridge"] == ("fail", "there is no br9")


def test_an_empty_list_removes_what_was_made_and_nothing_else(declare, on, virsh):
    good, said = declare()
    assert good, said
    assert re.fullmatch(r"\s*default +inactive +no +yes\s*", virsh("net-list --all"))
    assert on(HOST, "ls /etc/systemd/network") == "10-host0.network\n"
    assert "host0" in on(HOST, "ip route show default")
    assert not {"network", "bridge"} & json.loads(on(HOST, "cat /var/lib/kvmfleet/record.json")).keys()
