"""Evidence that is saved and judged again: without a host, and without taking it for news."""

from __future__ import annotations

import json
import stat
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import msgspec
import pytest
from evidence import host as evidence_of
from test_report import show

from orchestrator import recording, rollout
from orchestrator.errors import UsageError
from orchestrator.inventory import AnsibleOptions, Fleet, Host
from orchestrator.model.run import Collected, HostConverged, HostResult, TaskFailure
from orchestrator.recording import MAX_BYTES, file_name, read, save
from orchestrator.report import json as json_report
from orchestrator.report import junit, terminal
from orchestrator.rollout import Edges

NO_EXEC = {"kvm": {"execution": {"outcome": "broken", "step": "run"}}}


def results(**answers: Collected) -> tuple[HostResult, ...]:
    """What a validation of these hosts finds."""

    def collect(_hosts: Any, _options: Any, **_more: Any) -> tuple[Collected, ...]:
        return tuple(answers.values())

    fleet = Fleet(tuple(Host(name, name, groups=("kvm_hosts", "rack1")) for name in answers), ())
    return rollout.validate(fleet, AnsibleOptions(), edges=Edges(collect=collect)).results


def good(name: str, evidence: Any = None, **more: Any) -> Collected:
    return Collected(name, "ssh", evidence_of(evidence or {}), **more)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMFLEET_STATE_DIR", str(tmp_path / "state"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Recordings of a good host, a broken one and a silent one."""
    silent = Collected("hv3", "ssh", problem="connection refused", hint="Is sshd on?", unreachable=True)
    save(results(hv1=good("hv1"), hv2=good("hv2", NO_EXEC), hv3=silent), tmp_path / "saved")
    return tmp_path / "saved"


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def only(place: Path) -> HostResult:
    (result,) = rollout.replay(read([str(place)])).results
    return result


def test_a_replay_says_what_the_run_said(folder: Path) -> None:
    silent = Collected("hv3", "ssh", problem="connection refused", hint="Is sshd on?", unreachable=True)
    before = results(hv1=good("hv1"), hv2=good("hv2", NO_EXEC), hv3=silent)
    after = rollout.replay(read([str(folder)])).results
    assert [result.judgement for result in after] == [result.judgement for result in before]
    assert [result.judgement.verdict for result in after] == ["proven", "failed", "unreachable"]
    assert [result.contract for result in after] == [result.contract for result in before]
    assert {result.groups for result in after} == {("kvm_hosts", "rack1")}


def test_a_host_that_the_playbook_did_not_finish_is_not_good_in_a_replay_either(tmp_path: Path) -> None:
    failure = HostConverged("hv1", "failed", failed=1, failure=TaskFailure("libvirt : Install", "disk full"))
    (result,) = results(hv1=good("hv1"))
    save([msgspec.structs.replace(result, converged=failure)], tmp_path / "saved")
    assert only(tmp_path / "saved").judgement.verdict == "failed"


def test_recordings_are_for_their_owner_alone(folder: Path) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    assert sorted(file.name for file in folder.iterdir()) == ["hv1.json", "hv2.json", "hv3.json"]


def test_a_profile_can_be_tried_on_recorded_evidence(tmp_path: Path) -> None:
    emulated = {"kvm": {"speed": {"outcome": "emulated", "emulated_instructions": 40000}}}
    save(results(hv1=good("hv1", emulated)), tmp_path / "saved")
    recordings = read([str(tmp_path / "saved")])
    verdicts = {p: rollout.replay(recordings, rollout.Standards(p)).results[0] for p in ("lab", "production")}
    assert verdicts["lab"].judgement.verdict == "degraded"
    assert verdicts["production"].judgement.verdict == "failed"
    assert verdicts["lab"].profile == "lab"


@pytest.mark.parametrize(
    "name", ["..", "../../etc/cron.d/x", ".hidden", "a/b", "a\nb", "x" * 253, "é" * 250, "fe80::1%eth0"]
)
def test_no_name_of_a_host_leaves_the_folder(tmp_path: Path, name: str) -> None:
    save([msgspec.structs.replace(r, host=name) for r in results(hv1=good("hv1"))], tmp_path / "saved")
    (file,) = (tmp_path / "saved").iterdir()
    assert file.name == file_name(name)
    assert not file.name.startswith(".")
    assert read([str(tmp_path / "saved")])


def test_long_names_that_begin_alike_have_files_of_their_own() -> None:
    assert file_name("x" * 300 + "1") != file_name("x" * 300 + "2")
    assert file_name("a/b") != file_name("a%2Fb")


def test_what_a_host_says_about_itself_does_nothing_to_the_terminal_that_shows_the_file(tmp_path: Path) -> None:
    save(results(hv1=good("hv1", {"system": {"os_name": "\x9b2J\u202e"}})), tmp_path)
    assert not {"\x9b", "\u202e"} & set((tmp_path / "hv1.json").read_text())
    assert only(tmp_path / "hv1.json").collected.evidence.system.os_name == "\x9b2J\u202e"


def test_a_recording_from_anybody_names_a_host_that_can_be_printed(folder: Path) -> None:
    collected = json.loads((folder / "hv3.json").read_text())["collected"]
    change(folder / "hv3.json", collected={**collected, "host": "\x1b[2Jhv3", "problem": "\x9b gone"})
    replayed = only(folder / "hv3.json")
    assert (replayed.host, replayed.judgement.findings[0].summary) == ("\\x1b[2Jhv3", "\\x9b gone")


