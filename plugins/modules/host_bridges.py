#!/usr/bin/python
"""Makes bridges over devices of the host, and takes them back by itself where nobody reaches the host any more."""

from __future__ import annotations

import fnmatch
import hashlib
import ipaddress
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kvmfleet.host.plugins.module_utils import bridge_change as change
from ansible_collections.kvmfleet.host.plugins.module_utils import bridge_managers as managers
from ansible_collections.kvmfleet.host.plugins.module_utils import bridges as declared
from ansible_collections.kvmfleet.host.plugins.module_utils.bridge_change import Step
from ansible_collections.kvmfleet.host.plugins.module_utils.bridge_host import Answer, Host
from ansible_collections.kvmfleet.host.plugins.module_utils.bridge_managers import Manager, Shape
from ansible_collections.kvmfleet.host.plugins.module_utils.bridges import BridgeError, Port
from ansible_collections.kvmfleet.host.plugins.module_utils.record import Record, RecordError, open_record

DOCUMENTATION = """
module: host_bridges
short_description: Makes bridges over devices of the host
description:
  - Writes the configuration of bridges for what configures the host's network (systemd-networkd, also below netplan,
    NetworkManager or ifupdown), and makes it act.
  - Before that it starts a timer that takes the change back. A second call with O(confirm=true), over a new connection,
    stops the timer. Without that call the host returns to what it was, also when it boots before the timer ends (with
    systemd).
  - Bridges that this module made and that are not in the list any more are removed in the same way, unless something
    else is attached to them.
options:
  bridges:
    description: The bridges, as tables. See the README of the role libvirt_networks for the fields.
    type: list
    elements: dict
    default: []
  confirm:
    description: Only say that the host is still reached, which keeps the change before.
    type: bool
    default: false
  rollback_after:
    description: Seconds until a change that nobody confirmed is taken back.
    type: int
    default: 60
author:
  - kvmfleet developers (@kvmfleet)
attributes:
  check_mode:
    description: Whether it can say what it would change, and change nothing.
    support: full
  diff_mode:
    description: Whether it shows the files before and after.
    support: full
"""

EXAMPLES = """
- name: A bridge with the addresses of its port
  kvmfleet.host.host_bridges:
    bridges: [{name: br0, ports: [eth0]}]
  register: made

- name: Keep it, now that the host is reached over a new connection
  kvmfleet.host.host_bridges:
    confirm: true
  when: made.changed
  vars: {ansible_control_path: none}
"""

RETURN = """
manager:
  description: What configures the host's network, one of networkd, NetworkManager and ifupdown.
  returned: when there are bridges
  type: str
bridges:
  description: Name of each bridge to the names of its ports.
  returned: always
  type: dict
files:
  description: Path of each file that makes the bridges to its SHA-256 and mode.
  returned: always
  type: dict
done:
  description: What was done, one sentence each.
  returned: always
  type: list
  elements: str
pending:
  description: What waits until something leaves a bridge, one sentence each.
  returned: always
  type: list
  elements: str
"""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
KIND = "bridge"  # in the record
GONE = (
    "no change waits for this, so it was taken back: no new connection reached the host in time, or it booted. Look at "
    "what is beyond the ports, then provision again."
)


class Plan(NamedTuple):
    """What a bridge is to be, and what is there."""

    bridge: Mapping[str, Any]
    manager: Manager
    ports: Sequence[Port]
    old: Shape
    new: Shape
    files: Mapping[str, str | None]  # None for one that is not to be
    changed: bool


# --- what is to be


def port_of(host: Host, manager: Manager, name: str, origin: Mapping[str, Any]) -> Port:
    """A device and the files that configure it. `origin` is what a file was before we came, by its path."""
    if not host.exists(f"/sys/class/net/{name}"):
        raise BridgeError(f"this host has no {name}. `ip link` lists its devices.")
    mac = host.read(f"/sys/class/net/{name}/address").strip()
    path = origin.get("ports", {}).get(name)
    if path is None:
        path = managers.FILE_OF[manager.name](host, name)
    before = _before_us(host, origin)
    if manager.name == "ifupdown":
        texts = {**managers.interfaces(host), **{path: text for path, text in before.items() if text is not None}}
        files = {path: text for path, text in texts.items() if declared.names(text, name)}
        return Port(name, mac, path, files.get(path, ""), files)
    return Port(name, mac, path, before.get(path) or host.read(path))


