"""Makes text that came from a host safe and short enough to show."""

from __future__ import annotations

__all__ = ["printable", "printable_lines"]


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


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
