"""Every problem of this controller at once, each with its fix.

One function a subject. Each takes what it looks at as a parameter, so that a test can show it a broken machine.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from orchestrator import paths, pki
from orchestrator.errors import LabError, PkiError, StoreError
from orchestrator.history import address, database, salvage
from orchestrator.lab import accelerator, prerequisites
from orchestrator.text import printable

__all__ = ["Diagnosis", "History", "Problem", "examine"]

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")

PYTHONS = ((3, 11), (3, 14))
ANSIBLE_CORE = (2, 19)  # of ansible 12, the oldest that runs on Python 3.11 and knows the roles' syntax
MODULES = (
    *("ansible", "ansible_runner", "apprise", "asyncssh", "click", "cryptography", "jinja2", "msgspec", "platformdirs"),
    *("prometheus_client", "psycopg", "qemu.qmp", "rich", "sqlalchemy", "yaml"),
)
STATE_MIB = 200
CA_DAYS = 365  # certificates of hosts live so long, and none outlives its CA
CACHE_MIB = 4096  # two images, their archives, and two hosts


class Problem(msgspec.Struct, frozen=True):
    """An error stops every command, a warning some, and a note only the lab."""

    level: Level
    what: str
    fix: str


class History(msgspec.Struct, frozen=True):
    """Where the history is, "" where that is no place, and what is there: None where it could not be told."""

    where: str = ""
    schema: int | None = None
    size_bytes: int | None = None


class Diagnosis(msgspec.Struct, frozen=True):
    """The worst problem first."""

    history: History
    problems: tuple[Problem, ...]


def examine(store: str = "") -> Diagnosis:
    """Changes nothing; takes about a second, nearly all of it Ansible's own start.

    `store` is the URL of the history, "" for that of KVMFLEET_STORE, or the file in the state folder.
    """
    kept, of_history = history(store)
    found = [
        *python(),
        *environment(),
        *libraries(),
        *ansible_version(),
        *ansible_settings(),
        *ansible_files(),
        *ssh(),
        *agent(),
        *folder(paths.state(), STATE_MIB, level="error"),
        *folder(paths.cache(), CACHE_MIB, level="note"),
        *of_history,
        *authority(paths.pki()),
        *clock(),
        *lab(),
    ]
    return Diagnosis(kept, tuple(sorted(found, key=lambda problem: LEVELS.index(problem.level))))


def python(version: tuple[int, int] = sys.version_info[:2]) -> Iterator[Problem]:
    """The versions that the lock was made for."""
    oldest, newest = PYTHONS
    if not oldest <= version <= newest:
        yield Problem(
            "error",
            f"This is Python {_dotted(version)}; kvmfleet is tested with {_dotted(oldest)} to {_dotted(newest)}.",
            "Let KVMFLEET_PYTHON name another Python, remove .venv, and run ./kvmfleet again.",
        )


def environment(root: Path | None = None, prefix: Path = Path(sys.prefix)) -> Iterator[Problem]:
    """A checkout whose environment the launcher did not make, or made from another lock. Installed: pip's business."""
    lock = (root or paths.content()) / "requirements.lock"
    stamp = prefix / ".kvmfleet" / "requirements.lock"
    if lock.is_file() and not (stamp.is_file() and stamp.read_bytes() == lock.read_bytes()):
        yield Problem(
            "warning",
            f"The environment {prefix} was not made from {lock}.",
            f"Run {lock.parent / 'kvmfleet'}: it makes the environment that belongs to this checkout.",
        )


def libraries(find: Callable[[str], object] = importlib.util.find_spec) -> Iterator[Problem]:
    """What we import."""
    if missing := [name for name in MODULES if find(name) is None]:
        yield Problem(
            "error",
            f"Python modules are missing in {sys.prefix}: {', '.join(missing)}.",
            "Remove .venv and run ./kvmfleet again, or install kvmfleet with pip again.",
        )


def ansible_version(version: Callable[[str], str] = importlib.metadata.version) -> Iterator[Problem]:
    """Ansible itself."""
    try:
        found = version("ansible-core")
    except importlib.metadata.PackageNotFoundError:
        return  # `libraries` says so
    if tuple(int(number) for number in found.split(".")[:2]) < ANSIBLE_CORE:
        yield Problem(
            "error",
            f"ansible-core is {found}; the roles need {_dotted(ANSIBLE_CORE)} or newer.",
            f"{sys.executable} -m pip install --upgrade ansible",
        )


