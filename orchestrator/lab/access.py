"""How to reach the hosts of a lab: keys, known hosts, ssh configuration and the Ansible inventory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import LabError
from orchestrator.inventory import GROUP
from orchestrator.lab import tree
from orchestrator.lab.command import run
from orchestrator.lab.record import USER, Lab, LabHost

__all__ = ["check_folder", "host_key", "hosts_file", "inventory", "login_key", "ssh_config", "write"]

INDEX_VALID_S = 30 * 24 * 3600
"""Hosts come with the package index of their image. Reading it anew within this time would only cost the network, and
would ask for newer packages than those that the image's cache holds."""

_PLAIN = re.compile(r"[A-Za-z0-9/._+@-]+")


def check_folder(folder: Path) -> None:
    """Refuses a folder whose path systemd-nspawn, ssh or Ansible would read as something else."""
    if not _PLAIN.fullmatch(str(folder)):
        raise LabError(
            f"A lab cannot be kept in {str(folder)!a}: ssh and systemd-nspawn give some of its characters a meaning.",
            hint="Set KVMFLEET_STATE_DIR to a path of letters, digits and . _ + @ - only.",
        )


def login_key(lab: Lab) -> Path:
    """The private key of the lab's user, made at the first call."""
    folder = lab.folder / "key"
    if not folder.exists():
        _generate(folder, f"{lab.name} {lab.id}")
    return folder / "id_ed25519"


def host_key(folder: Path, comment: str) -> Path:
    """Makes a host's private key in a new folder."""
    _generate(folder, comment)
    return folder / "id_ed25519"


def _generate(folder: Path, comment: str) -> None:
    """Both halves of a key or none: the folder gets its name when it is complete."""
    new = folder.with_name(f"{folder.name}.partial")
    tree.remove(new)
    new.mkdir(mode=0o700)
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(new / "id_ed25519")])
    new.rename(folder)


def write(lab: Lab) -> None:
    """Writes known_hosts, ssh_config and the inventory for the hosts that are made."""
    tree.write(_known_hosts_file(lab), _known_hosts(lab))
    tree.write(lab.ssh_config, ssh_config(lab))
    tree.write(lab.inventory, inventory(lab))


def _known_hosts_file(lab: Lab) -> Path:
    return lab.folder / "known_hosts"


def _known_hosts(lab: Lab) -> str:
    """Our own copies of the keys: what a host has under /etc/ssh by now is its own affair."""
    public = {host: lab.host_folder(host) / "key" / "id_ed25519.pub" for host in lab.hosts}
    return "".join(
        f"{_known_as(host)},{host.name} {' '.join(file.read_text().split()[:2])}\n"
        for host, file in public.items()
        if file.exists()
    )


def _known_as(host: LabHost) -> str:
    """sshd(8), SSH_KNOWN_HOSTS FILE FORMAT: a port other than 22 goes with the address in brackets."""
    return f"[{host.ssh_address}]:{host.port}" if host.port else host.address


def ssh_config(lab: Lab) -> str:
    """For `ssh -F`; an entry a host, so that scp and rsync can use it as well."""
    hosts = "".join(
        f"Host {host.name}\n  HostName {host.ssh_address}\n{f'  Port {host.port}' if host.port else ''}\n\n"
        for host in lab.hosts
    )
    return f"""{hosts}Host *
  User {USER}
  IdentityFile {login_key(lab)}
  IdentitiesOnly yes
  UserKnownHostsFile {_known_hosts_file(lab)}
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
"""


def inventory(lab: Lab) -> str:
    """An ordinary YAML inventory."""
    options = (f"UserKnownHostsFile={_known_hosts_file(lab)}", "StrictHostKeyChecking=yes", "IdentitiesOnly=yes")
    variables: dict[str, Any] = {
        "ansible_user": USER,
        "ansible_become": True,
        "ansible_ssh_private_key_file": str(login_key(lab)),
        "ansible_ssh_common_args": " ".join(f"-o {option}" for option in options),
        "kvmfleet_profile": "lab",
        "qemu_kvm_cache_valid_time": INDEX_VALID_S,
        "libvirt_cache_valid_time": INDEX_VALID_S,
        "libvirt_users": [USER],
    }
    hosts = {
        host.name: {"ansible_host": host.ssh_address} | ({"ansible_port": host.port} if host.port else {})
        for host in lab.hosts
    }
    document = {"all": {"children": {GROUP: {"hosts": hosts, "vars": variables}}}}
    header = f"# Lab {lab.name}, written by kvmfleet lab up, which writes it anew every time.\n"
    return header + yaml.safe_dump(document, sort_keys=False)


def hosts_file(lab: Lab) -> str:
    """/etc/hosts, the same on every host."""
    lines = [f"{host.address} {host.name}" for host in lab.hosts]
    return "\n".join(["127.0.0.1 localhost", "::1 localhost ip6-localhost", *lines, ""])
