"""scripts/test and .ci/run with stand-ins for the tools: what they run, leave out, and end with."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# The tools as scripts/test calls them. `python` answers for the list of missing packages, `id` for who we are.
TOOLS = {
    "pytest": 'echo "pytest $*"; test "${FAILS:-}" != "$1"',
    "python": 'case "$3" in *sshd*) echo "${LACKS:-}"; exit ;; esac\n'
    'case "$3" in *which*chromium*) test -f "$HERE/installed" || echo "${BROWSERLESS:-}"; exit ;; esac\n'
    'case "$3" in *install*) echo installed >&2; : > "$HERE/installed" ;; esac\n'
    'test -f "$HERE/installed" || echo "${MISSING:-}"',
    "id": 'echo "${WHO:-0}"',
}


class Checkout:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("scripts/test", ".ci/run"):
            (folder / name).parent.mkdir()
            shutil.copy(ROOT / name, folder / name)
        self.script("scripts/venv", "exit ${NO_VENV:-0}")
        self.script("scripts/lint", 'test "${FAILS:-}" != lint')
        for name, text in TOOLS.items():
            self.script(f".venv/bin/{name}", text)

    def script(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def run(self, name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("KVMFLEET_")}
        return subprocess.run(
            [self.folder / name, *arguments],
            env=inherited | {"HERE": str(self.folder)} | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )


PARTS = ("lint: ", "unit: ", "ansible: ", "browser: ", "hosts: ", "vm: ")


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def parts(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines at the end: one for each part."""
    return [line for line in done.stdout.splitlines() if line.startswith(PARTS)]


def test_without_arguments_everything_runs(checkout: Checkout) -> None:
    done = checkout.run("scripts/test")
    assert done.returncode == 0
    assert [line.split(" in ")[0] for line in parts(done)] == [
        "lint: passed",
        "unit: passed",
        "ansible: passed",
        "browser: passed",
        "hosts: passed",
        "vm: passed",
    ]


def test_a_unit_test_belongs_to_one_of_two_parts(checkout: Checkout) -> None:
    done = checkout.run("scripts/test", "unit", "ansible")
    assert "pytest tests/unit -m not ansible --numprocesses" in done.stdout
    assert "pytest tests/unit -m ansible --numprocesses" in done.stdout


def test_a_part_can_be_chosen_and_the_rest_goes_to_pytest(checkout: Checkout) -> None:
    done = checkout.run("scripts/test", "unit", "--", "-k", "two words")
    assert "-k two words" in done.stdout
    assert len(parts(done)) == 1


def test_a_part_that_failed_stops_no_other_and_fails_the_whole(checkout: Checkout) -> None:
    done = checkout.run("scripts/test", FAILS="lint")
    assert done.returncode == 1
    assert parts(done)[0].startswith("lint: FAILED")
    assert parts(done)[1].startswith("unit: passed")


BESIDE = """
wait_for() { until test -e "$HERE/$1"; do sleep 0.05; done; }
case $1 in
    tests/vm) : > "$HERE/begun"; wait_for rest; echo "the end of vm" ;;
    tests/unit) wait_for begun ;;
    tests/hosts) echo "nice $(nice)"; : > "$HERE/rest" ;;
esac
"""


def test_the_machine_is_at_work_beside_the_other_parts_which_give_way_and_speaks_in_its_turn(
    checkout: Checkout,
) -> None:
    checkout.script(".venv/bin/pytest", BESIDE)
    done = checkout.run("scripts/test", "unit", "hosts", "vm")
    assert done.returncode == 0
    lowered = min(os.nice(0) + 10, 19)
    hosts, vm = done.stdout.partition("== hosts ==")[2].split("== vm ==")
    assert hosts.strip() == f"nice {lowered}"
    assert vm.strip().splitlines()[0] == "the end of vm"


def test_a_machine_part_that_is_killed_is_no_success(checkout: Checkout) -> None:
    checkout.script(".venv/bin/pytest", 'test "$1" != tests/vm || kill -KILL $PPID')
    done = checkout.run("scripts/test", "unit", "vm")
    assert done.returncode == 1
    assert "vm: FAILED, it was killed" in parts(done)


def test_an_unknown_part_is_named(checkout: Checkout) -> None:
    done = checkout.run("scripts/test", "units")
    assert done.returncode == 1
    assert "'units' is not a part" in done.stderr


