"""Declared networks, and what the module makes of them on a libvirt that is ours."""

from __future__ import annotations

import ipaddress
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.kvmfleet.host.plugins.module_utils import networks
from ansible_collections.kvmfleet.host.plugins.module_utils.network_xml import NetworkXmlError, normal
from ansible_collections.kvmfleet.host.plugins.module_utils.record import open_record
from ansible_collections.kvmfleet.host.plugins.modules import libvirt_networks as module

LAB = {"name": "lab", "bridge": "virbr10", "subnet": "192.168.150.0/24", "dhcp": True}

# --- one spelling

DECLARED = """<network><name>lab</name><forward mode='nat' dev='eth0'/>
<ip address='192.168.150.1' netmask='255.255.255.0'><dhcp><host mac='52:54:00:AA:00:01' ip='192.168.150.9'/>
<range start='192.168.150.100' end='192.168.150.200'/></dhcp></ip></network>"""
DUMPED = """<network connections='2'>
  <name>lab</name>
  <uuid>8eeaa1ab-9e1a-4923-9c15-7b5f614db433</uuid>
  <forward dev='eth0' mode='nat'>
    <nat>
      <port start='1024' end='65535'/>
    </nat>
    <interface dev='eth0' connections='1'/>
  </forward>
  <bridge name='virbr1' stp='on' delay='0'/>
  <mac address='52:54:00:5e:6a:2b'/>
  <ip address='192.168.150.1' prefix='24'>
    <dhcp>
      <range start='192.168.150.100' end='192.168.150.200'/>
      <host mac='52:54:00:aa:00:01' ip='192.168.150.9'/>
    </dhcp>
  </ip>
</network>
"""


def test_what_libvirt_adds_by_itself_is_no_difference() -> None:
    assert normal(DUMPED, DECLARED) == normal(DECLARED, DECLARED)


def test_without_a_wish_what_libvirt_chose_is_part_of_it() -> None:
    assert '<bridge name="virbr1"/>' in normal(DUMPED)
    assert "uuid" not in normal(DUMPED)


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (("mode='nat'", "mode='route'"), '<forward dev="eth0" mode="route"/>'),
        (("prefix='24'", "prefix='25'"), 'prefix="25"'),
        (("stp='on'", "stp='off'"), 'stp="off"'),
        (("end='65535'", "end='2000'"), '<port end="2000"'),
        (("ip='192.168.150.9'", "ip='192.168.150.8'"), 'ip="192.168.150.8"'),
    ],
)
def test_what_somebody_edits_is_a_difference(edit: tuple[str, str], line: str) -> None:
    edited = normal(DUMPED.replace(*edit), DECLARED)
    assert edited != normal(DECLARED, DECLARED)
    assert line in edited


@pytest.mark.parametrize("text", ["", "<network", "<pool/>", "plain"])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(NetworkXmlError):
        normal(text)


# --- declarations


@pytest.mark.parametrize(
    ("declaration", "words"),
    [
        ({"name": "a/b"}, "a name has up to 50"),
        ({"name": "-a"}, "a name has up to 50"),
        ({"name": "a\n"}, "a name has up to 50"),
        ({}, "network (without a name)"),
        ({"name": "a", "mode": "natted"}, "there is no mode natted"),
        ({"name": "a", "subnets": "10.0.0.0/24"}, "there is no field subnets"),
        ({"name": "a", "subnet": "10.0.0.1/24"}, "has host bits set"),
        ({"name": "a", "subnet": "10.0.0.0/31"}, "no room for guests"),
        (
            {"name": "a", "subnet": "10.0.0.0/29", "dhcp": {"ranges": [{"start": "10.0.1.1", "end": "10.0.1.9"}]}},
            "10.0.1.1 to",
        ),
        ({"name": "a", "subnet": "10.0.0.0/24", "gateway": "10.0.1.1"}, "in none of its subnets: 10.0.1.1"),
        ({"name": "a", "subnet": "10.0.0.0/24", "dhcp": {"hosts": [{"ip": "10.0.0.9"}]}}, "needs a mac"),
        ({"name": "a", "subnet": "10.0.0.0/24", "dhcp": {"range": []}}, "a table with ranges and hosts"),
        ({"name": "a", "subnet": "auto", "gateway": "10.0.0.1"}, "nobody knows the addresses"),
        ({"name": "a", "dhcp": True}, "need a subnet"),
        ({"name": "a", "mode": "bridge"}, "needs bridge"),
        ({"name": "a", "mode": "macvtap"}, "needs dev"),
        (
            {"name": "a", "mode": "bridge", "bridge": "br0", "subnet": "10.0.0.0/24"},
            "subnet means nothing in mode bridge",
        ),
        ({"name": "a", "mode": "bridge", "bridge": "a-name-that-is-too-long"}, "no name of a network device"),
        ({"name": "a", "mode": "openvswitch", "bridge": "br0", "vlans": [4095]}, "between 1 and 4094"),
        ({"name": "a", "mode": "openvswitch", "bridge": "br0", "vlans": [5], "native_vlan": 6}, "one of vlans"),
        ({"name": "a", "mtu": "big"}, "mtu is a number"),
        ({"name": "a", "active": "yes"}, "active is true or false"),
        ({"name": "a", "dns": {"host": []}}, "dns is a table"),
        ({"name": "a", "dns": {"forwarders": ["example.org"]}}, "no IP address"),
        ({"name": "a", "dns": {"domain": "a'b"}}, "dns.domain is a word"),
        ({"name": "a", "xml": "<network><name>b</name></network>"}, "xml names the network b"),
        ({"name": "a", "xml": "<network><name>a</name><uuid>1</uuid></network>"}, "xml has a uuid"),
        ({"name": "a", "xml": "<network><name>a</name></network>", "mtu": 1400}, "mtu has no place beside it"),
        ({"name": "a", "xml": "<network"}, "it is no XML"),
    ],
)
def test_a_wrong_declaration_is_refused_with_the_reason(declaration: dict[str, Any], words: str) -> None:
    (said,) = networks.wrong([declaration])
    assert words in said


