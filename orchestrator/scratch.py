"""Private folders for what only a running process needs, gone with it whatever ends it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["folder"]

_PREFIX = "kvmfleet-run-"
_GRACE_S = 5.0  # between making a folder and locking it there is a moment


@contextmanager
def folder(place: str | None = None) -> Iterator[Path]:
    """A new folder (0700) in `place`, by default where temporary files go; removed afterwards.

    It may hold a password for a second, so a kill -9 must not leave it there for good: each folder is locked while its
    process lives, the kernel drops the lock with the process, and the next folder that is made removes those without.

    Raises:
        OSError: it cannot be made.
    """
    place = place or tempfile.gettempdir()
    _sweep(Path(place))
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=place, ignore_cleanup_errors=True) as name:
        handle = os.open(name, os.O_RDONLY | os.O_DIRECTORY)  # not inherited by what we start
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(handle)


def _sweep(place: Path) -> None:
    """Removes what dead processes of this user left."""
    for path in place.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                status = os.fstat(handle)
                if status.st_uid == os.geteuid() and path.stat().st_ino == status.st_ino and not _is_new(status):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(handle)


def _is_new(status: os.stat_result) -> bool:
    """Made, or last written, so lately that its process may not have locked it yet."""
    return time.time() - status.st_mtime < _GRACE_S
