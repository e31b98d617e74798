"""Every check, with evidence of a host on which it passes and of one on which it does not."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from evidence import FOLDER, Case, host, judged

from orchestrator.checks.catalogue import catalogue, explain, markdown, topics

CASES = sorted(FOLDER.glob("*/*.json"))
DOCS = FOLDER.parents[1] / "docs" / "checks.md"


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_check_finds_what_its_evidence_shows(path: Path) -> None:
    case = msgspec.json.decode(path.read_bytes(), type=Case)
    findings = {finding.check: finding for finding in judged(host(case.evidence, case.contract), case.profile).findings}
    found = findings[path.parent.name]
    assert found.status == path.stem.split("-")[0], found
    assert case.summary in found.summary
    assert case.fix in found.fix


@pytest.mark.parametrize("check", catalogue(), ids=lambda check: check.id)
def test_every_check_was_seen_passing_and_not_passing(check) -> None:
    seen = {path.stem.split("-")[0] for path in CASES if path.parent.name == check.id}
    assert "pass" in seen
    # host.reachable fails by silence, for which there is no evidence: test_judge.py
    assert seen & {"fail", "warn", "error"} or check.id == "host.reachable"


def test_every_evidence_belongs_to_a_check() -> None:
    assert {path.parent.name for path in CASES} <= {check.id for check in catalogue()}


def test_what_a_check_requires_comes_before_it() -> None:
    seen: set[str] = set()
    for check in catalogue():
        assert {*check.requires, *check.explained_by} <= seen, check.id
        seen.add(check.id)


def test_ids_are_unique() -> None:
    ids = [topic.id for topic in topics()]
    assert len(ids) == len(set(ids))


def test_what_does_not_pass_says_what_to_do_in_one_line() -> None:
    for path in CASES:
        case = msgspec.json.decode(path.read_bytes(), type=Case)
        for finding in judged(host(case.evidence, case.contract), case.profile).findings:
            assert "\n" not in finding.summary
            assert finding.fix or finding.status in ("pass", "skip"), (path, finding)


@pytest.mark.parametrize("topic", topics(), ids=lambda topic: topic.id)
def test_every_topic_explains_itself(topic) -> None:
    assert explain(topic.id) is topic
    for text in (topic.title, topic.explanation.proves, topic.explanation.how, topic.explanation.todo):
        assert text.strip()
        assert "  " not in text


def test_nobody_explains_an_unknown_check() -> None:
    assert explain("kvm.nonsense") is None


def test_the_documentation_is_the_catalogue() -> None:
    assert DOCS.read_text("utf-8") == markdown(), "run: python -m orchestrator.checks > docs/checks.md"
