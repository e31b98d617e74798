"""Commands of the controller, run to their end."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence

from orchestrator.errors import LabError
from orchestrator.text import printable_lines

__all__ = ["ESCAPE", "bound", "last_lines", "run"]

_SETPRIV = "setpriv"
_OF_OURS = '[ "$PPID" = "$1" ] || exit; shift; exec "$@"'
"""Goes on only as a child of that process: a signal at its death comes to nobody who asks for it too late."""

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
"""A control sequence of a terminal, ECMA-48 section 5.4."""

_LINES_SHOWN = 12


def bound(argv: Sequence[str]) -> list[str]:
    """A command that dies with us, also when we are killed, so that nothing works on unseen by `down`."""
    return [_SETPRIV, "--pdeathsig", "KILL", "--", "sh", "-c", _OF_OURS, "sh", str(os.getpid()), *argv]


def run(argv: Sequence[str], *, stdin: str | None = None, timeout_s: float = 120, ok: tuple[int, ...] = (0,)) -> str:
    """Standard output of a command; its standard input is `stdin` or closed.

    Raises:
        LabError: It is not there, took too long, or ended with a code that is not in `ok`.
    """
    try:
        done = subprocess.run(
            bound(argv),
            input="" if stdin is None else stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
        )
    except FileNotFoundError as e:
        raise LabError(f"{_SETPRIV} is not installed.", hint="It is part of util-linux.") from e
    except subprocess.TimeoutExpired as e:
        raise LabError(f"{argv[0]} did not end within {timeout_s:.0f} s: {' '.join(argv)}") from e
    if done.returncode not in ok:
        raise LabError(
            f"{argv[0]} ended with code {done.returncode}: {' '.join(argv)}",
            hint=last_lines(done.stderr or done.stdout),
        )
    return done.stdout


def last_lines(text: str) -> str:
    """The end of an output, safe for a terminal."""
    lines = [line.rstrip() for line in ESCAPE.sub("", text).splitlines() if line.strip()]
    return printable_lines("\n".join(lines[-_LINES_SHOWN:]))
