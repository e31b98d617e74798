"""The provider `vm`: hosts are QEMU machines with kernels of their own. Needs no root."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import re
import shutil
import socket
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from ipaddress import IPv4Network
from pathlib import Path
from typing import Literal

import msgspec

from orchestrator import paths
from orchestrator.errors import LabError
from orchestrator.lab import (
    accelerator,
    access,
    apt,
    debs,
    disks,
    images,
    prerequisites,
    processes,
    qmp,
    record,
    seed,
    tree,
)
from orchestrator.lab.accelerator import Accelerator
from orchestrator.lab.command import run
from orchestrator.lab.record import LOOPBACK, Lab, LabHost
from orchestrator.lab.spec import IMAGE, MOST_HOSTS, LabSpec, Progress

__all__ = ["Vm"]

PROGRAM = "qemu-system-x86_64"
OLDEST = (6, 0)
LOCKS_PAGES = (8, 1)
"""From here on QEMU translates no code that another of its threads is just writing ("accel/tcg: Always lock pages
before translation"). Before, a processor may keep an int3 that the kernel patched in for a moment, and loops for ever:
Linux patches its scheduler whenever the first guest begins or the last one ends. One processor does not do that to
itself, and several that share a thread do not either, but the guests in such a host get their timers far too late."""
MEMORY_MIB = 2048
CPUS = 2

_TCG_MIB = 1024  # QEMU keeps that much translated code; a smaller buffer is thrown away and filled again all the time
_OVERHEAD_MIB = 150  # of a QEMU besides its guest's memory
_HOST_MIB = 2560  # what a host writes until it is proven: packages, their lists, logs
_IMAGE_MIB = 1536  # while an image is built
_PORTS = range(22001, 23000)

_NAT = """[Match]
MACAddress={mac}

[Network]
DHCP=ipv4
LinkLocalAddressing=no
IPv6AcceptRA=no
"""
_LAN = """[Match]
MACAddress={mac}

[Network]
Address={address}
LinkLocalAddressing=no
IPv6AcceptRA=no
"""
# Of QEMU's user networking: the machine that runs it, and its way to that machine's name servers.
_OUTSIDE, _RESOLVER = "10.0.2.2", "nameserver 10.0.2.3\n"


class Vm:
    """Hosts with kernels of their own, each in a QEMU of the user who made the lab."""

    limits = "Each host has a kernel of its own; one that runs in software (TCG) takes some ten times as long."

    def require(self, folder: Path) -> None:
        """Needs x86, the packages, and a QEMU that is not too old."""
        if platform.machine() != "x86_64":
            raise LabError(
                f"Virtual machines are made on x86_64 so far, and this is {platform.machine()}.",
                hint="Make a lab of containers: kvmfleet lab up --provider container",
            )
        prerequisites.require("vm")
        if (version := _version()) < OLDEST:
            found, wanted = (".".join(map(str, numbers)) for numbers in (version, OLDEST))
            raise LabError(
                f"QEMU {found} is too old for a lab, which needs {wanted} or newer.",
                hint="Upgrade it, or make a lab of containers: kvmfleet lab up --provider container",
            )

    def fit(self, folder: Path, spec: LabSpec, lab: Lab | None, waiting: int) -> None:
        """An image that can be had, memory and disk for the hosts that do not run yet, and room for a socket's name."""
        if spec.image and lab is None:  # later only a new host needs it
            disks.refuse(spec.image, spec.sha256)
        longest = folder / spec.name / "hosts" / f"{spec.name}-{MOST_HOSTS}" / "qmp"
        if len(os.fsencode(longest)) > qmp.LONGEST_PATH:
            raise LabError(
                f"{folder} has too long a name: a lab makes sockets below it.",
                hint="Set KVMFLEET_STATE_DIR to a shorter path.",
            )
        each = (spec.memory_mib or (lab.memory_mib if lab else MEMORY_MIB)) + _OVERHEAD_MIB
        each += _TCG_MIB if _chosen(spec.accelerator or (lab.accelerator if lab else "auto")).name == "tcg" else 0
        free_mib = _available_mib()
        if waiting * each > free_mib:
            raise LabError(
                f"{waiting} hosts need {waiting * each} MiB of memory, {each} each, and {free_mib} are available.",
                hint="Ask for fewer hosts (--hosts) or smaller ones (--memory), or end what uses the memory.",
            )
        for place, wanted in ((folder, waiting * _HOST_MIB), (paths.cache(), _IMAGE_MIB if waiting else 0)):
            free_mib = shutil.disk_usage(_existing(place)).free >> 20
            if wanted > free_mib:
                raise LabError(
                    f"{place} has {free_mib} MiB free, and {wanted} are needed.",
                    hint="Make room, or let KVMFLEET_STATE_DIR and KVMFLEET_CACHE_DIR name another place.",
                )

    def shaped(self, lab: Lab, spec: LabSpec) -> Lab:
        """Its hosts' memory and processors; those that run get them at their next start."""
        return msgspec.structs.replace(
            lab,
            memory_mib=spec.memory_mib or lab.memory_mib or MEMORY_MIB,
            cpus=spec.cpus or lab.cpus or _cpus(_chosen(spec.accelerator or lab.accelerator)),
            accelerator=spec.accelerator or lab.accelerator,
        )

    def alone(self) -> AbstractContextManager[None]:
        """Ports are shared by the labs of this machine."""
        return tree.hold(record.labs_folder(), wait=True)

    def image(self, system: str, spec: LabSpec, progress: Progress) -> str:
        """Built by mmdebstrap, or the user's own, when it is not in the cache."""
        if system != IMAGE:
            return disks.build(system, progress)
        if not spec.image:
            raise LabError(f"A host of lab {spec.name} is made from an image.", hint="Give --image once more.")
        return disks.take(spec.image, spec.sha256, progress)

    def connect(self, lab: Lab, progress: Progress) -> None:
        """Says how the hosts are executed; their network comes with them."""
        chosen = _chosen(lab.accelerator)
        if chosen.name == "tcg":
            progress(
                f"WARNING: the hosts run in software (TCG), for {chosen.why}. Expect 1 minute until they answer and "
                "10 minutes until they are proven"
            )
        elif not chosen.nested:
            progress(
                "WARNING: nested virtualization is off here, so the hosts will have no /dev/kvm. Switch it on: "
                "modprobe -r kvm_intel && modprobe kvm_intel nested=1 (or kvm_amd)"
            )

    def create(self, lab: Lab, host: LabHost, folder: Path) -> None:
        """An overlay on the image's disk, and a second disk that makes it this host."""
        base = folder / "base"
        _share(disks.disk(host.image), base)
        told = disks.info(base)
        size = max(int(told["virtual-size"]), disks.DISK_MIB << 20)
        backing = ("-b", base.name, "-F", str(told["format"]))  # which is meant to be beside the overlay
        run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(folder / "disk.qcow2"), str(size)])
        key = access.host_key(folder / "key", host.name)
        if host.system == IMAGE:
            _write_cloud_config(lab, host, key, folder / "seed")
        else:
            _write_seed(lab, host, key, folder / "seed.tar")

    def settled(self, lab: Lab, host: LabHost) -> LabHost:
        """With a port of this machine that nothing else has; the one that it had, while that is free."""
        taken = {other.port for known in record.labs() if known.id != lab.id for other in known.hosts}
        taken |= {other.port for other in lab.hosts if other.name != host.name}
        wishes = (port for port in (host.port, *_PORTS) if port and port not in taken and _is_free(port))
        if (port := next(wishes, None)) is None:
            raise LabError(
                f"No port from {_PORTS[0]} to {_PORTS[-1]} is free for {host.name}'s ssh.",
                hint="See who has them: ss -ltnp",
            )
        return msgspec.structs.replace(host, port=port)

    def start(self, lab: Lab, host: LabHost) -> None:
        """Starts its QEMU, which detaches itself once the machine is made."""
        run([PROGRAM, *_machine(lab, host, _chosen(lab.accelerator))])

    def started_at_s(self, lab: Lab, host: LabHost) -> float | None:
        """From the start of its QEMU."""
        found = processes.find(PROGRAM, _control(lab, host))
        return found[0].started_at_s() if found else None

    def patience_s(self, lab: Lab) -> float:
        """A boot takes 10 seconds in hardware and a minute in software, longer when all hosts do it at once."""
        return 120.0 if _chosen(lab.accelerator).name == "kvm" else 600.0

    def stop(self, lab: Lab, hosts: Sequence[LabHost], *, grace_s: float) -> None:
        """The power button, then SIGTERM, which is a pulled plug to the machine."""
        until = time.monotonic() + grace_s
        for host in hosts:
            if processes.find(PROGRAM, _control(lab, host)):
                with contextlib.suppress(LabError):
                    qmp.execute(_socket(lab, host), "system_powerdown")
        while time.monotonic() < until and any(processes.find(PROGRAM, _control(lab, host)) for host in hosts):
            time.sleep(0.2)
        processes.end((p for host in hosts for p in processes.find(PROGRAM, _control(lab, host))), grace_s=2)

    def traces(self, lab: Lab) -> tuple[str, ...]:
        """Running hosts; all else is in the lab's folder."""
        return tuple(f"running host {host.name}" for host in lab.hosts if self.started_at_s(lab, host) is not None)

    def clean(self, lab: Lab) -> None:
        """What killed image builds left."""
        images.clean()

    def harvest(self, lab: Lab) -> int:
        """Packages from the hosts' apt caches into their images' caches, by ssh. A silent host has none to give.

        In software that would take minutes, for what the archive sends in seconds.
        """
        if _chosen(lab.accelerator).name == "tcg":
            return 0
        total = 0
        for host in lab.hosts:
            if disks.index(host.image).is_dir():
                with contextlib.suppress(LabError):
                    total += _harvest(lab, host)
        return total


