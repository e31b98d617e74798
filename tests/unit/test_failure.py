"""Why a task failed, in one line, from the results that Ansible's modules really give."""

from __future__ import annotations

import pytest

from orchestrator.failure import item, message


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"msg": "No package matching 'qemu' is available"}, "No package matching 'qemu' is available"),
        ({"msg": "Task failed: Module failed: Unable to start service x"}, "Unable to start service x"),
        ({"msg": "non-zero return code", "stderr": "E: no\n", "stdout": "x"}, "non-zero return code: E: no"),
        ({"msg": "non-zero return code", "stderr": "", "stdout": "one\ntwo"}, "non-zero return code: one two"),
        (
            {
                "msg": "MODULE FAILURE: See stdout/stderr",
                "module_stderr": "Traceback (most recent call last):\nOSError: 5",
            },
            "MODULE FAILURE: See stdout/stderr: OSError: 5",
        ),
        (
            {
                "msg": "Task failed: Module result deserialization failed: No start of json char found",
                "module_stderr": "sh: python3: not found",
            },
            "sh: python3: not found",
        ),
        (
            {
                "msg": "Task failed: Module result deserialization failed: No start of json char found",
                "exception": "(traceback unavailable)",
            },
            "Module result deserialization failed: No start of json char found",
        ),
        (
            {"msg": "Task failed: Module result deserialization failed: No start of json char found"},
            "Module result deserialization failed: No start of json char found",
        ),
        (
            {"msg": "Task failed: Action failed: non-zero return code", "stderr": "E: no"},
            "non-zero return code: E: no",
        ),
        ({"assertion": "a == b", "msg": "Assertion failed"}, "not so: a == b"),
        ({"assertion": "a == b", "msg": "Give each host a name."}, "Give each host a name. (a == b)"),
        (
            {"msg": "Validation of arguments failed:\nx", "argument_errors": ["x is no int", "y is missing"]},
            "x is no int; y is missing",
        ),
        ({"censored": "hidden", "msg": "secret"}, "the task failed; its output is hidden because it may hold a secret"),
        ({"msg": ["a", "list"]}, "['a', 'list']"),
        ({"msg": None}, "the module gave no reason"),
        ({}, "the module gave no reason"),
    ],
)
def test_the_reason_is_found(result: dict[str, object], said: str) -> None:
    assert message(result).removesuffix(" (no_log)") == said


def test_a_long_output_is_told_from_its_end() -> None:
    said = message({"msg": "non-zero return code", "stderr": "compiling\n" * 5000 + "E: disk full"})
    assert said.endswith("E: disk full")
    assert len(said) <= 400


@pytest.mark.parametrize("label", [{"_ansible_item_label": "b"}, {}])
def test_an_item_has_its_label(label: dict[str, str]) -> None:
    assert item({"item": "b", "failed": True, "msg": "no b"} | label) == "b"


def test_a_hidden_item_has_no_label() -> None:
    result = {"failed": True, "censored": "hidden", "item": "secret"}
    assert item(result) == ""
    assert "secret)" not in message(result).replace("a secret (no_log)", "")


def test_a_task_without_a_loop_has_no_item() -> None:
    assert item({"msg": "broken"}) == ""


def test_a_message_is_safe_to_show() -> None:
    assert message({"msg": "\x1b[2J\u202eevil\udc80\n" + "x" * 1000}).isprintable()