def _before_us(host: Host, origin: Mapping[str, Any]) -> dict[str, str | None]:
    """Path -> text of the files that we changed, as they would be without us; None for those that would not be."""
    files: dict[str, str | None] = dict(origin.get("files", {}))
    for path, text in files.items():
        now = host.text(path)
        if text is not None and now is not None:
            files[path] = declared.without_us(text, now, origin["ports"])
    return files


def plan(host: Host, record: Record, bridge: Mapping[str, Any]) -> Plan:
    """Raises BridgeError where the bridge cannot be made without losing something."""
    name = bridge["name"]
    origin = (record.before(KIND, name) or {}) if record.holds(KIND, name) else {}
    manager = managers.MANAGERS[origin["manager"]] if origin else managers.manager_of(host, bridge.get("ports", []))
    ports = [port_of(host, manager, port, origin) for port in bridge.get("ports", [])]
    _stop_where_taken(host, record, bridge)
    if origin:
        _stop_where_changed_away(host, bridge)
    else:
        _stop_where_lost(host, bridge, ports)
    if manager.name == "ifupdown":
        _stop_where_unread(host, name)
    # what it does not need any more goes back
    files = {**_before_us(host, origin), **manager.files(bridge, ports)}
    below = bridge.get("ports", []) if bridge.get("vlan") else []
    new = Shape(True, _replaced(bridge, manager, ports), declared.devices(bridge), below)
    same = all(host.text(path) == text for path, text in files.items())
    old = _shape(host, name, origin)
    if origin and same:  # what somebody took apart is put together again
        old = old._replace(there=True, ports=new.ports)
    if manager.name == "NetworkManager" and old.there:
        _stop_where_guests_lose(host, name, origin, files)
    return Plan(bridge, manager, ports, old, new, files, not same or _lacking(host, bridge, old) != [])


def _replaced(bridge: Mapping[str, Any], manager: Manager, ports: Sequence[Port]) -> dict[str, bool]:
    own = [port for port in ports if manager.name != "ifupdown" or not declared.stays(port)]
    return {port.name: bool(port.path) for port in own if port.name in declared.taken(bridge)}


def _shape(host: Host, name: str, origin: Mapping[str, Any]) -> Shape:
    """As it is. What others put at it is none of its devices."""
    if not origin or not (host.exists(f"/sys/class/net/{name}") or _own_files(host, origin)):
        return Shape()
    ports: Mapping[str, str] = origin["ports"]
    devices = [device for device in host.devices(name) if _is_own(device, ports)]
    staying = origin["manager"] == "ifupdown"
    return Shape(
        True,
        {
            device: bool(ports[device])
            for device in devices
            if device in ports and not (staying and declared.configures(host.read(ports[device]), device))
        },
        devices,
        [device.rpartition(".")[0] for device in devices if device not in ports],
    )


def _own_files(host: Host, origin: Mapping[str, Any]) -> list[str]:
    return [path for path, text in origin["files"].items() if text is None and host.exists(path)]


def _is_own(device: str, ports: Iterable[str]) -> bool:
    return device in ports or device.rpartition(".")[0] in ports


def _lacking(host: Host, bridge: Mapping[str, Any], old: Shape) -> list[str]:
    """What is not as it is to be about the devices of a bridge, in words."""
    if not host.exists(f"/sys/class/net/{bridge['name']}/bridge"):
        return ["it is not there"]
    wanted, found = declared.devices(bridge), host.devices(bridge["name"])
    left = [device for device in old.devices if device in found and device not in wanted]
    return [f"{device} is not at it" for device in wanted if device not in found] + [
        f"{device} is still at it" for device in left
    ]


def _stop_where_unread(host: Host, name: str) -> None:
    path = declared.own_interfaces(name)
    patterns = declared.included(host.read(declared.INTERFACES))
    if not any(fnmatch.fnmatch(path, pattern) for pattern in patterns):
        raise BridgeError(
            f"{declared.INTERFACES} does not read {path}: add the line `source {declared.INTERFACES}.d/*` first."
        )


