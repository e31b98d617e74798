"""Schedules: what systemd and cron are told, what of it can be read back, and how a run is known."""

from __future__ import annotations

import json
import os
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

import click
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli.drift import drift
from orchestrator.cli.schedule import _refuse_passing, _with_its_value, _words, _writable, refuse_passing
from orchestrator.errors import LockedError, ScheduleError, UsageError
from orchestrator.inventory import Fleet
from orchestrator.schedule import jobs, units
from orchestrator.schedule.jobs import Systemd
from orchestrator.schedule.units import Schedule

ROOT = Path(__file__).resolve().parents[2]
NASTY = """/srv/a b/it's "100%" $HOME \\x [1] ;"""


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVMFLEET_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


T = TypeVar("T")


def made(state: Path = Path("/var/lib/kf"), **changed: object) -> Schedule:
    plain = Schedule(
        name="drift",
        scope="system",
        calendar="*-*-* 00/1:00:00",
        every="1h",
        options=("--inventory=/srv/hosts.yml",),
        folder="/srv",
        state=str(state),
        writable=(str(state), "-/root/.ansible"),
        python="/opt/kvmfleet/.venv/bin/python",
    )
    return msgspec.structs.replace(plain, **changed)


class Machine:
    """A systemd that remembers what it was told, and shows what a test wants."""

    def __init__(self, folder: Path) -> None:
        self.told: list[str] = []
        self.shown: dict[str, dict[str, str]] = {}
        self.fails: dict[str, int] = {}
        self.refuses = ""
        self.systemd = Systemd("system", folder, self.run)

    def run(self, argv: Sequence[str], _timeout_s: float | None) -> subprocess.CompletedProcess[str]:
        self.told.append(" ".join(argv[1:]))
        if self.refuses:
            return subprocess.CompletedProcess(argv, 1, "", self.refuses)
        shown = self.shown.get(argv[-1], {}) if "show" in argv else {}
        lines = "".join(f"{key}={value}\n" for key, value in shown.items())
        return subprocess.CompletedProcess(argv, self.fails.get(self.told[-1], 0), lines, "")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path / "units")
    machine.shown["kvmfleet-drift.timer"] = {
        "ActiveState": "active",
        "NextElapseUSecRealtime": "Fri 2026-11-27 11:00:00 UTC",
    }
    return machine


def lines(text: str, key: str) -> list[str]:
    return [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{key}=")]


def words_of_exec(line: str) -> list[str]:
    """What systemd.service(5) makes of a command line, for what is written here: quotes, C's escapes, % and $."""
    words, word, quoted, rest = [], "", False, iter(line)
    for c in rest:
        if c == '"':
            quoted = not quoted
        elif c == "\\":
            kind = next(rest)
            word += chr(int(next(rest) + next(rest), 16)) if kind == "x" else kind
        elif c in "%$" and (c == "%" or words):  # no variables are looked for in the first word
            assert next(rest) == c, "a specifier or a variable"
            word += c
        elif c == " " and not quoted:
            words.append(word)
            word = ""
        else:
            word += c
    assert not quoted
    return [*words, word]


@pytest.mark.parametrize("text", ["1m", "5m", "15m", "30m", "60m", "1h", "6h", "12h", "24h", "1d", "7d", "1w"])
def test_an_interval_becomes_a_calendar_event_of_the_same_rhythm(text: str) -> None:
    seconds = int(text[:-1]) * {"m": 60, "h": 3600, "d": 86400, "w": 604800}[text[-1]]
    times = units.every(text)
    done = subprocess.run(
        ["systemd-analyze", "calendar", "--iterations=3", times.calendar],
        env=os.environ | {"TZ": "UTC", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=True,
    )
    elapses = [jobs._seconds(line.partition(": ")[2]) for line in done.stdout.splitlines() if "UTC" in line]
    first, second, third = [at_s for at_s in elapses if at_s]
    assert (second - first, third - second, times.seconds) == (seconds, seconds, seconds)
    assert len(times.cron.split()) == 5


@pytest.mark.parametrize(
    "text", ["", "0m", "7m", "90m", "5h", "36h", "2d", "2w", "1y", "1", "h", "-1h", "1.5h", "99999w"]
)
def test_an_interval_that_no_calendar_keeps_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        units.every(text)
    assert "15m" in caught.value.hint


def test_a_calendar_expression_is_what_systemd_says_it_is() -> None:
    jobs.calendar("Mon..Fri 07:30")
    with pytest.raises(UsageError, match="Failed to parse"):
        jobs.calendar("every now and then")
    with pytest.raises(UsageError, match="never comes"):
        jobs.calendar("2001-01-01")


def test_names_of_any_kind_reach_the_service_as_they_are() -> None:
    option = f'--extra-vars={{"a": "b\n{NASTY}"}}'
    text = units.service(made(Path(NASTY), folder=NASTY, python=f"{NASTY}/python", options=(option,)))
    (command,) = lines(text, "ExecStart")
    assert words_of_exec(command) == [
        f"{NASTY}/python",
        "-P",
        "-m",
        "orchestrator",
        "schedule",
        "run",
        "--name=drift",
        option,
    ]
    assert lines(text, "WorkingDirectory") == [NASTY.replace("%", "%%")]
    (environment,) = lines(text, "EnvironmentFile")
    assert environment == NASTY.replace("%", "%%").replace("\\", "\\\\").replace("[", "\\[") + "/schedules/drift.env"
    (writable,) = lines(text, "ReadWritePaths")
    assert [word.replace("%%", "%") for word in shlex.split(writable)] == [NASTY, "-/root/.ansible"]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), min_size=1))
