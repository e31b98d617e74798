"""Ending a process with everything that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import processes

ROOT = Path(__file__).resolve().parents[2]

STUBBORN = """
import os, signal, subprocess, sys
child = subprocess.Popen(
    ["sh", "-c", "trap '' TERM; echo $$; while :; do sleep 0.1; done"], start_new_session=True, stdout=subprocess.PIPE
)
print(child.stdout.readline().decode().strip(), flush=True)
child.wait()
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def test_a_grandchild_in_a_session_of_its_own_that_ignores_sigterm_is_ended() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        assert child.stdout
        grandchild = int(child.stdout.readline())
        assert alive(grandchild)
        processes.end([child.pid], term_s=0.5)
        assert not alive(grandchild)
        assert not alive(child.pid)


LATE = """
import os, signal, subprocess, time
def late(number, frame):
    print(subprocess.Popen(["sleep", "60"]).pid, flush=True)
    os._exit(0)
signal.signal(signal.SIGTERM, late)
print("ready", flush=True)
time.sleep(60)
"""

DETACHED_LATE = """
import os, signal, subprocess, time
def late(number, frame):
    os.setsid()
    print(subprocess.Popen(["sleep", "60"]).pid, flush=True)
    os._exit(0)
if not os.fork():
    signal.signal(signal.SIGTERM, late)
    print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("script", [LATE, DETACHED_LATE], ids=["in its session", "in one that nobody saw"])
def test_a_child_that_is_started_at_the_last_moment_is_ended(script: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        assert child.stdout
        assert child.stdout.readline() == "ready\n"
        processes.end([child.pid], term_s=30)
        orphan = int(child.stdout.readline())
        assert not alive(orphan)


# As the first process of its own small world, which may say what number comes next.
REUSED = """
import subprocess, sys, threading, time
from orchestrator import processes
root = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True, start_new_session=True)
number = int(root.stdout.readline())
time.sleep(0.1)  # no two processes have a number within one tick of the clock
ending = threading.Thread(target=processes.end, args=([root.pid],), kwargs={"term_s": 2})
ending.start()
assert root.stdout.readline() == "reaped\\n"
with open("/proc/sys/kernel/ns_last_pid", "w") as last:
    last.write(str(number - 1))
other = subprocess.Popen(["sleep", "60"], start_new_session=True)
ending.join()
print(root.wait(), other.pid == number, other.poll())
"""

OUTLIVES_ITS_CHILD = """
import signal, subprocess, time
signal.signal(signal.SIGTERM, lambda *_: None)
child = subprocess.Popen(["sleep", "60"])
print(child.pid, flush=True)
child.wait()
print("reaped", flush=True)
time.sleep(60)
"""


def test_a_number_that_was_given_to_another_process_meanwhile_does_not_end_that_one() -> None:
    unshare = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child"]
    chooses = [*unshare, "sh", "-c", "echo 100 > /proc/sys/kernel/ns_last_pid"]
    if subprocess.run(chooses, capture_output=True, check=False).returncode:
        pytest.skip("this kernel does not let us choose a number")
    command = [*unshare, sys.executable, "-c", REUSED, OUTLIVES_ITS_CHILD]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("-9 True None\n", "")


def test_what_left_the_session_is_a_daemon_and_stays() -> None:
    # It tells its number once it leads a session, and "orphaned" comes once its parent has ended, in either order.
    script = "(setsid sh -c 'echo $$; exec sleep 95.5 > /dev/null 2>&1' &); echo orphaned; sleep 95.5"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True) as child:
        assert child.stdout
        said = {child.stdout.readline().strip() for _ in range(2)}
        daemon = int((said - {"orphaned"}).pop())
        processes.end([child.pid])
        assert not alive(child.pid)
        assert alive(daemon)
        os.kill(daemon, 9)


def test_nothing_to_end_is_no_error() -> None:
    processes.end([])


ORPHAN = """
import os, signal, time
def late(number, frame):
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.setsid()
    print("forked", flush=True)
    time.sleep(60)
signal.signal(signal.SIGTERM, late)
print("ready", flush=True)
time.sleep(60)
"""


def test_a_worker_that_was_forked_while_its_parent_ended_is_found_by_its_argument() -> None:
    argument = f"--limit=@/tmp/run-{os.getpid()}"
    with subprocess.Popen(
        [sys.executable, "-c", ORPHAN, argument], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        assert child.stdout
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGTERM)
        child.wait()
        assert child.stdout.readline() == "forked\n"
        (orphan,) = processes.running(argument)
        assert orphan != child.pid
        processes.end([orphan])
        assert processes.running(argument) == []


def test_an_argument_that_only_contains_the_wanted_one_is_another() -> None:
    with subprocess.Popen(["tail", "-f", "/dev/null"]) as other:
        assert other.pid not in processes.running("/dev/nul")
        assert other.pid in processes.running("/dev/null")
        other.kill()
