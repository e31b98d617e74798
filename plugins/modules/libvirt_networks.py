#!/usr/bin/python
"""Makes the virtual networks of libvirt those of a list, in one call."""

from __future__ import annotations

import glob
import ipaddress
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kvmfleet.host.plugins.module_utils import commands
from ansible_collections.kvmfleet.host.plugins.module_utils import networks as declared
from ansible_collections.kvmfleet.host.plugins.module_utils.network_xml import NetworkXmlError, normal, parse
from ansible_collections.kvmfleet.host.plugins.module_utils.record import Record, RecordError, open_record

DOCUMENTATION = """
module: libvirt_networks
short_description: Makes the virtual networks of libvirt those of a list
description:
  - Defines, changes, starts and removes networks of libvirt, all of a host in one call.
  - A network is changed when its XML differs from what is declared. What libvirt adds by itself, such as a UUID or the
    address of a bridge, is no difference.
  - DHCP ranges and reservations, records of the DNS and portgroups of a network that runs are changed while guests use
    it. Other changes need a restart of the network, which happens when no guest uses it or O(allow_disruption) is true;
    otherwise they are defined, and act after the next restart.
  - Networks that this module made and that are not in the list any more are removed, unless guests use them. Those that
    were there before and were changed are put back as they were. All others are left alone.
options:
  networks:
    description:
      - The networks, as tables. See the README of the role libvirt_networks for the fields.
    type: list
    elements: dict
    required: true
  allow_disruption:
    description: Whether a network may be restarted or stopped while guests use it.
    type: bool
    default: false
  look:
    description:
      - Only look, also where libvirt is not installed. Fails where a subnet of the list is in use on the host already,
        or where a device of the host that the list names does not exist.
    type: bool
    default: false
  bridges:
    description: Bridges that the host will have by the time the networks are made.
    type: list
    elements: str
    default: []
author:
  - kvmfleet developers (@kvmfleet)
attributes:
  check_mode:
    description: Whether it can say what it would change, and change nothing.
    support: full
  diff_mode:
    description: Whether it shows the XML before and after.
    support: full
"""

EXAMPLES = """
- name: One network with addresses, and one that is a bridge of the host
  kvmfleet.host.libvirt_networks:
    networks:
      - name: lab
        subnet: 192.168.150.0/24
        dhcp: true
      - name: office
        mode: bridge
        bridge: br0
"""

RETURN = """
networks:
  description: Name of each network of the list to its XML in one spelling, autostart and active.
  returned: always
  type: dict
done:
  description: What was done, one sentence each.
  returned: always
  type: list
  elements: str
pending:
  description: What waits until guests leave, one sentence each.
  returned: always
  type: list
  elements: str
kept:
  description: Name of each network that is there to its subnets.
  returned: when O(look=true)
  type: dict
taken:
  description: Subnets that are in use on the host, not counting those in RV(kept).
  returned: when O(look=true)
  type: list
  elements: str
"""

URI = "qemu:///system"
KIND = "network"  # in the record
SETTLE = (
    "It acts once the network is restarted: provision again when no guest uses it, or set kvmfleet_allow_disruption."
)

# What `virsh net-update` can change in a network that runs.
SECTIONS = {
    "ip-dhcp-range": "ip/dhcp/range",
    "ip-dhcp-host": "ip/dhcp/host",
    "dns-host": "dns/host",
    "dns-txt": "dns/txt",
    "dns-srv": "dns/srv",
    "portgroup": "portgroup",
}


class NetworksError(Exception):
    """What cannot be done, and what to do about it."""


Answer = tuple[int, str, str]