def ansible_settings(run: Callable[[], subprocess.CompletedProcess[str]] | None = None) -> Iterator[Problem]:
    """Whether Ansible starts at all (locale, a broken ansible.cfg), and what it was told that makes runs unsafe."""
    try:
        done = (run or _ansible_config)()
        settings = {entry["name"]: entry for entry in json.loads(done.stdout) if "name" in entry}
    except (OSError, subprocess.TimeoutExpired) as e:
        yield Problem("error", f"Ansible does not run: {printable(str(e))}.", "Remove .venv and run ./kvmfleet again.")
    except ValueError:
        yield _refusal(done.stderr or done.stdout)
    else:
        yield from _oddities(settings)


def _ansible_config() -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "ansible-config"), "dump", "--only-changed", "--format", "json"]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)


def _refusal(words: str) -> Problem:
    words = words.partition("Traceback (most recent call last)")[0].strip()
    fix = (
        "`ansible-config dump --only-changed` shows the same; correct the file or the ANSIBLE_* variable that it names."
    )
    if "locale" in words:
        fix = "export LC_ALL=C.UTF-8"
    elif "create local directories" in words:
        fix = "Let ANSIBLE_HOME name a folder that you can write."
    return Problem("error", f"Ansible does not start: {printable(words).removeprefix('ERROR: ')}", fix)


def _oddities(settings: Mapping[str, Mapping[str, Any]]) -> Iterator[Problem]:
    """Settings that Ansible takes without a word."""

    def origin(name: str) -> str:
        return printable(str(settings[name]["origin"]))

    if "HOST_KEY_CHECKING" in settings and not settings["HOST_KEY_CHECKING"]["value"]:
        yield Problem(
            "warning",
            f"Host keys are not checked ({origin('HOST_KEY_CHECKING')}): whoever answers is taken for the host.",
            "Remove that setting, and put the keys of the hosts into ~/.ssh/known_hosts.",
        )
    strategy = settings.get("DEFAULT_STRATEGY", {}).get("value", "linear")
    if str(strategy).rpartition(".")[2] not in ("linear", "free", "host_pinned"):
        yield Problem(
            "warning",
            f"Ansible runs with the strategy {printable(str(strategy))} ({origin('DEFAULT_STRATEGY')}), untested here.",
            "Remove that setting when a run fails in a way that makes no sense.",
        )


def ansible_files(environ: Mapping[str, str] = os.environ, here: Callable[[], Path] = Path.cwd) -> Iterator[Problem]:
    """Configuration files that Ansible passes over without, or with only, a warning."""
    named = environ.get("ANSIBLE_CONFIG", "")
    if named and not _found(Path(os.path.expanduser(named))):
        yield Problem(
            "warning",
            f"ANSIBLE_CONFIG={printable(named)} is not found; Ansible goes on without it.",
            "Correct or unset ANSIBLE_CONFIG.",
        )
    folder = here()
    if not named and (folder / "ansible.cfg").is_file() and folder.stat().st_mode & stat.S_IWOTH:
        yield Problem(
            "warning",
            f"{folder} can be written by everybody, so Ansible ignores the ansible.cfg in it.",
            f"chmod o-w {folder}",
        )


def ssh(which: Callable[[str], str | None] = shutil.which) -> Iterator[Problem]:
    """Ansible reaches hosts with the ssh client."""
    if which("ssh") is None:
        yield Problem(
            "error",
            "There is no ssh on the PATH; Ansible reaches hosts with it.",
            " ".join(prerequisites.install_command(("openssh-client",))),
        )


def agent(environ: Mapping[str, str] = os.environ) -> Iterator[Problem]:
    """An agent that has gone makes every login fail slowly, or with the wrong key."""
    path = environ.get("SSH_AUTH_SOCK", "")
    if not path:
        return
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(2)
        try:
            client.connect(path)
        except OSError as e:
            why = printable(e.strerror or str(e))
            yield Problem(
                "warning", f"SSH_AUTH_SOCK={printable(path)} does not answer: {why}.", "Unset it, or start ssh-agent."
            )


