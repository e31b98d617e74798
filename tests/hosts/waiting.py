"""Waits for what another process does."""

import time

LIMIT_S = 300
"""When it is no use any more. What is awaited comes in a second or two, on a busy machine in a minute."""


def until(true, pause_s=0.1):
    """Returns as soon as `true()` is; looks ten times a second, unless a look costs as much as what is awaited."""
    end_s = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < end_s, "it did not happen in time"
        time.sleep(pause_s)


def until_same(look, expected):
    """Returns as soon as the set that `look()` gives is the expected one; says what is in one of them only."""
    end_s = time.monotonic() + LIMIT_S
    while other := sorted(look() ^ expected):
        assert time.monotonic() < end_s, "these came or went:\n" + "\n".join(other)
        time.sleep(0.1)
