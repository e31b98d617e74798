"""What the networks that run are made of: bridges, routes, the firewall, dnsmasq. libvirt is not asked for it."""

import glob
import ipaddress
import os
import re
import struct
import xml.etree.ElementTree as ElementTree
from typing import Any, Dict, Iterable, List, NamedTuple, Optional

from . import files, processes, shell

STATUS = "/run/libvirt/network"
LINKS = "/sys/class/net"
MOST = 64
TABLES = (("udp", "07"), ("udp6", "07"), ("tcp", "0A"), ("tcp6", "0A"))  # the state of a socket that waits
BRIDGE_NF = "/proc/sys/net/bridge/bridge-nf-call-"
LINES = re.MULTILINE
GATEWAY, REJECT = 0x2, 0x200  # flags of a route, linux/route.h

Address = Any  # of ipaddress, either version
Socket = NamedTuple("Socket", [("table", str), ("address", str), ("port", int)])
Route = NamedTuple("Route", [("network", Address), ("device", str), ("gateway", bool)])


def look(declared: Iterable[str]) -> Dict[str, Any]:
    """`declared` are bridges of the host."""
    networks = running()
    found: Dict[str, Any] = {
        "running": networks,
        "links": links({*declared, *(network["bridge"] for network in (networks or {}).values())} - {""}),
        "forwarding": {
            "ipv4": files.text("/proc/sys/net/ipv4/ip_forward").strip(),
            "ipv6": files.text("/proc/sys/net/ipv6/conf/all/forwarding").strip(),
        },
        "bridge_nf": {os.path.basename(path): files.text(path).strip() for path in glob.glob(BRIDGE_NF + "*")},
    }
    if networks:
        listening = sockets()
        serve(networks, listening)
        found["wildcards"] = wildcards(networks, listening)
        collide(networks, routes(files.text("/proc/net/route", 4 << 20), files.text("/proc/net/ipv6_route", 4 << 20)))
        try:
            admit(networks)
        except (OSError, ValueError) as error:
            found["firewall_error"] = str(error)
    return found


# --- the networks


def running(folder: str = STATUS) -> Optional[Dict[str, Dict[str, Any]]]:
    """Name -> network, from the files that libvirt keeps of those that run. None where they cannot be read."""
    found = {}
    for path in sorted(glob.glob(folder + "/*.xml"))[:MOST]:
        try:
            network = ElementTree.fromstring(files.content(path, 4 << 20)).find("network")
        except FileNotFoundError:  # stopped meanwhile
            continue
        except (OSError, ElementTree.ParseError):
            return None
        if network is not None:
            found[network.findtext("name") or ""] = described(network)
    return found


def described(network: ElementTree.Element) -> Dict[str, Any]:
    forward, bridge, size = network.find("forward"), network.find("bridge"), network.find("mtu")
    dns, subnets = network.find("dns"), [subnet(ip) for ip in network.findall("ip")]
    dhcp = network.find("ip/dhcp") is not None
    return {
        "mode": "isolated" if forward is None else forward.get("mode", "nat"),
        "bridge": "" if bridge is None else bridge.get("name", ""),
        "mtu": 0 if size is None else int(size.get("size", "0")),
        "subnets": [str(found) for found in subnets],
        "dhcp": dhcp,
        "dns": bool(subnets) and (dns is None or dns.get("enable") != "no"),
    }


def subnet(ip: ElementTree.Element) -> Address:
    """The address of the host with its prefix; without one that of the old classes, as in libvirt."""
    address = ipaddress.ip_address(ip.get("address", ""))
    first = int(str(address).split(".")[0]) if address.version == 4 else 0
    guess = 64 if address.version == 6 else 8 if first < 128 else 16 if first < 192 else 24
    return ipaddress.ip_interface("{}/{}".format(address, ip.get("prefix") or ip.get("netmask") or guess))