def folder(path: Path, need_mib: int, *, level: Level) -> Iterator[Problem]:
    """A folder that we write to, or make: its nearest parent decides."""
    there = next(parent for parent in (path, *path.parents) if _found(parent))
    move = "Make room or set KVMFLEET_STATE_DIR and KVMFLEET_CACHE_DIR to folders that you can write."
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        yield Problem(level, f"{path} cannot be written by this user.", move)
        return
    free_mib = shutil.disk_usage(there).free >> 20
    if free_mib < need_mib:
        yield Problem(level, f"{path}: {free_mib} MiB are free; {need_mib} are wanted.", move)


def history(url: str = "") -> tuple[History, Sequence[Problem]]:
    """The history that a run would take; most go on without one. One that is still to be made is no problem."""
    try:
        place = address.chosen(url)
    except StoreError as e:
        return History(), [Problem("error", e.message, e.hint)]  # every command ends with it
    where, file = address.name(place), address.file(place)
    problems: list[Problem] = []
    try:
        if file and file != paths.history():
            problems += folder(file.parent, STATE_MIB, level="warning")
        if file and (why := salvage.damage(file)) and salvage.ours(file):
            return History(where), [*problems, _damage(file, why)]
        if file and (not file.exists() or salvage.is_blank(file)):
            return History(where, 0, 0), problems
        return History(where, *database.measure(place)), problems
    except StoreError as e:
        return History(where), [*problems, Problem("warning", e.message, e.hint)]
    except OSError as e:
        fix = "Name a place that you can write, with --store or KVMFLEET_STORE."
        return History(where), [*problems, Problem("warning", f"history {where}: {e.strerror}.", fix)]


def _damage(file: Path, why: str) -> Problem:
    return Problem(
        "warning",
        f"history {file}: {why}. The next run moves it aside, and begins a new one.",
        f"Move it away before, and save what can be saved: sqlite3 {file} .recover",
    )


def authority(path: Path, now_s: Callable[[], float] = time.time) -> Iterator[Problem]:
    """The fleet's CA: one that ends takes every host's certificate with it. No CA is no problem."""
    if not _found(path):
        return
    try:
        found = pki.status(path)
    except PkiError as e:
        yield Problem("warning", e.message, e.hint)
        return
    if not found.private:
        yield Problem(
            "error",
            f"{path / pki.KEY} can be read by others, who could sign certificates with it.",
            f"chmod 600 {path / pki.KEY}; and if somebody may have read it, make a new CA.",
        )
    if (days := found.days_left(now_s())) < CA_DAYS:
        yield Problem(
            "warning",
            f"The CA {path / pki.CERTIFICATE} is valid for {days} days.",
            f"Move {path} away, then `kvmfleet pki init` and `kvmfleet provision` for all hosts that offer tls.",
        )


def clock(now_s: Callable[[], float] = time.time, built: Path = Path(__file__)) -> Iterator[Problem]:
    """A clock before our own files: certificates and package indexes are then not valid yet."""
    behind_s = built.stat().st_mtime - now_s()
    if behind_s > 60:
        yield Problem(
            "warning",
            f"The clock is at least {behind_s / 3600:.1f} hours behind.",
            "Set it (timedatectl set-ntp true).",
        )


def lab(
    *,
    missing: Callable[[str], Sequence[str]] = prerequisites.missing,
    root: bool = os.geteuid() == 0,
    choose: Callable[[], accelerator.Accelerator] = accelerator.choose,
    filesystems: Path = Path("/proc/filesystems"),
) -> Iterator[Problem]:
    """What `kvmfleet lab` needs of this machine: for root containers as well, for everybody virtual machines."""
    if packages := missing("container" if root else "vm"):
        command = " ".join(prerequisites.install_command(tuple(packages)))
        yield Problem("note", f"A lab needs packages that are missing: {', '.join(packages)}.", command)
    try:
        if (chosen := choose()).name == "tcg":
            yield Problem(
                "note",
                f"{chosen.why}, so containers of a lab end as degraded, and virtual machines run in software.",
                "Enable virtualization in the firmware or in the hypervisor below, then load kvm_intel or kvm_amd.",
            )
    except LabError as e:
        yield Problem("note", e.message, e.hint)
    if root and "cgroup2" not in filesystems.read_text().split():
        yield Problem("note", "The kernel has no cgroup2, which lab containers need.", "Boot one that has it.")


def _found(path: Path) -> bool:
    """Whether it is there for this user; pathlib raises where a folder above may not be looked into."""
    return os.path.exists(path)


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))
