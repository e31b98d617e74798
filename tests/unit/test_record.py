"""What modules remember on a host about the time before them."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from plugins.module_utils.record import RecordError, open_record


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "lib" / "record.json")


def test_only_the_first_note_of_a_thing_counts(path):
    for before in ("theirs", "ours already"):
        with open_record(path) as record:
            record.note("file", "/etc/a", before)
    with open_record(path) as record:
        assert record.before("file", "/etc/a") == "theirs"


def test_nothing_before_is_not_the_same_as_not_ours(path):
    with open_record(path) as record:
        record.note("network", "lan")
        assert record.holds("network", "lan")
        assert record.before("network", "lan") is None
        assert not record.holds("network", "default")


def test_what_was_given_back_is_forgotten(path):
    with open_record(path) as record:
        record.note("network", "lan")
        record.note("network", "dmz")
    with open_record(path) as record:
        record.forget("network", "lan")
        assert record.names("network") == ["dmz"]
        record.forget("network", "dmz")
        record.forget("network", "never there")
    assert json.loads(Path(path).read_text()) == {}


def test_only_root_may_read_it(path):
    with open_record(path) as record:
        record.note("file", "/etc/a", "secret")
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700


def test_check_mode_writes_nothing(path):
    with open_record(path, check=True) as record:
        record.note("network", "lan")
    assert not os.path.exists(os.path.dirname(path))


def test_what_was_noted_before_a_crash_is_kept(path):
    def crash():
        with open_record(path) as record:
            record.note("network", "lan")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        crash()
    with open_record(path) as record:
        assert record.names("network") == ["lan"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"file": []}', "\x00"])
def test_a_damaged_record_stops_everything_and_says_what_to_do(path, content):
    os.makedirs(os.path.dirname(path))
    Path(path).write_text(content)
    with pytest.raises(RecordError, match=r"is not a record of kvmfleet.*backup"), open_record(path):
        pass
    assert Path(path).read_text() == content


def _add(path, number):
    with open_record(path) as record:
        record.note("network", str(number))


def test_processes_take_turns(path):
    processes = [multiprocessing.get_context("spawn").Process(target=_add, args=(path, n)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    with open_record(path) as record:
        assert record.names("network") == ["0", "1", "2", "3"]
