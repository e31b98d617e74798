"""Which hosts there are, how to reach them, and their variables; `ansible-inventory` does the reading.

Ansible skips a source that it cannot parse, keeps what it had read of it until then, and exits 0. A fleet that is
quietly too small is the worst answer, so here an unparsed source is an error, as is a limit that leaves no host, or
names one that there is not: Ansible would ignore that name, also where it is one to leave out.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from orchestrator import ansible_cfg, paths
from orchestrator.ansible_cfg import Settings
from orchestrator.ansible_read import UnmatchedError, command, program, running
from orchestrator.errors import InventoryError
from orchestrator.text import printable, suggestion

__all__ = ["GROUP", "AnsibleOptions", "Fleet", "Host", "Secrets", "decode", "load", "reading"]

GROUP = "kvm_hosts"
TIMEOUT_S = 120.0
CONNECT_TIMEOUT_S = 10  # what Ansible gives a connection
ONCE = "can be read only once, but a run reads it several times"

_ALL_ARE_MEANT = Path(__file__).with_name("host_list.yml")


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

    @property
    def sources(self) -> tuple[str, ...]:
        """The inventory for Ansible. Lists alone have no groups: whoever types a host means it."""
        lists = self.inventory and all("," in source for source in self.inventory)
        return (*self.inventory, str(_ALL_ARE_MEANT)) if lists else self.inventory


class Secrets(msgspec.Struct, frozen=True):
    """What the user typed at a prompt: never in argv or a log, nor on disk outside a 0700 folder of the run."""

    connection: str = ""  # -k
    become: str = ""  # -K

    def __repr__(self) -> str:
        return "Secrets(…)"


class Host(msgspec.Struct, frozen=True):
    """One host of the inventory and the way to it: variables first, then the command line, then ansible.cfg.

    `variables` are the resolved inventory variables, Jinja untouched; they may hold secrets, so `repr` leaves them out.
    """

    name: str
    address: str
    connection: str = "ssh"
    port: int | None = None
    user: str = ""  # "" when nobody said
    variables: Mapping[str, Any] = {}
    private_key: str = ""
    ssh_args: str = ""  # what the user added to ssh's command line; "" with Ansible's own defaults
    host_key_checking: bool = True
    become_method: str = "sudo"
    become_user: str = "root"
    python: str = ""  # ansible_python_interpreter; "" when Ansible would look for one itself
    connect_timeout_s: int = 10
    templated: tuple[str, ...] = ()  # ansible_* variables that only Ansible can resolve: Jinja, or encrypted in place
    beyond: tuple[str, ...] = ()  # settings of ansible.cfg and the environment that only Ansible obeys
    groups: tuple[str, ...] = ()  # that it is in, those above them too

    def __repr__(self) -> str:
        return f"Host({self.name!r}, {self.connection!r}, {self.address!r})"


class Fleet(msgspec.Struct, frozen=True):
    """The hosts of the group kvm_hosts that the limit leaves, in inventory order."""

    hosts: tuple[Host, ...]
    sources: tuple[str, ...]
    settings: Settings = Settings()


def load(options: AnsibleOptions, *, timeout_s: float = TIMEOUT_S) -> Fleet:
    """The fleet that `options` name, read by Ansible in the caller's working directory.

    Raises:
        InventoryError: a source cannot be read, a secret is missing, or no host is left.
    """
    with reading(options, timeout_s=timeout_s) as fleet:
        return fleet()


@contextmanager
def reading(options: AnsibleOptions, *, timeout_s: float = TIMEOUT_S) -> Iterator[Callable[[], Fleet]]:
    """`load` for a caller with something to do while Ansible reads, such as imports; what it gives is to be called."""
    _refuse_what_cannot_work(options)
    asked = {
        "inventory": [*command("ansible-inventory"), "--list", *_inventory_arguments(options)],
        **ansible_cfg.questions(),
    }
    with running(list(asked.values()), timeout_s) as answers:

        def fleet() -> Fleet:
            try:
                said = dict(zip(asked, answers(), strict=True))
            except UnmatchedError as e:
                e.hint = suggestion(e.pattern, _everything(options, timeout_s), _see(options, "all"))
                raise
            return decode(said.pop("inventory"), options, ansible_cfg.decode(**said))

        yield fleet


def decode(listing: bytes, options: AnsibleOptions, settings: Settings) -> Fleet:
    """The fleet in what `ansible-inventory --list` printed. Raises InventoryError."""
    groups = _groups(listing)
    names = _members(groups)
    if not names:
        raise _nobody(options, groups)
    variables = groups.get("_meta", {}).get("hostvars", {})
    members = {group: frozenset(_members(groups, group)) for group in groups if group != "_meta"}
    return Fleet(
        hosts=tuple(
            _host(name, variables.get(name, {}), options, settings, [g for g in members if name in members[g]])
            for name in names
        ),
        sources=options.sources,
        settings=settings,
    )


def _groups(listing: bytes) -> Mapping[str, Mapping[str, Any]]:
    try:
        return msgspec.json.decode(listing, type=dict[str, dict[str, Any]])
    except msgspec.DecodeError as e:
        raise InventoryError(
            "inventory: what ansible-inventory printed is no JSON", hint="A plugin or script may print to stdout."
        ) from e


def _refuse_what_cannot_work(options: AnsibleOptions) -> None:
    """Says about plain mistakes in one line what Ansible says in thirty, or not at all."""
    for source in options.inventory:
        if "," not in source:
            _readable("inventory", source, "Give an inventory file, a folder of them, or a list that ends in a comma.")
    for source in options.extra_vars:
        if source.startswith("@"):
            _readable("extra variables", source[1:], "-e takes key=value, JSON, YAML or @FILE.")
    for source in (*options.vault_password_files, *(i.rpartition("@")[2] for i in options.vault_ids)):
        if source.startswith("prompt"):
            raise InventoryError(f"vault password {source}: {ONCE}", hint="Put the password in a file, or in a script.")
        _readable("vault password", source, "Name a file that holds the password, or a script that prints it.")


def _readable(what: str, source: str, hint: str) -> None:
    if not source:  # to Ansible, and to Path, that is this folder
        raise InventoryError(f"{what}: an empty name", hint=f"A variable of the shell may not be set. {hint}")
    path = Path(os.path.expanduser(source))  # other than pathlib, it has an answer for ~nobody
    try:
        empty = not any(path.iterdir()) if path.is_dir() else not path.stat().st_size and path.is_file()
        if path.is_file():
            path.open("rb").close()
    except FileNotFoundError as e:
        raise InventoryError(f"{what} {source}: no such file or folder", hint=hint) from e
    except OSError as e:
        raise InventoryError(f"{what} {source}: {e.strerror}", hint="Check its owner and mode.") from e
    if empty:
        raise InventoryError(f"{what} {source}: is empty", hint=hint)
    if path.is_fifo():
        raise InventoryError(f"{what} {source}: {ONCE}", hint="Put it in a file that only you can read.")


def _inventory_arguments(options: AnsibleOptions) -> list[str]:
    """Those of the user, and the playbooks' folder: its group_vars count for a playbook and must count here."""
    return [
        *(f"--inventory={source}" for source in options.sources),
        *([f"--limit={options.limit}"] if options.limit else []),
        *(f"--extra-vars={extra}" for extra in options.extra_vars),
        *(f"--vault-password-file={file}" for file in options.vault_password_files),
        *(f"--vault-id={vault_id}" for vault_id in options.vault_ids),
        f"--playbook-dir={paths.content() / 'playbooks'}",
    ]


