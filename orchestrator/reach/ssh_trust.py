"""Decides which host keys are believed, as ssh would, and says how to settle a key that is not."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import asyncssh

from orchestrator import paths
from orchestrator.reach.route import SshRoute, Trust
from orchestrator.text import printable

__all__ = ["HostKeys", "KnownHosts", "ask_ssh"]

_USER_FILES = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
_SYSTEM_FILES = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")


class KnownHosts:
    """The known_hosts files, each set of them parsed once."""

    def __init__(self) -> None:
        self._parsed: dict[tuple[str, ...], asyncssh.SSHKnownHosts] = {}

    def read(self, files: tuple[str, ...]) -> asyncssh.SSHKnownHosts:
        """Missing files are empty, as for ssh. Raises OSError or ValueError for one that cannot be read."""
        if files not in self._parsed:
            self._parsed[files] = asyncssh.read_known_hosts([file for file in files if Path(file).is_file()])
        return self._parsed[files]


class HostKeys(asyncssh.SSHClient):
    """Meets the host key of one connection. `refusal` is problem and hint when it was not accepted."""

    def __init__(self, route: SshRoute, configured: asyncssh.SSHClientConnectionOptions, known: KnownHosts) -> None:
        self.refusal: tuple[str, str] | None = None
        self._trust: Trust = route.trust
        self._files = _files(route, configured)
        self._known = known.read(self._files)
        self._route = route
        self._port = int(configured.port or 22)

    @property
    def trusted(self) -> asyncssh.SSHKnownHosts | None:
        """For asyncssh's `known_hosts`; None believes everybody."""
        return None if self._trust == "off" else self._known

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Called by asyncssh for a key that no known_hosts line allows."""
        others = self._known.match(host, addr, port if port != 22 else None)[0]
        trust = self._trust if self._trust != "config" else _configured_trust(self._route)
        if trust == "off":
            return True
        if trust == "accept-new" and not others:
            return self._remember(host, key)
        name = host if port == 22 else f"[{host}]:{port}"
        self.refusal = self._changed(name, key) if others else self._unknown(name, host, port, key)
        return False

    def _remember(self, host: str, key: asyncssh.SSHKey) -> bool:
        name = host if self._port == 22 else f"[{host}]:{self._port}"
        file = Path(self._files[0])
        paths.private(file.parent)
        with open(file, "a", opener=lambda name, flags: os.open(name, flags, 0o600)) as lines:
            lines.write(f"{name} {key.export_public_key().decode().strip()}\n")
        return True

    def _unknown(self, name: str, host: str, port: int, key: asyncssh.SSHKey) -> tuple[str, str]:
        scan = shlex.join(["ssh-keyscan", "-p", str(port), host])
        return (
            f"the host key of {printable(name)} is not known: {_fingerprint(key)}",
            f"Compare it with `{scan} | ssh-keygen -lf -` run on a network that you trust, "
            f"then accept it: {scan} >> {shlex.quote(self._files[0])}",
        )

    def _changed(self, name: str, key: asyncssh.SSHKey) -> tuple[str, str]:
        remove = shlex.join(["ssh-keygen", "-R", name, "-f", self._files[0]])
        return (
            f"the host key of {printable(name)} has changed: it is now {_fingerprint(key)}",
            "Somebody may be in between. If the host was reinstalled, forget its old key and accept the new one: "
            f"{remove}",
        )


def _files(route: SshRoute, configured: asyncssh.SSHClientConnectionOptions) -> tuple[str, ...]:
    """The files named in the inventory, else in the ssh configuration, else ssh's own. The first is the user's."""
    user = route.known_hosts or _configured(configured, "UserKnownHostsFile", _USER_FILES)
    system = _configured(configured, "GlobalKnownHostsFile", _SYSTEM_FILES)
    return tuple(map(os.path.expanduser, (*(user or ("/dev/null",)), *system)))


def _configured(
    configured: asyncssh.SSHClientConnectionOptions, option: str, default: tuple[str, ...]
) -> Sequence[str]:
    found = configured.config.get(option, default)
    return found if isinstance(found, list) else default


def _fingerprint(key: asyncssh.SSHKey) -> str:
    return f"{key.get_algorithm()} {key.get_fingerprint()}"


def _configured_trust(route: SshRoute) -> Trust:
    """StrictHostKeyChecking of ~/.ssh/config, which asyncssh does not read; asked only when a key was not known."""
    return ask_ssh(route.address, route.port or 0, route.user) if shutil.which("ssh") else "strict"


@functools.lru_cache(maxsize=1024)
def ask_ssh(address: str, port: int, user: str, config: str = "") -> Trust:
    """StrictHostKeyChecking as `ssh` would obey it for this host."""
    flags = {"-F": config, "-p": str(port or ""), "-l": user}
    argv = ["ssh", "-G", *(word for flag, value in flags.items() if value for word in (flag, value)), "--", address]
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return "strict"
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line).get("stricthostkeychecking")
    return "off" if said in ("no", "off", "false") else "accept-new" if said == "accept-new" else "strict"
