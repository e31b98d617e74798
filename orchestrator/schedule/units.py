"""What systemd and cron are told of a schedule: a service, a timer, the service's environment, a line of a crontab.

Every kind of line in a unit file has rules of its own for spaces, quotes, backslashes and `%`: systemd.syntax(7),
systemd.exec(5), systemd.unit(5). What a rule has no way to say is refused.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Literal

import msgspec

from orchestrator.errors import ScheduleError, UsageError
from orchestrator.text import printable

__all__ = [
    "HEAD",
    "Schedule",
    "Scope",
    "Times",
    "crontab",
    "environment_file",
    "every",
    "schedule_of",
    "service",
    "timer",
]

Scope = Literal["system", "user"]

_MARK = "Schedule="

HEAD = "# Written by `kvmfleet schedule install`"
"""With which units of ours begin."""

_SERVICE = """\
{head}, which writes it anew. What you add belongs into: {edit}
[Unit]
Description=kvmfleet drift: {name}
{order}
[Service]
Type=oneshot
WorkingDirectory={folder}
EnvironmentFile={environment}
ExecStart={command}
SuccessExitStatus=2
SyslogIdentifier=kvmfleet
TimeoutStartSec=2h
MemoryMax=50%
{seal}
[X-Kvmfleet]
{mark}
"""

_TIMER = """\
{head}, which writes it anew. What you add belongs into: {edit}
[Unit]
Description=kvmfleet drift: {name}, {when}

[Timer]
OnCalendar={calendar}
Persistent=yes
RandomizedDelaySec={spread_s}
AccuracySec=1s

[Install]
WantedBy=timers.target
"""

_ORDER = """\
Wants=network-online.target
After=network-online.target
"""
"""Only the system's systemd knows when the network is there."""

_PROCESS = """\
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
"""
"""What needs no view of its own of the file system, which a user's systemd cannot give."""

_VIEW = """\
CapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths={writable}
PrivateTmp=yes
PrivateDevices=yes
ProtectProc=invisible
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
KeyringMode=private
RemoveIPC=yes
"""
"""Keys of ssh are read in homes, and root reads those of others: hence the two capabilities."""


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """A drift check that comes back. It is in the unit file, too, so that what is installed can be read back.

    It holds no secret: everybody on the machine may read a unit.
    """

    name: str
    scope: Scope
    calendar: str  # of systemd
    every: str = ""  # as the user said it; "" when they said the calendar
    spread_s: int = 0
    options: tuple[str, ...] = ()  # of drift
    folder: str  # where it runs: ansible.cfg may be there, and relative paths in the inventory are meant from there
    state: str  # the folder of the state
    writable: tuple[str, ...] = ()  # folders; a leading - says that it need not be there
    python: str
    sealed: bool = True  # False where a host is this machine: the collector has to see it as it is

    @property
    def unit(self) -> str:
        """The name of its units without their suffix."""
        return f"kvmfleet-{self.name}"

    @property
    def environment(self) -> str:
        """The path of the file with its environment, which may hold secrets."""
        return f"{self.state}/schedules/{self.name}.env"

    @property
    def when(self) -> str:
        return f"every {self.every}" if self.every else self.calendar

    @property
    def command(self) -> tuple[str, ...]:
        """Not the launcher: that would install packages after an upgrade, and a timer must not."""
        return (self.python, "-P", "-m", "orchestrator", "schedule", "run", f"--name={self.name}", *self.options)


class Times(msgspec.Struct, frozen=True):
    """One interval, as systemd and as cron say it."""

    calendar: str
    cron: str
    seconds: int


_MINUTES = {"m": 1, "h": 60, "d": 1440, "w": 10080}
_DAY, _WEEK = _MINUTES["d"], _MINUTES["w"]
_KNOWN = "1m 2m 3m 4m 5m 6m 10m 12m 15m 20m 30m 1h 2h 3h 4h 6h 8h 12h 1d 1w"


def every(text: str) -> Times:
    """The interval `text`, such as 15m. Raises UsageError for one that the hours of a day cannot keep.

    Persistent= works with calendar events alone, so that is what it has to be.
    """
    read = re.fullmatch(r"([1-9][0-9]{0,4})([mhdw])", text.strip())
    minutes = int(read[1]) * _MINUTES[read[2]] if read else 0
    hours = minutes // 60
    if 0 < minutes < 60 and 60 % minutes == 0:
        calendar, cron = f"*-*-* *:00/{minutes}:00", f"*/{minutes} * * * *"
    elif minutes % 60 == 0 and 0 < hours < 24 and 24 % hours == 0:
        calendar, cron = f"*-*-* 00/{hours}:00:00", f"0 */{hours} * * *"
    elif minutes == _DAY:
        calendar, cron = "*-*-* 00:00:00", "0 0 * * *"
    elif minutes == _WEEK:
        calendar, cron = "Mon *-*-* 00:00:00", "0 0 * * 1"
    else:
        raise UsageError(
            f"--every {printable(text)}: no calendar has that rhythm, and only one by the calendar catches up.",
            hint=f"Use one of {_KNOWN}, or --calendar with an expression of systemd.time(7).",
        )
    return Times(calendar, cron, minutes * 60)


