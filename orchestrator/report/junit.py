"""The report as JUnit XML, for CI servers: one suite a host, one case a check.

Format: https://github.com/testmoapp/junitxml (the elements that Jenkins, GitLab and GitHub actions read).
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence

from orchestrator.model import Finding, FleetFinding, HostResult
from orchestrator.text import moment, printable

__all__ = ["render"]

_ELEMENT = {"fail": "failure", "error": "error", "skip": "skipped", "waived": "skipped"}


def render(results: Sequence[HostResult], fleet: Sequence[FleetFinding] = ()) -> str:
    """The XML document; what the hosts are together is a suite of its own.

    A silent host is a suite whose one case is an error, so that it never passes.
    """
    root = ET.Element("testsuites", name="kvmfleet")
    for result in results:
        root.append(_suite(result.host, result.judgement.findings, **_properties(result)))
    if fleet:
        root.append(_suite("fleet", fleet))
    for key in ("tests", "failures", "errors", "skipped"):
        root.set(key, str(sum(int(suite.get(key, "0")) for suite in root)))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _properties(result: HostResult) -> dict[str, str]:
    verdict, at = result.judgement.verdict, result.collected.recorded_at_s
    if at is None:
        return {"verdict": verdict}
    return {"verdict": verdict, "replay": f"of evidence that was recorded at {moment(at)}"}


def _suite(name: str, findings: Sequence[Finding], **properties: str) -> ET.Element:
    cases = [_case(name, finding) for finding in findings]
    suite = ET.Element("testsuite", name=printable(name), tests=str(len(cases)))
    for key, element in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(key, str(sum(case.find(element) is not None for case in cases)))
    if properties:
        holder = ET.SubElement(suite, "properties")
        for key, value in properties.items():
            ET.SubElement(holder, "property", name=key, value=value)
    suite.extend(cases)
    return suite


def _case(host: str, finding: Finding) -> ET.Element:
    case = ET.Element("testcase", classname=printable(host), name=finding.check)
    if finding.status in _ELEMENT:
        outcome = ET.SubElement(case, _ELEMENT[finding.status], message=printable(finding.summary))
        outcome.text = "\n".join(_lines(finding)) or None
    elif finding.status == "warn":
        ET.SubElement(case, "system-out").text = "\n".join([f"warning: {printable(finding.summary)}", *_lines(finding)])
    return case


def _lines(finding: Finding) -> list[str]:
    rows = (
        ("expected", finding.expected),
        ("seen", finding.seen),
        ("because of", finding.cause),
        ("fix", finding.fix),
    )
    return [f"{label}: {printable(text)}" for label, text in rows if text]
