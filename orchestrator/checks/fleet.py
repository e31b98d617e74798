"""What no host can tell alone: do these hosts fit together?

Guests move between the hosts of a fleet, so what they count on has to be on all of them, and what names a host has to
be one host's.
"""

from __future__ import annotations

import ipaddress
import itertools
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from orchestrator.checks.registry import Explanation, Topic
from orchestrator.model.contract import Contract
from orchestrator.model.evidence import Evidence
from orchestrator.model.finding import FleetFinding, Status
from orchestrator.text import listed

__all__ = ["CHECKS", "FleetCheck", "Member"]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Routed = tuple[str, str, Network]
"""Host, its network, and a subnet of that."""

REACHABLE_FROM_OUTSIDE = ("route", "open")
FEW = 12
MACHINE_ID = "machine id"

# Extensions of x86-64 that guests see and libvirt's processor models are made of, in the words of /proc/cpuinfo, as far
# as Linux 4.18 names them: what only newer kernels name would make two kernels look like two processors.
GUEST_FLAGS = frozenset(
    """
    abm adx aes avx avx2 avx512_bitalg avx512_vbmi2 avx512_vnni avx512_vpopcntdq avx512bw avx512cd avx512dq avx512er
    avx512f avx512ifma avx512pf avx512vbmi avx512vl bmi1 bmi2 clflushopt clwb clzero cx16 erms f16c fma fma4 fsgsbase
    gfni hle invpcid la57 lahf_lm lm movbe mpx nx pcid pclmulqdq pdpe1gb pku popcnt rdpid rdrand rdseed rdtscp rtm
    sha_ni smap smep sse4_1 sse4_2 sse4a ssse3 tbm tsc_adjust tsc_deadline_timer umip vaes vpclmulqdq x2apic xop xsave
    xsavec xsaveopt xsaves
    """.split()  # noqa: SIM905 - a word a line would be a page
)


class Member(NamedTuple):
    """One host that gave evidence."""

    name: str
    evidence: Evidence
    contract: Contract | None


Look = Callable[[Sequence[Member]], FleetFinding]


class FleetCheck(Topic, frozen=True, kw_only=True):
    """A topic that the evidence of all hosts decides together."""

    look: Look

    def finding(self, members: Sequence[Member]) -> FleetFinding:
        """What is found among two hosts or more."""
        return msgspec.structs.replace(self.look(members), check=self.id)


def fleet_check(id: str, title: str, *, proves: str, how: str, todo: str) -> Callable[[Look], FleetCheck]:
    """Make a fleet check of the function below."""
    return lambda look: FleetCheck(id=id, title=title, explanation=Explanation(proves, how, todo), look=look)


def _passed(summary: str) -> FleetFinding:
    return FleetFinding("", "pass", summary)


def _lab(members: Iterable[Member]) -> bool:
    return all(member.contract is not None and member.contract.profile == "lab" for member in members)


def _unequal(members: Sequence[Member], summary: str, *, expected: str, seen: str, fix: str) -> FleetFinding:
    """A difference that a lab is made for, and that elsewhere somebody should know of."""
    status: Status = "pass" if _lab(members) else "warn"
    return FleetFinding("", status, summary, expected, seen, fix, hosts=tuple(member.name for member in members))


def _shared(owners: Mapping[str, Sequence[str]]) -> dict[tuple[str, ...], list[str]]:
    """What more than one host has, by those hosts."""
    found: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for thing, hosts in owners.items():
        if len(hosts) > 1:
            found[tuple(hosts)].append(thing)
    return found


def _owners(members: Iterable[Member], things: Callable[[Member], Iterable[str]]) -> dict[str, list[str]]:
    owners: dict[str, list[str]] = defaultdict(list)
    for member in members:
        for thing in things(member):
            owners[thing].append(member.name)
    return owners


def names(hosts: Sequence[str]) -> str:
    """The hosts, the first dozen of a long list."""
    return listed(hosts, FEW)


