"""The published JSON Schemas, against documents that are really written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from evidence import host as evidence_of

from orchestrator import recording, rollout
from orchestrator.inventory import AnsibleOptions, Fleet, Host
from orchestrator.model.drift import Drift, HostDrift
from orchestrator.model.run import Change, Collected, HostConverged
from orchestrator.report import drift_json
from orchestrator.report import json as json_report
from orchestrator.report import plan as plan_report
from orchestrator.report.schema import DOCUMENTS, schema
from orchestrator.rollout import Edges

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "schema"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Documents of a run with a good host, a broken one and a silent one, as they are when they are read back."""
    folder = tmp_path_factory.mktemp("run")
    answers = (
        Collected("hv1", "ssh", evidence_of({})),
        Collected("hv2", "local", evidence_of({"kvm": {"node": {"exists": False}, "api_version": None}})),
        Collected("hv3", "ansible", problem="connection refused", unreachable=True),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVMFLEET_STATE_DIR", str(folder / "state"))
        run = rollout.validate(
            Fleet(tuple(Host(answer.host, answer.host) for answer in answers), ()),
            AnsibleOptions(),
            edges=Edges(collect=lambda *_, **__: answers),
        )
    recording.save(run.results, folder / "saved")
    report = json.loads(json_report.render(run.results, command="validate"))
    found = (
        HostDrift("hv1", "drifted", 2.0, 3.0, (Drift("contract", "a", None, 2.0),), told_s=3.0, took_s=0.1),
        HostDrift("hv2", "unreachable", problem="refused", hint="Look."),
    )
    pretended = (
        HostConverged("hv1", "ok", changed=1, changes=(Change("libvirt : Start", "libvirt", ("libvirtd.socket",)),)),
        HostConverged("hv2", "skipped"),
    )
    return {
        "drift": json.loads(drift_json.render(found, began_s=1.0, ended_s=3.5)),
        "report": report,
        "plan": json.loads(plan_report.render(plan_report.plan(pretended))),
        "recording": json.loads((folder / "saved" / "hv1.json").read_text()),
        "evidence": report["hosts"][0]["evidence"],
        "contract": json.loads(report["hosts"][0]["evidence"]["contract"]["text"]),
    }


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_published_schema_is_that_of_the_types(name: str) -> None:
    assert (FOLDER / f"{name}.json").read_text() == schema(name), "run scripts/docs"


def test_nothing_else_is_published() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(DOCUMENTS)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_is_written_fits_its_schema(name: str, written: dict[str, Any]) -> None:
    described = json.loads(schema(name))
    jsonschema.Draft202012Validator.check_schema(described)
    jsonschema.Draft202012Validator(described).validate(written[name])


@pytest.mark.parametrize(
    ("name", "path", "wrong"),
    [
        ("report", ("hosts", 0, "verdict"), "excellent"),
        ("report", ("hosts", 1, "findings", 0, "status"), "maybe"),
        ("recording", ("collected", "path"), "telepathy"),
        ("evidence", ("system", "hostname"), "x" * 257),
        ("drift", ("hosts", 0, "state"), "fine"),
        ("drift", ("hosts", 0, "items", 0, "since_s"), "yesterday"),
        ("contract", ("profile",), "home"),
        ("plan", ("hosts", 0, "state"), "drifted"),
    ],
)
def test_a_schema_refuses_what_is_wrong(name: str, path: tuple[str | int, ...], wrong: str, written: Any) -> None:
    document = json.loads(json.dumps(written[name]))
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = wrong
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(json.loads(schema(name))).validate(document)
