"""What a host is asked, and what its answer means; the ways to a host only carry bytes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import shlex
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from orchestrator.collector.marks import STEP
from orchestrator.model.evidence import Evidence
from orchestrator.model.run import Collected
from orchestrator.payload import MAX_BYTES
from orchestrator.text import printable

__all__ = [
    "PYTHONS",
    "READY",
    "Answer",
    "Question",
    "Silence",
    "argv",
    "command_line",
    "converse",
    "interpret",
    "sudo_problem",
    "too_late",
]

_CHUNK = 1 << 18
_NO_PYTHON, _NO_SUDO = 96, 97  # exit codes of _SCRIPT

READY = "---- kvmfleet is ready ----"  # Python runs, with the rights that it needs; the program may come
_PASSWORD = "---- kvmfleet needs the password ----"

# Runs under whatever login shell the host has, quoted once: no single quote, backslash or exclamation mark in here.
# Candidates for Python are its arguments. Python says that it is ready, and reads from stdin the length of the program,
# the program, then its luggage. sudo reads the password no further than to the end of its line.
_SCRIPT = f"""\
LC_ALL=C; export LC_ALL; python=; ready="{READY}"
read="import sys; print(sys.argv[1], flush=True); b = sys.stdin.buffer; exec(b.read(int(b.readline())))"
for p in "$@"; do command -v "$p" >/dev/null 2>&1 && python=$p && break; done
test -n "$python" || exit {_NO_PYTHON}
test "$become" = no && exec "$python" -I -c "$read" "$ready"
test "$(id -u)" = 0 && exec "$python" -I -c "$read" "$ready"
command -v sudo >/dev/null 2>&1 || exit {_NO_SUDO}
test "$become" = password && exec sudo -S -p "{_PASSWORD}" -- "$python" -I -c "$read" "$ready"
exec sudo -n -- "$python" -I -c "$read" "$ready"
"""
PYTHONS = ("/usr/bin/python3", "/usr/libexec/platform-python", "/usr/local/bin/python3", "python3")


class Question(msgspec.Struct, frozen=True):
    """A Python program for the host, how to read its answer, and how long to wait for it."""

    program: bytes
    decode: Callable[[bytes], Evidence]
    timeout_s: float  # for all of it
    silence_s: float = 30.0  # for its login shell, sudo and Python to say a word, and later for its sshd to be heard
    luggage: Path | None = None  # a file that the program reads from stdin after itself
    on_ready: Callable[[], Awaitable[None]] | None = None  # waited for between the host's first word and the program
    on_step: Callable[[str], None] | None = None  # hears what a long answer has reached; Ansible tells only at the end

    @property
    def spoken(self) -> bytes:
        """The program as the command of `argv` wants to hear it."""
        return b"%d\n%b" % (len(self.program), self.program)

    @property
    def size(self) -> int:
        """In bytes, of all that the host is sent."""
        return len(self.spoken) + (self.luggage.stat().st_size if self.luggage else 0)


class Answer(msgspec.Struct, frozen=True):
    """What a host sent before it was done, or before we stopped listening."""

    stdout: bytes
    stderr: bytes
    exit_status: int | None
    flooded: bool = False  # there was more than MAX_BYTES


class Silence(msgspec.Struct, frozen=True):
    """Why there is no answer."""

    problem: str
    hint: str = ""
    unreachable: bool = True


def too_late(question: Question) -> Silence:
    """The answer of a host that let its deadline pass."""
    return Silence(
        f"no evidence within {question.timeout_s:g} s",
        "Log in and see what hangs there: its login shell, its disks, or a network file system.",
        unreachable=False,
    )


def _mute(question: Question) -> Silence:
    """The answer of a host that was reached, and on which our program could not even begin."""
    return Silence(
        f"no word from its login shell, sudo or Python for {question.silence_s:g} s",
        "Log in and see what hangs there: a start-up file of the shell, sudo, or a network file system.",
        unreachable=False,
    )


class Reader(Protocol):
    """The part that the streams of asyncio and asyncssh have in common."""

    async def read(self, n: int = -1) -> bytes: ...


class Writer(Protocol):
    """The same for the other direction."""

    def write(self, data: bytes) -> None: ...
    async def drain(self) -> None: ...
    def write_eof(self) -> None: ...


def argv(*, sudo: bool, password: bool = False, pythons: Sequence[str] = PYTHONS) -> list[str]:
    """The command that reads a Python program from stdin and runs it as root, with the first Python that exists."""
    become = "no" if not sudo else "password" if password else "yes"
    return ["/bin/sh", "-c", f"become={become}; {_SCRIPT}", "kvmfleet", *pythons]


def command_line(*, sudo: bool, password: bool, python: str) -> str:
    """The same for a remote login shell of any kind."""
    return shlex.join(argv(sudo=sudo, password=password, pythons=[python] if python else PYTHONS))


async def converse(
    question: Question,
    stdin: Writer,
    stdout: Reader,
    stderr: Reader,
    ended: Callable[[], Awaitable[int | None]],
    *,
    password: str = "",
) -> Answer | Silence:
    """All that a host says until it has ended, or until it says too much. It need not listen to the end.

    It is sent the program once Python is ready there, and `password` when sudo asks for it, once.
    """
    words = _FirstWords(question.silence_s)
    speaker = asyncio.create_task(_speak(question, stdin, words, password))
    try:
        async with words.patience:
            return await _hear(question, stdout, stderr, ended, words)
    except TimeoutError:
        if not words.patience.expired():
            raise
        return _mute(question)
    finally:
        speaker.cancel()
        await asyncio.wait([speaker])


class _FirstWords:
    """What a host says before it is given anything: until then, it has cost us no more than a connection."""

    def __init__(self, silence_s: float) -> None:
        self.said: asyncio.Queue[str] = asyncio.Queue()  # the marks of _SCRIPT
        self.patience = asyncio.timeout(silence_s)
        self._silence_s = silence_s
        self._heard = {_PASSWORD: 0, READY: 0}

    def listen(self, kept: bytearray, mark: str) -> None:
        """Login shells may print anything before, in the same line too."""
        if self._heard[READY]:
            return
        for _ in range(kept.count(mark.encode()) - self._heard[mark]):
            self._heard[mark] += 1
            self.said.put_nowait(mark)
        patient_until = asyncio.get_running_loop().time() + self._silence_s
        self.patience.reschedule(None if self._heard[READY] else patient_until)


async def _speak(question: Question, stdin: Writer, words: _FirstWords, password: str) -> None:
    with contextlib.suppress(OSError):  # it ended without reading: its status says why
        while await words.said.get() != READY:
            if not password:  # sudo asks again, as the one that it got is wrong
                return stdin.write_eof()
            stdin.write(f"{password}\n".encode())
            await stdin.drain()
            password = ""
        if question.on_ready:
            await question.on_ready()
        stdin.write(question.spoken)
        await stdin.drain()
        if question.luggage:
            with question.luggage.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    stdin.write(chunk)
                    await stdin.drain()
        stdin.write_eof()


async def _hear(
    question: Question,
    stdout: Reader,
    stderr: Reader,
    ended: Callable[[], Awaitable[int | None]],
    words: _FirstWords,
) -> Answer:
    readers = [
        asyncio.create_task(_read(stream, question.on_step, functools.partial(words.listen, mark=mark)))
        for stream, mark in ((stdout, READY), (stderr, _PASSWORD))
    ]
    try:
        out, err = await asyncio.gather(*readers)
        return Answer(out, err, await ended())
    except _Flood as flood:
        return Answer(flood.kept, b"", None, flooded=True)
    finally:
        for reader in readers:
            reader.cancel()


class _Flood(Exception):
    def __init__(self, kept: bytes) -> None:
        self.kept = kept


async def _read(reader: Reader, on_step: Callable[[str], None] | None, listen: Callable[[bytearray], None]) -> bytes:
    kept, told = bytearray(), 0
    while chunk := await reader.read(65536):
        kept += chunk
        listen(kept)
        if len(kept) > MAX_BYTES:
            raise _Flood(bytes(kept))
        if on_step:
            lines = kept[told : kept.rfind(b"\n") + 1]
            told += len(lines)
            for line in lines.decode(errors="replace").splitlines():
                if line.startswith(STEP):
                    on_step(printable(line.removeprefix(STEP), 100))
    return bytes(kept)


def interpret(
    host: str,
    path: Literal["ssh", "local", "ansible"],
    outcome: Answer | Silence,
    question: Question,
    *,
    asked_at_s: float,
    python: str = "",
    user: str = "",
) -> Collected:
    """One host's line: evidence, or what went wrong and what to do.

    Between `asked_at_s` and now the host looked at its own clock, which is how its clock is compared with ours.
    """
    if isinstance(outcome, Silence):
        return Collected(host, path, problem=outcome.problem, hint=outcome.hint, unreachable=outcome.unreachable)
    sent = question.size
    received = len(outcome.stdout) + len(outcome.stderr)
    evidence, reason = _decode(outcome, question)
    problem, hint = ("", "") if evidence else _explain(outcome, reason, python=python, user=user)
    if evidence:
        evidence = msgspec.structs.replace(evidence, asked_at_s=asked_at_s, heard_at_s=time.time())
    return Collected(
        host, path, evidence=evidence, problem=problem, hint=hint, bytes_sent=sent, bytes_received=received
    )


def _decode(answer: Answer, question: Question) -> tuple[Evidence | None, str]:
    if answer.flooded:
        return None, f"more than {MAX_BYTES >> 20} MiB"
    try:
        return question.decode(answer.stdout), ""
    except ValueError as e:
        return None, printable(str(e))


# The words of sudo(8) in the C locale, and Ansible's about it -> what they mean, and what to do.
_ALLOW = "echo '{user} ALL=(root) NOPASSWD: ALL' > /etc/sudoers.d/kvmfleet"
_SUDO = (
    ("a password is required", "sudo asks for a password", f"Give it with -K, or allow it without: {_ALLOW}"),
    ("a terminal is required", "sudo asks for a password", f"Give it with -K, or allow it without: {_ALLOW}"),
    ("Missing sudo password", "sudo asks for a password", f"Give it with -K, or allow it without: {_ALLOW}"),
    ("Incorrect sudo password", "sudo refuses the password", "Type it again: -K"),
    ("incorrect password attempt", "sudo refuses the password", "Type it again: -K"),
    ("not in the sudoers file", "sudo does not know this user", f"Allow it: {_ALLOW}"),
    ("may not run sudo", "sudo does not know this user", f"Allow it: {_ALLOW}"),
    ("is not allowed to", "sudo does not allow this user to run Python as root", f"Allow it: {_ALLOW}"),
    ("must have a tty", "sudo demands a terminal", "Remove `requiretty` from the sudoers of this host."),
    ("sudo: not found", "sudo is not installed", "Install sudo on this host, or connect as root: -u root"),
)


def sudo_problem(said: str, user: str) -> tuple[str, str] | None:
    """Problem and hint when `said` is sudo's, or Ansible's about sudo."""
    for words, problem, hint in _SUDO:
        line = next((line for line in said.splitlines() if words in line), "")
        if line and ("sudo" in said or line.startswith("Sorry, user ")):
            quoted = line if len(line) <= 100 else line[line.find(words) :]  # Ansible wraps it in words of its own
            return f"{problem}: {printable(quoted, 200)}", hint.format(user=user or "USER")
    return None


def _explain(answer: Answer, reason: str, *, python: str, user: str) -> tuple[str, str]:
    """Problem and hint of an answer without evidence; the likeliest causes are known by their words."""
    said = answer.stderr.decode(errors="backslashreplace").replace(_PASSWORD, "\n")
    if answer.exit_status == _NO_PYTHON:
        return _no_python(python)
    if answer.exit_status == _NO_SUDO:
        return "sudo is not installed", "Install sudo on this host, or connect as root: -u root"
    if answer.exit_status and (problem := sudo_problem(said, user)):
        return problem
    return _no_evidence(answer, reason, said), "Run the login shell of this host by hand and see what it prints."


def _no_python(python: str) -> tuple[str, str]:
    if python:
        return f"no Python at {printable(python)}, where ansible_python_interpreter says", "Correct the variable."
    return "no Python 3", "Install python3 on this host, or name one with ansible_python_interpreter."


def _no_evidence(answer: Answer, reason: str, said: str) -> str:
    status = "" if answer.exit_status in (0, None) else f" and exit status {answer.exit_status}"
    last = said.strip().splitlines()[-1:] or answer.stdout[:200].decode(errors="backslashreplace").splitlines()[:1]
    quoted = f'; it said: "{printable(last[0], 200)}"' if last else ""
    return f"it answered, but not with evidence: {reason}{status}{quoted}"
