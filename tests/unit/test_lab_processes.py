"""Processes found by what they were told to run, ended, and kept apart by control groups."""

import subprocess
import sys
import time

import pytest

from orchestrator.errors import LabError
from orchestrator.lab import cgroups, prerequisites, processes

SLEEPS = "import signal, sys, time; {}; print('ready', flush=True); time.sleep(60)"


@pytest.fixture
def start():
    """Starts Python with one extra argument; whatever it does, it is gone after the test."""
    started = []

    def run(argument, prelude="pass"):
        process = subprocess.Popen(
            [sys.executable, "-c", SLEEPS.format(prelude), argument], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def program():
    return sys.executable.rpartition("/")[2]


def test_a_process_is_found_by_its_exact_argument(start, tmp_path):
    wanted = start(f"--directory={tmp_path}/root")
    start(f"--directory={tmp_path}/root2")
    assert [found.pid for found in processes.find(program(), f"--directory={tmp_path}/root")] == [wanted.pid]


def test_another_program_with_the_same_argument_is_not_found(start, tmp_path):
    start(f"--directory={tmp_path}/root")
    assert processes.find("systemd-nspawn", f"--directory={tmp_path}/root") == ()


def test_the_start_of_a_process_is_told(start, tmp_path):
    start(f"{tmp_path}")
    (found,) = processes.find(program(), f"{tmp_path}")
    assert abs(found.started_at_s() - time.time()) < 60


def test_a_process_ends_when_it_is_asked_to(start, tmp_path):
    asked = start(f"{tmp_path}")
    processes.end(processes.find(program(), f"{tmp_path}"), grace_s=10)
    assert asked.wait(5) == -15


def test_a_process_that_does_not_listen_is_killed(start, tmp_path):
    deaf = start(f"{tmp_path}", "signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    processes.end(processes.find(program(), f"{tmp_path}"), grace_s=0.2)
    assert deaf.wait(5) == -9


def test_a_process_that_got_the_number_of_an_ended_one_is_left_alone(start, tmp_path):
    innocent = start(f"{tmp_path}")
    (found,) = processes.find(program(), f"{tmp_path}")
    processes.end([processes.Process(found.pid, found.started_ticks - 1)], grace_s=0.2)
    assert innocent.poll() is None


def test_a_process_that_has_ended_already_is_no_error():
    ended = subprocess.Popen(["true"])
    ended.wait()
    processes.end([processes.Process(ended.pid, 1)], grace_s=0.1)


HYBRID = """\
25 24 0:21 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755
26 25 0:22 / /sys/fs/cgroup/unified rw shared:4 - cgroup2 cgroup2 rw,nsdelegate
27 25 0:23 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
28 25 0:24 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
"""


def test_a_hybrid_machine_has_two_hierarchies_for_a_host():
    assert [str(path) for path in cgroups.hierarchies(HYBRID)] == ["/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"]


def test_a_unified_machine_has_one():
    assert [str(p) for p in cgroups.hierarchies("30 25 0:26 / /sys/fs/cgroup rw - cgroup2 c rw\n")] == [
        "/sys/fs/cgroup"
    ]


def test_a_machine_without_cgroup_v2_is_told_what_to_mount():
    with pytest.raises(LabError, match="no cgroup v2") as caught:
        cgroups.hierarchies("28 25 0:24 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n")
    assert "mount -t cgroup2" in caught.value.hint


def test_each_missing_package_is_named_once():
    lacks_ssh = prerequisites.missing("container", lambda command: None if "ssh" in command else "/bin/x")
    assert lacks_ssh[0] == "openssh-client"
    assert prerequisites.missing("container", lambda command: None).count("openssh-client") == 1


def test_the_command_that_installs_names_every_package():
    command = prerequisites.install_command(("nftables", "mmdebstrap"))
    assert command[-2:] == ("nftables", "mmdebstrap")
    assert "apt-get" in command
