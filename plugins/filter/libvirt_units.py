"""Jinja filters of the role libvirt: which daemons a host should have, and how its settings are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

Standing = Mapping[str, bool]
"""Where a unit is: {enabled, active, masked}."""

# The first daemon of a family is the one that runs guests and reads qemu.conf. The others of the modular family have
# objects of their own to start with the host; virtproxyd only forwards, so its sockets are enough.
DAEMONS = {
    "monolithic": ("libvirtd",),
    "modular": (
        "virtqemud",
        "virtinterfaced",
        "virtnetworkd",
        "virtnodedevd",
        "virtnwfilterd",
        "virtsecretd",
        "virtstoraged",
    ),
}
PROXIES = {"monolithic": (), "modular": ("virtproxyd",)}
KINDS = (".socket", "-ro.socket", "-admin.socket")
LISTENERS = ("-tcp.socket", "-tls.socket")  # of the daemon with libvirt's own address, where somebody wants them
LOG = "virtlogd"  # holds the guests' logs: never stopped, never restarted

# libvirt reads these, but under socket activation systemd has made the sockets before libvirt starts.
OF_THE_SOCKETS = (
    "listen_addr",
    "listen_tcp",
    "listen_tls",
    "tcp_port",
    "tls_port",
    "unix_sock_admin_perms",
    "unix_sock_dir",
    "unix_sock_group",
    "unix_sock_ro_perms",
    "unix_sock_rw_perms",
)


def sockets(family: str, *, systemd: bool) -> list[str]:
    """The sockets of a family; OpenRC has none."""
    if not systemd:
        return []
    return [daemon + kind for daemon in DAEMONS[family] + PROXIES[family] for kind in KINDS] + [LOG + ".socket"]


def services(family: str, *, systemd: bool) -> list[str]:
    """The services of a family, the one that runs guests first."""
    if systemd:
        return [daemon + ".service" for daemon in DAEMONS[family]]
    return [*DAEMONS[family], LOG]


def units(*, systemd: bool) -> list[str]:
    """Every unit of both families, and every service that can hold a socket of theirs."""
    found = [
        name for family in DAEMONS for name in services(family, systemd=systemd) + sockets(family, systemd=systemd)
    ]
    holders = [owner(name) for name in found if name.endswith(".socket")]
    return list(dict.fromkeys(found + holders + (listeners() if systemd else [])))


def listeners(*families: str) -> list[str]:
    """The sockets for other hosts, of some families or of both."""
    names = [(PROXIES[family] or DAEMONS[family])[0] for family in families or DAEMONS]
    return [name + kind for name in names for kind in LISTENERS]


def plan(seen: Mapping[str, Standing], asked: str, usual: str, *, systemd: bool) -> dict[str, Any]:
    """What a host should have, and the moves that bring it there.

    `seen` holds the units that exist, `asked` is a family or auto, `usual` is the platform's family. A host that has
    neither family yet, as in check mode before the first run, gets the plan of the one it will have, without moves.
    `readers` are the daemons that run and have read the settings of their files.
    """
    family = choose(seen, asked, usual, systemd=systemd)
    wanted = {
        "sockets": [name for name in sockets(family, systemd=systemd) if not seen or name in seen],
        "services": [name for name in services(family, systemd=systemd) if not seen or name in seen],
    }
    main = services(family, systemd=systemd)[0]
    moves = [*leave(seen, family, systemd=systemd), *enter(seen, wanted, systemd=systemd)]
    readers = [name for name in (main, *proxies(family)) if seen.get(name, {}).get("active")]
    return {"family": family, "main": main, "present": main in seen, "moves": moves, "readers": readers, **wanted}


def proxies(family: str) -> list[str]:
    """The services through which other machines reach a family, where those are not its first."""
    return [name + ".service" for name in PROXIES[family]]


def choose(seen: Mapping[str, Standing], asked: str, usual: str, *, systemd: bool) -> str:
    """The family asked for; else the only one in use; else the platform's; else the one that is there."""
    there = [family for family in DAEMONS if services(family, systemd=systemd)[0] in seen]
    used = [family for family in there if in_use(seen, DAEMONS[family][0])]
    if asked != "auto":
        return asked
    if len(used) == 1:
        return used[0]
    return usual if usual in there or not there else there[0]


def in_use(seen: Mapping[str, Standing], daemon: str) -> bool:
    """Whether a daemon would answer, now or after the next boot."""
    return any(stirs(seen, name) for name in (daemon, daemon + ".service", daemon + ".socket"))


