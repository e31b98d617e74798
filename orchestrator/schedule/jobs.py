"""Drift checks that come back: installs them as timers of systemd, runs them one at a time, knows how each went.

Each run leaves a note in the state folder, because systemd forgets at a boot how its services ended, and cron never
knew. The note is locked while its run lasts, so that a timer, a crontab and a person do not run one schedule twice.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from orchestrator import paths, processes, whole_file
from orchestrator.errors import LockedError, ScheduleError, UsageError
from orchestrator.schedule import units
from orchestrator.schedule.units import Schedule, Scope
from orchestrator.text import moment, printable

__all__ = [
    "NAME",
    "Past",
    "Status",
    "Systemd",
    "calendar",
    "find",
    "install",
    "installed",
    "recorded",
    "remove",
    "said",
    "start",
    "status",
]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
TIMEOUT_S = 60.0  # for an answer of systemd's

Command = Callable[[Sequence[str], float | None], subprocess.CompletedProcess[str]]
Result = Literal["in-sync", "drift", "could-not-tell", "interrupted", "never-run"]


def _run(argv: Sequence[str], timeout_s: float | None) -> subprocess.CompletedProcess[str]:
    # The same words and the same clock whoever asks: what comes back is read by us.
    environment = os.environ | {"LC_ALL": "C.UTF-8", "TZ": "UTC", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""}
    try:
        return subprocess.run(
            argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=timeout_s,
        )  # fmt: skip
    except FileNotFoundError as e:
        raise ScheduleError(f"{argv[0]}: no such program", hint=_WITHOUT_SYSTEMD) from e
    except subprocess.TimeoutExpired as e:
        raise ScheduleError(f"{' '.join(argv)}: no answer within {timeout_s:g} s", hint="See: systemctl status") from e


_WITHOUT_SYSTEMD = "Where no systemd runs, --print-cron gives the line for a crontab."


class Systemd(NamedTuple):
    """The systemd of this machine or of this user; tests put something else at `run`."""

    scope: Scope
    folder: Path  # where its units go
    run: Command = _run

    @classmethod
    def of(cls, scope: Scope) -> Systemd:
        """That of the scope, with the folder that an administrator's or a user's own units go to."""
        own = Path(os.path.expanduser(os.environ.get("XDG_CONFIG_HOME") or "~/.config"), "systemd/user")
        return cls(scope, own if scope == "user" else Path("/etc/systemd/system"))

    def ctl(self, *words: str) -> str:
        """What systemctl printed. Raises ScheduleError with its own words."""
        done = self.run(["systemctl", *self.whose, *words], TIMEOUT_S)
        if done.returncode:
            said = printable(done.stderr or done.stdout)
            raise ScheduleError(f"systemctl {' '.join(words)}: {said}", hint=self._hint(said))
        return done.stdout

    def show(self, unit: str) -> Mapping[str, str]:
        """Every property of a unit; systemd has an answer also for units that are not there."""
        lines = self.ctl("show", "--all", unit).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def journal(self, schedule: Schedule) -> tuple[str, ...]:
        """The command that shows what its runs said."""
        return ("journalctl", "--user-unit" if self.scope == "user" else "--unit", f"{schedule.unit}.service")

    @property
    def whose(self) -> tuple[str, ...]:
        """The argument by which systemctl knows it."""
        return ("--user",) if self.scope == "user" else ()

    def _hint(self, said: str) -> str:
        if "not been booted with systemd" in said:
            return _WITHOUT_SYSTEMD
        if "connect to" in said and self.scope == "user":
            return "A user's systemd runs where the user logged in themselves, as with ssh, and not with su or sudo."
        return "Try it by hand: it may say more."


class Past(msgspec.Struct, frozen=True):
    """A run that ended. Times in seconds since the epoch; the status is that of `kvmfleet drift`."""

    began_s: float
    ended_s: float
    exit_status: int


class Running(msgspec.Struct, frozen=True):
    """A run that began; its start in clock ticks makes the number of a process unique."""

    began_s: float
    pid: int
    started_ticks: int | None


class _Note(msgspec.Struct, frozen=True):
    """What is known of the runs of one schedule."""

    running: Running | None = None
    last: Past | None = None


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """How one schedule is doing."""

    name: str
    scope: Scope
    every: str
    calendar: str
    active: bool  # its timer waits for the next time
    result: Result  # of the last run that ended
    problem: str  # why the result is unknown although there was a run, or why there will be none
    last: Past | None
    running_since_s: float | None
    next_s: float | None
    command: tuple[str, ...]
    journal: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """0 in sync, 2 drift, 1 nobody can tell; a timer that is off will not tell either."""
        return {"in-sync": 0, "drift": 2}.get(self.result, 1) if self.active else 1


def calendar(text: str) -> None:
    """Raises UsageError where systemd does not understand the calendar expression, or where it never comes."""
    done = _run(["systemd-analyze", "calendar", "--", text], TIMEOUT_S)
    if done.returncode:
        said = printable(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "systemd does not say why")
        raise UsageError(f"--calendar {printable(text)}: {said}.", hint="Its grammar is in systemd.time(7).")
    if re.search(r"^\s*Next elapse: never$", done.stdout, re.MULTILINE):
        raise UsageError(f"--calendar {printable(text)}: never comes again.")


def install(schedule: Schedule, variables: Mapping[str, str], systemd: Systemd) -> tuple[str, ...]:
    """Installs it, or makes what is installed like it; what changed, in words, nothing when all was so already.

    Raises:
        ScheduleError: it cannot be written, or systemd refuses it.
    """
    off = _off(systemd.show(f"{schedule.unit}.timer"))
    before = next((one for one in installed(systemd) if one.name == schedule.name), None)
    files = {
        Path(schedule.environment): units.environment_file(variables),
        systemd.folder / f"{schedule.unit}.service": units.service(schedule),
        systemd.folder / f"{schedule.unit}.timer": units.timer(schedule),
    }
    changed = [path for path, text in files.items() if _text(path) != text]
    if before is None and (taken := next((path for path in list(files)[1:] if not _is_ours(path)), None)):
        raise ScheduleError(
            f"{taken}: was not written by kvmfleet", hint="Move it away, or choose another --name for the schedule."
        )
    for path in changed:
        _write(path, files[path])
    if changed or off:
        systemd.ctl("daemon-reload")
        systemd.ctl("enable", f"{schedule.unit}.timer")
        systemd.ctl("restart", f"{schedule.unit}.timer")
    if before is None:
        return (f"installed {schedule.unit}.timer, {schedule.when}",)
    told = [*_differences(before, schedule)]
    told += [f"environment: {schedule.environment}"] if Path(schedule.environment) in changed else []
    told += ["units: as this version of kvmfleet writes them"] if changed and not told else []
    return (*told, *(["its timer was off, and is on"] if off else []))


def _is_ours(path: Path) -> bool:
    """Whether it may be written: nobody else's file is there."""
    text = _text(path)
    return not path.exists() if text is None else text.startswith(units.HEAD)