def test_a_recording_from_anybody_says_in_words_that_can_be_printed_why_its_host_was_left_alone(folder: Path) -> None:
    change(folder / "hv1.json", converged={"host": "hv1", "outcome": "unchanged", "notes": ["\x1b[2Jfine\x00"]})
    replayed = [only(folder / "hv1.json")]
    assert "\\x1b[2Jfine" in show(terminal.report(replayed))
    (told,) = ET.fromstring(junit.render(replayed)).findall("testsuite/properties/property[@name='unchanged']")
    assert told.get("value") == "\\x1b[2Jfine\\x00"


def test_every_report_of_a_replay_says_that_it_is_one(folder: Path) -> None:
    change(folder / "hv1.json", recorded_at_s=1.7e9)
    replayed = rollout.replay(read([str(folder)])).results
    shown = show(terminal.report(replayed))
    assert "Replay of evidence that was recorded from 2023-11-14 22:13:20 UTC to 20" in shown
    assert "No host was asked." in shown
    document = json.loads(json_report.render(replayed, command="validate"))
    assert document["hosts"][0]["collected"]["recorded_at_s"] == 1.7e9
    properties = ET.fromstring(junit.render(replayed)).findall("testsuite/properties/property[@name='replay']")
    assert "2023-11-14" in properties[0].get("value", "")


def test_a_file_that_cannot_be_read_has_no_date(folder: Path) -> None:
    (folder / "hv2.json").write_text("{")
    change(folder / "hv1.json", recorded_at_s=1.7e9)
    shown = show(terminal.report(rollout.replay(read([str(folder / f"hv{n}.json") for n in (1, 2)])).results))
    assert "Replay of evidence that was recorded at 2023-11-14 22:13:20 UTC. No host" in shown
    alone = rollout.replay(read([str(folder / "hv2.json")])).results
    assert alone[0].collected.recorded_at_s is None
    assert "Replay of evidence of which no file can be read. No host was asked." in show(terminal.report(alone))


def test_news_is_not_called_a_replay() -> None:
    fresh = results(hv1=good("hv1"))
    assert "Replay" not in show(terminal.report(fresh))
    assert json.loads(json_report.render(fresh, command="validate"))["hosts"][0]["collected"]["recorded_at_s"] is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "it is empty"),
        ("{", "no whole JSON"),
        ("\x00\xff", "no whole JSON"),
        ('{"a": ' * 100_000, "no whole JSON"),
        ("[]", "it is no recording"),
        ('{"schema": 1, "hosts": []}', "a report of --json"),
        ('{"recording": 1, "kvmfleet": "9", "collected": {"host": ""}}', "it is no recording"),
    ],
)
def test_a_file_that_is_no_recording_is_a_host_of_which_nothing_is_known(
    tmp_path: Path, content: str, says: str
) -> None:
    (tmp_path / "hv%2F7.json").write_text(content)
    result = only(tmp_path)
    assert (result.host, result.judgement.verdict) == ("hv/7", "unknown")
    (finding,) = result.judgement.findings
    assert says in finding.summary
    assert str(tmp_path) in finding.summary
    assert "--save-evidence" in finding.fix


def test_a_recording_that_was_cut_off_does_not_pass(folder: Path) -> None:
    text = (folder / "hv1.json").read_text()
    (folder / "hv1.json").write_text(text[: len(text) // 2])
    replayed = rollout.replay(read([str(folder)])).results
    assert [result.judgement.verdict for result in replayed] == ["unknown", "failed", "unreachable"]


def test_a_file_too_large_is_not_read_to_its_end(tmp_path: Path) -> None:
    with (tmp_path / "hv1.json").open("wb") as file:
        file.truncate(MAX_BYTES * 1000)
    assert "more than 8 MiB" in only(tmp_path / "hv1.json").judgement.findings[0].summary


@pytest.mark.parametrize("schema", [0, 2])
def test_evidence_of_another_schema_is_named_with_the_version_that_made_it(folder: Path, schema: int) -> None:
    collected = json.loads((folder / "hv1.json").read_text())["collected"]
    evidence = {**collected["evidence"], "schema": schema, "kvm": "another shape"}
    change(folder / "hv1.json", kvmfleet="9.1", collected={**collected, "evidence": evidence})
    (finding,) = only(folder / "hv1.json").judgement.findings
    assert f"evidence of schema {schema}, this kvmfleet reads 1; it was recorded by 9.1" in finding.summary


def test_a_recording_of_another_format_is_named_too(folder: Path) -> None:
    change(folder / "hv1.json", recording=2)
    assert "recording of format 2, this kvmfleet reads 1" in only(folder / "hv1.json").judgement.findings[0].summary


def test_evidence_is_bounded_as_it_is_when_a_host_sends_it(folder: Path) -> None:
    collected = json.loads((folder / "hv1.json").read_text())["collected"]
    collected["evidence"]["system"]["hostname"] = "x" * 10_000
    change(folder / "hv1.json", collected=collected)
    assert only(folder / "hv1.json").judgement.verdict == "unknown"


def test_a_place_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        read([str(tmp_path / "nowhere")])


def test_a_folder_without_evidence_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / ".hv1.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UsageError, match="there is no evidence in this folder"):
        read([str(tmp_path)])


def test_two_recordings_of_one_host_are_a_mistake(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"hv1 is in two recordings, .*hv1.json and .*hv1.json"):
        read([str(folder), str(folder / "hv1.json")])


def test_the_shape_of_a_recording_is_known_to_this_test() -> None:
    """One that changes its meaning needs another FORMAT; a field that is added needs a default."""
    required = [field.name for field in msgspec.structs.fields(recording.Recording) if field.required]
    assert required == ["recording", "kvmfleet", "recorded_at_s", "profile", "groups", "collected"]
