"""Bridges over the interface that carries ssh, on real hosts, for each of what may configure a host's network.

A lab of its own: bridge-1 has ifupdown, bridge-2 NetworkManager, bridge-3 systemd-networkd and bridge-4 netplan, which
writes files for systemd-networkd; and nothing of libvirt. Its tests tell one story in order.
"""

import json
import subprocess

import pytest
from conftest import KVMFLEET, ROOT
from waiting import until_same

pytestmark = pytest.mark.hosts

MANAGERS = {"bridge-1": "ifupdown", "bridge-2": "NetworkManager", "bridge-3": "networkd", "bridge-4": "networkd"}
BR0 = {"name": "br0", "ports": ["host0"]}
PLAY = """
- hosts: kvm_hosts
  become: true
  gather_facts: false
  tasks:
    - ansible.builtin.import_role: {name: kvmfleet.host.libvirt_networks, tasks_from: bridges}
    - ansible.builtin.import_role: {name: kvmfleet.host.libvirt_networks, tasks_from: pending}
"""
# What a host may differ in from one look to the next, or from one boot to the next.
VOLATILE = {
    "ifindex",
    "link_index",
    "link_netnsid",
    "valid_life_time",
    "preferred_life_time",
    "tentative",
    "optimistic",
}
# The kernel adds the route of an IPv6 address once it knows that nobody else has the address.
SETTLED = "for i in $(seq 100); do ip addr | grep -q tentative || break; sleep 0.1; done; "
LOOK = "ip -j addr; ip -j -4 route show table all; ip -j -6 route show table all; cd /etc; find . -type d; "
FILES = "find . -xdev -type f -print0 | sort -z | xargs -0 sha256sum; find . -xdev -type f -printf '%m %u %p\\n' | sort"

IFUPDOWN = """# The loopback network interface
auto lo
iface lo inet loopback
source /etc/network/interfaces.d/*
"""
STANZA = """auto host0
iface host0 inet static
    address {address}/24
    gateway {gateway}
    dns-nameservers {gateway}
    up ip route add 198.51.100.0/24 via {gateway} dev host0
"""
KEYFILE = """[connection]
id=Wired
type=ethernet
interface-name=host0

[ipv4]
method=manual
address1={address}/24,{gateway}
dns={gateway};
route1=198.51.100.0/24,{gateway}

[ipv6]
method=link-local
"""
NETPLAN = """network:
  version: 2
  renderer: networkd
  ethernets:
    host0:
      addresses: [{address}/24]
      nameservers: {{addresses: [{gateway}]}}
      routes:
        - {{to: default, via: {gateway}}}
        - {{to: 198.51.100.0/24, via: {gateway}}}
"""
LEASES = (
    "port=0\ninterface=host0\ndhcp-range={net},static,10m\ndhcp-host={mac},{address}\ndhcp-authoritative\nuser=root\n"
)
# Host -> its files, and the package that reads them; bridge-3 stays as the lab made it.
CONFIGURED = {
    "bridge-1": ({"/etc/network/interfaces": IFUPDOWN, "/etc/network/interfaces.d/uplink": STANZA}, "ifupdown"),
    "bridge-2": ({"/etc/NetworkManager/system-connections/Wired.nmconnection": KEYFILE}, "network-manager"),
    "bridge-4": ({"/etc/netplan/01-lab.yaml": NETPLAN}, "netplan.io"),
}
NOT_OF_THE_LAB = "rm /etc/systemd/network/10-host0.network"
NO_NETWORKD = "systemctl disable -q systemd-networkd.service systemd-networkd.socket"


@pytest.fixture(scope="module")
def put(on):
    """Writes a file on a host that only root may read: stanzas and keyfiles may hold passwords."""

    def write(host, path, text):
        said = text.replace("\n", "\\n")
        on(host, f'printf "{said}" > {path}; chmod 600 {path}')

    return write


@pytest.fixture(scope="module")
def lab(kvmfleet, on, put):
    """The lab, whose hosts were given what configures their network, and booted with it."""
    systems = ("--os", "debian-12", "--os", "debian-13", "--hosts", "4")
    up = kvmfleet("lab", "up", "bridge", "--provider", "container", "--yes", "--bare", *systems)
    try:
        assert up.returncode == 0, up.stderr
        status = json.loads(kvmfleet("lab", "status", "bridge", "--json").stdout)
        for host in status["hosts"]:
            own = {"address": host["address"], "gateway": status["subnet"].rpartition(".")[0] + ".1"}
            files, package = CONFIGURED.get(host["name"], ({}, ""))
            if package:
                on(host["name"], f"apt-get -q update && apt-get -q install -y --no-install-recommends {package}")
                for path, text in files.items():
                    put(host["name"], path, text.format(**own))
                on(host["name"], NOT_OF_THE_LAB)
                if MANAGERS[host["name"]] != "networkd":
                    on(host["name"], NO_NETWORKD)
                assert kvmfleet("lab", "reboot", host["name"]).returncode == 0
        yield status
    finally:
        down = kvmfleet("lab", "down", "bridge", "--yes")
        assert down.returncode == 0, down.stderr


