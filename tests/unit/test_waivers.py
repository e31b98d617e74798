"""Waivers: what they make of a finding, when they are over, and every mistake in their file."""

from __future__ import annotations

import datetime
import io
import json
import logging
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from evidence import host as evidence_of
from test_judge import NO_KVM, NOT_ASKED_FOR, by_check
from test_report import show

from orchestrator import recording, rollout, waivers
from orchestrator.errors import WaiverError
from orchestrator.inventory import AnsibleOptions, Fleet, Host
from orchestrator.judge import judge, read_contract
from orchestrator.model.finding import Judgement, Waiver
from orchestrator.model.run import Collected
from orchestrator.report import json as json_report
from orchestrator.report import junit, summary, terminal
from orchestrator.rollout import Edges, Standards
from orchestrator.waivers import MAX_BYTES, Waivers, beside, read

TODAY = datetime.date(2027, 1, 15)
EMULATED = {"kvm": {"speed": {"outcome": "emulated", "emulated_instructions": 40000}}}
STALE = {"libvirt": {"stale": ["libvirtd.service"]}}
LIVE = Waiver("no nested virtualization here", "ann", "2027-01-31")
OVER = Waiver("no nested virtualization here", "ann", "2027-01-01", holds=False)
GOOD = "- {check: kvm.hardware, hosts: [hv1], reason: why, owner: ann, expires: 2027-01-31}\n"


def judged(patch: Any, profile: Any = "production", **given: Waiver) -> Judgement:
    evidence = evidence_of(patch)
    named = {check.replace("_", ".", 1): waiver for check, waiver in given.items()}
    return judge(evidence, read_contract(evidence), profile, named)


def written(folder: Path, text: str) -> Waivers:
    (folder / "waivers.yml").write_text(text)
    return read([folder / "waivers.yml"], TODAY)


def entry(**values: Any) -> str:
    """A waiver as a line of YAML, which takes JSON."""
    good = {"check": "kvm.hardware", "hosts": ["hv1"], "reason": "why", "owner": "ann", "expires": "2027-01-31"}
    return f"- {json.dumps({key: value for key, value in {**good, **values}.items() if value is not None})}\n"


# What a waiver does


def test_a_failure_that_is_waived_fails_no_host_and_says_whose_it_is() -> None:
    judgement = judged(EMULATED, kvm_hardware=LIVE)
    found = by_check(judgement)["kvm.hardware"]
    assert judgement.verdict == "proven"
    assert judgement.cause is None
    assert found.status == "waived"
    assert found.summary.endswith("(waived until 2027-01-31, owner ann: no nested virtualization here)")


def test_without_the_waiver_it_fails() -> None:
    assert judged(EMULATED).verdict == "failed"
    assert judged(EMULATED, kvm_node=LIVE).verdict == "failed"


def test_a_warning_can_be_waived() -> None:
    assert judged(STALE).verdict == "degraded"
    assert judged(STALE, libvirt_settings=LIVE).verdict == "proven"


@pytest.mark.parametrize(
    ("patch", "check", "status"), [(EMULATED, "kvm_hardware", "fail"), (STALE, "libvirt_settings", "warn")]
)
def test_a_waiver_that_is_over_changes_nothing_but_the_words(patch: Any, check: str, status: str) -> None:
    judgement = judged(patch, **{check: OVER})
    found = by_check(judgement)[check.replace("_", ".", 1)]
    assert judgement.verdict == judged(patch).verdict
    assert found.status == status
    assert "its waiver expired on 2027-01-01, owner ann" in found.summary
    assert judgement.cause == found


def test_what_requires_a_waived_check_is_skipped_because_of_it_and_does_not_fail() -> None:
    judgement = judged({"libvirt": {"connected": False, "error": "refused"}}, libvirt_connect=LIVE)
    statuses = {finding.status for finding in judgement.findings}
    assert "fail" not in statuses
    assert by_check(judgement)["libvirt.connect"].status == "waived"
    assert by_check(judgement)["libvirt.kvm"].cause == "libvirt.connect"


def test_no_waiver_makes_a_host_proven_on_which_no_guest_was_executed() -> None:
    patch = {"kvm": NO_KVM, "libvirt": {"domain_types": ["qemu"]}, "guest": {"outcome": "skipped", "detail": "no KVM"}}
    judgement = judged(patch, kvm_node=LIVE, kvm_exec=LIVE, guest_boot=LIVE)
    assert judgement.verdict == "unknown"
    assert judgement.cause is not None
    assert judgement.cause.check == "kvm.node"
    assert judged(NOT_ASKED_FOR, kvm_exec=LIVE).verdict == "unknown"


