"""Which machine this is: release, kernel, container or not."""

import os
import re
import sys
from typing import Any, Dict, Tuple

from . import cpu, files, shell

# Words of systemd-detect-virt(1); of any other it is asked which of both it is.
CONTAINERS = frozenset(("systemd-nspawn", "lxc-libvirt", "lxc", "openvz", "docker", "podman", "wsl", "proot", "pouch"))
MACHINES = frozenset(("", "kvm", "qemu", "amazon", "google", "apple", "vmware", "oracle", "microsoft", "xen", "bhyve"))


def look() -> Dict[str, Any]:
    release = os_release()
    inside, virtual = surroundings()
    return {
        "hostname": os.uname().nodename,
        "os_id": release.get("ID", ""),
        "os_version": release.get("VERSION_ID", ""),
        "os_like": release.get("ID_LIKE", "").split(),
        "os_name": release.get("PRETTY_NAME", ""),
        "arch": os.uname().machine,
        "kernel": os.uname().release,
        "boot_id": files.text("/proc/sys/kernel/random/boot_id").strip(),
        "container": inside,
        "virtual": virtual,
        "uid": os.geteuid(),
        "python": sys.version.split()[0],
    }


def os_release() -> Dict[str, str]:
    found = files.text("/etc/os-release") or files.text("/usr/lib/os-release")
    pairs = re.findall(r"""^([A-Z_]+)=(["']?)(.*)\2\s*$""", found, re.MULTILINE)
    return {key: value for key, _, value in pairs}


def surroundings(noted: str = "/run/systemd/container") -> Tuple[str, str]:
    """The kind of container and the hypervisor around us, "" for none.

    systemd-detect-virt(1) alone names the innermost. In a container it reads what systemd noted there; so do we.
    """
    if not shell.which("systemd-detect-virt"):
        return container(noted), "unknown" if "hypervisor" in cpu.flags() else ""
    kind = files.text(noted).strip()
    if kind not in CONTAINERS:
        kind = _detected()
        if kind in MACHINES:
            return "", kind
    return kind if kind in CONTAINERS else _detected("--container"), _detected("--vm")


def container(noted: str) -> str:
    """The kind of container, by its marks; "" on a machine."""
    marks = {"docker": "/.dockerenv", "podman": "/run/.containerenv"}
    environment = files.text("/proc/1/environ").split("\0")
    named = [entry[len("container=") :] for entry in environment if entry.startswith("container=")]
    named += [kind for kind, path in sorted(marks.items()) if os.path.exists(path)]
    return (files.text(noted).strip() or (named[0] if named else ""))[:64]


def _detected(*option: str) -> str:
    # exits 1 and prints "none" where there is nothing, systemd-detect-virt(1)
    answer = shell.run(["systemd-detect-virt", *option], 5).out.strip()
    return "" if answer == "none" else answer
