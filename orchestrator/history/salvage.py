"""Histories in files that are damaged: told from good ones, and moved aside whole, so that none is lost unseen."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from orchestrator import paths
from orchestrator.text import printable

__all__ = ["DAMAGE", "alone", "damage", "discard", "is_blank", "is_emptied", "left", "ours", "set_aside"]

DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
MAGIC = b"SQLite format 3\0"
BESIDE = ("-wal", "-shm", "")  # the file itself last: a new one must never find the journal of an old one beside it


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """One process at a time opens, makes or moves a history: else the second would move the first's new one."""
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def damage(file: Path) -> str:
    """What is wrong with a history, "" where nothing is. Reads all of it."""
    if is_emptied(file):
        return "the file is empty"
    if not file.is_file():
        return ""
    try:
        with closing(sqlite3.connect(f"file:{urllib.parse.quote(str(file))}?mode=rw", uri=True)) as connection:
            said = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.Error as e:
        return printable(str(e)) if getattr(e, "sqlite_errorcode", 0) & 0xFF in DAMAGE else ""
    return "" if said == "ok" else " ".join(printable(said).split())


def is_emptied(file: Path) -> bool:
    """Whether it is empty and has been more, as `alone` keeps everybody from one that is being made.

    SQLite would take it for a new one. Elsewhere it may be one: somebody made the file, and nothing is beside it yet.
    """
    used = file == paths.history() or any(file.with_name(file.name + suffix).exists() for suffix in BESIDE[:2])
    return used and is_blank(file)


def is_blank(file: Path) -> bool:
    """Whether it is a file with nothing in it. Devices and pipes have no size either."""
    return file.is_file() and not file.stat().st_size


def set_aside(file: Path) -> Path | None:
    """Moves a damaged history, and what SQLite keeps beside it, to a name with the time; gives that name.

    None where nothing is wrong with it, or where it may not be `ours`.

    Raises:
        OSError: it cannot be moved.
    """
    if not damage(file) or not ours(file):
        return None
    moved = file.with_name(f"{file.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}")
    while moved.exists():  # two in one second
        moved = moved.with_name(f"{moved.name}x")
    for suffix in BESIDE:
        if (part := file.with_name(file.name + suffix)).exists():
            part.rename(moved.with_name(moved.name + suffix))
    return moved


def discard(file: Path) -> None:
    """Removes a history that could not be begun, and what SQLite keeps beside it."""
    for suffix in BESIDE:
        file.with_name(file.name + suffix).unlink(missing_ok=True)


def left(file: Path) -> Path | None:
    """The last damaged history that was moved aside and still lies there."""
    if not file.parent.is_dir():
        return None
    names = (found.name for found in file.parent.iterdir() if found.name.startswith(f"{file.name}.damaged-"))
    last = max((name for name in names if not name.endswith(BESIDE[:2])), default="")
    return file.with_name(last) if last else None


def ours(file: Path) -> bool:
    """Whether it is no other thing: it is where kvmfleet keeps its history, or begins as SQLite's files do."""
    if file == paths.history() or is_emptied(file):
        return True
    with file.open("rb") as opened:
        return opened.read(len(MAGIC)) == MAGIC
