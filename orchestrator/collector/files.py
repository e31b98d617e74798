"""Read files that may be missing, huge, or no files at all."""

import errno
import glob
import hashlib
import os
import re
import stat
from typing import Dict, List, Optional, Sequence, Tuple

FOLDERS = ("/etc", "/run", "/usr/local/lib", "/usr/lib", "/lib")
SMALL = 65536
LARGE = 64 << 20
LARGEST = (1 << 63) - 1  # what the reader takes for a number; the kernel has larger ones for "no limit"


def opened(path: str, extra: int = 0) -> int:
    """A descriptor of a regular file. O_NONBLOCK, so that a FIFO in its place cannot hang us. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | extra)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return fd


def created(path: str) -> int:
    """A descriptor of a new file that everybody may read. Raises OSError where something has that name."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)


def content(path: str, limit: int = SMALL) -> str:
    """The text of a file, cut at `limit` bytes. Raises OSError. Also for /proc and /sys, whose sizes say nothing."""
    fd = opened(path)
    try:
        return _all(fd, limit).decode("utf-8", "replace")
    finally:
        os.close(fd)


def text(path: str, limit: int = SMALL) -> str:
    """As `content`, and an empty string where the file cannot be read."""
    try:
        return content(path, limit)
    except OSError:
        return ""


def known(path: str, limit: int = SMALL) -> Optional[str]:
    """As `text`, without white space around it: "" where there is no such file, None where it cannot be read."""
    try:
        return content(path, limit).strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError:
        return None


def number(path: str) -> Optional[int]:
    """The first number in a file of /proc or /sys; None where there is none."""
    found = re.match(r"\d{1,20}\b", known(path) or "")
    return min(int(found.group()), LARGEST) if found else None


def tail(path: str) -> str:
    """As `text`, but of a large file the end."""
    try:
        fd = opened(path)
    except OSError:
        return ""
    try:
        os.lseek(fd, max(os.fstat(fd).st_size - SMALL, 0), os.SEEK_SET)
        return _all(fd, SMALL).decode("utf-8", "replace")
    finally:
        os.close(fd)


def _all(fd: int, limit: int) -> bytes:
    parts, room = [], limit
    while room > 0:
        data = os.read(fd, min(room, SMALL))
        if not data:
            break
        parts.append(data)
        room -= len(data)
    return b"".join(parts)


def sha256(path: str) -> str:
    """The digest in hexadecimal, or an empty string for what is no readable regular file below 64 MiB."""
    try:
        fd = opened(path)
    except OSError:
        return ""
    try:
        if os.fstat(fd).st_size > LARGE:
            return ""
        digest = hashlib.sha256()
        for data in iter(lambda: os.read(fd, 1 << 20), b""):
            digest.update(data)
        return digest.hexdigest()
    finally:
        os.close(fd)


def dropins(name: str, folders: Sequence[str] = FOLDERS) -> List[Tuple[str, str]]:
    """(path, text) of NAME.d in the order in which it is applied.

    As in modprobe.d(5) and modules-load.d(5): sorted by file name whatever the folder, and a file of an earlier folder
    replaces the one with its name in a later folder.
    """
    chosen: Dict[str, str] = {}
    for folder in folders:
        for path in glob.glob("{}/{}/*.conf".format(folder, name)):
            chosen.setdefault(os.path.basename(path), path)
    return [(path, text(path)) for _, path in sorted(chosen.items())]
