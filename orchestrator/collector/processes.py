"""The libvirt daemons and the QEMUs that run: what the kernel lets them have, and what they have."""

import functools
import glob
import os
import re
from typing import Any, Dict, List, Optional, Set

from . import files

QEMU = re.compile(r"/(?:qemu-system-\w+|qemu-kvm)(?: \(deleted\))?$")
DAEMON = re.compile(
    r"/(libvirtd|virt(?:qemu|network|nodedev|nwfilter|secret|storage|interface|proxy|log|lock)d)(?: \(deleted\))?$"
)
GUEST = re.compile(r"/machine-qemu[^/]*\.scope$|\.libvirt-qemu$")  # groups that libvirt made for a guest
OURS = re.compile(r"qemu|virt[a-z]*d$|libvirtd$")
UNIT = re.compile(r"(.*?\.(?:scope|service|libvirt-qemu))(?:/|$)")
LIBRARY = re.compile(r"^\S+ \S+ \S+ \S+ \S+ +(/(?:usr|lib)\S*\.so(?:\.[\w.+-]*)?) \(deleted\)$", re.MULTILINE)
CAP_SYS_RESOURCE = 1 << 24
CGROUPS = "/sys/fs/cgroup"
MOST = 1024
LISTEN = "0A"


def look(proc: str = "/proc", cgroups: str = CGROUPS) -> Optional[List[Dict[str, Any]]]:
    """None where others' processes cannot be looked at, so that nobody takes silence for none."""
    if os.geteuid() != 0:
        return None
    try:
        found = running(proc)
    except PermissionError:
        return None
    everywhere = listeners(proc) if "" in found.values() else {}
    described = [describe(proc, cgroups, pid, program, everywhere) for pid, program in sorted(found.items())[:MOST]]
    still = running(proc)  # what has ended meanwhile was described from what was left of it
    return [runner for runner in described if runner["pid"] in still]


def running(proc: str) -> Dict[int, str]:
    """Process -> program: the name of a daemon, "" for QEMU. Raises PermissionError where one is closed to us."""
    found = {}
    for folder in glob.glob(proc + "/[0-9]*"):
        try:
            path = os.readlink(folder + "/exe")
        except PermissionError:  # in some containers, of what runs with more than root's capabilities
            if OURS.match(files.text(folder + "/comm")):
                raise
            continue
        except OSError:  # a thread of the kernel, or gone meanwhile
            continue
        daemon = DAEMON.search(path)
        if daemon or QEMU.search(path):
            found[int(os.path.basename(folder))] = daemon.group(1) if daemon else ""
    return found


def describe(proc: str, cgroups: str, pid: int, program: str, everywhere: Dict[str, str]) -> Dict[str, Any]:
    folder = "{}/{}".format(proc, pid)
    cmdline = files.text(folder + "/cmdline", 65536).split("\0")
    limits = ceilings(files.text(folder + "/limits"))
    capable = re.search(r"^CapEff:\s*([0-9a-f]+)", files.text(folder + "/status"), re.MULTILINE)
    unit = cgroups + unit_of(files.text(folder + "/cgroup"))
    opened = descriptors(folder)
    return {
        "pid": pid,
        "name": program or guest_name(cmdline) or "process {}".format(pid),
        "guest": not program,
        "files": None if opened is None else len(opened),
        "files_max": limits.get("Max open files", (None, None))[0],
        "memlock_max": limits.get("Max locked memory", (None, None))[1],
        "raises_limits": bool(capable and int(capable.group(1), 16) & CAP_SYS_RESOURCE),
        "tasks": files.number(unit + "/pids.current"),
        "tasks_max": ceiling(unit + "/pids.max"),
        "tasks_refused": refused(files.text(unit + "/pids.events")),
        "controllers": words(unit + "/cgroup.controllers") if GUEST.search(unit) else None,
        "replaced": replaced(folder + "/maps"),
        "listens": [] if program else heard_by_all(cmdline, opened or [], everywhere),
    }