@fleet_check(
    "fleet.identity",
    "Every host is a machine of its own",
    proves="No two names of the inventory lead to one machine, and no two machines were cloned with their identity. "
    "libvirt refuses to migrate between hosts whose UUID is one, and a DHCP server gives them one address.",
    how="The boot id, the machine id (a digest of it) and the UUID that libvirt shows in its capabilities.",
    todo="One machine under two names: take one out of the inventory. A clone: remove /etc/machine-id, and "
    "/var/lib/dbus/machine-id, from which it would come back, run `systemd-machine-id-setup` and boot; where the "
    "firmware's UUID is doubled, set host_uuid in libvirtd.conf or virtqemud.conf, and restart the daemon.",
)
def identity(members: Sequence[Member]) -> FleetFinding:
    same = _shared(_owners(members, _boot))
    if same:
        groups = "; ".join(names(hosts) for hosts in same)
        fix = "Take all names but one out of the inventory."
        return _twice(same, f"one machine under several names: {groups}", "a machine a name", fix)
    cloned = _shared(_owners(members, _identities))
    if cloned:
        told = "; ".join(f"{names(hosts)} share the {' and the '.join(_kinds(what))}" for hosts, what in cloned.items())
        fix = "On all but one: `rm -f /etc/machine-id /var/lib/dbus/machine-id; systemd-machine-id-setup`, then boot."
        if not any(MACHINE_ID in _kinds(what) for what in cloned.values()):
            fix = "On all but one: set host_uuid in libvirtd.conf or virtqemud.conf (`uuidgen`), restart the daemon."
        return _twice(cloned, told, "an identity a host", fix)
    return _passed(f"{len(members)} hosts are {len(members)} machines")


def _boot(member: Member) -> tuple[str, ...]:
    """Containers have the boot id of the machine that they share."""
    system = member.evidence.system
    return () if system.container or not system.boot_id else (system.boot_id,)


def _identities(member: Member) -> Iterable[str]:
    known = {MACHINE_ID: member.evidence.identity.machine, "UUID of libvirt": member.evidence.libvirt.host_uuid}
    return (f"{kind}\0{value}" for kind, value in known.items() if value)


def _kinds(what: Iterable[str]) -> list[str]:
    return sorted({thing.partition("\0")[0] for thing in what})


def _twice(groups: Iterable[tuple[str, ...]], summary: str, expected: str, fix: str) -> FleetFinding:
    hosts = tuple(sorted(set(itertools.chain.from_iterable(groups))))
    return FleetFinding("", "fail", summary, expected, "shared", fix, hosts=hosts)


@fleet_check(
    "fleet.hostkeys",
    "Every host has ssh keys of its own",
    proves="Who holds one host's ssh key cannot pretend to be another host.",
    how="The fingerprints of the public keys in /etc/ssh.",
    todo="On all hosts but one: `rm /etc/ssh/ssh_host_*` and `ssh-keygen -A`, restart sshd, and tell known_hosts.",
)
def hostkeys(members: Sequence[Member]) -> FleetFinding:
    shared = _shared(_owners(_machines(members), lambda member: member.evidence.identity.host_keys))
    if shared:
        told = "; ".join(f"{names(hosts)} share {len(keys)} ssh host key(s)" for hosts, keys in shared.items())
        fix = "On all but one: `rm /etc/ssh/ssh_host_*_key*; ssh-keygen -A`, then restart sshd and renew known_hosts."
        return _twice(shared, told, "keys of its own", fix)
    return _passed(f"no ssh key is on two of {len(members)} hosts")


def _machines(members: Iterable[Member]) -> Iterable[Member]:
    """Each machine once; of its other names fleet.identity tells."""
    first: dict[object, Member] = {}
    for member in members:
        first.setdefault(_boot(member) or member.name, member)
    return first.values()


@fleet_check(
    "fleet.names",
    "Every host has a name of its own",
    proves="Migration leads where it should: libvirt tells the other side its own hostname, and that has to be one.",
    how="The hostname of each host.",
    todo="`hostnamectl set-hostname NAME` on one of them.",
)
def hostnames(members: Sequence[Member]) -> FleetFinding:
    shared = _shared(_owners(_machines(members), lambda member: filter(None, (member.evidence.system.hostname,))))
    if shared:
        told = "; ".join(f"{names(hosts)} are all called {name[0]}" for hosts, name in shared.items())
        return _twice(shared, told, "a name a host", "Run `hostnamectl set-hostname NAME` on all but one of them.")
    return _passed(f"{len(members)} hosts have {len(members)} names")


