"""Reads options for ssh as users write them into ansible_ssh_common_args and its sisters."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping

__all__ = ["parse"]

_FLAGS = {"-i": "identityfile", "-p": "port", "-l": "user", "-J": "proxyjump"}
_MEANINGLESS_FLAGS = {"-C", "-q", "-T", "-x", "-a", "-n", "-k", "-v"}
_UNDERSTOOD = {
    "globalknownhostsfile",
    "identitiesonly",
    "identityfile",
    "port",
    "proxyjump",
    "stricthostkeychecking",
    "user",
    "userknownhostsfile",
}
# These tune or share a connection, or switch off what is never used here. Ansible sets ConnectTimeout itself.
_MEANINGLESS = {
    "addkeystoagent",
    "batchmode",
    "checkhostip",
    "clearallforwardings",
    "compression",
    "connectionattempts",
    "connecttimeout",
    "controlmaster",
    "controlpath",
    "controlpersist",
    "forwardagent",
    "forwardx11",
    "hashknownhosts",
    "loglevel",
    "numberofpasswordprompts",
    "serveralivecountmax",
    "serveraliveinterval",
    "tcpkeepalive",
    "updatehostkeys",
    "visualhostkey",
}


def parse(text: str) -> Mapping[str, tuple[str, ...]]:
    """Option in lower case -> its values in order; ssh obeys the first, but collects identity files.

    Raises ValueError that names the first option that is not understood.
    """
    values: dict[str, tuple[str, ...]] = {}
    for name, value in _options(text):
        if name in _MEANINGLESS:
            continue
        if name not in _UNDERSTOOD or not value or "%" in value:  # % stands for what ssh would fill in
            raise ValueError(name)
        if name == "proxyjump" and value.lower() == "none":  # switches off that of the configuration
            raise ValueError(name)
        values[name] = (*values.get(name, ()), value)
    return values


def _options(text: str) -> Iterator[tuple[str, str]]:
    words = iter(shlex.split(text))
    for word in words:
        if word in _MEANINGLESS_FLAGS:
            continue
        flag, value = word[:2], word[2:] or next(words, "")
        if flag == "-o":
            name, _, value = re.sub(r"\s*[\s=]\s*", "=", value.strip(), count=1).partition("=")
            yield name.lower(), value.strip('"')
        elif flag in _FLAGS:
            yield _FLAGS[flag], value
        else:
            raise ValueError(word)
