#!/usr/bin/python
"""Brings units of systemd, or services of OpenRC, to where a plan wants them: in its order, in few calls.

A host with libvirt's modular daemons has some thirty units. The module service takes one a call, and each call costs a
round trip.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: unit_moves
short_description: Brings units to where a plan wants them
description:
  - Starts, stops, enables, disables, masks and unmasks units of systemd, or services of OpenRC, in the order given.
  - Neighbours that move alike move together. Nothing is looked up, so a plan with moves is a change.
author:
  - kvmfleet developers (@kvmfleet)
options:
  moves:
    description: What moves where, as the filter kvmfleet.host.libvirt_plan says it.
    type: list
    elements: dict
    required: true
    suboptions:
      unit:
        description: Its name, such as virtqemud.socket.
        type: str
        required: true
      enabled:
        description: Whether it comes with the next boot. Left as it is when this is not given.
        type: bool
      state:
        description: Whether it runs now. Left as it is when this is not given.
        type: str
        choices: [started, stopped]
      masked:
        description: Whether nothing may start it. OpenRC knows no such thing.
        type: bool
"""

EXAMPLES = """
- name: Let nothing start libvirtd, and open the socket of virtqemud
  kvmfleet.host.unit_moves:
    moves:
      - unit: libvirtd.socket
        state: stopped
        masked: true
      - unit: virtqemud.socket
        enabled: true
        state: started
"""

RETURN = """
commands:
  description: What was run, or would be in check mode, one list of words each.
  returned: always
  type: list
  elements: list
"""

ENABLED = {True: "enable", False: "disable"}
STATE = {"started": "start", "stopped": "stop"}
RUNLEVEL = {True: "add", False: "del"}


def of_systemd(moves: Any) -> list[list[str]]:
    """The calls of systemctl(1). What is masked cannot be enabled or started, so that comes off first and on last."""
    calls = []
    for (masked, enabled, state), group in itertools.groupby(moves, key=_move):
        verbs = [
            "unmask" if masked is False else None,
            ENABLED.get(enabled),
            STATE.get(state),
            "mask" if masked else None,
        ]
        names = [move["unit"] for move in group]
        calls += [["systemctl", verb, "--", *names] for verb in verbs if verb]
    return calls


def _move(move: Any) -> tuple[Any, Any, Any]:
    return move.get("masked"), move.get("enabled"), move.get("state")


def of_openrc(moves: Any) -> list[list[str]]:
    """The calls of rc-update(8) and rc-service(8), which take one service each."""
    calls = []
    for move in moves:
        if move.get("enabled") is not None:
            calls.append(["rc-update", RUNLEVEL[move["enabled"]], move["unit"], "default"])
        if move.get("state"):
            calls.append(["rc-service", move["unit"], STATE[move["state"]]])
    return calls


def main() -> None:
    unit = {
        "unit": {"type": "str", "required": True},
        "enabled": {"type": "bool"},
        "state": {"type": "str", "choices": sorted(STATE)},
        "masked": {"type": "bool"},
    }
    module = AnsibleModule(
        argument_spec={"moves": {"type": "list", "elements": "dict", "required": True, "options": unit}},
        supports_check_mode=True,
    )
    systemd = bool(shutil.which("systemctl", path=PATH))
    calls = (of_systemd if systemd else of_openrc)(module.params["moves"])
    if not module.check_mode:
        for argv in calls:
            why = run(argv)
            if why:
                module.fail_json(msg=f"`{' '.join(argv)}`: {why}", commands=calls)
    module.exit_json(changed=bool(calls), commands=calls)


def run(argv: list[str]) -> str:
    """Why it failed; "" when it did not. Both programs end with another code than 0 for every refusal, and say why."""
    environment = {**os.environ, "PATH": PATH, "LC_ALL": "C"}
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, check=False)
    return (done.stderr.strip() or f"it ended with {done.returncode}") if done.returncode else ""


PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

if __name__ == "__main__":
    main()
