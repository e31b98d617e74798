"""The storage pools that the contract names: what libvirt says of them, and whether QEMU's user can use them."""

import errno
import os
import re
import stat
import xml.etree.ElementTree as ElementTree
from typing import Any, Dict, List, Optional, Tuple

from . import child, inventory, kvm, shell
from .contract import Contract
from .libvirt import URI
from .limits import undisturbed

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*$")
VOLATILE = ("name", "uuid", "capacity", "allocation", "available")
OF_THE_FOLDER = ("permissions", "timestamps")
IMAGES = "/var/lib/libvirt/images"
FOREIGN = ("iscsi", "iscsi-direct", "mpath", "scsi", "disk")  # whose volumes are made by somebody else
O_TMPFILE = getattr(os, "O_TMPFILE", 0)
PATIENCE_S = 10.0  # of a folder; a file server that is alive may be busy


def look(contract: Contract, active: bool, libvirt: Dict[str, Any]) -> Dict[str, Any]:
    """The folders of all pools that the contract names, and meanwhile one call of virsh for all; without a pool,
    libvirt's own folder.

    `libvirt` is what was found of it: a daemon that does not answer, maybe because one of these folders does not, is
    not asked again.
    """
    wished = {name: wish for name, wish in contract.table("pools").items() if NAME.match(name)}
    if not wished:
        return {"images": space(IMAGES)}
    names = sorted(wished)[:256]
    user = kvm.qemu_user(contract)
    begun = {name: begin(wished[name], user) for name in names}
    client = [shell.which("virsh"), "-q", "-c", contract.text("libvirt.uri", URI)]
    found = asked(client, libvirt, names)
    known = found.pop("pools", {})
    answers = {name: dict(known.get(name, {}), **outcome(begun[name], user)) for name in names}
    for name, pool in answers.items() if active else ():
        if pool.get("active"):
            pool["volume"] = volume(client, name, pool["configured"].get("type", ""))
    return dict(found, pools=answers)


def asked(client: List[str], libvirt: Dict[str, Any], names: List[str]) -> Dict[str, Any]:
    """The pools as virsh tells them, or why it does not."""
    if not libvirt.get("connected"):
        return {"error": libvirt.get("error") or "libvirt was not reached"}
    try:
        answer = shell.run([*client, question(names)], 25)
    except OSError as error:
        return {"error": str(error)}
    if not answer.out.strip() and "failed to connect" in answer.err:
        return {"error": " ".join(answer.err.split())}
    return {"pools": pools(answer.out)}


def volume(client: List[str], pool: str, kind: str) -> Dict[str, str]:
    """Let libvirt make a small volume and delete it. Whatever happens in between, it is deleted."""
    if kind in FOREIGN:
        return {"outcome": "skipped", "detail": "volumes of a pool of type {} are made by somebody else".format(kind)}
    name, step = "kvmfleet-proof-" + os.urandom(6).hex(), "create"
    try:
        try:
            order(client, "vol-create-as", pool, name, "4M", "--format", "raw")
            step = "delete"
        finally:
            with undisturbed():
                order(client, "vol-delete", name, "--pool", pool, missing=step == "create")
    except OSError as error:
        return {"outcome": "broken", "step": step, "detail": str(error)}
    return {"outcome": "works", "step": step, "detail": ""}


def order(client: List[str], *words: str, missing: bool = False) -> None:
    """Raises OSError with libvirt's reason; that it knows no such volume is none where it may be `missing`."""
    answer = shell.run([*client, *words], 15)
    if answer.code != 0 and not (missing and "not found" in answer.err):
        raise OSError(" ".join(answer.err.split()).replace("error: ", ""))


def space(path: str) -> Optional[Dict[str, int]]:
    """Of the file system of a folder. In a child, which a file server that is gone holds for ever."""

    def job(report: child.Report) -> Dict[str, Any]:
        try:
            return left(path)
        except FileNotFoundError:
            return {"absent": True}

    answer = child.ask(job, 5.0)[0]
    return None if "absent" in answer else answer


def left(path: str) -> Dict[str, int]:
    """What is kept for root is not there for guests."""
    info = os.statvfs(path)
    return {
        "capacity_mib": info.f_blocks * info.f_frsize >> 20,
        "available_mib": info.f_bavail * info.f_frsize >> 20,
        "inodes": info.f_files,
        "inodes_free": info.f_favail,
    }


def label(path: str) -> str:
    """Of SELinux; "" where there is none."""
    try:
        return os.getxattr(path, "security.selinux").decode("utf-8", "replace").strip("\0")
    except OSError:
        return ""


def question(names: List[str]) -> str:
    """virsh goes on after a pool that is not there."""
    return "pool-list --all; " + "; ".join(
        "pool-dumpxml --inactive {0}; pool-dumpxml {0}".format(name) for name in names
    )


def pools(said: str) -> Dict[str, Dict[str, Any]]:
    """Name -> what the list and the two documents about it say."""
    table, _, _ = said.partition("<pool")
    found: Dict[str, Dict[str, Any]] = {}
    for name, state, autostart in re.findall(r"^ *(\S+) +(\w[\w ]*?) +(yes|no) *$", table, re.MULTILINE):
        found[name] = {"defined": True, "active": state == "active", "autostart": autostart == "yes"}
    for text in re.findall(r"<pool\b.*?</pool>", said, re.DOTALL):
        root = ElementTree.fromstring(text)
        pool = found.get(root.findtext("name") or "")
        if pool is None:
            continue
        pool["live" if "configured" in pool else "configured"] = facts(root)
        if pool["active"]:
            pool["capacity_mib"] = mib(root.findtext("capacity"))
            pool["available_mib"] = mib(root.findtext("available"))
    return found


