#!/usr/bin/python
"""Decides who logs in to libvirt with a password: the settings of SASL, and its database of users."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import socket
import stat
import tempfile
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kvmfleet.host.plugins.module_utils import restore
from ansible_collections.kvmfleet.host.plugins.module_utils.record import (
    Record,
    RecordError,
    file_before,
    open_record,
)

DOCUMENTATION = """
module: libvirt_sasl
short_description: Decides who logs in to libvirt with a password
description:
  - Writes what libvirt's SASL library reads, and makes its database of users hold those that were declared, no others.
  - Which passwords it holds is known by a salted digest of each, beside a digest of the whole database, in a file that
    only root reads. The database itself has no clear text either. Where anything differs, it is made anew as a whole.
  - A new password counts at once, without a restart. A daemon that runs is restarted only when somebody else changed
    the settings.
  - What was in the place of the two files before is noted in the host's record, and put back with O(state=absent).
attributes:
  check_mode:
    description: Says what would change, also where SASL is not installed yet.
    support: full
  diff_mode:
    description: Shows names of files and users, and no contents, which may be secret.
    support: full
options:
  state:
    description: Whether there is a database of users.
    type: str
    choices: [present, absent]
    default: present
  mechanism:
    description: How users log in.
    type: str
    choices: [scram-sha-256]
    default: scram-sha-256
  users:
    description: All who may log in.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the user, which needs no account on the host.
        type: str
        required: true
      password:
        description: Password of the user.
        type: str
        required: true
  configuration:
    description: Where the SASL library looks for libvirt's settings.
    type: path
    default: /etc/sasl2/libvirt.conf
  database:
    description: Where the users are.
    type: path
    default: /etc/libvirt/passwd.db
author:
  - kvmfleet developers (@kvmfleet)
"""

EXAMPLES = """
- name: Let the backup in
  kvmfleet.host.libvirt_sasl:
    users:
      - name: backup
        password: "{{ vault_backup_password }}"
"""

RETURN = """
users:
  description: What became of each user that changed, by name.
  returned: always
  type: dict
  sample: {backup: added}
"""

STATE = "/var/lib/kvmfleet/sasl.json"
HEADER = "# Written by kvmfleet, role libvirt_remote. Changes made here are lost.\n"
ITERATIONS = 100_000  # of PBKDF2, which every build of OpenSSL has; the database's own secrets have 4096
DAEMONS = ("libvirtd.service", "virtproxyd.service")
ROOT = {"owner": "root", "group": "root"}
MISSING = "Install the packages for SASL: the role libvirt_remote knows them as libvirt_remote_packages."

Wish = dict[str, Any]
Host = restore.Host


class SaslError(Exception):
    """What cannot be done, and what to do about it."""


def settings(wish: Wish) -> str:
    """What the SASL library reads. With `scram_secret_generate`, and no password given in clear, only what is derived
    from a password is stored."""
    lines = [
        f"mech_list: {wish['mechanism']}",
        "auxprop_plugin: sasldb",
        f"sasldb_path: {wish['database']}",
        "scram_secret_generate: yes",
    ]
    return HEADER + "".join(f"{line}\n" for line in lines)


# --- what is there


def read(path: str) -> bytes:
    """The content of a file, nothing where there is none, or a link to one that is somebody else's."""
    if os.path.islink(path):
        return b""
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except (FileNotFoundError, NotADirectoryError):
        return b""


def known(host: Host) -> dict[str, Any]:
    """What the last call left: digest of the database, realm of its users, digest of each password."""
    try:
        state = json.loads(read(host.root + STATE))
        users = {str(name): (bytes.fromhex(salt), bytes.fromhex(hashed)) for name, (salt, hashed) in state["users"]}
    except (ValueError, KeyError, TypeError):
        return {"database": "", "realm": "", "users": {}}
    return {"database": state.get("database"), "realm": state.get("realm"), "users": users}


def digest(password: str, salt: bytes) -> bytes:
    return hashlib.pbkdf2_hmac("sha256", password.encode(), salt, ITERATIONS)


def realm() -> str:
    """This host's name as the SASL library has it: users are stored below it, and with another name nobody is found."""
    name = socket.gethostname()
    try:
        whole = "" if "." in name else socket.getaddrinfo(name, None, flags=socket.AI_CANONNAME)[0][3]
    except OSError:
        whole = ""
    return (whole if "." in whole else name).lower()


def changed_users(wished: dict[str, str], state: dict[str, Any], *, whole: bool) -> dict[str, str]:
    """What becomes of each user. `whole`: the database is the one that the last call left."""
    known_users = state["users"]
    found = {name: "removed" for name in known_users if name not in wished}
    for name, password in wished.items():
        if name not in known_users:
            found[name] = "added"
        elif not hmac.compare_digest(digest(password, known_users[name][0]), known_users[name][1]):
            found[name] = "new password"
        elif not whole:
            found[name] = "written again"
    return found


# --- what is done


