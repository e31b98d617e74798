"""Makes text that came from a host safe and short enough to show."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str, limit: int = 400) -> str:
    """`text` on one line, with everything a terminal could act on written out as an escape, cut at `limit` characters.

    Covers C0 and C1 controls, bidirectional overrides and lone surrogates: all that `str.isprintable` refuses.
    """
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    words = " ".join(cut.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in words)
