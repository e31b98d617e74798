"""The calls that bring units to where a plan wants them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

SOURCE = Path(__file__).parents[2] / "plugins/modules/unit_moves.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("unit_moves", SOURCE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


module = load()


def test_units_that_move_alike_move_together() -> None:
    moves = [{"unit": f"{name}.socket", "enabled": True, "state": "started"} for name in ("a", "b", "c")]
    assert module.of_systemd(moves) == [
        ["systemctl", "enable", "--", "a.socket", "b.socket", "c.socket"],
        ["systemctl", "start", "--", "a.socket", "b.socket", "c.socket"],
    ]


def test_the_order_of_the_plan_stays() -> None:
    moves = [
        {"unit": "a.service", "state": "stopped"},
        {"unit": "a.socket", "enabled": True, "state": "started"},
        {"unit": "b.service", "state": "stopped"},
    ]
    assert [(call[1], call[3]) for call in module.of_systemd(moves)] == [
        ("stop", "a.service"),
        ("enable", "a.socket"),
        ("start", "a.socket"),
        ("stop", "b.service"),
    ]


def test_a_mask_comes_off_first_and_on_last() -> None:
    calls = module.of_systemd([{"unit": "a", "masked": False, "enabled": True, "state": "started"}])
    assert [call[1] for call in calls] == ["unmask", "enable", "start"]
    calls = module.of_systemd([{"unit": "a", "masked": True, "state": "stopped"}])
    assert [call[1] for call in calls] == ["stop", "mask"]


def test_openrc_takes_one_service_a_call() -> None:
    assert module.of_openrc([{"unit": "libvirtd", "enabled": True, "state": "started"}]) == [
        ["rc-update", "add", "libvirtd", "default"],
        ["rc-service", "libvirtd", "start"],
    ]
    assert module.of_openrc([{"unit": "virtqemud", "enabled": False, "state": "stopped", "masked": None}]) == [
        ["rc-update", "del", "virtqemud", "default"],
        ["rc-service", "virtqemud", "stop"],
    ]


def test_a_plan_without_moves_calls_nothing() -> None:
    assert module.of_systemd([]) == module.of_openrc([]) == []


def test_what_a_command_says_is_why_it_failed() -> None:
    assert module.run(["true"]) == ""
    assert module.run(["sh", "-c", "echo Unit is masked. >&2; exit 1"]) == "Unit is masked."
    assert module.run(["false"]) == "it ended with 1"
