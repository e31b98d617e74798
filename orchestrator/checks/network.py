"""Are the networks of libvirt there, are they what was declared, and does the host carry them?"""

from __future__ import annotations

import difflib
import ipaddress
from collections.abc import Mapping
from shlex import quote

from orchestrator.checks.contract import PROVISION
from orchestrator.checks.registry import Case, check, failed, not_applicable, passed, undecided, warned
from orchestrator.model.evidence import Link, Network, RunningNetwork
from orchestrator.model.finding import Finding
from orchestrator.text import counted

NONE = Network()
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network
OWN_BRIDGE = ("nat", "route", "open", "isolated")
"""Modes of networks whose bridge is made by libvirt."""
RELOAD = "Run `systemctl reload libvirtd` (virtnetworkd where the daemons are modular)"
RESTART = RELOAD.replace("reload", "restart")
"""Rules come back with a restart alone: a reload leaves the jumps to them out, as seen with libvirt 9.0 and 11.3."""


def _unknown(case: Case) -> Finding | None:
    """What is to be said where no network can be looked at."""
    if not case.wishes.networks:
        return not_applicable("no networks are asked for")
    if case.evidence.network.error:
        return undecided(
            f"libvirt does not tell its networks: {case.evidence.network.error}",
            fix="Read `journalctl -u libvirtd -u virtnetworkd`; then validate again.",
        )
    return None


@check(
    "network.active",
    "The networks run and start with the host",
    sections=("network",),
    requires=("contract.present", "libvirt.connect"),
    proves="Every network of the contract is defined, runs where it is meant to, and starts with the host.",
    how="The list of networks that libvirt gives, in one call for all of them.",
    todo=f"`virsh net-start NAME` and `virsh net-autostart NAME`. One that is missing: {PROVISION}",
)
def active(case: Case) -> Finding:
    if unknown := _unknown(case):
        return unknown
    found, problems, commands = case.evidence.network.networks, [], []
    for name, wish in case.wishes.networks.items():
        seen = found.get(name, NONE)
        if name not in found or not seen.configured:
            problems.append(f"{name} is not defined" + (", only running" if seen.active else ""))
            continue
        if seen.active != wish.active:
            problems.append(f"{name} {'runs' if seen.active else 'does not run'}")
            commands.append(f"virsh net-{'start' if wish.active else 'destroy'} {quote(name)}")
        if seen.autostart != wish.autostart:
            problems.append(f"{name} {'starts' if seen.autostart else 'does not start'} with the host")
            commands.append(f"virsh net-autostart {quote(name)}" + ("" if wish.autostart else " --disable"))
    if problems:
        fix = f"Run `{' && '.join(commands)}`." if commands else PROVISION
        return failed("; ".join(problems), expected="as in the contract", seen="; ".join(problems), fix=fix)
    return passed(f"{counted(len(case.wishes.networks), 'network')} as they are meant to be")


@check(
    "network.equal",
    "The networks are what was declared",
    sections=("network",),
    requires=("contract.present", "libvirt.connect"),
    explained_by=("network.active",),
    proves="The definition of every network is that of the contract, and so is what runs.",
    how="The XML of libvirt for the definition and for what runs, in one spelling: order, defaults and counters are no "
    "difference.",
    todo=f"Another definition: {PROVISION} Only what runs is different: it becomes equal by a restart of the network, "
    "which cuts off the guests that use it: provision again when there are none, or with kvmfleet_allow_disruption.",
)
def equal(case: Case) -> Finding:
    if unknown := _unknown(case):
        return unknown
    found, wished = case.evidence.network.networks, case.wishes.networks
    changed, pending = [], []
    for name, wish in wished.items():
        seen = found.get(name, NONE)
        if seen.configured != wish.xml:
            changed.append(f"{name}: {_difference(wish.xml, seen.configured)}")
        elif seen.active and seen.live != wish.xml:
            pending.append(f"{name}: {_difference(wish.xml, seen.live)}")
    if changed:
        return failed(
            f"defined in another way: {'; '.join(changed)}",
            expected="as in the contract",
            seen="changed",
            fix=PROVISION,
        )
    if pending:
        return warned(
            f"runs in another way than it is defined: {'; '.join(pending)}",
            expected="as defined",
            seen="as it was before",
            fix="Restart the network when no guest uses it: run `kvmfleet provision` for this host then.",
        )
    return passed(f"{counted(len(wished), 'network')} equal to the contract")