_chosen = functools.cache(accelerator.choose)


def _cpus(chosen: Accelerator) -> int:
    """Of a host, unless the user wants another number."""
    return min(CPUS, os.cpu_count() or 1) if chosen.name == "kvm" or _version() >= LOCKS_PAGES else 1


def _threads() -> Literal["multi", "single"]:
    """One for each processor, or one for all of them by turns."""
    return "multi" if _version() >= LOCKS_PAGES else "single"


def _version() -> tuple[int, int]:
    found = re.search(r"version (\d+)\.(\d+)", run([PROGRAM, "--version"]))
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _available_mib() -> int:
    """MemAvailable of proc_meminfo(5), which counts what the kernel would give up."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) >> 10 if found else 0


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _socket(lab: Lab, host: LabHost) -> Path:
    return lab.host_folder(host) / "qmp"


def _control(lab: Lab, host: LabHost) -> str:
    """The argument by which a host's process is known."""
    return f"unix:{_socket(lab, host)},server=on,wait=off"


def _mac(lab: Lab, host: LabHost, card: int) -> str:
    """In the range that QEMU uses for its own; unique in the lab, and unlikely to be another lab's."""
    return f"52:54:00:{lab.id[:2]}:{card:02x}:{host.number:02x}"


def _group(lab: Lab) -> str:
    """A multicast address for administrative use (RFC 2365), and a port, of the lab's own."""
    number = int(lab.id, 16)
    return f"239.{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}:{20000 + number % 10000}"


