"""Runs Ansible's reading commands, and says in one line what they complained about."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from orchestrator.errors import InventoryError
from orchestrator.text import printable

__all__ = ["UnmatchedError", "command", "explain", "program", "running"]

# What only reads ends soon: to look for cycles meanwhile takes a tenth of its time, a sixth with 5,000 hosts.
_READ = "import gc, runpy, sys; gc.disable(); del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"


class UnmatchedError(InventoryError):
    """A part of the limit, `pattern`, is no host and no group; without it the limit may mean other hosts."""

    def __init__(self, pattern: str) -> None:
        super().__init__(f"inventory: the limit names {printable(pattern)}, and no host or group is called so")
        self.pattern = pattern


def program(name: str) -> str:
    """The path of an Ansible command of the Python that runs us, whatever PATH says."""
    program = Path(sys.executable).parent / name
    if not program.exists():
        raise InventoryError(f"{program}: no such program", hint=f"Install Ansible for this Python: {sys.executable}")
    return str(program)


def command(name: str) -> list[str]:
    """The words that begin the command line of an Ansible command that reads."""
    return [sys.executable, "-P", "-c", _READ, program(name)]


@contextmanager
def running(commands: Sequence[Sequence[str]], timeout_s: float) -> Iterator[Callable[[], list[bytes]]]:
    """Runs commands while the caller does something else; what it gives waits for them, and tells what each printed.

    They run at the same time, without a terminal: nothing may ask or hang, or outlive the caller's block.
    """
    environment = os.environ | {
        "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "True",
        "ANSIBLE_INVENTORY_UNPARSED_FAILED": "True",
        "ANSIBLE_HOST_PATTERN_MISMATCH": os.environ.get("ANSIBLE_HOST_PATTERN_MISMATCH", "error"),
        "ANSIBLE_INVENTORY_EXPORT": "False",
        "ANSIBLE_VERBOSITY": "0",
        "ANSIBLE_FORCE_COLOR": "False",
        "ANSIBLE_NOCOLOR": "True",
    }
    children = [
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        for command in commands
    ]
    try:
        yield lambda: [_answer(child, timeout_s) for child in children]
    finally:
        for child in children:
            _end(child)


def _answer(child: subprocess.Popen[bytes], timeout_s: float) -> bytes:
    try:
        out, err = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired as e:
        see = f"{program('ansible-inventory')} --list"
        raise InventoryError(
            f"inventory: Ansible did not finish reading it within {timeout_s:g} s",
            hint=f"An inventory plugin, script or vault password script hangs. Try: {see}",
        ) from e
    if child.returncode:
        raise _explained(err.decode(errors="replace"))
    return out


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ends what a child has left: its whole session, so that a hanging inventory script goes too."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    for stream in (child.stdout, child.stderr):
        if stream:
            stream.close()


_FAILED_SOURCE = re.compile(
    r"^\[WARNING\]: Failed to parse inventory with '([^']+)' plugin: (.*?)(?=^\[|\Z)", re.M | re.S
)
_POSITION = re.compile(r"^Origin: (/[^\n]*?:\d+(?::\d+)?)$", re.M)
_SCRIPT_SAID = re.compile(r"^Standard error from inventory script:\n(.+)", re.M | re.S)
_SOURCE_LINE = re.compile(r"^\d+ .*\n\s+\^ column \d+", re.M)

_EXTRA_VARS = "<CLI option '-e'>"  # where Ansible says that such an error is; it names the inventory beside it

_UNMATCHED = re.compile(r"^\[ERROR\]: Could not match supplied host pattern, ignoring: (.+)", re.M)

_HINTS = (
    ("No inventory was parsed", "Name one with -i, or in ansible.cfg as `inventory`."),
    ("no vault secrets found", "Name the password with --vault-password-file or --vault-id."),
    ("could decrypt", "The vault password is not the one that this file was encrypted with."),
    ("limit file", "-l @FILE takes a file with one pattern a line."),
    ("host list pattern", "-l takes Ansible's patterns: names, groups, wildcards, ~regex, joined by commas."),
    ("codec can't", "Write the file anew, in UTF-8."),
    (_EXTRA_VARS, "-e takes key=value, JSON, YAML or @FILE."),
)


def explain(stderr: str) -> tuple[str, str]:
    """Reason and position in what an Ansible command wrote to stderr; the position is "" when it gave none."""
    failed = _FAILED_SOURCE.findall(stderr)
    # `auto` is asked first about every YAML file; that one is not for it says nothing about the file.
    told = next((text for plugin, text in failed if not (plugin == "auto" and "no root 'plugin' key" in text)), "")
    text = told or stderr.rpartition("[ERROR]: ")[2]
    reason = text.strip().partition("\n\n")[0].partition("\nOrigin:")[0]
    if said := _SCRIPT_SAID.search(text):
        reason += f" It said: {said[1]}"
    if line := _SOURCE_LINE.search(text):
        reason += f" Here: {line[0].partition(chr(10))[0]}"
    position = _POSITION.search(text)
    return printable(reason), printable(position[1]) if position else ""


def _explained(stderr: str) -> InventoryError:
    if unmatched := _UNMATCHED.search(stderr):
        return UnmatchedError(unmatched[1].strip())
    reason, position = explain(stderr)
    source = re.search(r"Completely failed to parse inventory source (.+)", stderr)
    where = position or (printable(source[1]) if source else "")
    subject = f"inventory {where}".rstrip() if _EXTRA_VARS not in stderr else "extra variables"
    see = f"See it in full with: {program('ansible-inventory')} --list"
    hint = next((hint for sign, hint in _HINTS if sign in stderr), see)
    return InventoryError(f"{subject}: {reason or 'Ansible gave no reason'}", hint=hint)
