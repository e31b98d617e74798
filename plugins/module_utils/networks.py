"""Declared libvirt networks: whether a declaration makes sense, its XML, and which free subnet one gets.

Pure: nothing here looks at a host. Filters use it on the controller, the module uses it on the host.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Union

from ansible_collections.kvmfleet.host.plugins.module_utils.network_xml import NetworkXmlError, parse

Subnet = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]  # noqa: UP007 - runs on Python 3.9
Network = Mapping[str, Any]

AUTO = "auto"
OWN_BRIDGE = ("nat", "route", "open", "isolated")  # modes in which libvirt makes the bridge and serves the subnet
MODES = (*OWN_BRIDGE, "bridge", "macvtap", "openvswitch")
ROUTED = ("route", "open")  # guests are seen with their own addresses
KEYS = {
    # key: the modes in which it means something; () for all, and those with * also beside xml
    "name": "*",
    "mode": "",
    "autostart": "*",
    "active": "*",
    "xml": "*",
    "bridge": "nat route open isolated bridge openvswitch",
    "dev": "nat route macvtap",
    "subnet": "nat route open isolated",
    "gateway": "nat route open isolated",
    "dhcp": "nat route open isolated",
    "dns": "nat route open isolated",
    "mtu": "nat route open isolated",
    "vlans": "bridge openvswitch",
    "native_vlan": "bridge openvswitch",
    "portgroups": "nat route open isolated bridge macvtap openvswitch",
}
NEEDS = {"bridge": "bridge", "openvswitch": "bridge", "macvtap": "dev"}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,49}\Z")
DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,14}\Z")  # the kernel's limit is 15
MAC = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}\Z")
WORD = re.compile(r"[^\s<>\"'&\x00-\x1f]+\Z")


class DeclarationError(ValueError):
    """What is wrong with a declaration, as a sentence."""


def wrong(networks: Any) -> list[str]:
    """What is wrong with the declared networks of one host, one sentence each."""
    if not isinstance(networks, (list, tuple)) or not all(isinstance(network, Mapping) for network in networks):
        return ["libvirt_networks must be a list of tables, such as [{name: lab, mode: nat, subnet: auto}]."]
    said = []
    for network in networks:
        try:
            check(network)
        except DeclarationError as error:
            said.append(f"network {network.get('name', '(without a name)')}: {error}")
    names = [network.get("name") for network in networks]
    said += [
        f"network {name}: declared {names.count(name)} times." for name in dict.fromkeys(names) if names.count(name) > 1
    ]
    return [*said, *([] if said else _collisions(networks))]


def _collisions(networks: Sequence[Network]) -> Iterator[str]:
    """Two networks of one host that want the same addresses or the same bridge."""
    bridges: dict[str, str] = {}
    places: list[tuple[Subnet, str]] = []
    for network in networks:
        name, bridge = network["name"], _own_bridge(network)
        if bridge in bridges:
            yield f"network {name}: {bridges[bridge]} has the bridge {bridge} already. Each needs one of its own."
        if bridge:
            bridges[bridge] = name
        for subnet in subnets(network):
            for other, owner in places:
                if overlap(subnet, other):
                    yield (
                        f"network {name}: its subnet {subnet} overlaps {other} of the network {owner} on the same host."
                        " Choose another one, or `subnet: auto`."
                    )
            places.append((subnet, name))


def _own_bridge(network: Network) -> str:
    root = parse(xml(network))
    forward, bridge = root.find("forward"), root.find("bridge")
    shared = forward is not None and forward.get("mode") not in (None, *OWN_BRIDGE)
    return "" if bridge is None or shared else bridge.get("name", "")


def check(network: Network) -> None:
    """Raises DeclarationError with the first thing that is wrong."""
    name, mode = network.get("name"), network.get("mode", "nat")
    if not isinstance(name, str) or not NAME.match(name):
        raise DeclarationError("a name has up to 50 letters, digits and _ . + - and begins with a letter or digit.")
    for key, value in network.items():
        _check_key(key, value, mode, "xml" in network)
    for key in ("autostart", "active"):
        if not isinstance(network.get(key, True), bool):
            raise DeclarationError(f"{key} is true or false.")
    if "xml" in network:
        _check_xml(name, network["xml"])
        return
    needed = NEEDS.get(mode)
    if needed and not network.get(needed):
        raise DeclarationError(f"mode {mode} needs {needed}: the name of a device of the host.")
    for key in ("bridge", "dev"):
        for device in _list(network.get(key, [])):
            if not isinstance(device, str) or not DEVICE.match(device):
                raise DeclarationError(
                    f"{key}: {device!r} is no name of a network device, which has up to 15 characters."
                )
    for subnet in _list(network.get("subnet", [])):
        if subnet != AUTO:
            _subnet(subnet)
    if "mtu" in network and not _number(network["mtu"], 68, 65535):
        raise DeclarationError("mtu is a number between 68 and 65535.")
    if network.get("subnet", []) == [] and any(network.get(key) for key in ("dhcp", "gateway")):
        raise DeclarationError("dhcp and gateway need a subnet.")
    if AUTO in _list(network.get("subnet", [])) and ("gateway" in network or isinstance(network.get("dhcp"), Mapping)):
        raise DeclarationError(
            "with `subnet: auto` nobody knows the addresses: gateway is the first, dhcp true or false."
        )
    xml(network)


def _check_key(key: Any, value: Any, mode: Any, by_xml: bool) -> None:
    if key not in KEYS:
        raise DeclarationError(f"there is no field {key}. The fields are {', '.join(KEYS)}.")
    if by_xml:
        if KEYS[key] != "*":
            raise DeclarationError(f"xml says everything, so {key} has no place beside it.")
        return
    if mode not in MODES:
        raise DeclarationError(f"there is no mode {mode}. The modes are {', '.join(MODES)}.")
    if KEYS[key] not in ("", "*") and mode not in KEYS[key].split():
        raise DeclarationError(f"{key} means nothing in mode {mode}, only in {', '.join(KEYS[key].split())}.")


def _check_xml(name: str, text: Any) -> None:
    try:
        root = parse(text if isinstance(text, str) else "")
    except NetworkXmlError as error:
        raise DeclarationError(f"xml: {error}.") from error
    if root.findtext("name") != name:
        raise DeclarationError(f"xml names the network {root.findtext('name')}.")
    if root.find("uuid") is not None:
        raise DeclarationError("xml has a uuid. Leave it out: each host makes its own.")


def xml(network: Network) -> str:
    """The XML of a declared network; a subnet that is still `auto` is left out. Raises DeclarationError."""
    if "xml" in network:
        return str(network["xml"])
    mode, root = network.get("mode", "nat"), ElementTree.Element("network")
    _add(root, "name", text=network["name"])
    if mode != "isolated":
        _add_forward(root, mode, [str(device) for device in _list(network.get("dev", []))])
    if "bridge" in network:
        _add(root, "bridge", name=network["bridge"])
    if "mtu" in network:
        _add(root, "mtu", size=network["mtu"])
    if mode == "openvswitch":
        _add(root, "virtualport", type="openvswitch")
    _add_vlan(root, network)
    for group in _tables(network.get("portgroups", []), "portgroups", {"name", "default", "vlans", "native_vlan"}):
        element = _add(root, "portgroup", name=_word(group.get("name"), "the name of a portgroup"))
        if group.get("default"):
            element.set("default", "yes")
        _add_vlan(element, group)
    _add_dns(root, network.get("dns", {}))
    _add_addresses(root, network)
    return ElementTree.tostring(root, encoding="unicode")


def _add(parent: ElementTree.Element, tag: str, text: str = "", **attributes: Any) -> ElementTree.Element:
    element = ElementTree.SubElement(parent, tag, {key: str(value) for key, value in attributes.items()})
    element.text = text or None
    return element


def _add_forward(root: ElementTree.Element, mode: str, devices: Sequence[str]) -> None:
    if mode in ("bridge", "macvtap", "openvswitch"):
        forward = _add(root, "forward", mode="bridge")
    else:
        forward = _add(root, "forward", mode=mode)
    for device in devices:
        _add(forward, "interface", dev=device)


def _add_vlan(parent: ElementTree.Element, holder: Network) -> None:
    tags, native = _list(holder.get("vlans", [])), holder.get("native_vlan")
    if not all(_number(tag, 1, 4094) for tag in tags):
        raise DeclarationError("vlans are numbers between 1 and 4094.")
    if native is not None and native not in tags:
        raise DeclarationError("native_vlan is one of vlans.")
    if tags:
        vlan = _add(parent, "vlan")
        if len(tags) > 1 or native is not None:
            vlan.set("trunk", "yes")
        for tag in tags:
            element = _add(vlan, "tag", id=tag)
            if tag == native:
                element.set("nativeMode", "untagged")


def _add_dns(root: ElementTree.Element, dns: Any) -> None:
    if not isinstance(dns, Mapping) or set(dns) - set(DNS_KEYS):
        raise DeclarationError(f"dns is a table with {', '.join(DNS_KEYS)}.")
    if dns.get("domain"):
        domain = _add(root, "domain", name=_word(dns["domain"], "dns.domain"))
        if dns.get("local_only"):
            domain.set("localOnly", "yes")
    element = _add(root, "dns")
    if not dns.get("enabled", True):
        element.set("enable", "no")
    for forwarder in _list(dns.get("forwarders", [])):
        given = forwarder if isinstance(forwarder, Mapping) else {"addr": forwarder}
        if not given or set(given) - {"domain", "addr"}:
            raise DeclarationError("a forwarder of dns is an address, or a table with domain and addr.")
        if "addr" in given:
            _address(given["addr"])
        _add(element, "forwarder", **{key: _word(value, "a forwarder") for key, value in given.items()})
    for record in _tables(dns.get("txt", []), "dns.txt", {"name", "value"}):
        _add(element, "txt", name=_word(record.get("name"), "the name of a TXT record"), value=record.get("value", ""))
    for record in _tables(dns.get("srv", []), "dns.srv", SRV_KEYS):
        _add(element, "srv", **{key: _word(str(value), f"{key} of an SRV record") for key, value in record.items()})
    for host in _tables(dns.get("hosts", []), "dns.hosts", {"ip", "hostnames"}):
        entry = _add(element, "host", ip=_address(host.get("ip")))
        for hostname in _list(host.get("hostnames", [])):
            _add(entry, "hostname", text=_word(hostname, "a host name"))
        if not len(entry):
            raise DeclarationError(f"dns.hosts: {host.get('ip')} needs hostnames.")
    if not len(element) and not element.attrib:
        root.remove(element)


DNS_KEYS = ("enabled", "domain", "local_only", "forwarders", "hosts", "txt", "srv")
SRV_KEYS = {"service", "protocol", "domain", "target", "port", "priority", "weight"}


def _add_addresses(root: ElementTree.Element, network: Network) -> None:
    wanted = [_subnet(subnet) for subnet in _list(network.get("subnet", [])) if subnet != AUTO]
    gateways = [_address(gateway) for gateway in _list(network.get("gateway", []))]
    dhcp = network.get("dhcp", False)
    if not isinstance(dhcp, (bool, Mapping)) or (isinstance(dhcp, Mapping) and set(dhcp) - {"ranges", "hosts"}):
        raise DeclarationError("dhcp is true, false, or a table with ranges and hosts.")
    ranges, hosts = _ranges(dhcp), _hosts(dhcp)
    lost = _outside(wanted, ranges, hosts, gateways)
    if lost and not is_auto(network):
        raise DeclarationError(f"an address of gateway or dhcp is in none of its subnets: {', '.join(lost)}.")
    for subnet in wanted:
        inside = [gateway for gateway in gateways if gateway in subnet]
        gateway = inside[0] if inside else next(iter(subnet.hosts()))
        element = _add(root, "ip", address=gateway, prefix=subnet.prefixlen)
        if subnet.version == 6:
            element.set("family", "ipv6")
        own_ranges = [pair for pair in ranges if pair[0] in subnet and pair[1] in subnet]
        if _computes_range(dhcp) and subnet.version == 4:
            own_ranges = [_whole(subnet, gateway)]
        own_hosts = [host for host in hosts if host["ip"] in subnet]
        if own_ranges or own_hosts:
            _add_dhcp(element, own_ranges, own_hosts)


def _computes_range(dhcp: Any) -> bool:
    return dhcp is True or (isinstance(dhcp, Mapping) and "ranges" not in dhcp)


def _outside(wanted: Any, ranges: Any, hosts: Any, gateways: Any) -> list[str]:
    lone = [f"{pair[0]} to {pair[1]}" for pair in ranges if not any(pair[0] in s and pair[1] in s for s in wanted)]
    lone += [str(host["ip"]) for host in hosts if not any(host["ip"] in subnet for subnet in wanted)]
    lone += [str(gateway) for gateway in gateways if not any(gateway in subnet for subnet in wanted)]
    return lone


def _ranges(dhcp: Any) -> list[tuple[Any, Any]]:
    found = []
    for pair in _tables(dhcp.get("ranges", []) if isinstance(dhcp, Mapping) else [], "dhcp.ranges", {"start", "end"}):
        start, end = _address(pair.get("start")), _address(pair.get("end"))
        if start.version != end.version or start > end:
            raise DeclarationError(f"dhcp.ranges: {start} comes after {end}.")
        found.append((start, end))
    return found


def _hosts(dhcp: Any) -> list[dict[str, Any]]:
    found = []
    for host in _tables(
        dhcp.get("hosts", []) if isinstance(dhcp, Mapping) else [], "dhcp.hosts", {"mac", "name", "ip"}
    ):
        address = _address(host.get("ip"))
        if address.version == 4 and not MAC.match(str(host.get("mac", ""))):
            raise DeclarationError(f"dhcp.hosts: {address} needs a mac such as 52:54:00:12:34:56.")
        found.append({**host, "ip": address})
    for key in ("mac", "name", "ip"):
        values = [str(host[key]).lower() for host in found if key in host]
        twice = next((value for value in values if values.count(value) > 1), "")
        if twice:
            raise DeclarationError(f"dhcp.hosts: {key} {twice} is there twice.")
    return found


def _add_dhcp(element: ElementTree.Element, ranges: Iterable[Any], hosts: Iterable[Any]) -> None:
    dhcp = _add(element, "dhcp")
    for start, end in ranges:
        _add(dhcp, "range", start=start, end=end)
    for host in hosts:
        entry = _add(dhcp, "host")
        if host.get("mac"):
            entry.set("mac", str(host["mac"]).lower())
        if host.get("name"):
            entry.set("name", _word(host["name"], "the name of a reservation"))
        entry.set("ip", str(host["ip"]))


def _whole(subnet: Any, gateway: Any) -> tuple[Any, Any]:
    """All addresses of a subnet that are after the gateway, or before it where it is the last."""
    first, last = subnet.network_address + 1, subnet.broadcast_address - 1
    if subnet.num_addresses < 8:
        raise DeclarationError(f"{subnet} is too small for dhcp.")
    return (gateway + 1, last) if gateway < first + (last._ip - first._ip) // 2 else (first, gateway - 1)


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _tables(value: Any, field: str, keys: set[str]) -> list[Mapping[str, Any]]:
    if not isinstance(value, (list, tuple)) or not all(
        isinstance(item, Mapping) and set(item) <= keys for item in value
    ):
        raise DeclarationError(f"{field} is a list of tables with {', '.join(sorted(keys))}.")
    return list(value)


def _number(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _word(value: Any, what: str) -> str:
    if not isinstance(value, str) or not WORD.match(value):
        raise DeclarationError(f"{what} is a word without blanks, quotes or brackets, not {value!r}.")
    return value


def _address(value: Any) -> Any:
    try:
        return ipaddress.ip_address(str(value))
    except ValueError as error:
        raise DeclarationError(f"{value!r} is no IP address.") from error


def _subnet(value: Any) -> Subnet:
    try:
        subnet = ipaddress.ip_network(str(value))
    except ValueError as error:
        raise DeclarationError(f"subnet: {error}. A subnet is such as 192.168.150.0/24, or auto.") from error
    if subnet.num_addresses < 4:
        raise DeclarationError(f"subnet: {subnet} has no room for guests.")
    return subnet


# --- subnets


def subnets(network: Network) -> list[Subnet]:
    """Those that a network has by its declaration; `auto` is none."""
    return subnets_of(xml(network))


def subnets_of(text: str) -> list[Subnet]:
    """Those of the XML of a network."""
    found = []
    for element in parse(text).findall("ip"):
        size = element.get("netmask") or element.get("prefix")
        try:
            found.append(ipaddress.ip_interface(f"{element.get('address')}/{size}").network if size else None)
        except ValueError:
            continue
    return [subnet for subnet in found if subnet]


def overlap(one: Subnet, other: Subnet) -> bool:
    return one.version == other.version and one.overlaps(other)  # type: ignore[arg-type]


def is_auto(network: Network) -> bool:
    return AUTO in _list(network.get("subnet", []))


def fleet_collisions(name: str, fleet: Mapping[str, Any]) -> list[str]:
    """Routed subnets of this host that another host declares too. `fleet`: host -> {networks}."""
    own = list(_routed(fleet.get(name, {}).get("networks", [])))
    return [
        f"network {network}: its routed subnet {subnet} overlaps {other} of the network {foreign} on {host}. Routers "
        "can send such addresses to one of the two hosts only. Choose another one, or `subnet: auto`."
        for network, subnet in own
        for host in sorted(fleet)
        if host != name
        for foreign, other in _routed(fleet[host].get("networks", []))
        if overlap(subnet, other)
    ]


def _routed(networks: Any) -> Iterator[tuple[str, Subnet]]:
    for network in networks if isinstance(networks, (list, tuple)) else []:
        try:
            check(network)
            forward = parse(xml(network)).find("forward")
        except (DeclarationError, NetworkXmlError, AttributeError):
            continue  # that host stops by itself
        if forward is not None and forward.get("mode") in ROUTED:
            for subnet in subnets(network):
                yield network["name"], subnet


def choose(fleet: Mapping[str, Any], pool: str) -> dict[tuple[str, str], str]:
    """(host, network) -> the subnet for each `auto` of the fleet; the same answer on every host that asks.

    `fleet`: host -> {networks, kept: network -> subnets that it has, taken: subnets in use on the host}. What a network
    has, it keeps. Where to begin looking comes from the names, so a host that was not asked will most likely choose
    what is expected of it here.

    Raises:
        DeclarationError: the pool is no subnet, or is used up.
    """
    slots = _slots(pool)
    busy = [_span(subnet) for host in fleet.values() for subnet in _declared_and_kept(host)]
    chosen = {}
    for host in sorted(fleet):
        taken = [_span(subnet) for subnet in map(ipaddress.ip_network, fleet[host].get("taken", []))]
        for network in fleet[host].get("networks", []):
            if not isinstance(network, Mapping) or not is_auto(network):
                continue
            kept = fleet[host].get("kept", {}).get(network["name"])
            if not kept:
                subnet = _free(f"{host}/{network['name']}", slots, [*busy, *taken])
                busy.append(_span(ipaddress.ip_network(subnet)))
                kept = [subnet]
            chosen[host, network["name"]] = next(
                (subnet for subnet in kept if ipaddress.ip_network(subnet).version == 4), kept[0]
            )
    return chosen


def _slots(pool: str) -> tuple[int, int]:
    try:
        network = ipaddress.IPv4Network(pool)
    except ValueError as error:
        raise DeclarationError(f"libvirt_networks_auto_pool: {error}") from error
    if network.prefixlen > 24:
        raise DeclarationError(f"libvirt_networks_auto_pool: {network} is smaller than a /24.")
    return int(network.network_address), 2 ** (24 - network.prefixlen)


def _span(subnet: Any) -> tuple[int, int]:
    """First and last address; nothing for IPv6, which auto does not give."""
    return (int(subnet.network_address), int(subnet.broadcast_address)) if subnet.version == 4 else (-1, -1)


def _declared_and_kept(host: Any) -> Iterator[Subnet]:
    for network in host.get("networks", []):
        try:
            yield from subnets(network)
        except (DeclarationError, NetworkXmlError, KeyError, TypeError, AttributeError):
            continue
    for kept in host.get("kept", {}).values():
        yield from map(ipaddress.ip_network, kept)


def _free(seed: str, slots: tuple[int, int], busy: Sequence[tuple[int, int]]) -> str:
    base, count = slots
    begin = int(hashlib.sha256(seed.encode()).hexdigest(), 16) % count
    for step in range(count):
        first = base + (begin + step) % count * 256
        if not any(first <= last and start <= first + 255 for start, last in busy):
            return f"{ipaddress.IPv4Address(first)}/24"
    raise DeclarationError("libvirt_networks_auto_pool is used up: no /24 in it is free on this host and in the fleet.")


def resolved(networks: Sequence[Network], chosen: Mapping[str, str]) -> list[dict[str, Any]]:
    """The networks with the subnets that were chosen for them in the place of `auto`."""
    return [
        {
            **network,
            "subnet": [
                chosen.get(network["name"], AUTO) if part == AUTO else part for part in _list(network["subnet"])
            ],
        }
        if is_auto(network)
        else dict(network)
        for network in networks
    ]
