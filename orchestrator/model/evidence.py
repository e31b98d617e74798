"""What one host said about itself in one collection: no opinions."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from orchestrator.model.bounds import Count, Document, Names, Number, Short, Table, Text

__all__ = [
    "System",
    "CpuKind",
    "Firmware",
    "Cpu",
    "Module",
    "NextBoot",
    "Kernel",
    "Node",
    "Execution",
    "Speed",
    "OpenAs",
    "Kvm",
    "Accel",
    "Qemu",
    "Unit",
    "Libvirt",
    "NumaNode",
    "Memory",
    "Iommu",
    "Daemons",
    "PoolUse",
    "Volume",
    "Space",
    "Pool",
    "Storage",
    "Network",
    "Route",
    "RunningNetwork",
    "Link",
    "Networks",
    "FileState",
    "Process",
    "Firewall",
    "Security",
    "Certificate",
    "Peer",
    "Sasl",
    "Remote",
    "Guest",
    "GuestsPolicy",
    "Windows",
    "Hugepages",
    "Sysctl",
    "Tuning",
    "Identity",
    "ContractSlot",
    "Clock",
    "Cgroups",
    "Runner",
    "Limits",
    "Leaks",
    "Disk",
    "Upkeep",
    "Evidence",
]


class System(msgspec.Struct, frozen=True):
    """Which machine answered."""

    hostname: Short = ""
    os_id: Short = ""  # ID of os-release(5)
    os_version: Short = ""  # VERSION_ID
    os_like: Names = ()  # ID_LIKE
    os_name: Short = ""  # PRETTY_NAME
    arch: Short = ""  # uname -m
    kernel: Short = ""  # uname -r
    boot_id: Short = ""
    container: Short = ""  # as `systemd-detect-virt --container` names it, "" on a machine
    virtual: Short = ""  # as `systemd-detect-virt --vm` names it, "" on bare metal
    uid: Number = -1  # effective user of the collector; 0 or most answers are missing
    python: Short = ""


class CpuKind(msgspec.Struct, frozen=True):
    """Processors that are alike."""

    cpus: Text = ""  # such as 0-63,128-191
    id: Short = ""  # vendor, family, model and stepping; on ARM implementer, part, variant and revision
    microcode: Short = ""  # revision, "" where the kernel tells none
    lacks: Names = ()  # flags that other processors of this machine have


class Firmware(msgspec.Struct, frozen=True):
    """What tells whether the firmware leaves virtualization to the kernel."""

    registers: Table = {}  # value of IA32_FEATURE_CONTROL or VM_CR, such as 0x5 -> processors; {} where unreadable
    log: Literal["", "whole", "part"] = ""  # how much of the kernel's log since the boot was read, "" for nothing
    complaint: Text = ""  # the line in which the kernel says that the firmware has it off


class Cpu(msgspec.Struct, frozen=True):
    """What /proc/cpuinfo and /sys/devices/system/cpu say. 256 processors that are alike are one kind."""

    vendor: Short = ""
    model: Short = ""
    threads: Number = 0
    flags: Names = ()  # of any processor, only those that virtualization and the baselines are about
    kinds: Annotated[tuple[CpuKind, ...], msgspec.Meta(max_length=16)] = ()
    kind_count: Number = 0
    hybrid: Table = {}  # core, atom, lowpower -> processors, where the kernel tells types of cores apart
    present: Text = ""
    online: Text = ""
    smt: Short = ""  # on, off, forceoff, notsupported; "" where the kernel does not tell
    old_microcode: Text = ""  # the kernel's own word, "" before Linux 6.16
    firmware: Firmware = Firmware()


class Module(msgspec.Struct, frozen=True):
    """One kernel module: now, and whether this kernel could load it."""

    state: Literal["loaded", "builtin", "absent"] = "absent"
    available: bool = False  # in modules.dep or modules.builtin of the running kernel
    params: Table = {}  # /sys/module/NAME/parameters
    users: Number = 0  # guests and open devices; a module that has one cannot be unloaded


class NextBoot(msgspec.Struct, frozen=True):
    """What the bootloader will start when nobody is at the console."""

    source: Short = ""  # the file that says so, "" where nothing is known
    kernel: Short = ""  # release, "" where the name of the file does not tell
    cmdline: Text = ""
    required_by: Names = ()  # packages that ask for a reboot


class Kernel(msgspec.Struct, frozen=True):
    """Modules and arguments: live, and as the next boot will have them."""

    modules: Annotated[dict[Short, Module], msgspec.Meta(max_length=256)] = {}
    configured_options: Annotated[dict[Short, Table], msgspec.Meta(max_length=256)] = {}  # modprobe.d
    load_at_boot: Names = ()  # modules-load.d and /etc/modules
    blacklisted: Names = ()
    cmdline: Text = ""
    next_boot: NextBoot = NextBoot()
    lockdown: Short = ""
    can_load: bool = False  # CAP_SYS_MODULE and not in a container
    devices: Table = {}  # node of a module that is here -> errno of opening it, "" when it opens
    hypervisors: Names | None = None  # others than KVM: modules, and xen for its dom0; None where none could be seen


class Node(msgspec.Struct, frozen=True):
    """/dev/kvm as a file."""

    exists: bool = False
    character: bool = False
    major: Number = 0
    minor: Number = 0
    mode: Number = 0
    owner: Short = ""
    group: Short = ""
    errno: Short = ""  # of opening it read-write as the collector's user; "" when that worked


class Execution(msgspec.Struct, frozen=True):
    """Twenty bytes of guest code, run through the KVM ioctls with a random nonce."""

    outcome: Literal["works", "broken", "skipped"] = "skipped"
    step: Short = ""  # the last step begun: open, version, create_vm, memory, create_vcpu, registers, run, compare
    errno: Short = ""
    exit_reason: Number | None = None  # of KVM_RUN, when it was not the expected one
    detail: Text = ""
    duration_ms: float = 0.0


class Speed(msgspec.Struct, frozen=True):
    """Whether the guest's instructions were executed by the processor or emulated one by one."""

    outcome: Literal["hardware", "emulated", "unknown"] = "unknown"
    loop_ms: float = 0.0
    iterations: Number = 0
    emulated_instructions: Number | None = None  # insn_emulation of KVM_GET_STATS_FD, where the kernel has it
    detail: Text = ""