def links(bridges: Iterable[str], folder: str = LINKS) -> Dict[str, Any]:
    """Name -> link, of the bridges that are there and of what is at them."""
    found = {}
    for bridge in sorted(bridges)[:MOST]:
        if re.match(r"[^/.][^/]*$", bridge) and os.path.isdir(os.path.join(folder, bridge)):
            ports = sorted(glob.glob(os.path.join(folder, bridge, "brif", "*")))
            found[bridge] = dict(link(folder, bridge), ports=[os.path.basename(port) for port in ports])
            found.update((name, link(folder, name)) for name in found[bridge]["ports"] if name not in found)
    return found


def link(folder: str, name: str) -> Dict[str, Any]:
    place = os.path.join(folder, name)
    return {
        "mtu": int(files.text(place + "/mtu").strip() or 0),
        "up": bool(int(files.text(place + "/flags").strip() or "0", 16) & 1),
        "carrier": files.text(place + "/carrier").strip() == "1",  # of a link that is down it cannot be read
        "tap": os.path.exists(place + "/tun_flags"),
    }


# --- routes


def routes(ipv4: str, ipv6: str) -> List[Route]:
    """The main table, without what leads everywhere or nowhere. /proc/net/route and ipv6_route, proc(5)."""
    found = []
    for words in (line.split() for line in ipv4.splitlines()[1:]):
        if len(words) > 7 and not int(words[3], 16) & REJECT:
            prefix = "{}/{}".format(ipv4_address(words[1]), ipv4_address(words[7]))
            found.append(Route(ipaddress.ip_network(prefix, strict=False), words[0], bool(int(words[3], 16) & GATEWAY)))
    for words in (line.split() for line in ipv6.splitlines()):
        if len(words) > 9 and not int(words[8], 16) & REJECT:
            address = ipaddress.IPv6Address(int(words[0], 16))
            network = ipaddress.ip_network("{}/{}".format(address, int(words[1], 16)), strict=False)
            if not (address.is_link_local or address.is_multicast or words[9] == "lo"):
                found.append(Route(network, words[9], bool(int(words[8], 16) & GATEWAY)))
    return [route for route in found if route.network.prefixlen]


def collide(networks: Dict[str, Dict[str, Any]], known: List[Route]) -> None:
    """Note at each network the routes of others that lead to its addresses."""
    for network in networks.values():
        own = [ipaddress.ip_interface(text).network for text in network["subnets"]]
        network["overlaps"] = [
            {"destination": str(route.network), "device": route.device, "gateway": route.gateway}
            for route in known
            if route.device != network["bridge"]
            and any(route.network.version == one.version and route.network.overlaps(one) for one in own)
        ][:MOST]


def ipv4_address(text: str) -> str:
    """The kernel prints the number as it lies in memory."""
    return str(ipaddress.IPv4Address(struct.pack("=I", int(text, 16))))


def ipv6_address(text: str) -> str:
    packed = b"".join(struct.pack("=I", int(text[at : at + 8], 16)) for at in range(0, 32, 8))
    return str(ipaddress.IPv6Address(packed))


# --- dnsmasq


def sockets(folder: str = "/proc/net") -> Dict[str, Socket]:
    """Inode -> socket, of those that wait on the ports of DNS and DHCP."""
    found = {}
    for table, state in TABLES:
        for words in (line.split() for line in files.text(folder + "/" + table, 4 << 20).splitlines()[1:]):
            if len(words) > 9 and words[3] == state:
                address, _, port = words[1].partition(":")
                if int(port, 16) in (53, 67):
                    plain = ipv4_address(address) if len(address) == 8 else ipv6_address(address)
                    found[words[9]] = Socket(table, plain, int(port, 16))
    return found


def serve(networks: Dict[str, Dict[str, Any]], listening: Dict[str, Socket], folder: str = STATUS) -> None:
    """Note at each network its dnsmasq, and on which addresses that answers."""
    for name, network in networks.items():
        pid = files.text("{}/{}.pid".format(folder, name)).strip()
        if pid.isdigit() and "/{}.conf\0".format(name) in files.text("/proc/{}/cmdline".format(pid)):
            own = [listening[inode] for inode in inodes("/proc/" + pid) if inode in listening]
            network["dnsmasq"] = int(pid)
            network["answers"] = sorted({one.address for one in own if one.port == 53})
            network["leases"] = any(one.port == 67 for one in own)