@pytest.fixture(scope="module")
def address(lab):
    """Of each host."""
    return {host["name"]: host["address"] for host in lab["hosts"]}


@pytest.fixture(scope="module")
def state(lab, on):
    """What /etc holds on a host, and its addresses and routes, without what differs from one boot to the next."""

    def look(host):
        *network, files = on(host, f"{SETTLED} {LOOK} {FILES}").split("\n", 3)
        return {json.dumps(settled(item)) for part in network for item in json.loads(part)} | set(files.splitlines())

    return look


def settled(value):
    if isinstance(value, dict):
        return {key: settled(part) for key, part in value.items() if key not in VOLATILE}
    return sorted(map(settled, value), key=json.dumps) if isinstance(value, list) else value


@pytest.fixture(scope="module")
def before(state):
    """Each host, before the first bridge."""
    return {host: state(host) for host in MANAGERS}


@pytest.fixture
def provision(ansible, lab, tmp_path, before):
    """Makes the bridges of a host those of a list; gives whether that worked and what was printed."""
    (tmp_path / "play.yml").write_text(PLAY)

    def run(host, *bridges, options=(), rollback_after=60):
        wanted = {"libvirt_networks_bridges": bridges, "libvirt_networks_rollback_after": rollback_after}
        play = ("-i", lab["inventory"], tmp_path / "play.yml", "-l", host, "--diff", *options)
        done = ansible("ansible-playbook", *play, "-e", json.dumps(wanted))
        return done.returncode == 0, done.stdout

    return run


@pytest.fixture
def module(ansible, lab, before):
    """Calls the module alone, which nobody confirms; gives whether that worked and what was printed."""

    def run(host, *options, **arguments):
        call = ("--become", "-m", "kvmfleet.host.host_bridges", "-a", json.dumps(arguments))
        done = ansible("ansible", "-i", lab["inventory"], host, *call, *options)
        return done.returncode == 0, done.stdout + done.stderr

    return run


