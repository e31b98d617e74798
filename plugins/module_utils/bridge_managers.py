"""What configures a host's network: which of them does, and what each of them is told when a bridge changes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.kvmfleet.host.plugins.module_utils import bridges as declared
from ansible_collections.kvmfleet.host.plugins.module_utils.bridge_change import Commands
from ansible_collections.kvmfleet.host.plugins.module_utils.bridge_host import Host
from ansible_collections.kvmfleet.host.plugins.module_utils.bridges import BridgeError, Port

OTHERS = ("connman", "dhcpcd", "iwd", "netctl", "network", "wicked", "wickedd")  # what we cannot speak to
NM_UP = "nmcli --wait 0 connection up kvmfleet-{bridge}"  # which may wait for its ports


class Manager(NamedTuple):
    """One way to configure a network, in commands. `{bridge}`, `{port}` and `{device}` are filled in.

    A port has its own configuration, which the bridge replaces. A device is what is at the bridge: a port, or one for
    a VLAN.
    """

    name: str
    files: Callable[[Mapping[str, Any], Sequence[Port]], dict[str, str]]
    mode: int
    # While the files are the old ones:
    stop: Sequence[str] = ()
    remove: Sequence[str] = ()  # where it is not to be there afterwards
    drop: Sequence[str] = ()  # for each device of a VLAN that is not to be there afterwards
    release: Sequence[str] = ()  # for each port that comes to the bridge
    # When they are the new ones:
    reload: Sequence[str] = ()
    leave: Sequence[str] = ()  # for each port that leaves the bridge
    free: Sequence[str] = ()  # for each port that left the bridge and has a configuration of its own
    settle: Sequence[str] = ()  # for each port that does not carry a VLAN of the bridge any more
    start: Sequence[str] = ()
    change: Sequence[str] = ()  # instead of that, where it was there before
    attach: Sequence[str] = ()  # for each device that was not at it before


MANAGERS = {
    "networkd": Manager(
        "networkd",
        declared.networkd,
        0o644,
        remove=("ip link delete dev {bridge}",),
        drop=("ip link delete dev {device}",),
        reload=("networkctl reload",),
        leave=("ip link set dev {port} nomaster",),
        free=("networkctl reconfigure {port}",),
        settle=("networkctl reconfigure {port}",),  # one whose VLAN could not be made has failed as a whole
    ),
    "NetworkManager": Manager(
        "NetworkManager",
        declared.keyfiles,
        0o600,
        remove=("nmcli connection delete kvmfleet-{bridge}",),
        reload=("nmcli connection reload",),
        free=("nmcli device connect {port}",),
        start=(NM_UP,),
        change=(f'sh -c "nmcli device reapply {{bridge}} || {NM_UP}"',),  # the former leaves guests at it
        attach=("nmcli connection up kvmfleet-{bridge}-{device}",),
    ),
    "ifupdown": Manager(
        "ifupdown",
        declared.interfaces,
        0o644,
        stop=("ifdown --force {bridge}",),  # or ifup says that it is configured already
        remove=("ip link delete dev {bridge}",),
        release=("ifdown --force {port}",),
        free=("ifup {port}",),
        start=("ifup {bridge}",),
        change=("ifup {bridge}",),
    ),
}


class Shape(NamedTuple):
    """A bridge as it is, or as it is to be."""

    there: bool = False
    ports: Mapping[str, bool] = {}  # whether each has a configuration of its own, which the bridge replaces
    devices: Sequence[str] = ()
    below: Sequence[str] = ()  # the ports that carry its devices for a VLAN


def commands(manager: Manager, bridge: str, old: Shape, new: Shape) -> Commands:
    """From one shape of a bridge to another one."""
    left = [port for port in old.ports if port not in new.ports]
    dropped = [device for device in old.devices if device not in [*old.ports, *new.devices]]
    before = [*_filled(manager.stop, bridge)]
    before += _filled(manager.remove, bridge) if old.there and not new.there else []
    before += _filled(manager.drop, bridge, dropped)
    before += _filled(manager.release, bridge, [port for port in new.ports if port not in old.ports])
    after = [*_filled(manager.reload, bridge), *_filled(manager.leave, bridge, left)]
    after += _filled(manager.free, bridge, [port for port in left if old.ports[port]])
    after += _filled(manager.settle, bridge, [port for port in old.below if port not in new.below])
    if new.there:
        after += _filled(manager.change if old.there else manager.start, bridge)
        after += _filled(manager.attach, bridge, [device for device in new.devices if device not in old.devices])
    return Commands(before, after)


def _filled(commands: Sequence[str], bridge: str, values: Iterable[str] = ("",)) -> list[list[str]]:
    """Each command, for each value of a port or device."""
    return [
        [word.format(bridge=bridge, port=value, device=value) for word in shlex.split(command)]
        for value in values
        for command in commands
    ]


# --- which of them it is


def manager_of(host: Host, ports: Sequence[str]) -> Manager:
    """What configures the ports; where nothing does, what is active on this host."""
    chosen: dict[str, str] = {}
    for port in ports:
        claims = dict(_claims(host, port))
        if len(claims) > 1:
            raise BridgeError(
                f"{port} is configured by {' and by '.join(f'{name} ({path})' for name, path in claims.items())}. "
                "Take it out of all but one, boot the host to see that it is reached, then provision again."
            )
        chosen.update(dict.fromkeys(claims, port))
    if len(chosen) > 1:
        raise BridgeError(
            f"{' and '.join(f'{port} is configured by {name}' for name, port in chosen.items())}: one bridge cannot "
            "have both. Let one of them configure all ports."
        )
    if chosen:
        return MANAGERS[next(iter(chosen))]
    for name in ("NetworkManager", "networkd", "ifupdown"):
        if _runs(host, name):
            return MANAGERS[name]
    others = [unit for unit in OTHERS if host.is_active(unit)]
    found = f"only {', '.join(others)}" if others else "nothing else that is known"
    raise BridgeError(
        f"no NetworkManager, systemd-networkd or ifupdown is active on this host, {found}. Make the bridge by hand, "
        "and take it out of libvirt_networks_bridges."
    )


def _runs(host: Host, name: str) -> bool:
    if name == "ifupdown":
        there = host.exists(declared.INTERFACES) and bool(host.which("ifup"))
        return there and (host.is_active("networking") or not host.has_systemd())
    return host.is_active({"networkd": "systemd-networkd"}.get(name, name))


def _claims(host: Host, port: str) -> Iterable[tuple[str, str]]:
    """Names of what configures a device, with the file by which it does."""
    for name, file_of in FILE_OF.items():
        path = file_of(host, port) if _runs(host, name) else ""
        if path:
            yield name, path


def _networkd_file(host: Host, name: str) -> str:
    index = host.read(f"/sys/class/net/{name}/ifindex").strip()
    state = host.read(f"/run/systemd/netif/links/{index}")
    found = re.search(r"^NETWORK_FILE=(.+)$", state, re.MULTILINE)
    return found[1] if found and "ADMIN_STATE=unmanaged" not in state else ""


def _keyfile(host: Host, name: str) -> str:
    """Of the connection that NetworkManager itself made: of others it only tells."""
    out = host.call(["nmcli", "-t", "-e", "no", "-f", "DEVICE,STATE", "device"])
    if f"{name}:connected" not in out.splitlines():
        return ""
    out = host.call(["nmcli", "-t", "-e", "no", "-f", "DEVICE,FILENAME", "connection", "show", "--active"])
    path = next((line.partition(":")[2] for line in out.splitlines() if line.partition(":")[0] == name), "")
    if path and not path.endswith(".nmconnection"):
        raise BridgeError(f"{name} is configured by {path}, which is no keyfile: run `nmcli connection migrate` first.")
    return path


def _interfaces_file(host: Host, name: str) -> str:
    return next((path for path, text in interfaces(host).items() if declared.configures(text, name)), "")


def interfaces(host: Host) -> dict[str, str]:
    """The files that ifupdown reads, without our own."""
    main = host.read(declared.INTERFACES)
    paths = [declared.INTERFACES, *(path for pattern in declared.included(main) for path in host.found(pattern))]
    return {path: host.read(path) for path in paths if not host.read(path).startswith(declared.HEADER)}


FILE_OF: Mapping[str, Callable[[Host, str], str]] = {
    "NetworkManager": _keyfile,
    "networkd": _networkd_file,
    "ifupdown": _interfaces_file,
}