@pytest.mark.parametrize("value", ["lab", {"name": "lab"}, ["lab"]])
def test_what_is_no_list_of_tables_is_refused(value: Any) -> None:
    assert "must be a list of tables" in networks.wrong(value)[0]


def test_subnets_of_one_host_must_not_overlap() -> None:
    (said,) = networks.wrong([LAB, {"name": "other", "mode": "isolated", "subnet": "192.168.0.0/16"}])
    assert "network other: its subnet 192.168.0.0/16 overlaps 192.168.150.0/24 of the network lab" in said


def test_subnets_in_xml_overlap_too() -> None:
    text = "<network><name>b</name><ip address='192.168.150.129' netmask='255.255.255.128'/></network>"
    assert "overlaps" in networks.wrong([LAB, {"name": "b", "xml": text}])[0]


def test_two_networks_cannot_make_one_bridge_but_can_use_one() -> None:
    assert "has the bridge virbr10 already" in networks.wrong([LAB, {"name": "b", "bridge": "virbr10"}])[0]
    assert networks.wrong([{"name": name, "mode": "bridge", "bridge": "br0"} for name in "ab"]) == []


def test_a_name_is_declared_once() -> None:
    assert networks.wrong([LAB, {"name": "lab"}]) == ["network lab: declared 2 times."]


def lines(**network: Any) -> str:
    assert networks.wrong([network]) == []
    return normal(networks.xml(network))


def test_every_mode_has_its_xml() -> None:
    assert '<forward dev="eth0" mode="route"/>' in lines(name="a", mode="route", dev="eth0")
    assert '<forward mode="open"/>' in lines(name="a", mode="open")
    assert "forward" not in lines(name="a", mode="isolated")
    assert lines(name="a", mode="bridge", bridge="br0").count("br0") == 1
    assert '<forward dev="eth0" mode="bridge"/>' in lines(name="a", mode="macvtap", dev="eth0")
    several = lines(name="a", mode="macvtap", dev=["eth0", "eth1"])
    assert '<interface dev="eth0"/>' in several
    assert '<virtualport type="openvswitch"/>' in lines(name="a", mode="openvswitch", bridge="ovs0")


def test_vlans_are_a_trunk_where_there_are_several() -> None:
    ovs = {"name": "a", "mode": "openvswitch", "bridge": "ovs0"}
    assert "trunk" not in networks.xml({**ovs, "vlans": [10]})
    group = {"name": "g", "default": True, "vlans": [10, 20], "native_vlan": 10}
    text = lines(**ovs, portgroups=[group])
    assert '<portgroup default="yes" name="g">' in text
    assert '<tag id="10" nativeMode="untagged"/>' in text


