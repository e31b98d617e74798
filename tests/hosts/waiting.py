"""Waits for what another process does."""

import time


def until(true, limit_s=60):
    """Returns as soon as `true()` is; looks ten times a second."""
    end_s = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end_s, "it did not happen in time"
        time.sleep(0.1)