class OpenAs(msgspec.Struct, frozen=True):
    """Opening /dev/kvm as the user that QEMU runs as."""

    user: Short = ""
    group: Short = ""
    errno: Short = ""
    tried: bool = False


class Kvm(msgspec.Struct, frozen=True):
    """The hypervisor of the running kernel, from the file to the executing guest."""

    registered: bool = False  # kvm is in /proc/misc: it found a processor that it can use, wherever the node is
    node: Node = Node()
    api_version: Number | None = None
    execution: Execution = Execution()
    speed: Speed = Speed()
    open_as: OpenAs = OpenAs()
    capabilities: Annotated[dict[Short, Number], msgspec.Meta(max_length=64)] = {}  # of KVM_CHECK_EXTENSION
    users: Annotated[dict[Short, OpenAs], msgspec.Meta(max_length=32)] = {}  # of the contract
    sev: bool = False  # /dev/sev is a device


class Accel(msgspec.Struct, frozen=True):
    """QEMU without a machine, asked over QMP whether it uses KVM."""

    outcome: Literal["works", "broken", "skipped"] = "skipped"
    user: Short = ""  # as whom it ran, "" for the collector's own
    version: Short = ""
    enabled: bool | None = None  # of query-kvm
    detail: Text = ""  # why there is no answer
    duration_ms: float = 0.0


class Qemu(msgspec.Struct, frozen=True):
    """The emulator and what it needs beside it."""

    binary: Short = ""
    version: Short = ""
    error: Text = ""
    accelerators: Names = ()  # `-accel help`
    img: Short = ""  # path of qemu-img
    firmware: Names = ()  # names of the descriptors in /usr/share/qemu/firmware
    swtpm: Short = ""  # path
    swtpm_version: Short = ""
    accel: Accel = Accel()


class Unit(msgspec.Struct, frozen=True):
    """One systemd unit, in the words of `systemctl show`."""

    load: Short = ""  # LoadState: loaded, not-found, masked
    active: Short = ""  # ActiveState
    enabled: Short = ""  # UnitFileState