@check(
    "network.bridge",
    "The bridges of the host are there",
    sections=("network",),
    requires=("contract.present",),
    proves="Every bridge of the contract is there, with its ports.",
    how="/sys/class/net.",
    todo=f"`bridge link` shows what is at which bridge. {PROVISION}",
)
def bridge(case: Case) -> Finding:
    wished, found = case.wishes.bridges, case.evidence.network.bridges
    if not wished:
        return not_applicable("no bridges are asked for")
    problems = [f"there is no {name}" for name in wished if name not in found]
    for name, ports in wished.items():
        lacking = [port for port in ports if port not in found.get(name, ports)]
        if lacking:
            problems.append(f"{', '.join(lacking)} is not at {name}")
    if problems:
        return failed("; ".join(problems), expected="as in the contract", seen="; ".join(problems), fix=PROVISION)
    return passed(f"{', '.join(wished)} with {counted(sum(map(len, wished.values())), 'port')}")


UNREAD = undecided("the state of libvirt's networks cannot be read", fix="Validate as root (become).")


def _running(case: Case) -> Mapping[str, RunningNetwork] | Finding:
    """The networks that run, or what is to be said where none is seen."""
    running = case.evidence.network.running
    if running is None:
        return UNREAD
    return running or not_applicable("no network of libvirt runs")


@check(
    "network.link",
    "The bridges carry packets",
    sections=("network",),
    explained_by=("network.bridge", "network.active"),
    proves="The bridge of every network that runs is there and up, and the ports of the contract's bridges have a "
    "carrier.",
    how="/sys/class/net. A network that nobody uses has no carrier; that of a port of the host is the cable.",
    todo="A bridge that is gone: `virsh net-destroy NAME && virsh net-start NAME`, and its guests need a restart. A "
    "port: `ip link set PORT up`, then look at the cable and the switch.",
)
def link(case: Case) -> Finding:
    links, wished, running = case.evidence.network.links, case.wishes.bridges, _running(case)
    if isinstance(running, Finding):
        if running == UNREAD or not wished:
            return running
        running = {}
    own = {network.bridge: name for name, network in running.items() if network.mode in OWN_BRIDGE and network.bridge}
    dead = [f"{bridge} of {name} is {_state(links, bridge)}" for bridge, name in own.items() if not _up(links, bridge)]
    gone = [quote(name) for at, name in own.items() if at not in links]
    commands = [f"virsh net-destroy {name} && virsh net-start {name}" for name in gone]
    commands += [f"ip link set {quote(name)} up" for name in (*own, *wished) if name in links and not links[name].up]
    dead += [f"{bridge} is down" for bridge in wished if bridge in links and not links[bridge].up]
    ports = [port for names in wished.values() for port in names if port in links]
    dark = [port for port in ports if not links[port].carrier]
    if dead:
        return failed("; ".join(dead), expected="up", seen="; ".join(dead), fix=f"Run `{' && '.join(commands)}`.")
    if dark:
        fix = f"Run `ip link set {quote(dark[0])} up`; then look at the cable and the switch."
        cut = [bridge for bridge, names in wished.items() if names and set(names) <= set(dark)]
        say = failed if cut else warned
        behind = f"; guests at {', '.join(cut)} are cut off" if cut else ""
        return say(f"no carrier: {', '.join(dark)}{behind}", expected="a carrier", seen="none", fix=fix)
    return passed(f"{counted(len({*own, *wished}), 'bridge')} and {counted(len(ports), 'port')} of the host up")


def _up(links: Mapping[str, Link], name: str) -> bool:
    return name in links and links[name].up


def _state(links: Mapping[str, Link], name: str) -> str:
    return "down" if name in links else "gone"


