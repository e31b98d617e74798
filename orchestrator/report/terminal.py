"""The report as a table and a few lines under it, for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from orchestrator.model import Evidence, Finding, FleetFinding, HostConverged, HostResult
from orchestrator.report.summary import counts, replayed, worth_showing
from orchestrator.text import printable

__all__ = ["findings", "given_back", "pretended", "report"]

_STYLE = {
    "proven": "bold green",
    "degraded": "bold yellow",
    "failed": "bold red",
    "unreachable": "bold magenta",
    "unknown": "bold magenta",
    "pass": "green",
    "warn": "yellow",
    "fail": "red",
    "error": "magenta",
    "skip": "dim",
    "waived": "cyan",
}


def report(
    results: Sequence[HostResult], fleet: Sequence[FleetFinding] = (), *, verbose: bool = False
) -> RenderableType:
    """The table of hosts, then what a person should do about each host that is not proven.

    What the hosts are together comes last. With `verbose` every finding of every host is listed. Hosts' strings are
    escaped and never read as markup.
    """
    parts: list[RenderableType] = []
    if told := replayed(results):
        parts.append(Text(f"{told}\n", style="bold yellow"))
    parts += [_table(results), Text()]
    parts += [findings(r) for r in results] if verbose else list(_advice(results))
    parts += [
        _line(finding, finding.hosts or ["fleet"]) for finding in fleet if verbose or finding.status in ("fail", "warn")
    ]
    parts.append(_closing(results))
    return Group(*parts)


def pretended(converged: Sequence[HostConverged]) -> RenderableType:
    """What check mode would have done to each host."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    for name in ("host", "outcome", "ok", "would change", "failed", "why"):
        table.add_column(name)
    for host in converged:
        why = f"{host.failure.task}: {host.failure.message}" if host.failure else ""
        style = _STYLE["pass"] if host.outcome == "ok" else _STYLE["fail"]
        numbers = (str(host.ok), str(host.changed), str(host.failed))
        table.add_row(Text(host.host), Text(host.outcome, style=style), *numbers, Text(printable(why, 1000)))
    return Group(table, Text("\nCheck mode: nothing was changed, so nothing was proven.", style="bold"))


def given_back(converged: Sequence[HostConverged], *, check: bool) -> RenderableType:
    """What happened to each host that was unprovisioned, or would, and below it what it says about that."""
    parts: list[RenderableType] = []
    for host in converged:
        parts.append(_outcome(host, check=check))
        parts += [Text(f"  {printable(note, 4000)}") for note in host.notes]
    closing = "Check mode: nothing was changed." if check else _summary(converged)
    return Group(*parts, Text(f"\n{closing}", style="bold"))


def _outcome(host: HostConverged, *, check: bool) -> Text:
    text = Text(f"{host.host}: ", style="bold")
    if host.outcome == "ok":
        words = "would be taken back" if check else "taken back" if host.changed else "nothing to take back"
        return text.append(words, style=_STYLE["pass"])
    why = f"{host.failure.task}: {host.failure.message}" if host.failure else "the playbook never got to this host"
    return text.append(host.outcome, style=_STYLE["fail"]).append(f"  {printable(why, 1000)}")


def _summary(converged: Sequence[HostConverged]) -> str:
    good = sum(host.outcome == "ok" for host in converged)
    return (
        f"{len(converged)} host{'s' if len(converged) != 1 else ''}: {good} unprovisioned, {len(converged) - good} not"
    )


def findings(result: HostResult) -> RenderableType:
    """Every finding of one host, in the order in which they were judged."""
    table = Table(box=None, show_header=False, padding=(0, 1), title=Text(result.host), title_justify="left")
    for finding in result.judgement.findings:
        why = f"{finding.summary} (because of {finding.cause})" if finding.cause else finding.summary
        table.add_row(_word(finding.status), finding.check, Text(printable(why)))
    return Padding(table, (0, 0, 1, 0), expand=False)


def _table(results: Sequence[HostResult]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    for name in ("host", "verdict", "system", "kvm", "qemu", "libvirt", "guest", "checks"):
        # A narrow terminal folds what has spaces; a word in two lines cannot be read.
        table.add_column(name, no_wrap=name not in ("system", "guest", "checks"), overflow="fold")
    for result in results:
        facts = [Text(printable(cell, 60)) for cell in _facts(result.collected.evidence)]
        table.add_row(Text(result.host), _word(result.judgement.verdict), *facts, _tally(result))
    return table


def _facts(evidence: Evidence | None) -> tuple[str, str, str, str, str]:
    """System, KVM, QEMU, libvirt and guest in a word or two each; a dash where nothing is known."""
    if evidence is None:
        return ("-",) * 5
    system, kvm, guest = evidence.system, evidence.kvm, evidence.guest
    proof = kvm.execution.outcome
    boot = f"{guest.outcome}, {guest.domain_type}" if guest.domain_type else guest.outcome
    return (
        f"{system.os_id} {system.os_version}".strip() or "-",
        kvm.speed.outcome if proof == "works" and kvm.speed.outcome != "unknown" else proof,
        evidence.qemu.version or "-",
        evidence.libvirt.version or "-",
        boot,
    )


def _tally(result: HostResult) -> Text:
    """How many findings passed, and how many did not, each in its colour."""
    statuses = [finding.status for finding in result.judgement.findings]
    text = Text(f"{statuses.count('pass')} pass", style=_STYLE["pass"])
    for status in ("warn", "fail", "error", "waived", "skip"):
        if number := statuses.count(status):
            text.append(f" {number} {status}", style=_STYLE[status])
    return text


def _advice(results: Sequence[HostResult]) -> Iterator[RenderableType]:
    """For each host that is not proven, the cause with its fix, then the other findings; equal ones are told once."""
    told: dict[tuple[str, str, str], list[str]] = {}
    example: dict[tuple[str, str, str], Finding] = {}
    for result in results:
        for finding in worth_showing(result):
            key = (finding.check, str(finding.status), finding.summary)
            told.setdefault(key, []).append(result.host)
            example.setdefault(key, finding)
    for key, hosts in told.items():
        yield _line(example[key], hosts)


def _line(finding: Finding, hosts: Sequence[str]) -> RenderableType:
    text = Text()
    text.append(f"{finding.status:<5} ", style=_STYLE[finding.status])
    text.append(f"{_names(hosts)}: ", style="bold")
    text.append(f"{finding.check}: {printable(finding.summary, 1000)}")
    if finding.fix and finding.status != "waived":
        text.append(f"\n      {printable(finding.fix, 600)}", style="dim")
    return text


def _names(hosts: Sequence[str]) -> str:
    """The hosts' names, the first five of a long list."""
    shown = ", ".join(hosts[:5])
    return shown if len(hosts) <= 5 else f"{shown} and {len(hosts) - 5} more"


def _closing(results: Sequence[HostResult]) -> Text:
    words = [f"{number} {verdict}" for verdict, number in counts(results).items() if number]
    waived = sum(finding.status == "waived" for result in results for finding in result.judgement.findings)
    note = f"; {waived} finding{'s' if waived != 1 else ''} waived" if waived else ""
    return Text(f"\n{len(results)} host{'s' if len(results) != 1 else ''}: {', '.join(words)}{note}", style="bold")


def _word(word: str) -> Text:
    return Text(word, style=_STYLE.get(word, ""))