class Libvirt(msgspec.Struct, frozen=True):
    """The daemons, and whether one of them answers."""

    units: Annotated[dict[Short, Unit], msgspec.Meta(max_length=128)] = {}
    unit_files: Annotated[dict[Text, Short], msgspec.Meta(max_length=256)] = {}  # that change them -> SHA-256
    hooks: Annotated[dict[Text, FileState], msgspec.Meta(max_length=64)] = {}  # scripts that the daemons run as root
    version: Short = ""  # of the daemon that answered
    host_uuid: Short = ""  # by which it tells hosts apart when guests move
    connected: bool = False
    error: Text = ""  # why not connected
    answer_ms: float = 0.0  # how long the answer took, the start of an idle daemon included
    domain_types: Names = ()  # types that the capabilities offer for the host's own architecture
    confined_by: Names = ()  # security models of the capabilities: selinux, apparmor, dac, none
    settings: Annotated[dict[Short, Table], msgspec.Meta(max_length=64)] = {}  # file -> key -> value, comments dropped
    stale: Names = ()  # daemons whose configuration is newer than their start


class NumaNode(msgspec.Struct, frozen=True):
    """Processors and the memory that is next to them."""

    cpus: Text = ""
    memory_mib: Number = 0


class Memory(msgspec.Struct, frozen=True):
    """The host's memory. None is what the kernel does not tell."""

    total_mib: Number | None = None
    available_mib: Number | None = None
    hugepages_mib: Number = 0  # reserved, so not available
    swap_mib: Number | None = None
    swap_free_mib: Number | None = None
    zswap: bool = False
    overcommit: Short = ""  # vm.overcommit_memory: 0 guessed, 1 always, 2 never beyond the limit
    committed_mib: Number | None = None
    commit_limit_mib: Number | None = None
    stalled_percent: float | None = None  # of the last minute, in which every process waited for memory
    failed_kib: Number | None = None  # that the kernel took out of use
    controllers: Number = 0  # that count errors
    corrected: Number = 0  # errors since the boot
    uncorrected: Number = 0
    failing: Names = ()  # memory modules with uncorrected errors, as far as they have names
    nodes: Annotated[dict[Short, NumaNode], msgspec.Meta(max_length=256)] = {}


class Iommu(msgspec.Struct, frozen=True):
    """Whether devices can be handed to guests, and which are."""

    units: Number = 0
    groups: Number = 0
    handed_out: Annotated[dict[Short, Names], msgspec.Meta(max_length=256)] = {}
    """Groups with a device for guests -> "ADDRESS DRIVER" of each device in it, without bridges."""


class Daemons(msgspec.Struct, frozen=True):
    """libvirt's daemons as processes, once one of them was asked."""

    daemons: Annotated[dict[Short, Number], msgspec.Meta(max_length=64)] = {}  # those that run -> process
    replaced: Names | None = None  # those whose program or libraries are no longer there; None: not seen
    installed: Short = ""  # version of the program that would be started
    journal: Names | None = None  # errors of these processes; None: not read
    silent: Text = ""  # why there is no journal to be read


class PoolUse(msgspec.Struct, frozen=True):
    """A file that the QEMU user was given in a pool's folder, as libvirt would, wrote and read back. It is gone."""

    outcome: Literal["works", "broken", "hangs", "skipped"] = "skipped"
    user: Short = ""
    step: Short = ""  # the last step begun: folder, create, give, enter, open, write, read
    errno: Short = ""
    direct: bool | None = None  # such a file opens past the page cache; None: not tried


class Volume(msgspec.Struct, frozen=True):
    """A small volume that libvirt made in a pool, and deleted."""

    outcome: Literal["works", "broken", "skipped"] = "skipped"
    step: Short = ""  # create, delete
    detail: Text = ""


class Space(msgspec.Struct, frozen=True):
    """A file system. Inodes are 0 where it makes them as it needs them, None where nobody looked."""

    capacity_mib: Number | None = None
    available_mib: Number | None = None
    inodes: Number | None = None
    inodes_free: Number | None = None