def service(schedule: Schedule) -> str:
    """The text of its service."""
    return _SERVICE.format(
        head=HEAD,
        edit=_edit(schedule, "service"),
        name=schedule.name,
        order=_ORDER if schedule.scope == "system" else "",
        folder=_path(schedule.folder),
        environment=_pattern(schedule.environment),
        command=" ".join([_quoted(schedule.command[0]), *(_quoted(_literal(word)) for word in schedule.command[1:])]),
        seal=_seal(schedule),
        mark=_MARK + msgspec.json.encode(schedule).decode(),
    )


def timer(schedule: Schedule) -> str:
    """The text of its timer."""
    return _TIMER.format(
        head=HEAD,
        edit=_edit(schedule, "timer"),
        name=schedule.name,
        when=_path(schedule.when),
        calendar=_path(schedule.calendar),
        spread_s=schedule.spread_s,
    )


def schedule_of(text: str) -> Schedule | None:
    """The schedule in the text of a service; None where the service is not ours."""
    line = next((line for line in text.splitlines() if line.startswith(_MARK)), "")
    try:
        return msgspec.json.decode(line.removeprefix(_MARK), type=Schedule) if line else None
    except msgspec.MsgspecError:
        return None


def environment_file(variables: Mapping[str, str]) -> str:
    """Variables as EnvironmentFile= reads them, and a shell as well."""
    return "".join(f"{name}={_in_double_quotes(value)}\n" for name, value in sorted(variables.items()))


def crontab(schedule: Schedule, cron: str, variables: Mapping[str, str]) -> str:
    """One line of a crontab, in which cron would read `%` as the end of a line."""
    words = [f"{name}={shlex.quote(value)}" for name, value in sorted(variables.items())]
    words += [shlex.quote(word) for word in schedule.command]
    line = f"cd {shlex.quote(schedule.folder)} && {' '.join(words)}"
    if "\n" in line:
        raise UsageError("A crontab has no way to say a line break, and an option or a path holds one.")
    return f"{cron} {line}".replace("%", r"\%")


def _edit(schedule: Schedule, kind: str) -> str:
    return f"systemctl {'--user ' if schedule.scope == 'user' else ''}edit {schedule.unit}.{kind}"


def _seal(schedule: Schedule) -> str:
    """Each of these costs something that a local host needs: sudo, devices, or the sight of the machine as it is."""
    if not schedule.sealed:
        return "NoNewPrivileges=yes\n" if schedule.scope == "system" else ""
    if schedule.scope == "user":
        return _PROCESS
    return _PROCESS + _VIEW.format(writable=" ".join(_word(path) for path in schedule.writable))


def _path(value: str) -> str:
    """The rest of a line is the value. systemd takes blanks off its end, and joins lines at a backslash."""
    if not value.isprintable() or value != value.strip() or value.endswith("\\"):
        raise ScheduleError(
            f"{printable(value)!r}: a unit file has no way to say this name.",
            hint="It holds a control character, or ends in a blank or a backslash. Give it another name.",
        )
    return value.replace("%", "%%")


def _pattern(path: str) -> str:
    """A path where systemd takes a pattern, as for EnvironmentFile=."""
    return re.sub(r"([*?\[\\])", r"\\\1", _path(path))


def _word(path: str) -> str:
    """One of several paths in a line. Backslashes are themselves there; quotes are taken off, also within a word."""
    return "".join(f'"{part}"' if part == "'" else f"'{part}'" for part in re.split("(')", _path(path)) if part)


def _quoted(text: str) -> str:
    """A word of ExecStart=, in which C's escapes are known; a plain one stays readable."""
    if re.fullmatch(r"[\w@:=,./+-]+", text, re.ASCII):
        return text
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise ScheduleError(f"{printable(text)!r}: not UTF-8, which unit files are.", hint="Rename it.") from e
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\x{ord(c):02x}" for c in escaped) + '"'


def _literal(text: str) -> str:
    """In the words of ExecStart= behind the first, variables are looked for."""
    return text.replace("$", "$$")


def _in_double_quotes(value: str) -> str:
    return '"' + re.sub(r'(["\\$`])', r"\\\1", value) + '"'