def _stop_where_taken(host: Host, record: Record, bridge: Mapping[str, Any]) -> None:
    for device in declared.devices(bridge):
        master = host.master(device)
        if not master or master == bridge["name"]:
            continue
        if record.holds(KIND, master):
            raise BridgeError(
                f"{device} is at {master}, which was made here. Take it out there, provision, then put it at "
                f"{bridge['name']} and provision again."
            )
        raise BridgeError(f"{device} is a part of {master} already. Take it out there first, or use {master} as it is.")


def _stop_where_guests_lose(host: Host, name: str, origin: Mapping[str, Any], files: Mapping[str, str | None]) -> None:
    """NetworkManager activates a bridge anew where more than its addresses change, and takes guests off it then."""
    guests = [device for device in host.devices(name) if not _is_own(device, origin["ports"])]
    path = declared.own_keyfile(name)
    if guests and declared.link_of(files[path] or "") != declared.link_of(host.read(path)):
        raise BridgeError(
            f"{', '.join(guests)} is at it, and NetworkManager would take that off to give the bridge another first "
            "port. Shut those guests down first."
        )


def _stop_where_changed_away(host: Host, bridge: Mapping[str, Any]) -> None:
    name = bridge["name"]
    came_here = host.came_to in {address.partition("/")[0] for address in host.addresses(name)}
    listed = bridge.get("addresses", "dhcp")
    if host.came_to and came_here and listed != "dhcp" and host.came_to not in _plain(listed):
        raise BridgeError(
            f"the connection to this host goes to {host.came_to}, which {name} has and would lose. Leave it in "
            "`addresses`."
        )


def _plain(addresses: Iterable[Any]) -> set[str]:
    """Without the length of their subnet."""
    return {str(ipaddress.ip_interface(address).ip) for address in addresses}


def _stop_where_lost(host: Host, bridge: Mapping[str, Any], ports: Sequence[Port]) -> None:
    name, vlan = bridge["name"], bridge.get("vlan")
    for made in [name, *(declared.devices(bridge) if vlan else [])]:
        if host.exists(f"/sys/class/net/{made}"):
            raise BridgeError(
                f"{made} is there already, and was not made here. Use it as it is, and take it out of "
                "libvirt_networks_bridges."
            )
    for port in [] if vlan else ports:
        given = {address.partition("/")[0] for address in host.addresses(port.name)}
        needed = host.came_to in given if host.came_to else host.leads_out(port.name)
        listed = bridge.get("addresses", [])
        kept = declared.takes_over(bridge) or listed == "dhcp" or host.came_to in _plain(listed)
        if needed and port.name != ports[0].name:
            raise BridgeError(f"the connection to this host goes through {port.name}: name it as the first port.")
        if needed and not kept:
            raise BridgeError(
                f"the connection to this host goes through {port.name}{' to ' + host.came_to if host.came_to else ''}, "
                "and would be lost. Leave `addresses` out, so that the bridge takes over those of the port, or "
                "add that one."
            )
        if given and not port.path:
            raise BridgeError(
                f"{port.name} has addresses that no file configures, so they could not be taken over, nor given back. "
                "Remove them, or write them into the host's configuration of its network."
            )


# --- the way there


class Result(NamedTuple):
    done: list[str]
    pending: list[str]
    diffs: list[dict[str, str]]
    bridges: dict[str, list[str]]
    files: dict[str, dict[str, Any]]
    manager: str