class Pool(msgspec.Struct, frozen=True):
    """A storage pool that the contract names, in libvirt's words."""

    defined: bool = False
    active: bool = False
    autostart: bool = False
    configured: Table = {}  # facts of its XML: place -> value, without what changes by itself
    live: Table = {}  # what the active pool was started with
    use: PoolUse = PoolUse()
    owner: Short = ""  # of its folder
    group: Short = ""
    mode: Number | None = None
    capacity_mib: Number | None = None  # of the file system where volumes are files, else what libvirt says
    available_mib: Number | None = None
    inodes: Number | None = None
    inodes_free: Number | None = None
    label: Short = ""  # of SELinux
    volume: Volume = Volume()


class Storage(msgspec.Struct, frozen=True):
    """The storage pools that the contract names."""

    error: Text = ""  # why libvirt told nothing about them
    pools: Annotated[dict[Short, Pool], msgspec.Meta(max_length=256)] = {}
    images: Space | None = None  # where libvirt puts disks when nothing is declared; None: there is no such folder


class Network(msgspec.Struct, frozen=True):
    """A network of libvirt. Its XML is in one spelling, "" where it is not defined or does not run."""

    active: bool = False
    autostart: bool = False
    configured: Document = ""
    live: Document = ""


class Route(msgspec.Struct, frozen=True):
    """A route of the host's main table."""

    destination: Short
    device: Short = ""
    gateway: bool = False  # behind a router, and not on the link itself


class RunningNetwork(msgspec.Struct, frozen=True):
    """A network of libvirt that runs, declared or not, and what it is made of."""

    mode: Short = ""  # isolated, nat, route, open, bridge, private, vepa, passthrough, hostdev
    bridge: Short = ""
    mtu: Number = 0  # that was asked for
    subnets: Names = ()  # address of the host and prefix
    dhcp: bool = False
    dns: bool = False
    overlaps: Annotated[tuple[Route, ...], msgspec.Meta(max_length=64)] = ()  # routes of others to its addresses
    dnsmasq: Number = 0  # its process, 0 for none
    answers: Names = ()  # addresses on which that answers DNS
    leases: bool = False  # it waits for DHCP
    rules: Names | None = None  # of libvirt's that are in force: forward, masquerade; None: not looked at


class Link(msgspec.Struct, frozen=True):
    """A bridge, or what is at one."""

    mtu: Number = 0
    up: bool = False
    carrier: bool = False
    tap: bool = False  # of a guest
    ports: Names = ()


class Networks(msgspec.Struct, frozen=True):
    """The networks that the contract names and libvirt knows."""

    networks: Annotated[dict[Short, Network], msgspec.Meta(max_length=128)] = {}
    error: Text = ""  # why libvirt did not tell
    bridges: Annotated[dict[Short, Names], msgspec.Meta(max_length=64)] = {}  # of the contract, that are there -> ports
    running: Annotated[dict[Short, RunningNetwork], msgspec.Meta(max_length=64)] | None = None  # None: not read
    links: Annotated[dict[Short, Link], msgspec.Meta(max_length=2048)] = {}  # bridges of networks and contract, ports
    forwarding: Table = {}  # ipv4, ipv6: 1 where packets are forwarded
    bridge_nf: Table = {}  # bridge-nf-call-*, empty where br_netfilter is not loaded
    wildcards: Names = ()  # programs that answer DNS on every address of the host
    firewall_error: Text = ""  # why the rules were not read


class FileState(msgspec.Struct, frozen=True):
    """A file that the contract names, or a hook of libvirt's."""

    exists: bool = False
    link: Text = ""  # where a symbolic link in its place leads; all else is told of what is there
    sha256: Short = ""
    mode: Number = 0
    owner: Short = ""
    group: Short = ""


class Process(msgspec.Struct, frozen=True):
    """A QEMU that runs, as the kernel sees it."""

    pid: Number
    name: Short = ""  # of the guest
    user: Short = ""
    uid: Number = -1
    binary: Short = ""  # /proc/PID/exe, which tells when the file was removed or replaced
    label: Short = ""  # of SELinux or AppArmor, "" without either
    sandboxed: bool = False  # the kernel filters its system calls, and more of them than those of process 1


