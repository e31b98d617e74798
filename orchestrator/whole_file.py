"""Writes whole files: a reader sees the old one or the new one, whatever happens to us in between."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path

__all__ = ["rehearse", "write"]


def write(path: Path, text: str, *, mode: int | None = None) -> None:
    """Replaces the file, or makes it; its mode is what the umask leaves where none is given.

    The new text grows under a name that nobody can guess or has taken, as the folder may be one that others write to.
    A link stays, and what it leads to is replaced; a device or a pipe is written to, as it cannot be replaced.

    A link that somebody else put where everybody may put one is not followed.

    Raises:
        OSError: it cannot be written, and the old one is as it was.
    """
    _refuse_a_trap(path)
    target = Path(os.path.realpath(path))  # other than resolve(), it has an answer for links that lead in a circle
    if target.exists() and not target.is_file():
        target.write_text(text, encoding="utf-8")
        return
    new = _beside(target)
    try:
        handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode)
        with open(handle, "w", encoding="utf-8") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(text)
        new.replace(target)
    finally:
        new.unlink(missing_ok=True)


def _refuse_a_trap(path: Path) -> None:
    """As the kernel does (protected_symlinks in proc_sys_fs(5)); it is not asked where we look for the target."""
    if not path.is_symlink():
        return
    folder = path.parent.stat()
    shared = folder.st_mode & stat.S_ISVTX and folder.st_mode & stat.S_IWOTH
    if shared and path.lstat().st_uid not in (os.geteuid(), folder.st_uid):
        raise OSError(errno.EACCES, "a symbolic link of somebody else, in a folder that everybody may write to", path)


def rehearse(path: Path) -> None:
    """Does what `write` does, as far as that leaves no trace.

    Raises:
        OSError: `write` would not come further.
    """
    _refuse_a_trap(path)
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        if not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return
    new = _beside(target)
    os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    new.unlink()


def _beside(target: Path) -> Path:
    return target.with_name(f".kvmfleet-{os.getpid()}-{secrets.token_hex(8)}")