def inodes(process: str) -> List[str]:
    """Those of a process's sockets."""
    targets = processes.descriptors(process) or ()
    return [target[len("socket:[") : -1] for target in targets if target.startswith("socket:[")]


def wildcards(networks: Dict[str, Dict[str, Any]], listening: Dict[str, Socket]) -> List[str]:
    """Who answers DNS on every address of the host, where a network would have its own dnsmasq answer."""
    wide = {inode for inode, one in listening.items() if one.port == 53 and one.address in ("0.0.0.0", "::")}
    if not wide:
        return []
    ours = {network.get("dnsmasq") for network in networks.values()}
    names = set()
    for process in glob.glob("/proc/[0-9]*"):
        if int(os.path.basename(process)) not in ours and wide.intersection(inodes(process)):
            names.add(files.text(process + "/comm").strip())
    return sorted(names) or ["somebody"]


# --- the firewall


def admit(networks: Dict[str, Dict[str, Any]]) -> None:
    """Note at each network which rules of libvirt are in force for it. Raises OSError where nobody can tell."""
    concerned = [network for network in networks.values() if guarded(network)]
    if not concerned or os.geteuid() != 0:
        return
    # nft(8) ends with 1 where there is no such table
    answer = shell.run(["nft", "list", "table", "ip", "libvirt_network"]) if shell.which("nft") else None
    table = answer.out if answer and answer.code == 0 else ""
    for network in concerned:
        network["rules"] = by_nftables(table, network)
    if shell.which("iptables") and not all(network["rules"] for network in concerned):
        with shell.ahead(["iptables", "-w", "3", "-S"], ["iptables", "-w", "3", "-t", "nat", "-S"]) as pending:
            answers = [one.result() for one in pending]
        for network in concerned:
            network["rules"] = network["rules"] or by_iptables(answers[0].out, answers[1].out, network)
        if any(one.code for one in answers) and not all(network["rules"] for network in concerned):
            raise OSError(" ".join((answers[0].err or answers[1].err).split()))


def guarded(network: Dict[str, Any]) -> bool:
    return network["mode"] in ("nat", "route", "isolated") and bool(ipv4(network))


def ipv4(network: Dict[str, Any]) -> List[str]:
    found = [ipaddress.ip_interface(text).network for text in network["subnets"]]
    return [str(one) for one in found if one.version == 4]


def by_nftables(table: str, network: Dict[str, Any]) -> List[str]:
    """The table is libvirt's own: what is in it is in force."""
    bridge = re.escape(network["bridge"])
    passes = [re.search(r'\b{}(name)? "{}" '.format(side, bridge), table) for side in ("iif", "oif")]
    hides = [re.search(r"ip saddr {} .*\b(masquerade|snat)\b".format(re.escape(one)), table) for one in ipv4(network)]
    return [name for name, there in (("forward", all(passes)), ("masquerade", all(hides))) if there]


def by_iptables(rules: str, nat: str, network: Dict[str, Any]) -> List[str]:
    """Chains are in force where the built-in one jumps to them before it ends."""
    bridge, verdict = re.escape(network["bridge"]), "REJECT" if network["mode"] == "isolated" else "ACCEPT"
    passes = [
        jumps(rules, "FORWARD", chain)
        and re.search(r"^-A {} .*-{} {} .*-j {}\b".format(chain, side, bridge, verdict), rules, LINES)
        for chain, side in (("LIBVIRT_FWO", "i"), ("LIBVIRT_FWI", "o"))
    ]
    hides = [
        jumps(nat, "POSTROUTING", "LIBVIRT_PRT")
        and re.search(r"^-A LIBVIRT_PRT -s {} .*-j (MASQUERADE|SNAT)\b".format(re.escape(one)), nat, LINES)
        for one in ipv4(network)
    ]
    return [name for name, there in (("forward", all(passes)), ("masquerade", all(hides))) if there]


def jumps(rules: str, chain: str, target: str) -> bool:
    before, found, _ = rules.partition("-A {} -j {}\n".format(chain, target))
    return bool(found) and not re.search(r"^-A {} -j (DROP|REJECT|RETURN)\b".format(chain), before, LINES)
