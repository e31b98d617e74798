"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from orchestrator import whole_file


def test_a_file_is_replaced_and_has_the_mode_that_was_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "report"
    file.write_text("old")
    file.chmod(0o600)
    whole_file.write(file, "nëw", mode=0o644)
    assert file.read_text("utf-8") == "nëw"
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_without_a_mode_the_umask_decides(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        whole_file.write(tmp_path / "report", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "report").stat().st_mode) == 0o640


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "report").write_text("old")
    with pytest.raises(UnicodeEncodeError):
        whole_file.write(tmp_path / "report", "\udcff")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("old")
    (tmp_path / "here").symlink_to("there")
    whole_file.write(tmp_path / "here", "new")
    assert (tmp_path / "here").is_symlink()
    assert (tmp_path / "there").read_text() == "new"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link to somebody else")
@pytest.mark.parametrize(("mode", "trusted"), [(0o1777, False), (0o755, True)])
def test_a_link_of_somebody_else_in_a_folder_for_everybody_is_a_trap(tmp_path: Path, mode: int, trusted: bool) -> None:
    (tmp_path / "ours").write_text("old")
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(mode)
    (shared / "report").symlink_to("../ours")
    whole_file.write(shared / "report", "by ourselves")
    os.lchown(shared / "report", 65534, 65534)
    if trusted:
        whole_file.write(shared / "report", "new")
    else:
        with pytest.raises(PermissionError, match="a symbolic link of somebody else"):
            whole_file.write(shared / "report", "new")
    assert (tmp_path / "ours").read_text() == ("new" if trusted else "by ourselves")


def test_a_device_is_written_to_and_not_replaced() -> None:
    whole_file.write(Path("/dev/null"), "new")
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("name", ["report", "new", "link"])
def test_a_rehearsal_leaves_all_as_it_was(tmp_path: Path, name: str) -> None:
    (tmp_path / "report").write_text("old")
    (tmp_path / "link").symlink_to("report")
    whole_file.rehearse(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "report"]
    assert (tmp_path / "report").read_text() == "old"


@pytest.mark.parametrize("name", ["no/report", "file/report", "/proc/report"])
def test_a_rehearsal_fails_where_writing_would(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    for act in (whole_file.rehearse, lambda path: whole_file.write(path, "new")):
        with pytest.raises(OSError, match=r"No such file|Not a directory"):
            act(tmp_path / name)


def test_a_rehearsal_does_not_wait_at_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    whole_file.rehearse(tmp_path / "pipe")
