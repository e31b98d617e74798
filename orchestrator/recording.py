"""Recorded evidence: one file a host, saved after a run and judged again without any host."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated
from urllib.parse import quote, unquote

import msgspec

from orchestrator import __version__, paths, whole_file
from orchestrator.errors import UsageError
from orchestrator.model.contract import SCHEMA, Profile
from orchestrator.model.run import Collected, HostConverged, HostResult
from orchestrator.text import printable, printable_json

__all__ = ["MAX_BYTES", "Recording", "file_name", "read", "save"]

FORMAT = 1
"""Version of a recording; that of the evidence in it is its own."""

MAX_BYTES = 8 << 20
"""Of one file. Evidence that came from a host has at most an eighth of it, and grows by its indentation."""

_LONGEST_NAME = 200  # of a file, in bytes; a file system takes 255
_RECORD = "Record it again: kvmfleet validate --save-evidence DIR"

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Short = Annotated[str, msgspec.Meta(max_length=256)]


class Recording(msgspec.Struct, frozen=True):
    """What one run learned about one host, and what of the inventory its judgement needs. The contract is evidence."""

    recording: int  # FORMAT
    kvmfleet: Short
    recorded_at_s: float | None  # since the epoch, the controller's clock; None where a damaged file does not tell
    profile: Profile  # that the host was judged by
    groups: Annotated[tuple[Short, ...], msgspec.Meta(max_length=4096)]  # of the inventory
    collected: Collected
    converged: HostConverged | None = None


class _Schema(msgspec.Struct):
    schema: int


class _Subject(msgspec.Struct):
    host: Name
    evidence: _Schema | None = None


class _Head(msgspec.Struct):
    """What every version of a recording has, so that one of another version is told from rubbish."""

    recording: int
    kvmfleet: Short
    collected: _Subject


def save(results: Iterable[HostResult], folder: Path) -> None:
    """One file a host, for its owner alone; those of other hosts in the folder stay.

    Raises:
        OSError: a file cannot be written.
    """
    paths.private(folder)
    now_s = time.time()
    for result in results:
        recording = Recording(
            FORMAT, __version__, now_s, result.profile, result.groups, result.collected, result.converged
        )
        whole_file.write(folder / file_name(result.host), printable_json(recording), mode=0o600)


def file_name(host: str) -> str:
    """A name that leaves no folder, hides no file and is no other host's, whatever the host is called."""
    name = quote(host, safe="", errors="surrogatepass")
    name = f"%2E{name[1:]}" if name.startswith(".") else name
    if len(name) > _LONGEST_NAME:
        import hashlib

        name = f"{name[: _LONGEST_NAME - 17]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return f"{name}.json"


def read(places: Sequence[str]) -> tuple[Recording, ...]:
    """The recordings in files and folders, in that order; a folder's by name.

    A file that is no usable recording is a host of which nothing is known: it is in the answer with the problem, so
    that it never passes and does not cost the answer about the others.

    Raises:
        UsageError: a place is not there or holds none, or two files are about one host.
    """
    found: dict[str, tuple[Path, Recording]] = {}
    for file in _files(places):
        recording = _read(file)
        host = recording.collected.host
        if host in found:
            raise UsageError(
                f"{printable(host)} is in two recordings, {found[host][0]} and {file}.",
                hint="Which of them counts? Name that one.",
            )
        found[host] = (file, recording)
    return tuple(recording for _, recording in found.values())


def _files(places: Iterable[str]) -> Iterator[Path]:
    for place in map(Path, places):
        try:
            place.stat()
        except OSError as e:
            why = "no such file or folder" if isinstance(e, FileNotFoundError) else e.strerror
            raise UsageError(f"{place}: {why}.", hint="--from takes what --save-evidence wrote.") from e
        if not place.is_dir():
            yield place
            continue
        try:
            files = sorted(p for p in place.iterdir() if p.suffix == ".json" and p.name[0] != "." and p.is_file())
        except OSError as e:
            raise UsageError(f"{place}: {e.strerror}.", hint="Check its owner and mode.") from e
        if not files:
            raise UsageError(f"{place}: there is no evidence in this folder.", hint=_RECORD)
        yield from files


def _read(file: Path) -> Recording:
    """The recording, or one with the reason why there is none."""
    host = printable(unquote(file.stem), 250) or "?"
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            return _unusable(host, file, f"more than {MAX_BYTES >> 20} MiB, which no evidence has", _RECORD)
        head = msgspec.json.decode(raw, type=_Head)
        host = printable(head.collected.host, 256)
        if problem := _too_new_or_old(head):
            return _unusable(host, file, problem, f"Judge it with the kvmfleet that recorded it. Or {_RECORD}")
        return _printable(msgspec.json.decode(raw, type=Recording))
    except OSError as e:
        return _unusable(host, file, e.strerror or str(e), "Check its owner and mode.")
    except msgspec.ValidationError as e:
        return _unusable(host, file, _misfit(raw, e), _RECORD)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        what = "it is empty" if not raw.strip() else f"it is no whole JSON: {e}"
        return _unusable(host, file, what, f"It may have been cut off on its way. {_RECORD}")


def _printable(recording: Recording) -> Recording:
    """With what every report takes as safe to print: the file may come from anybody."""
    collected, converged = recording.collected, recording.converged
    safe = {name: printable(getattr(collected, name), 1000) for name in ("host", "problem", "hint")}
    if converged:
        notes = tuple(printable(note, 4000) for note in converged.notes)
        converged = msgspec.structs.replace(converged, notes=notes)
    collected = msgspec.structs.replace(collected, **safe)
    return msgspec.structs.replace(recording, collected=collected, converged=converged)


def _too_new_or_old(head: _Head) -> str:
    evidence = head.collected.evidence
    if head.recording != FORMAT:
        return f"recording of format {head.recording}, this kvmfleet reads {FORMAT}; it was made by {head.kvmfleet}"
    if evidence and evidence.schema != SCHEMA:
        return f"evidence of schema {evidence.schema}, this kvmfleet reads {SCHEMA}; it was recorded by {head.kvmfleet}"
    return ""


def _misfit(raw: bytes, error: msgspec.ValidationError) -> str:
    """Why JSON is no recording; a report is what most people will try."""

    class Report(msgspec.Struct):
        hosts: list[object]

    try:
        msgspec.json.decode(raw, type=Report)
    except (msgspec.DecodeError, RecursionError):
        return f"it is no recording: {error}"
    return "it is a report of --json, not a recording of evidence"


def _unusable(host: str, file: Path, problem: str, hint: str) -> Recording:
    collected = Collected(host, "file", problem=printable(f"{file}: {problem}"), hint=hint)
    return Recording(FORMAT, __version__, None, "production", (), collected)
