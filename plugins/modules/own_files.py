#!/usr/bin/python
"""Makes files of ours what they should be, whole, all in one call: a task for each costs every host a round trip."""

from __future__ import annotations

import os
import stat
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kvmfleet.host.plugins.module_utils import restore
from ansible_collections.kvmfleet.host.plugins.module_utils.record import PATH, Record

DOCUMENTATION = """
module: own_files
short_description: Makes files what they should be, whole, all in one call
description:
  - Files of root's with the content and mode that are given. One that differs is replaced whole or not at all.
  - Folders that are missing are made. What was there before is a matter of M(kvmfleet.host.remember).
attributes:
  check_mode:
    description: Says what would be written, and writes nothing.
    support: full
  diff_mode:
    description: Shows the files before and after.
    support: full
options:
  files:
    description: Path -> content.
    type: dict
    required: true
  mode:
    description: Mode of all of them, octal and quoted.
    type: str
    default: "0644"
  folder:
    description: A folder that is root's, and into which nobody else may write.
    type: path
author:
  - kvmfleet developers (@kvmfleet)
"""

EXAMPLES = """
- name: Write what the next boot loads
  kvmfleet.host.own_files:
    files:
      /etc/modules-load.d/kvmfleet.conf: |
        kvm
        vhost_net
"""

RETURN = """
paths:
  description: What was not as it should be.
  returned: always
  type: list
  elements: str
"""

ROOT = {"owner": "root", "group": "root"}


def settle(work: restore.Work, files: dict[str, str], mode: str, folder: str | None) -> dict[str, Any]:
    """What was written, or with the check mode of `work` what would be."""
    paths, diffs = [], []
    if folder and not _is_roots(work.host.root + folder):
        work.act(f"{folder}: made", lambda: _make(work.host.root + folder))
        paths.append(folder)
    for path, content in files.items():
        before = _read(work.host.root + path)
        if restore.settle_file(work, path, {"content": content, "mode": mode, **ROOT}):
            paths.append(path)
            diffs.append({"before_header": path, "after_header": path, "before": before, "after": content})
    return {"changed": bool(paths), "paths": paths, "diff": diffs}


def _is_roots(path: str) -> bool:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return False
    return (found.st_mode, found.st_uid, found.st_gid) == (stat.S_IFDIR | 0o755, 0, 0)


def _make(path: str) -> None:
    os.makedirs(path, exist_ok=True)
    os.chown(path, 0, 0)
    os.chmod(path, 0o755)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except FileNotFoundError:
        return ""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "files": {"type": "dict", "required": True},
            "mode": {"type": "str", "default": "0644"},
            "folder": {"type": "path"},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)  # of folders on the way
    work = restore.Work(restore.Host(), Record(PATH, {}), module.check_mode)
    try:
        result = settle(work, module.params["files"], module.params["mode"], module.params["folder"])
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