def test_every_word_of_a_command_is_read_as_it_was_written(words: list[str]) -> None:
    text = units.service(made(options=tuple(f"--x={word}" for word in words)))
    (command,) = [line.partition("=")[2] for line in text.split("\n") if line.startswith("ExecStart=")]
    assert words_of_exec(command)[7:] == [f"--x={word}" for word in words]


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_a_shell_reads_the_environment_as_it_was_written(value: str) -> None:
    text = units.environment_file({"A": value})
    done = subprocess.run(["sh"], input=f'{text}printf %s "$A"'.encode(), capture_output=True, check=True)
    assert done.stdout.decode() == value


@pytest.mark.parametrize("name", ["/srv/a\nb", "/srv/a ", "/srv/a\\", "/srv/\udcff", "/srv/\x1b[1m"])
def test_a_name_that_a_unit_cannot_say_is_refused(name: str) -> None:
    with pytest.raises(ScheduleError, match="unit file"):
        units.service(made(folder=name))


def test_a_crontab_line_means_the_same_to_a_shell(tmp_path: Path) -> None:
    folder = tmp_path / "it's 100% $HOME"
    folder.mkdir()
    show = folder / "show"
    show.write_text(
        f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([sys.argv, os.getcwd(), os.environ['A']]))\n"
    )
    show.chmod(0o755)
    line = units.crontab(made(python=str(show), folder=str(folder)), "0 * * * *", {"A": "50% 'x'"})
    assert line.startswith("0 * * * * ")
    assert "%" not in line.replace(r"\%", "")
    done = subprocess.run(["sh", "-c", line[10:].replace(r"\%", "%")], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[str(show), *made().command[1:]], str(folder), "50% 'x'"]
    with pytest.raises(UsageError, match="line break"):
        units.crontab(made(options=("-e\n",)), "0 * * * *", {})


def test_a_drifted_host_is_no_failure_of_the_service_and_missed_runs_are_caught_up() -> None:
    assert lines(units.service(made()), "SuccessExitStatus") == ["2"]
    text = units.timer(made(spread_s=360))
    assert lines(text, "Persistent") == ["yes"]
    assert lines(text, "OnCalendar") == ["*-*-* 00/1:00:00"]
    assert lines(text, "RandomizedDelaySec") == ["360"]


@pytest.mark.parametrize(
    ("scope", "sealed", "view", "process", "privileges"),
    [
        ("system", True, True, True, True),
        ("system", False, False, False, True),  # the collector has to see this machine as it is
        ("user", True, False, True, True),  # a user's systemd has no mounts of its own to give
        ("user", False, False, False, False),  # sudo
    ],
)
def test_a_service_is_sealed_as_far_as_its_hosts_allow(
    scope: units.Scope, sealed: bool, view: bool, process: bool, privileges: bool
) -> None:
    text = units.service(made(scope=scope, sealed=sealed))
    found = [bool(lines(text, key)) for key in ("ProtectSystem", "SystemCallFilter", "NoNewPrivileges")]
    assert found == [view, process, privileges]


