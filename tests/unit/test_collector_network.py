"""What networks that run are made of, from the texts in which the kernel and the tools of hosts tell it."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator.collector import network_live
from orchestrator.collector.network_live import Socket

STATUS = """<!--
WARNING: THIS IS AN AUTO-GENERATED FILE.
-->

<networkstatus>
  <class_id bitmap='0-2'/>
  <network>
    <name>lab</name>
    <forward mode='nat'>
      <nat><port start='1024' end='65535'/></nat>
    </forward>
    <bridge name='virbr1' stp='on' delay='0'/>
    <ip address='172.30.44.1' prefix='24'>
      <dhcp>
        <range start='172.30.44.2' end='172.30.44.254'/>
      </dhcp>
    </ip>
  </network>
</networkstatus>"""
LAB: dict[str, Any] = {"mode": "nat", "bridge": "virbr1", "subnets": ["172.30.44.1/24"]}
ISOLATED = dict(LAB, mode="isolated", bridge="virbr20", subnets=["198.51.100.1/24"])

RULES = """\
-P INPUT ACCEPT
-P FORWARD ACCEPT
-N LIBVIRT_FWI
-N LIBVIRT_FWO
-A FORWARD -j LIBVIRT_FWX
-A FORWARD -j LIBVIRT_FWI
-A FORWARD -j LIBVIRT_FWO
-A LIBVIRT_FWI -o virbr20 -j REJECT --reject-with icmp-port-unreachable
-A LIBVIRT_FWI -d 172.30.44.0/24 -o virbr1 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A LIBVIRT_FWI -o virbr1 -j REJECT --reject-with icmp-port-unreachable
-A LIBVIRT_FWO -i virbr20 -j REJECT --reject-with icmp-port-unreachable
-A LIBVIRT_FWO -s 172.30.44.0/24 -i virbr1 -j ACCEPT
-A LIBVIRT_FWO -i virbr1 -j REJECT --reject-with icmp-port-unreachable
"""
NAT = """\
-P POSTROUTING ACCEPT
-N LIBVIRT_PRT
-A POSTROUTING -j LIBVIRT_PRT
-A LIBVIRT_PRT -s 172.30.44.0/24 -d 224.0.0.0/24 -j RETURN
-A LIBVIRT_PRT -s 172.30.44.0/24 ! -d 172.30.44.0/24 -p tcp -j MASQUERADE --to-ports 1024-65535
-A LIBVIRT_PRT -s 172.30.44.0/24 ! -d 172.30.44.0/24 -j MASQUERADE
"""
TABLE = """\
table ip libvirt_network {
	chain guest_output {
		ip saddr 172.30.44.0/24 iif "virbr1" counter packets 0 bytes 0 accept
		iif "virbr1" counter packets 0 bytes 0 reject
	}

	chain guest_input {
		oif "virbr1" ip daddr 172.30.44.0/24 ct state established,related counter packets 0 bytes 0 accept
		oif "virbr1" counter packets 0 bytes 0 reject
	}

	chain guest_nat {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 172.30.44.0/24 ip daddr 224.0.0.0/24 counter packets 0 bytes 0 return
		ip saddr 172.30.44.0/24 ip daddr != 172.30.44.0/24 counter packets 0 bytes 0 masquerade
	}
}
"""
ROUTES = """\
Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
host0	00000000	0100D50A	0003	0	0	0	00000000	0	0	0
host0	0000D50A	00000000	0001	0	0	0	00FFFFFF	0	0	0
virbr1	002C1EAC	00000000	0001	0	0	0	00FFFFFF	0	0	0
*	00001EAC	00000000	0201	0	0	0	0000FFFF	0	0	0
wg0	802C1EAC	0100D50A	0003	0	0	0	80FFFFFF	0	0	0
"""
ROUTES6 = """\
fe800000000000000000000000000000 40 00000000000000000000000000000000 00 {0} 00000100 00000001 00000000 00000001 eth0
20010db8000000000000000000000000 20 00000000000000000000000000000000 00 {0} 00000400 00000001 00000000 00000001 eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 {0} ffffffff 00000001 00000000 00200200   lo
""".format("0" * 32)


def test_a_network_that_runs_is_read_from_the_file_that_libvirt_keeps_of_it(tmp_path: Path) -> None:
    (tmp_path / "lab.xml").write_text(STATUS)
    found = network_live.running(str(tmp_path))
    assert found == {
        "lab": {
            "mode": "nat",
            "bridge": "virbr1",
            "mtu": 0,
            "subnets": ["172.30.44.1/24"],
            "dhcp": True,
            "dns": True,
        }
    }


def test_without_a_folder_nothing_runs_and_what_cannot_be_read_is_not_nothing(tmp_path: Path) -> None:
    assert network_live.running(str(tmp_path / "absent")) == {}
    (tmp_path / "lab.xml").write_text(STATUS[:200])
    assert network_live.running(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("before", "after", "key", "expected"),
    [
        pytest.param("<forward mode='nat'>", "<forward>", "mode", "nat", id="nat-is-the-default"),
        pytest.param("prefix='24'", "netmask='255.255.0.0'", "subnets", ["172.30.44.1/16"], id="netmask"),
        pytest.param(" prefix='24'", "", "subnets", ["172.30.44.1/16"], id="class-B"),
        pytest.param("address='172.30.44.1' prefix='24'", "family='ipv6' address='2001:db8::1' prefix='64'", "subnets",
                     ["2001:db8::1/64"], id="ipv6"),
        pytest.param("<ip ", "<dns enable='no'/><ip ", "dns", False, id="no-dns"),
        pytest.param("<ip ", "<mtu size='9000'/><ip ", "mtu", 9000, id="mtu"),
    ],
)  # fmt: skip
def test_fields_of_a_network(tmp_path: Path, before: str, after: str, key: str, expected: object) -> None:
    (tmp_path / "lab.xml").write_text(STATUS.replace(before, after))
    assert (network_live.running(str(tmp_path)) or {})["lab"][key] == expected


def test_without_forward_a_network_is_isolated_and_without_addresses_it_serves_nobody(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(
        "<networkstatus><network><name>a</name><bridge name='b'/></network></networkstatus>"
    )
    found = (network_live.running(str(tmp_path)) or {})["a"]
    assert (found["mode"], found["subnets"], found["dns"], found["dhcp"]) == ("isolated", [], False, False)


@pytest.mark.parametrize(
    ("rules", "nat", "network", "expected"),
    [
        pytest.param(RULES, NAT, LAB, ["forward", "masquerade"], id="all"),
        pytest.param(RULES, NAT, ISOLATED, ["forward"], id="isolated"),
        pytest.param(RULES, "", LAB, ["forward"], id="nat-flushed"),
        pytest.param(RULES.replace("-A FORWARD -j LIBVIRT_FWO\n", ""), NAT, LAB, ["masquerade"], id="no-jump"),
        pytest.param(RULES.replace("-A FORWARD -j LIBVIRT_FWX", "-A FORWARD -j DROP"), NAT, LAB, ["masquerade"],
                     id="dropped-before-the-jump"),
        pytest.param(RULES.replace("-i virbr1 -j ACCEPT", "-i virbr1 -j LOG"), NAT, LAB, ["masquerade"],
                     id="only-what-rejects-is-left"),
        pytest.param(RULES, NAT, dict(LAB, bridge="virbr"), ["masquerade"], id="a-bridge-whose-name-begins-so"),
        pytest.param(RULES, NAT, dict(LAB, subnets=["172.30.4.1/24"]), ["forward"], id="another-subnet"),
    ],
)  # fmt: skip
def test_rules_of_iptables(rules: str, nat: str, network: dict[str, Any], expected: list[str]) -> None:
    assert network_live.by_iptables(rules, nat, network) == expected


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        pytest.param("", "", ["forward", "masquerade"], id="all"),
        pytest.param('iif "', 'iifname "', ["forward", "masquerade"], id="by-name"),
        pytest.param('iif "virbr1"', "iif 7", ["masquerade"], id="of-a-bridge-that-was-deleted"),
        pytest.param("masquerade", "snat to 192.0.2.7", ["forward", "masquerade"], id="an-address-of-its-own"),
        pytest.param("masquerade", "return", ["forward"], id="no-nat"),
    ],
)
def test_rules_of_nftables(before: str, after: str, expected: list[str]) -> None:
    assert network_live.by_nftables(TABLE.replace(before, after) if before else TABLE, LAB) == expected


def test_an_empty_table_is_no_rule() -> None:
    assert network_live.by_nftables("table ip libvirt_network {\n}\n", dict(LAB, mode="isolated")) == []


def test_routes_are_those_that_lead_somewhere() -> None:
    found = [(str(route.network), route.device, route.gateway) for route in network_live.routes(ROUTES, ROUTES6)]
    assert found == [
        ("10.213.0.0/24", "host0", False),
        ("172.30.44.0/24", "virbr1", False),
        ("172.30.44.128/25", "wg0", True),
        ("2001:db8::/32", "eth0", False),
    ]


def test_a_route_of_another_device_to_addresses_of_a_network_is_noted() -> None:
    networks = {"lab": dict(LAB), "six": dict(LAB, bridge="virbr6", subnets=["2001:db8:6::1/64"])}
    network_live.collide(networks, network_live.routes(ROUTES, ROUTES6))
    assert networks["lab"]["overlaps"] == [{"destination": "172.30.44.128/25", "device": "wg0", "gateway": True}]
    assert networks["six"]["overlaps"] == [{"destination": "2001:db8::/32", "device": "eth0", "gateway": False}]


def test_sockets_are_those_that_wait_for_dns_and_dhcp(tmp_path: Path) -> None:
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref\n"
    line = " 1: {} 00000000:0000 {} 00000000:00000000 00:00000000 00000000 0 0 {} 2 0 0\n"
    (tmp_path / "udp").write_text(
        head + line.format("012C1EAC:0035", "07", 11) + line.format("00000000:0043", "07", 12)
    )
    (tmp_path / "tcp").write_text(
        head + line.format("012C1EAC:0035", "0A", 13) + line.format("0100007F:0035", "01", 14)
    )
    (tmp_path / "tcp6").write_text(head + line.format("000080FE00000000FF005450CE9362FE:0035", "0A", 15))
    assert network_live.sockets(str(tmp_path)) == {
        "11": Socket("udp", "172.30.44.1", 53),
        "12": Socket("udp", "0.0.0.0", 67),
        "13": Socket("tcp", "172.30.44.1", 53),
        "15": Socket("tcp6", "fe80::5054:ff:fe62:93ce", 53),
    }


def test_a_process_that_is_another_one_now_is_no_dnsmasq(tmp_path: Path) -> None:
    (tmp_path / "lab.pid").write_text(f"{os.getpid()}\n")
    networks = {"lab": dict(LAB)}
    network_live.serve(networks, {}, str(tmp_path))
    assert "dnsmasq" not in networks["lab"]


def test_links_tell_what_is_at_a_bridge(tmp_path: Path) -> None:
    for name, flags, carrier in (("br0", "0x1003", "1"), ("eth0", "0x1003", "0"), ("vnet0", "0x1002", None)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "mtu").write_text("1500\n")
        (folder / "flags").write_text(flags + "\n")
        if carrier is not None:
            (folder / "carrier").write_text(carrier + "\n")
    (tmp_path / "vnet0" / "tun_flags").write_text("0x5002\n")
    (tmp_path / "br0" / "brif").mkdir()
    for port in ("eth0", "vnet0"):
        (tmp_path / "br0" / "brif" / port).mkdir()
    found = network_live.links({"br0", "absent", "../etc"}, str(tmp_path))
    assert found == {
        "br0": {"mtu": 1500, "up": True, "carrier": True, "tap": False, "ports": ["eth0", "vnet0"]},
        "eth0": {"mtu": 1500, "up": True, "carrier": False, "tap": False},
        "vnet0": {"mtu": 1500, "up": False, "carrier": False, "tap": True},
    }


def test_addresses_are_as_the_kernel_keeps_them() -> None:
    assert network_live.ipv4_address("012C1EAC") == "172.30.44.1"
    assert ipaddress.ip_address(network_live.ipv6_address("0" * 32)).is_unspecified