def _off(timer: Mapping[str, str]) -> str:
    """Why a timer does not come, or not after the next boot; "" for one that does."""
    if timer.get("ActiveState") != "active":
        return f"its timer is {timer.get('ActiveState') or 'not there'}"
    return "its timer is disabled" if timer.get("UnitFileState") == "disabled" else ""


def _differences(before: Schedule, after: Schedule) -> Iterator[str]:
    for what in ("when", "options", "folder", "state", "writable", "python", "sealed"):
        old, new = getattr(before, what), getattr(after, what)
        if old != new:
            yield f"{what}: {_shown(old)} → {_shown(new)}"


def _shown(value: object) -> str:
    text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return printable(text, 200) or "nothing"


def installed(systemd: Systemd) -> tuple[Schedule, ...]:
    """Every schedule there is, by name. Raises ScheduleError."""
    texts = (_text(path) for path in sorted(systemd.folder.glob("kvmfleet-*.service")))
    return tuple(found for text in texts if text and (found := units.schedule_of(text)))


def find(name: str, systemd: Systemd) -> Schedule:
    """The schedule of that name; of no name the only one. Raises UsageError."""
    known = installed(systemd)
    if not name and len(known) == 1:
        return known[0]
    if found := next((one for one in known if one.name == name), None):
        return found
    names = ", ".join(one.name for one in known)
    if name or not known:
        what = f"no schedule {printable(name)}" if name else "no schedule"
        where = "on this machine" if systemd.scope == "system" else "of this user"
        raise UsageError(
            f"There is {what} {where}.", hint=f"There are: {names}" if names else "Make one: kvmfleet schedule install"
        )
    raise UsageError("There are several schedules.", hint=f"Name one of: {names}")


