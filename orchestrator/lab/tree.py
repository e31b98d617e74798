"""Folders: copied quickly, locked, and removed without ever leaving them."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from orchestrator import paths
from orchestrator.errors import LabError, LockedError
from orchestrator.lab.command import run

__all__ = ["copy", "hold", "remove", "scratch", "write"]

_GETFLAGS, _SETFLAGS = 0x80086601, 0x40086602  # FS_IOC_GETFLAGS and FS_IOC_SETFLAGS, linux/fs.h
_LOCKED_FLAGS = 0x10 | 0x20  # immutable and append-only


def copy(source: Path, target: Path) -> None:
    """Copies a system's tree; shares the blocks where the file system can."""
    run(["cp", "--archive", "--reflink=auto", str(source), str(target)], timeout_s=600)


def write(path: Path, text: str, *, mode: int = 0o644, durable: bool = False) -> None:
    """Writes a whole file or none, whatever happens to us in between; durable: whatever happens to the machine.

    Durable costs seconds after a large copy, for the file system writes that out first.
    """
    new = path.with_name(f".{path.name}.new")
    with open(new, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    new.replace(path)


@contextlib.contextmanager
def hold(folder: Path, *, wait: bool) -> Iterator[None]:
    """Keeps others out of a folder, which is made when missing. The folder itself is the lock, so no file stays behind.

    Raises:
        LockedError: Another process holds it and `wait` is false.
    """
    while True:
        paths.private(folder)
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is(folder, lock):  # not so when its holder removed it while we waited
                yield
                return
        except BlockingIOError as e:
            raise LockedError(
                f"{_holder(lock)} is at work in {folder}.", hint="Wait until it has ended, or end it."
            ) from e
        finally:
            os.close(lock)


def _is(folder: Path, opened: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(folder.stat(), os.fstat(opened))
    return False


def _holder(opened: int) -> str:
    """Who holds the lock, from proc_locks(5): `1: FLOCK  ADVISORY  WRITE 123 fe:00:4711 0 EOF`."""
    inode = os.fstat(opened).st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if "->" not in fields and fields[1] == "FLOCK" and fields[5].endswith(f":{inode}"):
            return f"Process {fields[4]}"
    return "Another process"


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """An empty folder of that name, removed afterwards; what a kill left of it goes first."""
    remove(folder)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        remove(folder)


def _mounts_below(folder: Path) -> tuple[Path, ...]:
    """Mount points in and at a folder, in the mount namespace of this process."""
    points = (Path(_unescaped(line.split()[4])) for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return tuple(point for point in points if point.is_relative_to(folder))


def _unescaped(field: str) -> str:
    """Mountinfo writes space, tab, newline and backslash as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def remove(folder: Path) -> None:
    """Removes a folder and all in it: follows no symbolic link, enters no mount, takes immutable files too.

    Raises:
        LabError: Something is mounted in it, which is then not ours to remove.
    """
    folder = folder.parent.resolve() / folder.name
    if mounts := _mounts_below(folder):
        raise LabError(f"{mounts[-1]} is mounted inside {folder}.", hint=f"Unmount it first: umount {mounts[-1]}")
    if not os.path.lexists(folder):
        return
    if folder.is_dir() and not folder.is_symlink():
        # rm(1) copes with any depth, Python's walk only with some; what resists rm is immutable, and goes below.
        run(["rm", "--recursive", "--force", "--one-file-system", str(folder)], timeout_s=600, ok=(0, 1))
    if not os.path.lexists(folder):
        return
    for _, folders, files, here in os.fwalk(folder, topdown=False, follow_symlinks=False):
        for name in files:
            _forced(os.unlink, name, here)
        for name in folders:  # fwalk lists links to folders among the folders
            _forced(os.unlink if _is_link(name, here) else os.rmdir, name, here)
    folder.rmdir()


def _is_link(name: str, here: int) -> bool:
    return stat.S_ISLNK(os.stat(name, dir_fd=here, follow_symlinks=False).st_mode)


class _Removal(Protocol):
    def __call__(self, path: str, *, dir_fd: int | None = None) -> None: ...


def _forced(removal: _Removal, name: str, here: int) -> None:
    try:
        removal(name, dir_fd=here)
    except PermissionError:
        _clear_flags(here)
        with contextlib.suppress(OSError):  # a link or a device has no flags
            opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=here)
            try:
                _clear_flags(opened)
            finally:
                os.close(opened)
        removal(name, dir_fd=here)


def _clear_flags(opened: int) -> None:
    """Undoes chattr(1) +i and +a."""
    flags = array.array("i", [0])
    fcntl.ioctl(opened, _GETFLAGS, flags)
    flags[0] &= ~_LOCKED_FLAGS
    fcntl.ioctl(opened, _SETFLAGS, flags)
