#!/usr/bin/python
"""Makes bridges over devices of the host, and takes them back by itself where nobody reaches the host any more."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kvmfleet.host.plugins.module_utils import bridges as declared
from ansible_collections.kvmfleet.host.plugins.module_utils.bridges import BridgeError, Port
from ansible_collections.kvmfleet.host.plugins.module_utils.record import Record, RecordError, open_record

DOCUMENTATION = """
module: host_bridges
short_description: Makes bridges over devices of the host
description:
  - Writes the configuration of bridges for what configures the host's network (systemd-networkd, also below netplan,
    NetworkManager or ifupdown), and makes it act.
  - Before that it starts a timer that puts the files back as they were. A second call with O(confirm=true), over a new
    connection, stops the timer. Without that call the host returns to what it was.
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
FOLDER = "/var/lib/kvmfleet/bridges"  # what the rollback needs; gone once the change is confirmed
UNIT = "kvmfleet-bridges-rollback"
SHARP = ("--timer-property=AccuracySec=1s", "/bin/sh", f"{FOLDER}/rollback.sh")
ROLLBACK = f"""#!/bin/sh
# Takes back a change of the network that nobody confirmed over a new connection.
for undo in {FOLDER}/*/undo.sh; do
  /bin/sh "$undo"
done
rm -rf {FOLDER}
"""
PATIENCE_S = 25.0
GONE = (
    "no change waits for this, so it was taken back: no new connection reached the host in time. Look at what is "
    "beyond the ports, then provision again."
)

Answer = tuple[int, str]


class Host(NamedTuple):
    """Where this touches the host; tests put something else there."""

    run: Callable[[Sequence[str]], Answer]
    root: str = ""
    which: Callable[[str], Any] = shutil.which
    patience_s: float = PATIENCE_S
    came_to: str = ""  # the address of this host that the ssh connection goes to

    def read(self, path: str) -> str:
        try:
            with open(self.root + path, encoding="utf-8") as stream:
                return stream.read()
        except OSError:
            return ""

    def text(self, path: str) -> str | None:
        """None where there is no such file."""
        return self.read(path) if self.exists(path) else None

    def exists(self, path: str) -> bool:
        return os.path.exists(self.root + path)

    def write(self, path: str, text: str | None, mode: int) -> None:
        """Whole or not at all; None removes."""
        if text is None:
            if self.exists(path):
                os.unlink(self.root + path)
            return
        os.makedirs(os.path.dirname(self.root + path), 0o755, exist_ok=True)
        with open(self.root + path + ".kvmfleet", "w", encoding="utf-8") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(text)
        os.replace(stream.name, self.root + path)

    def copy(self, path: str, to: str) -> None:
        """With mode and owner: systemd-networkd is not root, and reads its files all the same."""
        shutil.copy2(self.root + path, self.root + to)
        status = os.stat(self.root + path)
        os.chown(self.root + to, status.st_uid, status.st_gid)

    def call(self, argv: Sequence[str]) -> str:
        code, out = self.run(argv)
        if code:
            raise BridgeError(f"`{' '.join(argv)}` ended with {code}: {' '.join(out.split())}")
        return out

    def ports(self, bridge: str) -> list[str]:
        return sorted(map(os.path.basename, glob.glob(f"{self.root}/sys/class/net/{bridge}/brif/*")))

    def addresses(self, device: str) -> set[str]:
        """Global addresses with the length of their subnet."""
        _, out = self.run(["ip", "-o", "addr", "show", "dev", device, "scope", "global"])
        return set(re.findall(r" inet6? (\S+)", out))

    def leads_out(self, device: str) -> bool:
        """Whether a default route goes through it."""
        return any(
            line.split()[:2] == [device, "00000000"] and line.split()[7] == "00000000"
            for line in self.read("/proc/net/route").splitlines()[1:]
        )


class Manager(NamedTuple):
    """One way to configure a network, in commands. `{bridge}`, `{port}` and `{connection}` are filled in."""

    name: str
    files: Callable[[Mapping[str, Any], Sequence[Port]], dict[str, str]]
    mode: int
    before: Sequence[str]  # before the files are written, for each port that gives its addresses away
    apply: Sequence[str]
    undo: Sequence[str]  # after the files are back
    undo_before: Sequence[str]


