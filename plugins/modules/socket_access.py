#!/usr/bin/python
"""Decides who may open libvirt's local sockets, and keeps its plain TCP socket shut.

Nothing is restarted for it: a socket file that listens already gets its new mode where it is.
"""

from __future__ import annotations

import grp
import os
import re
import stat
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kvmfleet.host.plugins.module_utils import commands
from ansible_collections.kvmfleet.host.plugins.module_utils.record import RecordError, open_record

DOCUMENTATION = """
module: socket_access
short_description: Decides who may open sockets of systemd units
description:
  - Gives socket units a mode and a group by a drop-in, and the sockets that listen already the same, without a restart.
  - Masks socket units that must never listen.
  - Does nothing where systemd does not run.
options:
  sockets:
    description: Socket units, of which those that are not there are passed over.
    type: list
    elements: str
    default: []
  group:
    description: Only root and this group may open the sockets. Empty leaves that to the units as they are packaged.
    type: str
    default: ""
  masked:
    description: Socket units that must not listen, whether they are there or not.
    type: list
    elements: str
    default: []
  widen:
    description:
      - Whether sockets may be opened to more users than before. Without it this is only announced, as a change, so
        that it can be done later, when the daemon asks more of those users.
    type: bool
    default: false
author:
  - kvmfleet developers (@kvmfleet)
"""

EXAMPLES = """
- name: Let the group libvirt in, and nobody through plain TCP
  kvmfleet.host.socket_access:
    sockets: [libvirtd.socket, virtqemud.socket]
    group: libvirt
    masked: [libvirtd-tcp.socket, virtproxyd-tcp.socket]
"""

RETURN = """
done:
  description: What was changed, or would be, one sentence each.
  returned: always
  type: list
  elements: str
wider:
  description: Whether sockets wait to be opened to more users, by a call with O(widen).
  returned: always
  type: bool
"""

FOLDER = "/etc/systemd/system"
DROPIN = "kvmfleet-access.conf"
HEADER = "# Written by kvmfleet, role libvirt_security. Changes made here are lost.\n"


class AccessError(Exception):
    """What cannot be done, and what to do about it."""


class Host(NamedTuple):
    """Where this touches the host; tests put something else there. `run` gives an exit code, output and complaint."""

    run: Any
    record: Any
    check: bool
    done: list[str]
    wider: list[str]  # what waits for a call that may widen
    root: str = ""
    which: Any = commands.which

    def read(self, path: str) -> str:
        try:
            with open(self.root + path, encoding="utf-8") as stream:
                return stream.read()
        except FileNotFoundError:
            return ""

    def do(self, sentence: str) -> bool:
        """Says what is about to be done; whether to do it."""
        self.done.append(sentence)
        return not self.check

    def call(self, *argv: str) -> str:
        """The output. Raises AccessError when the command complains."""
        code, out, complaint = self.run(list(argv))
        if code:
            raise AccessError(f"`{' '.join(argv)}` ended with {code}: {complaint.strip() or out.strip()}")
        return str(out)

    def units(self, names: Any) -> dict[str, dict[str, str]]:
        """What systemd knows of the units that are there."""
        shown = "Id,LoadState,ActiveState,UnitFileState,NeedDaemonReload,Listen,SocketMode,SocketGroup"
        out = self.call("systemctl", "show", f"--property={shown}", "--", *names) if names else ""
        blocks = [dict(re.findall(r"^(\w+)=(.*)$", block, re.MULTILINE)) for block in out.split("\n\n")]
        return {block["Id"]: block for block in blocks if block.get("LoadState") in ("loaded", "masked")}


def settle(host: Host, sockets: Any, group: str, masked: Any, *, widen: bool) -> None:
    """Brings the sockets and the masks to where they belong.

    Raises:
        AccessError: systemd refused.
    """
    if not os.path.isdir(host.root + "/run/systemd/system") or not host.which("systemctl"):
        return
    _mask(host, masked)
    units = {name: unit for name, unit in host.units(sockets).items() if unit["LoadState"] == "loaded"}
    written = [_dropin(host, name, group, widen) or _is_unread(unit, group) for name, unit in units.items()]
    if any(written) and not host.check:
        host.call("systemctl", "daemon-reload")
        units = host.units(list(units))
    for unit in units.values():
        for path in re.findall(r"^(/\S+) \(Stream\)", unit.get("Listen", "")):
            _live(host, path, unit, group, widen)