def stirs(seen: Mapping[str, Standing], name: str) -> bool:
    """Whether a unit is there, and is active or comes with the next boot."""
    return any(seen.get(name, {}).get(what, False) for what in ("enabled", "active"))


def leave(seen: Mapping[str, Standing], family: str, *, systemd: bool) -> Iterator[dict[str, Any]]:
    """Ends the other family. Sockets first, or they would start what was just stopped.

    On systemd it is masked: whoever starts libvirtd out of habit would have two families. It is not disabled, because
    that takes along what its units name in Also=, which is virtlogd.socket.
    """
    (other,) = DAEMONS.keys() - {family}
    opened = [*sockets(other, systemd=systemd), *listeners(other)] if systemd else []
    theirs = dict.fromkeys([*opened, *services(other, systemd=systemd), *map(owner, opened)])
    for name in theirs:
        if name not in seen or name.startswith(LOG):
            continue
        if systemd and not seen[name].get("masked"):
            yield {"unit": name, "state": "stopped", "masked": True}
        elif not systemd and stirs(seen, name):
            yield {"unit": name, "enabled": False, "state": "stopped"}


def enter(seen: Mapping[str, Standing], wanted: Mapping[str, list[str]], *, systemd: bool) -> Iterator[dict[str, Any]]:
    """Enables and starts what is not. A service that runs without one of its sockets keeps systemd from opening it."""
    ours = [name for name in (*wanted["sockets"], *wanted["services"]) if name in seen]
    for name in dict.fromkeys([*ours, *map(owner, ours)] if systemd else ours):
        if seen.get(name, {}).get("masked"):
            yield {"unit": name, "masked": False}
    lacking = [name for name in wanted["sockets"] if name in seen and not _settled(seen[name])]
    closed = {name: owner(name) for name in lacking if not seen[name]["active"]}
    for service in dict.fromkeys(closed.values()):
        if seen.get(service, {}).get("active") and service != LOG + ".service":
            yield {"unit": service, "state": "stopped"}
    for name in lacking:
        if owner(name) == LOG + ".service" and seen.get(LOG + ".service", {}).get("active"):
            yield {"unit": name, "enabled": True}
        else:
            yield {"unit": name, "enabled": True, "state": "started"}
    for name in wanted["services"]:
        if name in seen and not seen[name]["enabled" if systemd else "active"]:
            yield {"unit": name, "enabled": True} if systemd else {"unit": name, "enabled": True, "state": "started"}


def _settled(standing: Standing) -> bool:
    return standing["enabled"] and standing["active"]


def owner(socket: str) -> str:
    """The service that a socket starts: libvirtd-ro.socket belongs to libvirtd.service."""
    for kind in sorted(KINDS + LISTENERS, key=len, reverse=True):
        if socket.endswith(kind):
            return socket.removesuffix(kind) + ".service"
    return socket


def literal(value: Any) -> str:
    """A value as libvirt's files have it: 1, "text", [ "a", "b" ]. It knows neither true nor escapes."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, int) and value >= 0:
        return str(value)
    if isinstance(value, str) and not set(value) & set('"\n\r'):
        return f'"{value}"'
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "[ " + ", ".join(literal(item) for item in value) + " ]" if value else "[ ]"
    # The value may be a password, so the message does not hold it.
    raise AnsibleFilterError("its value must be a whole number, true, false, a list, or a string without quotes.")


def literals(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings with their values as libvirt's files have them, sorted."""
    return {key: literal(settings[key]) for key in sorted(settings)}


def wrong_settings(settings: Mapping[str, Any], *, systemd: bool) -> list[str]:
    """What is wrong with settings, one sentence each."""
    if not isinstance(settings, Mapping):
        return ["it must be a table, key: value."]
    problems = []
    for key, value in settings.items():
        if not isinstance(key, str) or not (key.isascii() and key.isidentifier()):
            problems.append(f"{key!r} is no name of a libvirt setting: they look like max_files.")
        if systemd and key in OF_THE_SOCKETS:
            problems.append(f"{key} has no effect where systemd opens the sockets: use a drop-in of the .socket unit.")
        try:
            literal(value)
        except AnsibleFilterError as error:
            problems.append(f"{key}: {error}")
    return problems


class FilterModule:
    """What Ansible asks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "libvirt_units": lambda service_mgr: units(systemd=service_mgr == "systemd"),
            "libvirt_plan": plan,
            "libvirt_literals": literals,
            "libvirt_wrong_settings": wrong_settings,
        }
