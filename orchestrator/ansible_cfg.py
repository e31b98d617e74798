"""What the user's ansible.cfg and environment say where we would otherwise choose."""

from __future__ import annotations

import configparser
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.ansible_read import command

__all__ = ["Settings", "decode", "questions"]


PLAIN = {
    ("defaults", "roles_path", "roles"),
    ("defaults", "collections_path", "collections:~/.ansible/collections:/usr/share/ansible/collections"),
    ("defaults", "interpreter_python", "auto_silent"),
    ("defaults", "stdout_callback", "default"),
    ("defaults", "nocows", "true"),
    ("defaults", "inject_facts_as_vars", "false"),
    ("ssh_connection", "pipelining", "true"),
}
"""All of our own ansible.cfg, which is for a plain `ansible-playbook` in the checkout."""

BEYOND = (
    "ssh_executable", "pkcs11_provider", "private_key", "private_key_passphrase",
    "ANSIBLE_BECOME_EXE", "ANSIBLE_BECOME_FLAGS", "ANSIBLE_BECOME_PASS",
    "ANSIBLE_SUDO_EXE", "ANSIBLE_SUDO_FLAGS", "ANSIBLE_SUDO_PASS",
)  # fmt: skip
"""Settings of Ansible's ssh, and variables of the environment for its sudo, that only Ansible obeys."""


class Settings(msgspec.Struct, frozen=True):
    """Only what differs from Ansible's own defaults; the rest is None, empty, or the default itself."""

    connection: str = ""
    user: str = ""
    port: int | None = None
    private_key: str = ""
    ssh_args: str = ""
    ssh_extra_args: str = ""  # the last of the words in ssh_args once more: we add to them
    host_key_checking: bool = True
    pipelining: bool | None = None
    become_method: str = ""
    become_user: str = ""
    timeout_s: int | None = None
    interpreter: str = ""
    forks: int | None = None
    inventory: tuple[str, ...] = ()
    beyond: tuple[str, ...] = ()  # what the fast ways to a host do not know
    roles_path: tuple[str, ...] = ()
    collections_path: tuple[str, ...] = ("~/.ansible/collections", "/usr/share/ansible/collections")


def questions() -> dict[str, list[str]]:
    """The commands whose output `decode` takes; none where there is nothing to learn, as each costs 0.4 s of CPU."""
    return {"base": _dump("base"), "ssh": _dump("connection", "ssh")} if _is_customised() else {}


def decode(base: bytes = b"", ssh: bytes = b"") -> Settings:
    """What differs from Ansible's defaults, from the answers to `questions`."""
    said = {
        **{entry["name"]: entry["value"] for entry in _entries(base) if "name" in entry},
        **{f"ssh.{e['name']}": e["value"] for entry in _entries(ssh) for e in entry.get("ssh", ())},
    }
    args = (said.get(f"ssh.{name}") for name in ("ssh_args", "ssh_common_args", "ssh_extra_args"))
    return Settings(
        connection=str(said.get("DEFAULT_TRANSPORT") or ""),
        user=str(said.get("ssh.remote_user") or ""),
        port=int(port) if (port := said.get("ssh.port")) else None,
        private_key=str(said.get("ssh.private_key_file") or ""),
        ssh_args=" ".join(str(text) for text in args if text),
        ssh_extra_args=str(said.get("ssh.ssh_extra_args") or ""),
        host_key_checking=bool(said.get("ssh.host_key_checking", True)),
        pipelining=said.get("ssh.pipelining"),
        become_method=str(said.get("DEFAULT_BECOME_METHOD") or ""),
        become_user=str(said.get("DEFAULT_BECOME_USER") or ""),
        timeout_s=int(timeout) if (timeout := said.get("ssh.timeout")) else None,
        interpreter=str(said.get("INTERPRETER_PYTHON") or ""),
        forks=said.get("DEFAULT_FORKS"),
        inventory=tuple(said.get("DEFAULT_HOST_LIST") or ()),
        beyond=tuple(name for name in BEYOND if said.get(f"ssh.{name}") or name in os.environ),
        roles_path=tuple(said.get("DEFAULT_ROLES_PATH") or ()),
        collections_path=tuple(said.get("COLLECTIONS_PATHS") or Settings.__struct_defaults__[-1]),
    )


def _entries(dump: bytes) -> Iterator[dict[str, Any]]:
    yield from msgspec.json.decode(dump, type=list[dict[str, Any]]) if dump else ()


def _is_customised() -> bool:
    """Whether ansible.cfg or the environment may say anything; asking Ansible costs 0.8 s of processor time."""
    places = (Path("ansible.cfg"), Path(os.path.expanduser("~/.ansible.cfg")), Path("/etc/ansible/ansible.cfg"))
    return any(name.startswith("ANSIBLE_") for name in os.environ) or not all(map(_is_plain, places))


def _is_plain(place: Path) -> bool:
    """The file is absent, or says no more than the ansible.cfg of the checkout, which converge sets in any case."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(place.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return True
    except (OSError, ValueError, configparser.Error):
        return False  # Ansible has the right words for it
    return {(name, key, value) for name, section in parser.items() for key, value in section.items()} <= PLAIN


def _dump(kind: str, *plugins: str) -> list[str]:
    return [*command("ansible-config"), "dump", "--only-changed", "--format=json", f"--type={kind}", *plugins]
