"""How each kind of thing in the record is brought back to what it was."""

from __future__ import annotations

import grp
import os
import pwd
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ansible_collections.kvmfleet.host.plugins.module_utils import commands, packages, units
from ansible_collections.kvmfleet.host.plugins.module_utils.record import Record

NEVER_STOPPED = re.compile(r"virtlog|virtlock")
URI = "qemu:///system"


class GiveBackError(Exception):
    """What stops us, and what to do about it."""


class Host(NamedTuple):
    """Where this touches the host; tests put something else there."""

    run: Any = commands.run
    which: Any = commands.which
    root: str = ""
    proc: str = "/proc"


class Work:
    """One pass: what is to be done is said, and then done unless this only looks."""

    def __init__(self, host: Host, record: Record, check: bool) -> None:
        self.host = host
        self.record = record
        self.check = check
        self.done: list[str] = []
        self.kept: list[str] = []

    def act(self, what: str, change: Callable[[], object]) -> None:
        if not self.check:
            change()
        self.done.append(what)

    def forget(self, kind: str, name: str) -> None:
        """On the disk, too, before the next thing is touched."""
        if not self.check:
            self.record.forget(kind, name)
            self.record.save()

    def forget_all(self, *kinds: str) -> None:
        for kind in () if self.check else kinds:
            for name in self.record.names(kind):
                self.record.forget(kind, name)
        if not self.check:
            self.record.save()

    def call(self, argv: list[str], said: str = "") -> str:
        code, out, complaint = self.host.run(argv, said)
        if code:
            raise GiveBackError(
                f"`{' '.join(argv)}` ended with {code}: {complaint.strip() or out.strip()}. What was taken back so far "
                "is done; settle that, and unprovision again."
            )
        return str(out)

    def virsh(self, what: str, *words: str, said: str = "") -> None:
        self.act(what, lambda: self.call([*VIRSH, *words], said))

    def each(self, kind: str) -> Iterator[tuple[str, Any]]:
        """The things of a kind with what was before, each forgotten once the loop has seen to it."""
        for name in self.record.names(kind):
            yield name, self.record.before(kind, name)
            self.forget(kind, name)


# --- what needs libvirt

VIRSH = ("virsh", "-q", "-c", URI)


def networks(work: Work) -> None:
    _objects(work, "network", "net")


def pools(work: Work) -> None:
    """A pool's files stay: they may be disks of guests."""
    _objects(work, "pool", "pool")


def _objects(work: Work, kind: str, prefix: str) -> None:
    if not _reachable(work, kind):
        return
    there, active = (set(work.call([*VIRSH, f"{prefix}-list", "--name", *more]).split()) for more in (["--all"], []))
    for name, before in work.each(kind):
        if isinstance(before, dict) and before.get("xml"):
            _redefine(work, kind, prefix, name, before, name in active)
        elif name in there:
            if name in active:
                work.virsh(f"{kind} {name}: stopped", f"{prefix}-destroy", name)
            if name in work.call([*VIRSH, f"{prefix}-list", "--name", "--all"]).split():  # a transient one is gone
                work.virsh(f"{kind} {name}: removed", f"{prefix}-undefine", name)


def _redefine(work: Work, kind: str, prefix: str, name: str, before: Any, active: bool) -> None:
    """It was there before us, and we made it another one."""
    if active:
        work.virsh(f"{kind} {name}: stopped", f"{prefix}-destroy", name)
    work.virsh(f"{kind} {name}: as it was", f"{prefix}-define", "/dev/stdin", said=before["xml"])
    work.virsh(
        f"{kind} {name}: autostart", f"{prefix}-autostart", name, *([] if before["autostart"] else ["--disable"])
    )
    if before["active"]:
        work.virsh(f"{kind} {name}: started", f"{prefix}-start", name)


def secrets(work: Work) -> None:
    """By type and usage, as they are in the record; a value that was there before is known to nobody."""
    if not _reachable(work, "secret"):
        return
    listed = [line.split(None, 2) for line in work.call([*VIRSH, "secret-list"]).splitlines() if line.strip()]
    known = {" ".join(words[1:]): words[0] for words in listed}
    for name, before in work.each("secret"):
        if before is not None:
            work.kept.append(f"secret {name}: it was there before, and its value from then is not known")
        elif name in known:
            work.virsh(f"secret {name}: removed", "secret-undefine", known[name])


