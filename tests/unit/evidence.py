"""Evidence for tests: a host with nothing wrong, and the few lines in which each case differs from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.judge import judge, read_contract
from orchestrator.model.contract import Contract, Profile
from orchestrator.model.evidence import Accel, Clock, Evidence, Limits, Memory, Security, Upkeep
from orchestrator.model.finding import Judgement

FOLDER = Path(__file__).parents[1] / "evidence"


class Case(msgspec.Struct, frozen=True):
    """A file below tests/evidence/CHECK/. Its name begins with the status that the check must find."""

    why: str
    summary: str  # must be part of the finding's summary
    fix: str = ""  # must be part of its fix
    cause: str = ""  # the check because of which it was skipped
    profile: Profile = "production"
    evidence: dict[str, Any] = {}  # JSON merge patches (RFC 7396) of base.json
    contract: dict[str, Any] = {}


def merged(target: Any, patch: Any) -> Any:
    """RFC 7396: null removes, objects merge, everything else replaces."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None and key != "api_version":  # the one field for which null means something
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def host(evidence: Any = None, contract: Any = None) -> Evidence:
    """The base host, changed by two patches. Its contract is the text that the host carries, as in life."""
    base = json.loads((FOLDER / "base.json").read_text("utf-8"))
    text = json.dumps(merged(base["contract"], contract or {}))
    document = merged({"contract": {"text": text, "error": ""}, **base["evidence"]}, evidence or {})
    return msgspec.convert(document, Evidence)


def judged(evidence: Evidence, profile: Profile = "production") -> Judgement:
    """With no check that fails itself, which the judge would bear with."""
    contract: Contract | None = read_contract(evidence)
    judgement = judge(evidence, contract, profile)
    upset = [finding for finding in judgement.findings if finding.summary.startswith("the check itself failed")]
    assert upset == []
    return judgement


def lasting(evidence: Evidence | None) -> Evidence:
    """Without what differs from one moment to the next, on a machine on which other tests run."""
    assert evidence
    return msgspec.structs.replace(
        evidence,
        collected_at_s=0.0,
        duration_ms=0.0,
        asked_at_s=0.0,
        heard_at_s=0.0,
        clock=Clock(),
        limits=Limits(),  # threads and files come and go
        memory=Memory(),
        processes=None,
        qemu=msgspec.structs.replace(evidence.qemu, accel=Accel(evidence.qemu.accel.outcome)),  # without its time
        security=Security(),  # its guests may be those of a test beside this one
        upkeep=Upkeep(),
    )