class Host(NamedTuple):
    """Where this touches the host; tests put something else there."""

    run: Callable[[list[str], str], Answer]
    root: str = ""
    which: Callable[[str], Any] = commands.which

    def virsh(self, *arguments: str, stdin: str = "") -> str:
        """What virsh printed. Raises NetworksError when it complained."""
        code, out, complaint = self.run(["virsh", "-q", "-c", URI, *arguments], stdin)
        if code:
            reason = " ".join(re.sub(r"^error: ", "", complaint, flags=re.MULTILINE).split())
            raise NetworksError(f"`virsh {' '.join(arguments[:2])}`: {reason or f'exit code {code}'}")
        return out

    def read(self, path: str) -> str:
        try:
            with open(self.root + path, encoding="utf-8") as stream:
                return stream.read()
        except OSError:
            return ""

    def exists(self, path: str) -> bool:
        return os.path.exists(self.root + path)

    def ports(self, bridge: str) -> list[str]:
        """Devices at a bridge, without the one that older libvirts put there to keep its address."""
        found = glob.glob(f"{self.root}/sys/class/net/{bridge}/brif/*") if bridge else []
        return sorted(set(map(os.path.basename, found)) - {f"{bridge}-nic"})


class State(NamedTuple):
    """A network as libvirt has it; the XML is "" where there is none."""

    configured: str = ""
    live: str = ""
    autostart: bool = False

    @property
    def active(self) -> bool:
        return bool(self.live)


