"""The record of a lab."""

import pytest

from orchestrator.errors import LabError
from orchestrator.lab import record
from orchestrator.lab.record import Lab


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.setenv("KVMFLEET_STATE_DIR", str(tmp_path))
    bare = Lab(name="blue", id="00c0ffee", provider="container", subnet="10.213.4.0/24", created_at_s=1.5)
    bare.folder.mkdir(parents=True)
    return bare


def test_a_record_is_read_as_it_was_written(lab):
    record.write(lab)
    assert record.read("blue") == lab
    assert record.names() == ("blue",)


def test_a_record_is_for_its_owner_only(lab):
    record.write(lab)
    assert (lab.folder / "lab.json").stat().st_mode & 0o777 == 0o600


def test_a_lab_without_a_record_is_none(lab):
    assert record.read("blue") is None
    assert record.names() == ()


@pytest.mark.parametrize("content", [b"", b"{", b'{"schema": 1}', b"\xff\xfe", b'{"schema": "one"}'])
def test_a_broken_record_is_an_error_that_names_the_file(lab, content):
    (lab.folder / "lab.json").write_bytes(content)
    with pytest.raises(LabError, match=r"blue/lab\.json cannot be read"):
        record.read("blue")


def test_a_record_of_a_later_version_is_not_guessed_at(lab):
    record.write(lab)
    file = lab.folder / "lab.json"
    file.write_text(file.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(LabError, match="schema 2"):
        record.read("blue")


def test_hosts_are_numbered_from_one_and_addressed_apart_from_the_gateway(lab):
    hosts = [lab.planned(number, "debian-12") for number in (1, 2)]
    assert [(host.name, host.address) for host in hosts] == [("blue-1", "10.213.4.11"), ("blue-2", "10.213.4.12")]
    assert str(lab.gateway) == "10.213.4.1"


def test_an_unknown_host_is_refused_with_the_known_ones(lab):
    with pytest.raises(LabError, match="no host 'red-1'"):
        lab.host("red-1")


def test_a_state_folder_that_is_a_file_holds_no_lab(monkeypatch):
    monkeypatch.setenv("KVMFLEET_STATE_DIR", "/dev/null")
    assert record.read("blue") is None


def test_a_record_that_cannot_be_opened_is_not_said_to_be_damaged(lab):
    (lab.folder / "lab.json").mkdir()  # the one thing that root cannot open either
    with pytest.raises(LabError) as caught:
        record.read("blue")
    assert caught.value.message.endswith("lab.json: Is a directory.")
    assert "the user who made it" in caught.value.hint
