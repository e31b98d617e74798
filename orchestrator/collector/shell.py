"""Run a command of the host: C locale, stdin closed, limited in time and output, no process left behind."""

import collections
import contextlib
import os
import select
import signal
import subprocess
import time
from typing import IO, Any, Callable, Dict, Iterator, List, Optional, Sequence

from .limits import patient

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = {"PATH": PATH, "LC_ALL": "C", "LANG": "C", "HOME": "/", "TERM": "dumb"}
OUTPUT_LIMIT = 1 << 20

Result = collections.namedtuple("Result", "code out err")


def which(name: str) -> str:
    """The path of a command, or an empty string. shutil, which has this too, loads every compressor first."""
    paths = [name] if "/" in name else ["{}/{}".format(folder, name) for folder in PATH.split(":")]
    return next((path for path in paths if os.path.isfile(path) and os.access(path, os.X_OK)), "")


def start(argv: Sequence[str], **options: Any) -> "subprocess.Popen[bytes]":
    """A process in a session of its own, so that `end` reaches its children too."""
    pipes: Dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    pipes.update(options)
    return subprocess.Popen(list(argv), env=ENVIRONMENT, cwd="/", start_new_session=True, **pipes)


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
    with ahead(argv) as (pending,):
        return pending.result(timeout_s)


class Pending:
    """A command that runs while something else is done."""

    def __init__(self, argv: Sequence[str], process: "subprocess.Popen[bytes]") -> None:
        self.argv, self.process = argv, process

    def result(self, timeout_s: float = 10.0) -> Result:
        """As `run`; the time counts from here. Ask once."""
        try:
            out, err = _drain(self.process, self.argv, time.monotonic() + patient(timeout_s))
            return Result(self.process.wait(2), _text(out), _text(err))
        except subprocess.TimeoutExpired as error:
            raise OSError("`{}` closed its output and did not end".format(self.argv[0])) from error


@contextlib.contextmanager
def ahead(*commands: Sequence[str]) -> Iterator[List[Pending]]:
    """Commands that run side by side. None outlives the body, whatever ends it. Raises OSError where one cannot start.

    One that prints more than a pipe holds waits until it is asked for its result.
    """
    started: List[Pending] = []
    try:
        for argv in commands:
            started.append(Pending(argv, start(argv)))
        yield started
    finally:
        for pending in started:
            end(pending.process)


def talk(
    argv: Sequence[str], said: bytes, timeout_s: float = 10.0, before: Optional[Callable[[], None]] = None
) -> Result:
    """As `run`, with something on standard input, and `before` called in the new process: to become another user."""
    try:
        process = start(argv, stdin=subprocess.PIPE, preexec_fn=before)
    except subprocess.SubprocessError as error:  # of `before`; the reason does not come through
        raise OSError("`{}` cannot be started as another user".format(argv[0])) from error
    try:
        with contextlib.suppress(BrokenPipeError):  # it ended already: its output says why
            assert process.stdin
            process.stdin.write(said)  # less than a pipe holds
            process.stdin.close()
        return Pending(argv, process).result(timeout_s)
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
