"""Packages, files and groups that the contract names."""

import glob
import grp
import os
import pwd
import re
import stat
from typing import Any, Dict, List, Optional

from . import files, shell
from .contract import Contract

# Each prints what it knows and exits 1 where one of the names is not installed.
MANAGERS = (
    ("dpkg-query", ["-W", "-f", "${Package} ${db:Status-Status} ${Version}\n"], r"^(\S+) installed (\S+)$"),
    ("rpm", ["-q", "--qf", "%{NAME} %{VERSION}-%{RELEASE}\n"], r"^(\S+) ([^\s-]+-\S+)$"),
    ("pacman", ["-Q"], r"^(\S+) (\S+)$"),
    ("apk", ["info", "-e", "-v"], r"^(\S+)-(\d\S*-r\d+)$"),
)

MIGHTY = ("sudo", "wheel", "admin")  # whose members are root already where sudo is set up as distributions do


def packages(contract: Contract) -> Dict[str, str]:
    """Name -> version, "" where it is not installed, from one call to the first package manager found."""
    names = [name for name in contract.names("packages") if re.match(r"[A-Za-z0-9][\w.+:@-]*$", name)]
    listed = of_dpkg(names) if names and shell.which("dpkg-query") else None
    if listed is not None:
        return {name: listed.get(name, "") for name in names}
    for command, options, pattern in MANAGERS:
        if names and shell.which(command):
            answer = shell.run([command, *options, *names], 15)
            versions = dict(re.findall(pattern, answer.out, re.MULTILINE))
            return {name: versions.get(name, "") for name in names}
    return dict.fromkeys(names, "")


def of_dpkg(names: List[str], folder: str = "/var/lib/dpkg") -> Optional[Dict[str, str]]:
    """Name -> version of what is installed, from dpkg's own list, which dpkg-query reads in three times the time.

    None where that is not all: dpkg notes in files beside it what it is doing. Nor are architectures told apart.
    """
    status = files.text(folder + "/status", files.LARGE)
    if not status or len(status) >= files.LARGE or glob.glob(folder + "/updates/*") or ":" in "".join(names):
        return None
    found = {}
    for entry in status.split("\n\n"):
        head = entry.partition("\n")[0]
        if head.startswith("Package: ") and head[len("Package: ") :] in names:
            fields = dict(re.findall(r"^(Status|Version): (.*)$", entry, re.MULTILINE))
            if fields.get("Status", "").endswith(" installed"):
                found[head[len("Package: ") :]] = fields.get("Version", "")
    return found


def states(contract: Contract) -> Dict[str, Any]:
    return {path: state(path) for path in contract.names("files") if path.startswith("/")}


def state(path: str) -> Dict[str, Any]:
    try:
        info = os.stat(path)
        link = os.readlink(path) if os.path.islink(path) else ""
    except OSError:
        return {"exists": False}
    return {
        "exists": True,
        "link": link,
        "sha256": files.sha256(path),
        "mode": stat.S_IMODE(info.st_mode),
        "owner": user_name(info.st_uid),
        "group": group_name(info.st_gid),
    }


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def members(contract: Contract) -> Dict[str, List[str]]:
    """Group -> users. Those it lists, and of local and of the contract's users those whose primary group it is."""
    found = {}
    users = [*contract.names("libvirt.users"), contract.text("qemu.user")]
    primary = local_accounts(files.text("/etc/passwd", 1 << 20))
    primary.update((user, _primary(user)) for user in users if user)
    for name in sorted({contract.text("libvirt.group"), contract.text("qemu.group"), *MIGHTY} - {""}):
        try:
            group = grp.getgrnam(name)
        except KeyError:
            continue
        found[name] = sorted(set(group.gr_mem) | {user for user, gid in primary.items() if gid == group.gr_gid})
    return found


def local_accounts(passwd: str) -> Dict[str, int]:
    """User -> primary group. A directory is not asked for all its users."""
    rows = re.findall(r"^([^:#\n]+):[^:\n]*:\d+:(\d{1,10}):", passwd, re.MULTILINE)
    return {name: int(gid) for name, gid in rows}


def _primary(user: str) -> int:
    try:
        return pwd.getpwnam(user).pw_gid
    except KeyError:
        return -1