def test_what_is_installed_can_be_read_back_and_what_changed_is_said(machine: Machine, state: Path) -> None:
    first = made(state)
    assert jobs.install(first, {"KVMFLEET_STORE": "postgresql://u:hunter2@db/x"}, machine.systemd) == (
        "installed kvmfleet-drift.timer, every 1h",
    )
    assert jobs.installed(machine.systemd) == (first,)
    assert jobs.install(first, {"KVMFLEET_STORE": "postgresql://u:hunter2@db/x"}, machine.systemd) == ()
    second = made(state, every="6h", calendar="*-*-* 00/6:00:00", options=("--limit=a",))
    changed = jobs.install(second, {}, machine.systemd)
    assert changed == (
        "when: every 1h → every 6h",
        "options: --inventory=/srv/hosts.yml → --limit=a",
        f"environment: {state}/schedules/drift.env",
    )
    assert jobs.find("", machine.systemd) == second
    assert [told for told in machine.told if "show" not in told][-3:] == [
        "daemon-reload", "enable kvmfleet-drift.timer", "restart kvmfleet-drift.timer",
    ]  # fmt: skip


def test_secrets_are_for_their_owner_and_units_for_everybody(machine: Machine, state: Path) -> None:
    os.umask(before := os.umask(0))
    try:
        os.umask(0)
        jobs.install(made(state), {"KVMFLEET_STORE": "postgresql://u:hunter2@db/x"}, machine.systemd)
    finally:
        os.umask(before)
    modes = {
        path.name: path.stat().st_mode & 0o777 for path in [*machine.systemd.folder.iterdir(), state, *state.rglob("*")]
    }
    assert modes == {
        "kvmfleet-drift.service": 0o644, "kvmfleet-drift.timer": 0o644, "state": 0o700, "schedules": 0o700,
        "drift.env": 0o600,
    }  # fmt: skip
    assert "hunter2" not in "".join(path.read_text() for path in machine.systemd.folder.iterdir())


@pytest.mark.parametrize("off", [{"ActiveState": "inactive"}, {"UnitFileState": "disabled"}])
def test_a_timer_that_was_stopped_is_started_again(machine: Machine, state: Path, off: Mapping[str, str]) -> None:
    jobs.install(made(state), {}, machine.systemd)
    machine.shown["kvmfleet-drift.timer"] |= off
    assert jobs.install(made(state), {}, machine.systemd) == ("its timer was off, and is on",)
    assert machine.told[-1] == "restart kvmfleet-drift.timer"


def test_units_of_somebody_else_stay_as_they_are(machine: Machine, state: Path) -> None:
    theirs = machine.systemd.folder / "kvmfleet-drift.timer"
    theirs.parent.mkdir()
    theirs.write_text("[Timer]\n")
    with pytest.raises(ScheduleError, match="not written by kvmfleet"):
        jobs.install(made(state), {}, machine.systemd)
    assert theirs.read_text() == "[Timer]\n"


def test_a_timer_that_lost_its_service_gets_another(machine: Machine, state: Path) -> None:
    jobs.install(made(state), {}, machine.systemd)
    (machine.systemd.folder / "kvmfleet-drift.service").unlink()
    assert jobs.install(made(state), {}, machine.systemd) == ("installed kvmfleet-drift.timer, every 1h",)


def test_nothing_is_written_where_no_systemd_runs(machine: Machine, state: Path) -> None:
    machine.refuses = "System has not been booted with systemd as init system (PID 1). Can't operate."
    with pytest.raises(ScheduleError, match="not been booted") as caught:
        jobs.install(made(state), {}, machine.systemd)
    assert "--print-cron" in caught.value.hint
    assert not state.exists()
    assert not machine.systemd.folder.exists()


def test_removing_leaves_nothing_but_what_others_added(machine: Machine, state: Path) -> None:
    jobs.install(made(state), {"A": "1"}, machine.systemd)
    jobs.recorded("drift", lambda: 0)
    (machine.systemd.folder / "kvmfleet-drift.service.d").mkdir()
    left = jobs.remove(made(state), machine.systemd)
    assert left == (f"{machine.systemd.folder}/kvmfleet-drift.service.d",)
    assert [path.name for path in machine.systemd.folder.iterdir()] == ["kvmfleet-drift.service.d"]
    assert list((state / "schedules").iterdir()) == []
    assert {"stop kvmfleet-drift.timer", "stop kvmfleet-drift.service", "disable kvmfleet-drift.timer"} <= {
        *machine.told
    }


