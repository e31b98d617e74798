"""Finds what only ssh itself obeys in the user's ssh configuration."""

from __future__ import annotations

import functools
import glob
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

__all__ = ["FILES", "beyond"]

FILES = ("~/.ssh/config", "/etc/ssh/ssh_config")
_DEEPEST = 16  # Include, as in ssh

# asyncssh passes over them, or cannot do it here, and each decides whether a host is reached or its key believed.
_BEYOND = re.compile(
    r"(BindInterface|KnownHostsCommand|PKCS11Provider|ProxyUseFdpass|RevokedHostKeys|SecurityKeyProvider"
    r"|VerifyHostKeyDNS)",
    re.IGNORECASE,
)
_LINE = re.compile(r"^[ \t]*(\w+)(?:[ \t]*=[ \t]*|[ \t]+)(.*?)[ \t]*$", re.MULTILINE)


def beyond() -> str:
    """The first option of that kind, "" where there is none. Which hosts its block is for is left to ssh."""
    files = filter(os.path.isfile, map(os.path.expanduser, FILES))
    return next(filter(None, (_found(file, os.stat(file).st_mtime_ns) for file in files)), "")


@functools.lru_cache(maxsize=64)
def _found(file: str, _changed_ns: int) -> str:
    lines = _lines(file, os.path.dirname(file), _DEEPEST)
    return next((name for name, _ in lines if _BEYOND.fullmatch(name)), "")


def _lines(file: str, home: str, depth: int) -> Iterator[tuple[str, str]]:
    """Options and values in order, included files in the place of Include. What cannot be read is told by asyncssh."""
    try:
        text = Path(file).read_text(errors="replace")
    except OSError:
        return
    for name, value in _LINE.findall(text):
        yield name, value
        if name.lower() == "include" and depth:
            for pattern in _words(value):
                for included in sorted(glob.glob(os.path.join(home, os.path.expanduser(pattern)))):
                    yield from _lines(included, home, depth - 1)


def _words(value: str) -> list[str]:
    """In quotes, a path may hold blanks."""
    try:
        return shlex.split(value, comments=True)
    except ValueError:  # a quote that does not end, which ssh refuses
        return value.split()
