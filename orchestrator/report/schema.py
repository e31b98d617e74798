"""JSON Schema of the documents that programs read; `scripts/docs` writes them to docs/schema."""

from __future__ import annotations

import msgspec

from orchestrator.model.contract import Contract
from orchestrator.model.evidence import Evidence
from orchestrator.recording import Recording
from orchestrator.report.drift_json import DriftReport
from orchestrator.report.json import Report
from orchestrator.report.plan import Plan

__all__ = ["DOCUMENTS", "schema"]

DOCUMENTS: dict[str, type[msgspec.Struct]] = {
    "contract": Contract,  # /etc/kvmfleet/contract.json on a host
    "drift": DriftReport,  # --json of drift
    "evidence": Evidence,  # inside the others
    "recording": Recording,  # a file of --save-evidence
    "report": Report,  # --json
    "plan": Plan,  # plan --json
}


def schema(name: str) -> str:
    """The JSON Schema (draft 2020-12) of a document, as the text of a file.

    Additions are not refused: a newer kvmfleet may say more, and what is there keeps its meaning.
    """
    described = msgspec.json.schema(DOCUMENTS[name])
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"kvmfleet {name}"}
    return msgspec.json.format(msgspec.json.encode(head | described), indent=2).decode() + "\n"
