"""Ending a process with everything that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from orchestrator import processes

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


def test_a_child_that_is_started_at_the_last_moment_is_ended() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LATE], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        assert child.stdout
        assert child.stdout.readline() == "ready\n"
        processes.end([child.pid], term_s=30)
        orphan = int(child.stdout.readline())
        assert not alive(orphan)


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


def test_what_a_worker_started_in_a_session_that_nobody_saw_is_ended() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", DETACHED_LATE], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        assert child.stdout
        assert child.stdout.readline() == "ready\n"
        processes.end([child.pid], term_s=30)
        orphan = int(child.stdout.readline())
        assert not alive(orphan)


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
