#!/usr/bin/python
"""Makes SELinux booleans have their values, now and after the next boot, with the tools that SELinux itself brings."""

from __future__ import annotations

import os
import subprocess
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kvmfleet.host.plugins.module_utils.record import RecordError, open_record

DOCUMENTATION = """
module: selinux_booleans
short_description: Makes SELinux booleans have their values
description:
  - Needs no Python library on the host, all booleans take one call, and what they were before is noted.
  - A boolean that this module changed and that is no longer named gets its value back.
  - Does nothing where the kernel has no SELinux.
options:
  booleans:
    description:
      - Boolean -> true or false, for example C(virt_use_nfs=true).
    type: dict
    required: true
author:
  - kvmfleet developers (@kvmfleet)
"""

EXAMPLES = """
- name: Let guests have disks on NFS
  kvmfleet.host.selinux_booleans:
    booleans: {virt_use_nfs: true}
"""

RETURN = """
changes:
  description: The booleans that were changed, or would be, with their new values.
  returned: always
  type: dict
"""

FOLDER = "/sys/fs/selinux/booleans"
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


class BooleanError(Exception):
    """What cannot be done, and what to do about it."""


class Host(NamedTuple):
    """Where this touches the host; tests put something else there."""

    run: Any
    record: Any
    check: bool
    folder: str = FOLDER

    def live(self, name: str) -> bool | None:
        """The value now; None for a boolean that the policy does not have."""
        try:
            with open(f"{self.folder}/{name}") as stream:
                return stream.read().split()[0] == "1"
        except FileNotFoundError:
            return None


def settle(host: Host, booleans: dict[str, bool]) -> dict[str, bool]:
    """What was changed.

    Raises:
        BooleanError: the policy has no such boolean, or setsebool complained.
    """
    if not os.path.isdir(host.folder):
        return {}
    unknown = [name for name in booleans if host.live(name) is None]
    if unknown and not host.check:
        raise BooleanError(
            f"SELinux has no boolean {', '.join(sorted(unknown))} on this host. `getsebool -a` lists its policy's."
        )
    given_up = {name: host.record.before("selinux", name) for name in host.record.names("selinux")}
    wanted = {**{name: value for name, value in given_up.items() if host.live(name) is not None}, **booleans}
    changes = {name: value for name, value in sorted(wanted.items()) if host.live(name) != value}
    if host.check:
        return changes
    for name in changes:
        host.record.note("selinux", name, host.live(name))
    host.record.save()
    if changes:
        code, out, complaint = host.run(
            ["setsebool", "-P", *(f"{name}={'on' if value else 'off'}" for name, value in changes.items())]
        )
        if code:
            raise BooleanError(f"setsebool ended with {code}: {complaint.strip() or out.strip()}")
    for name in given_up:
        if name not in booleans:
            host.record.forget("selinux", name)
    return changes


def run(argv: list[str]) -> tuple[int, str, str]:
    """Exit code, output and complaint."""
    environment = {"PATH": PATH, "LC_ALL": "C", "LANG": "C"}
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, env=environment, check=False)
    except FileNotFoundError:
        return 127, "", f"there is no {argv[0]}: install policycoreutils"
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def main() -> None:
    module = AnsibleModule(argument_spec={"booleans": {"type": "dict", "required": True}}, supports_check_mode=True)
    wanted = {name: module.boolean(value) for name, value in module.params["booleans"].items()}
    try:
        with open_record(check=module.check_mode) as record:
            changes = settle(Host(run, record, module.check_mode), wanted)
    except (BooleanError, RecordError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    module.exit_json(changed=bool(changes), changes=changes)


if __name__ == "__main__":
    main()
