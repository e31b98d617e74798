"""The commands of this machine that a kind of lab needs, and the packages that bring them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from orchestrator.errors import LabError, MissingPackagesError
from orchestrator.lab.command import run
from orchestrator.lab.spec import Progress

__all__ = ["install", "install_command", "missing", "require"]

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

_EVERY = {
    "mmdebstrap": "mmdebstrap",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    KEYRING: "debian-archive-keyring",
}

PACKAGES: Mapping[str, Mapping[str, str]] = {
    "container": {"systemd-nspawn": "systemd-container", "nft": "nftables", **_EVERY},
    "vm": {
        "qemu-system-x86_64": "qemu-system-x86",
        "qemu-img": "qemu-utils",
        "sfdisk": "fdisk",
        "mke2fs": "e2fsprogs",
        **_EVERY,
    },
}
"""Provider to command, or file when it is a path, to the package of Debian and Ubuntu."""

_NAMESPACES = {"newuidmap": "uidmap"}
"""What mmdebstrap needs besides, where it is not root."""


def missing(provider: str, which: Callable[[str], str | None] = shutil.which) -> tuple[str, ...]:
    """The packages that are missing, in order, each once."""
    needs = {**PACKAGES.get(provider, {}), **(_NAMESPACES if os.geteuid() else {})}
    return tuple(dict.fromkeys(package for need, package in needs.items() if not _present(need, which)))


def _present(need: str, which: Callable[[str], str | None]) -> bool:
    return Path(need).exists() if need.startswith("/") else which(need) is not None


def install_command(packages: tuple[str, ...]) -> tuple[str, ...]:
    """The command, as arguments, that installs packages on this machine."""
    sudo = () if os.geteuid() == 0 else ("sudo",)
    return (*sudo, "apt-get", "install", "--yes", "--no-install-recommends", *packages)


def require(provider: str) -> None:
    """Raises MissingPackagesError, with the command that installs them, when packages are missing."""
    if packages := missing(provider):
        raise MissingPackagesError(
            f"A lab needs packages that this machine lacks: {', '.join(packages)}.",
            hint=f"Install them: {' '.join(install_command(packages))}",
        )


def install(packages: tuple[str, ...], progress: Progress) -> None:
    """Installs packages; refreshes the package index only when the present one does not do.

    Raises:
        LabError: This is no Debian or Ubuntu, or apt-get failed.
    """
    if shutil.which("apt-get") is None:
        raise LabError(
            "This machine has no apt-get, so packages have to be installed by hand.",
            hint=f"Debian's names of them are: {', '.join(packages)}",
        )
    progress(f"installing {', '.join(packages)}")
    command = ("env", "DEBIAN_FRONTEND=noninteractive", *install_command(packages))
    try:
        run(command, timeout_s=1800)
    except LabError:  # most often an index that is absent or too old
        progress("refreshing the package index")
        run(["apt-get", "update"], timeout_s=600)
        run(command, timeout_s=1800)
