"""Private folders that go with their process, even when that is killed."""

import os
import signal
import subprocess
import sys
import time

import pytest

from orchestrator import scratch

HOLD = """
import sys, time
from orchestrator import scratch
with scratch.folder(sys.argv[1]) as folder:
    (folder / "password").write_text("secret")
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has a folder with a password in it."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with process:
        process.folder = process.stdout.readline().strip()
        yield process
        process.kill()


def age(folder):
    """As if its last writing was a minute ago."""
    os.utime(folder, (time.time() - 60,) * 2)


def test_a_folder_is_private_and_goes_with_its_use(tmp_path):
    with scratch.folder(str(tmp_path)) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "file").touch()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_goes_with_the_next_folder(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert os.path.exists(f"{holder.folder}/password")
    age(holder.folder)
    with scratch.folder(str(tmp_path)) as folder:
        assert list(tmp_path.iterdir()) == [folder]


def test_the_folder_of_a_living_process_stays(tmp_path, holder):
    age(holder.folder)
    with scratch.folder(str(tmp_path)):
        assert os.path.exists(f"{holder.folder}/password")


def test_a_folder_that_is_just_being_made_stays(tmp_path):
    new = tmp_path / "kvmfleet-run-new"
    new.mkdir()
    with scratch.folder(str(tmp_path)):
        assert new.exists()
    age(new)
    with scratch.folder(str(tmp_path)):
        assert not new.exists()


def test_a_link_with_such_a_name_is_not_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    age(precious)
    link = tmp_path / "kvmfleet-run-link"
    link.symlink_to(precious)
    with scratch.folder(str(tmp_path)):
        assert precious.exists()
        assert link.is_symlink()