def _machine(lab: Lab, host: LabHost, chosen: Accelerator) -> list[str]:
    """The arguments of its QEMU. cache=unsafe: a lab is thrown away, not recovered."""
    folder = lab.host_folder(host)
    if host.system == IMAGE:
        second = f"file=fat:{folder}/seed,format=vvfat,label=CIDATA"
    else:
        second = f"file={folder}/seed.tar,format=raw"
    speed = {
        "kvm": ("-accel", "kvm", "-cpu", "host"),
        "tcg": ("-accel", f"tcg,thread={_threads()},tb-size={_TCG_MIB}", "-cpu", "max"),
    }
    return [
        *("-name", f"guest={host.name}"),
        *("-machine", "q35"),
        *speed[chosen.name],
        *("-smp", str(lab.cpus)),
        *("-m", str(lab.memory_mib)),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-device", "VGA"),  # nobody looks at it, but a bootloader that wants a screen hangs without
        *("-device", "virtio-rng-pci"),
        *("-drive", f"if=none,id=disk,file={folder}/disk.qcow2,format=qcow2,cache=unsafe,discard=unmap"),
        *("-device", "virtio-blk-pci,drive=disk,bootindex=0"),
        *("-drive", f"if=none,id=seed,readonly=on,{second}"),
        *("-device", "virtio-blk-pci,drive=seed,serial=seed"),
        *("-netdev", f"user,id=nat,hostfwd=tcp:{LOOPBACK}:{host.port}-:22"),
        *("-device", f"virtio-net-pci,romfile=,netdev=nat,mac={_mac(lab, host, 0)}"),
        *("-netdev", f"socket,id=lan,mcast={_group(lab)},localaddr={LOOPBACK}"),
        *("-device", f"virtio-net-pci,romfile=,netdev=lan,mac={_mac(lab, host, 1)}"),
        *("-serial", f"file:{lab.console(host)}"),
        *("-qmp", _control(lab, host)),
        "-daemonize",
    ]


