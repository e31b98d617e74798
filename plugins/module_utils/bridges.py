"""Bridges of a host: whether a declaration makes sense, and the files that make them, for each network manager.

Pure: nothing here looks at a host.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}\Z")
KEYS = ("name", "ports", "vlan", "addresses", "gateway", "dns")
HEADER = "# Written by kvmfleet, role libvirt_networks. Changes made here are lost.\n"


class BridgeError(ValueError):
    """What cannot be done, and what to do about it."""


class Port(NamedTuple):
    """A device that is to be a port, and what configures it now: the path and text of its file, "" for none."""

    name: str
    mac: str = ""
    path: str = ""
    text: str = ""
    files: Mapping[str, str] = {}  # ifupdown's: every file that names it, as it is without us


def wrong(bridges: Any) -> list[str]:
    """What is wrong with the declared bridges of one host, one sentence each."""
    if not isinstance(bridges, (list, tuple)) or not all(isinstance(bridge, Mapping) for bridge in bridges):
        return ["libvirt_networks_bridges must be a list of tables, such as [{name: br0, ports: [eth0]}]."]
    said = []
    for bridge in bridges:
        said += [f"bridge {bridge.get('name', '(without a name)')}: {text}" for text in _wrong(bridge)]
    ports = [port for bridge in bridges if not said for port in devices(bridge)]
    names = [bridge.get("name") for bridge in bridges]
    said += [
        f"{name} is declared twice." for name in dict.fromkeys([*names, *ports]) if [*names, *ports].count(name) > 1
    ]
    return said


def _wrong(bridge: Mapping[str, Any]) -> Iterable[str]:
    unknown = [str(key) for key in bridge if key not in KEYS]
    if unknown:
        yield f"there is no field {', '.join(unknown)}. The fields are {', '.join(KEYS)}."
    ports, vlan = bridge.get("ports", []), bridge.get("vlan")
    if not isinstance(ports, (list, tuple)):
        yield "ports is a list of devices, such as [eth0]."
        return
    for device in [bridge.get("name"), *ports]:
        if not isinstance(device, str) or not DEVICE.match(device):
            yield f"{device!r} is no name of a network device, which has up to 15 characters."
    if vlan is not None and not (isinstance(vlan, int) and not isinstance(vlan, bool) and 1 <= vlan <= 4094):
        yield "vlan is a number between 1 and 4094."
    elif vlan is not None and any(len(f"{port}.{vlan}") > 15 for port in ports):
        yield f"the device for VLAN {vlan} would have a name of more than 15 characters."
    addresses = bridge.get("addresses", [])
    try:
        for address in [] if addresses == "dhcp" else addresses:
            ipaddress.ip_interface(address)
        for address in [*_list(bridge.get("gateway", [])), *_list(bridge.get("dns", []))]:
            ipaddress.ip_address(address)
    except (ValueError, TypeError) as error:
        yield f"addresses is dhcp or a list such as [192.0.2.10/24], gateway and dns are addresses: {error}."
    if not bridge.get("addresses") and (bridge.get("gateway") or bridge.get("dns")):
        yield "gateway and dns need addresses; without all three the bridge takes over those of its port."


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def devices(bridge: Mapping[str, Any]) -> list[str]:
    """What is at the bridge: its ports, or their devices for the VLAN."""
    vlan = bridge.get("vlan")
    return [f"{port}.{vlan}" if vlan else port for port in bridge.get("ports", [])]


def takes_over(bridge: Mapping[str, Any]) -> bool:
    """Whether the bridge gets the addresses of its first port."""
    return bool(bridge.get("ports")) and "addresses" not in bridge and not bridge.get("vlan")


def taken(bridge: Mapping[str, Any]) -> list[str]:
    """The ports that are put at the bridge themselves, and so lose what configured them."""
    return [] if bridge.get("vlan") else list(bridge.get("ports", []))


def _pairs(bridge: Mapping[str, Any], ports: Sequence[Port]) -> list[tuple[Port, str]]:
    return [(port, devices(bridge)[number]) for number, port in enumerate(ports)]


# --- systemd-networkd, which netplan writes files for, too

NETWORKD = "/etc/systemd/network/"
WAIT_ONLINE = "/etc/systemd/system/systemd-networkd-wait-online.service.d/"
# netplan 1.0 has every boot wait until one of its own interfaces is routable, which a port never is. This is what
# systemd's own unit waits for: all interfaces that are required.
WAIT_FOR_ALL = "[Service]\nExecStart=\nExecStart=/lib/systemd/systemd-networkd-wait-online\n"


def networkd(bridge: Mapping[str, Any], ports: Sequence[Port]) -> dict[str, str]:
    """Path -> text. Sorted before what configures the ports now; nothing of that is changed."""
    name, vlan = bridge["name"], bridge.get("vlan")
    netdev = f"[NetDev]\nName={name}\nKind=bridge\n"
    if ports and not vlan:
        netdev += f"MACAddress={ports[0].mac}\n"  # a lease, and what others know of this host, stay valid
    files = {f"{NETWORKD}00-kvmfleet-{name}.netdev": f"{netdev}\n[Bridge]\nSTP=no\n"}
    for port, device in _pairs(bridge, ports):
        if vlan:
            files[f"{NETWORKD}00-kvmfleet-{device}.netdev"] = (
                f"[NetDev]\nName={device}\nKind=vlan\n\n[VLAN]\nId={vlan}\n"
            )
            files.update(_networkd_vlan(port, device))
        link = "" if vlan else "".join(f"\n{section}\n" for section in _networkd_sections(port.text, "[Link]"))
        files[f"{NETWORKD}00-kvmfleet-{device}.network"] = (
            f"[Match]\nName={device}\n{link}\n[Network]\nBridge={name}\nLinkLocalAddressing=no\n"
        )
    if not vlan and any(port.path.startswith("/run/") for port in ports):
        files[f"{WAIT_ONLINE}99-kvmfleet-{name}.conf"] = WAIT_FOR_ALL
    text = _networkd_moved(ports[0], name) if takes_over(bridge) else _networkd_addresses(bridge)
    return {path: HEADER + text for path, text in {**files, f"{NETWORKD}00-kvmfleet-{name}.network": text}.items()}


def _networkd_vlan(port: Port, device: str) -> dict[str, str]:
    if port.path:
        folder = NETWORKD + port.path.rpartition("/")[2] + ".d"
        return {f"{folder}/kvmfleet-{device}.conf": f"[Network]\nVLAN={device}\n"}
    own = f"[Match]\nName={port.name}\n\n[Network]\nVLAN={device}\nLinkLocalAddressing=no\n"
    return {f"{NETWORKD}00-kvmfleet-{port.name}.network": own}


def _networkd_moved(port: Port, name: str) -> str:
    """The port's own file, for the bridge."""
    if re.search(r"^\s*(Bridge|Bond|VRF)\s*=", port.text, re.MULTILINE):
        raise BridgeError(f"{port.path} makes {port.name} a part of something else already. Take it out there first.")
    kept = [section for section in _networkd_sections(port.text, "[") if not section.startswith("[Match]")]
    return "\n\n".join([f"[Match]\nName={name}", *(kept or ["[Network]\nLinkLocalAddressing=no"])]) + "\n"


