"""What makes one host out of an image: its name, its keys, its networks, and its way to the archive."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
import yaml

from orchestrator.lab import access, images, tree
from orchestrator.lab.record import USER, Lab, LabHost

__all__ = ["File", "archive", "cloud_config", "files", "plant"]


class File(msgspec.Struct, frozen=True):
    """A text that root owns."""

    text: str
    mode: int = 0o644


def files(
    lab: Lab, host: LabHost, host_key: Path, *, networks: Mapping[str, str], resolver: str, apt: str
) -> Mapping[str, File]:
    """Path below the root -> file. `networks` are units of systemd-networkd by name; `apt` is added to its settings."""
    units = {f"etc/systemd/network/{name}.network": File(unit) for name, unit in networks.items()}
    return {
        "etc/ssh/ssh_host_ed25519_key": File(host_key.read_text(), 0o600),
        "etc/ssh/ssh_host_ed25519_key.pub": File(_public(host_key)),
        images.LOGIN_KEY.lstrip("/"): File(_public(access.login_key(lab))),
        "etc/hostname": File(f"{host.name}\n"),
        "etc/hosts": File(access.hosts_file(lab)),
        "etc/resolv.conf": File(resolver),
        "etc/apt/apt.conf.d/90lab": File(images.APT_CONF + apt),
        **units,
    }


def _public(key: Path) -> str:
    return key.with_suffix(".pub").read_text()


def plant(planted: Mapping[str, File], root: Path) -> None:
    """Writes them into the tree of a host. Nothing of it may have run yet, or its paths could not be trusted."""
    for path, file in planted.items():
        tree.write(root / path, file.text, mode=file.mode)


def archive(planted: Mapping[str, File], others: Iterable[tuple[str, Path]], target: Path) -> None:
    """Writes them, and copies of other files by their path below the root, into a tar archive: whole disk blocks."""
    with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as tar:
        for path, file in planted.items():
            content = file.text.encode()
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), file.mode
            tar.addfile(entry, io.BytesIO(content))
        for path, source in others:
            tar.add(source, path, filter=_as_root)
    target.chmod(0o600)


def _as_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry


def cloud_config(lab: Lab, host: LabHost, host_key: Path, networks: object) -> Mapping[str, str]:
    """The files of a NoCloud data source for cloud-init; `networks` is its network configuration, version 2."""
    user = {
        "hostname": host.name,
        "users": [
            {
                "name": USER,
                "shell": "/bin/sh",
                "sudo": "ALL=(ALL) NOPASSWD:ALL",
                "lock_passwd": True,
                "ssh_authorized_keys": [_public(access.login_key(lab)).strip()],
            }
        ],
        "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": host_key.read_text(), "ed25519_public": _public(host_key).strip()},
        "growpart": {"mode": "auto", "devices": ["/"]},
        "package_update": False,
    }
    return {
        "meta-data": yaml.safe_dump({"instance-id": f"{lab.id}-{host.number}", "local-hostname": host.name}),
        "user-data": "#cloud-config\n" + yaml.safe_dump(user, sort_keys=False),
        "network-config": yaml.safe_dump({"version": 2, "ethernets": networks}, sort_keys=False),
    }