@fleet_check(
    "fleet.cpu",
    "Guests find the same processor everywhere",
    proves="A guest that was started with the host's own processor model can move to every other host.",
    how="The vendor of each host, and the instructions that its kernel names, against those that all have. Only what a "
    "guest sees counts: a newer kernel names more of its own. On hosts of one processor only the microcode or the "
    "firmware can make them differ.",
    todo="Update microcode and firmware where processors are equal. Otherwise start guests that shall move with a "
    "model that all hosts have, such as x86-64-v2, and not with host-passthrough or host-model.",
)
def cpu(members: Sequence[Member]) -> FleetFinding:
    known = [member for member in members if member.evidence.identity.flags]
    if len(known) < 2:
        return FleetFinding("", "skip", "fewer than two hosts told their processor's flags")
    if len(vendors := _by(known, lambda member: f"{member.evidence.system.arch} {member.evidence.cpu.vendor}")) > 1:
        seen = _told(vendors)
        fix = "Let guests move only between hosts of one vendor; make groups of them in the inventory."
        return _unequal(known, f"processors of several vendors: {seen}", expected="one vendor", seen=seen, fix=fix)
    have = {member.name: _offered(member) for member in known}
    common, widest = set.intersection(*have.values()), set.union(*have.values())
    if widest == common:
        return _passed(f"{len(known)} hosts offer guests the same {len(common)} features")
    lacking = [member for member in known if have[member.name] != widest]
    seen = "; ".join(f"{member.name} lacks {names(sorted(widest - have[member.name]))}" for member in lacking)
    fix = "Update microcode and firmware, or start guests that shall move with a model that all hosts have."
    return _unequal(lacking, seen, expected="the same features", seen=seen, fix=fix)


def _offered(member: Member) -> set[str]:
    """What of its processor a host can give to guests. On aarch64 all that the kernel names."""
    flags = set(member.evidence.identity.flags)
    return flags & GUEST_FLAGS if member.evidence.system.arch == "x86_64" else flags


def _by(members: Iterable[Member], value: Callable[[Member], str]) -> dict[str, list[str]]:
    """Hosts by what they have; those that do not know are left out."""
    found: dict[str, list[str]] = defaultdict(list)
    for member in members:
        if value(member).strip():
            found[value(member)].append(member.name)
    return dict(found)


