"""The provider `container`: hosts are systemd-nspawn containers that boot a real systemd."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from orchestrator import paths
from orchestrator.errors import LabError
from orchestrator.lab import access, apt, cgroups, debs, images, network, prerequisites, processes, seed, subnet, tree
from orchestrator.lab.command import run
from orchestrator.lab.record import Lab, LabHost
from orchestrator.lab.spec import LabSpec, Progress

__all__ = ["Container"]

_DEVICES = {"kvm": "kvm", "net/tun": "tun", "vhost-net": "vhost-net", "vhost-vsock": "vhost-vsock"}
"""Path under /dev to the name of our own node."""

_NETWORK = """[Match]
Name=host0

[Network]
Address={address}/24
Gateway={gateway}
LinkLocalAddressing=no
IPv6AcceptRA=no
"""

_NSPAWN = Path("/run/systemd/nspawn")

_INTO_GROUPS = 'while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs"; shift; done; shift; exec "$@"'
"""Moves the shell into control groups, then becomes the command after `--`."""

_REBOOT = 133
"""systemd-nspawn ends with it when the host wants to start again; see systemd-nspawn(1), --keep-unit."""

_AGAIN = f'log=$1; shift; exec > "$log" 2>&1 < /dev/null; while "$@"; [ $? -eq {_REBOOT} ]; do :; done'
"""Writes to a log, and runs the command after it until it ends otherwise than for a reboot."""


class Container:
    """Hosts that share this machine's kernel."""

    limits = "Containers share this machine's kernel: they cannot load modules or change the kernel and its arguments."

    def require(self, folder: Path) -> None:
        """Needs root, the packages, cgroup v2, and a file system on which device nodes work."""
        if os.uname().sysname != "Linux":
            raise LabError("Containers need Linux.", hint="Run kvmfleet lab on a Linux machine.")
        if os.geteuid() != 0:
            raise LabError(
                "Making containers needs root: they have their own network, devices and users.",
                hint="Run it with sudo, as root, or in a virtual machine.",
            )
        prerequisites.require("container")
        cgroups.hierarchies()
        _require_devices(folder)

    def fit(self, folder: Path, spec: LabSpec, lab: Lab | None, waiting: int) -> None:
        """They share this machine's memory, and it is said when the disk is full. They cannot be what a machine can."""
        if spec.image or spec.memory_mib or spec.cpus or spec.accelerator:
            raise LabError(
                "--image, --sha256, --memory, --cpus and --accel are about virtual machines.",
                hint="Add --provider vm, or leave them out.",
            )

    def shaped(self, lab: Lab, spec: LabSpec) -> Lab:
        """Nothing about it can be chosen."""
        return lab

    def alone(self) -> AbstractContextManager[None]:
        """Subnets, forwarding and firewalls are shared."""
        return network.machine()

    def image(self, system: str, spec: LabSpec, progress: Progress) -> str:
        """Built by mmdebstrap when it is not in the cache."""
        return images.build(system, progress)

    def connect(self, lab: Lab, progress: Progress) -> None:
        """A bridge of the lab's own."""
        network.connect(lab, progress)

    def create(self, lab: Lab, host: LabHost, folder: Path) -> None:
        """Copies the image and makes it this host. Nothing of it has run yet, so paths in it can be trusted."""
        root = folder / "root"
        tree.copy(images.root(host.image), root)
        networks = {"10-host0": _NETWORK.format(address=host.address, gateway=lab.gateway)}
        key = access.host_key(folder / "key", host.name)
        planted = seed.files(lab, host, key, networks=networks, resolver=subnet.resolver(), apt=apt.options())
        seed.plant(planted, root)
        debs.offer(images.debs(host.image), root)

    def settled(self, lab: Lab, host: LabHost) -> LabHost:
        """It needs nothing."""
        return host

    def start(self, lab: Lab, host: LabHost) -> None:
        """Boots it, detached from us."""
        folder = lab.host_folder(host)
        binds = _make_devices(folder / "dev", _group_id(images.root(host.image), "kvm"))
        argv = [
            "systemd-nspawn",
            "--quiet",
            "--boot",
            "--settings=no",
            "--register=no",
            "--keep-unit",
            "--console=read-only",
            "--link-journal=no",
            "--resolv-conf=off",
            "--timezone=off",
            f"--machine={_machine(lab, host)}",
            f"--hostname={host.name}",
            _directory(lab, host),
            f"--network-bridge={network.bridge(lab.id)}",
            *(["--suppress-sync=yes"] if _nspawn_version() >= 250 else []),
            *binds,
        ]
        unit = _unit(lab, host)
        if _has_systemd():
            _start_as_unit(unit, argv, lab.console(host))
        else:
            _start_detached(unit, argv, lab.console(host))

    def started_at_s(self, lab: Lab, host: LabHost) -> float | None:
        """From the start of its systemd-nspawn."""
        found = processes.find("systemd-nspawn", _directory(lab, host))
        return found[0].started_at_s() if found else None

    def patience_s(self, lab: Lab) -> float:
        """A boot takes some 5 seconds."""
        return 120.0

    def stop(self, lab: Lab, hosts: Sequence[LabHost], *, grace_s: float) -> None:
        """SIGTERM lets systemd-nspawn shut the host down; a killed one takes the host with it."""
        processes.end(
            (process for host in hosts for process in processes.find("systemd-nspawn", _directory(lab, host))),
            grace_s=grace_s,
        )
        for host in hosts:
            if not _has_systemd():
                cgroups.remove(_unit(lab, host))
            _sweep(lab, host)

    def traces(self, lab: Lab) -> tuple[str, ...]:
        """Running hosts, control groups and the network."""
        hosts = [f"running host {host.name}" for host in lab.hosts if self.started_at_s(lab, host) is not None]
        names = [] if _has_systemd() else [_unit(lab, host) for host in lab.hosts]
        left = [f"control group {group}" for name in names for group in cgroups.groups(name) if group.exists()]
        return (*hosts, *left, *network.traces(lab))

    def clean(self, lab: Lab) -> None:
        """The network, and what killed image builds left."""
        network.disconnect(lab)
        images.clean()

    def harvest(self, lab: Lab) -> int:
        """Packages from the hosts' apt caches into their images' caches."""
        made = [host for host in lab.hosts if lab.root(host).exists() and images.root(host.image).exists()]
        return sum(len(debs.harvest(lab.root(host), images.debs(host.image), images.root(host.image))) for host in made)


