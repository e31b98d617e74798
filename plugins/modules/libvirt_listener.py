#!/usr/bin/python
"""Lets libvirt listen on a port through a socket of systemd's, or ends that. Guests go on running."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kvmfleet.host.plugins.module_utils import commands
from ansible_collections.kvmfleet.host.plugins.module_utils.record import Record, RecordError, open_record

DOCUMENTATION = """
module: libvirt_listener
short_description: Lets libvirt listen on a port through a socket of systemd's
description:
  - Enables and starts a socket such as C(libvirtd-tls.socket), with the addresses that it listens on in a drop-in.
  - A socket cannot start while its service runs, so the service is stopped for a moment and comes back. Guests go on.
  - Sockets that were enabled here and are not wanted any more are stopped and disabled, and no others.
author:
  - kvmfleet developers (@kvmfleet)
options:
  sockets:
    description: The sockets that should listen.
    type: list
    elements: str
    required: true
  candidates:
    description: Every socket that this may have been asked for before, with the service that it starts.
    type: dict
    required: true
  addresses:
    description: Addresses to listen on; all of them when empty.
    type: list
    elements: str
    default: []
  port:
    description: The port.
    type: int
    default: 16514
"""

EXAMPLES = """
- name: Let libvirt listen for TLS in the management network
  kvmfleet.host.libvirt_listener:
    sockets: [libvirtd-tls.socket]
    candidates: {libvirtd-tls.socket: libvirtd.service, virtproxyd-tls.socket: virtproxyd.service}
    addresses: [192.0.2.11]
"""

RETURN = """
moves:
  description: What was done, one command a line.
  returned: success
  type: list
  elements: str
recorded:
  description: The files in the host's record, so that nobody need ask for those that were never there.
  returned: success
  type: list
  elements: str
"""

FOLDER = "/etc/systemd/system"
HEADER = "# Written by kvmfleet, role libvirt_remote. Changes made here are lost.\n"
USUAL_PORT = 16514
TRIES = 5  # a client may start the service again between its stop and the start of the socket


class ListenerError(Exception):
    """What cannot be done, and what to do about it."""


Run = Callable[[list[str]], "tuple[int, str, str]"]


class Host(NamedTuple):
    """Where this touches the host; tests put something else there."""

    run: Run
    folder: str = FOLDER
    pause: Callable[[float], None] = time.sleep

    def call(self, argv: list[str]) -> str:
        code, out, complaint = self.run(argv)
        if code:
            raise ListenerError(f"`{' '.join(argv)}` ended with {code}: {complaint.strip() or out.strip()}")
        return out

    def state(self, unit: str) -> dict[str, Any]:
        """Whether the unit is there, active and enabled."""
        out = self.call(["systemctl", "show", "--property=LoadState,ActiveState,UnitFileState", "--", unit])
        shown = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
        return {
            "there": shown.get("LoadState") not in ("not-found", None),
            "active": shown.get("ActiveState") == "active",
            "enabled": shown.get("UnitFileState") == "enabled",
        }


def dropin(addresses: list[str], port: int) -> str:
    """The lines that differ from the distribution's socket, "" for none."""
    if not addresses and port == USUAL_PORT:
        return ""
    places = [f"[{address}]:{port}" if ":" in address else f"{address}:{port}" for address in addresses]
    lines = [f"ListenStream={place}" for place in ["", *(places or [str(port)])]]
    # The address may come later than the socket at boot.
    return HEADER + "\n".join(["[Socket]", *lines, "FreeBind=true", ""])


def read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except (FileNotFoundError, NotADirectoryError):
        return ""