@check(
    "network.forwarding",
    "The host forwards packets of guests",
    sections=("network",),
    explained_by=("tuning.sysctl",),
    proves="Guests of networks with nat or route reach what lies beyond the host.",
    how="net.ipv4.ip_forward, and net.ipv6.conf.all.forwarding where such a network has an IPv6 subnet, as they are "
    "now. libvirt switches them on when it starts a network.",
    todo="`sysctl net.ipv4.ip_forward=1`, and find out who switched it off: `grep -r forward /etc/sysctl.*`.",
)
def forwarding(case: Case) -> Finding:
    running = _running(case)
    if isinstance(running, Finding):
        return running
    routed = {name: network for name, network in running.items() if network.mode in ("nat", "route")}
    needed = {f"ipv{subnet.version}" for network in routed.values() for subnet in _subnets(network)}
    if not needed:
        return not_applicable("no network with nat or route runs")
    live = case.evidence.network.forwarding
    keys = {"ipv4": "net.ipv4.ip_forward", "ipv6": "net.ipv6.conf.all.forwarding"}
    if unread := [keys[kind] for kind in sorted(needed) if not live.get(kind)]:
        return undecided(f"not readable: {', '.join(unread)}", fix="Look at /proc/sys/net on the host.")
    off = [keys[kind] for kind in sorted(needed) if live[kind] == "0"]
    if off:
        fix = f"Run `sysctl {' '.join(f'{key}=1' for key in off)}`, and find out who switched it off."
        summary = f"{', '.join(off)} is 0: guests of {', '.join(routed)} do not get beyond the host"
        return failed(summary, expected="1", seen="0", fix=fix)
    return passed(f"{' and '.join(sorted(needed))} forwarded for {', '.join(routed)}")


@check(
    "network.firewall",
    "libvirt's rules are in force",
    sections=("network",),
    explained_by=("network.link",),
    proves="The firewall lets guests out and their answers in, and masquerades networks with nat: also after Docker, "
    "firewalld, ufw or a person loaded rules of their own.",
    how="As root: the table libvirt_network of nftables, or the chains LIBVIRT_FWO, LIBVIRT_FWI and LIBVIRT_PRT of "
    "iptables with the bridge or subnet of each network, and jumps to them before the built-in chains end.",
    todo=f"{RESTART}: libvirt writes its rules again, and guests keep running. Who flushes rules has to do that, too.",
)
def firewall(case: Case) -> Finding:
    running = _running(case)
    if isinstance(running, Finding):
        return running
    guarded = {
        name: network
        for name, network in running.items()
        if network.mode in ("nat", "route", "isolated") and any(subnet.version == 4 for subnet in _subnets(network))
    }
    if not guarded:
        return not_applicable("no network that has rules runs")
    error = case.evidence.network.firewall_error
    if error or any(network.rules is None for network in guarded.values()):
        return undecided(f"the rules cannot be read: {error or 'not root'}", fix="Validate as root (become).")
    lacking = []
    for name, network in guarded.items():
        wanted = {"forward", "masquerade"} if network.mode == "nat" else {"forward"}
        lacking += [f"{name} has no rules to {rule}" for rule in sorted(wanted - set(network.rules or ()))]
    if lacking:
        fix = f"{RESTART}: it writes its rules again, guests keep running. Find out who removed them."
        return failed("; ".join(lacking), expected="libvirt's rules", seen="removed or not reached", fix=fix)
    return passed(f"rules of {', '.join(guarded)} are in force")