class Outcome:
    """What a run did, and what it left."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.pending: list[str] = []
        self.diffs: list[dict[str, str]] = []
        self.networks: dict[str, dict[str, Any]] = {}

    def diff(self, name: str, before: str, after: str) -> None:
        self.diffs.append(
            {"before_header": f"network {name}", "after_header": f"network {name}", "before": before, "after": after}
        )


def states(host: Host) -> dict[str, State]:
    """Every network that libvirt knows."""
    found = {}
    for line in host.virsh("net-list", "--all").splitlines():
        words = re.match(r" *(.+?) +(active|inactive) +(yes|no) +(yes|no) *$", line)
        if words:
            name, active, autostart, persistent = words.groups()
            found[name] = State(
                host.virsh("net-dumpxml", name, "--inactive") if persistent == "yes" else "",
                host.virsh("net-dumpxml", name) if active == "active" else "",
                autostart == "yes",
            )
    return found


def converge(
    host: Host, record: Record, networks: Sequence[Mapping[str, Any]], *, check: bool = False, disrupt: bool = False
) -> Outcome:
    """Makes the networks those of the list. With `check`, only says what it would do.

    Raises:
        NetworksError: libvirt complained.
    """
    outcome = Outcome()
    names = [network["name"] for network in networks]
    surplus = [name for name in record.names(KIND) if name not in names]
    if not networks and not surplus:
        return outcome
    if not host.which("virsh"):
        if not check:
            raise NetworksError(
                "there is no virsh on this host. Install libvirt's clients (the role libvirt does) first."
            )
        for network in networks:  # the packages would be installed by then
            _promise(outcome, network)
        return outcome
    known = states(host)
    for name in surplus:
        _Work(host, record, outcome, check, disrupt, name, known.get(name, State())).give_back()
    for network in networks:
        work = _Work(host, record, outcome, check, disrupt, network["name"], known.get(network["name"], State()))
        work.bring_to(network)
    return outcome


def _promise(outcome: Outcome, network: Mapping[str, Any]) -> None:
    name, text = network["name"], declared.xml(network)
    outcome.done.append(f"{name}: defined")
    outcome.diff(name, "", normal(text, text))
    outcome.networks[name] = _standing(network, normal(text, text))


def _standing(network: Mapping[str, Any], text: str) -> dict[str, Any]:
    return {"xml": text, "autostart": network.get("autostart", True), "active": network.get("active", True)}


class _Work(NamedTuple):
    """One network and what is to be done with it."""

    host: Host
    record: Record
    outcome: Outcome
    check: bool
    disrupt: bool
    name: str
    state: State

    def bring_to(self, network: Mapping[str, Any]) -> None:
        wished = declared.xml(network)
        self._shown(network, wished)
        self._define(wished)
        self._make_live(wished, network.get("active", True))
        self._autostart(network.get("autostart", True))
        self.outcome.networks[self.name] = _standing(network, normal(self._configured(wished)))

    def _configured(self, wished: str) -> str:
        """The definition after this run, with what libvirt chose."""
        if self.state.configured and normal(self.state.configured, wished) == normal(wished, wished):
            return self.state.configured
        return wished if self.check else self.host.virsh("net-dumpxml", self.name, "--inactive")

    def _note(self) -> None:
        """Remembers what was there, before the first change."""
        state = self.state
        before = {"xml": state.configured or state.live, "autostart": state.autostart, "active": state.active}
        self.record.note(KIND, self.name, before if before["xml"] else None)
        self.record.save()

    def _say(self, sentence: str) -> None:
        self.outcome.done.append(f"{self.name}: {sentence}")

    def _wait(self, sentence: str) -> None:
        self.outcome.pending.append(f"{self.name}: {sentence}")

    def _shown(self, network: Mapping[str, Any], wished: str) -> None:
        """The difference that Ansible shows; the lines about state only where state changes."""
        state = self.state
        before = normal(state.configured or state.live, wished) if state.configured or state.live else ""
        after = normal(wished, wished)
        wanted = {"autostart": network.get("autostart", True), "active": network.get("active", True)}
        seen = {"autostart": state.autostart, "active": state.active}
        changed = {key: value for key, value in wanted.items() if seen[key] != value}
        if before != after or changed:
            before += "".join(f"{key}: {'yes' if seen[key] else 'no'}\n" for key in changed if before)
            after += "".join(f"{key}: {'yes' if value else 'no'}\n" for key, value in changed.items())
            self.outcome.diff(self.name, before, after)

    def _define(self, wished: str) -> None:
        state = self.state
        if state.configured and normal(state.configured, wished) == normal(wished, wished):
            return
        self._say("defined" if not state.configured else "changed")
        if self.check:
            return
        self._note()
        self.host.virsh("net-define", "/dev/stdin", stdin=_with_choices(wished, state.configured or state.live))

    def _make_live(self, wished: str, active: bool) -> None:
        state = self.state
        if active and not state.active:
            self._say("started")
            if not self.check:
                self._note()
                self._start()
        elif active and normal(state.live, wished) != normal(wished, wished):
            self._update(wished)
        elif not active and state.active:
            users = self._users()
            if users and not self.disrupt:
                self._wait(f"not stopped, because of {users}. Stop them, or set kvmfleet_allow_disruption.")
                return
            self._say("stopped")
            if not self.check:
                self._note()
                self.host.virsh("net-destroy", self.name)

    def _start(self) -> None:
        """One that does not start stays defined; the next run tries again."""
        try:
            self.host.virsh("net-start", self.name)
        except NetworksError as error:
            said = str(error).rstrip(".")
            taken = re.search(r"in use|address", said, re.IGNORECASE)
            hint = " Look for another interface, route or DNS server with its addresses (`ip route`, `ss -lup`)."
            raise NetworksError(
                f"{said}. The network {self.name} is defined and does not start.{hint if taken else ''}"
            ) from error

    def _update(self, wished: str) -> None:
        """Changes what runs: live where libvirt can, else by a restart, else not now."""
        live, left = self.state.live, self.state.live
        updates = list(_updates(live, wished))
        if updates:
            self._say("updated while it runs")
        if updates and self.check:
            left = _without_sections(live)
            if normal(left, wished) == normal(_without_sections(wished), wished):
                return
        elif updates:
            self._note()
            for update in updates:
                self.host.virsh("net-update", self.name, *update, "--live")
            left = self.host.virsh("net-dumpxml", self.name)
            if normal(left, wished) == normal(wished, wished):
                return
        users = self._users()
        if users and not self.disrupt:
            self._wait(f"changed, but it runs as it was, because of {users}. {SETTLE}")
            return
        self._say("restarted" + (f" in spite of {users}" if users else ""))
        if not self.check:
            self._note()
            self._restart()

    def _restart(self) -> None:
        bridge = _bridge(self.state.live)
        ports = self.host.ports(bridge) if _is_own(self.state.live) else []
        self.host.virsh("net-destroy", self.name)
        try:
            self.host.virsh("net-start", self.name)
        except NetworksError as error:
            if self.state.configured:
                self.host.virsh("net-define", "/dev/stdin", stdin=self.state.configured)
                self.host.virsh("net-start", self.name)
            raise NetworksError(
                f"{error}. The network {self.name} does not start as it is declared, so it runs as it was before."
            ) from error
        new_bridge = _bridge(self.host.virsh("net-dumpxml", self.name))
        for port in ports:  # libvirt puts them back only when its daemon starts
            self.host.run(["ip", "link", "set", "dev", port, "master", new_bridge], "")

    def _autostart(self, wanted: bool) -> None:
        if self.state.autostart != wanted:
            self._say("starts with the host" if wanted else "does not start with the host")
            if not self.check:
                self._note()
                self.host.virsh("net-autostart", self.name, *([] if wanted else ["--disable"]))

    def _users(self) -> str:
        """Guests that run and have an interface on the network, and other devices at its bridge; "" for none."""
        return ", ".join(users(self.host, self.name, self.state.live))

    def give_back(self) -> None:
        """Removes what we made, or puts back what was there before."""
        before = self.record.before(KIND, self.name)
        if not self.state.configured and not self.state.live:
            if not self.check:
                self.record.forget(KIND, self.name)
            return
        if before:
            self._put_back(before)
            return
        guests = users(self.host, self.name, self.state.live, every=True)
        if guests:
            self._wait(
                f"is not in libvirt_networks any more, and stays, because {', '.join(guests)} use it. Give them "
                "another network, then provision again."
            )
            return
        self._say("removed")
        self.outcome.diff(self.name, normal(self.state.configured or self.state.live), "")
        if self.check:
            return
        if self.state.active:
            self.host.virsh("net-destroy", self.name)
        if self.state.configured:
            self.host.virsh("net-undefine", self.name)
        self.record.forget(KIND, self.name)

    def _put_back(self, before: Mapping[str, Any]) -> None:
        name, text = self.name, str(before["xml"])
        waiting = len(self.outcome.pending)
        self._shown({"autostart": before["autostart"], "active": before["active"]}, text)
        self._define(text)
        self._make_live(text, bool(before["active"]))
        self._autostart(bool(before["autostart"]))
        if not self.check and len(self.outcome.pending) == waiting:
            self.record.forget(KIND, name)


def _with_choices(wished: str, present: str) -> str:
    """What libvirt chose the first time stays: it refuses another UUID, and leases and firewalls know the rest."""
    root = parse(wished)
    if not present:
        return wished
    old = parse(present)
    for tag in ("uuid", "mac"):
        element = old.find(tag)
        if root.find(tag) is None and element is not None:
            root.append(element)
    bridge, old_bridge = root.find("bridge"), old.find("bridge")
    if old_bridge is not None and _is_own(wished) and _is_own(present):
        if bridge is None:
            bridge = ElementTree.SubElement(root, "bridge")
        if not bridge.get("name"):
            bridge.set("name", old_bridge.get("name", ""))
    return ElementTree.tostring(root, encoding="unicode")


def _bridge(text: str) -> str:
    element = parse(text).find("bridge")
    return "" if element is None else element.get("name", "")


def _is_own(text: str) -> bool:
    """Whether the bridge of the network is libvirt's, so that its ports are guests."""
    forward = parse(text).find("forward")
    return forward is None or forward.get("mode", "nat") in declared.OWN_BRIDGE