def _reachable(work: Work, kind: str) -> bool:
    """Whether there is anything to do; without virsh there is nobody to do it, and what it kept is said."""
    names = work.record.names(kind)
    if names and not work.host.which("virsh"):
        work.kept.append(f"{kind} {', '.join(names)}: there is no virsh any more to remove it with")
        for name in names:
            work.forget(kind, name)
    return bool(names) and bool(work.host.which("virsh"))


def autostarts(work: Work) -> None:
    for name, before in work.each("autostart"):
        if not work.host.which("virsh"):
            continue
        code, out, _ = work.host.run([*VIRSH, "dominfo", "--", name])
        now = bool(re.search(r"^Autostart:\s+enable$", out, re.MULTILINE))
        if not code and now != bool(before):
            words = ["autostart", *([] if before else ["--disable"]), "--", name]
            work.virsh(f"autostart of {name}: {'on' if before else 'off'}", *words)


# --- settings


OWN_UNIT = re.compile(r"/etc/systemd/system/([^/]+\.(?:service|socket|mount|timer|path|target))$")


def own_units(work: Work) -> None:
    """Units that we wrote end before their files go."""
    if not work.host.which("systemctl"):
        return
    names = [match[1] for match in map(OWN_UNIT.match, work.record.names("file")) if match]
    ours = [name for name in names if work.record.before("file", f"/etc/systemd/system/{name}") is None]
    standings = units.standing(work.host.run, work.host.which, ours) if ours else {}
    for name, now in standings.items():
        if not NEVER_STOPPED.match(name):
            _bring(work, name, now, {"enabled": False, "active": False, "masked": now["masked"]})


def _bring(work: Work, name: str, now: dict[str, bool], then: dict[str, bool]) -> None:
    if NEVER_STOPPED.match(name):
        then = {**then, "active": now["active"] or then["active"]}
    for argv in units.moves(work.host.which, name, now, then):
        work.act(" ".join(argv), lambda argv=argv: work.call(argv))


def members(work: Work) -> None:
    for name, before in work.each("member"):
        group, _, user = name.partition(":")
        try:
            inside = user in grp.getgrnam(group).gr_mem
        except KeyError:
            continue
        if inside and not before:
            gpasswd = ["gpasswd", "-d", user, group] if work.host.which("gpasswd") else ["delgroup", user, group]
            work.act(f"{user} leaves the group {group}", lambda argv=gpasswd: work.call(argv))


def files(work: Work) -> list[str]:
    """Byte for byte as they were, or absent. Gives the paths that changed."""
    changed = []
    for path, before in work.each("file"):
        if settle_file(work, path, before):
            changed.append(path)
    return changed


def folders(work: Work) -> None:
    """Those that we made go when nothing is in them; others get back their owner and mode."""
    found = [(path, kind) for kind in ("folder", "directory") for path in work.record.names(kind)]
    for path, kind in sorted(found, key=lambda folder: -len(folder[0])):
        real, before = work.host.root + path, work.record.before(kind, path)
        if os.path.isdir(real) and before is not None:
            work.act(f"{path}: owner and mode as they were", lambda real=real, before=before: _own(real, before))
        elif os.path.isdir(real) and not os.listdir(real):
            work.act(f"{path}: folder removed", lambda real=real: os.rmdir(real))
        elif os.path.isdir(real) and not work.check:
            work.kept.append(f"{path}: the folder is not empty")
        work.forget(kind, path)


def _own(real: str, before: Any) -> None:
    os.chown(real, _number(pwd.getpwnam, before["owner"]), _number(grp.getgrnam, before["group"]))
    os.chmod(real, _mode(before))


# What has to be told after its files changed: (where the files are, what tells it, what it needs on the host). What is
# not there any more need not be told.
TOLD = (
    (re.compile(r".*/systemd/"), ["systemctl", "daemon-reload"], "systemctl"),
    (re.compile(r"/etc/udev/"), ["udevadm", "control", "--reload"], "udevadm"),
    (re.compile(r"/etc/apparmor\.d/local/(?P<profile>.+)"), ["apparmor_parser", "--replace"], "apparmor_parser"),
    (re.compile(r"/etc/firewalld/"), ["firewall-cmd", "--reload"], "firewall-cmd"),
)


