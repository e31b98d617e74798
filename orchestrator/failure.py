"""Says in one line why an Ansible task failed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from orchestrator.text import printable

__all__ = ["item", "message"]

_PREFIX = re.compile(r"^((Task|Action|Module) failed: )+")
_NO_JSON = "result deserialization failed"  # no JSON came back: no Python there, or a shell that printed something else
HIDDEN = "the task failed; its output is hidden because it may hold a secret (no_log)"

# What Ansible says when the reason is somewhere else in the result.
EMPTY_WORDS = (
    "non-zero return code",
    "module failure",
    "one or more items failed",
    "all items completed",
    "see stdout/stderr",
    _NO_JSON,
)
NO_TRACEBACK = "(traceback unavailable)"  # in the place of one
TAIL = 300


def message(result: Mapping[str, Any]) -> str:
    """The reason in the result of a failed task, or of a failed item of its loop, safe to show."""
    return printable(_reason(result)) or "the module gave no reason"


def item(result: Mapping[str, Any]) -> str:
    """The label of an item, "" where there is no loop, or where it may hold a secret."""
    return (
        "" if "censored" in result else printable(str(result.get("_ansible_item_label", result.get("item", ""))), 120)
    )


def _reason(result: Mapping[str, Any]) -> str:
    if "censored" in result:
        return HIDDEN
    said = _PREFIX.sub("", _text(result, "msg"))
    if "assertion" in result:
        return f"{said} ({result['assertion']})" if said != "Assertion failed" else f"not so: {result['assertion']}"
    if errors := result.get("argument_errors"):
        return "; ".join(str(error) for error in errors) if isinstance(errors, list) else str(errors)
    if said and not any(words in said.lower() for words in EMPTY_WORDS):
        return said
    outputs = ("stderr", "module_stderr", "stdout", "module_stdout", "exception")
    ends = (_end(_text(result, name)) for name in outputs)
    detail = next((end for end in ends if end not in ("", NO_TRACEBACK)), "")
    if not detail or not said:
        return said or detail
    return detail if _NO_JSON in said else f"{said.rstrip('.')}: {detail}"


def _text(result: Mapping[str, Any], name: str) -> str:
    value = result.get(name)
    return value if isinstance(value, str) else "" if value is None else str(value)


def _end(text: str) -> str:
    """Where programs say why they gave up: of a traceback its last line, of anything else the last few lines."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if any(line.startswith("Traceback") for line in lines):
        return lines[-1]
    whole = " ".join(lines)
    return whole if len(whole) <= TAIL else f"…{whole[-TAIL:]}"
