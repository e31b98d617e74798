#!/usr/bin/python
"""Makes the storage pools of this host's libvirt, and the secrets that they log in with, those that were declared."""

from __future__ import annotations

DOCUMENTATION = """
module: libvirt_pools
short_description: Makes libvirt's storage pools those that were declared
author:
  - kvmfleet developers (@kvmfleet)
description:
  - Takes the whole list of pools at once. Pools that are missing are made, edited ones are changed, and those that
    earlier calls made and that are not in the list any more are removed. Other pools are left alone.
  - What libvirt adds by itself to a pool is no difference. What differs is in the diff, before and after.
  - Never deletes data. A pool is restarted or stopped only when no running guest uses a volume of it.
  - Runs C(virsh), and needs nothing on the host but Python's standard library.
attributes:
  check_mode:
    description: Says what would change, also where libvirt is not installed yet.
    support: full
  diff_mode:
    description: Shows each pool that changes as facts, one a line. Values of secrets are never shown.
    support: full
options:
  pools:
    description: All pools that this host should have, as the README of the role libvirt_storage describes them.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the pool.
        type: str
        required: true
      type:
        description: C(dir), C(fs), C(netfs), C(logical), C(iscsi), C(rbd) or C(zfs). With O(pools[].xml), none.
        type: str
      path:
        description: Where volumes appear on the host. Types that know it by themselves need none.
        type: str
      source:
        description: Where the storage comes from.
        type: dict
        suboptions:
          devices:
            description: Block devices; for C(iscsi) the name of the target.
            type: list
            elements: str
          hosts:
            description: Servers, each as NAME or NAME:PORT.
            type: list
            elements: str
          dir:
            description: The exported folder.
            type: str
          name:
            description: The volume group, zpool or Ceph pool. The name of the pool where it is left out.
            type: str
          format:
            description: The file system, in libvirt's words.
            type: str
          protocol_version:
            description: Version of NFS.
            type: str
          initiator:
            description: This host's iSCSI name.
            type: str
          username:
            description: Who logs in.
            type: str
          secret:
            description: Usage of the secret that it logs in with.
            type: str
      owner:
        description: Owner of the folder.
        type: str
      group:
        description: Group of the folder.
        type: str
      mode:
        description: Mode of the folder, octal and quoted.
        type: raw
      autostart:
        description: Whether the pool starts with the host.
        type: bool
        default: true
      active:
        description: Whether the pool is active.
        type: bool
        default: true
      build:
        description: Whether a volume group or zpool that is missing is made, of devices that are blank.
        type: bool
        default: false
      xml:
        description: The whole pool as libvirt's XML, for what the other fields cannot say.
        type: str
  secrets:
    description: Secrets that pools log in with.
    type: list
    elements: dict
    default: []
    suboptions:
      usage:
        description: Name by which pools refer to it.
        type: str
        required: true
      type:
        description: What it is for.
        type: str
        choices: [ceph, iscsi]
        required: true
      value:
        description: A password for C(iscsi), a key in base64 for C(ceph).
        type: str
        required: true
  allow_disruption:
    description: Whether pools are restarted or stopped although guests use volumes of them.
    type: bool
    default: false
  validate_only:
    description: Only looks whether the list could become true on this host, and fails with what is wrong.
    type: bool
    default: false
  uri:
    description: Which libvirt.
    type: str
    default: qemu:///system
"""

EXAMPLES = """
- name: Make the storage pools
  kvmfleet.host.libvirt_pools:
    pools:
      - name: images
        type: dir
        path: /srv/images
        mode: "0711"
      - name: nas
        type: netfs
        path: /srv/nas
        source:
          hosts: [nas1.example.com]
          dir: /export/guests
          format: nfs
"""