def _networkd_sections(text: str, head: str) -> list[str]:
    sections = re.split(r"^(?=\[)", text, flags=re.MULTILINE)
    return [section.rstrip() for section in sections if section.startswith(head)]


def _networkd_addresses(bridge: Mapping[str, Any]) -> str:
    addresses = bridge.get("addresses", [])
    words = [f"[Match]\nName={bridge['name']}\n\n[Network]"]
    words += ["DHCP=yes"] if addresses == "dhcp" else [f"Address={address}" for address in addresses]
    words += [f"Gateway={address}" for address in _list(bridge.get("gateway", []))]
    words += [f"DNS={address}" for address in _list(bridge.get("dns", []))]
    words += ["LinkLocalAddressing=no", "IPv6AcceptRA=no"] if not addresses else []
    words += ["ConfigureWithoutCarrier=yes"] if not bridge.get("ports") else []
    return "\n".join(words) + "\n"


# --- NetworkManager, as keyfiles

KEYFILES = "/etc/NetworkManager/system-connections/"


def keyfiles(bridge: Mapping[str, Any], ports: Sequence[Port]) -> dict[str, str]:
    """Path -> text. They win over what configures the ports now by their priority."""
    name, vlan = bridge["name"], bridge.get("vlan")
    first = {"connection": {**_connection(name, name, "bridge")}, "bridge": {"stp": "false"}}
    if ports and not vlan:
        first["bridge"]["mac-address"] = ports[0].mac
    moved = _sections(ports[0].text) if takes_over(bridge) else _keyfile_addresses(bridge)
    first["ipv4"], first["ipv6"] = moved.get("ipv4", {"method": "auto"}), moved.get("ipv6", {"method": "auto"})
    files = {name: first}
    for port, device in _pairs(bridge, ports):
        own = {"vlan": {"id": str(vlan), "parent": port.name}} if vlan else _keyfile_of_link(port)
        kind = "vlan" if vlan else _sections(port.text).get("connection", {}).get("type", "ethernet")
        part = {"connection": {**_connection(f"{name}-{device}", device, kind), "master": name, "slave-type": "bridge"}}
        part.update(own)
        files[f"{name}-{device}"] = part
    return {own_keyfile(file): HEADER + _keyfile(content) for file, content in files.items()}