MANAGERS = {
    "networkd": Manager(
        "networkd",
        declared.networkd,
        0o644,
        (),
        ("networkctl reload",),
        ("networkctl reload", "networkctl reconfigure {port}"),
        ("ip link delete dev {device}",),
    ),
    "NetworkManager": Manager(
        "NetworkManager",
        declared.keyfiles,
        0o600,
        (),
        (
            "nmcli connection reload",
            "nmcli connection up kvmfleet-{bridge}",
            "nmcli connection up kvmfleet-{bridge}-{port}",
        ),
        ("nmcli connection reload", "nmcli device connect {port}"),
        ("nmcli connection delete kvmfleet-{bridge}",),
    ),
    "ifupdown": Manager(
        "ifupdown",
        declared.interfaces,
        0o644,
        ("ifdown --force {port}",),
        ("ifup {bridge}",),
        ("ifup {port}",),
        ("ifdown --force {bridge}",),
    ),
}


class Plan(NamedTuple):
    """What a bridge is to be, and what is there."""

    bridge: Mapping[str, Any]
    manager: Manager
    ports: Sequence[Port]
    files: Mapping[str, str | None]  # None for one that is not to be
    changed: bool


def manager_of(host: Host) -> Manager:
    """What configures this host's network."""
    for unit, name in (
        ("NetworkManager", "NetworkManager"),
        ("systemd-networkd", "networkd"),
        ("networking", "ifupdown"),
    ):
        if host.which("systemctl") and host.run(["systemctl", "is-active", "--quiet", unit])[0] == 0:
            return MANAGERS[name]
    if host.exists(declared.INTERFACES) and host.which("ifup"):
        return MANAGERS["ifupdown"]
    raise BridgeError(
        "nothing is active that could make a bridge: no NetworkManager, systemd-networkd or ifupdown. Make the bridge "
        "by hand, and take it out of libvirt_networks_bridges."
    )


def port_of(host: Host, manager: Manager, name: str, origin: Mapping[str, Any]) -> Port:
    """A device and the file that configures it. `origin` is what a file was before we came, by its path."""
    if not host.exists(f"/sys/class/net/{name}"):
        raise BridgeError(f"this host has no {name}. `ip link` lists its devices.")
    mac = host.read(f"/sys/class/net/{name}/address").strip()
    path = origin.get("ports", {}).get(name)
    if path is None:
        path = {"networkd": _networkd_file, "NetworkManager": _keyfile, "ifupdown": _interfaces_file}[manager.name](
            host, name
        )
    text = origin.get("files", {}).get(path) or host.read(path)
    return Port(name, mac, path, text)


def _networkd_file(host: Host, name: str) -> str:
    index = host.read(f"/sys/class/net/{name}/ifindex").strip()
    found = re.search(r"^NETWORK_FILE=(.+)$", host.read(f"/run/systemd/netif/links/{index}"), re.MULTILINE)
    return found[1] if found else ""


def _keyfile(host: Host, name: str) -> str:
    out = host.call(["nmcli", "-t", "-f", "DEVICE,FILENAME", "connection", "show", "--active"])
    path = next((line.partition(":")[2] for line in out.splitlines() if line.partition(":")[0] == name), "")
    if path and not path.endswith(".nmconnection"):
        raise BridgeError(f"{name} is configured by {path}, which is no keyfile: run `nmcli connection migrate` first.")
    return path


def _interfaces_file(host: Host, name: str) -> str:
    paths = [declared.INTERFACES, *sorted(glob.glob(f"{host.root}{declared.INTERFACES}.d/*"))]
    for path in (path[len(host.root) :] if host.root and path.startswith(host.root) else path for path in paths):
        if re.search(rf"^iface\s+{re.escape(name)}\s", host.read(path), re.MULTILINE):
            return path
    return ""


def plan(host: Host, record: Record, bridge: Mapping[str, Any]) -> Plan:
    """Raises BridgeError where the bridge cannot be made without losing something."""
    name = bridge["name"]
    origin = (record.before(KIND, name) or {}) if record.holds(KIND, name) else {}
    manager = MANAGERS[origin["manager"]] if origin else manager_of(host)
    ports = [port_of(host, manager, port, origin) for port in bridge.get("ports", [])]
    if not origin:
        _stop_where_lost(host, bridge, ports)
    if manager.name == "ifupdown" and f"{declared.INTERFACES}.d" not in host.read(declared.INTERFACES):
        raise BridgeError(
            f"{declared.INTERFACES} reads no files of {declared.INTERFACES}.d: add a `source` line first."
        )
    files = {**origin.get("files", {}), **manager.files(bridge, ports)}  # what it does not need any more goes back
    changed = any(host.text(path) != text for path, text in files.items()) or not _attached(host, bridge)
    return Plan(bridge, manager, ports, files, changed)


def _attached(host: Host, bridge: Mapping[str, Any]) -> bool:
    there = host.exists(f"/sys/class/net/{bridge['name']}/bridge")
    return there and set(declared.devices(bridge)) <= set(host.ports(bridge["name"]))