def test_dhcp_without_ranges_has_every_address_but_the_gateway() -> None:
    assert '<range end="192.168.150.254" start="192.168.150.2"/>' in lines(**LAB)
    assert '<range end="192.168.150.253" start="192.168.150.1"/>' in lines(**{**LAB, "gateway": "192.168.150.254"})
    assert "range" not in lines(
        **{**LAB, "dhcp": {"ranges": [], "hosts": [{"mac": "52:54:00:00:00:01", "ip": "192.168.150.9"}]}}
    )


def test_addresses_go_to_the_subnet_that_they_are_in() -> None:
    ranges = [{"start": "10.0.0.5", "end": "10.0.0.9"}, {"start": "fd00::5", "end": "fd00::9"}]
    root = ElementTree.fromstring(
        networks.xml({"name": "a", "subnet": ["10.0.0.0/24", "fd00::/64"], "dhcp": {"ranges": ranges}})
    )
    found = {ip.get("address"): [r.get("start") for r in ip.iter("range")] for ip in root.findall("ip")}
    assert found == {"10.0.0.1": ["10.0.0.5"], "fd00::1": ["fd00::5"]}


# --- the fleet

ROUTED = {"name": "dmz", "mode": "route", "subnet": "10.1.0.0/24"}


def test_a_routed_subnet_belongs_to_one_host_of_the_fleet() -> None:
    fleet = {"hv1": {"networks": [ROUTED]}, "hv2": {"networks": [{**ROUTED, "name": "x"}]}, "hv3": {"networks": [LAB]}}
    (said,) = networks.fleet_collisions("hv1", fleet)
    assert "overlaps 10.1.0.0/24 of the network x on hv2" in said
    assert networks.fleet_collisions("hv3", fleet) == []


def test_a_subnet_behind_nat_may_be_on_every_host() -> None:
    assert networks.fleet_collisions("hv1", {"hv1": {"networks": [LAB]}, "hv2": {"networks": [LAB]}}) == []


def test_a_broken_declaration_of_another_host_does_not_stop_this_one() -> None:
    broken = [None, "x", {"mode": "route"}, {"name": "a", "xml": 3}]
    assert networks.fleet_collisions("hv1", {"hv1": {"networks": [ROUTED]}, "hv2": {"networks": broken}}) == []


AUTO = {"name": "free", "subnet": "auto"}
POOL = "172.24.0.0/13"


def test_no_two_networks_of_a_fleet_choose_one_subnet() -> None:
    small = "172.24.0.0/18"  # 64 of them for 60 networks, so that most first choices collide
    fleet = {f"hv{number}": {"networks": [AUTO, {**AUTO, "name": "b"}]} for number in range(30)}
    chosen = networks.choose(fleet, small)
    assert len(set(chosen.values())) == 60
    with pytest.raises(networks.DeclarationError, match="used up"):
        networks.choose({**fleet, "more": {"networks": [{**AUTO, "name": str(n)} for n in range(5)]}}, small)


def test_a_choice_avoids_what_the_host_and_the_fleet_have() -> None:
    first = networks.choose({"hv1": {"networks": [AUTO]}}, POOL)["hv1", "free"]
    for elsewhere in (
        {"hv1": {"networks": [AUTO], "taken": [first]}},
        {"hv1": {"networks": [AUTO]}, "hv2": {"networks": [{"name": "x", "subnet": first}]}},
        {"hv1": {"networks": [AUTO]}, "hv2": {"networks": [AUTO], "kept": {"free": [first]}}},
    ):
        chosen = networks.choose(elsewhere, POOL)["hv1", "free"]
        assert chosen != first
        assert ipaddress.ip_network(chosen).subnet_of(ipaddress.ip_network(POOL))


def test_what_a_network_has_it_keeps() -> None:
    fleet = {"hv1": {"networks": [AUTO], "kept": {"free": ["10.9.8.0/24"]}, "taken": ["172.24.0.0/13"]}}
    assert networks.choose(fleet, POOL) == {("hv1", "free"): "10.9.8.0/24"}


def test_every_host_gives_the_same_answer() -> None:
    fleet = {"hv2": {"networks": [AUTO]}, "hv1": {"networks": [AUTO, LAB]}}
    assert networks.choose(fleet, POOL) == networks.choose(dict(reversed(fleet.items())), POOL)


def test_a_subnet_of_ipv6_stays_beside_the_chosen_one() -> None:
    (network,) = networks.resolved([{**AUTO, "subnet": ["auto", "fd00::/64"]}], {"free": "172.24.1.0/24"})
    assert network["subnet"] == ["172.24.1.0/24", "fd00::/64"]


# --- the module


