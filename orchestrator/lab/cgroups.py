"""A control group of its own for every host on a machine without systemd.

systemd-nspawn makes the groups `supervisor` and `payload` in the group that it is started in. Two hosts started in one
group would share `payload`, and the systemd of one would end services of the other.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from orchestrator.errors import LabError

__all__ = ["groups", "hierarchies", "make", "remove"]

_WAIT_S = 5.0


def hierarchies(mountinfo: str | None = None) -> tuple[Path, ...]:
    """Mount points of cgroup v2 and, on a hybrid machine, of systemd's named v1 hierarchy.

    Raises:
        LabError: There is no cgroup v2, which the systemd in the hosts needs.
    """
    text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    rows = [(line.split()[4], line.partition(" - ")[2].split()) for line in text.splitlines()]
    unified = [Path(point) for point, (kind, _, _) in rows if kind == "cgroup2"]
    named = [Path(point) for point, (kind, _, opts) in rows if kind == "cgroup" and "name=systemd" in opts.split(",")]
    if not unified:
        raise LabError(
            "This machine has no cgroup v2 file system, which the hosts' systemd needs.",
            hint="Mount it, for example: mount -t cgroup2 none /sys/fs/cgroup/unified",
        )
    return (unified[0], *named[:1])


def groups(name: str) -> tuple[Path, ...]:
    """The folders of a group, whether they are there or not."""
    return tuple(mount / name for mount in hierarchies())


def make(name: str) -> tuple[Path, ...]:
    """Makes a group in every hierarchy."""
    for group in groups(name):
        group.mkdir(exist_ok=True)
    return groups(name)


def remove(name: str) -> None:
    """Kills what is left in a group and removes it with everything below.

    Raises:
        LabError: It does not become empty.
    """
    until = time.monotonic() + _WAIT_S
    for group in groups(name):
        while group.exists():
            with contextlib.suppress(OSError):  # kernels before 5.14 have no such file, and v1 neither
                (group / "cgroup.kill").write_text("1")
            with contextlib.suppress(OSError):  # busy until the last process is gone
                for folder, _, _ in os.walk(group, topdown=False):
                    os.rmdir(folder)
            if group.exists() and time.monotonic() > until:
                raise LabError(f"Processes in {group} do not end.", hint=f"See them: cat {group}/cgroup.procs")
            time.sleep(0.02)
