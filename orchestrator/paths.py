"""Where kvmfleet keeps its files: content (read only), state and cache."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def content() -> Path:
    """The folder that holds playbooks/, roles/ and ansible.cfg: inside the wheel, or the checkout."""
    package = Path(__file__).resolve().parent
    packed = package / "content"
    return packed if packed.is_dir() else package.parent


def state() -> Path:
    """History, locks, labs and the CA. `KVMFLEET_STATE_DIR` moves it; otherwise as the XDG base directories say."""
    return Path(os.environ.get("KVMFLEET_STATE_DIR") or platformdirs.user_state_dir("kvmfleet"))


def private(folder: Path) -> None:
    """Makes a folder, and those above it that are missing, for their owner alone, whatever the umask is.

    Raises:
        OSError: it cannot be made.
    """
    if not folder.is_dir():
        if not folder.parent.exists():
            private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def history() -> Path:
    """The database of runs."""
    return state() / "history.sqlite3"


def pki() -> Path:
    """The fleet's CA, and what it issued. The role libvirt_remote looks at the same place."""
    return state() / "pki"


def cache() -> Path:
    """What can be made again: images and packages. `KVMFLEET_CACHE_DIR` moves it."""
    return Path(os.environ.get("KVMFLEET_CACHE_DIR") or platformdirs.user_cache_dir("kvmfleet"))