def mib(text: Any) -> Any:
    return int(text) >> 20 if text and text.isdigit() else None


def facts(root: Any) -> Dict[str, str]:
    """What a pool is, without what changes by itself. plugins/module_utils/storage_pools.py does the same."""
    found = {"type": root.get("type", "")}
    for node in root:
        if node.tag not in VOLATILE:
            _walk(node, node.tag, found)
    return found


def _walk(node: Any, place: str, found: Dict[str, str]) -> None:
    text = (node.text or "").strip()
    if text:
        found[place] = text
    for key, value in node.attrib.items():
        found["{}@{}".format(place, key)] = value
    seen: Dict[str, int] = {}
    for inner in node:
        if place == "target" and inner.tag in OF_THE_FOLDER:
            continue
        number = seen[inner.tag] = seen.get(inner.tag, 0) + 1
        _walk(inner, "{}/{}{}".format(place, inner.tag, "[{}]".format(number) if number > 1 else ""), found)


def begin(wish: Any, user: Optional[kvm.User]) -> Optional[child.Started]:
    """Find out whose the folder is, and whether QEMU's user can use it. In a child: a file server that is gone never
    answers. None where there is nothing to find out."""
    path = wish.get("path") if isinstance(wish, dict) and wish.get("files") else None
    if not user or not isinstance(path, str) or not path.startswith("/") or "\0" in path:
        return None

    def job(report: child.Report) -> Dict[str, Any]:
        state: Dict[str, Any] = {}
        try:
            return dict(use(report, path, user, state), state=state)
        except OSError as error:
            return {"outcome": "broken", "errno": kvm.name(error), "state": state}

    return child.begin(job, PATIENCE_S)


def outcome(started: Optional[child.Started], user: Optional[kvm.User]) -> Dict[str, Any]:
    """What came of it."""
    if not user:
        return {"use": {"outcome": "skipped", "errno": "no user that QEMU could run as"}}
    if not started:
        return {}
    answer, step, death = child.finish(started)
    late = death in (child.LATE.format(started.timeout_s), child.STUCK)
    answer = answer or {"outcome": "hangs" if late else "broken", "errno": death}
    state = answer.pop("state", {})
    found: Dict[str, Any] = {"use": dict(answer, user=user.name, step=step)}
    if state:
        found.update(mode=state["mode"], owner=inventory.user_name(state["uid"]))
        found["group"] = inventory.group_name(state["gid"])
        found.update(state["left"], label=state["label"])
    return found


def use(report: child.Report, path: str, user: kvm.User, state: Dict[str, Any]) -> Dict[str, Any]:
    """As libvirt does it: root makes a file and gives it to the user; where a file server lets root do nothing, the
    user makes it. Whatever it is now, the process that does this ends with it."""
    report("folder")
    info = os.stat(path)
    if not stat.S_ISDIR(info.st_mode):
        raise OSError(errno.ENOTDIR, "not a folder")
    state.update(mode=stat.S_IMODE(info.st_mode), uid=info.st_uid, gid=info.st_gid)
    state.update(left=left(path), label=label(path))
    steps = []

    def noted(step: str) -> None:
        steps.append(step)
        report(step)

    try:
        return tried(noted, path, user, given=True)
    except PermissionError:
        if steps[-1] not in ("create", "give"):
            raise
        return tried(report, path, user, given=False)


def tried(report: child.Report, path: str, user: kvm.User, given: bool) -> Dict[str, Any]:
    nonce = os.urandom(16)
    become(user, not given)
    report("create")
    fd, name = create(path, nonce)
    try:
        if given:
            report("give")
            os.fchown(fd, user.uid, user.gid)
        become(user, True)
        report("enter")
        os.stat(os.path.join(path, "."))
        report("open")
        again = os.open(name or "/proc/self/fd/{}".format(fd), os.O_RDWR | os.O_CLOEXEC)
        report("write")
        os.write(again, nonce)
        os.fsync(again)
        report("read")
        same = os.pread(again, 16, 0) == nonce
        straight = direct(name or "/proc/self/fd/{}".format(fd))
    finally:
        become(user, not given)
        if name:
            os.unlink(name)
    works = {"outcome": "works", "errno": "", "direct": straight}
    return works if same else {"outcome": "broken", "errno": "another content"}


def direct(path: str) -> bool:
    """It opens past the page cache, as disks with cache=none do: open(2) says EINVAL where the file system cannot."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


def become(user: kvm.User, yes: bool) -> None:
    """The user, or root again."""
    os.seteuid(0)
    os.setegid(user.gid if yes else 0)
    os.setgroups(user.groups if yes else [0])
    os.seteuid(user.uid if yes else 0)


def create(path: str, nonce: bytes) -> Tuple[int, str]:
    """A file without a name, which leaves nothing whatever happens; with one where the file system knows no other."""
    if O_TMPFILE:
        try:
            return os.open(path, O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), ""
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
                raise
    name = os.path.join(path, ".kvmfleet-proof-" + nonce.hex())
    return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), name
