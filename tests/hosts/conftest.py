"""What the tests on real hosts share: kvmfleet and Ansible as a user runs them, with state of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """State goes with the test; the cache of images and packages stays, as a user's does."""
    state = tmp_path_factory.mktemp("state")
    return os.environ | {"KVMFLEET_STATE_DIR": str(state), "NO_COLOR": "1", "COLUMNS": "200"}


def _run(arguments, environment):
    return subprocess.run(
        [str(a) for a in arguments],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )


@pytest.fixture(scope="session")
def kvmfleet(environment):
    """Runs kvmfleet with arguments; gives the finished process."""
    return lambda *arguments: _run([sys.executable, "-P", "-m", "orchestrator", *arguments], environment)


@pytest.fixture(scope="session")
def ansible(environment):
    """Runs one of Ansible's programs with arguments; gives the finished process."""
    return lambda program, *arguments: _run([Path(sys.executable).parent / program, *arguments], environment)
