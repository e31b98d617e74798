"""A change of the host's network that takes itself back unless somebody confirms it.

What the way back needs is on the disk before anything changes: scripts, and copies of the files. A timer runs it; and,
for a host that boots again before the timer ends, a unit that runs before the network comes up. The change itself runs
in a unit of its own: it goes on when the connection ends through which it was asked for.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ansible_collections.kvmfleet.host.plugins.module_utils.bridge_host import Host
from ansible_collections.kvmfleet.host.plugins.module_utils.bridges import BridgeError

FOLDER = "/var/lib/kvmfleet/bridges"  # what the way back needs; gone once the change is confirmed
UNIT = "kvmfleet-bridges-rollback"
CHANGE = "kvmfleet-bridges-change"
BOOT = "/etc/systemd/system/kvmfleet-bridges-boot.service"
BOOT_LINK = "/etc/systemd/system/sysinit.target.wants/kvmfleet-bridges-boot.service"
# Daemons that a change starts, such as a DHCP client, outlive its unit. They keep its name taken, so names are new.
PROPERTIES = ("--quiet", "--collect", "--property=KillMode=process")
AGAIN = 'again() { "$@" || { sleep 2; "$@"; } || { sleep 5; "$@"; } || failed=1; }'
_BACK = f"""#!/bin/sh
# Takes back a change of the network that nobody confirmed over a new connection: the last step first.
for folder in $(ls -rd {FOLDER}/*/); do
  /bin/sh "$folder/{{script}}" || failed=1
done
rm -rf {FOLDER} {BOOT} {BOOT_LINK}
rmdir {BOOT_LINK.rpartition("/")[0]} 2>/dev/null
exit ${{{{failed:-0}}}}
"""
ROLLBACK = _BACK.format(script="undo.sh")
AT_BOOT = _BACK.format(script="files.sh")  # nothing is up yet, so there is nothing to take down
BOOT_UNIT = f"""# Written by kvmfleet, role libvirt_networks, and gone once the change of the network is confirmed.
[Unit]
Description=Take back a change of the network that nobody confirmed
DefaultDependencies=no
ConditionPathExists={FOLDER}/boot.sh
RequiresMountsFor={FOLDER}
After=local-fs.target systemd-remount-fs.service
Wants=network-pre.target
Before=network-pre.target networking.service systemd-networkd.service NetworkManager.service sysinit.target

[Service]
Type=oneshot
ExecStart=/bin/sh {FOLDER}/boot.sh
"""


class Commands(NamedTuple):
    """What goes around putting files into their places."""

    before: Sequence[Sequence[str]]  # they may fail
    after: Sequence[Sequence[str]]


class Step(NamedTuple):
    """One thing that changes, in both directions."""

    name: str
    old: Mapping[str, str | None]  # path -> text; None for no file
    new: Mapping[str, str | None]
    modes: Mapping[str, int]
    do: Commands
    undo: Commands


def arm(host: Host, step: Step, after_s: int) -> str:
    """Prepares a step and its way back, and starts the timer for all steps anew. Gives the folder of the step."""
    os.makedirs(host.root + FOLDER, 0o700, exist_ok=True)
    folder = f"{FOLDER}/{len(_folders(host)):02}-{step.name}"
    os.makedirs(host.root + folder, 0o700)
    paths = [path for path in step.new if step.old[path] != step.new[path]]
    kept, staged = {}, {}
    for number, path in enumerate(paths):
        if step.old[path] is not None:
            kept[path] = f"{folder}/{number}.old"
            host.copy(path, kept[path])
        text = step.new[path]
        if text is not None:
            staged[path] = f"{folder}/{number}.new"
            host.write(staged[path], text, step.modes[path])
            if path in kept:
                host.owned_like(staged[path], path)
    unit = f"{CHANGE}-{time.time_ns()}"
    host.write(f"{folder}/unit", unit, 0o600)
    host.write(f"{folder}/files.sh", "\n".join(["set -e", *_put(paths, kept), ""]), 0o700)
    host.write(f"{folder}/undo.sh", "\n".join([AGAIN, *_undo(folder, unit, step.undo)]), 0o700)
    host.write(f"{folder}/change.sh", "\n".join(_change(folder, step.do, _put(paths, staged))), 0o700)
    host.write(f"{FOLDER}/rollback.sh", ROLLBACK, 0o700)
    host.write(f"{FOLDER}/boot.sh", AT_BOOT, 0o700)
    _wait_for_confirmation(host, after_s)
    # a host that loses its power now finds the way back; of these two file systems alone, for others may hang
    host.run(["sync", "-f", FOLDER, os.path.dirname(BOOT)])
    return folder


def _folders(host: Host) -> list[str]:
    return [name for name in os.listdir(host.root + FOLDER) if os.path.isdir(f"{host.root}{FOLDER}/{name}")]


def _put(paths: Sequence[str], copies: Mapping[str, str]) -> list[str]:
    """Puts the copies into their places, and removes what has none."""
    lines = []
    for path in paths:
        parent = path.rpartition("/")[0]
        if path in copies:
            lines += [f"mkdir -p {shlex.quote(parent)}", f"cp -p {copies[path]} {shlex.quote(path)}"]
            continue
        lines.append(f"rm -f {shlex.quote(path)}")
        if parent.endswith((".network.d", ".service.d")):  # of drop-ins, made for ours
            lines.append(f"rmdir {shlex.quote(parent)} 2>/dev/null || true")
    return lines


def _undo(folder: str, unit: str, commands: Commands) -> list[str]:
    """Goes on after what fails: a part of the way back is better than none."""
    return [
        f"systemctl kill --signal=KILL {unit}.service 2>/dev/null || true",  # it may still wait for something
        *(f"{shlex.join(argv)} || true" for argv in commands.before),
        f"/bin/sh {folder}/files.sh || failed=1",
        *(f"again {shlex.join(argv)}" for argv in commands.after),
        "exit ${failed:-0}\n",
    ]


def _change(folder: str, commands: Commands, files: Sequence[str]) -> list[str]:
    return [
        f"exec >{folder}/log 2>&1 </dev/null",
        *(f"{shlex.join(argv)} || true" for argv in commands.before),
        "set -e",
        *files,
        *(shlex.join(argv) for argv in commands.after),
        "",
    ]


def _wait_for_confirmation(host: Host, after_s: int) -> None:
    if host.has_systemd():
        host.write(BOOT, BOOT_UNIT, 0o644)
        os.makedirs(os.path.dirname(host.root + BOOT_LINK), 0o755, exist_ok=True)
        if not os.path.islink(host.root + BOOT_LINK):
            os.symlink(BOOT, host.root + BOOT_LINK)
        _disarm(host)
        name = f"--unit={UNIT}-{time.time_ns()}"
        timer = (f"--on-active={after_s}s", "--timer-property=AccuracySec=1s")
        host.call(["systemd-run", *PROPERTIES, name, *timer, "/bin/sh", f"{FOLDER}/rollback.sh"])
        return
    mark = f"{FOLDER}/{time.time_ns()}.wait"
    for old in host.found(f"{FOLDER}/*.wait"):
        os.unlink(host.root + old)
    host.write(mark, "", 0o600)
    waiting = f"sleep {after_s}; [ ! -e {mark} ] || exec /bin/sh {FOLDER}/rollback.sh"
    host.call(["setsid", "--fork", "/bin/sh", "-c", f"({waiting}) </dev/null >/dev/null 2>&1"])


def carry_out(host: Host, folder: str) -> None:
    """Raises BridgeError with what the step's commands said when one of them failed."""
    code, out = _detached(host, host.read(f"{folder}/unit"), f"{folder}/change.sh")
    if code:
        said = " ".join((host.read(f"{folder}/log") or out).split())
        raise BridgeError(f"its configuration ended with {code}: {said[-500:]}")


def _detached(host: Host, unit: str, script: str) -> tuple[int, str]:
    if host.has_systemd():
        return host.run(["systemd-run", *PROPERTIES, "--wait", f"--unit={unit}", "/bin/sh", script])
    return host.run(["setsid", "--wait", "/bin/sh", script])


def is_waiting(host: Host) -> bool:
    """Whether a change waits to be confirmed."""
    return host.exists(FOLDER)


def confirm(host: Host) -> bool:
    """Keeps the change. False where there is none, or where it is being taken back at this moment."""
    if not is_waiting(host):
        return False
    _disarm(host)
    if host.is_active(f"{UNIT}-*.service"):
        return False
    shutil.rmtree(f"{host.root}{FOLDER}.confirmed", ignore_errors=True)
    os.rename(host.root + FOLDER, f"{host.root}{FOLDER}.confirmed")  # from here on neither timer nor boot finds it
    shutil.rmtree(f"{host.root}{FOLDER}.confirmed")
    for path in (BOOT_LINK, BOOT):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(host.root + path)
    with contextlib.suppress(OSError):
        os.rmdir(os.path.dirname(host.root + BOOT_LINK))  # which stays where somebody else has something in it
    return True


def take_back(host: Host) -> str:
    """Does now what the timer would do, and says how that ended."""
    _disarm(host)
    end = time.monotonic() + host.patience_s
    while host.is_active(f"{UNIT}-*.service") and time.monotonic() < end:  # the timer was faster
        time.sleep(0.2)
    if not is_waiting(host):
        return "The host's network is as it was before."
    code, out = _detached(host, f"{UNIT}-{time.time_ns()}", f"{FOLDER}/rollback.sh")
    if code:
        return f"Taking it back ended with {code}, too: {' '.join(out.split())}. Look at the host's network."
    return "The host's network is as it was before."


def _disarm(host: Host) -> None:
    if host.which("systemctl"):
        host.run(["systemctl", "stop", f"{UNIT}-*.timer"])
