"""Evidence without what changes by itself: two looks at a host that nobody touched give one snapshot.

A snapshot is a flat table, item -> value. An item is named by its kind and, where there are several, its name:
`package:libvirt-daemon-system`, `network:lab`, `contract`. Times, counters, free space, process numbers, guests and
what a daemon does when it is idle stay evidence.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from orchestrator.collector.inventory import MIGHTY
from orchestrator.model import evidence
from orchestrator.model.evidence import Certificate, Evidence, FileState, Module, Network, Pool, Tuning

__all__ = ["EDITION", "KINDS", "Snapshot", "kind", "lent", "owner", "take"]

GUESTS_OWN = re.compile(r"vnet\d|tap|veth")  # ports at bridges; a guest's may have any other name, too
ON_DEMAND = ("tun", "vfio", "vfio_iommu_type1", "vhost", "vhost_net", "vhost_vsock")
"""Modules that come with the first guest that needs them, and stay away after the next boot."""
ABSENT = "not installed"
WITH_A_GUEST = "with a guest"  # a network card; no interface is called so
OF_THE_BOOT = re.compile(r"(BOOT_IMAGE|initrd)=")

EDITION = hashlib.sha256(
    b"".join(Path(file).read_bytes() for file in (__file__, evidence.__file__))
).hexdigest()[:16]  # fmt: skip
"""Of the code that takes snapshots: one that another edition took may spell the same host differently."""

Items = Mapping[str, str]


class Kind(NamedTuple):
    """One kind of item: the section of the evidence that tells it, and the role that keeps it as it should be."""

    name: str
    section: str
    owner: str  # "" where no role can change it: the machine itself, and what upgrades bring
    gather: Callable[[Evidence], Items]  # name -> value; the name is "" where there is only one
    also: tuple[str, ...] = ()  # sections that tell a part of it
    tells_absence: bool = False  # by a value: what has none is not named by the contract

    def is_told(self, blind: Mapping[str, str]) -> bool:
        """Whether everything that tells it could be collected; without a part, its items would seem to be gone."""
        return blind.keys().isdisjoint((self.section, *self.also))


class Snapshot(msgspec.Struct, frozen=True):
    """How a host is. `blind` tells of sections that could not be collected: nothing can be said about their items."""

    items: dict[str, str]
    blind: dict[str, str] = {}  # section -> why


def take(evidence: Evidence) -> Snapshot:
    """The snapshot of what a host said."""
    blind = dict(evidence.errors)
    if evidence.network.error:
        blind["network"] = evidence.network.error
    if evidence.storage.error:
        blind["storage"] = evidence.storage.error
    elif deaf := [name for name, pool in evidence.storage.pools.items() if pool.use.outcome == "hangs"]:
        blind["storage"] = f"the folder of {', '.join(deaf)} does not answer"
    if not _names(evidence.contract.text):
        blind = {kind.section: UNNAMED for kind in KINDS if kind.section not in BY_THEMSELVES} | blind
    if evidence.system.uid > 0:
        why = f"collected as user {evidence.system.uid}, most answers need root"
        blind = {kind.section: why for kind in KINDS if kind.section not in FOR_EVERYBODY} | blind
    items = {
        f"{kind.name}:{name}" if name else kind.name: value
        for kind in KINDS
        if kind.is_told(blind)
        for name, value in kind.gather(evidence).items()
    }
    return Snapshot(dict(sorted(items.items())), blind)


def kind(item: str) -> Kind | None:
    """The kind of an item; None where another version of kvmfleet knew it."""
    return _BY_NAME.get(item.partition(":")[0])


def owner(item: str) -> str:
    """The role that keeps this item as it should be, "" where none does."""
    name = item.partition(":")[2]
    for prefix, role in FILE_OWNERS:
        if item.startswith("file:") and name.startswith(prefix):
            return role
    if item.startswith("unit-file:"):
        return DROP_IN_OWNERS.get(name.rpartition("/")[2], "")
    found = kind(item)
    return found.owner if found else ""


def lent(then: Items, now: Items) -> set[str]:
    """Items that say nothing of a host: which interfaces a network card has, and those of one that a guest has or had.

    They go with it, and come back when the guest ends. Where the card itself is gone, its interfaces are missing.
    """
    cards = {item: (then.get(item), now.get(item)) for item in {*then, *now} if item.startswith("hardware:card ")}
    names = (name for told in cards.values() if WITH_A_GUEST in told for name in _interfaces(told))
    return {*cards, *(f"hardware:interface {name}" for name in names)}


def _interfaces(told: Iterable[str | None]) -> list[str]:
    return [name for value in told if value and value != WITH_A_GUEST for name in value.split()]


BY_THEMSELVES = ("contract", "system", "identity", "kvm")
FOR_EVERYBODY = ("packages", "members")
UNNAMED = "the contract of the host, which names what to look at, cannot be read"


def _names(contract: str) -> bool:
    """Whether it names anything to the collector, which otherwise finds nothing and not that it is gone."""
    try:
        return isinstance(msgspec.json.decode(contract), dict)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        return False


FILE_OWNERS = (
    ("/etc/modprobe.d/", "kernel_modules"),
    ("/etc/modules-load.d/", "kernel_modules"),
    ("/etc/sysctl.d/", "host_tuning"),
    ("/etc/pki/", "libvirt_remote"),
    ("/etc/nftables", "libvirt_security"),
    ("/etc/libvirt/", "libvirt"),
)
DROP_IN_OWNERS = {"kvmfleet-access.conf": "libvirt_security", "kvmfleet.conf": "libvirt_remote"}


def _one(value: object) -> Items:
    return {"": str(value)} if str(value) else {}


def _list(values: Iterable[object]) -> str:
    return " ".join(sorted(str(value) for value in values))


def _arguments(cmdline: str) -> str:
    """In their order, as the last one wins; without those that name the files of this boot."""
    return " ".join(word for word in cmdline.split() if not OF_THE_BOOT.match(word))


def _cmdline(evidence: Evidence) -> Items:
    return _one(_arguments(evidence.kernel.cmdline)) if _has_own_kernel(evidence) else {}


def _own(evidence: Evidence) -> Mapping[str, Module]:
    """The modules without those that are there or not as guests want it."""
    kernel = evidence.kernel
    return {
        name: module for name, module in kernel.modules.items() if name not in ON_DEMAND or name in kernel.load_at_boot
    }


def _modules(evidence: Evidence) -> Items:
    return {name: "absent" if module.state == "absent" else "there" for name, module in _own(evidence).items()}


def _options(evidence: Evidence) -> Items:
    """What modprobe.d says, which acts when the module is loaded the next time."""
    configured = evidence.kernel.configured_options.items()
    return {f"{name}.{option}": value for name, options in configured for option, value in options.items()}


def _parameters(evidence: Evidence) -> Items:
    """What the modules obey now, however they came to it."""
    modules = _own(evidence).items()
    return {f"{name}.{option}": value for name, module in modules for option, value in module.params.items()}


def _file(state: FileState) -> str:
    if not state.exists:
        return "absent"
    link = f"link to {state.link}, " if state.link else ""
    return f"{link}sha256 {state.sha256 or 'unknown'}, {state.owner}:{state.group} {state.mode:04o}"


def _units(evidence: Evidence) -> Items:
    """Sockets listen or do not; a service may be idle, so only what it does at boot counts."""
    units = {**evidence.tuning.units, **evidence.libvirt.units}
    if evidence.guests.unit.load:
        units["libvirt-guests.service"] = evidence.guests.unit
    return {
        name: " ".join(
            word
            for word in (unit.load, unit.enabled, unit.active if name.endswith((".socket", ".timer")) else "")
            if word
        )
        for name, unit in units.items()
    }


def _settings(evidence: Evidence) -> Items:
    return {
        f"{file} {key}": value for file, keys in evidence.libvirt.settings.items() for key, value in keys.items()
    } | {f"libvirt-guests {key}": value for key, value in evidence.guests.settings.items()}


def _sysctls(evidence: Evidence) -> Items:
    own = _has_own_kernel(evidence)
    return {
        name: (f"live {_or_none(value.live)}, " if own else "") + f"next boot {_or_none(value.next_boot)}"
        for name, value in evidence.tuning.sysctls.items()
    }


def _has_own_kernel(evidence: Evidence) -> bool:
    """A container has that of the machine below: what is live there is not its own, and no role changes it."""
    return not evidence.system.container


def _or_none(value: str | None) -> str:
    return "none" if value is None else " ".join(value.split()) or "empty"


def _network(network: Network) -> Items:
    said = f"{'active' if network.active else 'inactive'}, {'autostart' if network.autostart else 'no autostart'}"
    return {"": said, "definition": f"{network.configured}{_runs_otherwise(network)}"}


def _runs_otherwise(network: Network) -> str:
    """The lines in which a running network is not what is defined: whole, it would hide what changed in it."""
    if network.live in ("", network.configured):
        return ""
    lines = difflib.unified_diff(network.configured.splitlines(), network.live.splitlines(), lineterm="", n=0)
    told = {"-": "not live yet", "+": "still live"}
    return "".join(f"{told[line[0]]}: {line[1:].strip()}\n" for line in list(lines)[2:] if line[0] in told)


def _networks(evidence: Evidence) -> Items:
    found = {}
    for name, network in evidence.network.networks.items():
        for part, value in _network(network).items():
            found[f"{name} {part}".strip()] = value
    return found


def _pool(pool: Pool) -> str:
    words = [
        "defined" if pool.defined else "not defined",
        "active" if pool.active else "inactive",
        "autostart" if pool.autostart else "no autostart",
    ]
    if pool.mode is not None:
        words.append(f"{pool.owner}:{pool.group} {pool.mode:04o}")
    facts = [f"{place}: {value}" for place, value in sorted(pool.configured.items())]
    return ", ".join(words) + "".join(f"\n{fact}" for fact in facts)


def _tuning(evidence: Evidence) -> Items:
    found = evidence.tuning
    told = {"tuned": found.tuned_profile} | {f"at boot {path}": value for path, value in found.at_boot.items()}
    if _has_own_kernel(evidence):
        told |= {f"hugepages {size}": str(pages.pages) for size, pages in found.hugepages.items()}
        told |= {f"thp {key}": value for key, value in found.thp.items()}
        told |= {f"governor {name}": processors for name, processors in found.governors.items()}
        told |= {"ksm": _ksm(found), "isolated": found.isolated, "nohz_full": found.nohz_full}
    return {name: value for name, value in told.items() if value}


def _ksm(tuning: Tuning) -> str:
    """ksmtuned starts and stops it as memory becomes scarce."""
    daemon = tuning.units.get("ksmtuned.service")
    return "by ksmtuned" if daemon and daemon.active == "active" else tuning.ksm_run


def _members(evidence: Evidence) -> Items:
    """Without those of sudo and the like, by whom the check of the others goes; no role keeps them."""
    return {group: _list(users) for group, users in evidence.members.items() if group not in MIGHTY}


def _firewall(evidence: Evidence) -> Items:
    found = evidence.security.firewall
    told = {"backend": found.backend, "unit": found.unit, "rules": "\n".join(found.rules)}
    told |= {f"set {name}": _list(values) for name, values in found.sets.items()}
    return {name: value for name, value in told.items() if value}


def _confinement(evidence: Evidence) -> Items:
    found = evidence.security
    told = {
        "selinux": found.selinux,
        "apparmor": "on" if found.apparmor else "off",
        "polkit": "on" if found.polkit else "off",
    }
    told |= {f"boolean {name}": value for name, value in found.booleans.items()}
    told |= {f"socket {path}": _access(state) for path, state in found.sockets.items()}
    told |= {f"asks {daemon}": value for daemon, value in found.asks.items()}
    return {name: value for name, value in told.items() if value}


def _access(state: FileState) -> str:
    return f"{state.owner}:{state.group} {state.mode:04o}" if state.exists else "absent"


def _node(evidence: Evidence) -> Items:
    node = evidence.kvm.node
    return _one(f"{node.owner}:{node.group} {node.mode:04o}" if node.exists else "absent")


def _bridges(evidence: Evidence) -> Items:
    """With the ports of the host alone."""
    bridges, links = evidence.network.bridges.items(), evidence.network.links
    taps = {name for name, link in links.items() if link.tap}
    return {
        name: _list(port for port in ports if port not in taps and not GUESTS_OWN.match(port))
        for name, ports in bridges
    }


def _hardware(evidence: Evidence) -> Items:
    cpu, own = evidence.cpu, evidence.identity
    told = {"cpu": f"{cpu.vendor} {cpu.model}, {cpu.threads} threads".strip(), "cpu flags": _list(own.flags)}
    told |= {"memory": f"{own.memory_mib} MiB" if own.memory_mib else "", "machine": own.machine}
    told["microcode"] = _list({kind.microcode for kind in cpu.kinds if kind.microcode})
    told |= {f"interface {name}": value for name, value in own.interfaces.items()}
    told |= {f"card {address}": " ".join(interfaces) or WITH_A_GUEST for address, interfaces in own.cards.items()}
    return {name: value for name, value in told.items() if value}


def _system(evidence: Evidence) -> Items:
    system = evidence.system
    told = {
        "release": f"{system.os_id} {system.os_version}".strip(),
        "kernel": system.kernel,
        "hostname": system.hostname,
    }
    return {name: value for name, value in told.items() if value}


def _certificate(found: Certificate) -> str:
    """With who can read its key, and the CA, by which others are trusted."""
    told = f"sha256 {found.sha256}, key {found.key_owner} {found.key_mode:04o}, CA {found.ca_sha256}"
    return told if found.sha256 else found.error


def _contract(evidence: Evidence) -> Items:
    """A line for each thing, so that what was edited can be read; it holds no secret."""
    slot = evidence.contract
    try:
        return _one(msgspec.json.format(msgspec.json.encode(msgspec.json.decode(slot.text), order="sorted")).decode())
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        return _one(slot.text or slot.error or "empty")


KINDS = (
    Kind("contract", "contract", "host_contract", _contract),
    Kind("system", "system", "", _system),
    Kind("hardware", "identity", "", _hardware, also=("cpu",)),
    Kind(
        "package",
        "packages",
        "libvirt",
        lambda evidence: {n: v or ABSENT for n, v in evidence.packages.items()},
        tells_absence=True,
    ),
    Kind(
        "file",
        "files",
        "host_contract",
        lambda evidence: {p: _file(state) for p, state in evidence.files.items()},
        tells_absence=True,
    ),
    Kind("module", "kernel", "kernel_modules", _modules),
    Kind("option", "kernel", "kernel_modules", _options),
    Kind("parameter", "kernel", "kernel_modules", _parameters),
    Kind("blacklist", "kernel", "kernel_modules", lambda evidence: _one(_list(evidence.kernel.blacklisted))),
    Kind("cmdline", "kernel", "kernel_modules", _cmdline, also=("system",)),
    Kind(
        "cmdline-next-boot",
        "kernel",
        "kernel_modules",
        lambda evidence: _one(_arguments(evidence.kernel.next_boot.cmdline)),
    ),
    Kind("kvm-node", "kvm", "", _node),
    Kind(
        "qemu", "qemu", "qemu_kvm", lambda e: {"binary": e.qemu.binary or "absent", "firmware": _list(e.qemu.firmware)}
    ),
    Kind("unit", "libvirt", "libvirt", _units, also=("tuning", "guests")),
    Kind("unit-file", "libvirt", "", lambda e: {p: f"sha256 {digest}" for p, digest in e.libvirt.unit_files.items()}),
    Kind("hook", "libvirt", "", lambda e: {path: _file(state) for path, state in e.libvirt.hooks.items()}),
    Kind("setting", "libvirt", "libvirt", _settings, also=("guests",)),
    Kind("member", "members", "libvirt", _members),
    Kind("network", "network", "libvirt_networks", _networks),
    Kind("bridge", "network", "libvirt_networks", _bridges),
    Kind("pool", "storage", "libvirt_storage", lambda e: {name: _pool(pool) for name, pool in e.storage.pools.items()}),
    Kind("sysctl", "tuning", "host_tuning", _sysctls, also=("system",)),
    Kind("tuning", "tuning", "host_tuning", _tuning, also=("system",)),
    Kind("security", "security", "libvirt_security", _confinement),
    Kind("firewall", "security", "libvirt_security", _firewall),
    Kind("listener", "security", "libvirt_remote", lambda e: {str(port): "open" for port in e.security.tcp}),
    Kind(
        "certificate",
        "remote",
        "libvirt_remote",
        lambda e: {p: _certificate(found) for p, found in e.remote.certificates.items()},
    ),
    Kind("autostart", "guests", "libvirt_guests", lambda e: _one(_list(e.guests.autostart))),
)
_BY_NAME = {kind.name: kind for kind in KINDS}
