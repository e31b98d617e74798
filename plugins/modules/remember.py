#!/usr/bin/python
"""Notes in the record what a host was before kvmfleet changed it."""

from __future__ import annotations

import grp
import os
import pwd
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kvmfleet.host.plugins.module_utils import commands, packages, units
from ansible_collections.kvmfleet.host.plugins.module_utils.record import (
    Record,
    RecordError,
    file_before,
    open_record,
)

DOCUMENTATION = """
module: remember
short_description: Notes what a host was before it is changed
description:
  - Writes into the record of kvmfleet on the host what will be changed, as it is now. What the record holds already is
    not looked at again, so it may be run before every provision.
  - The playbook unprovision takes back what the record holds, and nothing else.
options:
  files:
    description: Files that will be written, with their content, or to be absent.
    type: list
    elements: path
    default: []
  edited:
    description: Files of packages that will be edited, with their content; those that are not there are not noted.
    type: list
    elements: path
    default: []
  units:
    description: Units whose standing will change, those that are not there among them.
    type: list
    elements: str
    default: []
  members:
    description: Group -> users who will join it.
    type: dict
    default: {}
  modules:
    description: Kernel modules that will be loaded.
    type: list
    elements: str
    default: []
  packages:
    description: Packages that will be installed, with everything that they bring.
    type: list
    elements: str
    default: []
  came:
    description: Whether the packages have come. What was not there when this was run without it counts as ours.
    type: bool
    default: false
author:
  - kvmfleet developers (@kvmfleet)
"""

EXAMPLES = """
- name: Remember the host as it is
  kvmfleet.host.remember:
    files: [/etc/modprobe.d/kvmfleet.conf]
    packages: [qemu-system-x86, libvirt-daemon-system]

- name: Remember which packages came
  kvmfleet.host.remember:
    edited: [/etc/libvirt/qemu.conf]
    members:
      libvirt: [admin]
    packages: [qemu-system-x86, libvirt-daemon-system]
    came: true
"""

RETURN = """
noted:
  description: What was noted now, such as "file /etc/libvirt/qemu.conf".
  returned: always
  type: list
  elements: str
"""

ETC = "/etc"
CONTRACT = "/etc/kvmfleet/contract.json"
OLDER = (
    "This host was provisioned before kvmfleet kept a record. Which packages came with that is not known, so they "
    "will stay when the host is unprovisioned. All other things are known by their marks."
)
LISTS = {"files": "path", "edited": "path", "units": "str", "modules": "str", "packages": "str"}


def folder_before(path: str) -> list[str]:
    """The folders that a file needs and that are not there, the outermost first."""
    absent = []
    while (path := os.path.dirname(path)) not in ("", "/") and not os.path.exists(path):
        absent.insert(0, path)
    return absent


def is_member(group: str, user: str) -> bool | None:
    """None where there is no such group yet."""
    try:
        found = grp.getgrnam(group)
        return user in found.gr_mem or pwd.getpwnam(user).pw_gid == found.gr_gid
    except KeyError:
        return None


def note_packages(record: Record, names: list[str], came: bool, run: Any, which: Any) -> None:
    """Before: the list of all that is installed. After: what is new, without what a person asked for meanwhile.

    The list waits in the record, so that an interrupted run and the next one are together one.
    """
    manager = packages.find(which)
    if manager is None or not names:
        return
    waiting = record.holds("transaction", "packages")
    if not came:
        record.forget("transaction", "removal")  # an unprovision that was given up
        if not waiting:
            there = packages.installed(run, manager)
            if any(there.get(name) != "installed" for name in names):
                record.note("transaction", "packages", there)
                record.note("transaction", "empty", sorted(empty(ETC)))
        return
    if not waiting:
        return
    before, now = record.before("transaction", "packages"), packages.installed(run, manager)
    new = {name for name, state in now.items() if state == "installed" and before.get(name) != "installed"}
    asked = {*names, *manager.also}
    for name in sorted(new - (packages.chosen(run, manager) - asked)):
        record.note("package", name, before.get(name))
        if name in asked:
            record.note("asked", name)
    for path in sorted(empty(ETC) - set(record.before("transaction", "empty"))):
        record.note("empty", path)
    for name in record.names("transaction"):
        record.forget("transaction", name)


def empty(root: str) -> set[str]:
    """Folders, and files without content: what scripts of packages make and do not remove."""
    found = set()
    for folder, _, names in os.walk(root):
        found.add(folder)
        files = (os.path.join(folder, name) for name in names)
        found.update(path for path in files if not os.path.islink(path) and not os.path.getsize(path))
    return found


def note(record: Record, wish: Any, run: Any = commands.run, which: Any = commands.which) -> None:
    """Everything in `wish`, which are the parameters of the module."""
    if os.path.exists(CONTRACT) and not record.kinds():
        record.note("older", "packages", wish["packages"])
    for path in wish["files"]:
        if not record.holds("file", path):
            for folder in folder_before(path):
                record.note("folder", folder)
            record.note("file", path, file_before(path))
    for path in filter(os.path.exists, wish["edited"]):
        if not record.holds("file", path):
            record.note("file", path, file_before(path))
    lacking = [unit for unit in wish["units"] if not record.holds("unit", unit)]
    standings = units.standing(run, which, lacking) if lacking else {}
    for unit in lacking:
        record.note("unit", unit, standings.get(unit))
    for group, users in wish["members"].items():
        for user in users:
            member = is_member(group, user)
            if member is not None:
                record.note("member", f"{group}:{user}", member)
    for module in wish["modules"]:
        record.note("module", module, os.path.exists(f"/sys/module/{module}"))
    note_packages(record, wish["packages"], wish["came"], run, which)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **{name: {"type": "list", "elements": elements, "default": []} for name, elements in LISTS.items()},
            "members": {"type": "dict", "default": {}},
            "came": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    try:
        with open_record(check=module.check_mode) as record:
            before = set(things(record))
            note(record, module.params)
            new = [thing for thing in things(record) if thing not in before and not thing.startswith("transaction ")]
    except (RecordError, packages.PackageError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(
            msg=f"{error.filename}: {error.strerror}. Nothing was changed, because nobody could take it back."
        )
    if any(thing.startswith("older ") for thing in new):
        module.warn(OLDER)
    module.exit_json(changed=bool(new), noted=new)


def things(record: Record) -> list[str]:
    """Everything in the record, as "kind name"."""
    return [f"{kind} {name}" for kind in record.kinds() for name in record.names(kind)]


if __name__ == "__main__":
    main()