RETURN = """
pools:
  description: What was done to each pool that changed, by name.
  returned: always
  type: dict
pending:
  description: What was not done because guests use it, one sentence each.
  returned: always
  type: list
  elements: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kvmfleet.host.plugins.module_utils import storage_pools
from ansible_collections.kvmfleet.host.plugins.module_utils.record import Record, RecordError, open_record
from ansible_collections.kvmfleet.host.plugins.module_utils.storage_host import (
    Host,
    PoolError,
    backends,
    host_problems,
    known_secrets,
    look,
    run,
)
from ansible_collections.kvmfleet.host.plugins.module_utils.storage_labels import labelled, settle_labels
from ansible_collections.kvmfleet.host.plugins.module_utils.storage_settling import Settling


def settle(
    host: Host, record: Record, pools: Any, secrets: Any, *, allow_disruption: bool, check: bool
) -> dict[str, Any]:
    """Everything. Raises PoolError at the first thing that does not work; what was done before it stays done."""
    this = Settling(host, record, allow_disruption=allow_disruption, check=check)
    if not any((pools, secrets, record.names("pool"), record.names("secret"), labelled(this))):
        return {"changed": False, "pools": {}, "pending": [], "diff": []}
    if not host.has("virsh"):
        if not check:
            raise PoolError("There is no virsh on this host. Let the role libvirt bring it first.")
        found, known = {}, {}
    else:
        backends(host, pools, check=check)
        found, known = look(host), known_secrets(host)
    declared = {pool["name"] for pool in pools}
    for name in record.names("pool"):
        if name not in declared and record.before("pool", name) is None:
            this.remove(name, found.get(name))
    this.secrets(secrets, known)
    for pool in pools:
        this.pool(pool, found.get(pool["name"]))
    this.forget_secrets(secrets, known)
    settle_labels(this, pools)
    return {
        "changed": bool(this.changes),
        "pools": {change.name: change.done for change in this.changes},
        "pending": this.pending,
        "diff": [change.diff() for change in this.changes],
    }


def wrong(host: Host, pools: Any, secrets: Any) -> list[str]:
    """All that is wrong; what is wrong in itself keeps us from looking at the host."""
    return storage_pools.problems(pools, secrets) or host_problems(host, pools)


def text(**more: Any) -> dict[str, Any]:
    return {"type": "str", **more}


def flag(default: bool) -> dict[str, Any]:
    return {"type": "bool", "default": default}


WORDS = {"type": "list", "elements": "str"}
SOURCE = {
    "devices": WORDS,
    "hosts": WORDS,
    **{name: text() for name in ("dir", "name", "format", "protocol_version", "initiator", "username")},
    "secret": text(no_log=False),  # a name, not the value
}
POOL = {
    "name": text(required=True),
    **{name: text() for name in ("type", "path", "owner", "group", "xml")},
    "source": {"type": "dict", "options": SOURCE},
    "mode": {"type": "raw"},
    "autostart": flag(True),
    "active": flag(True),
    "build": flag(False),
}
SECRET = {
    "usage": text(required=True),
    "type": text(required=True, choices=["ceph", "iscsi"]),
    "value": text(required=True, no_log=True),
}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "pools": {"type": "list", "elements": "dict", "default": [], "options": POOL},
            "secrets": {"type": "list", "elements": "dict", "default": [], "no_log": False, "options": SECRET},
            "allow_disruption": flag(False),
            "validate_only": flag(False),
            "uri": text(default="qemu:///system"),
        },
        supports_check_mode=True,
    )
    pools, secrets = module.params["pools"], module.params["secrets"]
    host = Host(run, module.params["uri"])
    problems = wrong(host, pools, secrets)
    if problems:
        module.fail_json(msg="\n".join(problems))
    if module.params["validate_only"]:
        module.exit_json(changed=False, pools={}, pending=[])
    try:
        with open_record(check=module.check_mode) as record:
            result = settle(
                host,
                record,
                pools,
                secrets,
                allow_disruption=module.params["allow_disruption"],
                check=module.check_mode,
            )
    except (PoolError, RecordError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    for sentence in result["pending"]:
        module.warn(sentence)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