def settle(host: Host, record: Record, wish: Wish, check: bool, here: str) -> dict[str, Any]:
    """Settings first, as the users are written by them. What was done, or with `check` what would be. `here` is the
    realm of this host."""
    wished = {user["name"]: user["password"] for user in wish["users"]}
    configuration, database = host.root + wish["configuration"], host.root + wish["database"]
    state, held = known(host), read(database)
    ours = bool(held) and hashlib.sha256(held).hexdigest() == state["database"]
    users = changed_users(wished, state, whole=ours and state["realm"] == here)
    work = restore.Work(host, record, check)
    if read(configuration) != settings(wish).encode():
        work.act(f"{wish['configuration']} is written", lambda: _configure(work, wish, again=bool(state["database"])))
    elif not _only_root(configuration, 0o644):
        work.act(f"{wish['configuration']} is root's again", lambda: _own(configuration, 0o644))
    if users:
        work.act(f"{wish['database']} is written", lambda: _fill(work, wish, wished, here))
        work.done += [f"user {name}: {what}" for name, what in sorted(users.items())]
    elif not _only_root(database, 0o600):
        work.act(f"{wish['database']} is root's alone again", lambda: _own(database, 0o600))
    return {"users": users, "done": work.done}


def _configure(work: restore.Work, wish: Wish, *, again: bool) -> None:
    """A daemon reads this when it starts. `again`: it asked for passwords already, and nobody else will restart it."""
    _replace(work, wish["configuration"], settings(wish), 0o644)
    for unit in DAEMONS if again and work.host.which("systemctl") else ():
        if work.host.run(["systemctl", "is-active", "--quiet", unit])[0] == 0:
            _call(work.host, ["systemctl", "try-restart", unit])


def _fill(work: restore.Work, wish: Wish, wished: dict[str, str], here: str) -> None:
    """A new database with all the users in the place of the old one: nothing of a former user or password is left in
    it, and who logs in meanwhile finds one or the other."""
    folder = os.path.dirname(work.host.root + wish["database"])
    with tempfile.TemporaryDirectory(dir=folder, prefix=".kvmfleet") as private:  # mode 0700
        path = f"{private}/passwd.db"
        application = os.path.basename(wish["configuration"])[: -len(".conf")]
        for name, password in wished.items():
            _call(work.host, ["saslpasswd2", "-p", "-c", "-n", "-a", application, "-f", path, "--", name], password)
        listed = _call(work.host, ["sasldblistusers2", "-f", path])
        lost = sorted(set(wished) - {line.rpartition("@")[0] for line in listed.splitlines()})
        if lost:
            raise SaslError(f"{wish['mechanism']} stored nothing for {', '.join(lost)}. {MISSING}")
        content = read(path)
    _replace(work, wish["database"], content.decode("utf-8", "surrogateescape"), 0o600)
    salts = {name: secrets.token_bytes(16) for name in wished}
    state = {
        "database": hashlib.sha256(content).hexdigest(),
        "realm": here,
        "users": [(name, (salt.hex(), digest(wished[name], salt).hex())) for name, salt in salts.items()],
    }
    _replace(work, STATE, json.dumps(state) + "\n", 0o600)


def _replace(work: restore.Work, path: str, content: str, mode: int) -> None:
    """Writes a file whole, after what was there is noted."""
    work.record.note("file", path, file_before(work.host.root + path))
    work.record.save()
    restore.write_file(work.host, work.host.root + path, {"content": content, "mode": mode, **ROOT})


def _only_root(path: str, mode: int) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (mode, 0, 0)


def _own(path: str, mode: int) -> None:
    os.chmod(path, mode)
    os.chown(path, 0, 0)


def _call(host: Host, argv: list[str], said: str = "") -> str:
    """The output. What is said to a command is never part of a complaint."""
    if not host.which(argv[0]):
        raise SaslError(f"There is no {argv[0]} on this host. {MISSING}")
    code, out, complaint = host.run(argv, said)
    if code:
        raise SaslError(f"`{' '.join(argv)}` ended with {code}: {complaint.strip() or out.strip()}. {MISSING}")
    return str(out)


def remove(host: Host, record: Record, wish: Wish, check: bool) -> dict[str, Any]:
    """Gives back the places that we took: with what was in them before, or with nothing."""
    work = restore.Work(host, record, check)
    for path in (wish["database"], STATE, wish["configuration"]):
        if record.holds("file", path):
            restore.settle_file(work, path, record.before("file", path))
            work.forget("file", path)
    return {"users": {}, "done": work.done}


def main() -> None:
    user = {"name": {"type": "str", "required": True}, "password": {"type": "str", "required": True, "no_log": True}}
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "mechanism": {"type": "str", "choices": ["scram-sha-256"], "default": "scram-sha-256"},
            "users": {"type": "list", "elements": "dict", "default": [], "options": user},
            "configuration": {"type": "path", "default": "/etc/sasl2/libvirt.conf"},
            "database": {"type": "path", "default": "/etc/libvirt/passwd.db"},
        },
        supports_check_mode=True,
    )
    wish, check = module.params, module.check_mode
    try:
        with open_record(check=check) as record:
            if wish["state"] == "absent":
                result = remove(Host(), record, wish, check)
            else:
                result = settle(Host(), record, wish, check, realm())
    except (SaslError, RecordError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    diff = {"prepared": "".join(f"{line}\n" for line in result["done"])}
    module.exit_json(changed=bool(result["done"]), users=result["users"], diff=diff)


if __name__ == "__main__":
    main()