def test_what_could_not_be_looked_at_cannot_be_waived() -> None:
    judgement = judged({"errors": {"libvirt": "not done after 40 s"}}, libvirt_daemon=LIVE)
    assert by_check(judgement)["libvirt.daemon"].status == "error"
    assert judgement.verdict == "unknown"


def test_what_passes_is_not_called_waived() -> None:
    assert by_check(judged({}, kvm_hardware=LIVE))["kvm.hardware"].status == "pass"


# Who is meant


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [("hv1", True), ("hv*", True), ("hv?", True), ("HV1", False), ("h", False), ("rack1", True), ("rack*", True),
     ("all", True), ("[gh]v1", True), ("hv2", False)],
)  # fmt: skip
def test_hosts_are_named_by_name_pattern_or_group(tmp_path: Path, pattern: str, matches: bool) -> None:
    found = written(tmp_path, entry(hosts=[pattern])).of("hv1", ("kvm_hosts", "rack1"))
    assert ("kvm.hardware" in found) == matches


@pytest.mark.parametrize(("expires", "holds"), [("2027-01-14", False), ("2027-01-15", True), ("2027-01-16", True)])
def test_a_waiver_holds_until_the_end_of_its_day(tmp_path: Path, expires: str, holds: bool) -> None:
    assert written(tmp_path, entry(expires=expires)).of("hv1", ())["kvm.hardware"].holds is holds


def test_of_two_waivers_the_one_that_holds_longest_counts(tmp_path: Path) -> None:
    text = entry(expires="2026-12-31") + entry(hosts=["hv*"], owner="bob") + entry(hosts=["h*"], expires="2027-01-20")
    assert written(tmp_path, text).of("hv1", ())["kvm.hardware"].owner == "bob"


def test_a_pattern_that_matches_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fleet = Fleet((Host("hv1", "hv1", groups=("rack1",)),), ())
    with caplog.at_level(logging.WARNING):
        written(tmp_path, entry(hosts=["hv1", "rack1", "hv9"])).warn_about_strangers(fleet)
    (record,) = caplog.records
    assert record.getMessage() == f"{tmp_path}/waivers.yml:1: no host or group matches hv9, so nothing is waived there"


# Where the file is


def test_the_file_is_found_beside_the_inventory(tmp_path: Path) -> None:
    (tmp_path / "hosts").mkdir()
    (tmp_path / "waivers.yml").write_text("")
    file, folder = str(tmp_path / "site.yml"), str(tmp_path / "hosts")
    assert beside([file, folder, "hv1,hv2,"]) == [tmp_path / "waivers.yml"]
    assert beside([str(tmp_path / "hosts" / "site.yml"), "hv1,"]) == []


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "[]\n"])
def test_a_file_without_waivers_is_no_mistake(tmp_path: Path, text: str) -> None:
    assert written(tmp_path, text).entries == ()


def test_the_example_of_the_documentation_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "waivers.md").read_text()
    (found,) = written(tmp_path, page.split("```yaml\n")[1].split("```")[0]).entries
    assert found.hosts == ("hv7", "rack3-*", "kvm_lab")