def _told(groups: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{value} on {names(hosts)}" for value, hosts in sorted(groups.items()))


def _versions(members: Sequence[Member], what: str, version: Callable[[Member], str]) -> FleetFinding:
    found = _by(members, version)
    if len(found) < 2:
        return _passed(
            f"{what} {next(iter(found))} on {names(found[next(iter(found))])}" if found else f"no {what} anywhere"
        )
    return _unequal(
        [member for member in members if version(member)],
        f"several versions of {what}: {_told(found)}",
        expected="one version",
        seen=", ".join(sorted(found)),
        fix=f"Upgrade {what} on the hosts that lag behind; until then guests move only to the same or a newer version.",
    )


@fleet_check(
    "fleet.qemu",
    "Hosts have one version of QEMU",
    proves="A guest can move in every direction: a machine type of a newer QEMU does not start in an older one.",
    how="The version of the binary that libvirt starts.",
    todo="Upgrade the hosts that lag behind. Until then give guests a versioned machine type that the oldest QEMU has.",
)
def qemu(members: Sequence[Member]) -> FleetFinding:
    return _versions(members, "QEMU", lambda member: member.evidence.qemu.version)


@fleet_check(
    "fleet.libvirt",
    "Hosts have one version of libvirt",
    proves="What one host's libvirt writes about a guest is understood by that of every other host.",
    how="The version of the daemon that answers.",
    todo="Upgrade the hosts that lag behind; libvirt supports migration to the same or a newer version.",
)
def libvirt(members: Sequence[Member]) -> FleetFinding:
    return _versions(members, "libvirt", lambda member: member.evidence.libvirt.version)


@fleet_check(
    "fleet.subnets",
    "No two hosts route one subnet",
    proves="Packets for a guest reach the host on which it runs. Subnets behind NAT may be the same on every host.",
    how="The networks of the contracts that are forwarded without NAT, their subnets against each other.",
    todo="Give each host a subnet of its own; with `subnet: auto` the role libvirt_networks chooses one.",
)
def subnets(members: Sequence[Member]) -> FleetFinding:
    routed = [(member.name, name, subnet) for member in members for name, subnet in _routed(member)]
    clashes = list(_clashes(sorted(routed, key=lambda one: (one[2].version, one[2]))))
    if clashes:
        told = "; ".join(f"{a[0]}'s {a[1]} ({a[2]}) and {b[0]}'s {b[1]} ({b[2]})" for a, b in clashes[:FEW])
        more = f" and {len(clashes) - FEW} more" if len(clashes) > FEW else ""
        hosts = [(one[0], other[0]) for one, other in clashes]
        return _twice(hosts, f"routed subnets overlap: {told}{more}", "no overlap", "Give each host its own subnet.")
    return _passed(f"{len(routed)} routed subnets, none of them twice")


def _clashes(routed: Iterable[Routed]) -> Iterable[tuple[Routed, Routed]]:
    """Subnets of other hosts in the largest one around them, which comes before them where they are sorted."""
    around: Routed | None = None
    for one in routed:
        if around is None or around[2].version != one[2].version or not around[2].overlaps(one[2]):
            around = one
        elif around[0] != one[0]:
            yield around, one


def _routed(member: Member) -> Iterable[tuple[str, Network]]:
    for name, wish in (member.contract.networks if member.contract else {}).items():
        try:
            root = ET.fromstring(wish.xml)
            forward = root.find("forward")
            if forward is None or forward.get("mode") not in REACHABLE_FROM_OUTSIDE:
                continue
            for ip in root.findall("ip"):
                length = ip.get("prefix") or ip.get("netmask") or ""
                yield name, ipaddress.ip_network(f"{ip.get('address')}/{length}", strict=False)
        except (ET.ParseError, ValueError):  # network.equal compares the text, and a subnet that is none has no clash
            continue


@fleet_check(
    "fleet.outliers",
    "No host is unlike all others",
    proves="What was upgraded or set on the fleet reached every host: a difference that only one host has is mostly a "
    "host that was forgotten.",
    how="Release, kernel, profile and platform of each host. Among three hosts or more, a host that is alone with a "
    "value while all others agree.",
    todo="Bring it to what the others have, or let it be: a host under test is meant to be different.",
)
def outliers(members: Sequence[Member]) -> FleetFinding:
    if len(members) < 3:
        return FleetFinding("", "skip", "two hosts have no majority")
    told, hosts = [], []
    for what, value in TRAITS.items():
        count = Counter(found for member in members if (found := value(member)))
        usual, number = count.most_common(1)[0] if count else ("", 0)
        odd = [member for member in members if value(member) not in ("", usual)]
        if len(odd) == 1 and number == len(members) - 1:
            told.append(f"{odd[0].name} has {what} {value(odd[0])}, all others {usual}")
            hosts.append(odd[0])
    if not told:
        return _passed(f"{len(members)} hosts, none alone with what it has")
    return _unequal(
        hosts,
        "; ".join(told),
        expected="as the others",
        seen="; ".join(told),
        fix=f"Upgrade or provision {names(sorted({host.name for host in hosts}))}, if it is not meant to be different.",
    )


TRAITS: Mapping[str, Callable[[Member], str]] = {
    "the release": lambda member: f"{member.evidence.system.os_id} {member.evidence.system.os_version}".strip(),
    "the kernel": lambda member: "" if member.evidence.system.container else member.evidence.system.kernel,
    "the profile": lambda member: member.contract.profile if member.contract else "",
}

CHECKS = (identity, hostkeys, hostnames, cpu, qemu, libvirt, subnets, outliers)
