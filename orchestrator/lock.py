"""Keeps two runs from changing the same host at once.

One file per user and controller, in which a run locks one byte for each of its hosts: fleets that share no host do not
wait for each other, whatever inventory they come from, and a run that dies drops its locks with it. Beside it lies one
note a run that says who holds them; notes inform, only the locks decide.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path

import msgspec

from orchestrator import identity, paths
from orchestrator.errors import LockedError, StoreError
from orchestrator.inventory import Fleet, Host
from orchestrator.text import listed, moment, printable

__all__ = ["hold"]


class _Note(msgspec.Struct, frozen=True):
    """Who holds which locks. Of the command only its name is kept: its arguments may hold a secret."""

    command: str
    pid: int
    user: str
    machine: str
    since_s: float
    hosts: dict[str, str]  # key -> name in that run's inventory


@contextmanager
def hold(fleet: Fleet, command: str) -> Iterator[None]:
    """Holds every host of the fleet, or none.

    Raises:
        LockedError: another run holds one of them.
        StoreError: the locks cannot be written.
    """
    keys = {_key(host): host.name for host in fleet.hosts}
    folder = paths.state() / "locks"
    with _file(folder) as file:
        for key in sorted(keys):
            if not _lock(file, key):
                raise _locked(folder, keys)
        note = _write(folder, command, keys)
        try:
            yield
        finally:
            note.unlink(missing_ok=True)


def _key(host: Host) -> str:
    """The same for one machine under two names; the name where only Ansible knows the address."""
    if host.connection == "local":
        return "local"
    return host.name if "{{" in host.address else f"{host.address}:{host.port or 22}"


@contextmanager
def _file(folder: Path) -> Iterator[BufferedRandom]:
    try:
        paths.private(folder)
        file = (folder / "hosts").open("a+b")
    except OSError as e:
        raise _unwritable(folder, e) from e
    with file:  # closing it drops every lock
        yield file


def _lock(file: BufferedRandom, key: str) -> bool:
    """In sorted order and without waiting, so that of two runs that start together one gets all it wants."""
    offset = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
    except (BlockingIOError, PermissionError):  # the two answers that fcntl(2) knows for a lock of someone else
        return False
    except OSError as e:
        raise _unwritable(Path(file.name), e) from e
    return True


def _write(folder: Path, command: str, keys: dict[str, str]) -> Path:
    """Replaces what runs that were killed have left about these hosts: the locks prove that nobody holds them now."""
    for path, note in _notes(folder):
        if note.hosts.keys() & keys.keys():
            path.unlink(missing_ok=True)
    machine = os.uname().nodename
    path = folder / f"{machine}-{os.getpid()}.json"
    note = _Note(command, os.getpid(), identity.user(), machine, time.time(), keys)
    try:
        path.write_bytes(msgspec.json.encode(note))
    except OSError as e:
        raise _unwritable(path, e) from e
    return path


def _notes(folder: Path) -> Iterator[tuple[Path, _Note]]:
    for path in filter(Path.is_file, folder.glob("*.json")):
        try:
            yield path, msgspec.json.decode(path.read_bytes(), type=_Note)
        except (OSError, msgspec.MsgspecError):
            continue  # gone meanwhile, or being written


def _locked(folder: Path, keys: dict[str, str]) -> LockedError:
    for _, note in _notes(folder):
        if shared := sorted(name for key, name in keys.items() if key in note.hosts):
            return LockedError(
                f"{listed(shared)}: held by `kvmfleet {printable(note.command)}`, process {note.pid} of "
                f"{printable(note.user)} on {printable(note.machine)}, since {moment(note.since_s)}",
                hint=f"Wait until it has ended, or stop it: kill {note.pid}",
            )
    return LockedError(f"{listed(sorted(keys.values()))}: held by another run", hint="Wait until it has ended.")


def _unwritable(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{path}: {error.strerror}", hint="The locks of hosts lie there. KVMFLEET_STATE_DIR names another folder."
    )