# Mistakes


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        (entry(check="kvm.hardwear"), ":1: there is no check 'kvm.hardwear'", "Did you mean kvm.hardware"),
        (entry(check="moon"), ":1: there is no check 'moon'", "kvmfleet explain"),
        (entry(check="host.evidence"), ":1: host.evidence cannot be waived", "nothing is known"),
        (entry(check="host.converged"), ":1: host.converged cannot be waived", "on one host"),
        (GOOD + entry(until="x"), ":2: unknown key 'until'", "check, hosts, reason, owner, expires"),
        (entry(owner=None, expires=None), ":1: the waiver has no owner and no expires", ""),
        (entry(owner=""), ":1: owner is a text, and not empty", ""),
        (entry(reason=["a"]), ":1: reason is a text", ""),
        ("- check: kvm.hardware\n  hosts: [a]\n  reason: ~\n  owner: b\n  expires: 2027-01-31\n", ":3: reason", ""),
        ("- check: kvm.hardware\n  check: kvm.node\n", ":2: check is given twice", ""),
        (entry(expires="2027-02-30"), ":1: '2027-02-30' is no date", "2027-01-31"),
        (entry(expires="31.1.2027"), ":1: '31.1.2027' is no date", ""),
        (entry(expires="20270131"), ":1: '20270131' is no date", ""),
        (entry(expires="never"), ":1: 'never' is no date", ""),
        (entry(hosts="hv1"), ":1: hosts is a list, and not empty", "hosts: [hv1"),
        (entry(hosts=[]), ":1: hosts is a list, and not empty", ""),
        (entry(hosts=["hv1:!hv2"]) + entry(hosts=["!hv1"]), ":2: '!hv1' is no pattern", ""),
        (entry(hosts=["hv1,hv2"]), ":1: 'hv1,hv2' is no pattern", ""),
        (GOOD + "\n" + GOOD, ":3: kvm.hardware is waived for hv1 already, at ", "Remove one"),
        ("waivers: []\n", ":1: a list of waivers is wanted here", ""),
        ("- kvm.hardware\n", ":1: a waiver is wanted here", ""),
        ("- {check: [\n", ":2: no YAML", ""),
        ("- &a [*b]\n", ":1: no YAML", ""),
        ("- !!python/object/apply:os.system [id]\n", ":1: a waiver is wanted here", ""),
        ("--- 1\n--- 2\n", "no YAML", ""),
        ("\x00", "no YAML", ""),
        ("[" * 5_000, "no YAML", ""),
        ("- 1\n" * 3000, "more than 2000 waivers", ""),
        ("#" * (MAX_BYTES + 1), "larger than 1 MiB", ""),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_its_place(tmp_path: Path, text: str, says: str, hint: str) -> None:
    with pytest.raises(WaiverError) as mistake:
        written(tmp_path, text)
    assert mistake.value.message.startswith(f"{tmp_path}/waivers.yml:")
    assert says in mistake.value.message
    assert hint in mistake.value.hint
    assert "\n" not in mistake.value.message


def test_a_file_that_was_named_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(WaiverError, match="No such file"):
        waivers.load(str(tmp_path / "nowhere.yml"), ())


# What is told


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A validation of two hosts that are emulated, one of which is waived."""
    monkeypatch.setenv("KVMFLEET_STATE_DIR", str(tmp_path / "state"))
    answers = tuple(Collected(name, "ssh", evidence_of(EMULATED)) for name in ("hv1", "hv2"))
    fleet = Fleet(tuple(Host(answer.host, answer.host, groups=("kvm_hosts",)) for answer in answers), ())
    standards = Standards(waivers=written(tmp_path, GOOD))
    edges = Edges(collect=lambda *_, **__: answers)
    return rollout.validate(fleet, AnsibleOptions(), standards=standards, edges=edges).results


def test_the_table_counts_what_is_waived_and_names_the_owner(results: Any) -> None:
    shown = show(terminal.report(results), width=400)
    assert "1 waived" in next(line for line in shown.splitlines() if line.startswith("hv1"))
    assert "waived hv1: kvm.hardware: KVM works, but" in shown
    assert "owner ann: why" in shown
    assert "2 hosts: 1 proven, 1 failed; 1 finding waived" in shown


def test_what_is_waived_costs_no_exit_code_even_if_strict(results: Any) -> None:
    assert summary.exit_code(results[:1], strict=True) == 0
    assert summary.exit_code(results) == 2


def test_json_and_junit_tell_it_apart(results: Any) -> None:
    document = json.loads(json_report.render(results, command="validate"))
    assert [f["check"] for f in document["hosts"][0]["findings"] if f["status"] == "waived"] == ["kvm.hardware"]
    skipped = ET.parse(io.StringIO(junit.render(results))).find("testsuite/testcase[@name='kvm.hardware']/skipped")
    assert skipped is not None
    assert "waived until 2027-01-31, owner ann: why" in skipped.get("message", "")


def test_groups_count_in_a_replay_as_well(results: Any, tmp_path: Path) -> None:
    recording.save(results, tmp_path / "saved")
    recordings = recording.read([str(tmp_path / "saved")])
    group = written(tmp_path, entry(hosts=["kvm_hosts"]))
    assert [r.judgement.verdict for r in rollout.replay(recordings).results] == ["failed", "failed"]
    assert [r.judgement.verdict for r in rollout.replay(recordings, Standards(waivers=group)).results] == ["proven"] * 2
