"""Do something dangerous in a child process: it may hang or die, and its last step is known all the same."""

import json
import os
import select
import signal
import time
from typing import Any, Callable, Dict, NamedTuple, Tuple

from .limits import patient

Report = Callable[[str], None]
Started = NamedTuple("Started", [("pid", int), ("reader", int), ("timeout_s", float), ("until", float)])

LATE, STUCK = "not done after {:g} s", "hangs in the kernel and cannot be killed"


def ask(job: Callable[[Report], Dict[str, Any]], timeout_s: float) -> Tuple[Dict[str, Any], str, str]:
    """Run `job(report)` in a child process.

    Returns its answer, the last step that it reported, and why there is no answer ("" if there is). The child
    is killed by its own alarm, and by us where that does not help.
    """
    return finish(begin(job, timeout_s))


def begin(job: Callable[[Report], Dict[str, Any]], timeout_s: float) -> Started:
    """Run `job(report)` in a child process beside what else there is to do. Its answer waits for `finish`."""
    timeout_s = patient(timeout_s)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(job, reader, writer, timeout_s)
    os.close(writer)
    return Started(pid, reader, timeout_s, time.monotonic() + timeout_s + 0.5)


def finish(started: Started) -> Tuple[Dict[str, Any], str, str]:
    """What `ask` returns."""
    try:
        lines = _lines(started.reader, started.until)
    finally:
        os.close(started.reader)
        status = _reap(started.pid)
    steps = [line["step"] for line in lines if "step" in line]
    answers = [line["answer"] for line in lines if "answer" in line]
    death = "" if answers else _death(status, started.timeout_s)
    return answers[-1] if answers else {}, steps[-1] if steps else "", death


def _child(job: Callable[[Report], Dict[str, Any]], reader: int, writer: int, timeout_s: float) -> None:
    """Never returns: whatever happens, this process ends here."""
    try:
        os.close(reader)
        for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, timeout_s)

        def tell(**line: Any) -> None:
            os.write(writer, json.dumps(line).encode("ascii") + b"\n")

        tell(answer=job(lambda step: tell(step=step)))
    finally:
        os._exit(0)


def _lines(reader: int, until: float) -> Any:
    """What the child wrote until it closed the pipe or the time was over. A line cut by its death is dropped."""
    data = b""
    while len(data) < 65536 and select.select([reader], [], [], max(until - time.monotonic(), 0))[0]:
        part = os.read(reader, 65536)
        if not part:
            break
        data += part
    return [json.loads(line.decode("ascii")) for line in data.split(b"\n")[:-1]]


def _reap(pid: int) -> int:
    """The wait status; -1 when the kernel does not let the child go. Killing one that has ended does no harm."""
    for attempt in range(100):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        if attempt >= 5:  # an answered child is about to exit by itself
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002 if attempt < 10 else 0.02)
    return -1


def _death(status: int, timeout_s: float) -> str:
    if status == -1:
        return STUCK
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGALRM, signal.SIGKILL):
        return LATE.format(timeout_s)
    if os.WIFSIGNALED(status):
        return "killed by signal {}".format(os.WTERMSIG(status))
    return "ended without an answer"
