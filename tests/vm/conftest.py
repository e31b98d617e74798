"""One virtual machine for all tests with kvmfleet as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KVMFLEET = (sys.executable, "-P", "-m", "orchestrator")


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """State goes with the tests; the cache of images and packages stays, as a user's does."""
    state = tmp_path_factory.mktemp("state")
    return os.environ | {"KVMFLEET_STATE_DIR": str(state), "NO_COLOR": "1", "COLUMNS": "200"}


@pytest.fixture(scope="session")
def kvmfleet(environment):
    """Runs kvmfleet with arguments; gives the finished process."""

    def run(*arguments):
        argv = [str(a) for a in (*KVMFLEET, *arguments)]
        return subprocess.run(
            argv,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=3600,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def inventory(kvmfleet):
    """A lab of one Debian 12 machine, real-1: bare at first, removed at the end."""
    up = kvmfleet("lab", "up", "real", "--provider", "vm", "--os", "debian-12", "--yes", "--bare")
    try:
        assert up.returncode == 0, up.stderr
        yield json.loads(kvmfleet("lab", "status", "real", "--json").stdout)["inventory"]
    finally:
        down = kvmfleet("lab", "down", "real", "--yes")
        assert down.returncode == 0, down.stderr


@pytest.fixture
def on(kvmfleet):
    """Runs a command as root on the machine; gives what it printed."""

    def run(command):
        done = kvmfleet("lab", "ssh", "real-1", "sudo", "sh", "-c", f"'{command}'")
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