class Plan:
    """The moves, done or, in check mode, only told."""

    def __init__(self, host: Host, record: Record, check: bool) -> None:
        self._host = host
        self._record = record
        self._check = check
        self.moves: list[str] = []
        self.diff: list[dict[str, str]] = []

    def listen(self, socket: str, service: str, text: str) -> None:
        """Makes the socket listen, now and after a boot."""
        found = self._host.state(socket)
        if not found["there"]:
            if self._check:  # libvirt is still to be installed
                self.moves.append(f"start {socket}")
                return
            raise ListenerError(
                f"This host's libvirt has no {socket}. Install the package of its distribution that brings it "
                "(libvirt-daemon-proxy where daemons are modular), or take tls out of libvirt_remote_transports."
            )
        same = read(self._path(socket)) == text and found["active"]
        if same and found["enabled"]:
            return
        before = {"enabled": found["enabled"], "active": found["active"]}
        self._note("listener", socket, before)  # that we opened it, which a note of the kind unit does not tell
        self._note("unit", socket, before)
        if not found["enabled"]:
            self._do(["systemctl", "enable", socket])
        if not same:
            self._restart(socket, service, text)

    def silence(self, socket: str, service: str) -> None:
        """Ends what we began, and nothing else."""
        if not self._record.holds("listener", socket):
            return
        before = self._record.before("listener", socket)
        if not before.get("active") or not before.get("enabled"):
            if read(self._path(socket)):
                self._write(self._path(socket), "")
                self._do(["systemctl", "daemon-reload"])
            self._do(["systemctl", "disable", "--now", socket])
            if self._host.state(service)["active"]:  # it was handed the port, and would keep it
                self._do(["systemctl", "restart", service])
        elif read(self._path(socket)) or not self._host.state(socket)["active"]:
            self._restart(socket, service, "")
        if not self._check:
            self._record.forget("listener", socket)

    def _restart(self, socket: str, service: str, text: str) -> None:
        """systemd starts no socket whose service runs already.

        It is stopped before its drop-in changes: a run that ends in between leaves what the next one has to start.
        """
        ran = self._host.state(service)["active"]
        self._do(["systemctl", "stop", socket])
        if read(self._path(socket)) != text:
            self._write(self._path(socket), text)
        self._do(["systemctl", "daemon-reload"])
        if self._check:
            self.moves.append(f"systemctl start {socket}")
            return
        for attempt in range(TRIES):
            if self._host.state(service)["active"]:
                self._do(["systemctl", "stop", service])
            try:
                self._do(["systemctl", "start", socket])
                break
            except ListenerError:
                if attempt == TRIES - 1:
                    raise
                self._host.pause(0.5)
        if ran:
            self._do(["systemctl", "start", service])

    def _do(self, argv: list[str]) -> None:
        self.moves.append(" ".join(argv))
        if not self._check:
            self._host.call(argv)

    def _path(self, socket: str) -> str:
        return f"{self._host.folder}/{socket}.d/kvmfleet.conf"

    def _note(self, kind: str, name: str, before: Any) -> None:
        if not self._check:
            self._record.note(kind, name, before)
            self._record.save()

    def _write(self, path: str, text: str) -> None:
        """Whole or not at all. An empty text removes the file, and its folder when nothing else is in it."""
        self.diff.append({"before_header": path, "after_header": path, "before": read(path), "after": text})
        self.moves.append(f"write {path}" if text else f"remove {path}")
        if self._check:
            return
        if not text:
            os.unlink(path)
            if not os.listdir(os.path.dirname(path)):
                os.rmdir(os.path.dirname(path))
            self._record.forget("file", path)
            return
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        self._note("file", path, None)
        descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".kvmfleet")
        with os.fdopen(descriptor, "w") as stream:
            stream.write(text)
            os.fchmod(stream.fileno(), 0o644)
        os.replace(temporary, path)


def settle(host: Host, record: Record, wanted: dict[str, Any], *, check: bool) -> Plan:
    """First ends what is not wanted any more, which may hold the port."""
    plan = Plan(host, record, check)
    candidates = wanted["candidates"]
    for socket in sorted(set(candidates) - set(wanted["sockets"])):
        plan.silence(socket, candidates[socket])
    for socket in wanted["sockets"]:
        plan.listen(socket, candidates[socket], dropin(wanted["addresses"], wanted["port"]))
    return plan


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "sockets": {"type": "list", "elements": "str", "required": True},
            "candidates": {"type": "dict", "required": True},
            "addresses": {"type": "list", "elements": "str", "default": []},
            "port": {"type": "int", "default": USUAL_PORT},
        },
        supports_check_mode=True,
    )
    try:
        with open_record(check=module.check_mode) as record:
            plan = settle(Host(commands.run), record, module.params, check=module.check_mode)
            recorded = record.names("file")
    except (ListenerError, RecordError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    module.exit_json(changed=bool(plan.moves), moves=plan.moves, diff=plan.diff, recorded=recorded)


if __name__ == "__main__":
    main()
