"""Files of ours that are written whole, on a host that is a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.kvmfleet.host.plugins.module_utils import restore
from ansible_collections.kvmfleet.host.plugins.module_utils.record import Record
from ansible_collections.kvmfleet.host.plugins.modules import own_files

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to root")

FILE, OTHER = "/etc/modprobe.d/kvmfleet.conf", "/etc/kvmfleet/contract.json"


def settle(root: Path, files: dict[str, str], *, mode: str = "0644", folder: str = "", check: bool = False) -> Any:
    host = restore.Host(root=str(root), which=lambda _: None)
    return own_files.settle(restore.Work(host, Record("", {}), check), files, mode, folder)


def test_what_is_missing_is_made_once_with_its_folders(tmp_path: Path) -> None:
    files = {FILE: "options kvm nested=1\n", OTHER: "{}\n"}
    assert settle(tmp_path, files, check=True)["paths"] == [FILE, OTHER]
    assert list(tmp_path.iterdir()) == [], "check mode only says it"
    done = settle(tmp_path, files)
    assert (done["changed"], done["paths"]) == (True, [FILE, OTHER])
    assert done["diff"][1] == {"before_header": OTHER, "after_header": OTHER, "before": "", "after": "{}\n"}
    assert [(tmp_path / path[1:]).read_text() for path in files] == list(files.values())
    assert settle(tmp_path, files) == {"changed": False, "paths": [], "diff": []}


@pytest.mark.parametrize("spoil", ["echo more >>", "chmod 0666", "chown 7", "chgrp 7", "ln -sf /dev/null"])
def test_what_somebody_changed_is_put_right(tmp_path: Path, spoil: str) -> None:
    settle(tmp_path, {FILE: "text\n"})
    path = tmp_path / FILE[1:]
    assert os.system(f"{spoil} {path}") == 0
    assert settle(tmp_path, {FILE: "text\n"})["paths"] == [FILE]
    found = path.lstat()
    assert (path.read_text(), found.st_mode, found.st_uid, found.st_gid) == ("text\n", 0o100644, 0, 0)


def test_who_may_read_a_file_is_never_more_than_is_asked_for(tmp_path: Path) -> None:
    settle(tmp_path, {OTHER: "{}\n"}, mode="0600")
    assert (tmp_path / OTHER[1:]).stat().st_mode & 0o7777 == 0o600


def test_a_folder_into_which_others_may_write_is_roots_again(tmp_path: Path) -> None:
    assert settle(tmp_path, {OTHER: "{}\n"}, folder="/etc/kvmfleet")["paths"] == ["/etc/kvmfleet", OTHER]
    (tmp_path / "etc/kvmfleet").chmod(0o777)
    assert settle(tmp_path, {OTHER: "{}\n"}, folder="/etc/kvmfleet")["paths"] == ["/etc/kvmfleet"]
    assert (tmp_path / "etc/kvmfleet").stat().st_mode & 0o7777 == 0o755