def _directory(lab: Lab, host: LabHost) -> str:
    """The argument by which a host's process is known."""
    return f"--directory={lab.root(host)}"


def _machine(lab: Lab, host: LabHost) -> str:
    """Also in the name of the host's interface here, vb-ID-NUMBER, which has the 15 characters that Linux allows."""
    return f"{lab.id}-{host.number}"


def _sweep(lab: Lab, host: LabHost) -> None:
    """Removes what a systemd-nspawn that was killed leaves in /run."""
    with contextlib.suppress(FileNotFoundError):
        tree_of = lab.root(host).stat()
        (_NSPAWN / "locks" / f"inode-{tree_of.st_dev}:{tree_of.st_ino}").unlink()
    with contextlib.suppress(FileNotFoundError):
        (_NSPAWN / "propagate" / _machine(lab, host)).rmdir()


def _unit(lab: Lab, host: LabHost) -> str:
    return f"kvmfleet-{lab.id}-{host.number}"


def _has_systemd() -> bool:
    return Path("/run/systemd/system").is_dir()  # sd_booted(3)


def _start_as_unit(unit: str, argv: Sequence[str], console: Path) -> None:
    """As a service, for the scope of a login session is not delegated to us."""
    console.unlink(missing_ok=True)
    again = (f"RestartForceExitStatus={_REBOOT}", f"SuccessExitStatus={_REBOOT}")
    properties = ("Delegate=yes", "KillMode=mixed", "TasksMax=infinity", *again, f"StandardOutput=append:{console}")
    run(
        [
            "systemd-run",
            "--quiet",
            "--collect",
            f"--unit={unit}",
            "--setenv=SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1",
            *(f"--property={value}" for value in (*properties, f"StandardError=append:{console}")),
            "--",
            *argv,
        ]
    )


def _start_detached(unit: str, argv: Sequence[str], console: Path) -> None:
    cgroups.remove(unit)  # left by a host that was killed
    groups = [str(group) for group in cgroups.make(unit)]
    shell = ["sh", "-c", _INTO_GROUPS, "sh", *groups, "--", "env", "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1", *argv]
    run(["setsid", "--fork", "sh", "-c", _AGAIN, "sh", str(console), *shell])


def _nspawn_version() -> int:
    found = re.match(r"systemd (\d+)", run(["systemd-nspawn", "--version"]))
    return int(found[1]) if found else 0


def _require_devices(folder: Path) -> None:
    """Raises LabError when a device node made in the folder does not work, as on a file system mounted nodev."""
    paths.private(folder)
    node = folder / ".node"
    node.unlink(missing_ok=True)
    try:
        os.mknod(node, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        node.open("rb").close()
    except OSError as e:
        raise LabError(
            f"Device nodes do not work in {folder} ({e.strerror}).",
            hint="Set KVMFLEET_STATE_DIR to a folder on a file system that is not mounted nodev.",
        ) from e
    finally:
        node.unlink(missing_ok=True)


def _make_devices(folder: Path, kvm_group: int) -> list[str]:
    """Makes nodes of the host's own, for a chmod in it must not reach this machine's; the arguments that bind them."""
    tree.remove(folder)
    folder.mkdir()
    binds = []
    for device, name in _DEVICES.items():
        original = Path("/dev") / device
        if original.exists():
            node = folder / name
            os.mknod(node, stat.S_IFCHR, original.stat().st_rdev)
            os.chown(node, 0, 0 if name == "tun" else kvm_group)
            node.chmod(0o666 if name == "tun" else 0o660)
            binds.append(f"--bind={node}:{original}")
    return binds


def _group_id(root: Path, group: str) -> int:
    """A group's number in an image."""
    for line in (root / "etc/group").read_text().splitlines():
        name, _, number, _ = line.split(":")
        if name == group:
            return int(number)
    raise LabError(f"The image in {root} has no group {group}.", hint="Remove it; lab up builds it again.")
