"""Reports as JUnit XML, for CI servers: one suite a host, one case a check; of drift one suite, one case a host.

Format: https://github.com/testmoapp/junitxml (the elements that Jenkins, GitLab and GitHub actions read).
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence

from orchestrator.model.drift import TOLD, Drift, HostDrift
from orchestrator.model.finding import Finding, FleetFinding
from orchestrator.model.run import HostResult
from orchestrator.report.drift import heal
from orchestrator.snapshot import owner
from orchestrator.text import counted, moment, printable

__all__ = ["render", "render_drift"]

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
    return _document(root)


def render_drift(hosts: Sequence[HostDrift], inventory: Sequence[str] = (), *, strict: bool = False) -> str:
    """The XML document of a drift check: drift is a failure, and not knowing an error. `strict`: pending fails too."""
    root = ET.Element("testsuites", name="kvmfleet")
    root.append(_counted("drift", [_host(host, inventory, strict=strict) for host in hosts]))
    return _document(root)


def _document(root: ET.Element) -> str:
    for key in ("tests", "failures", "errors", "skipped"):
        root.set(key, str(sum(int(suite.get(key, "0")) for suite in root)))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _properties(result: HostResult) -> dict[str, str]:
    told: dict[str, str] = {"verdict": result.judgement.verdict}
    if result.converged and result.converged.outcome == "unchanged":
        told["unchanged"] = " ".join(result.converged.notes)
    if (at := result.collected.recorded_at_s) is not None:
        told["replay"] = f"of evidence that was recorded at {moment(at)}"
    return told


def _suite(name: str, findings: Sequence[Finding], **properties: str) -> ET.Element:
    return _counted(name, [_case(name, finding) for finding in findings], **properties)


def _counted(name: str, cases: Sequence[ET.Element], **properties: str) -> ET.Element:
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


def _host(host: HostDrift, inventory: Sequence[str], *, strict: bool) -> ET.Element:
    case = ET.Element("testcase", classname="drift", name=printable(host.host))
    if host.took_s is not None:
        case.set("time", f"{host.took_s:.3f}")
    lines = [printable(text) for text in (host.problem, host.hint) if text]
    lines += [line for item in host.items for line in _drifted(host, item, inventory)]
    waiting = "pending: the inventory or the roles changed since the last provision" if host.pending else ""
    if host.state not in TOLD:
        ET.SubElement(case, "error", message=f"{host.state}: {printable(host.problem)}").text = "\n".join(lines) or None
    elif host.items:
        told = f"{counted(len(host.items), 'item')} drifted" + (f"; {waiting}" if waiting else "")
        ET.SubElement(case, "failure", message=told).text = "\n".join(lines)
    elif waiting:
        if strict:
            ET.SubElement(case, "failure", message=waiting)
        else:
            ET.SubElement(case, "system-out").text = waiting
    return case


def _drifted(host: HostDrift, item: Drift, inventory: Sequence[str]) -> list[str]:
    rows = (
        ("expected", item.expected),
        ("seen", item.seen),
        ("since", moment(item.since_s)),
        ("owner", owner(item.item) or "no role"),
        ("heal", heal(host.host, item, inventory, left=item.item in host.left)),
    )
    told = [f"  {label}: {'nothing' if text is None else printable(text)}" for label, text in rows]
    return [printable(item.item), *told]
