"""Which hosts there are, how to reach them, and their variables; `ansible-inventory` does the reading."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

__all__ = ["AnsibleOptions", "Fleet", "Host", "Secrets"]


class AnsibleOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options that Ansible's users know, with the same meaning here. Paths are as the user gave them."""

    inventory: tuple[str, ...] = ()  # -i, in order; empty: what ansible.cfg or the environment say
    limit: str = ""  # -l
    extra_vars: tuple[str, ...] = ()  # -e, in order: key=value, JSON, YAML or @file
    forks: int | None = None  # -f
    tags: tuple[str, ...] = ()  # -t
    skip_tags: tuple[str, ...] = ()
    check: bool = False  # -C
    diff: bool = False  # -D
    verbosity: int = 0  # -v
    vault_password_files: tuple[str, ...] = ()
    vault_ids: tuple[str, ...] = ()  # label@source
    become: bool = False  # -b
    private_key: str = ""
    user: str = ""  # -u
    timeout_s: int | None = None  # -T


class Secrets(msgspec.Struct, frozen=True):
    """What the user typed at a prompt. Never in argv, in a log or on disk outside a 0700 folder that goes with the run."""

    connection: str = ""  # -k
    become: str = ""  # -K

    def __repr__(self) -> str:
        return "Secrets(…)"


class Host(msgspec.Struct, frozen=True):
    """One host of the inventory and the way to it. `variables` are the resolved inventory variables, Jinja untouched."""

    name: str
    address: str
    connection: str = "ssh"
    port: int | None = None
    user: str = ""
    variables: Mapping[str, Any] = {}


class Fleet(msgspec.Struct, frozen=True):
    """The hosts of the group kvm_hosts that the limit leaves, in inventory order."""

    hosts: tuple[Host, ...]
    sources: tuple[str, ...]