class Firewall(msgspec.Struct, frozen=True):
    """The rules of ours that are live, in the words of the contract."""

    backend: Short = ""  # whose rules were asked for, "" for none
    sets: Annotated[dict[Short, Names], msgspec.Meta(max_length=64)] = {}
    rules: Names = ()
    unit: Short = ""  # UnitFileState of what loads them at boot
    closed_by: Names = ()  # chains of others that drop by their policy what reaches the host
    ufw_installed: bool = False
    ufw_active: bool = False
    ufw: Names = ()  # "PORTS SOURCE" of what it lets in
    error: Text = ""


class Security(msgspec.Struct, frozen=True):
    """What keeps guests apart, and who can reach libvirt."""

    selinux: Short = ""  # enforcing, permissive, "" for none
    apparmor: bool = False
    booleans: Table = {}  # those the contract names: on, off
    guests: Annotated[tuple[Process, ...], msgspec.Meta(max_length=1024)] = ()
    sockets: Annotated[dict[Short, FileState], msgspec.Meta(max_length=64)] = {}  # through which guests can be changed
    asks: Table = {}  # daemon -> auth_unix_rw, "" where its file does not say
    polkit: bool = False
    tcp: Annotated[tuple[Number, ...], msgspec.Meta(max_length=64)] = ()  # ports of libvirt that others can reach
    qemu_conf: Table | None = None  # what it says of confinement; None where it cannot be read
    firewall: Firewall = Firewall()


class Certificate(msgspec.Struct, frozen=True):
    """A certificate with its key and its CA, as one program reads them."""

    error: Text = ""  # why a handshake with them on both ends failed, "" when it did not
    sha256: Short = ""  # fingerprint
    subject: Text = ""
    names: Annotated[tuple[Text, ...], msgspec.Meta(max_length=256)] = ()  # that it is valid for
    not_before_s: Number = 0  # since the epoch
    not_after_s: Number = 0
    key_mode: Number = 0
    key_owner: Short = ""
    ca_sha256: Short = ""  # of the text of the CA's file, without white space around it


class Peer(msgspec.Struct, frozen=True):
    """A host that was asked over TLS, from this one."""

    error: Text = ""  # why its libvirt cannot be used from here
    sha256: Short = ""  # fingerprint of the certificate that it showed


class Sasl(msgspec.Struct, frozen=True):
    """How libvirt asks for passwords, and of whom."""

    settings: Table = {}  # mech_list and sasldb_path, as the SASL library finds them when a daemon starts
    database: FileState = FileState()
    users: Names = ()  # of the database, without their realm
    unread: Text = ""  # why the users are not known
    asks: Names = ()  # what the daemon wants of who has a certificate: none, sasl, polkit
    mechanisms: Names = ()  # that the daemon offers
    knows: bool | None = None  # whether the daemon finds the first user of the contract, None where it was not asked
    silent: Text = ""  # why the daemon told less


class Remote(msgspec.Struct, frozen=True):
    """What the TLS of the contract is in truth."""

    certificates: Annotated[dict[Short, Certificate], msgspec.Meta(max_length=32)] = {}  # by its path
    peers: Annotated[dict[Short, Peer], msgspec.Meta(max_length=32)] = {}  # by name, this host itself among them
    sasl: Sasl | None = None  # None where no SASL is promised


class Guest(msgspec.Struct, frozen=True):
    """A transient libvirt domain. Unusable: what should be booted boots nowhere, so nothing was learned."""

    outcome: Literal["works", "broken", "skipped", "unusable"] = "skipped"
    depth: Short = ""  # firmware, uefi, alpine or file
    domain_type: Short = ""  # kvm or qemu
    step: Short = ""  # the last milestone: image, create, those of the depth, poweroff
    milestones: Annotated[dict[Short, float], msgspec.Meta(max_length=16)] = {}  # step -> ms since the start
    said: Short = ""  # the guest about itself, on its serial line
    detail: Text = ""
    leftovers: Names = ()  # what could not be removed
    duration_ms: float = 0.0


class GuestsPolicy(msgspec.Struct, frozen=True):
    """What happens to guests when the host starts and stops."""

    settings: Table = {}  # of libvirt-guests' file: key -> value, those that the contract names
    unit: Unit = Unit()
    defined: Names = ()  # guests that the contract names and that exist
    autostart: Names = ()  # those of them that start with the host