def users(host: Host, name: str, live: str, *, every: bool = False) -> list[str]:
    """Guests with an interface on a network, with `every` also those that do not run; and other ports."""
    bridge = _bridge(live) if live and _is_own(live) else ""
    found, devices = [], set()
    for guest in filter(None, host.virsh("list", "--name", *(["--all"] if every else [])).splitlines()):
        try:
            root = ElementTree.fromstring(host.virsh("dumpxml", guest))
        except (NetworksError, ElementTree.ParseError):
            continue  # it ended in this moment
        for interface in root.findall("devices/interface"):
            source, target = interface.find("source"), interface.find("target")
            if source is None or not (source.get("network") == name or (bridge and source.get("bridge") == bridge)):
                continue
            devices.add("" if target is None else target.get("dev", ""))
            if f"the guest {guest}" not in found:
                found.append(f"the guest {guest}")
    return found + [f"the port {port} of its bridge" for port in host.ports(bridge) if port not in devices]


# --- live updates


def _updates(live: str, wished: str) -> Iterator[list[str]]:
    """Arguments of `virsh net-update` that bring the sections of what runs to what is wished: first all that goes."""
    coming = []
    for section, path in SECTIONS.items():
        for index, old, new in _pairs(live, wished, path):
            parent = ["--parent-index", str(index)] if path.startswith("ip/") else []
            for text in [text for key, text in old.items() if key not in new]:
                yield ["delete", section, text, *parent]
            coming += [["add-last", section, text, *parent] for key, text in new.items() if key not in old]
    yield from coming


