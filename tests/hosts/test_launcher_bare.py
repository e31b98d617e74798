"""The launcher in a bare Debian with Python and nothing else, so that a set-up step that we forgot shows."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKOUT = "/opt/kvmfleet"
COMMAND = "apt-get install -y python3-venv"

pytestmark = [pytest.mark.hosts, pytest.mark.slow]


class Bare:
    """A root file system in which commands run with this machine's network, and with its way to the package index."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        options = ["--quiet", "--register=no", "--keep-unit", "--as-pid2", "--pipe", "--resolv-conf=copy-host"]
        options += [f"--directory={self.root}", f"--chdir={CHECKOUT}", *way_to_the_index()]
        return subprocess.run(
            ["systemd-nspawn", *options, *command],
            env=os.environ | {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "SYSTEMD_LOG_LEVEL": "crit"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
        )

    def has(self, package: str) -> bool:
        return "install ok installed" in self.run("dpkg-query", "-W", "-f", "${Status}", package).stdout


def way_to_the_index() -> list[str]:
    """Options that give the container what pip needs here; certificates go where dpkg has nothing."""
    options = ["--bind-ro=/etc/pip.conf"] if Path("/etc/pip.conf").is_file() else []
    for name, value in os.environ.items():
        if not name.startswith("PIP_") and not name.lower().endswith(("_proxy", "_cert_file", "_ca_bundle")):
            continue
        if value.startswith("/") and Path(value).is_file():
            options.append(f"--bind-ro={value}:/mnt/{name}")
            value = f"/mnt/{name}"
        options.append(f"--setenv={name}={value}")
    return options


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def bare(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bare]:
    """Two suites: their Pythons differ, and with them the half of the lock that is installed."""
    root = tmp_path_factory.mktemp("bare") / request.param
    options = ["--quiet", "--variant=minbase", "--include=python3-minimal,python3"]
    subprocess.run(["mmdebstrap", *options, request.param, root], stdin=subprocess.DEVNULL, check=True, timeout=600)
    subprocess.run(["git", "clone", "--quiet", ROOT, f"{root}{CHECKOUT}"], check=True, timeout=60)
    yield Bare(root)
    shutil.rmtree(root)


def test_without_yes_nothing_is_installed_and_the_command_is_named(bare: Bare) -> None:
    done = bare.run("./kvmfleet", "--version")
    assert (done.returncode, done.stdout) == (1, "")
    assert COMMAND in done.stderr
    assert "ensurepip" in done.stderr
    assert not bare.has("python3-venv")
    assert not (bare.root / CHECKOUT.strip("/") / ".venv").exists()


def test_yes_installs_all_that_is_needed_and_the_second_run_is_silent(bare: Bare) -> None:
    first = bare.run("./kvmfleet", "lab", "down", "--yes")
    assert "installing Ansible" in first.stderr, first.stderr
    assert "There is no lab" in first.stderr, first.stderr  # so the CLI ran
    assert bare.has("python3-venv")

    second = bare.run("./kvmfleet", "--version")
    assert (second.returncode, second.stderr) == (0, "")
    assert second.stdout.startswith("kvmfleet")


def test_what_a_lab_lacks_is_named_with_its_command_and_not_installed(bare: Bare) -> None:
    done = bare.run("./kvmfleet", "lab", "up")
    assert done.returncode == 1
    assert "apt-get" in done.stderr
    assert "systemd-container" in done.stderr
    assert not bare.has("systemd-container")
