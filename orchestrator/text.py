"""Words to show: what a host said, safe and short enough; numbers, times and names as people read them."""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Iterable, Sequence

import msgspec

__all__ = ["ago", "counted", "listed", "moment", "printable", "printable_json", "printable_lines", "suggestion"]


def printable(text: str, limit: int = 400) -> str:
    """`text` on one line, with everything a terminal could act on written out as an escape, cut at `limit` characters.

    Covers C0 and C1 controls, bidirectional overrides and lone surrogates: all that `str.isprintable` refuses.
    """
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return _escaped(" ".join(cut.split()))


def printable_lines(text: str, limit: int = 20_000) -> str:
    """Like `printable`, for text whose line breaks, tabs and indentation matter, such as a diff."""
    lines = text[:limit].splitlines()
    return "\n".join("\t".join(_escaped(part) for part in line.split("\t")) for line in lines)


def printable_json(document: object) -> str:
    """Pretty JSON of which every character can be shown.

    C1 controls and bidirectional overrides are legal in JSON and act on terminals; they become \\uXXXX.
    """
    text = msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
    return "".join(c if c.isprintable() or c == "\n" else _json_escape(c) for c in text)


def counted(number: int, noun: str) -> str:
    """The number with the noun, of which more than one end in s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(names: Sequence[str], most: int = 5) -> str:
    """The names, the first of a long list, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def suggestion(typed: str, known: Iterable[str], otherwise: str) -> str:
    """The hint for a name that is not known: those that may have been meant, `otherwise` where none is like it."""
    near = difflib.get_close_matches(typed, list(known), n=3)
    return f"Did you mean {' or '.join(near)}?" if near else otherwise


def moment(seconds: float) -> str:
    """Seconds since the epoch as a date and a time that people read, in UTC; whatever the number is."""
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):  # a clock of no calendar
        return f"{seconds:g} s since 1970"


def ago(seconds: float) -> str:
    """How long that is, in the largest unit of which it is at least one."""
    for unit, length_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length_s:
            return f"{seconds // length_s:.0f} {unit} ago"
    return "just now"


def _json_escape(character: str) -> str:
    raw = character.encode("utf-16-be")
    return "".join(f"\\u{raw[i]:02x}{raw[i + 1]:02x}" for i in range(0, len(raw), 2))


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