def tell(work: Work, changed: list[str]) -> None:
    for pattern, argv, command in TOLD:
        found = [match for match in map(pattern.match, changed) if match]
        if not found or not work.host.which(command):
            continue
        profiles = [f"/etc/apparmor.d/{match['profile']}" for match in found if "profile" in match.groupdict()]
        if command == "systemctl":
            work.act(" ".join(argv), lambda argv=argv: work.call(argv))
        else:  # one that does not run reads its files when it starts
            work.act(
                " ".join([*argv, *profiles]), lambda argv=argv, profiles=profiles: work.host.run([*argv, *profiles])
            )


def settle_file(work: Work, path: str, before: Any) -> bool:
    """Whether there was anything to do to make a file what it was."""
    real = work.host.root + path
    if before is None:
        if not os.path.lexists(real):
            return False
        work.act(f"{path}: removed", lambda: _remove(real))
        return True
    if _as_before(real, before):
        return False
    work.act(f"{path}: as it was", lambda: write_file(work.host, real, before))
    return True


def _remove(real: str) -> None:
    os.unlink(real)
    folder = os.path.dirname(real)
    if re.search(r"/systemd/system/[^/]+\.d$", folder) and not os.listdir(folder):
        os.rmdir(folder)


def _as_before(real: str, before: Any) -> bool:
    if "link" in before:
        return os.path.islink(real) and os.readlink(real) == before["link"]
    try:
        standing = os.lstat(real)
        with open(real, "rb") as stream:
            same = stream.read() == _bytes(before)
    except OSError:
        return False
    owner, group = _number(pwd.getpwnam, before["owner"]), _number(grp.getgrnam, before["group"])
    return same and (standing.st_mode & 0o7777, standing.st_uid, standing.st_gid) == (_mode(before), owner, group)


def _bytes(before: Any) -> bytes:
    return str(before["content"]).encode("utf-8", "surrogateescape")


def _mode(before: Any) -> int:
    mode = before["mode"]
    return int(mode, 8) if isinstance(mode, str) else int(mode)


def _number(look: Any, name: Any) -> int:
    """Of a user or group that is gone meanwhile, root's: nobody else may get what it could read."""
    try:
        return int(name) if str(name).isdigit() else int(look(name)[2])
    except KeyError:
        return 0


def write_file(host: Host, real: str, before: Any) -> None:
    """Whole or not at all: what `file_before` tells of a file."""
    os.makedirs(os.path.dirname(real), 0o755, exist_ok=True)
    temporary = real + ".kvmfleet"
    if os.path.lexists(temporary):
        os.unlink(temporary)
    if "link" in before:
        os.symlink(before["link"], temporary)
    else:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(_bytes(before))
            os.fchown(stream.fileno(), _number(pwd.getpwnam, before["owner"]), _number(grp.getgrnam, before["group"]))
            os.fchmod(stream.fileno(), _mode(before))
    os.replace(temporary, real)
    if host.which("restorecon"):
        host.run(["restorecon", real])


def live_values(work: Work) -> None:
    """Values of the running kernel, below /proc/sys and /sys."""
    for name, before in work.each("sysctl"):
        _value(work, f"{work.host.proc}/sys/{name.replace('.', '/')}", name, before)
    for path, before in work.each("sysfs"):
        _value(work, work.host.root + path, path, before)


def _value(work: Work, path: str, name: str, before: Any) -> None:
    try:
        if before is None or _selected(_read(path)).split() == str(before).split():
            return
    except OSError:
        return  # it was there with a module that is gone
    work.act(f"{name} = {before}", lambda: _put(work, path, name, str(before)))


def _selected(text: str) -> str:
    """always [madvise] never is madvise."""
    found = re.search(r"\[(\S+)\]", text)
    return found[1] if found else text


def _read(path: str) -> str:
    with open(path) as stream:
        return stream.read().strip()


def _put(work: Work, path: str, name: str, text: str) -> None:
    try:
        with open(path, "w") as stream:
            stream.write(text)
    except OSError as error:
        work.kept.append(f"{name}: the kernel does not take {text} back: {error.strerror}")


def selinux(work: Work) -> None:
    for kind in ("selinux", "selinux_boolean"):
        for name, before in work.each(kind):
            word = {True: "on", False: "off", None: "off"}.get(before, before)
            if work.host.which("setsebool"):
                work.act(
                    f"SELinux: {name} {word}", lambda n=name, w=word: work.host.run(["setsebool", "-P", f"{n}={w}"])
                )
    for pattern, _before in work.each("selinux_fcontext"):
        argv = ["semanage", "fcontext", "--delete", pattern]
        if work.host.which("semanage"):
            work.act(f"SELinux: no label for {pattern}", lambda argv=argv: work.host.run(argv))