def _members(groups: Mapping[str, Mapping[str, Any]], group: str = GROUP) -> list[str]:
    """The hosts of the group, each once, in Ansible's order: its own, then those of its children, level by level."""
    names, seen = [group], {}
    for name in names:
        names.extend(child for child in groups.get(name, {}).get("children", ()) if child not in names)
        seen.update(dict.fromkeys(groups.get(name, {}).get("hosts", ())))
    return list(seen)


def _nobody(options: AnsibleOptions, groups: Mapping[str, Mapping[str, Any]]) -> InventoryError:
    named = {child for entry in groups.values() for child in entry.get("children", ())}
    if GROUP not in named and not options.inventory and named <= {"ungrouped"}:
        return InventoryError("inventory: none given", hint="Name one with -i, or in ansible.cfg as `inventory`.")
    if GROUP not in named:
        there = ", ".join(printable(g) for g in sorted(named - {"ungrouped"})) or "none"
        return InventoryError(
            f"inventory: there is no group {GROUP} (groups: {there})",
            hint=f"Put the hosts that are to run guests into a group {GROUP}.",
        )
    if options.limit:
        what = f"the limit {printable(options.limit)} leaves no host of the group {GROUP}"
        return InventoryError(f"inventory: {what}", hint=_see(options, GROUP))
    return InventoryError(f"inventory: the group {GROUP} has no hosts", hint=f"Add hosts to the group {GROUP}.")


