"""What a host was told to be."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from orchestrator.model.bounds import Document, Names, Number, Short, Table

__all__ = [
    "SCHEMA",
    "Profile",
    "ModuleWish",
    "FileWish",
    "LibvirtWish",
    "NetworkWish",
    "Confidential",
    "QemuWish",
    "PoolWish",
    "HugepagesWish",
    "TuningWish",
    "FirewallWish",
    "SecurityWish",
    "CertificateWish",
    "SaslWish",
    "RemoteWish",
    "GuestsWish",
    "Contract",
]

SCHEMA = 1
"""Version of Evidence and Contract. Raised when a field changes its meaning, not when one is added."""

Profile = Literal["lab", "production", "multi-tenant"]


class ModuleWish(msgspec.Struct, frozen=True):
    """What a module should be; `required` is false where the kernel need not have it."""

    required: bool = True
    options: Table = {}


class FileWish(msgspec.Struct, frozen=True):
    """What a managed file should be. An empty sha256 means that only its being there matters."""

    sha256: Short = ""
    mode: Number = 0o644
    owner: Short = "root"
    group: Short = "root"


class LibvirtWish(msgspec.Struct, frozen=True):
    """Which family of daemons, and how to reach it."""

    family: Literal["monolithic", "modular"] = "monolithic"
    uri: Short = "qemu:///system"
    sockets: Names = ()  # units that must be enabled and listening
    services: Names = ()  # units that must be enabled; they may be idle
    settings: Annotated[dict[Short, Table], msgspec.Meta(max_length=64)] = {}  # file -> key -> value
    group: Short = "libvirt"
    users: Names = ()


class NetworkWish(msgspec.Struct, frozen=True):
    """What a network of libvirt should be."""

    xml: Document = ""  # in one spelling
    active: bool = True
    autostart: bool = True


Confidential = Literal["sev", "sev-es", "sev-snp", "tdx"]
"""What keeps a guest's memory from its host."""


class QemuWish(msgspec.Struct, frozen=True):
    """The emulator that libvirt starts, and as whom."""

    binary: Short = ""
    img: Short = "qemu-img"
    user: Short = ""
    group: Short = "kvm"
    firmware: bool = True
    swtpm: bool = True
    windows: bool = False  # Windows guests are meant to run here
    cpu_baseline: Literal["", "x86-64-v2", "x86-64-v3", "x86-64-v4"] = ""  # that guests count on
    confidential: Annotated[tuple[Confidential, ...], msgspec.Meta(max_length=4)] = ()


class PoolWish(msgspec.Struct, frozen=True):
    """What a storage pool should be."""

    type: Short = ""
    path: Short = ""  # where its volumes appear
    files: bool = False  # they are files below the path
    facts: Table = {}  # of its XML: place -> value
    autostart: bool = True
    active: bool = True
    owner: Short = ""  # of its folder; "" where nothing was said
    group: Short = ""
    mode: Number | None = None


class HugepagesWish(msgspec.Struct, frozen=True):
    """Pages to reserve; of all nodes together where `node` is None."""

    size: Short
    pages: Number
    node: Number | None = None


class TuningWish(msgspec.Struct, frozen=True):
    """How memory and processors serve guests. What is empty is nobody's business."""

    hugepages: Annotated[tuple[HugepagesWish, ...], msgspec.Meta(max_length=64)] = ()
    thp: Table = {}
    ksm: Literal["", "disabled", "enabled", "ksmtuned"] = ""
    sysctls: Table = {}
    governor: Short = ""
    tuned_profile: Short = ""
    iommu: Literal["", "enabled", "passthrough"] = ""
    isolated_cpus: Short = ""


class FirewallWish(msgspec.Struct, frozen=True):
    """Who may reach which ports, in the words of Firewall."""

    backend: Short = ""  # nftables or firewalld, "" where ports are not guarded
    sets: Annotated[dict[Short, Names], msgspec.Meta(max_length=64)] = {}
    rules: Names = ()
    ufw: Names = ()  # where it is installed


class SecurityWish(msgspec.Struct, frozen=True):
    """How guests are confined, and who may reach libvirt."""

    svirt: Short = ""  # selinux, apparmor, none, "" where libvirt decides
    sandbox: bool = False
    socket_group: Short = ""  # that alone opens the sockets; "" as they are packaged
    plain_tcp: bool = False
    booleans: Table = {}
    firewall: FirewallWish = FirewallWish()


class CertificateWish(msgspec.Struct, frozen=True):
    """Where a program looks for its certificate, and who reads the key."""

    ca: Short
    certificate: Short
    key: Short
    owner: Short = "root"


class SaslWish(msgspec.Struct, frozen=True):
    """Who logs in with a password, and how; empty where nobody does."""

    mechanisms: Names = ()
    users: Names = ()
    configuration: Short = ""  # where the SASL library looks
    database: Short = ""


class RemoteWish(msgspec.Struct, frozen=True):
    """How other machines reach libvirt. Without a contract, and where only ssh is wanted, nothing is promised."""

    transports: Names = ()
    names: Names = ()  # that the certificates are for; the first is the host's own in the inventory
    peers: Names = ()  # that must answer this host
    sockets: Names = ()
    addresses: Names = ()  # to listen on; empty for all
    port: Number = 16514
    sasl: SaslWish = SaslWish()
    ca_sha256: Short = ""  # "" where the CA is not the fleet's
    certificates: Annotated[tuple[CertificateWish, ...], msgspec.Meta(max_length=32)] = ()


class GuestsWish(msgspec.Struct, frozen=True):
    """What happens to guests when the host starts and stops; empty where nothing was declared."""

    file: Short = ""  # where libvirt-guests reads its settings
    settings: Table = {}
    unit: Short = ""  # "" where there is no policy
    autostart: Names = ()


class Contract(msgspec.Struct, frozen=True):
    """What a host was told to be: written by the role host_contract, read back by the collector. Holds no secret."""

    schema: Number
    profile: Profile = "production"
    intent_digest: Short = ""  # "" when the playbook was run without the orchestrator
    platform: Short = ""  # the platform table that was used, e.g. Debian_12
    modules: Annotated[dict[Short, ModuleWish], msgspec.Meta(max_length=64)] = {}
    cmdline: Names = ()  # arguments that the kernel's command line has beside its own
    qemu: QemuWish = QemuWish()
    libvirt: LibvirtWish = LibvirtWish()
    pools: Annotated[dict[Short, PoolWish], msgspec.Meta(max_length=256)] = {}
    networks: Annotated[dict[Short, NetworkWish], msgspec.Meta(max_length=128)] = {}
    bridges: Annotated[dict[Short, Names], msgspec.Meta(max_length=64)] = {}  # of the host -> their ports
    tuning: TuningWish = TuningWish()
    security: SecurityWish = SecurityWish()
    remote: RemoteWish = RemoteWish()
    guests: GuestsWish = GuestsWish()
    packages: Names = ()
    files: Annotated[dict[Short, FileWish], msgspec.Meta(max_length=512)] = {}