def _pairs(live: str, wished: str, path: str) -> Iterator[tuple[int, dict[str, str], dict[str, str]]]:
    """For each place of a section that both have: its index, and the elements before and after by their spelling."""
    old, new = parse(live), parse(wished)
    if not path.startswith("ip/"):
        yield 0, _elements(old, path), _elements(new, path)
        return
    wanted = {_address(element): element for element in new.findall("ip")}
    for index, element in enumerate(old.findall("ip")):
        if _address(element) in wanted:
            yield index, _elements(element, path[3:]), _elements(wanted[_address(element)], path[3:])


def _address(element: ElementTree.Element) -> str:
    size = element.get("netmask") or element.get("prefix") or ""
    return str(ipaddress.ip_interface(f"{element.get('address')}/{size}" if size else str(element.get("address"))))


def _elements(parent: ElementTree.Element, path: str) -> dict[str, str]:
    """Spelling -> text."""
    return {_spelling(element): _text(element) for element in parent.findall(path)}


def _spelling(element: ElementTree.Element) -> str:
    return normal(f"<network>{_text(element)}</network>")


def _text(element: ElementTree.Element) -> str:
    return "".join(ElementTree.tostring(element, encoding="unicode").split("\n")).strip()


def _without_sections(text: str) -> str:
    root = parse(text)
    for path in SECTIONS.values():
        parents = root.findall(path.rpartition("/")[0]) if "/" in path else [root]
        for parent in parents:
            for element in parent.findall(path.rpartition("/")[2]):
                parent.remove(element)
    return ElementTree.tostring(root, encoding="unicode")


# --- what the host has


class Taken(NamedTuple):
    """A subnet that is in use, and by what."""

    subnet: Any
    device: str
    gateway: bool  # beyond a router, so not on a wire of this host


def routes(host: Host) -> Iterator[Taken]:
    """Every route of the host beside the default ones."""
    for line in host.read("/proc/net/route").splitlines()[1:]:
        device, target, gateway, _flags, _, _, _, mask = line.split()[:8]
        size = bin(int(mask, 16)).count("1")
        if size:
            address = ipaddress.IPv4Address(int.from_bytes(bytes.fromhex(target), "little"))
            yield Taken(ipaddress.ip_network(f"{address}/{size}", strict=False), device, gateway != "00000000")
    for line in host.read("/proc/net/ipv6_route").splitlines():
        words = line.split()
        target, size, gateway, device = words[0], int(words[1], 16), words[4], words[9]
        subnet = ipaddress.ip_network((int(target, 16), size), strict=False)
        if size and device != "lo" and not subnet.is_link_local and not subnet.is_multicast:
            yield Taken(subnet, device, int(gateway, 16) != 0)


