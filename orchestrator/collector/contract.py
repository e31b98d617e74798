"""The contract that the last provision wrote on this host, and careful reading of it.

The collector runs as root and the contract names commands and files, so only a contract that root alone can write is
obeyed. Everything in it is looked up with a type: a broken contract must not break the collection.
"""

import json
import os
import stat
from typing import Any, Dict, List

from . import files

PATH = "/etc/kvmfleet/contract.json"
LIMIT = 262144


class Contract:
    """Wishes by path, each with a default that holds where the contract is absent or wrong."""

    def __init__(self, document: Any) -> None:
        self.document = document

    def _at(self, path: str) -> Any:
        value = self.document
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def text(self, path: str, default: str = "") -> str:
        value = self._at(path)
        return value if isinstance(value, str) and value and "\0" not in value else default

    def names(self, path: str) -> List[str]:
        """A list of strings, or the keys of a table."""
        value = self._at(path)
        if not isinstance(value, (list, dict)):
            return []
        return [name for name in value if isinstance(name, str) and name and "\0" not in name]

    def table(self, path: str) -> Dict[str, Any]:
        value = self._at(path)
        return value if isinstance(value, dict) else {}


def look(path: str = PATH, owner: int = 0) -> Dict[str, str]:
    """The text, or why there is none."""
    try:
        fd = files.opened(path, os.O_NOFOLLOW)
    except FileNotFoundError:
        return {"text": "", "error": "absent"}
    except OSError as error:
        return {"text": "", "error": "a symbolic link" if os.path.islink(path) else error.strerror or str(error)}
    try:
        found = os.fstat(fd)
        if found.st_uid != owner or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return {"text": "", "error": "somebody other than root can write it"}
        if found.st_size > LIMIT:
            return {"text": "", "error": "{} bytes, more than {}".format(found.st_size, LIMIT)}
        with os.fdopen(os.dup(fd), "rb") as stream:
            return {"text": stream.read(LIMIT).decode("utf-8"), "error": ""}
    except UnicodeDecodeError:
        return {"text": "", "error": "not UTF-8"}
    finally:
        os.close(fd)


def parsed(slot: Dict[str, str]) -> Contract:
    try:
        return Contract(json.loads(slot["text"])) if slot["text"] else Contract(None)
    except (ValueError, RecursionError):
        return Contract(None)