def remove(schedule: Schedule, systemd: Systemd) -> tuple[str, ...]:
    """Stops it and takes away all that was made for it; gives the paths of what somebody else has put beside it."""
    for kind in ("timer", "service"):
        systemd.ctl("stop", f"{schedule.unit}.{kind}")
    systemd.ctl("disable", f"{schedule.unit}.timer")
    systemd.run(["systemctl", *systemd.whose, "clean", "--what=state", f"{schedule.unit}.timer"], TIMEOUT_S)
    ours = [systemd.folder / f"{schedule.unit}.{kind}" for kind in ("timer", "service")]
    for path in (*ours, Path(schedule.environment), _note_path(schedule.state, schedule.name)):
        try:
            path.unlink(missing_ok=True)
        except OSError as e:
            raise _unwritable(path, e) from e
    systemd.ctl("daemon-reload")
    systemd.run(["systemctl", *systemd.whose, "reset-failed", f"{schedule.unit}.service"], TIMEOUT_S)
    return tuple(f"{path}.d" for path in ours if Path(f"{path}.d").exists())


def start(schedule: Schedule, systemd: Systemd) -> int:
    """Runs it now, as its timer would, or waits for the run that goes on; gives the exit status of that run."""
    unit, asked_s = f"{schedule.unit}.service", time.time()
    done = systemd.run(["systemctl", *systemd.whose, "start", unit], None)
    last = _read(_note_path(schedule.state, schedule.name)).last
    if last and last.ended_s >= asked_s:  # systemd may have begun the next one already, and speak of that
        return last.exit_status
    shown = systemd.show(unit)
    ended = shown.get("ExecMainStatus", "")
    ran = done.returncode == 0 or shown.get("Result") == "exit-code"
    if ran and ended in ("0", "1", "2", "130"):
        return int(ended)
    said = printable(done.stderr)
    raise ScheduleError(
        f"{unit}: {_failure(shown, schedule)}. {said}", hint=f"Look: {' '.join(systemd.journal(schedule))}"
    )


def said(schedule: Schedule, systemd: Systemd, since_s: float) -> str:
    """What its runs wrote into the journal since then; "" where this user may not read it."""
    systemd.run(["journalctl", "--sync"], TIMEOUT_S)  # a busy journald may be behind; root alone may ask
    argv = [*systemd.journal(schedule), "--quiet", "--output=cat", f"--since=@{int(since_s)}"]
    return systemd.run(argv, TIMEOUT_S).stdout


def status(schedule: Schedule, systemd: Systemd) -> Status:
    """How it is doing: systemd knows what comes, the note what was."""
    service, timer = systemd.show(f"{schedule.unit}.service"), systemd.show(f"{schedule.unit}.timer")
    note = _read(_note_path(schedule.state, schedule.name))
    running = note.running if note.running and _alive(note.running) else None
    off = _off(timer)
    active = not off
    problem = _problem(schedule, note, running, service) or off
    return Status(
        name=schedule.name,
        scope=schedule.scope,
        every=schedule.every,
        calendar=schedule.calendar,
        active=active,
        result=_result(note, broken=bool(problem) and active),
        problem=problem,
        last=note.last,
        running_since_s=running.began_s if running else None,
        next_s=_seconds(timer.get("NextElapseUSecRealtime", "")) if active else None,
        command=("kvmfleet", "drift", *schedule.options),
        journal=systemd.journal(schedule),
    )


def _problem(schedule: Schedule, note: _Note, running: Running | None, service: Mapping[str, str]) -> str:
    """What systemd knows of a run that left no word of its end."""
    if note.running and not running:
        why = (
            _failure(service, schedule)
            if service.get("Result") not in ("", "success", None)
            else "killed, or the machine went"
        )
        return f"the run of {moment(note.running.began_s)} left no result: {why}"
    told = str(note.last.exit_status) if note.last else ""
    mute = service.get("Result") != "exit-code" or service.get("ExecMainStatus") != told
    since_s = _seconds(service.get("StateChangeTimestamp", "")) or 0.0
    if service.get("ActiveState") == "failed" and mute and (note.last is None or since_s >= int(note.last.ended_s)):
        return f"systemd could not run it: {_failure(service, schedule)}"
    return ""