def own_keyfile(name: str) -> str:
    return f"{KEYFILES}kvmfleet-{name}.nmconnection"


def link_of(text: str) -> Mapping[str, str]:
    """What a keyfile of ours says about a bridge beside its addresses."""
    return _sections(text).get("bridge", {})


def _connection(id: str, device: str, kind: str) -> dict[str, str]:
    return {"id": f"kvmfleet-{id}", "type": kind, "interface-name": device, "autoconnect-priority": "100"}


def _keyfile_of_link(port: Port) -> dict[str, dict[str, str]]:
    """What is about the device itself, such as its MTU or how a bond bonds."""
    sections = _sections(port.text)
    if {"master", "controller"} & sections.get("connection", {}).keys():
        raise BridgeError(f"{port.path} makes {port.name} a part of something else already. Take it out there first.")
    return {name: lines for name, lines in sections.items() if name not in ("connection", "ipv4", "ipv6", "proxy")}


def _keyfile_addresses(bridge: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    addresses = bridge.get("addresses", [])
    if not addresses or addresses == "dhcp":
        method = {"method": "auto"} if addresses else {"method": "disabled"}
        return {"ipv4": method, "ipv6": dict(method)}
    found = {}
    for version, section in ((4, "ipv4"), (6, "ipv6")):
        own = [address for address in addresses if ipaddress.ip_interface(address).version == version]
        lines = {f"address{number}": address for number, address in enumerate(own, 1)}
        gateways = [a for a in _list(bridge.get("gateway", [])) if ipaddress.ip_address(a).version == version]
        servers = [a for a in _list(bridge.get("dns", [])) if ipaddress.ip_address(a).version == version]
        lines.update({"gateway": gateways[0]} if gateways else {})
        lines.update({"dns": "".join(f"{server};" for server in servers)} if servers else {})
        found[section] = {"method": "manual", **lines} if own else {"method": "disabled"}
    return found


def _sections(text: str) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    section = ""
    for line in text.splitlines():
        head = re.match(r"\[(.+)\]\s*$", line)
        pair = re.match(r"([^#;=\s][^=]*?)\s*=\s*(.*)$", line)
        if head:
            section = head[1]
        elif pair:
            found.setdefault(section, {})[pair[1]] = pair[2]
    return found


def _keyfile(content: Mapping[str, Mapping[str, str]]) -> str:
    return "\n".join(
        f"[{section}]\n" + "".join(f"{key}={value}\n" for key, value in lines.items())
        for section, lines in content.items()
    )


# --- ifupdown, whose files are edited

INTERFACES = "/etc/network/interfaces"
HEADS = r"(?:iface|auto|allow-\S+|no-auto-down|no-scripts|mapping|rename|source|source-directory|template)\b"
PART_OF = re.compile(r"^\s+(?:bridge[_-]ports|bond[_-]slaves|slaves)\s+(.*)$", re.MULTILINE)
MASTER = re.compile(r"^\s+bond[_-]master\s", re.MULTILINE)
MAKES = re.compile(r"^\s+(?:bond|slaves|vlan|bridge)(?:[_-]\S+)?\s", re.MULTILINE)  # of bonds and VLANs


def interfaces(bridge: Mapping[str, Any], ports: Sequence[Port]) -> dict[str, str]:
    """Path -> text: the files that configure the ports, with their stanzas moved to the bridge, and one of our own."""
    name, vlan = bridge["name"], bridge.get("vlan")
    files: dict[str, str] = {}
    for port in [] if vlan else ports:
        _stop_where_part_of(port)
        if not stays(port):
            files.update({path: without(files.get(path, text), [port.name]) for path, text in port.files.items()})
    stanzas = [f"iface {name} inet manual\n"]
    if takes_over(bridge) and not stays(ports[0]):
        stanzas = [_renamed(stanza, ports[0].name, name) for stanza in _stanzas(ports[0])] or stanzas
    elif bridge.get("addresses"):
        stanzas = _interfaces_addresses(bridge)
    head, _, options = stanzas[0].partition("\n")
    up, down = ("".join(f"    {line}\n" for line in of(bridge, ports)) for of in (_interfaces_up, _interfaces_down))
    files[own_interfaces(name)] = f"{HEADER}auto {name}\n{head}\n{up}{options}{down}" + "".join(stanzas[1:])
    return files


def own_interfaces(name: str) -> str:
    return f"{INTERFACES}.d/kvmfleet-{name}"


def _interfaces_up(bridge: Mapping[str, Any], ports: Sequence[Port]) -> Iterable[str]:
    """With iproute2 alone, so that bridge-utils need not be there. Guests that are at the bridge stay at it."""
    name, vlan = bridge["name"], bridge.get("vlan")
    yield f"pre-up ip link show dev {name} >/dev/null 2>&1 || ip link add name {name} type bridge stp_state 0"
    if ports and not vlan:
        yield f"pre-up ip link set dev {name} address {ports[0].mac}"
    for port, device in _pairs(bridge, ports):
        if vlan:
            yield f"pre-up ip link set dev {port.name} up"
            yield (
                f"pre-up ip link show dev {device} >/dev/null 2>&1 || "
                f"ip link add link {port.name} name {device} type vlan id {vlan}"
            )
        elif stays(port):
            yield f"pre-up ip link show dev {device} >/dev/null 2>&1 || ifup {device}"
        else:
            yield f"pre-up ip addr flush dev {device} scope global"
            yield from (f"pre-up ip link set dev {device} mtu {mtu}" for mtu in _mtus(port))
        yield f"pre-up ip link set dev {device} master {name} up"


def _interfaces_down(bridge: Mapping[str, Any], ports: Sequence[Port]) -> Iterable[str]:
    name = bridge["name"]
    for _, device in _pairs(bridge, ports):
        order = f"delete dev {device}" if bridge.get("vlan") else f"set dev {device} nomaster"
        yield f"post-down ip link {order} || true"
    yield f"post-down ls /sys/class/net/{name}/brif | grep -q . || ip link delete dev {name}"


def _mtus(port: Port) -> list[str]:
    return [
        found[1]
        for stanza in _stanzas(port)
        for found in [re.search(r"^\s+mtu\s+(\d+)", stanza, re.MULTILINE)]
        if found
    ]


def _stop_where_part_of(port: Port) -> None:
    for path, text in port.files.items():
        for part in _parts(text):
            found = PART_OF.search(part)
            within = found and port.name in found[1].split()
            if within or (_is_stanza_of(part, port.name) and MASTER.search(part)):
                raise BridgeError(
                    f"{path} makes {port.name} a part of something else already. Take it out there first."
                )


def stays(port: Port) -> bool:
    """Whether ifupdown makes the device, as bonds and VLANs, so that its stanza must stay where it is.

    Raises:
        BridgeError: that stanza has addresses, too.
    """
    made = [stanza for stanza in _stanzas(port) if MAKES.search(stanza) or "." in port.name]
    if any(stanza.split()[3:4] != ["manual"] for stanza in made):
        raise BridgeError(
            f"{port.path} makes {port.name} and gives it addresses in one stanza, which cannot be moved to the bridge. "
            f"Make that `iface {port.name} inet manual`, and give the addresses to the bridge with `addresses`."
        )
    return bool(made)


def _parts(text: str) -> list[str]:
    return re.split(rf"^(?=[ \t]*{HEADS})", text, flags=re.MULTILINE)


def _is_stanza_of(part: str, port: str) -> bool:
    return part.split()[:2] == ["iface", port]


def _brings_up(part: str, port: str) -> bool:
    words = part.partition("\n")[0].split()
    return bool(words) and bool(re.match(r"auto$|allow-", words[0])) and port in words[1:]


def names(text: str, port: str) -> bool:
    """Whether a file of ifupdown configures a device, or brings it up."""
    return any(_is_stanza_of(part, port) or _brings_up(part, port) for part in _parts(text))


def configures(text: str, port: str) -> bool:
    """Whether a file of ifupdown has a stanza of a device."""
    return any(_is_stanza_of(part, port) for part in _parts(text))


def _stanzas(port: Port) -> list[str]:
    texts = port.files.values()
    return [part.strip() + "\n" for text in texts for part in _parts(text) if _is_stanza_of(part, port.name)]


def _renamed(stanza: str, port: str, bridge: str) -> str:
    """Also in its commands, such as `up ip route add ... dev eth0`."""
    head, newline, options = stanza.partition("\n")
    return f"iface {bridge} {' '.join(head.split()[2:])}{newline}" + re.sub(
        rf"(?<=\bdev ){re.escape(port)}(?=\s)", bridge, options
    )


def without(text: str, ports: Sequence[str]) -> str:
    """A file of ifupdown without the stanzas of ports, and without what brings them up."""
    rest = []
    for part in _parts(text):
        if any(_is_stanza_of(part, port) for port in ports):
            continue
        if any(_brings_up(part, port) for port in ports):
            first, newline, tail = part.partition("\n")
            words = [word for word in first.split()[1:] if word not in ports]
            part = (f"{first.split()[0]} {' '.join(words)}{newline}" if words else "") + tail
        rest.append(part)
    return "".join(rest)


def without_us(before: str, now: str, ports: Iterable[str]) -> str:
    """What a file of ifupdown would be if the ports had never been taken out of it.

    That is what it was before we came; or, where somebody changed it since, that with the stanzas back in it.
    """
    gone = [port for port in ports if names(before, port) and not names(now, port)]
    if now == without(before, gone):
        return before
    back = [part for part in _parts(before) if any(_is_stanza_of(part, port) for port in gone)]
    up = "".join(f"auto {port}\n" for port in gone if any(_brings_up(part, port) for part in _parts(before)))
    return now + ("" if now.endswith("\n") or not now else "\n") + up + "".join(f"{part.rstrip()}\n" for part in back)


def included(text: str) -> list[str]:
    """Patterns of the other files that a file of ifupdown reads."""
    found = re.findall(r"^[ \t]*(source|source-directory)[ \t]+(\S+)", text, re.MULTILINE)
    paths = [
        (word, path if path.startswith("/") else f"{INTERFACES.rpartition('/')[0]}/{path}") for word, path in found
    ]
    return [path if word == "source" else f"{path.rstrip('/')}/*" for word, path in paths]


def _interfaces_addresses(bridge: Mapping[str, Any]) -> list[str]:
    name, addresses = bridge["name"], bridge["addresses"]
    if addresses == "dhcp":
        return [f"iface {name} inet dhcp\n"]
    gateways = {ipaddress.ip_address(address).version: address for address in _list(bridge.get("gateway", []))}
    servers = _list(bridge.get("dns", []))
    stanzas = []
    for address in addresses:
        version = ipaddress.ip_interface(address).version
        stanza = f"iface {name} inet{'6' if version == 6 else ''} static\n    address {address}\n"
        if version in gateways:
            stanza += f"    gateway {gateways.pop(version)}\n"
        if servers:
            stanza += f"    dns-nameservers {' '.join(servers)}\n"
            servers = []
        stanzas.append(stanza)
    return stanzas
