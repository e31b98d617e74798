#!/usr/bin/python
"""Takes back what the record holds, and nothing else.

The order is that of a host that stays whole in between: first what needs a running libvirt, then settings, then
packages, then the units that stay; the contract goes when all of that is done, and the record last. What was given
back is forgotten at once, so a run that was interrupted goes on where it was.
"""

from __future__ import annotations

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kvmfleet.host.plugins.module_utils import packages, processes, restore, units
from ansible_collections.kvmfleet.host.plugins.module_utils.record import PATH, RecordError, open_record
from ansible_collections.kvmfleet.host.plugins.module_utils.restore import GiveBackError, Host, Work

DOCUMENTATION = """
module: give_back
short_description: Takes back what kvmfleet added to a host
description:
  - Brings everything that the record of kvmfleet on the host holds back to what it was, and then removes the contract
    and the record. What the record does not hold stays as it is.
  - Guests are never removed. Their definitions and disks stay where they are.
options:
  allow_disruption:
    description: Whether guests that run are ended. Without it they stop the module before anything is changed.
    type: bool
    default: false
  notes:
    description: Sentences to begin RV(kvmfleet_notes) with, such as what other tasks have to say.
    type: list
    elements: str
    default: []
author:
  - kvmfleet developers (@kvmfleet)
"""

EXAMPLES = """
- name: Take back what kvmfleet added
  kvmfleet.host.give_back:
"""

RETURN = """
done:
  description: What was taken back, or would be in check mode, one line each.
  returned: always
  type: list
  elements: str
kvmfleet_notes:
  description: What stays on the host and why, one sentence each.
  returned: always
  type: list
  elements: str
"""

CONTRACT_FOLDER = "/etc/kvmfleet"
DOMAINS = ("/etc/libvirt/qemu", "/etc/libvirt/libxl", "/etc/libvirt/lxc")
NOTHING = "There is no record and no contract: kvmfleet never changed this host, or has left it."


# --- the story


KNOWN = {
    "asked", "autostart", "bridge", "directory", "empty", "file", "folder", "listener", "mask", "member", "module",
    "network", "older", "package", "pool", "secret", "selinux", "selinux_boolean", "selinux_fcontext", "sysctl",
    "sysfs", "transaction", "tuned", "ufw", "unit",
}  # fmt: skip


def give_back(work: Work, disrupt: bool) -> None:
    """All of it. Raises GiveBackError before anything is changed where guests run or the record is beyond us."""
    strange = sorted(set(work.record.kinds()) - KNOWN)
    if strange:
        raise GiveBackError(
            f"The record of this host holds things that this kvmfleet does not know: {', '.join(strange)}. Unprovision "
            "it with the version that provisioned it, or a later one."
        )
    end_guests(work, disrupt)
    domains = definitions(work.host)
    for first in (restore.networks, restore.pools, restore.secrets, restore.autostarts, restore.own_units):
        first(work)
    for then in (restore.members, restore.ufw, restore.selinux, restore.tuned, restore.live_values):
        then(work)
    changed = restore.files(work)
    restore.tell(work, changed)
    restore.remove_packages(work)
    restore.folders(work)
    restore.restore_units(work)
    if any(path.startswith("/etc/libvirt/") for path in changed) and not work.check:
        reread(work)
    restore.unload_modules(work)
    work.kept += [f"{path}: a guest's definition, which is never removed" for path in domains]


def end_guests(work: Work, disrupt: bool) -> None:
    guests = processes.guests(work.host.proc)
    if not guests:
        return
    names = ", ".join(str(guest) for guest in guests[:5]) + (", ..." if len(guests) > 5 else "")
    if not disrupt:
        raise GiveBackError(
            f"Guests run on this host: {names}. Nothing was changed. Shut them down or move them away and unprovision "
            "again; with kvmfleet_allow_disruption: true they are ended."
        )
    work.act(f"guests ended: {names}", lambda: processes.end(guests, work.host.proc))


def definitions(host: Host) -> list[str]:
    """The definitions of guests."""
    return [
        f"{folder}/{name}"
        for folder in DOMAINS
        if os.path.isdir(host.root + folder)
        for name in sorted(os.listdir(host.root + folder))
        if name.endswith(".xml")
    ]


def reread(work: Work) -> None:
    """A daemon that stays reads its old settings again; guests do not notice."""
    for name in ("libvirtd.service", "virtqemud.service"):
        if units.standing(work.host.run, work.host.which, [name]).get(name, {}).get("active"):
            argv = ["systemctl", "restart", name] if work.host.which("systemctl") else ["rc-service", name, "restart"]
            work.act(" ".join(argv), lambda argv=argv: work.call(argv))


def forget_everything(host: Host) -> None:
    """The contract, then the record. Whatever else lies in their folders stays."""
    for path in (f"{CONTRACT_FOLDER}/kernel-arguments.json", f"{CONTRACT_FOLDER}/contract.json", PATH):
        if os.path.exists(host.root + path):
            os.unlink(host.root + path)
    for folder in (CONTRACT_FOLDER, os.path.dirname(PATH)):
        if os.path.isdir(host.root + folder) and not os.listdir(host.root + folder):
            os.rmdir(host.root + folder)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "allow_disruption": {"type": "bool", "default": False},
            "notes": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    notes = module.params["notes"]
    if not any(map(os.path.exists, (PATH, f"{CONTRACT_FOLDER}/contract.json"))):
        module.exit_json(changed=False, done=[], kvmfleet_notes=[*notes, NOTHING])
    try:
        with open_record(check=module.check_mode) as record:
            work = Work(Host(), record, module.check_mode)
            give_back(work, module.params["allow_disruption"])
        if not module.check_mode:
            forget_everything(work.host)
    except (RecordError, GiveBackError, packages.PackageError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}. Settle that, and unprovision again.")
    diff = {"prepared": "".join(f"{line}\n" for line in work.done)}
    said = [f"would be done: {line}" for line in work.done] if module.check_mode else []
    kept = [f"stays: {sentence}" for sentence in work.kept]
    module.exit_json(changed=True, done=work.done, kvmfleet_notes=[*notes, *said, *kept], diff=diff)


if __name__ == "__main__":
    main()
