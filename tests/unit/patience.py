"""Waits for what happens, and gives up what never ends, on a machine that may be busy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

__all__ = ["longer", "until"]


def until(true: Callable[[], object], limit_s: float = 60) -> None:
    """The limit is far longer than what is well takes anywhere, and shorter than what is not well lasts by itself."""
    deadline_s = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.05)


def longer(limit_s: float, begun: Callable[[], object]) -> Iterator[float]:
    """Limits for something that never ends: longer ones where it had not even begun when the first was over."""
    for factor in (1, 5, 25):
        yield limit_s * factor
        if begun():
            return
