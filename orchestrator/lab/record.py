"""The record of a lab: what was made for it, written before it is made.

Everything that a lab owns outside its folder (interfaces, rules, control groups, processes) bears the lab's random
id or the folder's path. So one record, written before the first of them, is enough to find all of them again after
a kill at any moment, and nothing that lacks the id is ever touched.
"""

from __future__ import annotations

import os
import secrets
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import msgspec

from orchestrator import paths
from orchestrator.errors import LabError
from orchestrator.lab import tree

__all__ = [
    "LOOPBACK",
    "USER",
    "Lab",
    "LabHost",
    "folder_of",
    "labs",
    "labs_folder",
    "names",
    "new_id",
    "read",
    "write",
]

SCHEMA = 1
USER = "kvmfleet"
"""The unprivileged user with sudo that every host of a lab has."""

LOOPBACK = "127.0.0.1"

_FILE = "lab.json"
_FIRST_HOST = 10  # host n has the n-th address after it; the gateway has the first of the subnet


class LabHost(msgspec.Struct, frozen=True):
    """One host as it was planned. `image` is the key of the image that it was made from, "" until it is made.

    `faults` are those that it was broken with and not healed from, written down before the first step is taken.
    `address` is the one in the lab's network. `port` is where ssh is forwarded from on this machine's loopback; 0 where
    this machine is in that network itself.
    """

    name: str
    number: int
    system: str
    address: str
    image: str = ""
    port: int = 0
    faults: tuple[str, ...] = ()

    @property
    def ssh_address(self) -> str:
        """Where this machine reaches its ssh."""
        return LOOPBACK if self.port else self.address

    @property
    def ssh_at(self) -> str:
        """The same for people, with the port where it is not the usual one."""
        return f"{LOOPBACK}:{self.port}" if self.port else self.address


class Lab(msgspec.Struct, frozen=True, kw_only=True):
    """One lab of this machine."""

    schema: int = SCHEMA
    name: str
    id: str
    provider: str
    subnet: str
    created_at_s: float
    memory_mib: int = 0  # of each host; 0 where hosts share this machine's
    cpus: int = 0
    accelerator: str = "auto"  # what was asked for, not what it came to
    hosts: tuple[LabHost, ...] = ()

    @property
    def folder(self) -> Path:
        """Where all its files are."""
        return folder_of(self.name)

    @property
    def gateway(self) -> IPv4Address:
        """This machine's address in the lab."""
        return IPv4Network(self.subnet)[1]

    @property
    def inventory(self) -> Path:
        """An ordinary Ansible inventory."""
        return self.folder / "inventory.yml"

    @property
    def ssh_config(self) -> Path:
        """For `ssh -F`."""
        return self.folder / "ssh_config"

    def host_folder(self, host: LabHost) -> Path:
        """Where everything of one host is; it exists as soon as the host is complete, not before."""
        return self.folder / "hosts" / host.name

    def root(self, host: LabHost) -> Path:
        """The host's root file system. Its content is the host's: never follow a path inside."""
        return self.host_folder(host) / "root"

    def console(self, host: LabHost) -> Path:
        """What the host wrote to its console since its last start."""
        return self.host_folder(host) / "console.log"

    def host(self, name: str) -> LabHost:
        """The host of that name."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise LabError(
            f"Lab {self.name} has no host {name!a}.", hint=f"It has {', '.join(host.name for host in self.hosts)}."
        )

    def with_host(self, host: LabHost) -> Lab:
        """The lab with this host instead of the one of its name."""
        return msgspec.structs.replace(self, hosts=tuple(host if one.name == host.name else one for one in self.hosts))

    def planned(self, number: int, system: str) -> LabHost:
        """The host of that number, counted from 1, as it will be."""
        address = IPv4Network(self.subnet)[_FIRST_HOST + number]
        return LabHost(f"{self.name}-{number}", number, system, str(address))


def labs_folder() -> Path:
    """The folder of all labs."""
    return paths.state().absolute() / "labs"


def folder_of(name: str) -> Path:
    """The folder of the lab of that name, whether it is there or not."""
    return labs_folder() / name


def new_id() -> str:
    """Eight hexadecimal digits: short enough for the name of an interface, enough to meet no other lab."""
    return secrets.token_hex(4)


def names() -> tuple[str, ...]:
    """The labs that have a record, in order of their names.

    Raises:
        LabError: Their folder cannot be read, which is another user's perhaps.
    """
    folder = labs_folder()
    try:
        found = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as e:
        raise _not_ours(folder, e) from e
    return tuple(name for name in found if os.path.exists(folder / name / _FILE))


def read(name: str) -> Lab | None:
    """The record of a lab, None when there is none.

    Raises:
        LabError: There is one that cannot be understood.
    """
    file = folder_of(name) / _FILE
    try:
        lab = msgspec.json.decode(file.read_bytes(), type=Lab)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as e:
        raise _not_ours(file, e) from e
    except msgspec.DecodeError as e:
        raise LabError(f"{file} cannot be read: {e}.", hint="It says what belongs to the lab; restore it.") from e
    if lab.schema != SCHEMA:
        raise LabError(f"{file} has schema {lab.schema}, this kvmfleet knows {SCHEMA}.")
    return lab


def labs() -> tuple[Lab, ...]:
    """The records of all labs, in order of their names.

    Raises:
        LabError: One of them, or their folder, cannot be read.
    """
    return tuple(lab for name in names() if (lab := read(name)))


def _not_ours(path: Path, error: OSError) -> LabError:
    hint = "Look at the lab as the user who made it; KVMFLEET_STATE_DIR names where labs are."
    return LabError(f"{path}: {error.strerror}.", hint=hint)


def write(lab: Lab) -> None:
    """Replaces the record at once."""
    text = msgspec.json.format(msgspec.json.encode(lab).decode(), indent=2) + "\n"
    tree.write(lab.folder / _FILE, text, mode=0o600, durable=True)