def test_schedules_are_found_by_name_and_alone_without(machine: Machine, state: Path) -> None:
    with pytest.raises(UsageError, match="There is no schedule on this machine") as caught:
        jobs.find("", machine.systemd)
    assert caught.value.hint == "Make one: kvmfleet schedule install"
    for name in ("a", "b"):
        jobs.install(made(state, name=name), {}, machine.systemd)
    assert jobs.find("b", machine.systemd).name == "b"
    with pytest.raises(UsageError, match="several") as caught:
        jobs.find("", machine.systemd)
    assert caught.value.hint == "Name one of: a, b"
    with pytest.raises(UsageError, match="no schedule c"):
        jobs.find("c", machine.systemd)


HOLDER = """
import sys
from orchestrator.schedule import jobs
def work():
    print("works", flush=True)
    sys.stdin.read()
    return 2
jobs.recorded(sys.argv[1], work)
"""


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[str]]:
    """Another process in the middle of a run of the schedule."""
    command = [sys.executable, "-c", HOLDER, "drift"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdout
        assert child.stdout.readline() == "works\n"
        try:
            yield child
        finally:
            child.kill()


def test_a_second_run_looks_at_nothing_and_says_who_does(holder: subprocess.Popen[str]) -> None:
    with pytest.raises(LockedError, match=f"process {holder.pid}, since 2"):
        jobs.recorded("drift", lambda: pytest.fail("it ran"))
    assert jobs.recorded("other", lambda: 0) == 0
    holder.communicate("")
    assert jobs.recorded("drift", lambda: 0) == 0


def test_on_a_full_disk_it_looks_and_then_is_an_error_with_a_way_out(state: Path) -> None:
    looked: list[int] = []
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))  # a note does not fit
    try:
        with pytest.raises(ScheduleError, match=r"schedules/drift\.json: ") as caught:
            jobs.recorded("drift", lambda: looked.append(1) or 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "have room" in caught.value.hint
    assert looked == [1]
    assert jobs.recorded("drift", lambda: 0) == 0


def known(machine: Machine, state: Path) -> jobs.Status:
    return jobs.status(made(state), machine.systemd)


@pytest.mark.parametrize(
    ("code", "result", "exit_code"),
    [(0, "in-sync", 0), (2, "drift", 2), (1, "could-not-tell", 1), (130, "interrupted", 1)],
)
def test_how_a_run_went_is_known_afterwards(
    machine: Machine, state: Path, code: int, result: str, exit_code: int
) -> None:
    assert (known(machine, state).result, known(machine, state).exit_code) == ("never-run", 1)
    jobs.recorded("drift", lambda: code)
    found = known(machine, state)
    assert (found.result, found.exit_code, found.problem) == (result, exit_code, "")
    assert found.next_s == 1795777200.0
    assert found.journal == ("journalctl", "--unit", "kvmfleet-drift.service")


def test_a_run_that_raised_or_was_interrupted_is_known_too(machine: Machine, state: Path) -> None:
    def fail(error: BaseException) -> int:
        raise error

    for error, code in ((ScheduleError("x"), 1), (KeyboardInterrupt(), 130)):
        with pytest.raises(type(error)):
            jobs.recorded("drift", lambda error=error: fail(error))
        last = known(machine, state).last
        assert last
        assert last.exit_status == code


def test_a_run_that_goes_on_is_shown_beside_the_last_result(
    machine: Machine, state: Path, holder: subprocess.Popen[str]
) -> None:
    found = known(machine, state)
    assert (found.result, found.running_since_s is not None, found.problem) == ("never-run", True, "")
    holder.communicate("")
    assert (known(machine, state).result, known(machine, state).running_since_s) == ("drift", None)


def test_a_run_that_was_killed_is_not_taken_for_its_predecessor(
    machine: Machine, state: Path, holder: subprocess.Popen[str]
) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    machine.shown["kvmfleet-drift.service"] = {"Result": "oom-kill", "ExecMainStatus": "9"}
    found = known(machine, state)
    assert (found.result, found.exit_code) == ("could-not-tell", 1)
    assert found.problem.endswith("left no result: oom-kill 9")


@pytest.mark.parametrize(
    ("status", "service", "code"),
    [
        (0, {"Result": "success", "ExecMainStatus": "0"}, 0),
        (0, {"Result": "success", "ExecMainStatus": "2"}, 2),
        (1, {"Result": "exit-code", "ExecMainStatus": "1"}, 1),
        (1, {"Result": "exit-code", "ExecMainStatus": "130"}, 130),
        (1, {"Result": "exit-code", "ExecMainStatus": "226"}, None),
        (1, {"Result": "resources", "ExecMainStatus": "0"}, None),
        (1, {"Result": "success", "ExecMainStatus": "0"}, None),  # of the run before: this one was not started
    ],
)
def test_a_run_at_once_ends_as_drift_did_and_never_well_where_it_did_not_run(
    machine: Machine, state: Path, status: int, service: Mapping[str, str], code: int | None
) -> None:
    machine.shown["kvmfleet-drift.service"] = dict(service)
    machine.fails = {"start kvmfleet-drift.service": status}
    if code is not None:
        assert jobs.start(made(state), machine.systemd) == code
        return
    with pytest.raises(ScheduleError, match=r"kvmfleet-drift\.service: "):
        jobs.start(made(state), machine.systemd)


def test_a_run_that_the_next_one_has_followed_already_ends_as_it_did_itself(machine: Machine, state: Path) -> None:
    """What systemd shows is then of the next one."""
    machine.shown["kvmfleet-drift.service"] = {"ActiveState": "activating", "Result": "success", "ExecMainStatus": "0"}

    def run(argv: Sequence[str], timeout_s: float | None) -> subprocess.CompletedProcess[str]:
        if "start" in argv:
            jobs.recorded("drift", lambda: 2)
        return machine.run(argv, timeout_s)

    assert jobs.start(made(state), machine.systemd._replace(run=run)) == 2


def test_what_a_run_said_is_read_once_the_journal_has_all_of_it(machine: Machine, state: Path) -> None:
    machine.fails["--sync"] = 1  # as for a user who is not root
    jobs.said(made(state), machine.systemd, 5.5)
    assert machine.told == ["--sync", "--unit kvmfleet-drift.service --quiet --output=cat --since=@5"]


FAILED = {"ActiveState": "failed", "Result": "exit-code", "StateChangeTimestamp": "Thu 2099-01-01 00:00:00 UTC"}


@pytest.mark.parametrize(
    ("service", "problem"),
    [
        (FAILED | {"ExecMainStatus": "200"}, "systemd could not run it: the folder /srv cannot be entered"),
        (FAILED | {"ExecMainStatus": "203"}, f"systemd could not run it: {made().python} cannot be executed"),
        (FAILED | {"ExecMainStatus": "226"}, "systemd could not run it: exit-code 226"),
        (FAILED | {"Result": "resources", "ExecMainStatus": "0"}, "systemd could not run it: resources 0"),
        (FAILED | {"ExecMainStatus": "1"}, ""),  # that is what drift said
        (FAILED | {"ExecMainStatus": "200", "StateChangeTimestamp": "Thu 2009-01-01 00:00:00 UTC"}, ""),  # run since
    ],
)
def test_a_service_that_did_not_come_to_run_is_not_taken_for_the_run_before(
    machine: Machine, state: Path, service: Mapping[str, str], problem: str
) -> None:
    jobs.recorded("drift", lambda: 1)
    machine.shown["kvmfleet-drift.service"] = dict(service)
    assert known(machine, state).problem == problem


@pytest.mark.parametrize(
    ("timer", "problem"),
    [
        ({"ActiveState": "inactive"}, "its timer is inactive"),
        (
            {"ActiveState": "active", "UnitFileState": "disabled"},
            "its timer is disabled",
        ),  # until the next boot it goes on
    ],
)
def test_a_timer_that_is_off_passes_for_nothing(
    machine: Machine, state: Path, timer: Mapping[str, str], problem: str
) -> None:
    jobs.recorded("drift", lambda: 0)
    machine.shown["kvmfleet-drift.timer"] = dict(timer)
    found = known(machine, state)
    assert (found.result, found.exit_code, found.next_s, found.problem) == ("in-sync", 1, None, problem)


def test_a_note_that_was_cut_short_counts_as_none(machine: Machine, state: Path) -> None:
    jobs.recorded("drift", lambda: 0)
    (state / "schedules/drift.json").write_text('{"last": {"beg')
    assert known(machine, state).result == "never-run"
    assert jobs.recorded("drift", lambda: 2) == 2
    assert known(machine, state).result == "drift"


def test_what_lies_in_a_folder_that_a_service_does_not_see_is_refused() -> None:
    for place in ("/tmp", "/tmp/x/hosts.yml", "/var/tmp/x"):
        with pytest.raises(UsageError, match="does not see"):
            refuse_passing(place)
    refuse_passing("/tmpfoo/x")


@pytest.fixture
def install(tmp_path: Path) -> Iterator[object]:
    """Runs `kvmfleet schedule install` where an inventory is; gives the finished process."""
    (tmp_path / "hosts.yml").write_text("kvm_hosts: {hosts: {a: {ansible_connection: ssh}}}\n")

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("KVMFLEET_", "SSH_"))}
        return subprocess.run(
            [sys.executable, "-P", "-m", "orchestrator", "schedule", "install", "--scope=user", *arguments],
            cwd=tmp_path,
            env=inherited | {"PYTHONPATH": str(ROOT), **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    return run


@pytest.mark.ansible
def test_options_of_drift_are_passed_on_with_absolute_paths(install, tmp_path: Path) -> None:
    (tmp_path / "id").touch()
    done = install(
        "-i", "hosts.yml", "--every=1h", "-l", "a", "-e", "x=a b", "-vv", "--strict", "-u", "me", "--key-file=id",
        "--print-units", KVMFLEET_STATE_DIR="state", KVMFLEET_PYTHON="x",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = units.schedule_of(done.stdout)
    assert found
    assert found.options == (
        f"--inventory={tmp_path}/hosts.yml", "--limit=a", "--extra-vars=x=a b", "--user=me",
        f"--private-key={tmp_path}/id", "--verbose", "--verbose", "--strict",
    )  # fmt: skip
    assert (found.folder, found.state, found.scope, found.sealed) == (str(tmp_path), f"{tmp_path}/state", "user", True)
    assert "put a secret into a file" in done.stderr
    assert not (tmp_path / "state").exists()


def with_store(ask: Callable[[click.Context], T], *arguments: str) -> T:
    """What `ask` gives where these are the arguments of a command that can be told of a history."""
    (hidden,) = (option for option in drift.params if option.name == "store")
    assert not hidden.expose_value
    answers: list[T] = []

    @click.command(params=[_with_its_value(hidden)])
    @click.pass_context
    def command(context: click.Context, /, store: str) -> None:
        answers.append(ask(context))

    command.main(list(arguments), standalone_mode=False)
    return answers[0]


def test_an_option_of_drift_that_hides_its_value_is_passed_on_as_well() -> None:
    words = with_store(lambda context: list(_words(context)), "--store", "sqlite:////srv/x")
    assert words == ["--store=sqlite:////srv/x"]


@pytest.mark.parametrize("kind", ["sqlite", "sqlite+pysqlite"])
@pytest.mark.parametrize("where", ["{here}/ours/h.sqlite3", "ours/h.sqlite3", "{here}/ours/h.sqlite3?timeout=9"])
def test_the_folder_of_the_history_is_writable_for_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, where: str
) -> None:
    monkeypatch.chdir(tmp_path)
    state, url = tmp_path / "state", f"{kind}:///{where.format(here=tmp_path)}"
    monkeypatch.setenv("KVMFLEET_STATE_DIR", str(state))

    def writable(*arguments: str) -> list[str]:
        return with_store(lambda context: list(_writable(context, state)), *arguments)[2:]

    assert writable() == [str(state)]
    with pytest.raises(UsageError, match=f"there is no folder {tmp_path}/ours"):
        writable("--store", url)
    (tmp_path / "ours").mkdir()
    assert writable("--store", url) == [f"{tmp_path}/ours"]
    monkeypatch.setenv("KVMFLEET_STORE", url)
    assert writable() == [f"{tmp_path}/ours"]
    monkeypatch.setenv("KVMFLEET_STORE", "postgresql://db/x")
    assert writable() == []


def test_a_history_that_a_service_does_not_see_is_refused() -> None:
    for url, refused in (("sqlite+pysqlite:////tmp/h.sqlite3", True), ("sqlite:////srv/h.sqlite3", False)):
        with pytest.raises(UsageError, match="does not see") if refused else nullcontext():
            with_store(lambda context: _refuse_passing(context, made(), Fleet((), ())), "--store", url)


@pytest.mark.ansible
def test_a_local_host_is_seen_as_it_is(install) -> None:
    done = install("-i", "hosts.yml", "-e", "ansible_connection=local", "--every=1h", "--print-units")
    assert done.returncode == 0, done.stderr
    assert "NoNewPrivileges" not in done.stdout
    assert "not sealed off" in done.stderr


@pytest.mark.ansible
def test_a_crontab_shows_no_secret_and_names_what_is_missing(install) -> None:
    done = install(
        "-i", "hosts.yml", "--every=1d", "--print-cron",
        KVMFLEET_STORE="postgresql://u:hunter2@db/x", https_proxy="p:w",
        ANSIBLE_BECOME_PASS="hunter2", ANSIBLE_PRIVATE_KEY_PASSPHRASE="hunter2", ANSIBLE_HOST_KEY_CHECKING="False",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("0 0 * * * cd ")
    assert "hunter2" not in done.stdout + done.stderr
    assert "ANSIBLE_HOST_KEY_CHECKING=False" in done.stdout
    secret = "ANSIBLE_BECOME_PASS, ANSIBLE_PRIVATE_KEY_PASSPHRASE, KVMFLEET_STORE, https_proxy"
    assert f"set in the crontab above the line, as they may be secret: {secret}" in done.stderr


@pytest.mark.parametrize(
    ("mode", "file", "variable", "says"),
    [
        (0o644, "json://127.0.0.1:1\n", "", "its mode is 0644"),
        (0o600, "# none\n", "", "names no URL to send to"),
        (0o600, "json://127.0.0.1:1\nnonsense\n", "", "apprise cannot send to line 2 of urls"),
        (0o600, "", "nonsense", "apprise cannot send to URL 1 of KVMFLEET_NOTIFY"),
    ],
)
def test_a_schedule_whose_runs_could_tell_nobody_is_refused(install, tmp_path, mode, file, variable, says) -> None:
    (tmp_path / "urls").write_text(file)
    (tmp_path / "urls").chmod(mode)
    done = install(
        "-i", "hosts.yml", "--every=1d", "--print-cron", *([] if variable else ["--notify=urls"]),
        KVMFLEET_NOTIFY=variable,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert says in done.stderr


@pytest.mark.ansible
def test_a_crontab_names_whom_to_tell_among_what_is_missing(install) -> None:
    done = install("-i", "hosts.yml", "--every=1d", "--print-cron", KVMFLEET_NOTIFY="json://127.0.0.1:1")
    assert done.returncode == 0, done.stderr
    assert "as they may be secret: KVMFLEET_NOTIFY" in done.stderr


@pytest.mark.ansible
def test_an_option_of_which_nothing_is_said_does_not_become_this_folder(install) -> None:
    done = install("-i", "hosts.yml", "--every=1d", "--print-cron", "--private-key=", "--limit=")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("hosts.yml\n")


@pytest.mark.ansible
def test_a_crontab_sees_the_folders_that_a_service_does_not(install) -> None:
    done = install("-i", "hosts.yml", "--every=1d", "--print-cron", "--scope=system")
    assert (done.returncode, done.stdout[:9]) == (0, "0 0 * * *"), done.stderr


@pytest.mark.ansible
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--every=1h"], "No inventory was parsed"),
        (["-i", "nowhere.yml", "--every=1h"], "inventory nowhere.yml: no such file"),
        (["-i", "hosts.yml"], "When should it run?"),
        (["-i", "hosts.yml", "--every=1h", "--calendar=daily"], "When should it run?"),
        (["-i", "hosts.yml", "--calendar=daily", "--print-cron"], "cron does not know the calendar"),
        (["-i", "hosts.yml", "--every=1h", "--print-cron", "--print-units"], "--print-cron and --print-units"),
        (["-i", "hosts.yml", "--every=1h", "-k"], "--ask-pass: nobody is there"),
        (["-i", "hosts.yml", "--every=1h", "-K"], "--ask-become-pass: nobody is there"),
        (["-i", "hosts.yml", "--every=1h", "--name=a b"], "--name 'a b' is no name"),
        (["-i", "hosts.yml", "--every=1h", "--vault-id=prompt"], "can be read only once"),
        (["-i", "hosts.yml", "--every=1h", "--key-file=gone"], "gone: cannot be read"),
        (["-i", "hosts.yml", "--every=1h", "accept"], "unexpected extra argument"),
    ],
)
def test_what_could_not_run_later_is_refused_now(install, arguments: list[str], said: str) -> None:
    done = install(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