def _share(base: Path, target: Path) -> None:
    """A host has its image to itself, so the cache can go at any time. A link costs nothing, and a copy little."""
    try:
        os.link(base, target)
    except OSError:
        run(["cp", "--reflink=auto", "--sparse=always", str(base), str(target)], timeout_s=600)


def _write_seed(lab: Lab, host: LabHost, key: Path, target: Path) -> None:
    networks = {
        "10-nat": _NAT.format(mac=_mac(lab, host, 0)),
        "20-lan": _LAN.format(mac=_mac(lab, host, 1), address=_lan_address(lab, host)),
    }
    # a proxy of this machine's own
    to_archive = re.sub(r"//(127\.0\.0\.1|localhost)\b", f"//{_OUTSIDE}", apt.options())
    planted = seed.files(lab, host, key, networks=networks, resolver=_RESOLVER, apt=to_archive)
    packages = ((f"{debs.ARCHIVES}/{file.name}", file) for file in sorted(images.debs(host.image).glob("*.deb")))
    seed.archive(planted, packages, target)


def _write_cloud_config(lab: Lab, host: LabHost, key: Path, folder: Path) -> None:
    networks = {
        "nat": {"match": {"macaddress": _mac(lab, host, 0)}, "dhcp4": True},
        "lan": {"match": {"macaddress": _mac(lab, host, 1)}, "addresses": [_lan_address(lab, host)]},
    }
    folder.mkdir(mode=0o700)
    for name, text in seed.cloud_config(lab, host, key, networks).items():
        tree.write(folder / name, text, mode=0o600)


def _lan_address(lab: Lab, host: LabHost) -> str:
    return f"{host.address}/{IPv4Network(lab.subnet).prefixlen}"


def _harvest(lab: Lab, host: LabHost) -> int:
    """The new packages of one host, fetched as files that nobody trusts yet; `debs` keeps what the index knows."""
    have = {file.name for file in images.debs(host.image).glob("*.deb")}
    ssh = ("ssh", "-F", str(lab.ssh_config), "-o", "BatchMode=yes", host.name)
    listed = run([*ssh, f"ls /{debs.ARCHIVES}"]).split()
    new = [name for name in listed if debs.NAME.fullmatch(name) and name not in have]
    if not new:
        return 0
    with tree.scratch(lab.folder / "harvest") as root:
        into = root / debs.ARCHIVES
        into.mkdir(parents=True)
        sources = [f"{host.name}:/{debs.ARCHIVES}/{name}" for name in new]
        run(["scp", "-q", "-F", str(lab.ssh_config), *sources, str(into)], timeout_s=600)
        return len(debs.harvest(root, images.debs(host.image), disks.index(host.image)))
