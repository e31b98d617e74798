"""libvirt's daemons as processes: whether what runs is what is installed, and what they complained about."""

import glob
import json
import os
import re
from typing import Any, Dict, List, Optional

from . import files, shell
from .libvirt import FAMILY, MODULAR

# lines of /proc/PID/maps: libvirt.so.0.9000.0, libvirt/connection-driver/libvirt_driver_qemu.so, /usr/sbin/libvirtd
GONE = re.compile(r"/(libvirt[^/\n]*\.so[^/\n]*|libvirtd|virt[a-z]+d) \(deleted\)$", re.MULTILINE)
MOST_LINES = 50


def look(libvirt: Dict[str, Any]) -> Dict[str, Any]:
    """Once a client was there, for the section `libvirt`: an idle daemon is not running before."""
    pids = running()
    name = next(iter(sorted(pids, key=lambda name: name not in FAMILY)), "")
    program, gone = shell.which(name), replaced(pids)
    found: Dict[str, Any] = {"daemons": pids, "replaced": gone, "journal": None, "silent": unheard(pids)}
    if name in FAMILY and gone == [] and runs(pids[name], program):
        found["installed"] = libvirt.get("version", "")
    if program and not found.get("installed"):
        found["installed"] = installed(shell.run([program, "--version"]).out)
    if not found["silent"] and os.geteuid() == 0:
        answer = shell.run(question(pids), 15)
        found["journal"] = None if answer.code else messages(answer.out)
        found["silent"] = " ".join(answer.err.split()) if answer.code else ""
    return found


def running(proc: str = "/proc") -> Dict[str, int]:
    """Daemon -> process, of root and outside of containers: libvirt in a container is another libvirt."""
    found = {}
    for folder in glob.glob(proc + "/[0-9]*"):
        name = files.text(folder + "/comm").strip()
        try:
            ours = name in FAMILY + MODULAR and os.stat(folder).st_uid == 0 and namespace(folder) in here(proc)
        except OSError:  # gone meanwhile
            continue
        if ours:
            found[name] = int(os.path.basename(folder))
    return found


def runs(pid: int, program: str, proc: str = "/proc") -> bool:
    """The program is the very file that the process runs, so that its version is the one that answers."""
    try:
        return os.path.samefile("{}/{}/exe".format(proc, pid), program)
    except OSError:
        return False


def namespace(folder: str) -> str:
    """That of its processes; "" where it is not ours to see."""
    try:
        return os.readlink(folder + "/ns/pid")
    except OSError:
        return ""


def here(proc: str) -> List[str]:
    return ["", namespace(proc + "/self")]


def replaced(pids: Dict[str, int], proc: str = "/proc") -> Optional[List[str]]:
    """Daemons that run a program or library of libvirt of which the file is gone; None where that cannot be seen."""
    found = []
    for name, pid in sorted(pids.items()):
        try:
            maps = files.content("{}/{}/maps".format(proc, pid), 4 << 20)
        except OSError:
            return None
        if GONE.search(maps):
            found.append(name)
    return found


def installed(said: str) -> str:
    """ "libvirtd (libvirt) 9.0.0"."""
    version = re.search(r"\(libvirt\) (\d[\w.]*)", said)
    return version.group(1) if version else ""


def unheard(pids: Dict[str, int]) -> str:
    """Why there is no journal of theirs to be read."""
    if not shell.which("journalctl"):
        return "there is no journalctl"
    return "" if pids else "no daemon of libvirt runs here"


def question(pids: Dict[str, int]) -> List[str]:
    """Errors of the processes that run now: a restart settles what was before."""
    words = ["journalctl", "-b", "-q", "--no-pager", "-o", "json", "--output-fields=MESSAGE", "-p", "err"]
    words += ["-n", str(MOST_LINES)]
    for name, pid in sorted(pids.items()):
        words += ["_SYSTEMD_UNIT={}.service".format(name), "_PID={}".format(pid), "+"]
    return words[:-1]


def messages(said: str) -> List[str]:
    """One line each. journalctl(1): what is no text comes as a list of bytes."""
    found = []
    for line in said.splitlines():
        try:
            message = json.loads(line).get("MESSAGE")
            text = bytes(message).decode("utf-8", "replace") if isinstance(message, list) else message
        except (ValueError, TypeError, AttributeError):
            continue
        if isinstance(text, str) and text.strip():
            found.append(" ".join(text.split()))
    return found
