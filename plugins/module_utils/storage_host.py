"""What a host has of the storage that is declared, and what would keep a pool from working there."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import re
import signal
import stat
import subprocess
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ansible_collections.kvmfleet.host.plugins.module_utils import storage_pools

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
QEMU_USERS = ("libvirt-qemu", "qemu")
PATIENCE_S = 15  # with a mount; a file server that is alive may be busy
TIMEOUT_S = 300  # of a command; mount.nfs(8) tries for two minutes


class PoolError(Exception):
    """What cannot be done, and what to do about it."""


class User(NamedTuple):
    """Who QEMU runs as."""

    name: str
    uid: int
    gids: tuple[int, ...]


class Host:
    """Where this touches the host; tests put something else there. `run` gives an exit code, output and complaint."""

    def __init__(self, run: Any, uri: str, root: str = "") -> None:
        self.run, self.uri, self.root = run, uri, root

    def call(self, argv: list[str], stdin: str = "") -> str:
        """The output. Raises PoolError when the command complains."""
        code, out, complaint = self.run(argv, stdin)
        if code:
            reason = " ".join(re.sub(r"^error: ", "", complaint, flags=re.MULTILINE).split()) or out.strip()
            raise PoolError(f"`{' '.join(argv)}` ended with {code}: {reason}")
        return str(out)

    def virsh(self, *words: str, stdin: str = "") -> str:
        return self.call(["virsh", "-q", "-c", self.uri, *words], stdin)

    def has(self, command: str) -> bool:
        return any(os.access(f"{self.root}{folder}/{command}", os.X_OK) for folder in PATH.split(":"))

    def read(self, path: str) -> str:
        """The text of a file, "" where there is none."""
        try:
            with open(self.root + path) as stream:
                return stream.read()
        except FileNotFoundError:
            return ""


# --- what is there


class Found(NamedTuple):
    """A pool that libvirt has."""

    configured: str  # XML
    live: str
    active: bool
    autostart: bool


def look(host: Host) -> dict[str, Found]:
    """Every pool of this libvirt whose name can be declared."""
    table = re.findall(r"^ *(\S+) +(active|inactive|[\w ]+?) +(yes|no) *$", host.virsh("pool-list", "--all"), re.M)
    rows = [row for row in table if storage_pools.NAME.fullmatch(row[0])]
    if not rows:
        return {}
    said = host.virsh("; ".join(f"pool-dumpxml --inactive {name}; pool-dumpxml {name}" for name, _, _ in rows))
    documents = re.findall(r"<pool\b.*?</pool>", said, re.DOTALL)
    if len(documents) != 2 * len(rows):
        raise PoolError(f"virsh told {len(documents)} pools instead of {2 * len(rows)}. Run this again.")
    return {
        name: Found(documents[2 * number], documents[2 * number + 1], state == "active", autostart == "yes")
        for number, (name, state, autostart) in enumerate(rows)
    }


def volumes_in_use(host: Host) -> list[tuple[str, Any]]:
    """(guest, its XML) of every guest that runs."""
    guests = [line.strip() for line in host.virsh("list", "--uuid").splitlines() if line.strip()]
    found = []
    for guest in guests:
        code, xml, _ = host.run(["virsh", "-q", "-c", host.uri, "dumpxml", guest], "")
        if not code:  # it may have ended meanwhile
            root = storage_pools.parsed(xml)
            found.append((root.findtext("name") or guest, root))
    return found


def users_of(host: Host, name: str, xml: str, guests: Iterable[tuple[str, Any]]) -> list[str]:
    """The running guests with a volume of this pool: by its name, a path in it, or the path of one of its volumes."""
    guests = list(guests)
    if not guests:
        return []
    facts = storage_pools.facts(storage_pools.parsed(xml))
    folder = facts.get("target/path", "")
    code, listed, _ = host.run(["virsh", "-q", "-c", host.uri, "vol-list", name], "")
    paths = set() if code else set(re.findall(r"\s(/\S.*?)\s*$", listed, re.MULTILINE))
    paths |= {os.path.realpath(path) for path in paths}
    # the links of every disk of the host lie in the folder of an iSCSI pool
    inside = folder.rstrip("/") + "/" if folder and facts["type"] not in ("iscsi", "scsi", "disk", "mpath") else None
    remote = {"rbd": "rbd", "gluster": "gluster", "iscsi": "iscsi"}.get(facts["type"])
    prefix = (facts.get("source/name") or facts.get("source/device@path", "")) + "/"

    def uses(root: Any) -> bool:
        for source in root.iter("source"):
            path = source.get("file") or source.get("dev") or source.get("dir") or ""
            if source.get("pool") == name or (path and (path in paths or os.path.realpath(path) in paths)):
                return True
            if inside and (path.startswith(inside) or os.path.realpath(path).startswith(inside)) and path:
                return True
            if remote and source.get("protocol") == remote and (source.get("name") or "").startswith(prefix):
                return True
        return False

    return sorted(guest for guest, root in guests if uses(root))


def qemu_user(host: Host) -> User | None:
    """Who QEMU will run as, None before its packages are there."""
    settings = dict(
        re.findall(r'^\s*(user|group)\s*=\s*"\+?([^"]+)"', host.read("/etc/libvirt/qemu.conf"), re.MULTILINE)
    )
    for name in [settings["user"]] if "user" in settings else QEMU_USERS:
        with contextlib.suppress(KeyError):
            found = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
            gids = set(os.getgrouplist(found.pw_name, found.pw_gid))
            with contextlib.suppress(KeyError):
                gids.add(grp.getgrnam(settings["group"]).gr_gid)
            return User(found.pw_name, found.pw_uid, tuple(gids))
    return None


# --- what would keep a declared pool from working on this host


def host_problems(host: Host, pools: Iterable[Mapping[str, Any]]) -> list[str]:
    """One sentence each."""
    user = qemu_user(host)
    found = []
    for pool in pools:
        if storage_pools.holds_files(pool):
            path = host.root + storage_pools.path(pool)
            # below a mount that is there the folder is out of sight, and a server that is gone would keep us waiting
            seen = os.path.dirname(path) if mounted(host, storage_pools.path(pool)) else path
            wrong = folder_problem(seen, pool if seen == path else {}, user)
            if not wrong and seen != path:
                wrong = mount_problem(host, storage_pools.path(pool))
        elif pool.get("build"):
            wrong = device_problem(host, pool)
        else:
            wrong = ""
        if wrong:
            found.append(f"libvirt_storage_pools: {pool['name']}: {wrong}")
    return found


def mounted(host: Host, path: str) -> bool:
    return any(
        line.split(" ")[1:2] == [path.replace(" ", "\\040")] for line in host.read("/proc/self/mounts").splitlines()
    )


def mount_problem(host: Host, path: str) -> str:
    """Why what is mounted there cannot be used, "" where it answers.

    What waits for a server ends by SIGKILL alone. timeout(1) sends it to its whole group, and dies of it, too.
    """
    code, _, complaint = host.run(["timeout", "-s", "KILL", str(PATIENCE_S), "stat", path], "")
    if not code:
        return ""
    late = code == -signal.SIGKILL
    reason = f"did not answer within {PATIENCE_S} s" if late else f"cannot be used: {complaint.strip()}"
    return (
        f"what is mounted on {path} {reason}. Bring its file server back; if that will not come back, run `umount "
        f"--force --lazy {path}` and restart libvirt's daemon."
    )


def folder_problem(path: str, pool: Mapping[str, Any], user: User | None) -> str:
    """Why the QEMU user would not get through this path, "" where it would. What is missing will be made."""
    here = "/"
    for part in path.strip("/").split("/"):
        here = os.path.join(here, part)
        last = here.rstrip("/") == path.rstrip("/")
        try:
            state = os.stat(here)
        except FileNotFoundError:
            if os.path.islink(here):
                return f"{here} is a link that leads nowhere. Remove it, or make what it points to."
            if not last:
                continue
            state = None
        except OSError as error:
            return f"{here}: {error.strerror}."
        if state and not stat.S_ISDIR(state.st_mode):
            return f"{here} is a file, and a pool needs a folder. Move the file away, or choose another path."
        declared = pool if last else {}
        if not may_enter(state, declared, user):
            who = user.name if user else "the user that QEMU runs as"
            mode = declared.get("mode") or (f"{stat.S_IMODE(state.st_mode):04o}" if state else "")
            return (
                f"{who} cannot pass through {here}, which has mode {mode}. Let others through (chmod o+x {here}), "
                "give it that user's group, or choose another path."
            )
    return ""


def may_enter(state: os.stat_result | None, declared: Mapping[str, Any], user: User | None) -> bool:
    """Whether QEMU gets into a folder as it is, or as it is declared to become."""
    mode = int(declared["mode"], 8) if declared.get("mode") else stat.S_IMODE(state.st_mode) if state else 0o755
    owner, group = declared.get("owner"), declared.get("group")
    if user is None:  # not there yet: only its name can tell
        return bool(
            mode & 0o001 or (owner in QEMU_USERS and mode & 0o100) or (group in (*QEMU_USERS, "kvm") and mode & 0o010)
        )
    uid = number(pwd.getpwnam, owner) if owner else state.st_uid if state else 0
    gid = number(grp.getgrnam, group) if group else state.st_gid if state else 0
    if user.uid == 0:
        return True
    if uid == user.uid:
        return bool(mode & 0o100)
    return bool(mode & (0o010 if gid in user.gids else 0o001))


def number(lookup: Any, name: str) -> int | None:
    """The id of an account, None where there is none of that name."""
    if str(name).isdigit():
        return int(name)
    try:
        return int(lookup(name)[2])
    except KeyError:
        return None


def device_problem(host: Host, pool: Mapping[str, Any]) -> str:
    """Why the devices of a pool cannot be made into a volume group or zpool."""
    if exists(host, pool):
        return ""
    for device in pool["source"]["devices"]:
        try:
            state = os.stat(host.root + device)
        except OSError as error:
            return f"{device}: {error.strerror}. Attach the device, or correct source.devices."
        if not stat.S_ISBLK(state.st_mode):
            return f"{device} is no block device."
        content = signatures(host, device)
        if content:
            return (
                f"{device} is not blank, it holds {content}. If nothing on it is needed any more, run `wipefs --all "
                f"{device}` yourself; nothing here ever does."
            )
    return ""


def exists(host: Host, pool: Mapping[str, Any]) -> bool:
    """Whether the volume group or zpool is there."""
    name = storage_pools.source_name(pool)
    argv = (
        ["vgs", "--noheadings", "--options", "vg_name", name] if pool["type"] == "logical" else ["zpool", "list", name]
    )
    return host.has(argv[0]) and host.run(argv, "")[0] == 0


def signatures(host: Host, device: str) -> str:
    """What blkid(8) finds on a device, "" where it is blank. It ends with 2 where it finds nothing."""
    code, out, complaint = host.run(["blkid", "--probe", "--output", "export", device], "")
    if code == 2:
        return ""
    found = dict(re.findall(r"^(TYPE|PTTYPE)=(.*)$", out, re.MULTILINE))
    if code == 0 and not found and "TYPE" not in out:
        return ""
    return found.get("TYPE") or found.get("PTTYPE", "") or complaint.strip() or "several signatures"


def known_secrets(host: Host) -> dict[tuple[str, str], str]:
    """(type, usage) -> uuid."""
    rows = re.findall(r"^ *([0-9a-f-]{36}) +(\w+) (.*?) *$", host.virsh("secret-list"), re.MULTILINE)
    return {(type, usage): uuid for uuid, type, usage in rows}


def backends(host: Host, pools: Iterable[Mapping[str, Any]], *, check: bool) -> None:
    """A daemon that started before the package of a driver came does not know it: then it starts again, guests stay."""
    types = {storage_pools.kind(pool) for pool in pools} - {"dir", "fs", "netfs"}
    lacking = types - _supported(host) if types else set()
    if not lacking or check:
        return
    for unit in ("libvirtd", "virtstoraged"):
        if host.has("systemctl"):
            host.run(["systemctl", "try-restart", unit + ".service"], "")
    lacking = types - _supported(host)
    if lacking:
        raise PoolError(
            f"This host's libvirt has no driver for pools of type {', '.join(sorted(lacking))}. Install its package, "
            "which libvirt_storage_packages names, and run this again."
        )


def _supported(host: Host) -> set[str]:
    return set(re.findall(r"<pool type='([\w-]+)' supported='yes'", host.virsh("pool-capabilities")))


def run(argv: list[str], stdin: str) -> tuple[int, str, str]:
    environment = {"PATH": PATH, "LC_ALL": "C", "HOME": "/root"}
    try:
        done = subprocess.run(
            argv, input=stdin.encode(), capture_output=True, env=environment, check=False, timeout=TIMEOUT_S
        )
    except FileNotFoundError:
        return 127, "", f"there is no {argv[0]}"
    except subprocess.TimeoutExpired:
        return 124, "", f"not done after {TIMEOUT_S} s. Is a file server of a pool gone, for which libvirt waits?"
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