@check(
    "network.dnsmasq",
    "Guests get addresses and names",
    sections=("network",),
    explained_by=("network.link",),
    proves="The dnsmasq of every network that has DHCP or DNS runs, and answers on the network's own addresses only.",
    how="The process that libvirt noted, its sockets on ports 53 and 67; and who else answers DNS on every address.",
    todo=f"{RELOAD}: it starts a dnsmasq that is missing. Another DNS server that takes every address hinders it "
    "at the next start: give it bind-interfaces and an address of its own.",
)
def dnsmasq(case: Case) -> Finding:
    running = _running(case)
    if isinstance(running, Finding):
        return running
    served = {name: network for name, network in running.items() if network.dhcp or network.dns}
    if not served:
        return not_applicable("no network with DHCP or DNS runs")
    problems = [text for name, network in served.items() if (text := _unserved(network, name))]
    if problems:
        fix = f"{RELOAD}: it starts dnsmasq again; `journalctl -b -t dnsmasq` says why one ended."
        return failed("; ".join(problems), expected="a dnsmasq for each", seen=f"{len(problems)} without", fix=fix)
    wide = [
        f"{name} answers on {address}"
        for name, network in served.items()
        for address in network.answers
        if not _of_network(address, network)
    ]
    if wide:
        fix = "Take the options of dnsmasq out of the network's definition that let it answer elsewhere."
        return warned("; ".join(wide), expected="the network's own addresses", seen="others", fix=fix)
    if others := case.evidence.network.wildcards:
        names = ", ".join(others)
        return warned(
            f"{names} answers DNS on every address: a network may not start again",
            expected="addresses of its own",
            seen="every address",
            fix=f"Let {names} listen on an address of its own (dnsmasq: bind-interfaces and listen-address).",
        )
    return passed(f"dnsmasq serves {', '.join(served)}")


def _unserved(network: RunningNetwork, name: str) -> str:
    if not network.dnsmasq:
        return f"{name} has no dnsmasq"
    if network.dhcp and not network.leases:
        return f"dnsmasq of {name} does not wait for DHCP"
    return f"dnsmasq of {name} does not answer" if network.dns and not network.answers else ""


def _of_network(address: str, network: RunningNetwork) -> bool:
    """Its own, or the one that every link has in IPv6."""
    own = [subnet.ip for subnet in _subnets(network)]
    return all(found.ip.is_link_local or found.ip in own for found in _parsed(address))


@check(
    "network.collisions",
    "No route leads elsewhere with a network's addresses",
    sections=("network",),
    explained_by=("network.link",),
    proves="What has an address of a network of guests is reached through its bridge, and nothing else has such one.",
    how="The main routing table: routes of other devices to the same or fewer addresses take them from the guests; a "
    "larger network that is directly at another device loses those. Larger ones behind a router are no collision.",
    todo="Give the network another subnet: `subnet: auto` in libvirt_networks takes a free one. Or remove the route.",
)
def collisions(case: Case) -> Finding:
    running = _running(case)
    if isinstance(running, Finding):
        return running
    taken, hidden = [], []
    for name, network in running.items():
        own = [subnet.network for subnet in _subnets(network)]
        for route in network.overlaps:
            others = [one.network for one in _parsed(route.destination)]
            text = f"{name} ({', '.join(map(str, own))}) and {route.destination} of {route.device}"
            if any(_holds(one, other) for one in own for other in others):
                taken.append(text)
            elif not route.gateway:
                hidden.append(text)
    fix = "Give the network another subnet (`subnet: auto` takes a free one) and provision, or take the route away."
    if taken:
        return failed(f"the same addresses: {'; '.join(taken)}", expected="a subnet of its own", seen="shared", fix=fix)
    if hidden:
        summary = f"a part of a larger network: {'; '.join(hidden)}"
        return warned(summary, expected="a subnet of its own", seen="shared", fix=fix)
    return passed(
        f"no route collides with {counted(sum(len(network.subnets) for network in running.values()), 'subnet')}"
    )


