"""Run a command of the host: C locale, stdin closed, limited in time and output, no process left behind."""

import collections
import os
import select
import shutil
import signal
import subprocess
import time
from typing import IO, Dict, List, Sequence

from .limits import patient

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = {"PATH": PATH, "LC_ALL": "C", "LANG": "C", "HOME": "/", "TERM": "dumb"}
OUTPUT_LIMIT = 1 << 20

Result = collections.namedtuple("Result", "code out err")


def which(name: str) -> str:
    """The path of a command, or an empty string."""
    return shutil.which(name, path=PATH) or ""


def start(argv: Sequence[str], **options: int) -> "subprocess.Popen[bytes]":
    """A process in a session of its own, so that `end` reaches its children too."""
    pipes: Dict[str, int] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    pipes.update(options)
    return subprocess.Popen(list(argv), env=ENVIRONMENT, cwd="/", start_new_session=True, **pipes)  # type: ignore


def end(process: "subprocess.Popen[bytes]") -> None:
    """Kill what is left of the process and its children, and collect it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe:
            pipe.close()
    try:
        process.wait(2)
    except subprocess.TimeoutExpired:  # uninterruptible sleep in the kernel: it is init's from here on
        pass


def run(argv: Sequence[str], timeout_s: float = 10.0) -> Result:
    """Exit code and decoded output. Raises OSError when it cannot start or is not done in time."""
    process = start(argv)
    try:
        out, err = _drain(process, argv, time.monotonic() + patient(timeout_s))
        return Result(process.wait(2), _text(out), _text(err))
    except subprocess.TimeoutExpired as error:
        raise OSError("`{}` closed its output and did not end".format(argv[0])) from error
    finally:
        end(process)


def _drain(process: "subprocess.Popen[bytes]", argv: Sequence[str], until: float) -> List[bytes]:
    """Both outputs up to the limit, until the process closes them."""
    streams: List[IO[bytes]] = [stream for stream in (process.stdout, process.stderr) if stream]
    parts: Dict[int, List[bytes]] = {stream.fileno(): [] for stream in streams}
    waiting, room = set(parts), OUTPUT_LIMIT
    while waiting:
        ready = select.select(sorted(waiting), [], [], max(until - time.monotonic(), 0))[0]
        if not ready:
            raise OSError("`{}` gave no answer in time".format(" ".join(argv)[:120]))
        for fd in ready:
            data = os.read(fd, 65536)
            room -= len(data)
            parts[fd].append(data)
            if not data:
                waiting.discard(fd)
        if room < 0:
            raise OSError("`{}` printed more than {} bytes".format(argv[0], OUTPUT_LIMIT))
    return [b"".join(parts[stream.fileno()]) for stream in streams]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
