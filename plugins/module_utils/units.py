"""Where units of systemd or services of OpenRC stand, and how to bring them back there."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Run = Callable[..., "tuple[int, str, str]"]


def standing(run: Run, which: Any, names: list[str]) -> dict[str, dict[str, bool]]:
    """Unit -> {enabled, active, masked}; those that do not exist are missing."""
    if not which("systemctl"):
        return {name: _of_openrc(run, name) for name in names if not run(["rc-service", "--exists", name])[0]}
    out = run(["systemctl", "show", "--property=Id,LoadState,UnitFileState,ActiveState", "--", *names])[1]
    found = {}
    for block in out.split("\n\n"):
        unit = dict(re.findall(r"^(\w+)=(.*)$", block, re.MULTILINE))
        if unit.get("LoadState") in ("loaded", "masked"):
            found[unit["Id"]] = {
                "enabled": unit["UnitFileState"] == "enabled",
                "active": unit["ActiveState"] == "active",
                "masked": unit["LoadState"] == "masked",
            }
    return found


def _of_openrc(run: Run, name: str) -> dict[str, bool]:
    return {
        "enabled": not run(["sh", "-c", 'rc-update show default | grep -qw -- "$1"', "sh", name])[0],
        "active": not run(["rc-service", "--quiet", name, "status"])[0],
        "masked": False,
    }


def moves(which: Any, name: str, now: dict[str, bool], then: dict[str, bool]) -> list[list[str]]:
    """The commands that bring a unit from one standing to another; none where it is there."""
    if not which("systemctl"):
        words = {
            "enabled": {True: ["rc-update", "add", name, "default"], False: ["rc-update", "del", name, "default"]},
            "active": {True: ["rc-service", name, "start"], False: ["rc-service", name, "stop"]},
        }
        return [words[what][then[what]] for what in words if now[what] != then[what]]
    found = []
    if now["masked"] and not then["masked"]:
        found.append(["systemctl", "unmask", name])
    if now["enabled"] != then["enabled"] and not then["masked"]:
        found.append(["systemctl", "enable" if then["enabled"] else "disable", name])
    if now["active"] != then["active"]:
        found.append(["systemctl", "start" if then["active"] else "stop", name])
    if then["masked"] and not now["masked"]:
        found.append(["systemctl", "mask", name])
    return found