class Windows(msgspec.Struct, frozen=True):
    """What libvirt offers guests, Windows among them, in the words of its domcapabilities for a machine q35."""

    error: Text = ""  # why libvirt did not tell
    machine: Short = ""  # such as pc-q35-7.2
    firmware: Names = ()  # that can be selected: bios, efi
    secure: Names = ()  # of the loader: yes, no
    enrolled: Names = ()  # firmware descriptors with Microsoft's keys
    tpm_models: Names = ()
    tpm_backends: Names = ()
    tpm_versions: Names = ()
    tells_hyperv: bool = False  # libvirt says something about enlightenments
    hyperv: Names = ()
    cpu_modes: Names = ()  # that are supported: host-passthrough, host-model, maximum, custom
    drivers: Short = ""  # path of virtio-win's ISO image


class Hugepages(msgspec.Struct, frozen=True):
    """Pages of one size, of one node or of all."""

    pages: Number = 0  # that stay reserved; surplus ones are not counted
    free: Number = 0
    mounted: Short = ""  # where guests get them from


class Sysctl(msgspec.Struct, frozen=True):
    """One setting of the kernel."""

    live: Text | None = None  # None where the kernel does not have it, or its module is not loaded
    next_boot: Text | None = None  # of sysctl.d, the last that speaks of it


class Tuning(msgspec.Struct, frozen=True):
    """Memory and processors, as far as the contract speaks of them: now, and after the next boot."""

    hugepages: Annotated[dict[Short, Hugepages], msgspec.Meta(max_length=64)] = {}  # "2M", or "2M@0" of node 0
    thp: Table = {}  # enabled, defrag: what is selected
    ksm_run: Short = ""  # 0 off, 1 on, 2 off and nothing merged; "" where the contract has no word for it
    ksm_sharing: Number = 0  # pages that are merged
    sysctls: Annotated[dict[Short, Sysctl], msgspec.Meta(max_length=2048)] = {}
    governors: Table = {}  # governor -> the processors that have it; empty without frequency scaling
    tuned_profile: Short = ""  # that tuned was told to use
    units: Annotated[dict[Short, Unit], msgspec.Meta(max_length=64)] = {}  # ours, ksm and tuned
    unit_enabled: bool | None = None  # ours, that writes at boot; None where there is none
    at_boot: Table = {}  # file of /sys -> what our unit will write to it, {} when it is not enabled
    iommus: Number = 0
    iommu_groups: Number = 0
    isolated: Short = ""
    nohz_full: Short = ""


class Identity(msgspec.Struct, frozen=True):
    """What should be this host's alone, and what it is made of; for comparing hosts, and a host with itself."""

    machine: Short = ""  # digest of the machine id, "" where there is none
    host_keys: Annotated[tuple[Short, ...], msgspec.Meta(max_length=16)] = ()  # "ssh-ed25519 SHA256:..."
    flags: Annotated[tuple[Short, ...], msgspec.Meta(max_length=1024)] = ()  # all that /proc/cpuinfo names
    memory_mib: Number = 0  # that the machine has; 0 where the kernel does not tell it in blocks
    interfaces: Annotated[dict[Short, Short], msgspec.Meta(max_length=256)] = {}  # with hardware -> address and driver
    cards: Annotated[dict[Short, Names], msgspec.Meta(max_length=512)] = {}  # PCI address -> names, () with a guest


class ContractSlot(msgspec.Struct, frozen=True):
    """/etc/kvmfleet/contract.json as it was found; the text is decoded by the judge's side."""

    text: Annotated[str, msgspec.Meta(max_length=262144)] = ""
    error: Text = ""  # "" when the file was read, "absent" when there is none


class Clock(msgspec.Struct, frozen=True):
    """How right the kernel takes its clock to be, and what it counts time with."""

    max_error_ms: float | None = None
    source: Short | None = None
    sources: Names = ()  # that the kernel would take


class Cgroups(msgspec.Struct, frozen=True):
    """The control groups out of which guests get theirs."""

    hierarchy: Short | None = None  # unified, hybrid, legacy, "" where none is mounted
    controllers: Names | None = None  # of the root of cgroup v2; None without it


