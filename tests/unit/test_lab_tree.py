"""Folders written, held and removed."""

import os
import subprocess
import sys
import threading

import pytest

from orchestrator.errors import LabError, LockedError
from orchestrator.lab import tree
from orchestrator.lab.command import last_lines, run


def test_a_file_is_replaced_as_a_whole_with_its_mode(tmp_path):
    file = tmp_path / "file"
    tree.write(file, "old", mode=0o644)
    tree.write(file, "new", mode=0o600)
    assert file.read_text() == "new"
    assert file.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["file"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    file = tmp_path / "file"
    tree.write(file, "old")
    with pytest.raises(UnicodeEncodeError):
        tree.write(file, "\udcff")
    assert file.read_text() == "old"


def test_a_folder_is_removed_with_links_but_not_what_they_lead_to(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    doomed = tmp_path / "doomed"
    (doomed / "a" / "b").mkdir(parents=True)
    (doomed / "a" / "to-folder").symlink_to(precious)
    (doomed / "to-file").symlink_to(precious / "file")
    (doomed / "dangling").symlink_to("/nowhere")
    os.mkfifo(doomed / "a" / "pipe")
    tree.remove(doomed)
    assert not doomed.exists()
    assert (precious / "file").exists()


def test_a_link_instead_of_the_folder_is_not_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    (tmp_path / "link").symlink_to(precious)
    with pytest.raises(OSError, match="link"):
        tree.remove(tmp_path / "link")
    assert (precious / "file").exists()


def test_a_folder_that_is_not_there_is_no_error(tmp_path):
    tree.remove(tmp_path / "nothing")


def test_a_folder_with_a_mount_in_it_is_not_touched():
    with pytest.raises(LabError, match="is mounted inside /"):
        tree.remove(tree.Path("/"))


def test_mount_points_with_spaces_are_understood():
    assert tree._unescaped(r"/mnt/a\040b\134c") == r"/mnt/a b\c"


def test_the_second_process_is_told_who_holds_the_folder(tmp_path):
    code = (
        "import sys; from pathlib import Path; from orchestrator.lab import tree\n"
        "with tree.hold(Path(sys.argv[1]), wait=False): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "lab"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(LockedError, match=f"Process {holder.pid} is at work"),
            tree.hold(tmp_path / "lab", wait=False),
        ):
            pytest.fail("two hold it")
        holder.stdin.close()
    with tree.hold(tmp_path / "lab", wait=False):
        pass


def test_a_tree_of_any_depth_is_removed(tmp_path):
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1200):  # more than Python recurses
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    tree.remove(tmp_path / "d")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_its_holder_removed_is_made_anew_for_the_one_who_waited(tmp_path):
    folder, inside = tmp_path / "lab", threading.Event()

    def waits():
        with tree.hold(folder, wait=True):
            (folder / "mine").touch()

    waiter = threading.Thread(target=waits)
    with tree.hold(folder, wait=False):
        waiter.start()
        inside.wait(0.1)
        folder.rmdir()
    waiter.join(10)
    assert (folder / "mine").exists()


def test_a_command_that_fails_shows_the_end_of_what_it_said():
    with pytest.raises(LabError, match="sh ended with code 3") as caught:
        run(["sh", "-c", "for i in $(seq 100); do echo line $i >&2; done; exit 3"])
    assert caught.value.hint.splitlines()[-1] == "line 100"
    assert len(caught.value.hint.splitlines()) == 12


def test_a_command_that_is_missing_is_named():
    with pytest.raises(LabError, match="no-such-command"):
        run(["no-such-command"])


def test_a_command_that_hangs_is_ended():
    with pytest.raises(LabError, match="did not end within"):
        run(["sleep", "60"], timeout_s=0.2)


def test_a_command_reads_nothing_from_the_user():
    assert run(["cat"]) == ""
    assert run(["cat"], stdin="given") == "given"


def test_escapes_of_a_host_do_not_reach_the_terminal():
    assert last_lines("fine\n\n\x1b[0;31mred\x07\x1b]0;title\r\n") == "fine\nred\\x07\\x1b]0;title"