def _is_unread(unit: Any, group: str) -> bool:
    """Whether a run ended before systemd read the drop-in. Of a first one it does not tell that itself."""
    return unit.get("NeedDaemonReload") == "yes" or bool(group and unit.get("SocketGroup") != group)


def _mask(host: Host, masked: Any) -> None:
    known = host.units(masked)
    for name in masked:
        path = f"{FOLDER}/{name}"
        if os.path.islink(host.root + path) and os.readlink(host.root + path) == "/dev/null":
            continue
        unit = known.get(name, {})
        standing = {"enabled": unit.get("UnitFileState") == "enabled", "active": unit.get("ActiveState") == "active"}
        killed = host.record.holds("mask", name)  # as a run was that noted this and never came to the mask
        if host.do(f"{name} is masked"):
            host.record.note("unit", name, {**standing, "masked": False})
            host.record.note("mask", name)
            host.record.save()
            if standing["active"]:
                host.call("systemctl", "stop", name)
            # The daemon has the open socket still; guests go on when it starts anew. Before the mask, which says to the
            # next run that all of this was done: one that was killed in between finds the socket stopped already.
            if name in known and (standing["active"] or killed):
                host.call("systemctl", "try-restart", re.sub(r"-tcp\.socket$", ".service", name))
            host.call("systemctl", "mask", name)
    for name in [name for name in host.record.names("mask") if name not in masked]:
        if host.do(f"{name} is no longer masked"):
            host.call("systemctl", "unmask", name)
            host.record.forget("mask", name)


def _dropin(host: Host, name: str, group: str, widen: bool) -> bool:
    """Whether the drop-in of a socket was written or removed."""
    path = f"{FOLDER}/{name}.d/{DROPIN}"
    text = f"{HEADER}[Socket]\nSocketMode=0660\nSocketGroup={group}\n" if group else ""
    if host.read(path) == text:
        return False
    if not text:
        if not host.do(f"{path} is removed"):
            return False
        if not widen:
            host.wider.append(path)
            return False
        os.unlink(host.root + path)
        host.record.forget("file", path)
        return True
    if host.do(f"{path} is written"):
        host.record.note("file", path)
        host.record.save()
        os.makedirs(os.path.dirname(host.root + path), 0o755, exist_ok=True)
        with open(host.root + path + ".new", "w", encoding="utf-8") as stream:
            os.fchmod(stream.fileno(), 0o644)
            stream.write(text)
        os.replace(stream.name, host.root + path)
        return True
    return False


def _live(host: Host, path: str, unit: Any, group: str, widen: bool) -> None:
    """Gives a socket that listens the mode and group that its unit would give it."""
    try:
        found = os.lstat(host.root + path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        return
    mode = 0o660 if group else int(unit.get("SocketMode") or "0666", 8)
    owner = group or unit.get("SocketGroup") or "root"
    now = stat.S_IMODE(found.st_mode)
    if now == mode and _group(found.st_gid) == owner:
        return
    sentence = f"{path} has mode {mode:04o} and group {owner} instead of {now:04o} and {_group(found.st_gid)}"
    if not widen and mode & ~now:
        host.wider.append(path)
        host.do(sentence)
    elif host.do(sentence):
        os.chown(host.root + path, 0, _gid(owner))
        os.chmod(host.root + path, mode)


def _gid(name: str) -> int:
    try:
        return int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise AccessError(f"There is no group {name} on this host. libvirt's packages make it.") from error


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def main() -> None:
    lists = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(
        argument_spec={
            "sockets": lists,
            "group": {"type": "str", "default": ""},
            "masked": lists,
            "widen": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        with open_record(check=module.check_mode) as record:
            host = Host(commands.run, record, module.check_mode, [], [])
            settle(host, given["sockets"], given["group"], given["masked"], widen=given["widen"])
    except (AccessError, RecordError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    module.exit_json(
        changed=bool(host.done),
        done=host.done,
        wider=bool(host.wider) and not module.check_mode,
        diff={"before": "", "after": "".join(f"{sentence}\n" for sentence in host.done)} if host.done else {},
    )


if __name__ == "__main__":
    main()