def settle(
    host: Host, record: Record, bridges: Sequence[Mapping[str, Any]], *, check: bool = False, rollback_after_s: int = 60
) -> Result:
    """Makes the bridges those of the list, and leaves a timer that takes that back.

    Raises:
        BridgeError: it cannot be done, or did not work; then the host is as it was.
    """
    # we are here, so an earlier change that nobody confirmed did not cut the host off
    if not check and change.is_waiting(host) and not confirm(host, record):
        raise BridgeError("an earlier change is being taken back at this moment. Provision again in a minute.")
    for name in [name for name in record.names(KIND) if _is_gone(host, record, name)]:
        record.forget(KIND, name)  # it was taken back by its timer, or at boot
    result = Result([], [], [], {}, {}, "")
    plans = [_planned(host, record, bridge) for bridge in bridges]
    surplus = [name for name in record.names(KIND) if name not in {bridge["name"] for bridge in bridges}]
    for name in reversed(surplus):  # the last one first, which leads back to the files as they were
        _give_back(host, record, result, name, check, rollback_after_s)
    for item in plans:
        if result.done and not check:
            item = _planned(host, record, item.bridge)  # two of them may be about one file
        name = item.bridge["name"]
        result.bridges[name] = declared.devices(item.bridge)
        result.files.update(
            {
                path: {"sha256": hashlib.sha256(_bytes(text)).hexdigest(), "mode": _mode(host, item, path)}
                for path, text in item.files.items()
                if text is not None
            }
        )
        result = result._replace(manager=item.manager.name)
        if item.changed:
            result.done.append(f"{name}: made" if not record.holds(KIND, name) else f"{name}: changed")
            result.diffs.extend(_diff(path, host.read(path), text or "") for path, text in item.files.items())
            if not check:
                _make(host, record, item, rollback_after_s)
    return result


def _planned(host: Host, record: Record, bridge: Mapping[str, Any]) -> Plan:
    try:
        return plan(host, record, bridge)
    except BridgeError as error:
        raise BridgeError(f"bridge {bridge['name']}: {error}") from error


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def _mode(host: Host, item: Plan, path: str) -> int:
    """That of the file that is there. One for ifupdown gets that of the file its stanzas are from: they may hold
    passwords.
    """
    models = [path, *(port.path for port in item.ports[:1] if port.path and item.manager.name == "ifupdown")]
    found = [host.mode(model) for model in models if host.exists(model)]
    return found[0] if found else item.manager.mode


def _diff(path: str, before: str, after: str) -> dict[str, str]:
    return {"before_header": path, "after_header": path, "before": before, "after": after}


def _make(host: Host, record: Record, item: Plan, rollback_after_s: int) -> None:
    name, new = item.bridge["name"], not item.old.there
    step = _step(host, item)
    _note(record, item, step.old)
    expected, some = _expected(host, item)
    out = new and declared.takes_over(item.bridge) and host.leads_out(item.ports[0].name)
    try:
        change.carry_out(host, change.arm(host, step, rollback_after_s))
        _await(host, item, expected, some, out)
    except (BridgeError, OSError) as error:
        taken_back = change.take_back(host)
        if new:
            record.forget(KIND, name)
        raise BridgeError(f"bridge {name}: {error}. {taken_back}") from error


def _step(host: Host, item: Plan) -> Step:
    name = item.bridge["name"]
    old = {path: host.text(path) for path in item.files}
    modes = {path: _mode(host, item, path) for path in item.files}
    do, undo = (managers.commands(item.manager, name, *ways) for ways in ((item.old, item.new), (item.new, item.old)))
    return Step(name, old, item.files, modes, do, undo)


def _note(record: Record, item: Plan, old: Mapping[str, str | None]) -> None:
    """Remembers the files before our first change of each."""
    name = item.bridge["name"]
    record.note(KIND, name, {"manager": item.manager.name, "files": {}, "ports": {}})
    before = record.before(KIND, name)
    for path, text in old.items():
        before["files"].setdefault(path, text)
    for port in item.ports:
        before["ports"].setdefault(port.name, port.path)
    record.save()


def _expected(host: Host, item: Plan) -> tuple[set[str], bool]:
    """The addresses that the bridge has when it is done, as far as they are known; whether it has any."""
    listed = item.bridge.get("addresses", [])
    if declared.takes_over(item.bridge):
        now = host.addresses(item.bridge["name"] if item.old.there else item.ports[0].name)
        return set() if item.old.there else now, bool(now)
    if listed == "dhcp":
        return set(), bool(item.ports)
    return {str(ipaddress.ip_interface(address)) for address in listed}, bool(listed)


