"""Equal digests mean that a new rollout would ask for the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator import intent
from orchestrator.inventory import Fleet, Host


@pytest.fixture
def content(tmp_path: Path) -> Path:
    for name, text in {
        "roles/pump/tasks/main.yml": "tasks",
        "roles/pump/README.md": "about",
        "playbooks/provision.yml": "play",
        "plugins/modules/net.py": "module",
        "docs/index.md": "docs",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def digest(content: Path, name: str = "h1", **variables: Any) -> str:
    return digests(content, {name: variables})[name]


def digests(content: Path, hosts: Mapping[str, Mapping[str, Any]]) -> Mapping[str, str]:
    fleet = Fleet(hosts=tuple(Host(name=n, address=n, variables=v) for n, v in hosts.items()), sources=())
    return intent.digests(fleet, content=content)


def test_it_is_a_sha256_and_the_same_twice(content: Path) -> None:
    first = digest(content, nested=True, users=["a", "b"])
    assert first == digest(content, users=["a", "b"], nested=True)
    assert len(bytes.fromhex(first)) == 32


@pytest.mark.parametrize("name", ["roles/pump/tasks/main.yml", "playbooks/provision.yml", "plugins/modules/net.py"])
def test_what_can_change_a_host_changes_it(content: Path, name: str) -> None:
    before = digest(content)
    (content / name).write_text("other")
    assert digest(content) != before


def test_a_new_or_renamed_file_changes_it(content: Path) -> None:
    before = digest(content)
    (content / "roles/pump/tasks/main.yml").rename(content / "roles/pump/tasks/more.yml")
    renamed = digest(content)
    (content / "roles/pump/tasks/empty.yml").touch()
    assert len({before, renamed, digest(content)}) == 3


def test_text_that_moves_from_one_file_to_the_next_changes_it(content: Path) -> None:
    (content / "roles/a").write_text("one")
    (content / "roles/b").write_text("two")
    before = digest(content)
    (content / "roles/a").write_text("onet")
    (content / "roles/b").write_text("wo")
    assert digest(content) != before


@pytest.mark.parametrize(
    "name",
    ["roles/pump/README.md", "docs/index.md", "roles/pump/.main.yml.swp", "plugins/__pycache__/net.pyc", "roles/x~"],
)
def test_what_cannot_change_a_host_does_not_change_it(content: Path, name: str) -> None:
    before = digest(content)
    (content / name).parent.mkdir(exist_ok=True)
    (content / name).write_text("other")
    assert digest(content) == before


def test_variables_change_only_their_own_host(content: Path) -> None:
    before = digests(content, {"h1": {"a": {"b": 1}}, "h2": {"a": {"b": 1}}})
    after = digests(content, {"h1": {"a": {"b": 2}}, "h2": {"a": {"b": 1}}})
    assert before["h1"] != after["h1"]
    assert before["h2"] == after["h2"]


def test_hosts_with_the_same_variables_differ_by_their_name(content: Path) -> None:
    assert digest(content, "h1") != digest(content, "h2")


def test_how_to_reach_a_host_does_not_count(content: Path) -> None:
    assert digest(content, ansible_host="10.0.0.1", ansible_password="old") == digest(content)


def test_the_order_inside_a_value_counts_only_where_it_has_one(content: Path) -> None:
    assert digest(content, a={"x": 1, "y": 2}) == digest(content, a={"y": 2, "x": 1})
    assert digest(content, a=[1, 2]) != digest(content, a=[2, 1])


def test_the_content_that_is_shipped_has_a_digest() -> None:
    fleet = Fleet(hosts=(Host(name="h1", address="h1"),), sources=())
    assert intent.digests(fleet).keys() == {"h1"}


def test_another_ca_changes_it_for_hosts_that_have_certificates_of_it(
    content: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVMFLEET_STATE_DIR", str(tmp_path / "state"))
    tls = {"libvirt_remote_transports": ["ssh", "tls"]}
    before, without = digest(content, **tls), digest(content)
    (tmp_path / "state/pki").mkdir(parents=True)
    (tmp_path / "state/pki/ca.pem").write_text("another CA")
    assert digest(content, **tls) != before
    assert digest(content) == without