def ufw(work: Work) -> None:
    for rule, _before in work.each("ufw"):
        if work.host.which("ufw"):
            work.act(f"ufw: {rule} removed", lambda rule=rule: work.call(["ufw", "--force", "delete", *rule.split()]))


def tuned(work: Work) -> None:
    for _name, before in work.each("tuned"):
        if work.host.which("tuned-adm"):
            by_hand = before["mode"] == "manual" and before["profile"]
            argv = ["tuned-adm", *(["profile", *before["profile"].split()] if by_hand else ["auto_profile"])]
            work.act(" ".join(argv), lambda argv=argv: work.host.run(argv))


# --- packages, and the units that stay


def remove_packages(work: Work) -> None:
    """Those that came with us, unless something else needs them now or a person asked for them since."""
    manager = packages.find(work.host.which)
    if work.record.names("package") and manager is None:
        raise GiveBackError("No package manager was found that could remove what came with kvmfleet.")
    if manager is not None:
        gone = _decide(work, manager)
        if gone:
            purge = frozenset(name for name in gone if work.record.before("package", name) is None)
            names = " ".join(sorted(gone))
            work.act(f"packages removed: {names}", lambda: manager.remove(work.host.run, purge, gone - purge))
        remove_empty(work)
    work.forget_all("package", "asked", "empty", "transaction")
    for _name, asked in work.each("older"):
        work.kept.append(
            f"packages {' '.join(asked)} and what came with them: this host was provisioned before there was a record, "
            "so nobody knows whether they were there before"
        )


def _decide(work: Work, manager: packages.Manager) -> frozenset[str]:
    """Those that go. Decided once: in the middle of a removal a package manager may have lost who asked for what."""
    record, begun = work.record, work.record.holds("transaction", "removal")
    there = packages.installed(work.host.run, manager)
    ours = frozenset(
        name for name in record.names("package") if name in there and there[name] != record.before("package", name)
    )
    chosen = frozenset() if begun else packages.chosen(work.host.run, manager)
    wanted = (chosen & ours) - frozenset(record.names("asked"))
    needed = manager.keep(work.host.run, ours - wanted)
    work.kept += [f"package {name}: somebody installed it by name since" for name in sorted(wanted)]
    work.kept += [f"package {name}: {needed[name]} needs it" for name in sorted(needed)]
    if not work.check:
        for name in [*wanted, *needed]:
            record.forget("package", name)
        if wanted or needed:  # what is empty may be theirs
            work.forget_all("empty")
        record.note("transaction", "removal")
        record.save()
    return ours - wanted - needed.keys()


def remove_empty(work: Work) -> None:
    """What the scripts of the packages made in /etc and left behind, as long as nobody has put anything into it."""
    for path in sorted(work.record.names("empty"), key=len, reverse=True):
        real = work.host.root + path
        if work.check or os.path.islink(real):
            continue
        if os.path.isdir(real) and not os.listdir(real):
            os.rmdir(real)
        elif os.path.isfile(real) and not os.path.getsize(real):
            os.unlink(real)


def restore_units(work: Work) -> None:
    names = work.record.names("unit")
    now = units.standing(work.host.run, work.host.which, names) if names else {}
    for name, before in work.each("unit"):
        if before is None and now.get(name, {}).get("masked"):  # a mask needs no unit that is there
            work.act(f"systemctl unmask {name}", lambda name=name: work.call(["systemctl", "unmask", name]))
        elif before is not None and name in now:
            _bring(work, name, now[name], {"masked": False, **before})


def unload_modules(work: Work) -> None:
    """Those that we loaded and that nothing uses. A container has none of its own."""
    for name, before in work.each("module"):
        loaded = os.path.exists(f"/sys/module/{name}/initstate")
        if before or not loaded or work.host.run(["systemd-detect-virt", "--container", "--quiet"])[0] == 0:
            continue
        code = 0 if work.check else work.host.run(["modprobe", "-r", name])[0]
        if code:
            work.kept.append(f"module {name}: it is in use, and stays until the next boot")
        else:
            work.done.append(f"module {name}: unloaded")
