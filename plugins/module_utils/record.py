"""What a host was before kvmfleet changed it, so that what was added can be taken back, and nothing else.

One JSON document on the host: kind of thing, such as "file" or "network" -> its name -> what was there before, null
where nothing was. Only root may read it, because files can hold passwords.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import json
import os
import pwd
import re
import stat
import tempfile
from collections.abc import Iterator
from typing import Any

PATH = "/var/lib/kvmfleet/record.json"
# How a file of ours begins, and the lines that we put into a file of others.
WHOLE = "# Written by kvmfleet"
BLOCK = re.compile(r"^# BEGIN kvmfleet[^\n]*\n.*?^# END kvmfleet[^\n]*\n", re.MULTILINE | re.DOTALL)


class RecordError(Exception):
    """The record cannot be read, so nobody knows what is ours: the message says what to do."""


class Record:
    """The things that we changed. Changes reach the disk when the `with` of `open_record` ends, or with `save`."""

    def __init__(self, path: str, things: dict[str, dict[str, Any]]) -> None:
        self._path = path
        self._things = things
        self._written = json.dumps(things, sort_keys=True)

    def holds(self, kind: str, name: str) -> bool:
        """Whether we made or changed this thing."""
        return name in self._things.get(kind, {})

    def kinds(self) -> list[str]:
        """The kinds of things that we made or changed, sorted."""
        return sorted(kind for kind, things in self._things.items() if things)

    def names(self, kind: str) -> list[str]:
        """What we made or changed of a kind, sorted."""
        return sorted(self._things.get(kind, {}))

    def before(self, kind: str, name: str) -> Any:
        """What was there before we came; None for nothing."""
        return self._things[kind][name]

    def note(self, kind: str, name: str, before: Any = None) -> None:
        """Remembers what was there. Call it before the change; only the first call for a thing counts."""
        self._things.setdefault(kind, {}).setdefault(name, before)

    def forget(self, kind: str, name: str) -> None:
        """After the thing was given back as it was."""
        self._things.get(kind, {}).pop(name, None)
        if not self._things.get(kind, True):
            del self._things[kind]

    def save(self) -> None:
        """Writes it, whole or not at all. Before a change that cannot be told from what was there, call it yourself."""
        text = json.dumps(self._things, sort_keys=True)
        if text == self._written:
            return
        folder = os.path.dirname(self._path)
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".record")  # mode 0600
        try:
            with os.fdopen(descriptor, "w") as stream:
                stream.write(text + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, self._path)
        except BaseException:
            os.unlink(temporary)
            raise
        self._written = text


@contextlib.contextmanager
def open_record(path: str = PATH, *, check: bool = False) -> Iterator[Record]:
    """The record, for one process at a time. With `check` nothing is written, as in Ansible's check mode.

    Raises:
        RecordError: the document is there and is none of ours.
        OSError: the folder cannot be written.
    """
    if check:
        yield Record(path, _read(path))
        return
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    lock = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        record = Record(path, _read(path))
        try:
            yield record
        finally:
            record.save()
    finally:
        os.close(lock)


def _read(path: str) -> dict[str, dict[str, Any]]:
    try:
        with open(path, encoding="utf-8") as stream:
            things = json.load(stream)
    except FileNotFoundError:
        return {}
    except ValueError as e:
        raise RecordError(_unreadable(path)) from e
    if not isinstance(things, dict) or not all(isinstance(kind, dict) for kind in things.values()):
        raise RecordError(_unreadable(path))
    return things


def _unreadable(path: str) -> str:
    return (
        f"{path} is not a record of kvmfleet: without it nobody knows which things kvmfleet made. Put it back from a "
        "backup; or move it away, and everything on this host counts as not made by kvmfleet."
    )


def file_before(path: str) -> Any:
    """What a file was without us: {content, mode, owner, group}, {link}, or None where there was none.

    Lines of ours that are in it already come from a time without a record. Bytes that are no UTF-8 become surrogates.
    """
    try:
        standing = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISLNK(standing.st_mode):
        return {"link": os.readlink(path)}
    with open(path, "rb") as stream:
        whole = stream.read().decode("utf-8", "surrogateescape")
    content = BLOCK.sub("", whole)
    if whole.startswith(WHOLE) or (whole and not content):
        return None
    return {
        "content": content,
        "mode": stat.S_IMODE(standing.st_mode),
        "owner": _name(pwd.getpwuid, standing.st_uid),
        "group": _name(grp.getgrgid, standing.st_gid),
    }


def _name(look: Any, number: int) -> str:
    try:
        return str(look(number)[0])
    except KeyError:
        return str(number)
