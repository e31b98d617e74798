"""Where the modules touch a host's network: its files, its devices, and what configures them."""

from __future__ import annotations

import glob
import ipaddress
import os
import re
import shutil
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ansible_collections.kvmfleet.host.plugins.module_utils.bridges import BridgeError

Answer = tuple[int, str]
PATIENCE_S = 25.0


class Host(NamedTuple):
    """Where this touches the host; tests put something else there."""

    run: Callable[[Sequence[str]], Answer]
    root: str = ""
    which: Callable[[str], Any] = shutil.which
    patience_s: float = PATIENCE_S
    came_to: str = ""  # the address of this host that the ssh connection goes to

    def read(self, path: str) -> str:
        try:
            with open(self.root + path, encoding="utf-8", errors="surrogateescape") as stream:
                return stream.read()
        except OSError:
            return ""

    def text(self, path: str) -> str | None:
        """None where there is no such file."""
        return self.read(path) if self.exists(path) else None

    def exists(self, path: str) -> bool:
        return os.path.exists(self.root + path)

    def found(self, pattern: str) -> list[str]:
        """Paths of files, sorted."""
        paths = sorted(path for path in glob.glob(self.root + pattern) if os.path.isfile(path))
        return [path[len(self.root) :] for path in paths]

    def write(self, path: str, text: str, mode: int) -> None:
        """Whole or not at all."""
        os.makedirs(os.path.dirname(self.root + path), 0o755, exist_ok=True)
        with open(self.root + path + ".kvmfleet", "w", encoding="utf-8", errors="surrogateescape") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(text)
        os.replace(stream.name, self.root + path)

    def mode(self, path: str) -> int:
        return os.stat(self.root + path).st_mode & 0o7777

    def owned_like(self, path: str, like: str) -> None:
        """systemd-networkd is not root, and reads its files all the same."""
        status = os.stat(self.root + like)
        os.chown(self.root + path, status.st_uid, status.st_gid)

    def copy(self, path: str, to: str) -> None:
        """With mode and owner."""
        shutil.copy2(self.root + path, self.root + to)
        self.owned_like(to, path)

    def call(self, argv: Sequence[str]) -> str:
        code, out = self.run(argv)
        if code:
            raise BridgeError(f"`{' '.join(argv)}` ended with {code}: {' '.join(out.split())}")
        return out

    def has_systemd(self) -> bool:
        return bool(self.which("systemd-run")) and self.exists("/run/systemd/system")  # sd_booted(3)

    def is_active(self, unit: str) -> bool:
        return bool(self.which("systemctl")) and self.run(["systemctl", "is-active", "--quiet", unit])[0] == 0

    def devices(self, bridge: str) -> list[str]:
        """What is at a bridge."""
        return sorted(map(os.path.basename, glob.glob(f"{self.root}/sys/class/net/{bridge}/brif/*")))

    def master(self, device: str) -> str:
        """The bridge or bond that a device is a part of; "" for none."""
        path = f"{self.root}/sys/class/net/{device}/master"
        return os.path.basename(os.path.realpath(path)) if os.path.exists(path) else ""

    def addresses(self, device: str) -> set[str]:
        """Global addresses with the length of their subnet."""
        _, out = self.run(["ip", "-o", "addr", "show", "dev", device, "scope", "global"])
        return {str(ipaddress.ip_interface(found)) for found in re.findall(r" inet6? ([0-9a-f.:]+/\d+)", out)}

    def leads_out(self, device: str) -> bool:
        """Whether a default route goes through it."""
        return any(
            line.split()[:2] == [device, "00000000"] and line.split()[7] == "00000000"
            for line in self.read("/proc/net/route").splitlines()[1:]
        )