@pytest.fixture
def session(environment):
    """Opens an ssh connection to a host; gives a function that says something over it, and what comes back."""
    opened = []

    def start(host):
        argv = (*KVMFLEET, "lab", "ssh", host, "cat")
        process = subprocess.Popen(
            argv, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        opened.append(process)

        def echo(word):
            process.stdin.write(word + "\n")
            return process.stdout.readline().strip()

        return echo

    yield start
    for process in opened:
        process.communicate(timeout=30)


def nothing_waits(on, host):
    left = "ls -d /var/lib/kvmfleet/bridges* /etc/systemd/system/kvmfleet* /etc/systemd/system/*/kvmfleet* 2>/dev/null"
    return on(host, f"systemctl list-timers --all --no-legend kvmfleet\\*; {left}; true") == ""


each_host = pytest.mark.parametrize("host", MANAGERS)


@each_host
def test_a_bridge_takes_over_the_interface_that_carries_ssh_and_the_session_goes_on(
    host, provision, session, on, address
):
    echo = session(host)
    assert echo("before") == "before"
    good, said = provision(host, BR0, options=["--check"])
    assert good, said
    assert on(host, "ls /sys/class/net/ | grep br0; true") == ""
    for changed in (1, 0):
        good, said = provision(host, BR0)
        assert good, said
        assert f"changed={changed} " in said, said
    assert echo("after") == "after"
    assert "dev br0" in on(host, "ip route show default")
    assert "host0" in on(host, "ls /sys/class/net/br0/brif")
    assert address[host] in on(host, "ip -br -4 addr show br0")
    assert on(host, "ip -br -4 addr show host0").split()[2:] == []
    if host != "bridge-3":
        assert "dev br0" in on(host, "ip route show 198.51.100.0/24")  # a route of the interface's own
    assert nothing_waits(on, host)


@each_host
def test_a_changed_bridge_changes_now_and_guests_stay_at_it(host, provision, on, address):
    on(host, "ip link add extra0 type veth peer name extra1; ip link add guest0 type veth peer name guest1")
    on(host, "ip link set guest0 master br0 up")
    wish = {
        "name": "br0",
        "ports": ["host0", "extra0"],
        "addresses": [f"{address[host]}/24", "192.0.2.10" + host[-1] + "/24"],
        "gateway": address[host].rpartition(".")[0] + ".1",
    }
    for changed in (1, 0):
        good, said = provision(host, wish)
        assert good, said
        assert f"changed={changed} " in said, said
    assert on(host, "ls /sys/class/net/br0/brif").split() == ["extra0", "guest0", "host0"]
    assert f"192.0.2.10{host[-1]}/24" in on(host, "ip -br -4 addr show br0")

    good, said = provision(host)
    assert good, said
    assert "because guest0 is at it" in said
    good, said = provision(host, BR0)
    assert good, said
    assert on(host, "ls /sys/class/net/br0/brif").split() == ["guest0", "host0"]
    assert "192.0.2." not in on(host, "ip -br -4 addr show br0")
    on(host, "ip link delete guest0; ip link delete extra0")


@each_host
def test_a_change_that_cuts_the_connection_is_taken_back_by_the_timer(host, provision, on, address, state):
    made = state(host)
    good, said = provision(host, {**BR0, "addresses": [f"{address[host]}/32"]}, rollback_after=4)
    assert not good
    assert "no change waits for this, so it was taken back" in said
    until_same(lambda: state(host), made)
    assert nothing_waits(on, host)


@each_host
def test_a_bridge_that_leaves_the_list_leaves_the_host_as_it_was(host, provision, on, state, before):
    good, said = provision(host)
    assert good, said
    assert "changed=1 " in said, said
    until_same(lambda: state(host), before[host])
    assert "bridge" not in json.loads(on(host, "cat /var/lib/kvmfleet/record.json"))


@each_host
def test_a_change_that_nobody_confirmed_is_taken_back_when_the_host_boots(host, module, kvmfleet, on, state, before):
    good, said = module(host, bridges=[BR0], rollback_after=3600)
    assert good, said
    assert f'"manager": "{MANAGERS[host]}"' in said
    assert not nothing_waits(on, host)
    assert kvmfleet("lab", "reboot", host).returncode == 0
    until_same(lambda: state(host), before[host])
    assert nothing_waits(on, host)
    good, said = module(host, confirm=True)
    assert not good
    assert "or it booted" in said


def test_what_cannot_be_done_is_said_before_anything_changes(module, on, state, before):
    host = "bridge-1"
    on(host, "ip link add other type bridge; ip link add extra0 type veth peer name extra1")
    on(host, "ip link set extra0 master other; ip link add eth9 type veth peer name eth8")
    for bridge, words in (
        ({"name": "br1", "ports": ["extra0"]}, "extra0 is a part of other already"),
        ({"name": "br1", "ports": ["eth7"]}, "this host has no eth7"),
        ({"name": "other"}, "other is there already, and was not made here"),
        ({**BR0, "addresses": ["192.0.2.9/24"]}, "the connection to this host goes through host0 to"),
        ({"name": "br1", "ports": ["eth9", "host0"]}, "goes through host0: name it as the first port"),
    ):
        good, said = module(host, bridges=[bridge])
        assert not good
        assert words in said
    on(host, "ip link delete other; ip link delete extra0; ip link delete eth9")
    assert state(host) == before[host]


def test_unprovisioned_hosts_are_what_they_were(provision, kvmfleet, lab, on, state, before):
    for host in MANAGERS:
        good, said = provision(host, BR0)
        assert good, said
    done = kvmfleet("unprovision", "-i", lab["inventory"], "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    for host in MANAGERS:
        until_same(lambda: state(host), before[host])  # noqa: B023 # it is called here
        assert on(host, "ls -d /var/lib/kvmfleet 2>/dev/null; true") == ""


def test_a_lease_moves_with_its_client_to_the_bridge_and_back(provision, kvmfleet, on, put, lab, address):
    host, server = "bridge-1", "bridge-3"
    mac = on(host, "cat /sys/class/net/host0/address").strip()
    install = "apt-get -q update && apt-get -q install -y --no-install-recommends"
    on(server, f"{install} dnsmasq; systemctl stop dnsmasq")
    put(
        server,
        "/etc/dnsmasq.d/lab.conf",
        LEASES.format(mac=mac, address=address[host], net=lab["subnet"].split("/")[0]),
    )
    on(server, "systemctl start dnsmasq")
    on(host, f"{install} isc-dhcp-client")
    put(host, "/etc/network/interfaces.d/uplink", "auto host0\niface host0 inet dhcp\n")
    assert kvmfleet("lab", "reboot", host).returncode == 0

    good, said = provision(host, BR0)
    assert good, said
    assert address[host] in on(host, "ip -br -4 addr show br0")
    on(host, 'pgrep -f "[d]hclient.*br0"')  # the unit that started it has ended
    good, said = provision(host)
    assert good, said
    assert address[host] in on(host, "ip -br -4 addr show host0")
    on(host, 'pgrep -f "[d]hclient.*host0"')