def _await(host: Host, item: Plan, expected: set[str], some: bool, out: bool) -> None:
    """Until the bridge is what it should be. Raises BridgeError when it does not become that."""
    name, end = item.bridge["name"], time.monotonic() + host.patience_s
    while True:
        lacking = _lacking(host, item.bridge, item.old)
        found = host.addresses(name)
        lacking += [f"it has not the address {address}" for address in sorted(expected - found)]
        lacking += ["it has no address"] if some and not found else []
        lacking += ["no default route goes through it"] if out and not host.leads_out(name) else []
        if not lacking:
            return
        if time.monotonic() >= end:
            raise BridgeError(f"after {host.patience_s:g} s {', '.join(lacking)}")
        time.sleep(0.2)


# --- the way back


def confirm(host: Host, record: Record) -> bool:
    """Keeps the change, and forgets the bridges that are gone for good. False where nothing waited for it."""
    if not change.confirm(host):
        return False
    for name in record.names(KIND):
        if _is_gone(host, record, name):
            record.forget(KIND, name)
    return True


def _is_gone(host: Host, record: Record, name: str) -> bool:
    before = _before_us(host, record.before(KIND, name))
    return not host.exists(f"/sys/class/net/{name}") and all(host.text(path) == text for path, text in before.items())


def _give_back(host: Host, record: Record, result: Result, name: str, check: bool, after_s: int) -> None:
    """Removes a bridge that we made, and puts its files back."""
    origin = record.before(KIND, name)
    foreign = [device for device in host.devices(name) if not _is_own(device, origin["ports"])]
    if foreign:
        result.pending.append(
            f"{name}: is not in libvirt_networks_bridges any more, and stays, because {', '.join(foreign)} "
            "is at it. Give those guests another network, then provision again."
        )
        return
    ports = [Port(port, path=path) for port, path in origin["ports"].items()]
    old, files = _shape(host, name, origin), _before_us(host, origin)
    item = Plan({"name": name}, managers.MANAGERS[origin["manager"]], ports, old, Shape(), files, True)
    result.done.append(f"{name}: removed")
    result.diffs.extend(_diff(path, host.read(path), text or "") for path, text in files.items())
    if check:
        return
    try:
        change.carry_out(host, change.arm(host, _step(host, item), after_s))
    except (BridgeError, OSError) as error:
        raise BridgeError(f"bridge {name}: {error}. {change.take_back(host)}") from error


def run(argv: Sequence[str]) -> Answer:
    environment = {"PATH": PATH, "LC_ALL": "C", "HOME": "/root"}
    done = subprocess.run(
        list(argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        check=False,
    )
    return done.returncode, done.stdout.decode(errors="replace")


def ssh_address(proc: str = "/proc") -> str:
    """The address of this host that the ssh connection came to which started us; "" for none."""
    pid = os.getpid()
    while pid > 1:
        try:
            with open(f"{proc}/{pid}/environ", "rb") as stream:
                found = re.search(rb"(?:^|\0)SSH_CONNECTION=\S+ \S+ (\S+) ", stream.read())
            if found:
                return found[1].decode()
            with open(f"{proc}/{pid}/status", encoding="utf-8") as stream:
                parent = re.search(r"^PPid:\s*(\d+)", stream.read(), re.MULTILINE)
        except OSError:
            return ""
        pid = int(parent[1]) if parent else 0
    return ""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "bridges": {"type": "list", "elements": "dict", "default": []},
            "confirm": {"type": "bool", "default": False},
            "rollback_after": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    host = Host(run, which=lambda command: shutil.which(command, path=PATH), came_to=ssh_address())
    bridges, check = module.params["bridges"], module.check_mode
    problems = declared.wrong(bridges)
    if problems:
        module.fail_json(msg="\n".join(problems))
    try:
        with open_record(check=check) as record:
            if not module.params["confirm"]:
                result = settle(host, record, bridges, check=check, rollback_after_s=module.params["rollback_after"])
            elif check or confirm(host, record):
                module.exit_json(changed=False)
            else:
                raise BridgeError(GONE)
    except (BridgeError, RecordError) as error:
        module.fail_json(msg=f"libvirt_networks_bridges: {error}")
    except OSError as error:
        module.fail_json(msg=f"libvirt_networks_bridges: {error.filename}: {error.strerror}")
    module.exit_json(
        changed=bool(result.done),
        manager=result.manager,
        bridges=result.bridges,
        files=result.files,
        done=result.done,
        pending=result.pending,
        diff=result.diffs,
    )


if __name__ == "__main__":
    main()
