"""The report as one page that needs nothing else: no network, and no script to be complete.

The page names the hashes of its own style and script, so that a browser runs and loads nothing else, whatever a host
has said.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jinja2
import msgspec

from orchestrator import __version__
from orchestrator.checks.catalogue import topics
from orchestrator.model.evidence import Evidence, Guest
from orchestrator.model.finding import Finding, FleetFinding, Status, Verdict
from orchestrator.model.run import EarlierBoot, HostResult
from orchestrator.report.summary import counts, replayed, worth_showing
from orchestrator.text import moment, printable

__all__ = ["render"]

FOLDER = Path(__file__).with_name("page")

LETTERS: dict[Status, str] = {"fail": "F", "error": "E", "warn": "W", "waived": "V", "skip": "s", "pass": "p"}
"""In the matrix. What is well is small, so that the rest is found without colours."""

_WORST_FIRST: tuple[Verdict, ...] = ("failed", "unknown", "unreachable", "degraded", "proven")
_QUIET = ("pass", "skip")


class _Column(msgspec.Struct, frozen=True):
    """A check in the matrix."""

    id: str
    title: str
    problems: int  # hosts on which it did not pass and was not skipped


class _Row(msgspec.Struct, frozen=True):
    """A host."""

    id: str  # of its place in the page
    result: HostResult
    by_check: dict[str, Finding]
    problems: tuple[Finding, ...]  # the root cause first
    quiet: tuple[Finding, ...]  # passed or skipped, in the order of the chain
    facts: tuple[tuple[str, str], ...]

    @property
    def advice(self) -> Finding | None:
        return self.result.judgement.cause or next((f for f in self.problems if f.status != "waived"), None)

    @property
    def tally(self) -> str:
        """In the order of the table on the terminal."""
        statuses = Counter(finding.status for finding in self.result.judgement.findings)
        order: tuple[Status, ...] = ("pass", "warn", "fail", "error", "waived", "skip")
        return ", ".join(f"{statuses[status]} {status}" for status in order if statuses[status])

    @property
    def searched(self) -> str:
        """What the field at the top of the page finds the host by."""
        found = (f"{finding.check} {finding.status} {finding.summary}" for finding in self.problems)
        words = (self.result.host, self.result.judgement.verdict, *self.result.groups, *found)
        return printable(" ".join(words), 4000).lower()


def render(results: Sequence[HostResult], fleet: Sequence[FleetFinding] = (), *, command: str, ended_s: float) -> str:
    """The document. Hosts with the worst verdict come first, and keep their order among themselves."""
    ordered = sorted(results, key=lambda result: _WORST_FIRST.index(result.judgement.verdict))
    rows = [_row(f"h{number}", result) for number, result in enumerate(ordered)]
    columns = _columns(rows)
    style, script = ((FOLDER / name).read_text("utf-8") for name in ("page.css", "page.js"))
    template = _environment().get_template("page.html")
    return template.render(
        command=command,
        ended=moment(ended_s),
        version=__version__,
        replay=replayed(results),
        counts={verdict: counts(results)[verdict] for verdict in _WORST_FIRST},
        columns=columns,
        spans=[len(list(group)) for _, group in itertools.groupby(columns, lambda c: c.id.partition(".")[0])],
        letters=LETTERS,
        rows=rows,
        among=[finding for finding in fleet if finding.status not in _QUIET],
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["printable"] = printable
    return environment


def _hash(text: str) -> str:
    """In the words of a Content-Security-Policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _columns(rows: Sequence[_Row]) -> list[_Column]:
    """Every check that any host has a finding of, in the order of the chain."""
    seen = Counter(check for row in rows for check in row.by_check)
    problems = Counter(finding.check for row in rows for finding in row.problems if finding.status not in _QUIET)
    titles = {topic.id: topic.title for topic in topics()}
    chain = [*titles, *sorted(seen.keys() - titles.keys())]
    return [_Column(check, titles.get(check, check), problems[check]) for check in chain if seen[check]]


def _row(id: str, result: HostResult) -> _Row:
    findings = result.judgement.findings
    return _Row(
        id=id,
        result=result,
        by_check={finding.check: finding for finding in findings},
        problems=worth_showing(result),
        quiet=tuple(finding for finding in findings if finding.status in _QUIET),
        facts=tuple((label, value) for label, value in _facts(result) if value),
    )


def _facts(result: HostResult) -> list[tuple[str, str]]:
    """The evidence in a few words, with how it came here."""
    collected = result.collected
    facts = [
        ("profile", result.profile),
        ("groups", ", ".join(group for group in result.groups if group != "all")),
        ("asked through", collected.path),
        ("recorded", moment(collected.recorded_at_s) if collected.recorded_at_s is not None else ""),
    ]
    seen = _seen(collected.evidence, result.booted) if collected.evidence else [("no evidence", collected.problem)]
    return facts + seen


def _seen(evidence: Evidence, booted: EarlierBoot | None) -> list[tuple[str, str]]:
    system, cpu, kvm, guest = evidence.system, evidence.cpu, evidence.kvm, evidence.guest
    place = system.container or system.virtual or "bare metal"
    return [
        ("collected", f"{moment(evidence.collected_at_s)} by the host's clock, in {evidence.duration_ms / 1000:.1f} s"),
        ("system", f"{system.os_name or system.os_id}, {system.arch}, {place}"),
        ("kernel", system.kernel),
        ("processor", f"{cpu.model or cpu.vendor}, {cpu.threads} threads"),
        ("KVM", f"works, {kvm.speed.outcome}" if kvm.execution.outcome == "works" else kvm.execution.outcome),
        ("QEMU", evidence.qemu.version or "none"),
        ("libvirt", evidence.libvirt.version or "does not answer"),
        ("guest", _boot(guest, booted)),
    ]


def _boot(guest: Guest, before: EarlierBoot | None) -> str:
    if before:
        return f"booted at {moment(before.at_s)}: {before.depth} {before.domain_type}"
    return " ".join(filter(None, (guest.outcome, guest.depth, guest.domain_type)))