def _stop_where_lost(host: Host, bridge: Mapping[str, Any], ports: Sequence[Port]) -> None:
    name = bridge["name"]
    if host.exists(f"/sys/class/net/{name}"):
        raise BridgeError(
            f"{name} is there already, and was not made here. Use it as it is, and take it out of "
            "libvirt_networks_bridges."
        )
    for port in ports:
        if host.exists(f"/sys/class/net/{port.name}/master") and not bridge.get("vlan"):
            raise BridgeError(f"{port.name} is a part of another bridge or bond already.")
        given = {address.partition("/")[0] for address in host.addresses(port.name)}
        needed = host.came_to in given if host.came_to else host.leads_out(port.name)
        kept = declared.takes_over(bridge) or bridge.get("vlan") or bridge.get("addresses") == "dhcp"
        declared_ones = {str(address).partition("/")[0] for address in bridge.get("addresses", [])}
        if (
            needed
            and port.name == ports[0].name
            and not kept
            and (not host.came_to or host.came_to not in declared_ones)
        ):
            raise BridgeError(
                f"the connection to this host goes through {port.name}{' to ' + host.came_to if host.came_to else ''}, "
                "and would be lost. Leave `addresses` out, so that the bridge takes over those of the port, or "
                "add that one."
            )
        if needed and port.name != ports[0].name:
            raise BridgeError(f"the connection to this host goes through {port.name}: name it as the first port.")
        if given and declared.takes_over(bridge) and not port.path:
            raise BridgeError(f"{port.name} has addresses that no file configures, so they cannot be taken over.")


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
    if not check and host.exists(FOLDER):
        confirm(host, record)  # we are here, so an earlier change that nobody confirmed did not cut the host off
    result = Result([], [], [], {}, {}, "")
    plans = []
    for bridge in bridges:
        try:
            plans.append(plan(host, record, bridge))
        except BridgeError as error:
            raise BridgeError(f"bridge {bridge['name']}: {error}") from error
    surplus = [name for name in record.names(KIND) if name not in {bridge["name"] for bridge in bridges}]
    for name in surplus:
        _give_back(host, record, result, name, check, rollback_after_s)
    for item in plans:
        name = item.bridge["name"]
        result.bridges[name] = declared.devices(item.bridge)
        result.files.update(
            {
                path: {"sha256": hashlib.sha256(text.encode()).hexdigest(), "mode": item.manager.mode}
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


def _diff(path: str, before: str, after: str) -> dict[str, str]:
    return {"before_header": path, "after_header": path, "before": before, "after": after}


def _make(host: Host, record: Record, item: Plan, rollback_after_s: int) -> None:
    name = item.bridge["name"]
    old = {path: host.text(path) for path in item.files}
    _note(record, item, old)
    kept = host.addresses(item.ports[0].name) if item.ports and declared.takes_over(item.bridge) else set()
    out = bool(item.ports) and host.leads_out(item.ports[0].name) and not item.bridge.get("vlan")
    new = not host.exists(f"/sys/class/net/{name}")
    _arm(
        host,
        name,
        old,
        _filled(item.manager.undo_before, item) if new else [],
        _filled(item.manager.undo, item),
        rollback_after_s,
    )
    try:
        if new and declared.takes_over(item.bridge):
            _run_all(host, _filled(item.manager.before, item))
        for path, text in item.files.items():
            host.write(path, text, item.manager.mode)
        _run_all(host, _filled(item.manager.apply, item))
        _await(host, item, kept, out)
    except (BridgeError, OSError) as error:
        taken_back = _take_back(host)
        if new:
            record.forget(KIND, name)
        raise BridgeError(f"bridge {name}: {error}. {taken_back}") from error


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


def _filled(commands: Sequence[str], item: Plan) -> list[list[str]]:
    """Each command once, or once for each port or device where it names one."""
    name, found = item.bridge["name"], []
    ports = (
        declared.devices(item.bridge) if item.manager.name == "NetworkManager" else [port.name for port in item.ports]
    )
    own = [name, *(declared.devices(item.bridge) if item.bridge.get("vlan") else [])]
    for command in commands:
        key = "{port}" if "{port}" in command else "{device}" if "{device}" in command else ""
        for value in {"{port}": ports, "{device}": own}.get(key, [""]):
            found.append(command.replace(key or "\0", value).replace("{bridge}", name).split())
    return found


def _run_all(host: Host, commands: Sequence[Sequence[str]]) -> None:
    for argv in commands:
        host.call(argv)


def _await(host: Host, item: Plan, kept: set[str], out: bool) -> None:
    """Until the bridge is what it should be. Raises BridgeError when it does not become that."""
    name, end = item.bridge["name"], time.monotonic() + host.patience_s
    while True:
        lacking = [
            f"{device} is not at it" for device in declared.devices(item.bridge) if device not in host.ports(name)
        ]
        if not host.exists(f"/sys/class/net/{name}/bridge"):
            lacking = ["it is not there"]
        lacking += [f"it has not the address {address}" for address in sorted(kept - host.addresses(name))]
        lacking += ["no default route goes through it"] if out and not host.leads_out(name) else []
        if not lacking:
            return
        if time.monotonic() >= end:
            raise BridgeError(f"after {host.patience_s:g} s {', '.join(lacking)}")
        time.sleep(0.2)


# --- the way back


def _arm(host: Host, name: str, old: Mapping[str, str | None], first: Any, last: Any, after_s: int) -> None:
    """Writes the script that takes the change of a bridge back, and starts the timer for those of this run anew."""
    folder = f"{FOLDER}/{name}"
    lines = [" ".join(map(shlex.quote, argv)) + " || true" for argv in first]
    os.makedirs(host.root + folder, 0o700, exist_ok=True)
    for number, (path, text) in enumerate(old.items()):
        if text is None:
            lines.append(f"rm -f {shlex.quote(path)}")
        else:
            host.copy(path, f"{folder}/{number}")
            lines.append(f"cp -p {folder}/{number} {shlex.quote(path)}")
    lines += [" ".join(map(shlex.quote, argv)) + " || true" for argv in last]
    host.write(f"{folder}/undo.sh", "\n".join(lines) + "\n", 0o700)
    host.write(f"{FOLDER}/rollback.sh", ROLLBACK, 0o700)
    if host.which("systemd-run") and host.exists("/run/systemd/system"):
        _disarm(host)
        host.call(
            ["systemd-run", "--quiet", "--collect", f"--unit={UNIT}", f"--on-active={after_s}s", *SHARP],
        )
        return
    waiting = f"sleep {after_s}; [ ! -e {folder}/undo.sh ] || exec /bin/sh {FOLDER}/rollback.sh"
    host.call(["setsid", "--fork", "/bin/sh", "-c", f"({waiting}) </dev/null >/dev/null 2>&1"])


def confirm(host: Host, record: Record) -> bool:
    """Stops the timer, and forgets the bridges that are gone for good. Says whether there was a timer."""
    if not host.exists(FOLDER):
        return False
    _disarm(host)
    shutil.rmtree(host.root + FOLDER)
    for name in record.names(KIND):
        if _is_gone(host, record, name):
            record.forget(KIND, name)
    return True


def _is_gone(host: Host, record: Record, name: str) -> bool:
    files = record.before(KIND, name)["files"]
    return not host.exists(f"/sys/class/net/{name}") and all(host.text(path) == old for path, old in files.items())


def _disarm(host: Host) -> None:
    if host.which("systemctl"):
        host.run(["systemctl", "stop", f"{UNIT}.timer"])


def _take_back(host: Host) -> str:
    _disarm(host)
    code, out = host.run(["/bin/sh", f"{FOLDER}/rollback.sh"])
    if code:
        return f"Taking it back ended with {code}, too: {' '.join(out.split())}. Look at the host's network."
    return "The host's network is as it was before."


def _give_back(host: Host, record: Record, result: Result, name: str, check: bool, after_s: int) -> None:
    """Removes a bridge that we made, and puts its files back."""
    before = record.before(KIND, name)
    manager = MANAGERS[before["manager"]]
    if _is_gone(host, record, name):  # it was taken back by its timer
        record.forget(KIND, name)
        return
    foreign = [port for port in host.ports(name) if port.partition(".")[0] not in before["ports"]]
    if foreign:
        result.pending.append(
            f"{name}: is not in libvirt_networks_bridges any more, and stays, because {', '.join(foreign)} "
            "is at it. Give those guests another network, then provision again."
        )
        return
    result.done.append(f"{name}: removed")
    result.diffs.extend(_diff(path, host.read(path), old or "") for path, old in before["files"].items())
    if check:
        return
    devices = [port for port in host.ports(name) if port not in before["ports"]]
    item = Plan(
        {"name": name, "ports": list(before["ports"])}, manager, [Port(port) for port in before["ports"]], {}, True
    )
    now = {path: host.text(path) for path in before["files"]}
    _arm(host, name, now, [], _filled(manager.apply, item), after_s)
    try:
        for argv in [
            *_filled(manager.undo_before, item),
            *(["ip", "link", "delete", "dev", device] for device in devices),
        ]:
            host.run(argv)
        for path, old in before["files"].items():
            host.write(path, old, manager.mode)
        _run_all(host, _filled(manager.undo, item))
    except (BridgeError, OSError) as error:
        raise BridgeError(f"bridge {name}: {error}. {_take_back(host)}") from error


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
