"""Time and size limits: no section runs longer, and no string grows larger, than the reader allows."""

import contextlib
import select
import signal
import time
from typing import Any, Iterator

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


SOFTWARE = 2.5  # times as long for everything, on a machine that is executed in software and shares its processors


class Patience:
    """By how much every limit but that of the whole is longer here: slowness alone is no defect of a host."""

    factor = 1.0


def patient(seconds: float) -> float:
    """A limit that was meant for a machine with processors of its own."""
    return seconds * Patience.factor


class Expired(BaseException):
    """The time of a section is over. Not an Exception, so that no `except Exception` swallows it."""


class Stopped(BaseException):
    """Somebody ended the collector; what it started must end too."""


class Deadline:
    """The moment at which the whole collection must be over."""

    def __init__(self, seconds: float) -> None:
        self.at = time.monotonic() + seconds

    def left_s(self) -> float:
        return self.at - time.monotonic()


def _expire(_number: int, _frame: object) -> None:
    raise Expired()


def _stop(number: int, _frame: object) -> None:
    raise Stopped(number)


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise Expired in the body when `seconds` are over, also out of a blocking system call."""
    signal.signal(signal.SIGALRM, _expire)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def heed_signals() -> None:
    """Turn the signals that end a process into Stopped, so that every `finally` runs."""
    for number in SIGNALS:
        signal.signal(number, _stop)


def heed_reader(fd: int = 1) -> None:
    """Raise Stopped when nobody is left who could read the answer: a lost connection brings no signal to root."""
    poll = select.poll()
    poll.register(fd, 0)  # only what cannot be masked
    if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
        raise Stopped(signal.SIGHUP)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """For cleaning up: a signal or the end of the time waits until the body is done, then has its effect."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*SIGNALS, signal.SIGALRM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def bounded(value: Any, shape: Any) -> Any:
    """Cut `value` down to `shape`, which payload.py derives from the reader's types.

    A shape is a number (of characters of a string), {"items": n, "of": shape} for a list, {"entries": n, "key": n,
    "of": shape} for a table, {"fields": {...}} for a record, or None for what needs no limit. Lone surrogates, which a
    file name or a broken locale may bring, become question marks: JSON readers reject them.
    """
    if isinstance(value, str):
        text = value.encode("utf-8", "replace").decode("utf-8")
        return text[:shape] if isinstance(shape, int) else text
    if isinstance(value, dict) and shape and "fields" in shape:
        return {key: bounded(item, shape["fields"][key]) for key, item in value.items() if key in shape["fields"]}
    if isinstance(value, dict) and shape:
        kept = sorted(value.items())[: shape["entries"]]
        return {bounded(key, shape["key"]): bounded(item, shape["of"]) for key, item in kept}
    if isinstance(value, (list, tuple)) and shape:
        return [bounded(item, shape["of"]) for item in list(value)[: shape["items"]]]
    return value