@check(
    "network.bridge_nf",
    "Somebody decided about bridges and the firewall",
    sections=("network",),
    requires=("contract.present",),
    proves="Packets between guests on a bridge of the host pass its firewall only where that is wanted: with Docker "
    "beside them they are dropped.",
    how="net.bridge.bridge-nf-call-iptables and -ip6tables, that are on as soon as something loads br_netfilter. Where "
    "the contract says what they shall be, tuning.sysctl holds the host to it.",
    todo="Set host_tuning_bridge_netfilter to bypass (plain bridges) or filter (OpenStack, Kubernetes), and provision.",
)
def bridge_nf(case: Case) -> Finding:
    if case.evidence.network.running is None:
        return UNREAD
    bridges = sorted({*case.wishes.bridges, *_host_bridges(case)})
    if not bridges:
        return not_applicable("no bridge of the host serves guests")
    if any(key.startswith("net.bridge.bridge-nf-call-") for key in case.wishes.tuning.sysctls):
        return not_applicable("the contract says what they shall be: tuning.sysctl")
    found = case.evidence.network.bridge_nf
    on = [name for name in ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables") if found.get(name) == "1"]
    if not on:
        return passed(f"packets on {', '.join(bridges)} do not pass the host's firewall")
    summary = f"packets between guests on {', '.join(bridges)} pass the host's firewall ({', '.join(on)})"
    if case.profile == "lab":
        return passed(summary)
    fix = "Set host_tuning_bridge_netfilter to bypass or filter, and provision."
    return warned(f"{summary}, and nobody said so", expected="a choice", seen="1 by default", fix=fix)


def _host_bridges(case: Case) -> list[str]:
    running = case.evidence.network.running or {}
    return [network.bridge for network in running.values() if network.mode == "bridge" and network.bridge]


@check(
    "network.mtu",
    "Packets fit through the bridges",
    sections=("network",),
    explained_by=("network.bridge", "network.link"),
    proves="No bridge lets in larger packets than its way out takes, where they vanish; and a network has the MTU that "
    "it was defined with.",
    how="/sys/class/net/NAME/mtu of bridges, of the ports of the host at them, and of the guests'.",
    todo="Make them equal: the smallest of the ports of the host is what fits. `ip link set NAME mtu N` acts at once.",
)
def mtu(case: Case) -> Finding:
    links, running = case.evidence.network.links, case.evidence.network.running
    if running is None:
        return UNREAD
    problems, compared = [], 0
    for name, network in running.items():
        if network.mtu and network.bridge in links and network.mode in OWN_BRIDGE:
            compared += 1
            if (seen := links[network.bridge].mtu) != network.mtu:
                problems.append(f"{network.bridge} of {name} has {seen}, not {network.mtu}")
    for bridge in sorted({*case.wishes.bridges, *_host_bridges(case)} & set(links)):
        ports = {port: links[port] for port in links[bridge].ports if port in links}
        compared += len(ports)
        out = [port.mtu for port in ports.values() if not port.tap]
        limit = min(out, default=links[bridge].mtu)
        if links[bridge].mtu > limit:
            problems.append(f"{bridge} has {links[bridge].mtu}, its port {limit}")
        problems += [
            f"{port} of a guest has {one.mtu}, {bridge} {limit}"
            for port, one in ports.items()
            if one.tap and one.mtu > limit
        ]
    if problems:
        fix = "Make them equal: `ip link set NAME mtu N`, and where the interface is configured."
        return warned("; ".join(problems), expected="the same", seen="larger ones", fix=fix)
    if not compared:
        return not_applicable("no bridge has anything to compare with")
    return passed(f"{counted(compared, 'MTU')} fit")


def _holds(own: Subnet, other: Subnet) -> bool:
    """It has all addresses of the other, which overlaps it."""
    return own.version == other.version and own.prefixlen <= other.prefixlen


def _subnets(network: RunningNetwork) -> list[Interface]:
    return [found for subnet in network.subnets for found in _parsed(subnet)]


def _parsed(text: str) -> list[Interface]:
    """An address with its prefix; nothing where a host says something else."""
    try:
        return [ipaddress.ip_interface(text)]
    except ValueError:
        return []


def _difference(wished: str, seen: str) -> str:
    """The lines that went and came, in one line."""
    if not seen:
        return "not defined"
    lines = difflib.unified_diff(wished.splitlines(), seen.splitlines(), lineterm="", n=0)
    words = [f"{line[0]}{line[1:].strip()}" for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")]
    return " ".join(words[:6]) + (f" and {len(words) - 6} more" if len(words) > 6 else "")


CHECKS = (active, equal, bridge, link, forwarding, firewall, dnsmasq, collisions, bridge_nf, mtu)
