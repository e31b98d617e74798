"""Makes the storage pools and secrets of a host those that were declared, one after the other."""

from __future__ import annotations

import base64
import contextlib
import grp
import os
import pwd
import stat
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.kvmfleet.host.plugins.module_utils import storage_pools
from ansible_collections.kvmfleet.host.plugins.module_utils.record import Record
from ansible_collections.kvmfleet.host.plugins.module_utils.storage_host import (
    Found,
    Host,
    PoolError,
    device_problem,
    exists,
    known_secrets,
    mounted,
    number,
    users_of,
    volumes_in_use,
)

WORD = {True: "yes", False: "no"}


class Change:
    """What happens to one pool, in the order in which it happens, and how that looks in a diff."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.done: list[str] = []
        self.before: dict[str, Any] = {}
        self.after: dict[str, Any] = {}
        self.texts: tuple[str, str] | None = None  # instead of facts, where the change is in a file

    def diff(self) -> dict[str, str]:
        def lines(facts: Mapping[str, Any]) -> str:
            return "".join(f"{key}: {WORD.get(facts[key], facts[key])}\n" for key in sorted(facts))

        before, after = self.texts or (lines(self.before), lines(self.after))
        header = self.name if self.texts else f"pool {self.name}"
        return {"before_header": header, "after_header": header, "before": before, "after": after}


class Settling:
    """One call for the whole list."""

    def __init__(self, host: Host, record: Record, *, allow_disruption: bool, check: bool) -> None:
        self.host, self.record, self.check = host, record, check
        self.allow_disruption = allow_disruption
        self.changes: list[Change] = []
        self.pending: list[str] = []
        self._guests: list[tuple[str, Any]] | None = None

    # the pools

    def pool(self, pool: Mapping[str, Any], found: Found | None) -> None:
        """Brings one pool to where it is declared to be."""
        change = Change(pool["name"])
        wanted = storage_pools.wanted(pool)
        configured = storage_pools.facts(storage_pools.parsed(found.configured)) if found else {}
        live = storage_pools.facts(storage_pools.parsed(found.live)) if found else {}
        self._describe(change, pool, found, configured, wanted)
        if change.before != change.after or live != configured:
            # in check mode nothing below changes anything, and it says all the same what would be done
            if change.before != change.after:
                self._note(pool, found)
            if storage_pools.holds_files(pool):
                self._folder(change, pool)
            if configured != wanted:
                self._define(change, pool, found)
            self._build(change, pool)
            self._activate(change, pool, found, live != wanted)
            if bool(pool["autostart"]) != bool(found and found.autostart):
                words = ["pool-autostart", pool["name"], *([] if pool["autostart"] else ["--disable"])]
                self._do(change, "autostart" if pool["autostart"] else "no autostart", *words)
        if change.done:
            self.changes.append(change)

    def _describe(self, change: Change, pool: Any, found: Found | None, configured: Any, wanted: Any) -> None:
        if found:
            change.before = {**configured, "active": found.active, "autostart": found.autostart}
        change.after = {**wanted, "active": bool(pool["active"]), "autostart": bool(pool["autostart"])}
        if storage_pools.holds_files(pool) and (storage_pools.kind(pool) == "dir" or (found and found.active)):
            now, then = folder_state(self.host.root + storage_pools.path(pool), pool)
            change.before.update(now)
            change.after.update(then)

    def _note(self, pool: Any, found: Found | None) -> None:
        before = None
        if found:
            before = {"xml": found.configured, "active": found.active, "autostart": found.autostart}
        self.record.note("pool", pool["name"], before)
        if not self.check:
            self.record.save()

    def _folder(self, change: Change, pool: Any) -> None:
        """Makes the folder where it is missing. Owner and mode of what is mounted there wait for the mount."""
        path = self.host.root + storage_pools.path(pool)
        missing: list[str] = []
        while not mounted(self.host, path) and not os.path.isdir(path):
            missing.append(path)
            path = os.path.dirname(path)
        for path in reversed(missing):
            change.done.append(f"made {path}")
            self.record.note("folder", path)
            if not self.check:
                self.record.save()
                os.mkdir(path, 0o755)
                os.chmod(path, 0o755)  # whatever the umask
        if storage_pools.kind(pool) == "dir":
            self._own(change, pool)

    def _own(self, change: Change, pool: Any) -> None:
        path = self.host.root + storage_pools.path(pool)
        now, then = folder_state(path, pool)
        if now == then:
            return
        change.done.append("folder " + ", ".join(f"{key} {value}" for key, value in then.items()))
        if self.check:
            return
        state = os.stat(path)
        self.record.note(
            "folder", path, {"mode": stat.S_IMODE(state.st_mode), "owner": state.st_uid, "group": state.st_gid}
        )
        self.record.save()
        owner = account(pwd.getpwnam, pool.get("owner"), state.st_uid)
        group = account(grp.getgrnam, pool.get("group"), state.st_gid)
        try:
            os.chown(path, owner, group)
            if pool.get("mode"):
                os.chmod(path, int(pool["mode"], 8))
        except PermissionError as error:
            raise PoolError(
                f"{pool['name']}: {path} does not take {change.done[-1].partition(' ')[2]} ({error.strerror}): its "
                "file server trusts no root (root_squash). Set that on the server, or correct libvirt_storage_pools."
            ) from error

    def _define(self, change: Change, pool: Any, found: Found | None) -> None:
        root = storage_pools.element(pool)
        if found:  # or libvirt takes it for another pool of the same name
            uuid = storage_pools.parsed(found.configured).findtext("uuid")
            ElementTree.SubElement(root, "uuid").text = uuid
        xml = ElementTree.tostring(root, encoding="unicode")
        self._do(change, "defined again" if found else "defined", "pool-define", "/dev/stdin", stdin=xml)

    def _build(self, change: Change, pool: Any) -> None:
        if not pool.get("build") or exists(self.host, pool):
            return
        wrong = device_problem(self.host, pool)
        if wrong:
            raise PoolError(f"{pool['name']}: {wrong}")
        change.done.append(f"built from {' '.join(pool['source']['devices'])}")
        if not self.check:
            self.host.virsh("pool-build", pool["name"])

    def _activate(self, change: Change, pool: Any, found: Found | None, stale: bool) -> None:
        """Starts, restarts or stops. What runs with an older definition is restarted, unless guests use it."""
        name, active = pool["name"], bool(found and found.active)
        if active and (stale or not pool["active"]):
            users = self._users(name, found)
            if users and not self.allow_disruption:
                what = "restarted with its new definition" if pool["active"] else "stopped"
                self.pending.append(
                    f"pool {name} is not {what}, because {', '.join(users)} use{'s' * (len(users) == 1)} it. Shut "
                    "down what uses it and run this again, or set kvmfleet_allow_disruption."
                )
                return
            self._do(change, "stopped", "pool-destroy", name)
        if pool["active"] and (not active or stale):
            self._start(change, pool, found if active else None)
        if pool["active"] and storage_pools.kind(pool) in ("fs", "netfs") and (not self.check or active):
            self._own(change, pool)

    def _start(self, change: Change, pool: Any, before: Found | None) -> None:
        """Where the new definition of a pool that ran does not start, the old one is put back and started."""
        try:
            self._do(change, "started", "pool-start", pool["name"])
        except PoolError as error:
            back = ""
            if before:
                with contextlib.suppress(PoolError):
                    self.host.virsh("pool-define", "/dev/stdin", stdin=before.live)
                    self.host.virsh("pool-start", pool["name"])
                    back = " It runs with its old definition again."
            raise PoolError(
                f"{pool['name']} does not start: {str(error).rstrip(chr(46))}.{back} Correct libvirt_storage_pools."
            ) from error

    def remove(self, name: str, found: Found | None) -> None:
        """A pool of ours that nobody declares any more. Its data stays where it is."""
        if found is None:
            self.record.forget("pool", name)
            return
        users = self._users(name, found) if found.active else []
        if users and not self.allow_disruption:
            self.pending.append(
                f"pool {name} is not removed, because {', '.join(users)} use{'s' * (len(users) == 1)} it."
            )
            return
        change = Change(name)
        change.before = storage_pools.facts(storage_pools.parsed(found.configured))
        if found.active:
            self._do(change, "stopped", "pool-destroy", name)
        self._do(change, "removed", "pool-undefine", name)
        self.changes.append(change)
        self.record.forget("pool", name)

    def _users(self, name: str, found: Found | None) -> list[str]:
        if self._guests is None:
            self._guests = volumes_in_use(self.host)
        return users_of(self.host, name, found.live, self._guests) if found else []

    def _do(self, change: Change, word: str, *words: str, stdin: str = "") -> None:
        change.done.append(word)
        if not self.check:
            self.host.virsh(*words, stdin=stdin)

    # the secrets

    def secrets(self, secrets: Iterable[Mapping[str, Any]], known: dict[tuple[str, str], str]) -> None:
        """Values go through standard input only, and no change shows them."""
        for secret in secrets:
            change = Change(f"{secret['usage']} (secret)")
            uuid = known.get((secret["type"], secret["usage"]), "")
            value = base64.b64encode(storage_pools.secret_bytes(secret)).decode()
            if uuid and self._value(uuid) == value:
                continue
            if not uuid:
                change.after = {"type": secret["type"], "value": "(new)"}
                change.done.append("defined")
            else:
                change.before, change.after = {"value": "(old)"}, {"value": "(new)"}
            change.done.append("value set")
            self.changes.append(change)
            self.record.note("secret", f"{secret['type']} {secret['usage']}", {"uuid": uuid} if uuid else None)
            if self.check:
                continue
            self.record.save()
            if not uuid:
                self.host.virsh("secret-define", "/dev/stdin", stdin=secret_xml(secret))
                uuid = known_secrets(self.host)[(secret["type"], secret["usage"])]
            self.host.virsh("secret-set-value", uuid, "--file", "/dev/stdin", stdin=value)

    def _value(self, uuid: str) -> str:
        """In base64; "" where the secret has no value, or one that nobody may read."""
        code, out, _ = self.host.run(["virsh", "-q", "-c", self.host.uri, "secret-get-value", uuid], "")
        return "" if code else str(out).strip()

    def forget_secrets(self, secrets: Iterable[Mapping[str, Any]], known: dict[tuple[str, str], str]) -> None:
        declared = {f"{secret['type']} {secret['usage']}" for secret in secrets}
        for name in self.record.names("secret"):
            if name in declared or self.record.before("secret", name) is not None:
                continue
            type, _, usage = name.partition(" ")
            if (type, usage) in known:
                change = Change(f"{usage} (secret)")
                change.before = {"type": type, "value": "(old)"}
                self._do(change, "removed", "secret-undefine", known[(type, usage)])
                self.changes.append(change)
            self.record.forget("secret", name)


def account(lookup: Any, name: str | None, otherwise: int) -> int:
    """The id of an account. Raises PoolError where there is none of that name."""
    if not name:
        return otherwise
    found = number(lookup, name)
    if found is None:
        raise PoolError(f"{name} is no account of this host. Create it first, or correct libvirt_storage_pools.")
    return found


def folder_state(path: str, pool: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """What is declared about a folder, as it is now and as it should be."""
    wanted = {field: str(pool[field]) for field in ("owner", "group") if pool.get(field)}
    if pool.get("mode"):
        wanted["mode"] = f"{int(pool['mode'], 8):04o}"
    if not wanted:
        return {}, {}
    try:
        state = os.stat(path)
    except OSError:
        return {}, wanted
    now = {"mode": f"{stat.S_IMODE(state.st_mode):04o}"}
    for field, lookup, by_id, found in (
        ("owner", pwd.getpwnam, pwd.getpwuid, state.st_uid),
        ("group", grp.getgrnam, grp.getgrgid, state.st_gid),
    ):
        if field in wanted and number(lookup, wanted[field]) == found:
            now[field] = wanted[field]
        else:
            try:
                now[field] = str(by_id(found)[0])
            except KeyError:
                now[field] = str(found)
    return {field: now[field] for field in wanted}, wanted


def secret_xml(secret: Mapping[str, Any]) -> str:
    root = ElementTree.Element("secret", {"ephemeral": "no", "private": "no"})
    usage = ElementTree.SubElement(root, "usage", {"type": secret["type"]})
    ElementTree.SubElement(usage, "name" if secret["type"] == "ceph" else "target").text = secret["usage"]
    return ElementTree.tostring(root, encoding="unicode")
