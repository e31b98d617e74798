"""Says what an Ansible task changed, or would change: from its results and from the diff that it shows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from orchestrator import failure
from orchestrator.text import printable, printable_lines

__all__ = ["diff", "things"]

THINGS = 200  # of one task: one names a hundred packages
DIFF = 20_000  # characters of one task

TOLD = ("done", "noted", "moves", "commands", "paths", "changes", "pools")
"""Where modules of ours say what they do: words, lists of words that are one command, or names with what they get."""
NAMED = ("path", "dest", "name")
"""Arguments that name what a module is about."""

_SECRET = re.compile(r"passw|secret|credential|token|private.?key|\bkey\b[\"']?\s*[:=]", re.IGNORECASE)
_KEY_BEGINS, _KEY_ENDS = (re.compile(rf"-----{word} [A-Z0-9 ]*KEY-----") for word in ("BEGIN", "END"))
_KEY_MATERIAL = re.compile(r"[+\- ]?\s*[A-Za-z0-9+/]{40,}={0,2}\s*")
_HEADER = re.compile(r"--- before|\+\+\+ after|@@ -")
HIDDEN = "(hidden, as it may hold a secret)"


def things(result: Mapping[str, Any]) -> tuple[str, ...]:
    """Files, packages, units, or the words of a module, safe to show; empty where the result names nothing."""
    if label := failure.item(result):
        return (label,)
    told = (_words(result.get(name)) for name in TOLD)
    words = next(filter(None, told), None) or _packages(result) or _named(result) or _headers(result)
    return tuple(printable(word) for word in words[:THINGS])


def _packages(result: Mapping[str, Any]) -> list[str]:
    """What apt-get(8) would bring, from its simulation: the module was called with what is there, too."""
    return re.findall(r"^Inst (\S+)", str(result.get("stdout") or ""), re.MULTILINE)


def _headers(result: Mapping[str, Any]) -> list[str]:
    """What the parts of a diff are about. Modules of ours always have it, also in parts in which nothing changes."""
    parts = result.get("diff")
    found = [_mapping(part) for part in (parts if isinstance(parts, list) else [])]
    named = [_words(part.get("after_header")) for part in found if not _is_same(part)]
    return list(dict.fromkeys(header for headers in named for header in headers))


def _is_same(part: Mapping[str, Any]) -> bool:
    return "before" in part and part["before"] == part.get("after")


def _named(result: Mapping[str, Any]) -> list[str]:
    """A file's path is in the result; all else is told by what the module was called with."""
    called = _mapping(result.get("invocation"))
    for source in (result, called, _mapping(called.get("module_args"))):
        for name in NAMED:
            if words := _words(source.get(name)):
                return words
    return []


def _words(value: object) -> list[str]:
    """Words, commands, or names with what they get. A host may send anything; what is deeper than that says nothing."""
    if isinstance(value, Mapping):
        return [f"{name}: {_flat(what, ', ')}" for name, what in value.items()]
    many = value if isinstance(value, list) else [value] if isinstance(value, str) else []
    return [word for one in many if (word := _flat(one, " "))]


def _flat(value: object, between: str) -> str:
    return between.join(
        str(one) for one in (value if isinstance(value, list) else [value]) if isinstance(one, str | int)
    )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def diff(text: str) -> str:
    """A diff as Ansible prints it, safe to show. Lines that look like a secret or a key are hidden.

    A task is silent (no_log) by what it is about to write, so the password that it removes would be there.
    """
    lines, inside = [], False
    for line in printable_lines(text, DIFF).splitlines():
        header = _HEADER.match(line)
        inside = not header and (inside or bool(_KEY_BEGINS.search(line)))
        secret = not header and (inside or _SECRET.search(line) or _KEY_MATERIAL.fullmatch(line))
        lines.append(f"{line[:1] if line[:1] in '+-' else ' '}{HIDDEN}" if secret else line)
        inside = inside and not _KEY_ENDS.search(line)
    return "\n".join([*lines, "…"] if len(text) > DIFF else lines)
