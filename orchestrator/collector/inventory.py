"""Packages, files and groups that the contract names."""

import grp
import os
import pwd
import re
import stat
from typing import Any, Dict, List

from . import files, shell
from .contract import Contract

# Each prints what it knows and exits 1 where one of the names is not installed.
MANAGERS = (
    ("dpkg-query", ["-W", "-f", "${Package} ${db:Status-Status} ${Version}\n"], r"^(\S+) installed (\S+)$"),
    ("rpm", ["-q", "--qf", "%{NAME} %{VERSION}-%{RELEASE}\n"], r"^(\S+) ([^\s-]+-\S+)$"),
    ("pacman", ["-Q"], r"^(\S+) (\S+)$"),
    ("apk", ["info", "-e", "-v"], r"^(\S+)-(\d\S*-r\d+)$"),
)


def packages(contract: Contract) -> Dict[str, str]:
    """Name -> version, "" where it is not installed, from one call to the first package manager found."""
    names = [name for name in contract.names("packages") if re.match(r"[A-Za-z0-9][\w.+:@-]*$", name)]
    for command, options, pattern in MANAGERS:
        if names and shell.which(command):
            answer = shell.run([command, *options, *names], 15)
            versions = dict(re.findall(pattern, answer.out, re.MULTILINE))
            return {name: versions.get(name, "") for name in names}
    return dict.fromkeys(names, "")


def states(contract: Contract) -> Dict[str, Any]:
    return {path: state(path) for path in contract.names("files") if path.startswith("/")}


def state(path: str) -> Dict[str, Any]:
    try:
        info = os.stat(path)
    except OSError:
        return {"exists": False}
    return {
        "exists": True,
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
    """Group -> users. Those it lists, and of the contract's users those whose primary group it is."""
    found = {}
    users = [*contract.names("libvirt.users"), contract.text("qemu.user")]
    for name in sorted({contract.text("libvirt.group"), contract.text("qemu.group")} - {""}):
        try:
            group = grp.getgrnam(name)
        except KeyError:
            continue
        found[name] = sorted(set(group.gr_mem) | {user for user in users if user and _primary(user) == group.gr_gid})
    return found


def _primary(user: str) -> int:
    try:
        return pwd.getpwnam(user).pw_gid
    except KeyError:
        return -1