class Libvirt:
    """Answers what virsh does, in the words of libvirt 9.0; a network that is live is XML of its own."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls, self.guests = root, [], {}
        self.configured: dict[str, str] = {}
        self.live: dict[str, str] = {}
        self.autostart: set[str] = set()
        self.does_not_start: set[str] = set()
        (root / "proc/net").mkdir(parents=True)
        (root / "proc/net/route").write_text(ROUTES)

    def run(self, argv: Any, stdin: str) -> tuple[int, str, str]:
        if argv[0] != "virsh":
            self.calls.append(" ".join(argv))
            return 0, "", ""
        command, *rest = argv[4:]
        if command not in ("net-list", "net-dumpxml", "list", "dumpxml"):
            self.calls.append(" ".join([command, *rest[:3]]))
        try:
            return 0, getattr(self, command.replace("-", "_"))(*rest, **({"stdin": stdin} if stdin else {})), ""
        except ValueError as error:
            return 1, "", f"error: {error}\n"

    def net_list(self, _all: str) -> str:
        def yes(value: bool) -> str:
            return "yes" if value else "no"

        return "".join(
            f" {name}   {'active' if name in self.live else 'inactive'}   {yes(name in self.autostart)}   "
            f"{yes(name in self.configured)}\n"
            for name in sorted({*self.live, *self.configured})
        )

    def net_dumpxml(self, name: str, *inactive: str) -> str:
        return self.configured[name] if inactive else self.live[name]

    def net_define(self, _path: str, stdin: str) -> str:
        root = ElementTree.fromstring(stdin)
        name = str(root.findtext("name"))
        old = re.search("<uuid>.*</uuid>", self.configured.get(name, ""))
        if old and old[0] not in stdin:
            raise ValueError(f"operation failed: network '{name}' already exists with uuid")
        if root.find("uuid") is None:
            ElementTree.SubElement(root, "uuid").text = f"uuid-of-{name}"
        if root.find("bridge") is None and root.find("ip") is not None:
            ElementTree.SubElement(root, "bridge", name=f"virbr{len(self.configured)}", stp="on", delay="0")
        self.configured[name] = ElementTree.tostring(root, encoding="unicode")
        return ""

    def net_start(self, name: str) -> str:
        if any(word in self.configured[name] for word in self.does_not_start):
            raise ValueError("internal error: Network is already in use by interface eth0")
        self.live[name] = self.configured[name]
        return ""

    def net_destroy(self, name: str) -> str:
        del self.live[name]
        return ""

    def net_undefine(self, name: str) -> str:
        del self.configured[name]
        return ""

    def net_autostart(self, name: str, *disable: str) -> str:
        (self.autostart.discard if disable else self.autostart.add)(name)
        return ""

    def net_update(self, name: str, verb: str, section: str, text: str, *rest: str) -> str:
        root = ElementTree.fromstring(self.live[name])
        path = module.SECTIONS[section].split("/")[:-1]
        parent = root
        for tag in path:
            found = parent.findall(tag)
            parent = found[int(rest[1])] if tag == "ip" else found[0] if found else ElementTree.SubElement(parent, tag)
        element = ElementTree.fromstring(text)
        if verb == "delete":
            (old,) = [child for child in parent if child.attrib == element.attrib and child.tag == element.tag]
            parent.remove(old)
        else:
            parent.append(element)
        self.live[name] = ElementTree.tostring(root, encoding="unicode")
        return ""

    def list(self, _name: str, *_all: str) -> str:
        return "".join(f"{name}\n" for name, (_, runs) in self.guests.items() if runs or _all)

    def dumpxml(self, name: str) -> str:
        interface = f"<interface><source network='{self.guests[name][0]}'/><target dev='vnet0'/></interface>"
        return f"<domain><devices>{interface}</devices></domain>"

    def converge(self, *wanted: Any, **options: Any) -> Any:
        assert networks.wrong(wanted) == []
        self.calls.clear()
        host = module.Host(self.run, str(self.root), lambda _: "/usr/bin/virsh")
        with open_record(str(self.root / "record/record.json"), check=options.get("check", False)) as record:
            return module.converge(host, record, list(wanted), **options)

    def look(self, *wanted: Any, bridges: Any = ()) -> Any:
        return module.look(module.Host(self.run, str(self.root), lambda _: "/usr/bin/virsh"), wanted, ["lab"], bridges)


ROUTES = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t0102D50A\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t0002D50A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
eth0\t0000000B\t0102D50A\t0003\t0\t0\t0\t000000FF\t0\t0\t0
virbr10\t0096A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""


@pytest.fixture
def libvirt(tmp_path: Path) -> Libvirt:
    return Libvirt(tmp_path)


def test_nothing_declared_and_nothing_ours_asks_libvirt_nothing(tmp_path: Path) -> None:
    host = module.Host(lambda *_: pytest.fail("it asked"), str(tmp_path))
    with open_record(str(tmp_path / "record.json")) as record:
        assert module.converge(host, record, []).done == []


def test_a_new_network_is_defined_started_and_autostarted_and_then_left_alone(libvirt: Libvirt) -> None:
    first = libvirt.converge(LAB)
    assert first.done == ["lab: defined", "lab: started", "lab: starts with the host"]
    assert '<bridge name="virbr10"/>' in first.networks["lab"]["xml"]
    second = libvirt.converge(LAB)
    assert (second.done, second.diffs, libvirt.calls) == ([], [], [])
    assert second.networks == first.networks


def test_check_mode_shows_the_difference_and_changes_nothing(libvirt: Libvirt) -> None:
    done = libvirt.converge(LAB, check=True)
    assert (done.diffs[0]["before"], libvirt.calls) == ("", [])
    libvirt.converge(LAB)
    changed = libvirt.converge({**LAB, "mtu": 1400}, check=True)
    assert changed.done == ["lab: changed", "lab: restarted"]
    assert '<mtu size="1400"/>' in changed.diffs[0]["after"]
    assert libvirt.calls == []
    assert not (libvirt.root / "record/record.json").read_text().count("mtu")


def test_a_bare_host_has_nothing_to_ask_in_check_mode(libvirt: Libvirt) -> None:
    bare = module.Host(lambda *_: pytest.fail("it asked"), str(libvirt.root), lambda _: None)
    with open_record(str(libvirt.root / "r"), check=True) as record:
        assert module.converge(bare, record, [LAB], check=True).done == ["lab: defined"]
        with pytest.raises(module.NetworksError, match="there is no virsh"):
            module.converge(bare, record, [LAB])


def test_reservations_change_while_a_guest_runs(libvirt: Libvirt) -> None:
    host = {"mac": "52:54:00:00:00:01", "name": "web", "ip": "192.168.150.9"}
    libvirt.converge({**LAB, "dhcp": {"hosts": [host]}})
    libvirt.guests["web"] = ("lab", True)
    done = libvirt.converge({**LAB, "dhcp": {"hosts": [{**host, "ip": "192.168.150.8"}]}})
    assert (done.done, done.pending) == (["lab: changed", "lab: updated while it runs"], [])
    assert [call.split(" <")[0] for call in libvirt.calls] == [
        "net-define /dev/stdin",
        "net-update lab delete ip-dhcp-host",
        "net-update lab add-last ip-dhcp-host",
    ]
    assert libvirt.converge({**LAB, "dhcp": {"hosts": [{**host, "ip": "192.168.150.8"}]}}).done == []


def test_a_network_that_guests_use_is_not_restarted(libvirt: Libvirt) -> None:
    libvirt.converge(LAB)
    libvirt.guests["web"] = ("lab", True)
    for done in (["lab: changed"], []):
        outcome = libvirt.converge({**LAB, "mtu": 1400})
        assert outcome.done == done
        assert "it runs as it was, because of the guest web" in outcome.pending[0]
        assert "mtu" in outcome.networks["lab"]["xml"]
    assert "mtu" not in libvirt.live["lab"]
    libvirt.guests["web"] = ("lab", False)
    assert libvirt.converge({**LAB, "mtu": 1400}).done == ["lab: restarted"]
    assert "mtu" in libvirt.live["lab"]


def test_a_port_at_the_bridge_is_a_user_too(libvirt: Libvirt) -> None:
    libvirt.converge(LAB)
    for port in ("virbr10-nic", "veth7"):
        (libvirt.root / "sys/class/net/virbr10/brif" / port).mkdir(parents=True)
    outcome = libvirt.converge({**LAB, "mtu": 1400})
    assert "because of the port veth7 of its bridge" in outcome.pending[0]


def test_a_disruption_that_is_allowed_puts_the_ports_back(libvirt: Libvirt) -> None:
    libvirt.converge(LAB)
    libvirt.guests["web"] = ("lab", True)
    (libvirt.root / "sys/class/net/virbr10/brif/vnet0").mkdir(parents=True)
    outcome = libvirt.converge({**LAB, "mtu": 1400}, disrupt=True)
    assert outcome.done == ["lab: changed", "lab: restarted in spite of the guest web"]
    assert libvirt.calls[-1] == "ip link set dev vnet0 master virbr10"


def test_a_network_that_does_not_start_any_more_gets_its_old_definition_back(libvirt: Libvirt) -> None:
    libvirt.converge(LAB)
    libvirt.does_not_start = {"192.168.151.1"}
    with pytest.raises(module.NetworksError, match="so it runs as it was before"):
        libvirt.converge({**LAB, "subnet": "192.168.151.0/24"})
    assert "192.168.150.1" in libvirt.configured["lab"]
    assert "192.168.150.1" in libvirt.live["lab"]


def test_what_left_the_list_is_removed_only_if_it_is_ours_and_unused(libvirt: Libvirt) -> None:
    libvirt.net_define("", stdin=DUMPED.replace("lab", "default"))
    libvirt.converge(LAB)
    libvirt.guests["web"] = ("lab", False)  # would not start any more
    assert "stays, because the guest web" in libvirt.converge().pending[0]
    libvirt.guests.clear()
    assert libvirt.converge().done == ["lab: removed"]
    assert list(libvirt.configured) == ["default"]
    assert libvirt.converge().done == []


def test_what_was_there_before_is_put_back_as_it_was(libvirt: Libvirt) -> None:
    before = DUMPED.replace("lab", "default").replace(" connections='2'", "")
    libvirt.configured["default"] = before
    libvirt.converge({"name": "default", "subnet": "192.168.150.0/24", "mtu": 1400})
    assert "default" in libvirt.live
    outcome = libvirt.converge()
    assert outcome.done == ["default: changed", "default: stopped", "default: does not start with the host"]
    assert normal(libvirt.configured["default"]) == normal(before)
    assert libvirt.converge().done == []


def test_a_network_may_be_declared_stopped(libvirt: Libvirt) -> None:
    libvirt.converge(LAB)
    libvirt.guests["web"] = ("lab", True)
    assert "not stopped, because" in libvirt.converge({**LAB, "active": False}).pending[0]
    libvirt.guests.clear()
    done = libvirt.converge({**LAB, "active": False, "autostart": False}).done
    assert done == ["lab: stopped", "lab: does not start with the host"]


def test_a_subnet_that_the_host_is_in_stops(libvirt: Libvirt) -> None:
    with pytest.raises(module.NetworksError, match=r"lan: its subnet 10\.213\.2\.128/25 overlaps 10\.213\.2\.0/24"):
        libvirt.look({"name": "lan", "subnet": "10.213.2.128/25"})


def test_a_part_of_what_a_router_leads_to_is_fine(libvirt: Libvirt) -> None:
    assert libvirt.look({"name": "lan", "mode": "route", "subnet": "11.5.0.0/16"})["kept"] == {}
    with pytest.raises(module.NetworksError, match=r"overlaps 11\.0\.0\.0/8"):
        libvirt.look({"name": "lan", "mode": "route", "subnet": "11.0.0.0/8"})


def test_the_networks_own_bridge_is_no_collision_and_its_subnet_is_kept(libvirt: Libvirt) -> None:
    libvirt.converge(LAB)
    seen = libvirt.look({**LAB, "subnet": "auto"})
    assert seen["kept"] == {"lab": ["192.168.150.0/24"]}
    assert seen["taken"] == ["10.213.2.0/24", "11.0.0.0/8"]


def test_a_network_that_leaves_makes_room_for_one_with_its_subnet(libvirt: Libvirt) -> None:
    libvirt.converge(LAB)
    assert libvirt.look({"name": "new", "subnet": "192.168.150.0/24"})["kept"] == {}


def test_a_device_that_the_host_has_not_stops(libvirt: Libvirt) -> None:
    (libvirt.root / "sys/class/net/eth0").mkdir(parents=True)
    (libvirt.root / "sys/class/net/br0/bridge").mkdir(parents=True)
    office = {"name": "office", "mode": "bridge"}
    libvirt.look({**office, "bridge": "br0"})
    libvirt.look({**office, "bridge": "br1"}, bridges=["br1"])
    with pytest.raises(module.NetworksError, match="this host has no br1"):
        libvirt.look({**office, "bridge": "br1"})
    with pytest.raises(module.NetworksError, match="eth0 is no bridge"):
        libvirt.look({**office, "bridge": "eth0"})
    with pytest.raises(module.NetworksError, match="this host has no eth9"):
        libvirt.look({"name": "tap", "mode": "macvtap", "dev": "eth9"})