def look(
    host: Host, networks: Sequence[Mapping[str, Any]], ours: Sequence[str], bridges: Sequence[str]
) -> dict[str, Any]:
    """What the networks have and the host uses. Raises NetworksError where that leaves no room for the list."""
    known = states(host) if host.which("virsh") else {}
    names = [network["name"] for network in networks]
    mine = {name: state for name, state in known.items() if name in names or name in ours}
    own_bridges = {
        _bridge(text) for state in mine.values() for text in (state.live, state.configured) if text and _is_own(text)
    }
    taken = [route for route in routes(host) if route.device not in own_bridges]
    for network in networks:
        _stop_where_taken(network, taken)
        _stop_without_device(host, network, bridges)
    foreign = [
        subnet for name, state in known.items() if name not in mine
        for subnet in declared.subnets_of(state.configured or state.live)
    ]  # fmt: skip
    in_use = [route.subnet for route in taken]
    kept = {name: declared.subnets_of(state.configured or state.live) for name, state in mine.items() if name in names}
    return {
        "kept": {
            name: [str(subnet) for subnet in subnets]
            for name, subnets in kept.items()
            if subnets and not any(declared.overlap(subnet, other) for subnet in subnets for other in in_use)
        },
        "taken": sorted({str(subnet) for subnet in [*in_use, *foreign]}),
        "networks": {
            network["name"]: _standing(network, normal(mine[network["name"]].configured))
            for network in networks
            if network["name"] in mine and mine[network["name"]].configured
        },
    }


def _stop_where_taken(network: Mapping[str, Any], taken: Sequence[Taken]) -> None:
    for subnet in declared.subnets(network):
        for route in taken:
            # A subnet that is a part of what a router leads to is what routing is for.
            wider = route.gateway and route.subnet.prefixlen < subnet.prefixlen
            if declared.overlap(subnet, route.subnet) and not wider:
                raise NetworksError(
                    f"network {network['name']}: its subnet {subnet} overlaps {route.subnet}, which this host reaches "
                    f"through {route.device}: guests or host would lose it. Choose another one, or `subnet: auto`."
                )


def _stop_without_device(host: Host, network: Mapping[str, Any], bridges: Sequence[str]) -> None:
    mode = network.get("mode", "nat")
    devices = network.get("dev", []) if mode != "nat" else []
    wanted = [network["bridge"]] if mode in ("bridge", "openvswitch") else devices
    for device in [wanted] if isinstance(wanted, str) else wanted:
        if device in bridges or not network.get("active", True):
            continue
        if not host.exists(f"/sys/class/net/{device}"):
            raise NetworksError(
                f"network {network['name']}: this host has no {device}. Correct the name, make the device first, or "
                "declare it in libvirt_networks_bridges."
            )
        if mode == "bridge" and not host.exists(f"/sys/class/net/{device}/bridge"):
            raise NetworksError(
                f"network {network['name']}: {device} is no bridge. Name a bridge of the host, or take mode macvtap "
                f"with `dev: {device}`."
            )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "networks": {"type": "list", "elements": "dict", "required": True},
            "allow_disruption": {"type": "bool", "default": False},
            "look": {"type": "bool", "default": False},
            "bridges": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    host = Host(commands.run)
    networks, check = module.params["networks"], module.check_mode or module.params["look"]
    problems = declared.wrong(networks)
    if problems:
        module.fail_json(msg="\n".join(problems))
    try:
        with open_record(check=check) as record:
            if module.params["look"]:
                module.exit_json(changed=False, **look(host, networks, record.names(KIND), module.params["bridges"]))
            outcome = converge(host, record, networks, check=check, disrupt=module.params["allow_disruption"])
    except (NetworksError, NetworkXmlError, RecordError, declared.DeclarationError) as error:
        module.fail_json(msg=f"libvirt_networks: {error}")
    except OSError as error:
        module.fail_json(msg=f"libvirt_networks: {error.filename}: {error.strerror}")
    module.exit_json(
        changed=bool(outcome.done),
        networks=outcome.networks,
        done=outcome.done,
        pending=outcome.pending,
        diff=outcome.diffs,
    )


if __name__ == "__main__":
    main()
