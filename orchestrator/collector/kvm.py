"""The hypervisor of the running kernel: the file, the interface, a guest that executes, and how fast."""

import errno
import fcntl
import grp
import os
import pwd
import stat
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from . import child, files, inventory
from .contract import Contract

NODE = "/dev/kvm"
SEV = "/dev/sev"
GET_API_VERSION = 0xAE00
CHECK_EXTENSION = 0xAE03
CAPABILITIES = {
    "IRQCHIP": 0,
    "USER_MEMORY": 3,
    "SYNC_MMU": 16,
    "DESTROY_MEMORY_REGION_WORKS": 21,
    "IRQ_ROUTING": 25,
    "JOIN_MEMORY_REGIONS_WORKS": 30,
    "IRQFD": 32,
    "IOEVENTFD": 36,
    "INTERNAL_ERROR_DATA": 40,
    "MAX_VCPUS": 66,
    "SIGNAL_MSI": 77,
    "READONLY_MEM": 81,
    "IOEVENTFD_ANY_LENGTH": 122,
    "IMMEDIATE_EXIT": 136,
}
MOST_USERS = 16
USERS = ("libvirt-qemu", "qemu")


def look(contract: Contract, depth: str) -> Dict[str, Any]:
    found: Dict[str, Any] = {"node": node(), "open_as": open_as(contract)}
    found["registered"] = "kvm" in files.text("/proc/misc").split()
    found["api_version"], found["capabilities"] = interface() if not found["node"]["errno"] else (None, {})
    found["users"] = users(contract.names("libvirt.users"))
    found["sev"] = os.path.exists(SEV) and stat.S_ISCHR(os.stat(SEV).st_mode)
    found["execution"], found["speed"] = proof(depth, found["node"]["exists"])
    return found


def node() -> Dict[str, Any]:
    try:
        info = os.stat(NODE)
    except OSError as error:
        return {"exists": False, "errno": name(error)}
    return {
        "exists": True,
        "character": stat.S_ISCHR(info.st_mode),
        "major": os.major(info.st_rdev),
        "minor": os.minor(info.st_rdev),
        "mode": stat.S_IMODE(info.st_mode),
        "owner": inventory.user_name(info.st_uid),
        "group": inventory.group_name(info.st_gid),
        "errno": attempt(),
    }


def attempt(path: str = NODE) -> str:
    """The errno of opening a node, "" when it opens."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        return name(error)
    return ""


def name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error.errno))


def interface() -> Tuple[Optional[int], Dict[str, int]]:
    """The version, and what KVM_CHECK_EXTENSION says; a capability that it does not know is 0."""
    kvm = os.open(NODE, os.O_RDWR | os.O_CLOEXEC)
    try:
        version = fcntl.ioctl(kvm, GET_API_VERSION, 0)
        found = {name: fcntl.ioctl(kvm, CHECK_EXTENSION, number) for name, number in CAPABILITIES.items()}
    except OSError:  # not KVM's node: ENOTTY
        return None, {}
    finally:
        os.close(kvm)
    return version, found


def proof(depth: str, exists: bool) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """Execution and speed."""
    if depth == "none":
        return skipped("not asked for"), {"outcome": "unknown"}
    if not exists:
        return skipped("there is no " + NODE), {"outcome": "unknown"}
    if os.uname().machine != "x86_64":
        reason = "no proof is written for {} yet".format(os.uname().machine)
        return skipped(reason), {"outcome": "unknown", "detail": reason}
    from . import proof  # only now, with ctypes: a look does not need it

    return proof.both()


def skipped(reason: str) -> Dict[str, Any]:
    return {"outcome": "skipped", "detail": reason}


User = NamedTuple("User", [("name", str), ("uid", int), ("gid", int), ("groups", List[int])])


def qemu_user(contract: Contract) -> Optional[User]:
    """The user that QEMU runs as, with the group that libvirt gives it. None where there is none."""
    wanted, group = contract.text("qemu.user"), contract.text("qemu.group")
    for name in [wanted] if wanted else USERS:
        if _exists(pwd.getpwnam, name):
            return _user(name, group)
    return None


def _user(name: str, group: str = "") -> User:
    """A user with its groups, and with `group` for its first one where that exists."""
    found = pwd.getpwnam(name)
    gid = grp.getgrnam(group).gr_gid if _exists(grp.getgrnam, group) else found.pw_gid
    # as libvirt's virGetGroupList: the user's own primary group stays, which is kvm on Debian
    return User(name, found.pw_uid, gid, sorted({gid, *os.getgrouplist(name, found.pw_gid)}))


def as_user(user: User, job: Callable[[child.Report], Dict[str, Any]]) -> Tuple[Dict[str, Any], str]:
    """The answer of a child process with that user's id and groups, and why there is none."""

    def changed(report: child.Report) -> Dict[str, Any]:
        os.setgroups(user.groups)
        os.setgid(user.gid)
        os.setuid(user.uid)
        return job(report)

    answer, _, death = child.ask(changed, 3.0)
    return answer, death


def open_as(contract: Contract) -> Dict[str, Any]:
    """Open the node as the user that QEMU runs as, with the groups that libvirt gives it."""
    user = qemu_user(contract)
    if not user:
        wanted = contract.text("qemu.user")
        return {"user": wanted, "errno": "no such user", "tried": False} if wanted else {"tried": False}
    return _opened(user)


def users(names: List[str]) -> Dict[str, Any]:
    """Open the node as each of these users, with the groups that a login gives it."""
    missing = {"errno": "no such user", "tried": False}
    return {
        name: _opened(_user(name)) if _exists(pwd.getpwnam, name) else dict(missing, user=name)
        for name in names[:MOST_USERS]
    }


def _opened(user: User) -> Dict[str, Any]:
    answer, death = as_user(user, lambda _report: {"errno": attempt()})
    return {
        "user": user.name,
        "group": inventory.group_name(user.gid),
        "errno": answer.get("errno", death),
        "tried": bool(answer),
    }


def _exists(lookup: Callable[[str], Any], name: str) -> bool:
    try:
        lookup(name)
    except KeyError:
        return False
    return True
