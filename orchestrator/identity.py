"""Who runs us, for locks, the history and messages."""

from __future__ import annotations

import getpass
import os

__all__ = ["user"]


def user() -> str:
    """The name of the user, or the number where there is no name, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
