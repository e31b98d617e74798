#!/usr/bin/python
"""Says what happens to guests when their host starts and stops: libvirt-guests' settings, its unit, and autostart.

libvirt-guests reads its settings when it starts and when it stops, so nothing has to be restarted for them. Stopping it
would shut the guests down, which this never does while one runs.
"""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kvmfleet.host.plugins.module_utils import commands, processes, units
from ansible_collections.kvmfleet.host.plugins.module_utils.record import Record, RecordError, open_record

DOCUMENTATION = """
module: guests_policy
short_description: Says what happens to guests when their host starts and stops
description:
  - Writes the settings of libvirt-guests as a block at the end of its file, where they win, and enables and starts its
    unit, which then ends or suspends guests at shutdown.
  - Turns on autostart of guests. Only what this module turned on is turned off again.
options:
  file:
    description: The file that libvirt-guests reads on this platform.
    type: path
    required: true
  settings:
    description: Setting -> value, such as ON_SHUTDOWN. Empty where there is no policy; then a block of ours is removed.
    type: dict
    default: {}
  unit:
    description: The unit of libvirt-guests.
    type: str
    default: libvirt-guests.service
  autostart:
    description: Guests that start with the host, by name. One that does not exist is named in RV(missing).
    type: list
    elements: str
    default: []
  uri:
    description: How libvirt is reached.
    type: str
    default: qemu:///system
author:
  - kvmfleet developers (@kvmfleet)
"""

EXAMPLES = """
- name: Shut guests down with their host, four at a time
  kvmfleet.host.guests_policy:
    file: /etc/default/libvirt-guests
    settings:
      ON_SHUTDOWN: shutdown
      PARALLEL_SHUTDOWN: "4"
    autostart: [dns]
"""

RETURN = """
missing:
  description: Guests that were to start with the host and do not exist.
  returned: always
  type: list
  elements: str
pending:
  description: What waits until no guest runs, one sentence each.
  returned: always
  type: list
  elements: str
"""

BEGIN = "# BEGIN kvmfleet: wins over what is above, and changes made inside are lost"
END = "# END kvmfleet: wins over what is above, and changes made inside are lost"
BLOCK = re.compile(f"^{re.escape(BEGIN)}\n.*?^{re.escape(END)}\n?", re.MULTILINE | re.DOTALL)


class PolicyError(Exception):
    """What libvirt or the unit refused."""


class Host(NamedTuple):
    """Where this touches the host; tests put something else there."""

    run: Any = commands.run
    which: Any = commands.which
    proc: str = "/proc"

    def call(self, argv: list[str]) -> str:
        code, out, complaint = self.run(argv)
        if code:
            raise PolicyError(f"`{' '.join(argv)}` ended with {code}: {complaint.strip() or out.strip()}")
        return str(out)


def with_block(text: str, settings: Any, *, empty: bool = False) -> str:
    """The file with our settings at its end; without them as it was, or with an empty block that says that we came."""
    rest = BLOCK.sub("", text)
    if not settings and not empty:
        return rest
    gap = "" if not rest or rest.endswith("\n") else "\n"
    lines = "".join(f'{key}="{settings[key]}"\n' for key in sorted(settings))
    return f"{rest}{gap}{BEGIN}\n{lines}{END}\n"


def unit_moves(host: Host, record: Record, unit: str, wanted: bool, left: bool) -> tuple[list[list[str]], list[str]]:
    """Commands for the unit, and what waits. `left`: the policy has just gone, and the unit goes back."""
    now = units.standing(host.run, host.which, [unit]).get(unit)
    if now is None:
        return [], []
    if wanted:
        return units.moves(host.which, unit, now, {"enabled": True, "active": True, "masked": False}), []
    before = record.before("unit", unit) if left and record.holds("unit", unit) else None
    if not before:
        return [], []
    moves = units.moves(host.which, unit, now, before)
    stops = [move for move in moves if "stop" in move]
    if stops and processes.guests(host.proc):
        return [move for move in moves if move not in stops], [
            f"{unit} goes on, because stopping it would shut down the guests that run"
        ]
    return moves, []


def autostart_moves(
    host: Host, record: Record, wanted: list[str], uri: str
) -> tuple[list[tuple[str, list[str]]], list[str]]:
    """Guest and command of what has to change, and the guests that do not exist."""
    ours = record.names("autostart")
    if not (wanted or ours) or not host.which("virsh"):
        return [], list(wanted)
    virsh = ["virsh", "-q", "-c", uri]
    there = host.call([*virsh, "list", "--all", "--persistent", "--name"]).split("\n")
    on = host.call([*virsh, "list", "--all", "--autostart", "--name"]).split("\n")
    moves = [(name, [*virsh, "autostart", "--", name]) for name in wanted if name in there and name not in on]
    for name in ours:
        if name not in wanted and name in on and not record.before("autostart", name):
            moves.append((name, [*virsh, "autostart", "--disable", "--", name]))
    return moves, [name for name in wanted if name not in there]


def read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            return stream.read()
    except FileNotFoundError:
        return ""


def write(path: str, text: str) -> None:
    """Whole or not at all; who may read it stays."""
    mode = os.stat(path).st_mode & 0o7777 if os.path.exists(path) else 0o644
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    with open(f"{path}.kvmfleet", "w", encoding="utf-8", errors="surrogateescape") as stream:
        os.fchmod(stream.fileno(), mode)
        stream.write(text)
    os.replace(stream.name, path)


def settle(host: Host, record: Record, wish: Any, check: bool) -> dict[str, Any]:
    """What was done, or with `check` what would be."""
    before = read(wish["file"])
    left = bool(BLOCK.search(before)) and not wish["settings"]
    moves, pending = unit_moves(host, record, wish["unit"], bool(wish["settings"]), left)
    after = with_block(before, wish["settings"], empty=bool(pending))
    starts, missing = autostart_moves(host, record, wish["autostart"], wish["uri"])
    if not check:
        if after != before and not left:
            write(wish["file"], after)
        for argv in moves:
            host.call(argv)
        if after != before and left:  # last, or the next run would not know that the unit is still to go back
            write(wish["file"], after)
        for name, argv in starts:
            record.note("autostart", name, False)
            record.save()
            host.call(argv)
        for name in set(record.names("autostart")) - set(wish["autostart"]):
            record.forget("autostart", name)
    said = [" ".join(argv) for argv in [*moves, *(argv for _, argv in starts)]]
    return {
        "changed": after != before or bool(said),
        "missing": missing,
        "pending": pending,
        "diff": [
            {"before": before, "after": after, "before_header": wish["file"], "after_header": wish["file"]},
            {"prepared": "".join(f"{line}\n" for line in said)},
        ],
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "file": {"type": "path", "required": True},
            "settings": {"type": "dict", "default": {}},
            "unit": {"type": "str", "default": "libvirt-guests.service"},
            "autostart": {"type": "list", "elements": "str", "default": []},
            "uri": {"type": "str", "default": "qemu:///system"},
        },
        supports_check_mode=True,
    )

    try:
        with open_record(check=module.check_mode) as record:
            result = settle(Host(), record, module.params, module.check_mode)
    except (PolicyError, RecordError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    for name in result["missing"]:
        if not module.check_mode:
            module.warn(
                f"libvirt_guests_autostart: there is no guest {name} on this host yet. Define it, then provision."
            )
    module.exit_json(**result)


if __name__ == "__main__":
    main()
