"""The report as a table and a few lines under it, for people."""

from __future__ import annotations

import time
from collections.abc import Sequence, Set

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from orchestrator.model.evidence import Guest
from orchestrator.model.finding import Finding, FleetFinding
from orchestrator.model.run import EarlierBoot, HostConverged, HostResult
from orchestrator.report.summary import counts, replayed, worth_showing
from orchestrator.text import ago, counted, listed, printable

__all__ = ["given_back", "pretended", "report"]

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
    if note := replayed(results):
        parts.append(Text(f"{note}\n", style="bold yellow"))
    parts += [_Fitting(results), Text()]
    parts += [_findings(r) for r in results] if verbose else []
    shown = [(f, f.hosts or ("fleet",)) for f in fleet if verbose or f.status in ("fail", "warn")]
    told = [*([] if verbose else _advice(results)), *shown]
    below: list[RenderableType] = [_lines(told)] if told else []
    below += _unchanged(results)
    parts += [*below, Text()] if below else []
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
    return f"{counted(len(converged), 'host')}: {good} unprovisioned, {len(converged) - good} not"


def _findings(result: HostResult) -> RenderableType:
    """Every finding of one host, in the order in which they were judged."""
    table = Table(box=None, show_header=False, padding=(0, 1), title=Text(result.host), title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in result.judgement.findings:
        table.add_row(_word(finding.status), finding.check, _told(finding))
    return Padding(table, (0, 0, 1, 0), expand=False)


def _told(finding: Finding) -> Text:
    """What was found; where something is to be done, what was expected and what to do, too."""
    explained = not finding.cause or finding.cause in finding.summary
    why = finding.summary if explained else f"{finding.summary} (because of {finding.cause})"
    text = Text(printable(why, 1000))
    if finding.status in ("pass", "skip"):
        return text
    for label, said in (("expected", finding.expected), ("seen", finding.seen), ("to do", finding.fix)):
        if said:
            text.append(f"\n{label}: {printable(said, 600)}", style="dim")
    return text


class _Fitting:
    """The table of hosts, without the facts that a narrow terminal could only show in pieces of words."""

    SPARE = ("libvirt", "qemu", "system", "guest", "kvm")  # the first is missed least

    def __init__(self, results: Sequence[HostResult]) -> None:
        self._results = results

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        unlimited = options.update(max_width=10_000)
        whole = _table(self._results)
        if console.measure(whole, options=unlimited).maximum <= options.max_width:
            yield whole
            return
        without = (frozenset(self.SPARE[:number]) for number in range(len(self.SPARE)))
        tables = (_table(self._results, spared, between="\n") for spared in without)
        fits = (t for t in tables if console.measure(t, options=unlimited).minimum <= options.max_width)
        yield next(fits, None) or _table(self._results, frozenset(self.SPARE), between="\n")


def _table(results: Sequence[HostResult], without: Set[str] = frozenset(), *, between: str = " ") -> Table:
    """The table of hosts `without` these facts; `between` parts the numbers of findings from each other."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    for name in ("host", "verdict", *_FACTS, "checks"):
        if name not in without:
            # A narrow terminal folds what has spaces; a word in two lines cannot be read.
            table.add_column(name, no_wrap=name not in ("system", "guest", "checks"), overflow="fold")
    for result in results:
        facts = zip(_FACTS, _facts(result), strict=True)
        kept = [Text(printable(cell, 60)) for name, cell in facts if name not in without]
        table.add_row(Text(result.host), _word(result.judgement.verdict), *kept, _tally(result, between))
    return table


_FACTS = ("system", "kvm", "qemu", "libvirt", "guest")


def _facts(result: HostResult) -> tuple[str, str, str, str, str]:
    """_FACTS in a word or two each; a dash where nothing is known."""
    evidence = result.collected.evidence
    if evidence is None:
        return ("-",) * 5
    system, kvm = evidence.system, evidence.kvm
    proof = kvm.execution.outcome
    return (
        f"{system.os_id} {system.os_version}".strip() or "-",
        kvm.speed.outcome if proof == "works" and kvm.speed.outcome != "unknown" else proof,
        evidence.qemu.version or "-",
        evidence.libvirt.version or "-",
        _boot(evidence.guest, result.booted),
    )


def _boot(guest: Guest, before: EarlierBoot | None) -> str:
    if before:
        return f"booted {ago(time.time() - before.at_s)}, {before.domain_type}"
    return f"{guest.outcome}, {guest.domain_type}" if guest.domain_type else guest.outcome


def _tally(result: HostResult, between: str) -> Text:
    """How many findings passed, and how many did not, each in its colour."""
    statuses = [finding.status for finding in result.judgement.findings]
    text = Text(f"{statuses.count('pass')} pass", style=_STYLE["pass"])
    for status in ("warn", "fail", "error", "waived", "skip"):
        if number := statuses.count(status):
            text.append(f"{between}{number} {status}", style=_STYLE[status])
    return text


def _advice(results: Sequence[HostResult]) -> list[tuple[Finding, Sequence[str]]]:
    """For each host that is not proven, the cause with its fix, then the other findings; equal ones are told once."""
    told: dict[tuple[str, str, str], list[str]] = {}
    example: dict[tuple[str, str, str], Finding] = {}
    for result in results:
        for finding in worth_showing(result):
            key = (finding.check, str(finding.status), finding.summary)
            told.setdefault(key, []).append(result.host)
            example.setdefault(key, finding)
    return [(example[key], hosts) for key, hosts in told.items()]


def _unchanged(results: Sequence[HostResult]) -> list[Text]:
    """The hosts on which the playbook was not run, and why."""
    told: dict[str, list[str]] = {}
    for result in results:
        if result.converged and result.converged.outcome == "unchanged":
            told.setdefault(" ".join(result.converged.notes), []).append(result.host)
    lines = [Text(f"{listed(hosts)}: ", style="bold").append(f"unchanged: {why}", "") for why, hosts in told.items()]
    if sum(map(len, told.values())) == len(results) > 0:
        lines.append(Text("The playbook was not run on any host; `kvmfleet provision --force` runs it on all."))
    return lines


def _lines(told: Sequence[tuple[Finding, Sequence[str]]]) -> Table:
    """A line for each finding with its hosts; it is indented where it goes on."""
    lines = Table.grid(padding=(0, 1))
    lines.add_column(min_width=5, no_wrap=True)
    lines.add_column(overflow="fold")
    for finding, hosts in told:
        lines.add_row(_word(finding.status), _line(finding, hosts))
    return lines


def _line(finding: Finding, hosts: Sequence[str]) -> Text:
    text = Text()
    text.append(f"{listed(hosts)}: ", style="bold")
    text.append(f"{finding.check}: {printable(finding.summary, 1000)}")
    if finding.fix and finding.status != "waived":
        text.append(f"\n{printable(finding.fix, 600)}", style="dim")
    return text


def _closing(results: Sequence[HostResult]) -> Text:
    words = [f"{number} {verdict}" for verdict, number in counts(results).items() if number]
    waived = sum(finding.status == "waived" for result in results for finding in result.judgement.findings)
    note = f"; {counted(waived, 'finding')} waived" if waived else ""
    return Text(f"{counted(len(results), 'host')}: {', '.join(words)}{note}", style="bold")


def _word(word: str) -> Text:
    return Text(word, style=_STYLE.get(word, ""))