class Runner(msgspec.Struct, frozen=True):
    """A libvirt daemon or a guest's QEMU, and what the kernel lets it have. A limit of -1 is none."""

    pid: Count = 0
    name: Short = ""  # of the guest, or of the daemon
    guest: bool = False
    files: Count | None = None  # that are open
    files_max: Count | None = None
    memlock_max: Count | None = None  # bytes
    raises_limits: bool = False  # it may raise its own, and those of a guest (CAP_SYS_RESOURCE)
    tasks: Count | None = None  # of its unit
    tasks_max: Count | None = None
    tasks_refused: Count | None = None  # since the unit was started
    controllers: Names | None = None  # of its unit
    replaced: Names | None = None  # libraries that it has in memory, and that are not on the disk any more
    listens: Names = ()  # "0.0.0.0:5900", without TLS and for everybody


class Limits(msgspec.Struct, frozen=True):
    """What the whole kernel has in use, and how much there can be."""

    files: Count | None = None
    files_max: Count | None = None
    threads: Count | None = None
    threads_max: Count | None = None
    pid_max: Count | None = None
    aio: Count | None = None  # requests that asynchronous disk input and output has reserved
    aio_max: Count | None = None
    inotify: Count | None = None  # instances of root
    inotify_max: Count | None = None


class Leaks(msgspec.Struct, frozen=True):
    """Through what a guest could learn about another one, or about the host."""

    vulnerabilities: Table | None = None  # of the processor -> the kernel's words; None where it does not tell
    smt: bool | None = None  # active; None where the kernel does not tell
    ksm_run: Short | None = None  # "" without KSM
    ksm_sharing: Count | None = None  # pages


class Disk(msgspec.Struct, frozen=True):
    """A local file system of the host."""

    size_mib: Count
    free_mib: Count  # for those who are not root
    inodes: Count = 0  # 0 where the file system makes them as it needs them
    inodes_free: Count = 0
    read_only: bool = False


class Upkeep(msgspec.Struct, frozen=True):
    """What wears off with time."""

    failed_units: Names | None = None
    disks: Annotated[dict[Short, Disk], msgspec.Meta(max_length=16)] | None = None  # by their mount points
    kernels: Names | None = None  # releases that could be booted
    tainted: Count | None = None  # /proc/sys/kernel/tainted
    oom_kills: Count | None = None  # since boot


class Evidence(msgspec.Struct, frozen=True):
    """What one host said about itself in one collection. No opinions."""

    schema: Number
    collected_at_s: float  # seconds since the epoch, the host's clock
    duration_ms: float
    asked_at_s: float = 0.0  # the controller's clock, noted by the controller; 0 where it did not
    heard_at_s: float = 0.0
    system: System = System()
    cpu: Cpu = Cpu()
    kernel: Kernel = Kernel()
    kvm: Kvm = Kvm()
    qemu: Qemu = Qemu()
    libvirt: Libvirt = Libvirt()
    daemons: Daemons = Daemons()
    storage: Storage = Storage()
    network: Networks = Networks()
    security: Security = Security()
    remote: Remote = Remote()
    windows: Windows = Windows()
    guest: Guest = Guest()
    tuning: Tuning = Tuning()
    memory: Memory = Memory()
    iommu: Iommu = Iommu()
    guests: GuestsPolicy = GuestsPolicy()
    packages: Table = {}  # those the contract names: name -> version, "" when not installed
    files: Annotated[dict[Short, FileState], msgspec.Meta(max_length=512)] = {}
    members: Annotated[dict[Short, Names], msgspec.Meta(max_length=64)] = {}  # group -> users, contract's groups
    identity: Identity = Identity()
    contract: ContractSlot = ContractSlot()
    clock: Clock = Clock()
    cgroups: Cgroups = Cgroups()
    processes: Annotated[tuple[Runner, ...], msgspec.Meta(max_length=1024)] | None = None  # None where it was not root
    limits: Limits = Limits()
    leaks: Leaks = Leaks()
    upkeep: Upkeep = Upkeep()
    errors: Table = {}  # section -> why the collector could not fill it
