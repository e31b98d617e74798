"""What a host has of memory, processors and services, and how its files and commands are touched."""

from __future__ import annotations

import glob
import os
import re
import shutil
from typing import Any, NamedTuple

MM = "/sys/kernel/mm"
NODES = "/sys/devices/system/node"
CPUS = "/sys/devices/system/cpu"
KSM_RUN = f"{MM}/ksm/run"
THP = {key: f"{MM}/transparent_hugepage/{key}" for key in ("enabled", "defrag")}
SERVICES = ("ksm.service", "ksmtuned.service", "tuned.service")


class TuningError(Exception):
    """What cannot be done, and what to do about it."""


class Host(NamedTuple):
    """Where this touches the host; tests put something else there. `run` gives an exit code, output and complaint."""

    root: str = ""
    run: Any = None
    which: Any = shutil.which

    def read(self, path: str) -> str:
        """The text of a file, "" where there is none."""
        try:
            with open(self.root + path) as stream:
                return stream.read()
        except (OSError, UnicodeDecodeError):
            return ""

    def exists(self, path: str) -> bool:
        return os.path.exists(self.root + path)

    def find(self, pattern: str) -> list[str]:
        return sorted(path[len(self.root) :] for path in glob.glob(self.root + pattern))

    def set(self, path: str, value: str) -> None:
        """One write to a file of /sys or /proc. Raises TuningError where the kernel says no."""
        try:
            with open(self.root + path, "w") as stream:
                stream.write(value + "\n")
        except OSError as error:
            raise TuningError(f"The kernel refuses {value} in {path}: {error.strerror}.") from error

    def write(self, path: str, text: str | None, mode: int = 0o644) -> None:
        """Whole or not at all. None removes the file."""
        if text is None:
            if self.exists(path):
                os.unlink(self.root + path)
            return
        os.makedirs(os.path.dirname(self.root + path), 0o755, exist_ok=True)
        with open(self.root + path + ".kvmfleet", "w") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(text)
        os.replace(stream.name, self.root + path)

    def call(self, *argv: str) -> str:
        """The output. Raises TuningError when the command complains."""
        code, out, complaint = self.run(list(argv))
        if code:
            raise TuningError(f"`{' '.join(argv)}` ended with {code}: {complaint.strip() or out.strip()}")
        return str(out)


def page_sizes(host: Host) -> dict[str, int]:
    """The sizes that this kernel offers, in the words of users -> KiB."""
    found = [int(path.rsplit("-", 1)[1][:-2]) for path in host.find(f"{MM}/hugepages/hugepages-*kB")]
    return {spelled(kib): kib for kib in sorted(found)}


def spelled(kib: int) -> str:
    """2048 is 2M."""
    for unit, factor in (("G", 1 << 20), ("M", 1 << 10)):
        if kib % factor == 0:
            return f"{kib // factor}{unit}"
    return f"{kib}K"


def pool(kib: int, node: Any) -> str:
    """The folder of the kernel's pages of a size, of one node or of all."""
    parent = MM if node is None else f"{NODES}/node{node}"
    return f"{parent}/hugepages/hugepages-{kib}kB"


def reserved(host: Host, folder: str) -> int:
    """How many pages stay reserved. Surplus ones go as soon as a guest that uses them ends."""
    count, surplus = (host.read(f"{folder}/{name}_hugepages").strip() for name in ("nr", "surplus"))
    return int(count or 0) - int(surplus or 0)


def memory_kib(host: Host, key: str, node: Any = None) -> int:
    """A line of /proc/meminfo, or of a node's."""
    text = host.read("/proc/meminfo" if node is None else f"{NODES}/node{node}/meminfo")
    found = re.search(rf"^(?:Node \d+ )?{key}:\s*(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0


def numbers(text: str) -> list[int]:
    """0-2,5 is 0, 1, 2 and 5. Raises ValueError."""
    found = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not re.fullmatch(r"\d+(-\d+)?", part) or int(last or first) < int(first) or int(last or first) > 65535:
            raise ValueError(part)
        found += range(int(first), int(last or first) + 1)
    return found


def units(host: Host) -> dict[str, dict[str, bool]]:
    """Those of SERVICES that the host has."""
    if not host.which("systemctl"):
        return {}
    properties = "--property=Id,LoadState,UnitFileState,ActiveState"
    found = {}
    for paragraph in host.call("systemctl", "show", properties, "--", *SERVICES).split("\n\n"):
        unit = dict(line.split("=", 1) for line in paragraph.splitlines() if "=" in line)
        if unit.get("LoadState") == "loaded":
            found[unit["Id"]] = {
                "enabled": unit.get("UnitFileState") == "enabled",
                "active": unit.get("ActiveState") == "active",
            }
    return found


def selected(text: str) -> str:
    """The word that is chosen of [always] madvise never, or what a plain file says."""
    chosen = re.search(r"\[([\w+-]+)\]", text)
    return chosen[1] if chosen else " ".join(text.split())


def sysctl_path(key: str) -> str:
    """As sysctl(8): dots separate, unless a slash comes first; then a dot is part of a name."""
    first = re.search(r"[./]", key)
    swap = str.maketrans("./", "/.") if first and first[0] == "." else {}
    return "/proc/sys/" + key.translate(swap)


def own_share_kib(host: Host) -> int:
    """What the host itself needs: a tenth of its memory, 1 GiB at most."""
    return min(1 << 20, memory_kib(host, "MemTotal") // 10)


def amount(kib: int) -> str:
    return f"{kib / (1 << 20):.1f} GiB"
