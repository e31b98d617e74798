"""Whether this machine executes guests at hardware speed: our own proof decides, not a flag and not a file."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec

from orchestrator.collector import kvm
from orchestrator.errors import LabError

__all__ = ["Accelerator", "choose"]

Name = Literal["kvm", "tcg"]

_MODULES = Path("/sys/module")


class Accelerator(msgspec.Struct, frozen=True):
    """What QEMU executes a host's instructions with, and why."""

    name: Name
    why: str
    nested: bool = True
    """Whether the hosts can have a KVM of their own; QEMU's own emulation (TCG) always brings one for AMD."""


def choose(wanted: str = "auto", *, look: Callable[[], Any] | None = None, modules: Path = _MODULES) -> Accelerator:
    """The accelerator that was asked for, or the best that works.

    Raises:
        LabError: KVM was asked for and does not do, or it is there and this user may not open it.
    """
    if wanted == "tcg":
        return Accelerator("tcg", "it was asked for")
    node, execution, speed = (look or _proof)()
    if node["errno"] in ("EACCES", "EPERM"):
        raise LabError(
            f"/dev/kvm is there, but {getpass.getuser()} may not open it ({node['errno']}).",
            hint=f"Run: {_permit(node)}\n"
            "and log in again. Or give --accel tcg, which executes the hosts in software, some ten times slower.",
        )
    if speed["outcome"] == "hardware":
        return Accelerator("kvm", "/dev/kvm executes a guest in hardware", nested=_nested(modules))
    why = _why_not(execution, speed)
    if wanted == "kvm":
        raise LabError(f"KVM does not do for a lab: {why}.", hint="Leave out --accel, or give --accel tcg.")
    return Accelerator("tcg", why)


def _proof() -> tuple[Any, Any, Any]:
    node = kvm.node()
    return (node, *kvm.proof("proof", node["exists"]))


def _permit(node: Any) -> str:
    """The commands that let this user open it; those of a node that no group may use give it to the group kvm first."""
    group, open_to_group = node["group"], node["mode"] & 0o060 == 0o060
    if open_to_group and group != "root":
        return f"sudo usermod -aG {group} {getpass.getuser()}"
    return f"sudo chgrp kvm /dev/kvm && sudo chmod 0660 /dev/kvm && sudo usermod -aG kvm {getpass.getuser()}"


def _why_not(execution: Any, speed: Any) -> str:
    if execution["outcome"] == "skipped":
        return str(execution["detail"])
    if execution["outcome"] == "broken":
        return f"/dev/kvm executes no guest ({execution.get('errno') or execution.get('detail')})"
    if speed["outcome"] == "emulated":
        return "/dev/kvm emulates every instruction"
    return f"/dev/kvm executes a guest, but how fast could not be told ({speed.get('detail')})"


def _nested(modules: Path) -> bool:
    """The modules of AMD and Intel; where neither says no, the guest's own proof will tell."""
    files = (modules / name / "parameters" / "nested" for name in ("kvm_intel", "kvm_amd"))
    return all(file.read_text().strip() in ("1", "Y") for file in files if os.access(file, os.R_OK))
