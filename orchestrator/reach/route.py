"""Decides which way leads to a host: a plain ssh session, a local process, or everything that Ansible can do.

The fast ways cover what nearly all inventories use. Whatever they do not understand goes through Ansible, with the
reason named, instead of being guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from orchestrator.inventory import Host, Secrets
from orchestrator.reach import ssh_arguments, ssh_config

__all__ = ["AnsibleRoute", "LocalRoute", "Route", "SshRoute", "Trust", "choose"]

Trust = Literal["strict", "accept-new", "off", "config"]
"""StrictHostKeyChecking; config: nobody said anything, so ~/.ssh/config decides."""


class SshRoute(msgspec.Struct, frozen=True, kw_only=True):
    """How to open one ssh session. Empty fields are left to the user's ssh configuration."""

    address: str
    port: int | None = None
    user: str = ""
    keys: tuple[str, ...] = ()
    identities_only: bool = False
    password: str = ""
    jump: str = ""
    known_hosts: tuple[str, ...] = ()
    trust: Trust = "config"
    connect_timeout_s: float = 10.0
    sudo: bool = True
    become_password: str = ""
    python: str = ""  # "": look for one

    def __repr__(self) -> str:  # it may hold passwords
        return f"SshRoute({self.user}@{self.address}:{self.port})"


class LocalRoute(msgspec.Struct, frozen=True, kw_only=True):
    """This machine."""

    sudo: bool = True
    become_password: str = ""
    python: str = ""

    def __repr__(self) -> str:  # it may hold a password
        return "LocalRoute()"


class AnsibleRoute(msgspec.Struct, frozen=True, kw_only=True):
    """Through playbooks/collect.yml, because of `reason`."""

    reason: str


Route = SshRoute | LocalRoute | AnsibleRoute


class _NeedsAnsible(Exception):
    """Something that the fast ways do not do."""


def choose(host: Host, secrets: Secrets) -> Route:
    """The way to a host. Local ones ignore whatever concerns ssh."""
    try:
        if host.connection not in ("ssh", "local"):
            raise _NeedsAnsible(f"its connection is {host.connection}")
        if host.templated:
            raise _NeedsAnsible(f"{host.templated[0]} is a template or encrypted")
        if host.beyond and host.connection == "ssh":
            raise _NeedsAnsible(f"{host.beyond[0]} is set in ansible.cfg or in the environment")
        sudo = _sudo(host)
        password = (_text(host.variables, *_BECOME_PASSWORD) or secrets.become) if sudo else ""
        if host.connection == "local":
            return LocalRoute(sudo=sudo, become_password=password, python=host.python)
        return _ssh(host, secrets, sudo=sudo, become_password=password)
    except _NeedsAnsible as e:
        return AnsibleRoute(reason=str(e))


def _sudo(host: Host) -> bool:
    """Whether to become root on the way; the playbooks always do, unless a variable of the host forbids it."""
    if str(host.variables.get("ansible_become", "yes")).lower() in ("no", "false", "0", "off", "n", "f"):
        return False
    if host.become_method not in ("sudo", "ansible.builtin.sudo"):
        raise _NeedsAnsible(f"it becomes root with {host.become_method}")
    if host.become_user != "root":
        raise _NeedsAnsible(f"it becomes {host.become_user}")
    _refuse_unknown(host.variables, _BECOME)
    return True


def _ssh(host: Host, secrets: Secrets, *, sudo: bool, become_password: str) -> SshRoute:
    _refuse_unknown(host.variables, _CONNECTION)
    if option := ssh_config.beyond():
        raise _NeedsAnsible(f"{option} is set in the ssh configuration")
    arguments = _arguments(host.ssh_args)

    def first(name: str) -> str:
        return arguments.get(name, ("",))[0]

    return SshRoute(
        address=_plain("address", host.address),
        port=_port(_agree("port", str(host.port or ""), first("port"))),
        user=_plain("user", _agree("user", host.user, first("user"))),
        keys=(*filter(None, [host.private_key]), *arguments.get("identityfile", ())),
        identities_only=first("identitiesonly").lower() == "yes",
        password=_text(host.variables, "ansible_password", "ansible_ssh_pass", "ansible_ssh_password")
        or secrets.connection,
        jump=first("proxyjump"),
        known_hosts=(*first("userknownhostsfile").split(), *first("globalknownhostsfile").split()),
        trust=_trust(host, first("stricthostkeychecking").lower()),
        connect_timeout_s=host.connect_timeout_s,
        sudo=sudo,
        become_password=become_password,
        python=host.python,
    )


def _arguments(text: str) -> Mapping[str, tuple[str, ...]]:
    try:
        return ssh_arguments.parse(text)
    except ValueError as e:
        raise _NeedsAnsible(f"its ssh arguments hold {e}") from e


def _trust(host: Host, said: str) -> Trust:
    """Ansible's own switch comes before ssh's arguments. Nobody is there to be asked, so `ask` is `yes`."""
    if not host.host_key_checking or said in ("no", "off"):
        return "off"
    if said in ("", "accept-new"):
        return "accept-new" if said else "config"
    return "strict"


def _agree(what: str, variable: str, argument: str) -> str:
    """Which of two wins depends on which of ssh's many arguments it stands in; Ansible knows."""
    if variable and argument and variable != argument:
        raise _NeedsAnsible(f"its variables and its ssh arguments name different {what}s")
    return variable or argument


_PLAIN = re.compile(r"(\w[\w.-]*\\)?[\w.:][\w.:%@+-]*|")  # of a user, with the domain before it


def _plain(what: str, text: str) -> str:
    """A ProxyCommand is a line for a shell, with both in it: ssh refuses what a shell would act on."""
    if not _PLAIN.fullmatch(text):
        raise _NeedsAnsible(f"its {what} is an odd one")
    return text


def _port(text: str) -> int | None:
    if text and not text.isdecimal():
        raise _NeedsAnsible("its ssh arguments hold an odd port")
    return int(text) if text else None


def _text(variables: Mapping[str, Any], *names: str) -> str:
    """The first of the synonyms that is set; inventory.py has seen to it that none is a template."""
    values = (variables.get(name) for name in names)
    found = next((value for value in values if value not in (None, "")), "")
    return str(found.get("__ansible_unsafe", "") if isinstance(found, dict) else found)


# Variables of the connection that inventory.py resolved, that are read above, or that change nothing for one session.
_UNDERSTOOD = re.compile(
    r"ansible_(ssh_)?(host|user|port|pass|password|private_key_file|timeout|host_key_checking)$"
    r"|ansible_ssh_((common|extra)_)?args$|ansible_become(_user|_method|_pass|_password)?$"
    r"|ansible_(ssh_)?(pipelining|retries|reconnection_retries|use_tty|transfer_method|verbosity|control_path(_dir)?)$"
    r"|ansible_ssh_(sftp|scp|password_mechanism|host_key_)\w*$"
)
_BECOME_PASSWORD = ("ansible_become_password", "ansible_become_pass")
_BECOME = re.compile(r"ansible_(become|sudo|su)(_|$)")
_CONNECTION = re.compile(r"ansible_(ssh|private_key|pkcs11|host_key)(_|$)")


def _refuse_unknown(variables: Mapping[str, Any], concerned: re.Pattern[str]) -> None:
    for name, value in variables.items():
        if value not in (None, "") and concerned.match(name) and not _UNDERSTOOD.match(name):
            raise _NeedsAnsible(f"{name} is set")
