"""The launcher with a stand-in for Python on its PATH: what it decides, says and leaves behind."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from patience import until

ROOT = Path(__file__).resolve().parents[2]
TOOLS = (
    "cat",
    "cmp",
    "cp",
    "dirname",
    "env",
    "flock",
    "id",
    "mkdir",
    "mv",
    "readlink",
    "rm",
    "rmdir",
    "sh",
    "sleep",
    "tail",
)

# Answers as a Python does: the look at it, `-m venv`, `-m pip`, the path file, and `-m orchestrator`.
PYTHON = """#!/bin/sh
echo "${0##*/} $*" >> "$CALLS"
case "$1 $2" in
    "-I -c") [ ! -f "$BIN/look" ] || exit "$(cat "$BIN/look")"; echo "$BIN/${0##*/}" ;;
    "-P -m")
        case $3 in
            venv) mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
            pip) [ ! -f "$BIN/pip" ] || . "$BIN/pip" ;;
            orchestrator) shift 3; echo "cli: $*" ;;
        esac
        ;;
esac
"""


class Machine:
    """A checkout, and a PATH on which nothing is that a test did not put there."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.checkout = folder / "a checkout"
        self.calls = folder / "calls"
        (self.checkout / "scripts").mkdir(parents=True)
        for name in ("kvmfleet", "scripts/venv"):
            shutil.copy(ROOT / name, self.checkout / name)
        for name in ("requirements.lock", "requirements-dev.lock"):
            (self.checkout / name).write_text(f"one=={name}\n")
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool) or pytest.skip(f"no {tool} here"))
        self.environment = {"PATH": str(self.bin), "BIN": str(self.bin), "CALLS": str(self.calls)}

    @property
    def venv(self) -> Path:
        return self.checkout / ".venv"

    def program(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def run(
        self, *arguments: str, launcher: Path | None = None, shell: tuple[str, ...] = (), **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*shell, str(launcher or self.checkout / "kvmfleet"), *arguments],
            env=self.environment | environment,
            cwd=self.bin,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def called(self, what: str) -> int:
        return self.calls.read_text().count(what) if self.calls.exists() else 0


@pytest.fixture
def bare(tmp_path: Path) -> Machine:
    """A machine without any Python."""
    return Machine(tmp_path)


@pytest.fixture
def machine(bare: Machine) -> Machine:
    """A machine with a Python that is good enough."""
    bare.program("python3.12", PYTHON)
    return bare


def shells() -> list[tuple[str, ...]]:
    return [shell for shell in (("dash",), ("bash", "--posix"), ("busybox", "sh")) if shutil.which(shell[0])]


def test_the_first_run_makes_the_environment_and_hands_the_arguments_over(machine: Machine) -> None:
    done = machine.run("validate", "-l", "two words")
    assert (done.returncode, done.stdout) == (0, "cli: validate -l two words\n")
    assert "installing Ansible" in done.stderr
    assert machine.called("--require-hashes") == 1
    assert (machine.venv / ".kvmfleet/requirements.lock").read_text() == "one==requirements.lock\n"


def test_no_module_that_lies_where_the_user_stands_is_imported(machine: Machine) -> None:
    machine.run("validate")
    calls = re.findall(r"^python\S* (\S+)", machine.calls.read_text(), re.MULTILINE)
    assert (len(calls), set(calls)) == (5, {"-I", "-P"})


def test_the_second_run_is_silent_and_makes_nothing(machine: Machine) -> None:
    machine.run()
    machine.calls.unlink()
    done = machine.run("status")
    assert (done.stdout, done.stderr) == ("cli: status\n", "")
    assert machine.calls.read_text() == "python -P -m orchestrator status\n"


@pytest.mark.parametrize("shell", shells(), ids=lambda shell: shell[0])
def test_every_posix_shell_runs_it(machine: Machine, shell: tuple[str, ...]) -> None:
    absolute = (shutil.which(shell[0]) or "", *shell[1:])
    assert machine.run(launcher=machine.checkout / "scripts/venv", shell=absolute).returncode == 0
    assert machine.run("x", shell=absolute).stdout == "cli: x\n"


def test_a_changed_lock_is_noticed(machine: Machine) -> None:
    machine.run()
    (machine.checkout / "requirements.lock").write_text("two==2\n")
    done = machine.run()
    assert "changed" in done.stderr
    assert (machine.called("-m pip"), machine.called("-m orchestrator")) == (2, 2)


def test_a_moved_checkout_is_noticed(machine: Machine) -> None:
    machine.run()
    machine.checkout = machine.checkout.rename(machine.checkout.with_name("elsewhere"))
    assert machine.run().returncode == 0
    assert machine.called("-m pip") == 2


def test_an_environment_whose_python_went_away_is_made_again(machine: Machine) -> None:
    machine.run()
    (machine.venv / "bin/python").unlink()
    (machine.venv / "bin/python").symlink_to("/nowhere/python3.11")
    assert machine.run("x").stdout == "cli: x\n"


def test_the_tools_of_the_tests_stay_when_the_lock_changes(machine: Machine) -> None:
    machine.run("--dev", launcher=machine.checkout / "scripts/venv")
    (machine.checkout / "requirements.lock").write_text("two==2\n")
    machine.run()
    assert machine.called("requirements-dev.lock") == 2
    assert machine.called("/requirements.lock") == 0


def test_a_link_to_the_launcher_finds_its_checkout(machine: Machine) -> None:
    link = machine.bin / "kvmfleet"
    link.symlink_to(machine.checkout / "kvmfleet")
    assert machine.run("x", launcher=link).stdout == "cli: x\n"
    assert machine.venv.is_dir()


def test_a_relative_venv_counts_from_where_the_user_stands(machine: Machine) -> None:
    assert machine.run("x", KVMFLEET_VENV="mine").stdout == "cli: x\n"
    assert (machine.bin / "mine/bin/python").exists()
    assert not machine.venv.exists()


def test_a_run_that_was_killed_leaves_nothing_that_counts_as_made(machine: Machine) -> None:
    (machine.bin / "pip").write_text("kill -9 $PPID; exit 1\n")
    assert machine.run().returncode != 0
    (machine.bin / "pip").unlink()
    assert machine.run("x").stdout == "cli: x\n"
    assert machine.called("-m pip") == 2


def test_ctrl_c_ends_with_130_and_the_next_run_starts_over(machine: Machine) -> None:
    (machine.bin / "pip").write_text(': > "$BIN/begun"; exec sleep 90\n')  # a child that begins later misses Ctrl-C
    running = subprocess.Popen(
        [machine.checkout / "kvmfleet"],
        env=machine.environment,
        start_new_session=True,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a test runner may ignore it, and pass that on
    )
    until((machine.bin / "begun").exists)
    os.killpg(running.pid, signal.SIGINT)
    assert running.wait(60) in (130, -signal.SIGINT)
    (machine.bin / "pip").unlink()
    assert machine.run("x").stdout == "cli: x\n"


def test_two_at_once_make_one_environment(machine: Machine) -> None:
    (machine.bin / "pip").write_text('until [ -e "$BIN/go" ]; do sleep 0.1; done\n')
    told = machine.bin / "told"
    with told.open("ab") as errors:
        both = [
            subprocess.Popen(
                [machine.checkout / "kvmfleet", name],
                env=machine.environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
            for name in ("a", "b")
        ]
    until(lambda: "waiting for it" in told.read_text())
    (machine.bin / "go").touch()
    said = [process.communicate(timeout=60)[0] for process in both]
    assert sorted(said) == ["cli: a\n", "cli: b\n"]
    assert machine.called("-m pip") == 1


def test_the_newest_python_wins_and_one_that_does_not_fit_is_passed_over(machine: Machine) -> None:
    machine.program("python3.14", "#!/bin/sh\nexit 127\n")  # as the shim of a version manager does
    machine.program("python3.13", PYTHON)
    machine.run()
    assert machine.called("python3.13 -P -m venv") == 1


def test_a_python_without_venv_is_passed_over_for_one_that_has_it(machine: Machine) -> None:
    machine.program("python3.13", "#!/bin/sh\nexit 3\n")
    assert machine.run("x").stdout == "cli: x\n"
    assert machine.called("python3.12 -P -m venv") == 1


def test_the_users_choice_of_python_is_honoured(machine: Machine) -> None:
    chosen = machine.program("mine", PYTHON)
    machine.run(KVMFLEET_PYTHON=str(chosen))
    assert machine.called("mine -P -m venv") == 1


def test_a_wrong_choice_of_python_is_named(machine: Machine) -> None:
    done = machine.run(KVMFLEET_PYTHON="/nowhere/python")
    assert done.returncode == 1
    assert "KVMFLEET_PYTHON=/nowhere/python is not a Python 3.11 to 3.14" in done.stderr


@pytest.mark.parametrize(
    ("manager", "command"),
    [
        ("apt-get", "apt-get install -y python3-venv"),
        ("dnf", "dnf install -y python3.12"),
        ("zypper", "zypper --non-interactive install python311"),
        ("pacman", "pacman -S --noconfirm python"),
        ("apk", "apk add python3"),
    ],
)
def test_without_a_terminal_and_without_yes_the_exact_command_is_said_and_not_run(
    bare: Machine, manager: str, command: str
) -> None:
    bare.program(manager, f'#!/bin/sh\necho "{manager} $*" >> "$CALLS"\n')
    done = bare.run("lab", "up")
    assert done.returncode == 1
    assert command in done.stderr
    assert "no Python 3.11 to 3.14 was found" in done.stderr
    assert not bare.calls.exists()
    assert not bare.venv.exists()


def test_a_python_without_ensurepip_is_named(bare: Machine) -> None:
    bare.program("python3.11", "#!/bin/sh\nexit 3\n")
    bare.program("apt-get", "#!/bin/sh\nexit 1\n")
    done = bare.run()
    assert done.returncode == 1
    assert "python3.11 has no venv module with pip (ensurepip)" in done.stderr


def test_on_an_unknown_distribution_the_user_is_told_what_to_look_for(bare: Machine) -> None:
    done = bare.run("--yes")
    assert done.returncode == 1
    assert "Install one, or let KVMFLEET_PYTHON name it." in done.stderr


def apt_that_installs(machine: Machine) -> None:
    machine.program("sudo", '#!/bin/sh\nexec "$@"\n')
    machine.program("look", "3")
    machine.program("python3.11", PYTHON)
    machine.program("apt-get", '#!/bin/sh\necho "apt-get $*" >> "$CALLS"\n[ "$1" = update ] || rm -f "$BIN/look"\n')


def test_yes_anywhere_installs_and_goes_on(bare: Machine) -> None:
    apt_that_installs(bare)
    done = bare.run("lab", "up", "--yes")
    assert (done.returncode, done.stdout) == (0, "cli: lab up --yes\n")
    assert bare.called("apt-get update") == 1
    assert bare.called("apt-get install -y python3-venv") == 1


def test_yes_after_the_end_of_options_is_no_answer(bare: Machine) -> None:
    apt_that_installs(bare)
    assert bare.run("lab", "ssh", "a", "--", "--yes").returncode == 1
    assert bare.called("apt-get") == 0


def test_an_installation_that_fails_is_not_silent(bare: Machine) -> None:
    apt_that_installs(bare)
    bare.program("apt-get", "#!/bin/sh\necho 'no such mirror' >&2\nexit 100\n")
    done = bare.run("--yes")
    assert done.returncode == 1
    assert "no such mirror" in done.stderr
    assert "this failed: " in done.stderr


@pytest.mark.parametrize(("answer", "code", "installs"), [("y", 0, 1), ("n", 1, 0), ("", 1, 0)])
def test_a_terminal_is_asked(bare: Machine, answer: str, code: int, installs: int) -> None:
    apt_that_installs(bare)
    ours, theirs = pty.openpty()
    asked = subprocess.Popen([bare.checkout / "kvmfleet"], env=bare.environment, stdin=theirs, stderr=theirs)
    os.close(theirs)
    os.write(ours, f"{answer}\n".encode())
    assert asked.wait(120) == code
    assert b"Install it with" in os.read(ours, 4096)
    os.close(ours)
    assert bare.called("apt-get install") == installs


def test_a_pipe_is_not_a_terminal_even_when_it_says_yes(bare: Machine) -> None:
    apt_that_installs(bare)
    done = subprocess.run(
        [bare.checkout / "kvmfleet"], env=bare.environment, input="y\n", capture_output=True, text=True
    )
    assert done.returncode == 1
    assert bare.called("apt-get") == 0


def test_pips_last_words_are_shown_with_what_usually_helps(machine: Machine) -> None:
    (machine.bin / "pip").write_text("echo 'ERROR: No matching distribution found'; exit 1\n")
    done = machine.run()
    assert done.returncode == 1
    assert "ERROR: No matching distribution found" in done.stderr
    assert "Check the network" in done.stderr
    assert "cli:" not in done.stdout


def test_a_folder_that_kvmfleet_did_not_make_is_left_alone(machine: Machine) -> None:
    home = machine.bin / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    done = machine.run(KVMFLEET_VENV=str(home))
    assert done.returncode == 1
    assert "was not made by kvmfleet" in done.stderr
    assert (home / "thesis.tex").read_text() == "years of work"


def test_a_checkout_that_cannot_be_written_says_how_to_put_the_environment_elsewhere(machine: Machine) -> None:
    done = machine.run(KVMFLEET_VENV="/proc/kvmfleet/venv")  # not even root makes a folder there
    assert done.returncode == 1
    assert "Let KVMFLEET_VENV name a folder that you can write." in done.stderr


def test_an_environment_of_somebody_else_says_how_to_have_ones_own(machine: Machine) -> None:
    machine.run()
    (machine.checkout / "requirements.lock").write_text("two==2\n")
    (machine.bin / "rm").unlink()
    machine.program("rm", "#!/bin/sh\necho 'rm: cannot remove' >&2\nexit 1\n")
    done = machine.run()
    assert done.returncode == 1
    hint = "Let KVMFLEET_VENV name a folder that you can write."
    assert done.stderr == f"kvmfleet: cannot write {machine.venv}.\n  {hint}\n"
