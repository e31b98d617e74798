"""Schedules: drift checks that come back by themselves."""

from __future__ import annotations

import copy
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from orchestrator.cli.drift import UNATTENDED, drift
from orchestrator.cli.options import ansible, connection_options
from orchestrator.cli.output import complain, print_json
from orchestrator.errors import KvmfleetError, UsageError

if TYPE_CHECKING:
    from orchestrator.inventory import Fleet
    from orchestrator.schedule.jobs import Status
    from orchestrator.schedule.units import Schedule, Scope, Times

__all__ = ["schedule"]

CONNECTION = frozenset(
    option.name for option in click.command()(connection_options(lambda: None)).params if option.expose_value
)
WRITTEN = ("junit", "prometheus")
"""Options of drift that name what it makes; files that others name are there already."""
OWN = ("KVMFLEET_VENV", "KVMFLEET_PYTHON")
"""Variables of the launcher, which a schedule does not use."""
CARRIED = ("HOME", "PATH", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
PREFIXES = ("KVMFLEET_", "ANSIBLE_", "PG")
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
SECRET = re.compile(r"PASS|KEY|TOKEN|SECRET|CREDENTIAL|VAULT")
PASSING = ("/tmp", "/var/tmp")
LONGEST_LINE = 990  # characters that cron takes for a command
SPREAD_S = 900
"""At most so long a run may be delayed by chance; otherwise a tenth of the interval."""

WORDS = {
    "in-sync": "no drift",
    "drift": "drift",
    "could-not-tell": "could not tell",
    "interrupted": "interrupted",
    "never-run": "has not run yet",
}


def _complete_name(_context: click.Context, _parameter: click.Parameter, typed: str) -> list[str]:
    from orchestrator.schedule import jobs

    return [one.name for one in jobs.installed(jobs.Systemd.of(_own_scope())) if one.name.startswith(typed)]


def _checked_name(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    from orchestrator.schedule.jobs import NAME

    if not NAME.fullmatch(value):
        raise UsageError(f"--name {value!a} is no name.", hint="Use up to 40 letters, digits, '-' and '_'.")
    return value


name_argument = click.argument("name", required=False, default="", shell_complete=_complete_name)
name_option = click.option(
    "--name", default="drift", show_default=True, callback=_checked_name, help="Name of the schedule."
)
scope_option = click.option(
    "--scope",
    type=click.Choice(["system", "user"]),
    help="Whose systemd runs it: the system's (the default of root), or the user's own.",
)


@click.group(short_help="Let drift come back by itself: a timer of systemd, or a crontab.")
def schedule() -> None:
    """Let `kvmfleet drift` come back by itself: a timer of systemd, or a line of a crontab."""


@schedule.command("install", short_help="Install a schedule, or change one.")
@click.option("--every", metavar="TIME", help="How often: 15m, 1h, 6h, 1d, 1w.")
@click.option("--calendar", metavar="EXPR", help="When, as systemd.time(7) writes it: 'Mon..Fri 07:30'.")
@name_option
@scope_option
@click.option("--print-cron", is_flag=True, help="Print the line for a crontab; install nothing.")
@click.option("--print-units", is_flag=True, help="Print the units; install nothing.")
@click.pass_context
def install(
    context: click.Context,
    /,
    every: str | None,
    calendar: str | None,
    name: str,
    scope: Scope | None,
    print_cron: bool,
    print_units: bool,
    **given: Any,
) -> None:
    """Run `kvmfleet drift` on a schedule, with the options of drift that are given here.

    Runs that were missed while this machine was off are caught up. Once more under the same name changes what is there.
    What the runs need is looked at now; nobody will be there to type a password.
    """
    from orchestrator.schedule import jobs, units

    if print_cron and print_units:
        raise UsageError("--print-cron and --print-units: a run is started by one or the other.", hint="Give one.")
    times = _times(every, calendar, print_cron)
    _refuse_prompts(given)
    _refuse_deaf(given["notify_file"])
    fleet = _load(given)
    made, variables = _made(context, name, scope or _own_scope(), fleet, every or "", times or calendar or "")
    if made.scope == "system" and made.sealed and not print_cron:
        _refuse_passing(context, made, fleet)
    if print_cron and times:
        _print_cron(made, times, variables)
    elif print_units:
        systemd = jobs.Systemd.of(made.scope)
        for kind, text in (("service", units.service(made)), ("timer", units.timer(made))):
            click.echo(f"# {systemd.folder / made.unit}.{kind}\n{text}")
    else:
        _require_root(made.scope)
        for change in jobs.install(made, variables, jobs.Systemd.of(made.scope)) or ("unchanged",):
            click.echo(f"{name}: {change}", err=True)
    for note in _notes(made, fleet, given, cron=print_cron):
        click.echo(f"note: {note}", err=True)


@schedule.command("run", short_help="What timers and crontabs start: drift, unless it is running already.")
@name_option
@click.pass_context
def run(context: click.Context, /, name: str, **_given: Any) -> None:
    """Run `kvmfleet drift` with the options of drift that are given here, and note for `schedule status` how it went.

    This is what timers and crontabs start. Exit codes are those of drift, and 1 where a run of the same name goes on.
    """
    from orchestrator.schedule import jobs

    words = list(_words(context))
    raise SystemExit(jobs.recorded(name, lambda: _drift(words)))


@schedule.command("run-now")
@name_argument
@scope_option
def run_now(name: str, scope: Scope | None) -> None:
    """Run a schedule now, as its timer would, and show what it says.

    Where it is running already, wait for that run. Exit codes are those of drift.
    """
    import time

    from orchestrator.schedule import jobs

    systemd = jobs.Systemd.of(scope or _own_scope())
    found = jobs.find(name, systemd)
    since_s = jobs.status(found, systemd).running_since_s
    if since_s:
        click.echo(f"{found.name}: is running already; waiting for that run", err=True)
    began_s = since_s or time.time()
    try:
        code = jobs.start(found, systemd)
    except KeyboardInterrupt:
        click.echo(f"{found.name}: goes on by itself; its result will be in: kvmfleet schedule status", err=True)
        raise
    click.echo(jobs.said(found, systemd, began_s), nl=False)
    raise SystemExit(code)


@schedule.command("status", short_help="Show how the schedules are doing.")
@name_argument
@scope_option
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def status(name: str, scope: Scope | None, as_json: bool) -> None:
    """Show of each schedule, or of the one called NAME, how its last run went and when the next one comes.

    Exit codes: 0 no drift; 2 a host drifted; 1 it cannot be told: there is no schedule, it has not run yet, its last
    run could not tell, or its timer is off.
    """
    from orchestrator.schedule import jobs

    systemd = jobs.Systemd.of(scope or _own_scope())
    chosen = [jobs.find(name, systemd)] if name else jobs.installed(systemd) or [jobs.find(name, systemd)]
    found = [jobs.status(one, systemd) for one in chosen]
    if as_json:
        print_json(found)
    else:
        for one in found:
            click.echo("\n".join(_lines(one)))
    codes = {one.exit_code for one in found}
    raise SystemExit(1 if 1 in codes else max(codes))


@schedule.command("remove")
@name_argument
@scope_option
def remove(name: str, scope: Scope | None) -> None:
    """Stop a schedule and take away all that was made for it. The history of its runs stays."""
    from orchestrator.schedule import jobs

    systemd = jobs.Systemd.of(scope or _own_scope())
    found = jobs.find(name, systemd)
    _require_root(found.scope)
    left = jobs.remove(found, systemd)
    click.echo(f"{found.name}: removed", err=True)
    for path in left:
        click.echo(f"note: {path} is not ours and stays", err=True)


def _with_its_value(option: click.Parameter) -> click.Parameter:
    """The option as it is, but for one that shows its value to nobody but its callback."""
    shown = copy.copy(option)
    shown.expose_value = True
    return shown


for command in (install, run):
    command.params += map(_with_its_value, drift.params)  # whatever drift can be told, a schedule can


def _own_scope() -> Scope:
    return "user" if os.geteuid() else "system"


def _require_root(scope: Scope) -> None:
    if scope == "system" and os.geteuid():
        raise UsageError("Only root may change what the system's systemd does.", hint="Use sudo, or --scope user.")


def _times(every: str | None, calendar: str | None, cron: bool) -> Times | None:
    """What --every means; None for --calendar, which systemd has checked then."""
    from orchestrator.schedule import jobs, units

    if bool(every) == bool(calendar):
        raise UsageError("When should it run?", hint="Give --every, such as --every 1h, or --calendar; one of them.")
    if every:
        return units.every(every)
    if cron:
        raise UsageError("--print-cron: cron does not know the calendar of systemd.", hint="Use --every.")
    jobs.calendar(calendar or "")
    return None


def _refuse_prompts(given: Mapping[str, Any]) -> None:
    for option, name in (("--ask-pass", "ask_pass"), ("--ask-become-pass", "ask_become_pass")):
        if given[name]:
            raise UsageError(
                f"{option}: nobody is there to type a password when a schedule runs.",
                hint="Log in with a key, and put the password of sudo into a vault: ansible_become_password.",
            )


def _refuse_deaf(notify_file: str | None) -> None:
    """A run that cannot read whom to tell ends before it looks at a host, and nobody would hear of that."""
    from orchestrator.notify import destinations

    destinations.read(notify_file, os.environ.get("KVMFLEET_NOTIFY", ""))


def _load(given: Mapping[str, Any]) -> Fleet:
    """The fleet as drift will find it. Raises InventoryError."""
    from orchestrator import inventory

    options, _ = ansible({name: value for name, value in given.items() if name in CONNECTION})
    return inventory.load(options)


def _made(
    context: click.Context, name: str, scope: Scope, fleet: Fleet, every: str, when: Times | str
) -> tuple[Schedule, dict[str, str]]:
    """The schedule, and the environment of its runs."""
    from orchestrator import paths
    from orchestrator.schedule import units

    sealed = all(host.connection == "ssh" for host in fleet.hosts)
    state = paths.state().absolute()
    variables = {**_environment(), "KVMFLEET_STATE_DIR": str(state)}
    made = units.Schedule(
        name=name,
        scope=scope,
        calendar=when if isinstance(when, str) else when.calendar,
        every=every,
        spread_s=0 if isinstance(when, str) else min(when.seconds // 10, SPREAD_S),
        options=tuple(_words(context)),
        folder=os.getcwd(),
        state=str(state),
        writable=tuple(dict.fromkeys(_writable(context, state))),
        python=sys.executable,
        sealed=sealed,
    )
    _refuse_unreadable(context)
    return made, variables


def _words(context: click.Context) -> Iterator[str]:
    """The options of drift as they were given, so that they mean the same wherever it runs."""
    for option, values in _given(context):
        name = max(option.opts, key=len)
        if option.is_flag or option.count:
            yield from [name] * int(values[0])
        else:
            yield from (f"{name}={_absolute(option, str(value))}" for value in values)


def _given(context: click.Context) -> Iterator[tuple[click.Option, tuple[Any, ...]]]:
    for option in drift.params:
        if not isinstance(option, click.Option) or option.name is None:
            continue
        value: Any = context.params.get(option.name)
        if value != "" and context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE:
            yield option, tuple(value) if option.multiple else (value,)


def _absolute(option: click.Option, value: str) -> str:
    """The value with the path in it, if there is one, made absolute."""
    if option.name == "inventory":
        return value if "," in value else _path(value)
    if option.name == "vault_id":
        label, at, source = value.rpartition("@")
        return f"{label}{at}{_path(source)}"
    if option.name in ("extra_vars", "limit"):
        return f"@{_path(value[1:])}" if value.startswith("@") else value
    return _path(value) if _names_a_file(option) else value


def _names_a_file(option: click.Option) -> bool:
    return isinstance(option.type, click.Path) or option.metavar == "FILE"


def _path(value: str) -> str:
    return os.path.abspath(os.path.expanduser(value))


def _refuse_unreadable(context: click.Context) -> None:
    for option, values in _given(context):
        if _names_a_file(option) and option.name not in WRITTEN:
            for path in map(_path, map(str, values)):
                if not os.access(path, os.R_OK):
                    raise UsageError(f"{max(option.opts, key=len)} {path}: cannot be read.", hint="Name one that can.")


def _files(context: click.Context) -> Iterator[str]:
    """The files that the options name."""
    for option, values in _given(context):
        for absolute in (_absolute(option, str(value)) for value in values):
            path = absolute.rpartition("@")[2]
            if path.startswith("/"):
                yield path


def _writable(context: click.Context, state: Path) -> Iterator[str]:
    """The folders that drift writes to. Files in them are replaced whole, so a file alone would not do."""
    yield str(state)
    yield "-" + _path(os.environ.get("ANSIBLE_HOME") or "~/.ansible")
    made = [("history", file)] if (file := _history(context)) else []
    made += [
        (max(option.opts, key=len), Path(_path(str(values[-1]))))
        for option, values in _given(context)
        if option.name in WRITTEN
    ]
    for what, file in made:
        if not os.path.isdir(file.parent) and file.parent != state:
            raise UsageError(f"{what}: there is no folder {file.parent}.", hint="Make it first.")
        yield str(file.parent)


def _history(context: click.Context) -> Path | None:
    """The file that the history is in; None where it is on a server."""
    from orchestrator.history import address

    file = address.file(address.chosen(context.params.get("store") or ""))
    return file.absolute() if file else None


def _environment() -> dict[str, str]:
    """What of the environment drift, Ansible, the database or a proxy may want."""
    return {
        name: value
        for name, value in os.environ.items()
        if (name.startswith(PREFIXES) or name in CARRIED or name.lower() in PROXIES) and name not in OWN
    }


def _refuse_passing(context: click.Context, made: Schedule, fleet: Fleet) -> None:
    from orchestrator import paths

    keys = {host.private_key for host in fleet.hosts}
    history = [str(file)] if (file := _history(context)) else []
    places = (made.folder, made.state, made.python, str(paths.content()))
    for place in (*places, *history, *_files(context), *sorted(keys)):
        refuse_passing(place)


def refuse_passing(place: str) -> None:
    """Raises UsageError for a place that is empty for a service, and at the latest after a boot for everybody."""
    if any(Path(place).is_relative_to(folder) for folder in PASSING):
        raise UsageError(
            f"{place}: a service of the system has a /tmp and /var/tmp of its own, and does not see this.",
            hint="Move it, or run this from another folder.",
        )


def _print_cron(made: Schedule, times: Times, variables: Mapping[str, str]) -> None:
    from orchestrator.schedule import units

    line = units.crontab(made, times.cron, {name: variables[name] for name in variables if _may_be_shown(name)})
    if len(line) > LONGEST_LINE:
        raise UsageError(
            f"The line has {len(line)} characters, and cron takes some {LONGEST_LINE}.",
            hint="Put variables into a file, -e @FILE, and settings of Ansible into ansible.cfg.",
        )
    click.echo(line)


def _may_be_shown(name: str) -> bool:
    """Whether a variable can hold no secret; of plugins of Ansible's, some are passwords, keys or tokens."""
    ours = name in ("KVMFLEET_STATE_DIR", "KVMFLEET_CACHE_DIR")
    return ours or (name.startswith("ANSIBLE_") and (not SECRET.search(name) or name.endswith(("_FILE", "_CHECKING"))))


def _notes(made: Schedule, fleet: Fleet, given: Mapping[str, Any], *, cron: bool) -> Iterator[str]:
    """What still works here and now, and may not when it runs."""
    from orchestrator import identity

    if "SSH_AUTH_SOCK" in os.environ and any(h.connection == "ssh" and not h.private_key for h in fleet.hosts):
        yield "the ssh agent of this session will not be there; keys have to be in files without a passphrase"
    if any(not extra.startswith("@") for extra in given["extra_vars"]):
        yield "everybody on this machine can read what -e says; put a secret into a file: -e @FILE"
    if not made.sealed:
        yield "a host is this machine, so the runs are not sealed off from it"
    if cron:
        others = sorted(n for n in _environment() if not _may_be_shown(n) and n not in CARRIED)
        if others:
            yield f"set in the crontab above the line, as they may be secret: {', '.join(others)}"
    elif made.scope == "user" and not (Path("/var/lib/systemd/linger") / identity.user()).exists():
        yield "it runs only while you are logged in, unless you linger: loginctl enable-linger"


def _drift(words: list[str]) -> int:
    try:
        return int(drift.main(words, prog_name="kvmfleet drift", standalone_mode=False, obj=UNATTENDED) or 0)
    except SystemExit as e:
        return int(e.code or 0)
    except KvmfleetError as e:
        complain(e)
        return e.exit_code


def _lines(found: Status) -> Iterator[str]:
    from orchestrator.text import moment, printable

    took = f", {moment(found.last.began_s)}, took {found.last.ended_s - found.last.began_s:.0f} s" if found.last else ""
    yield f"{found.name}: {WORDS[found.result]}{took}"
    if found.running_since_s:
        yield f"  running  since {moment(found.running_since_s)}"
    if found.problem:
        yield f"  problem  {printable(found.problem)}"
    coming = f", next {moment(found.next_s)}" if found.next_s else ""
    yield f"  runs     {f'every {found.every}' if found.every else found.calendar}{coming}"
    yield f"  command  {printable(shlex.join(found.command), 2000)}"
    yield f"  journal  {shlex.join(found.journal)}"
