"""What the tests on real hosts share: kvmfleet and Ansible as a user runs them, and one lab of two hosts."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = "dpkg-query -W"
FILES = "cd /etc; find . -xdev -type f -print0 | sort -z | xargs -0 sha256sum"
KVMFLEET = (sys.executable, "-P", "-m", "orchestrator")


# Stories about the commands. Those about what the roles do have another lab, which is made bare again in the end.
COMMANDS = tuple(f"test_story{of}.py" for of in ("", "_agreement", "_drift", "_rough", "_schedule"))


class ByLab(LoadScopeScheduling):
    """Tests of one lab run on one worker, in their order: those of each story together, each other file alone.

    Not xdist's groups: they are marks that it writes into the names of tests, which pytest 9.2 does not let it do.
    """

    def _split_scope(self, nodeid):
        path = nodeid.partition("::")[0]
        name = Path(path).name
        return "commands" if name in COMMANDS else "roles" if name.startswith("test_story") else path


def pytest_xdist_make_scheduler(config, log):
    return ByLab(config, log)


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """State goes with the tests; the cache of images and packages stays, as a user's does."""
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
    return lambda *arguments, env=environment: _run([*KVMFLEET, *arguments], env)


@pytest.fixture
def kvmfleet_start(environment):
    """Starts kvmfleet in a process group of its own, as a shell does; whatever is left of it is killed at the end."""
    started = []

    def start(*arguments):
        process = subprocess.Popen(
            [str(a) for a in (*KVMFLEET, *arguments)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture(scope="session")
def ansible(environment):
    """Runs one of Ansible's programs with arguments; gives the finished process."""
    return lambda program, *arguments: _run([Path(sys.executable).parent / program, *arguments], environment)


@pytest.fixture(scope="session")
def inventory(kvmfleet, on):
    """A lab of one Debian 12 host, story-1, and one Debian 13 host, story-2: bare at first, removed at the end.

    Each worker that has a story has one: its state is its own, and so are the lab's network and control groups.
    """
    up = kvmfleet("lab", "up", "story", "--provider", "container", "--yes", "--bare")
    try:
        assert up.returncode == 0, up.stderr
        for host in ("story-1", "story-2"):  # what unprovisioning has to lead back to
            on(host, f"({PACKAGES}) > /root/before.packages; ({FILES}) > /root/before.files")
        yield json.loads(kvmfleet("lab", "status", "story", "--json").stdout)["inventory"]
    finally:
        down = kvmfleet("lab", "down", "story", "--yes")
        assert down.returncode == 0, down.stderr


@pytest.fixture(scope="session")
def on(environment):
    """Runs a command as root on a host of the lab that its name begins with; gives what it printed.

    As `kvmfleet lab ssh` does, which takes four times the processor time, hundreds of times. A host whose network is
    about to change may be out of reach for a moment.
    """
    labs = Path(environment["KVMFLEET_STATE_DIR"]) / "labs"

    def run(host, command):
        config = labs / host.rpartition("-")[0] / "ssh_config"
        ssh = ["ssh", "-F", config, "-o", "ConnectionAttempts=30"]
        done = _run([*ssh, host, "sudo", "sh", "-c", f"'{command}'"], environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def fingerprint(on):
    """The packages of a host, and the files below /etc with their digests."""
    return lambda host: tuple(on(host, command) for command in (PACKAGES, FILES))