def _see(options: AnsibleOptions, group: str) -> str:
    sources = [f"--inventory={source}" for source in options.sources]
    see = shlex.join([program("ansible-inventory"), *sources, "--graph", group])
    return f"See what there is with: {printable(see)}"


def _everything(options: AnsibleOptions, timeout_s: float) -> Iterable[str]:
    """All hosts and groups that there are, whatever the limit says; safe to print."""
    everybody = msgspec.structs.replace(options, limit="")
    with running([[*command("ansible-inventory"), "--list", *_inventory_arguments(everybody)]], timeout_s) as answers:
        (listing,) = answers()
    groups = _groups(listing)
    hosts = [host for group in groups.values() for host in group.get("hosts", ())]
    return map(printable, dict.fromkeys([*hosts, *groups]))


def _host(
    name: str, raw: Mapping[str, Any], options: AnsibleOptions, settings: Settings, groups: Iterable[str]
) -> Host:
    _refuse_odd_name(name)
    said = {key: _plain(value) for key, value in raw.items() if key.startswith("ansible_")}

    def variable(*names: str) -> str:
        return next((str(said[n]) for n in names if said.get(n) not in (None, "")), "")

    ssh_args = [variable(f"ansible_ssh_{kind}") for kind in ("args", "common_args", "extra_args")]
    checking = variable("ansible_ssh_host_key_checking", "ansible_host_key_checking")
    return Host(
        name=name,
        address=variable("ansible_host", "ansible_ssh_host") or name,
        connection=_connection(variable("ansible_connection") or settings.connection),
        port=_port(name, variable("ansible_port", "ansible_ssh_port")) or settings.port,
        user=variable("ansible_user", "ansible_ssh_user") or options.user or settings.user,
        variables=raw,
        private_key=variable("ansible_private_key_file", "ansible_ssh_private_key_file")
        or options.private_key
        or settings.private_key,
        ssh_args=" ".join(filter(None, (settings.ssh_args, *ssh_args))),
        host_key_checking=_truth(checking) if checking else settings.host_key_checking,
        become_method=variable("ansible_become_method") or settings.become_method or "sudo",
        become_user=variable("ansible_become_user") or settings.become_user or "root",
        python=_interpreter(variable("ansible_python_interpreter") or settings.interpreter),
        connect_timeout_s=_seconds(name, variable("ansible_timeout", "ansible_ssh_timeout"))
        or options.timeout_s
        or settings.timeout_s
        or CONNECT_TIMEOUT_S,
        templated=tuple(sorted(key for key, value in raw.items() if key.startswith("ansible_") and _is_open(value))),
        beyond=settings.beyond,
        groups=tuple(groups),
    )


def _refuse_odd_name(name: str) -> None:
    """Names go into patterns, files and tables; one that Ansible would read as a pattern reaches the wrong hosts."""
    if re.fullmatch(r"\w[\w.-]{0,252}", name):
        return
    try:
        ipaddress.ip_address(name if re.fullmatch(r"[\w.:]+(%[\w.-]+)?", name) else "")  # takes anything as a zone
    except ValueError as e:
        raise InventoryError(
            f"inventory: {printable(name)!r} cannot be the name of a host",
            hint="Use letters, digits, '.', '_' and '-', or an address; put anything else into ansible_host.",
        ) from e


def _plain(value: object) -> object:
    """The text of a value marked `!unsafe`, which is never templated."""
    return value["__ansible_unsafe"] if isinstance(value, dict) and "__ansible_unsafe" in value else value


def _is_open(value: object) -> bool:
    if isinstance(value, dict):
        return "__ansible_vault" in value
    return isinstance(value, str) and ("{{" in value or "{%" in value)


def _connection(name: str) -> str:
    short = name.removeprefix("ansible.builtin.")
    return "ssh" if short in {"", "smart"} else short


def _port(name: str, text: str) -> int | None:
    if not text or "{{" in text:
        return None
    if text.isdecimal() and 0 < int(text) < 65536:
        return int(text)
    raise InventoryError(f"{name}: ansible_port is {printable(text)!r}", hint="Use a number from 1 to 65535.")


def _interpreter(text: str) -> str:
    """The path that was named; auto, auto_legacy and their silent forms name none."""
    return "" if text.startswith("auto") else text


def _seconds(name: str, text: str) -> int | None:
    if not text or "{{" in text:
        return None
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise InventoryError(f"{name}: ansible_timeout is {printable(text)!r}", hint="Use a number of seconds.")


def _truth(text: str) -> bool:
    return text.lower() in {"true", "yes", "on", "1", "t", "y"}
