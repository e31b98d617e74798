"""The tags of the tasks that make hosts KVM hosts, and whether the user named one of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import yaml

from orchestrator import paths
from orchestrator.errors import UsageError
from orchestrator.text import suggestion

__all__ = ["known", "refuse_unknown"]

PLAYBOOK = "provision.yml"
SPECIAL = frozenset({"all", "always", "never", "tagged", "untagged"})
"""What Ansible gives a meaning of its own."""


def known() -> frozenset[str]:
    """Read without Ansible, which takes seconds for it; every tag is at a task of the playbook itself."""
    return frozenset(_tags(yaml.safe_load((paths.content() / "playbooks" / PLAYBOOK).read_text(encoding="utf-8"))))


def refuse_unknown(option: str, values: Iterable[str]) -> None:
    """Raises UsageError for a tag of no task: Ansible leaves out all other tasks for it, or none, and is content."""
    tags = known()
    for value in values:
        named = [tag.strip() for tag in value.split(",") if tag.strip()]
        if not named:
            raise UsageError(f"{option}: an empty name.", hint="A variable of the shell may not be set.")
        for tag in named:
            if tag not in tags | SPECIAL:
                hint = suggestion(tag, tags, f"Tags are: {', '.join(sorted(tags))}")
                raise UsageError(f"{option}: no task has the tag {tag!a}.", hint=hint)


def _tags(node: object) -> Iterator[str]:
    """Those of a task, a block or a play, and all within."""
    if isinstance(node, list):
        for one in node:
            yield from _tags(one)
    elif isinstance(node, dict):
        tags = node.get("tags", ())
        yield from [tags] if isinstance(tags, str) else tags
        for part in ("tasks", "block"):
            yield from _tags(node.get(part))