def test_without_an_environment_nothing_runs(checkout: Checkout) -> None:
    done = checkout.run("scripts/test", NO_VENV="1")
    assert (done.returncode, done.stdout) == (1, "")


def test_without_root_the_last_line_says_why_the_hosts_were_left_out(checkout: Checkout) -> None:
    done = checkout.run("scripts/test", WHO="1000")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "hosts: skipped, this needs root"


def test_packages_that_are_missing_are_named_and_not_installed(checkout: Checkout) -> None:
    done = checkout.run("scripts/test", MISSING="mmdebstrap nftables")
    assert done.returncode == 0
    assert "packages are missing: mmdebstrap nftables" in done.stdout.splitlines()[-1]
    assert not (checkout.folder / "installed").exists()


def test_yes_installs_them(checkout: Checkout) -> None:
    done = checkout.run("scripts/test", "--yes", MISSING="mmdebstrap nftables")
    assert (checkout.folder / "installed").exists()
    assert [line.split(" in ")[0] for line in parts(done)[-2:]] == ["hosts: passed", "vm: passed"]


def test_without_a_browser_its_part_is_left_out_and_ci_is_red(checkout: Checkout) -> None:
    done = checkout.run("scripts/test", "--yes", "browser", WHO="1000", BROWSERLESS="chromium fonts-dejavu-core")
    assert done.returncode == 0
    assert parts(done)[0].startswith("browser: skipped, packages are missing: chromium fonts-dejavu-core")
    done = checkout.run(".ci/run", WHO="1000", BROWSERLESS="chromium")
    assert "the part 'browser' did not run" in done.stderr


def test_yes_installs_a_browser(checkout: Checkout) -> None:
    done = checkout.run("scripts/test", "--yes", "browser", BROWSERLESS="chromium fonts-dejavu-core")
    assert [line.split(" in ")[0] for line in parts(done)] == ["browser: passed"]
    assert (checkout.folder / "installed").exists()


def test_ci_is_green_when_everything_ran(checkout: Checkout) -> None:
    assert checkout.run(".ci/run").returncode == 0


@pytest.mark.parametrize("fails", ["lint", "tests/unit", "tests/browser", "tests/hosts", "tests/vm"])
def test_ci_is_red_when_a_part_failed(checkout: Checkout, fails: str) -> None:
    assert checkout.run(".ci/run", FAILS=fails).returncode != 0


def test_ci_is_red_when_a_part_was_left_out(checkout: Checkout) -> None:
    done = checkout.run(".ci/run", WHO="1000")
    assert done.returncode != 0
    assert "the part 'hosts' did not run" in done.stderr


@pytest.mark.parametrize("part", ["unit", "ansible"])
def test_the_last_line_says_which_tools_there_are_not_to_test_with(checkout: Checkout, part: str) -> None:
    done = checkout.run("scripts/test", part, LACKS="openssh-server mtools")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].startswith("tests with real tools: skipped, packages are missing: openssh")


def test_yes_installs_the_tools_to_test_with(checkout: Checkout) -> None:
    done = checkout.run("scripts/test", "unit", "--yes", LACKS="openssh-server mtools")
    assert "installed" in done.stderr
    assert "skipped" not in done.stdout


def test_ci_is_red_when_tests_were_skipped_for_want_of_a_package(checkout: Checkout) -> None:
    checkout.script(".venv/bin/pytest", 'echo "SKIPPED [9] tests/unit/test_x.py:1: openssh-server is not installed"')
    done = checkout.run(".ci/run")
    assert done.returncode == 1
    assert "for want of a package" in done.stderr


@pytest.mark.parametrize(
    ("skipped", "code"),
    [
        ("SKIPPED [1] tests/hosts/test_x.py:1: needs systemd-nspawn", 1),
        ("SKIPPED [1] tests/hosts/test_x.py:1: this machine has no /dev/kvm", 0),
        ("10 passed in 5s", 0),
    ],
)
def test_ci_is_red_when_a_test_on_real_hosts_was_skipped_without_need(
    checkout: Checkout, skipped: str, code: int
) -> None:
    checkout.script(".venv/bin/pytest", f'test "$1" = tests/unit || echo "{skipped}"')
    assert checkout.run(".ci/run").returncode == code