def _failure(service: Mapping[str, str], schedule: Schedule) -> str:
    match service.get("Result"), service.get("ExecMainStatus"):  # systemd.exec(5), "Process Exit Codes"
        case "exit-code", "200":
            return f"the folder {printable(schedule.folder)} cannot be entered"
        case "exit-code", "203":
            return f"{printable(schedule.python)} cannot be executed"
    return printable(f"{service.get('Result', '')} {service.get('ExecMainStatus', '')}".strip())


def _result(note: _Note, *, broken: bool) -> Result:
    if broken:
        return "could-not-tell"
    if note.last is None:
        return "never-run"
    meaning: Mapping[int, Result] = {0: "in-sync", 2: "drift", 130: "interrupted"}
    return meaning.get(note.last.exit_status, "could-not-tell")


def recorded(name: str, work: Callable[[], int]) -> int:
    """Does the work, whose answer is an exit status, unless a run of this name goes on; notes how it went.

    Raises:
        LockedError: another run goes on.
        ScheduleError: the note cannot be written; where the work can be done without it, it is done.
    """
    with _alone(name) as file:
        last, began_s = _decode(_content(file)).last, time.time()
        with suppress(ScheduleError):  # said at the end, unless there is room by then
            _put(file, _Note(Running(began_s, os.getpid(), processes.started_ticks(os.getpid())), last))
        code = 130  # for whatever ends us by force
        try:
            code = work()
        except Exception:
            code = 1
            raise
        finally:
            _put(file, _Note(None, Past(began_s, time.time(), code)))
        return code


@contextmanager
def _alone(name: str) -> Iterator[FileIO]:
    """The note, held as lock.py holds hosts: the kernel drops the lock with the process, whatever ends it."""
    path = _note_path(str(paths.state()), name)
    try:
        paths.private(path.parent)
        file = path.open("a+b", buffering=0)  # what could not be written is not tried again, and fails, when it closes
    except OSError as e:
        raise _unwritable(path, e) from e
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as e:
            holder = _decode(_content(file)).running
            who = f"process {holder.pid}, since {moment(holder.began_s)}" if holder else "another process"
            raise LockedError(
                f"schedule {name}: a run of it goes on ({who}), so this one looks at nothing",
                hint="Its result will be in: kvmfleet schedule status",
            ) from e
        except OSError as e:
            raise _unwritable(path, e) from e
        yield file


def _note_path(state: str, name: str) -> Path:
    return Path(state) / "schedules" / f"{name}.json"


def _content(file: FileIO) -> bytes:
    file.seek(0)
    return file.read(1 << 16)


def _put(file: FileIO, note: _Note) -> None:
    """In place: a file that is replaced would take the lock with it. What a crash cuts short counts as no note."""
    left = msgspec.json.encode(note)
    try:
        file.truncate(0)
        while left:  # on a disk that is nearly full a write takes what fits
            left = left[file.write(left) :]
    except OSError as e:
        raise _unwritable(Path(file.name), e) from e


def _read(path: Path) -> _Note:
    try:
        return _decode(path.read_bytes())
    except FileNotFoundError:
        return _Note()
    except OSError as e:
        raise ScheduleError(f"{path}: {e.strerror}", hint="Ask as the user who installed the schedule.") from e


def _decode(content: bytes) -> _Note:
    try:
        return msgspec.json.decode(content, type=_Note)
    except msgspec.MsgspecError:
        return _Note()


def _alive(run: Running) -> bool:
    return run.started_ticks is not None and processes.started_ticks(run.pid) == run.started_ticks


def _seconds(text: str) -> float | None:
    """A time as systemctl shows it in UTC; None for "" and "n/a"."""
    try:
        return datetime.strptime(text, "%a %Y-%m-%d %H:%M:%S UTC").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    except OSError as e:
        raise ScheduleError(f"{path}: {e.strerror}", hint="Check its owner and mode.") from e


def _write(path: Path, text: str) -> None:
    """Units are for everybody to read, as systemd shows them to everybody; the environment is not."""
    ours = path.suffix == ".env"
    try:
        paths.private(path.parent)
        whole_file.write(path, text, mode=0o600 if ours else 0o644)
    except OSError as e:
        raise _unwritable(path, e) from e


def _unwritable(path: Path, error: OSError) -> ScheduleError:
    return ScheduleError(f"{path}: {error.strerror}", hint="It must be writable for you, and its disk have room.")