def guest_name(cmdline: List[str]) -> str:
    """As libvirt hands it over: -name guest=web,debug-threads=on."""
    given = [cmdline[i + 1] for i, option in enumerate(cmdline[:-1]) if option == "-name"]
    return re.sub(r"^guest=", "", given[0].split(",")[0]) if given else ""


def ceilings(text: str) -> Dict[str, Any]:
    """Name -> soft and hard limit of /proc/PID/limits; -1 is no limit."""
    rows = re.findall(r"^(Max [a-z ]+?)\s{2,}(\d{1,20}|unlimited)\s+(\d{1,20}|unlimited)", text, re.MULTILINE)
    return {
        name: tuple(-1 if value == "unlimited" else min(int(value), files.LARGEST) for value in pair)
        for name, *pair in rows
    }


def ceiling(path: str) -> Optional[int]:
    return -1 if files.text(path).strip() == "max" else files.number(path)


def refused(events: str) -> Optional[int]:
    """How often pids.events says that the limit was reached."""
    found = re.search(r"^max (\d{1,18})$", events, re.MULTILINE)
    return int(found.group(1)) if found else None


def unit_of(cgroup: str) -> str:
    """The unit's folder in cgroup v2. libvirt has more below it, of which some have fewer controllers by design."""
    path = re.search(r"^0::(/.*)$", cgroup, re.MULTILINE)
    unit = UNIT.match(path.group(1)) if path else None
    return unit.group(1) if unit else "/nowhere"


def words(path: str) -> Optional[List[str]]:
    try:
        return files.content(path).split()
    except OSError:
        return None


def replaced(maps: str) -> Optional[List[str]]:
    """Names of libraries that are in memory and were removed or replaced on the disk."""
    try:
        text = files.content(maps, 4 << 20)
    except OSError:
        return None
    return sorted({os.path.basename(path) for path in LIBRARY.findall(text)})[:64]


def descriptors(folder: str) -> Optional[List[str]]:
    """What its open files are: paths, or words such as socket:[4711]."""
    try:
        return readlinks(folder + "/fd")
    except OSError:
        return None


def readlinks(folder: str) -> List[str]:
    """Where the links in a folder lead. Raises OSError; one that is gone meanwhile is left out."""
    found = []
    for name in os.listdir(folder):
        try:
            found.append(os.readlink("{}/{}".format(folder, name)))
        except FileNotFoundError:
            pass
    return found


@functools.lru_cache(maxsize=4)
def sockets(path: str) -> str:
    """/proc/net/tcp or tcp6. The kernel walks through all its buckets for it, which takes 30 ms."""
    return files.text(path, 4 << 20)


def listeners(proc: str) -> Dict[str, str]:
    """Socket -> address and port of those that listen for everybody, on all of the host's addresses."""
    found = {}
    for name in ("tcp", "tcp6"):
        for line in sockets("{}/net/{}".format(proc, name)).splitlines()[1:]:
            fields = line.split()
            if len(fields) > 9 and fields[3] == LISTEN:
                where, _, port = fields[1].partition(":")
                if not where.strip("0"):
                    text = "[::]:{}" if name == "tcp6" else "0.0.0.0:{}"
                    found["socket:[{}]".format(fields[9])] = text.format(int(port, 16))
    return found


def heard_by_all(cmdline: List[str], opened: List[str], everywhere: Dict[str, str]) -> List[str]:
    """What a QEMU listens on for everybody without TLS."""
    safe = encrypted(cmdline)
    found = {everywhere[name] for name in opened if name in everywhere}
    return sorted(address for address in found if int(address.rpartition(":")[2]) not in safe)


def encrypted(cmdline: List[str]) -> Set[int]:
    """Ports on which QEMU speaks TLS alone: a VNC screen with credentials, and the tls-port of SPICE."""
    ports = set()
    for i, option in enumerate(cmdline[:-1]):
        value = cmdline[i + 1]
        display = re.match(r"[^,]*:(\d{1,5})(?:,|$)", value) if option == "-vnc" else None
        if display and ",tls-creds=" in value:
            ports.add(5900 + int(display.group(1)))
        if option == "-spice":
            ports.update(int(port) for port in re.findall(r"(?:^|,)tls-port=(\d{1,5})(?:,|$)", value))
    return ports
