"""Which machine this is: release, kernel, container or not."""

import os
import re
import sys
from typing import Any, Dict

from . import cpu, files, shell


def look() -> Dict[str, Any]:
    release = os_release()
    return {
        "hostname": os.uname().nodename,
        "os_id": release.get("ID", ""),
        "os_version": release.get("VERSION_ID", ""),
        "os_like": release.get("ID_LIKE", "").split(),
        "os_name": release.get("PRETTY_NAME", ""),
        "arch": os.uname().machine,
        "kernel": os.uname().release,
        "boot_id": files.text("/proc/sys/kernel/random/boot_id").strip(),
        "container": container(),
        "virtual": virtual(),
        "uid": os.geteuid(),
        "python": sys.version.split()[0],
    }


def os_release() -> Dict[str, str]:
    found = files.text("/etc/os-release") or files.text("/usr/lib/os-release")
    pairs = re.findall(r"""^([A-Z_]+)=(["']?)(.*)\2\s*$""", found, re.MULTILINE)
    return {key: value for key, _, value in pairs}


def container() -> str:
    """The kind of container, or an empty string on a machine."""
    if shell.which("systemd-detect-virt"):
        return _detected("--container")
    marks = {"docker": "/.dockerenv", "podman": "/run/.containerenv"}
    environment = files.text("/proc/1/environ").split("\0")
    named = [entry[len("container=") :] for entry in environment if entry.startswith("container=")]
    named += [kind for kind, path in sorted(marks.items()) if os.path.exists(path)]
    return (files.text("/run/systemd/container").strip() or (named[0] if named else ""))[:64]


def virtual() -> str:
    """The hypervisor below us, or an empty string on bare metal."""
    if shell.which("systemd-detect-virt"):
        return _detected("--vm")
    return "unknown" if "hypervisor" in cpu.flags() else ""


def _detected(option: str) -> str:
    # exits 1 and prints "none" where there is nothing, systemd-detect-virt(1)
    answer = shell.run(["systemd-detect-virt", option], 5).out.strip()
    return "" if answer == "none" else answer
